"""The sparse item-to-item matrix against a dense one, and when its SciPy form is made."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from diffuserec.data import Histories, SequenceDataset, histories_of
from diffuserec.models import item_matrix
from diffuserec.models.item_matrix import ItemMatrix, pairs_within
from diffuserec.recommenders.markov import Markov

V = 6
HISTORIES = Histories(
    users=torch.arange(3),
    items=torch.tensor([[3, 1, 3, 5], [2, 4, 9, 9], [0, 0, 0, 0]]),  # 9 is padding's garbage
    lengths=torch.tensor([4, 2, 0]),
)


def dense(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.random((V, V)) * (generator.random((V, V)) < 0.5)
    values[0] = 0
    return values.astype(np.float32)


def made(values: np.ndarray) -> ItemMatrix:
    matrix = ItemMatrix(V)
    matrix.set(csr_array(values.astype(np.float64)))
    return matrix


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_weights_of_a_historys_items_are_added_up(decay) -> None:
    values = dense(0)
    found = made(values).decayed_sums(HISTORIES, decay)
    expected = np.zeros((3, V))
    for row, history in enumerate(([3, 1, 3, 5], [2, 4], [])):
        for age, item in enumerate(reversed(history)):
            expected[row] += decay**age * values[item]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == torch.float32


def test_nothing_is_known_at_first() -> None:
    assert not ItemMatrix(V).decayed_sums(HISTORIES, 0.5).any()


def test_what_is_saved_is_all_there_is() -> None:
    source, copy = made(dense(0)), ItemMatrix(V)
    copy.decayed_sums(HISTORIES, 0.5)
    for name, tensor in source.state_dict().items():
        setattr(copy, name, tensor.clone())
    expected = source.decayed_sums(HISTORIES, 0.5)
    assert torch.equal(copy.decayed_sums(HISTORIES, 0.5), expected)


def test_the_matrix_is_made_once_for_all_batches(monkeypatch) -> None:
    matrix = made(dense(0))
    built = []

    def watched(parts, shape):
        built.append(shape)
        return csr_array(parts, shape=shape)

    monkeypatch.setattr(item_matrix, "csr_array", watched)
    for _ in range(3):
        before = matrix.decayed_sums(HISTORIES, 0.5)
    assert built.count((V, V)) == 1
    matrix.set(csr_array(dense(1)))
    assert not torch.equal(matrix.decayed_sums(HISTORIES, 0.5), before)
    assert built.count((V, V)) == 2


def test_pairs_are_all_that_stand_near_in_one_sequence() -> None:
    pairs = pairs_within(SequenceDataset.from_lists([[3, 1, 2, 1], [5], [], [4, 2]]), 2)
    found = sorted(zip(*(part.tolist() for part in pairs), strict=True))
    assert found == [
        (0, 1, 1, 0.5),
        (0, 1, 2, 1.0),
        (0, 1, 3, 1.0),
        (0, 2, 1, 1.0),
        (0, 2, 3, 0.5),
        (3, 2, 4, 1.0),
    ]
    assert not len(pairs_within(SequenceDataset.from_lists([[1, 2]]), 0).owner)


def test_a_method_takes_the_counts_of_another(cycle: SequenceDataset) -> None:
    fitted, empty = Markov().fit(cycle), Markov()
    empty.take(cycle.catalog)
    empty.restore(fitted.state_dict())
    shown = histories_of(cycle, np.arange(5))
    assert torch.equal(empty.all_scores(shown), fitted.all_scores(shown))
