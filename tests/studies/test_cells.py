"""What a cell says of a training: its last stage, and why that ended."""

import pytest

from diffuserec.models.base import Epoch
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.studies.cells import training_facts

CONFIG = SASRec(epochs=6, patience=2).config


def epochs(phase: str, *valid: float) -> list[Epoch]:
    return [
        Epoch(phase, n, 1.0, value, 1.0, validation_seconds=0.5) for n, value in enumerate(valid)
    ]


@pytest.mark.parametrize(
    "valid, stop, best",
    [
        ((0.1, 0.3, 0.2, 0.1), "patience", 2),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.4), "limit", 5),
        ((0.1, 0.2, 0.3, 0.5, 0.4, 0.4), "patience", 4),
    ],
)
def test_why_a_training_ended(valid: tuple[float, ...], stop: str, best: int) -> None:
    found = training_facts(epochs("fit", *valid), CONFIG)
    assert (found["stop"], found["best_epoch"], found["epochs"]) == (stop, best, len(valid))
    assert found["curve"] == list(valid)
    # an epoch takes a second, and its validation half of one
    assert found["seconds_to_best"] == 1.5 * best
    assert found["stage"] is None
    assert found["epoch_limit"] == 6


def test_the_last_of_several_stages_is_the_one_that_is_told_of() -> None:
    curve = epochs("pretrain", 0.1, 0.3, 0.2, 0.1) + epochs("against", 0.2, 0.4, 0.3)
    found = training_facts(curve, CONFIG)
    assert (found["stage"], found["epochs"], found["stop"]) == ("against", 3, "limit")
    assert (found["best_epoch"], found["best_valid"]) == (2, 0.4)
    assert found["curve"] == [0.2, 0.4, 0.3]
    assert found["seconds_to_best"] == 1.5 * (4 + 2)
