"""Rounding against a plain loop over a float64 table."""

import pytest
import torch

from diffuserec.models.diffusion import nearest_rows

torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(vectors, table, first):
    """The most similar row of each vector, by comparing cosines one at a time."""
    found = []
    for vector in vectors.double():
        cosines = [
            (vector @ row / (vector.norm() * row.norm()).clamp(min=1e-30)).item()
            for row in table[first:].double()
        ]
        found.append(first + cosines.index(max(cosines)))
    return torch.tensor(found)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_agrees_with_a_plain_loop(chunk, first):
    vectors, table = normal(40, 16), normal(100, 16, seed=1)
    table *= torch.linspace(0.1, 10, 100)[:, None]

    found = nearest_rows(vectors, table, first=first, chunk=chunk)
    assert torch.equal(found, one_by_one(vectors, table, first))
    assert found.dtype == torch.int64


def test_every_row_rounds_to_itself_at_any_length():
    table = normal(300, 8)
    scale = torch.logspace(-6, 6, 299)[:, None]

    assert torch.equal(nearest_rows(table[1:] * scale, table, chunk=64), torch.arange(1, 300))


def test_rows_below_first_are_never_chosen():
    table = normal(20, 4)
    assert nearest_rows(table[:1], table, first=0).item() == 0
    assert nearest_rows(table[:1], table).item() != 0
    assert (nearest_rows(table, table, first=18) >= 18).all()


def test_zero_vectors_and_zero_rows():
    table = torch.tensor([[9.0, 9.0], [-1.0, 0.0], [0.0, 0.0], [0.0, -1.0]])

    # Equally similar to all rows: the lowest wins.
    assert nearest_rows(torch.zeros(3, 2), table).tolist() == [1, 1, 1]
    # A zero row (cosine 0) beats rows that point away.
    assert nearest_rows(torch.tensor([[1.0, 1.0]]), table).item() == 2


@pytest.mark.parametrize("chunk", [13, 100, 777, 1024])
@pytest.mark.parametrize("dim", [5, 64])
def test_the_lowest_of_equal_rows_wins(chunk, dim):
    base = normal(200, dim)
    table = torch.cat([torch.zeros(1, dim), base, base.flip(0), 3 * base])
    for n in (1, 3, 64, 200):
        found = nearest_rows(base[:n] + 0.01 * normal(n, dim, seed=2), table, chunk=chunk)
        assert torch.equal(found, torch.arange(1, n + 1))


@pytest.mark.parametrize("chunk", [4, 1024])
def test_a_vector_does_not_depend_on_the_others(chunk):
    vectors, table = normal(30, 16), normal(500, 16, seed=3)
    together = nearest_rows(vectors, table)

    for i in range(30):
        assert nearest_rows(vectors[i : i + 1], table, chunk=chunk).item() == together[i]


def test_nothing_to_round():
    assert nearest_rows(torch.zeros(0, 4), normal(5, 4)).shape == (0,)


def test_what_cannot_be_rounded_is_refused():
    table = normal(5, 4)
    with pytest.raises(ValueError, match="the table has 5 rows, first is 5"):
        nearest_rows(normal(2, 4), table, first=5)
    with pytest.raises(ValueError, match="vectors to round hold NaN"):
        nearest_rows(torch.full((2, 4), float("nan")), table)
    broken = table.clone()
    broken[0] = float("nan")
    nearest_rows(normal(2, 4), broken)
    broken[3, 1] = float("inf")
    with pytest.raises(ValueError, match="table to round to"):
        nearest_rows(normal(2, 4), broken)
