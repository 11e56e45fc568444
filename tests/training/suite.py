"""Small fits, their state, and ways to interrupt them, for the tests of training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.optim.optimizer import register_optimizer_step_post_hook

from diffuserec.data import Catalog, SequenceDataset, leave_one_out, training_batches
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.recommender import Recommender, ScoreRecommender
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.training import train

# dropout and drawn negatives, so that a wrong random state shows
SETTINGS: dict[str, Any] = {
    "average_epochs": 0.0,
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.4,
    "loss": "bce",
    "batch_size": 16,
    "learning_rate": 0.02,
    "epochs": 4,
}


def fit(log: SequenceDataset, runtime: Runtime, **settings: Any) -> SASRec:
    split = leave_one_out(log)
    return SASRec(**SETTINGS | settings).fit(split.train, split.valid, runtime)


@contextmanager
def counted_steps(until: int | None = None) -> Iterator[Callable[[], int]]:
    """Counts the steps of optimizers in the context; interrupts after so many, if at all."""
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == until:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(count)
    try:
        yield lambda: done
    finally:
        hook.remove()


@contextmanager
def interrupted_after(n_steps: int) -> Iterator[None]:
    """Whatever is trained in this context is interrupted after so many steps of an optimizer."""
    with pytest.raises(KeyboardInterrupt), counted_steps(n_steps):
        yield


def steps_before(log: SequenceDataset, epoch: int, seed: int = 3) -> int:
    """Steps that a fit with these settings makes before an epoch."""
    dataset, size = leave_one_out(log).train, SETTINGS["batch_size"]
    return sum(len(list(training_batches(dataset, size, 50, seed, e))) for e in range(epoch))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(folder / "fit.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def without_seconds(records: list[Epoch]) -> list[dict[str, object]]:
    times = ("seconds", "validation_seconds")
    return [{k: v for k, v in asdict(record).items() if k not in times} for record in records]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def assert_same_fit(
    model: Recommender, other: Recommender, folder: Path, other_folder: Path
) -> None:
    assert_equal(state(model), state(other))
    assert without_seconds(model.curve) == without_seconds(other.curve)
    (tensors, notes), (other_tensors, other_notes) = checkpoint(folder), checkpoint(other_folder)
    assert any(name.startswith("optimizer/") for name in tensors)
    assert any(name.startswith("best/") for name in tensors)
    assert_equal(tensors, other_tensors)
    assert notes["groups"] == other_notes["groups"]


class Pair(ScoreRecommender):
    """Two numbers, a = 1 and b = 2, for the loop alone."""

    def build(self, catalog: Catalog) -> None:
        self.a = torch.nn.Parameter(torch.tensor(1.0))
        self.b = torch.nn.Parameter(torch.tensor(2.0))

    def learn(self, train: Any, valid: Any, runtime: Any) -> list[Epoch]:
        raise NotImplementedError

    def all_scores(self, histories: Any) -> torch.Tensor:
        raise NotImplementedError


TWO_USERS = SequenceDataset.from_lists([[1, 2], [2, 1]])


def pair() -> Pair:
    model = Pair()
    model.take(TWO_USERS.catalog)
    return model


def pair_after(
    losses: Callable[[Pair], Any],
    *,
    n_batches: int = 1,
    epochs: int = 1,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    learning_rate: float = 0.1,
    **more: Any,
) -> tuple[Pair, torch.optim.Optimizer, list[Epoch]]:
    """A trained pair, its optimizer and its records; `losses` makes the updates of a pair."""
    model = pair()
    made = optimizer(model.parameters(), lr=learning_rate)
    given: dict[str, Any] = {
        "batches": lambda epoch: [torch.zeros(1)] * n_batches,
        "runtime": Runtime(),
    }
    records = train(
        model,
        losses(model),
        n_batches=n_batches,
        optimizer=made,
        epochs=epochs,
        data=TWO_USERS,
        **given | more,
    )
    return model, made, records
