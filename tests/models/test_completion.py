"""Training histories are recognized and completed; no other history is."""

import numpy as np
import torch

from diffuserec.data import Histories, Queries, SequenceDataset, histories_of, leave_one_out
from diffuserec.models.completion import HistoryCompletion

LOG = SequenceDataset.from_lists([[1, 2, 3, 4], [5, 1], [2, 3, 4, 5, 1]])
SPLIT = leave_one_out(LOG)


def completion() -> HistoryCompletion:
    made = HistoryCompletion(LOG.catalog.n_users)
    made.remember(SPLIT.train, SPLIT.valid)
    return made


def all_of(dataset: SequenceDataset) -> Histories:
    return histories_of(dataset, np.arange(len(dataset)))


def test_training_histories_become_test_histories() -> None:
    completed = completion()(all_of(SPLIT.train))
    # the second user is too short to have a validation item
    assert completed.lengths.tolist() == [3, 2, 4]
    assert completed.items.tolist() == [[1, 2, 3, 0], [5, 1, 0, 0], [2, 3, 4, 5]]
    assert completed.users.tolist() == [0, 1, 2]


def test_other_histories_stay_as_they_are() -> None:
    others = SequenceDataset.from_lists(
        [[1, 2, 3], [2, 1], [1, 2], [2, 3, 4], [1, 2], []], LOG.catalog, users=[0, 0, 2, 3, 99, 0]
    )
    histories = all_of(others)
    completed = completion()(histories)
    assert completed.lengths.tolist() == histories.lengths.tolist()
    assert torch.equal(completed.items[:, :3], histories.items)
    assert not completed.items[:, 3].any()


def test_it_is_state() -> None:
    loaded = HistoryCompletion(LOG.catalog.n_users)
    histories = all_of(SPLIT.train)
    assert loaded(histories).lengths.tolist() == histories.lengths.tolist()
    loaded.load_state_dict(completion().state_dict())
    assert loaded(histories).lengths.tolist() == [3, 2, 4]


def test_users_without_a_query_have_nothing_to_add() -> None:
    made = HistoryCompletion(LOG.catalog.n_users)
    nobody = Queries(SPLIT.valid.histories.select(np.zeros(2, dtype=bool)), np.zeros(0, np.int64))
    made.remember(SPLIT.train, nobody)
    assert made(all_of(SPLIT.train)).lengths.tolist() == [2, 2, 3]
