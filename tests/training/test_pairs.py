"""Training on interactions: each once an epoch, and users that are remembered."""

from typing import Any

import numpy as np
import pytest
import torch

from diffuserec.data import (
    AugmentedCopies,
    Catalog,
    CurriculumSchedule,
    Pairs,
    Queries,
    SequenceDataset,
    leave_one_out,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.models.items import ItemTable
from diffuserec.models.recommender import StateRecommender
from diffuserec.models.settings import PairSettings
from diffuserec.models.users import UserTable
from diffuserec.training import train_on_pairs

from .suite import counted_steps


class Factors(StateRecommender):
    """Products of user and item vectors; the loss is their negative mean over interactions."""

    class Config(PairSettings):
        """Settings."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.users = UserTable(catalog.n_users, catalog.vocab_size, self.config.dim)
        self.table = ItemTable(catalog.vocab_size, self.config.dim)
        self.table.reset_parameters()
        self.seen: list[list[tuple[int, int]]] = []
        self.at_validation: list[tuple[torch.Tensor, torch.Tensor]] = []

    def learn(self, train: SequenceDataset, valid: Any, runtime: Runtime) -> list[Any]:
        def loss(pairs: Pairs) -> torch.Tensor:
            self.seen.append(list(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True)))
            users, items = self.users(pairs.users), self.table.embed(pairs.items)
            return -(users * items).sum(1).clamp(max=1).mean()

        return train_on_pairs(self, loss, train, valid, runtime, users=self.users)

    def states(self, histories: Any, seed: int = 0, n_draws: int | None = None) -> torch.Tensor:
        vectors, audience = self.users.vectors.weight, self.users.audience
        self.at_validation.append((vectors.clone(), audience.clone()))
        return self.users.of(histories)[:, None]


LOG = SequenceDataset.from_lists([[1, 2, 2], [3], [], [4, 5, 1, 3]])
INTERACTIONS = [(0, 1), (0, 2), (0, 2), (1, 3), (3, 1), (3, 3), (3, 4), (3, 5)]


def test_every_real_interaction_is_seen_once_an_epoch() -> None:
    longer = LOG.prepend(np.array([[5, 5]], dtype=np.int32), np.array([1]))
    with counted_steps() as n_steps:
        model = Factors(dim=4, batch_size=3, epochs=2).fit(longer)
    assert n_steps() == len(model.seen) == 2 * 3
    for epoch in (model.seen[:3], model.seen[3:]):
        assert sorted(pair for batch in epoch for pair in batch) == INTERACTIONS
    assert model.seen[:3] != model.seen[3:]
    assert [record.phase for record in model.curve] == ["fit", "fit"]
    assert model.curve[1].loss < model.curve[0].loss


def test_users_are_remembered_with_the_vectors_that_are_kept() -> None:
    model = Factors(dim=4, batch_size=3, epochs=5, learning_rate=0.1).fit(LOG)
    assert model.users.known.tolist() == [True, True, False, True]
    vectors = model.users.vectors.weight
    torch.testing.assert_close(model.users.audience[5], vectors[3])
    torch.testing.assert_close(model.users.audience[3], (vectors[1] + vectors[3]) / 2)


def test_validation_ranks_strangers_by_users_as_they_are_now() -> None:
    stranger = SequenceDataset.from_lists([[5]], LOG.catalog, users=[77])
    valid = Queries(stranger, np.array([1]))
    model = Factors(dim=4, batch_size=3, epochs=3, learning_rate=0.1).fit(LOG, valid)
    assert len(model.at_validation) == 3
    for vectors, audience in model.at_validation:
        torch.testing.assert_close(audience[5], vectors[3])
    assert not torch.equal(model.at_validation[0][0], model.at_validation[2][0])


def test_the_best_epoch_is_kept_and_its_users_are_remembered(random_log) -> None:
    split = leave_one_out(random_log)
    settings = {"dim": 4, "batch_size": 64, "learning_rate": 0.05}
    model = Factors(**settings, epochs=6, patience=2).fit(split.train, split.valid)
    metrics = [record.valid for record in model.curve]
    assert 0 < max(metrics) <= 1
    best = metrics.index(max(metrics))
    alone = Factors(**settings, epochs=best + 1).fit(split.train)
    for name, value in model.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_nothing_to_learn_from() -> None:
    nobody = SequenceDataset.from_lists([[], []], LOG.catalog)
    with pytest.raises(DataError, match=r"^factors has nothing to learn from"):
        Factors(dim=4).fit(nobody)


def copies_of(data: SequenceDataset, schedule: CurriculumSchedule) -> SequenceDataset:
    items = np.stack([data.items % 5 + 1, (data.items + 1) % 5 + 1]).astype(np.int32)
    return data.with_copies(
        AugmentedCopies(items, np.zeros((2, len(data)), dtype=np.float32), schedule)
    )


def test_copies_are_trained_on_beside_their_originals() -> None:
    schedule = CurriculumSchedule("none", copies_per_step="all")
    model = Factors(dim=4, batch_size=100, epochs=1).fit(copies_of(LOG, schedule))
    originals, copies = model.seen
    assert sorted(originals) == INTERACTIONS
    first = [(user, item % 5 + 1) for user, item in INTERACTIONS]
    second = [(user, (item + 1) % 5 + 1) for user, item in INTERACTIONS]
    assert sorted(copies) == sorted(first + second)


def test_epochs_that_end_before_all_copies_are_in_use_are_refused() -> None:
    data = copies_of(LOG, CurriculumSchedule())
    with pytest.raises(ConfigError, match="1 epochs end before all 2 copies are in use"):
        Factors(dim=4, epochs=1).fit(data)
    assert len(Factors(dim=4, epochs=2).fit(data).curve) == 2
