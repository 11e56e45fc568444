"""One very long history costs a measurement no more memory than what the model looks at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffuserec.data import Histories, Queries, SequenceDataset, bounded_batches, leave_one_out
from diffuserec.data.batches import history_batches
from diffuserec.evaluation import evaluate, uncertainty
from diffuserec.models.recommender import Recommender
from diffuserec.recommenders.itemknn import ItemKNN
from diffuserec.recommenders.markov import Markov
from diffuserec.recommenders.popularity import Popularity
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.training import validation

LONG, USERS, ITEMS = 20_000, 300, 50
CELLS = 2**20


@pytest.fixture(scope="module")
def split():
    generator = np.random.default_rng(0)
    lengths = [8] * USERS
    lengths[17] = LONG
    lists = [generator.integers(1, ITEMS + 1, n).tolist() for n in lengths]
    return leave_one_out(SequenceDataset.from_lists(lists))


def watched(model: Recommender) -> tuple[Recommender, list[tuple[int, int]]]:
    """The model, and the shapes of the batches that it is shown from now on."""
    shapes, scorer = [], model.scorer

    def watching(histories: Histories, *rest: Any, **named: Any) -> Any:
        shapes.append(tuple(histories.items.shape))
        return scorer(histories, *rest, **named)

    model.scorer = watching
    return model, shapes


def measured(model: Recommender, queries: Queries) -> dict[str, Callable[[], object]]:
    ids = model.catalog.item_ids
    histories = [ids.gather(history - 1).to_list() for history in queries.histories]
    return {
        "evaluate": lambda: evaluate(model, queries, filter_seen=False),
        "validation": lambda: validation(model, model.scorer, queries)(),
        "recommend": lambda: model.recommend(histories, filter_seen=False),
        **({"uncertainty": lambda: uncertainty(model, queries)} if model.has_distribution else {}),
    }


def test_a_model_with_max_len_is_shown_no_more(split):
    model, shapes = watched(SASRec(dim=8, n_layers=1, max_len=5, epochs=1).fit(split.train))
    for name, measure in measured(model, split.test).items():
        shapes.clear()
        measure()
        assert sum(rows for rows, _ in shapes) == USERS, name
        assert max(width for _, width in shapes) == 5, name
        assert len(shapes) <= 2, name  # and the long history breaks no batch up


@pytest.mark.parametrize("method", [Popularity, Markov, lambda: ItemKNN(max_len=None)])
def test_the_cells_of_a_model_that_looks_at_all_are_bounded(split, method):
    model, shapes = watched(method().fit(split.train))
    for name, measure in measured(model, split.test).items():
        shapes.clear()
        measure()
        assert sum(rows for rows, _ in shapes) == USERS, name
        assert max(rows * width for rows, width in shapes) <= CELLS, name
        assert len(shapes) <= 4, name


def test_lists_keep_the_order_of_the_histories_beside_a_long_one(split):
    model = Markov(decay=1).fit(split.train)
    ids = model.catalog.item_ids
    histories = [ids.gather(history - 1).to_list() for history in split.test.histories][:40]
    found = model.recommend(histories, k=3, filter_seen=False)
    assert found["query"].to_list() == [query for query in range(40) for _ in range(3)]
    for query in (0, 16, 17, 18, 39):
        alone = model.recommend([histories[query]], k=3, filter_seen=False)
        assert found.filter(query=query)["item_id"].equals(alone["item_id"])


@pytest.mark.parametrize("max_len", [None, 7])
def test_batches_hold_everyone_once_in_order_and_few_cells(max_len):
    generator = np.random.default_rng(5)
    lengths = (10 ** generator.uniform(0, 6.5, 300)).astype(np.int64)
    batches = list(bounded_batches(lengths, 64, max_len))
    covered = np.concatenate([np.arange(300)[part] for part in batches])
    np.testing.assert_array_equal(covered, np.arange(300))
    cut = lengths if max_len is None else np.minimum(lengths, max_len)
    for part in batches:
        n = part.stop - part.start
        assert n <= 64
        assert n == 1 or n * cut[part].max() <= CELLS
        if part.stop < 300 and n < 64:  # no more would have fit
            assert (n + 1) * cut[part.start : part.stop + 1].max() > CELLS
    assert list(bounded_batches(lengths[:0], 64)) == []


def test_a_history_beyond_the_bound_is_a_batch_alone():
    dataset = SequenceDataset.from_lists([[1, 2], [1] * (CELLS + 1), [2]])
    shown = [(index.tolist(), h.items.shape[1]) for index, h in history_batches(dataset, 8)]
    assert shown == [([2, 0], 2), ([1], CELLS + 1)]
    assert torch.equal(next(history_batches(dataset, 8, 3))[1].lengths, torch.tensor([1, 2, 3]))
