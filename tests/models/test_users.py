"""Vectors of users, and of people whom the log does not know, against plain loops."""

import numpy as np
import pytest
import torch

from diffuserec.data import Histories, SequenceDataset, histories_of
from diffuserec.errors import DataError
from diffuserec.models.users import UserTable

D = 3
# user 2 has no interactions and 4 is not in the log; item 6 is nobody's; user 3 has 1 three times
TAKEN = {0: [1, 2], 1: [2, 3, 4], 2: [], 3: [1, 1, 5, 1]}


def log(synthetic: bool) -> SequenceDataset:
    plain = SequenceDataset.from_lists([*TAKEN.values(), [6]], users=[0, 1, 2, 3, 4])
    data = plain.select(np.arange(4))
    if not synthetic:
        return data
    return data.prepend(np.array([[6, 6], [4, 4]], dtype=np.int32), np.array([0, 2]))


def table() -> UserTable:
    made = UserTable(5, 7, D)
    with torch.no_grad():
        made.vectors.weight.copy_(torch.randn(5, D, generator=torch.Generator().manual_seed(1)))
    return made


def expected(made: UserTable, history: list[int]) -> torch.Tensor:
    vectors = made.vectors.weight.detach()
    audiences = []
    for item in history:
        takers = [user for user, items in TAKEN.items() if item in items] or [0, 1, 3]
        audiences.append(sum(vectors[user] for user in takers) / len(takers))
    return sum(audiences) / len(audiences)


@pytest.mark.parametrize("synthetic", [False, True])
def test_strangers_are_like_the_people_who_have_what_they_have(synthetic: bool) -> None:
    made = table()
    made.remember(log(synthetic))
    histories = [[1, 2], [2, 5, 5], [4], [6], [6, 3, 1, 2], [1]]
    users = [0, 1, 2, 4, 5, 10**9]  # the first two were trained on
    data = SequenceDataset.from_lists(histories, log(False).catalog, users)
    found = made.of(histories_of(data, np.arange(6)))
    torch.testing.assert_close(found[:2], made.vectors.weight[:2])
    for row in range(2, 6):
        torch.testing.assert_close(found[row], expected(made, histories[row]))
        alone = made.of(histories_of(data, np.array([row])))  # without padding
        torch.testing.assert_close(alone[0], found[row])


def test_gradients_reach_known_users_only() -> None:
    made = table()
    made.remember(log(False))
    items = torch.tensor([[1, 2], [1, 2]])
    found = made.of(Histories(torch.tensor([3, 4]), items, torch.tensor([2, 2])))
    found.sum().backward()
    assert made.vectors.weight.grad.abs().sum(1).tolist() == [0, 0, 0, D, 0]


def test_a_user_number_beyond_the_catalog_is_refused() -> None:
    made = UserTable(3, 7, D)
    with pytest.raises(DataError, match=r"user number 3 has no vector: .* has 3 users, numbered"):
        made.remember(log(False))


def test_a_log_of_nothing() -> None:
    made = UserTable(0, 1, D)
    made.remember(SequenceDataset.from_lists([]))
    strangers = Histories(*(torch.zeros(shape, dtype=torch.int64) for shape in (1, (1, 1), 1)))
    assert made.of(strangers).tolist() == [[0.0] * D]
