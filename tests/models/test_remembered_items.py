"""Items behind equal beginnings are generated once, and are those that generating anew gives."""

import numpy as np
import pytest

from diffuserec.data import Catalog, SequenceDataset
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.base import Runtime
from diffuserec.models.settings import PrependingSettings

LOG = SequenceDataset.from_lists([[first, 9, last] for first in (1, 2, 3) for last in (7, 8)])
MORE = SequenceDataset.from_lists([[first, 5] for first in (4, 3, 2, 6)], LOG.catalog)


class Shifted(PrependingAugmenter):
    """Puts the first item, shifted by the seed and what was learned, in front, and counts."""

    class Config(PrependingSettings):
        """Nothing of its own."""

    trained = False

    def build(self, catalog: Catalog) -> None:
        self.asked: list[list[int]] = []

    def generate(self, conditions: SequenceDataset, seed: int) -> np.ndarray:
        first = conditions.log.items[conditions.starts]
        self.asked.append(first.tolist())
        return (first[:, None] + seed + np.arange(2, dtype=np.int32)) % 9 + 1


def fitted(**settings: str) -> Shifted:
    return Shifted(n_items=2, **settings).fit(LOG, runtime=Runtime(seed=0))


def in_front(augmenter: Shifted, dataset: SequenceDataset, seed: int = 0) -> list[list[int]]:
    longer = augmenter.augment_for_inference(dataset, seed)
    return [items[:2].tolist() for items in longer]


def test_a_beginning_is_generated_from_once() -> None:
    augmenter = fitted()
    assert in_front(augmenter, LOG) == [[2, 3], [2, 3], [3, 4], [3, 4], [4, 5], [4, 5]]
    assert in_front(augmenter, LOG)[::2] == [[2, 3], [3, 4], [4, 5]]
    # some of these are known, and each row has its own
    assert in_front(augmenter, MORE) == [[5, 6], [4, 5], [3, 4], [7, 8]]
    assert augmenter.asked == [[1, 2, 3], [], [4, 6]]


def test_another_seed_and_another_fit_generate_anew() -> None:
    augmenter = fitted()
    in_front(augmenter, LOG)
    assert in_front(augmenter, LOG, seed=1)[0] == [3, 4]
    assert augmenter.asked == [[1, 2, 3], [1, 2, 3]]
    augmenter.fit(MORE, runtime=Runtime(seed=0))
    in_front(augmenter, LOG)
    assert augmenter.asked == [[1, 2, 3]]  # those of the new fit


def test_whole_histories_are_not_remembered() -> None:
    augmenter = fitted(condition="published")
    in_front(augmenter, LOG)
    in_front(augmenter, LOG)
    assert augmenter.asked == [[1, 1, 2, 2, 3, 3]] * 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shifted, "remembers", 3)
    augmenter = fitted()
    in_front(augmenter, LOG)
    in_front(augmenter, LOG)
    assert in_front(augmenter, MORE) == [[5, 6], [4, 5], [3, 4], [7, 8]]
    # 4 and 6 did not fit beside the three, which were given up
    assert in_front(augmenter, LOG)[::2] == [[2, 3], [3, 4], [4, 5]]
    assert augmenter.asked == [[1, 2, 3], [], [4, 6], [1, 2, 3]]
    # more than are remembered at all
    monkeypatch.setattr(Shifted, "remembers", 2)
    augmenter = fitted()
    in_front(augmenter, LOG)
    in_front(augmenter, LOG)
    assert augmenter.asked == [[1, 2, 3]] * 2
