"""The leak meter against contexts whose targets are known."""

from typing import Any

import numpy as np
import pytest

from diffuserec.augmenters.asrep import ASReP
from diffuserec.augmenters.random import Random
from diffuserec.augmenters.random_seq import RandomSeq
from diffuserec.data import Catalog, Queries, SequenceDataset, Split, Store, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.evaluation import Leak, leak_meter
from diffuserec.models.augmenter import Augmenter, PrependingAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.methods import find_augmenter
from diffuserec.models.settings import PrependingSettings
from diffuserec.recommenders.sasrec import SASRec


class Newest(PrependingAugmenter):
    """Puts the newest item of what it may look at in front."""

    class Config(PrependingSettings):
        """Nothing of its own."""

    trained = False

    def build(self, catalog: Catalog) -> None:
        pass

    def generate(self, conditions: SequenceDataset, seed: int) -> np.ndarray:
        return conditions.log.items[conditions.ends - 1][:, None]


class Twice(Augmenter):
    """Repeats the first item, after the second."""

    trained = False

    def build(self, catalog: Catalog) -> None:
        pass

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        items = [[s[0], s[1], s[0], *s[2:]] for s in dataset]
        flags = [[False, False, True, *[False] * (len(s) - 2)] for s in dataset]
        return dataset.with_items(
            np.concatenate(items).astype(np.int32), dataset.lengths + 1, np.concatenate(flags)
        )


def measured(augmenter: Augmenter, split: Split, **options: Any) -> Leak:
    augmenter.fit(split.train, split.valid, Runtime(seed=1))
    train = augmenter.augment(split.train, 3)
    return leak_meter(augmenter, train, split.valid, split.test, seed=3, **options)


def test_shares_by_hand() -> None:
    # training [1 2 3 2], [4 5]; validation 1 and 5; test 2 and 4
    log = SequenceDataset.from_lists([[1, 2, 3, 2, 1, 2], [4, 5, 5, 4]])
    split = leave_one_out(log)
    # whole histories: 2 | 1 2 3 2 and 5 | 4 5: of the targets 1 2 3 2, 4 5, three are in front
    leaking = measured(Newest(condition="published", n_items=1), split)
    assert (leaking.training.n_targets, leaking.training.share) == (6, 0.5)
    # served before them: nothing, 1, 2, 3 and nothing, 4: none; without a history, no context
    assert (leaking.served.n_targets, leaking.served.share) == (4, 0.0)
    assert leaking.sample.n_targets == 4
    # behind 2 and 5 come 1 and 5; behind 1 and 5, 2 and 4
    assert (leaking.validation.n_targets, leaking.validation.share) == (2, 0.5)
    assert leaking.test is not None
    assert (leaking.test.n_targets, leaking.test.share) == (2, 0.0)
    assert (leaking.only_training, leaking.only_served) == (3, 0)
    # first items alone: 1 | 1 2 3 2 and 4 | 4 5, of which 2 3 2 and 5 are targets
    causal = measured(Newest(n_items=1), split)
    assert (causal.training.n_targets, causal.training.share) == (4, 0.0)
    assert causal.validation.share == 0.5  # behind 1 comes 1
    assert causal.test.share == 0.5  # and behind 4, 4
    assert causal.verdict.startswith("no leak")


def test_short_copies_are_counted_and_served_as_what_they_are() -> None:
    split = leave_one_out(SequenceDataset.from_lists([[1, 2, 3, 2, 1, 2], [4, 5, 5, 4]]))
    short = {"use_weight": 1.0, "use_short": 3, "n_items": 1}
    # to the six targets above come those of 2 | 2 3 2, two of which are in front
    leaking = measured(Newest(condition="published", **short), split)
    assert (leaking.training.n_targets, leaking.training.share) == (9, 5 / 9)
    assert (leaking.served.n_targets, leaking.served.share) == (6, 0.0)
    augmenter = Newest(use_place="nowhere", **short)
    alone = measured(augmenter, split)
    read = augmenter.training_sequences(split.train, 3)
    assert leak_meter(augmenter, read, split.valid, split.test, seed=3) == alone
    # 2 | 2 3 2 again, of which 3 and 2 are targets; validation as if items were in front
    assert (alone.training.n_targets, alone.training.share) == (2, 0.5)
    assert alone.sample == alone.served
    assert alone.validation.share == 0.5


def test_items_in_the_middle_are_in_front_of_what_comes_after_them_alone() -> None:
    split = leave_one_out(SequenceDataset.from_lists([[1, 2, 3, 1, 2, 1], [3, 2, 2, 3, 3, 3]]))
    found = measured(Twice(), split)
    # training [1 2 (1) 3 1], [3 2 (3) 2 3]: targets 3 1 and 2 3
    assert (found.training.n_targets, found.training.share) == (4, 0.5)


def test_the_published_forms_leak_and_the_causal_ones_do_not() -> None:
    split = leave_one_out(Store(n_users=300, n_items=120, seed=0).dataset())
    leaking = measured(RandomSeq(condition="published"), split)
    assert leaking.training.share > 0.3
    assert leaking.is_leaking
    assert leaking.verdict.startswith("leak: in training")
    reverse = measured(ASReP(condition="published", model="markov"), split)
    assert reverse.training.share == 0
    assert reverse.is_reversed
    assert "the other way round" in reverse.verdict
    for causal in (RandomSeq(), ASReP(model="markov"), Random()):
        found = measured(causal, split)
        assert found.sample == found.served
        assert not found.is_leaking
        assert not found.is_reversed
        assert found.verdict.startswith("no leak")


def test_chance_is_what_random_items_give() -> None:
    split = leave_one_out(Store(n_users=300, n_items=50, seed=0).dataset())
    found = measured(Random(n_items=10), split)
    expected = 1 - (1 - 1 / split.train.catalog.n_items) ** 10
    for part in (found.training, found.validation):
        assert part.share == pytest.approx(expected, abs=0.05)


def test_cosines_by_hand() -> None:
    split = leave_one_out(SequenceDataset.from_lists([[1, 2, 3, 1, 2], [3, 2, 1, 3, 3]] * 3))
    model = SASRec(dim=8, epochs=1).fit(split.train, runtime=Runtime(seed=0))
    vectors = model.table.embeddings().detach().numpy()
    vectors = vectors - vectors[1:].mean(0)

    def cosine(a: int, b: int) -> float:
        return float(
            vectors[a] @ vectors[b] / np.linalg.norm(vectors[a] * 1) / np.linalg.norm(vectors[b])
        )

    found = measured(RandomSeq(), split, model=model)
    # behind 1 come 2 3, behind 3 come 2 1
    expected = np.mean([cosine(1, 2), cosine(1, 3), cosine(3, 2), cosine(3, 1)])
    assert found.training.cosine == pytest.approx(expected, abs=1e-5)
    assert found.validation.cosine == pytest.approx((cosine(1, 1) + cosine(3, 3)) / 2, abs=1e-5)
    assert measured(RandomSeq(), split).training.cosine is None


def test_it_is_the_same_when_read_back() -> None:
    split = leave_one_out(Store(n_users=50, n_items=40, seed=0).dataset())
    found = measured(Random(), split)
    assert Leak.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="validation"):
        Leak.from_json({k: v for k, v in found.to_json().items() if k != "validation"})


def test_copies_have_nothing_in_front() -> None:
    split = leave_one_out(Store(n_users=50, n_items=40, seed=0).dataset())
    method = find_augmenter("diff4rec")(epochs=1, n_copies=2, hidden_dim=8, latent_dim=4)
    method.fit(split.train, runtime=Runtime(seed=0))
    with pytest.raises(ConfigError, match="nothing in front"):
        leak_meter(method, method.augment(split.train), split.valid)
