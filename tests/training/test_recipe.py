"""Ways of making gradient steps: averages of parameters, short gradients, and a resume of all."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffuserec import SASRec, leave_one_out
from diffuserec.models.base import Runtime

from .suite import (
    SETTINGS,
    assert_same_fit,
    fit,
    interrupted_after,
    pair_after,
    steps_before,
)

RECIPE: dict[str, Any] = {
    "weight_decay": 0.01,
    "warmup_steps": 3,
    "rate_decay": "cosine",
    "max_norm": 0.05,
    "average_epochs": 2.0,
    "attention_dropout": 0.3,
    "examples": "newest_prefixes",
    "first_items": True,
    "by_length": False,
}


def test_averages_by_hand() -> None:
    # a falls by .1 a step from 1: .9, .8, .7; decays 2/11, 3/12 and, cut, .28
    kept: list[float] = []
    model, _, _ = pair_after(
        lambda model: lambda batch: model.a * 1.0,
        n_batches=3,
        average_epochs=1 / 0.72 / 3,
        validate=lambda: 0.0,
        watch=dict,
    )
    average = 1.0
    for value, decay in ((0.9, 2 / 11), (0.8, 3 / 12), (0.7, 0.28)):
        average = decay * average + (1 - decay) * value
    kept.append(model.a.item())
    assert kept == pytest.approx([average])


@pytest.mark.parametrize("validated", [True, False])
def test_averages_are_validated_and_kept_and_do_not_steer(validated: bool) -> None:
    seen: list[float] = []

    def losses(model: Any) -> Any:
        def loss(batch: Any) -> torch.Tensor:
            seen.append(model.a.item())
            return model.a * 1.0

        return loss

    shown: list[float] = []

    def metric_of(model: Any) -> Any:
        def metric() -> float:
            shown.append(model.a.item())
            return float(len(shown))

        return metric

    holder: list[Any] = []

    def keep(model: Any) -> Any:
        holder.append(model)
        return losses(model)

    more = {"validate": lambda: metric_of(holder[0])()} if validated else {}
    model, _, _ = pair_after(keep, n_batches=2, epochs=2, average_epochs=500.0, **more)
    assert seen == pytest.approx([1.0, 0.9, 0.8, 0.7])  # the steps go on from the parameters
    assert model.a.item() > 0.6 + 0.01  # and the last of them, .6, is not what is kept
    if validated:
        assert model.a.item() == shown[-1]


def test_long_gradients_are_cut_to_a_length() -> None:
    model, _, _ = pair_after(lambda model: lambda batch: 3 * model.a + 4 * model.b, max_norm=1.0)
    assert (1 - model.a.item(), 2 - model.b.item()) == pytest.approx((0.1 * 0.6, 0.1 * 0.8))
    model, _, _ = pair_after(lambda model: lambda batch: 3 * model.a + 4 * model.b, max_norm=9.0)
    assert (1 - model.a.item(), 2 - model.b.item()) == pytest.approx((0.3, 0.4))


@pytest.mark.parametrize("at_epoch", [1, 3])
def test_a_resumed_run_with_every_part_is_the_whole_one(
    random_log, tmp_path: Path, at_epoch: int
) -> None:
    whole = fit(random_log, Runtime(seed=3, checkpoint=tmp_path / "whole"), **RECIPE)
    with interrupted_after(steps_before(random_log, 1) * 5 * at_epoch + 3):
        fit(random_log, Runtime(seed=3, checkpoint=tmp_path / "part"), **RECIPE)
    resumed = fit(random_log, Runtime(seed=3, checkpoint=tmp_path / "part", resume=True), **RECIPE)
    assert_same_fit(resumed, whole, tmp_path / "part", tmp_path / "whole")


@pytest.mark.parametrize("name", [name for name in RECIPE if name != "first_items"])
def test_every_part_changes_what_is_learned(random_log, name: str) -> None:
    def learned(**settings: Any) -> torch.Tensor:
        model = SASRec(**SETTINGS | settings).fit(leave_one_out(random_log).train, None, Runtime())
        weight: torch.Tensor = model.table.vectors.weight
        return weight

    assert not torch.equal(learned(epochs=2), learned(epochs=2, **{name: RECIPE[name]}))
