"""Training from disk: its memory does not grow with the log, and its order is sound."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
import pytest

from diffuserec.data import (
    Catalog,
    SequenceDataset,
    leave_one_out,
    load_dataset,
    n_training_examples,
    new_items,
    pair_batches,
    temporal,
    training_batches,
)
from diffuserec.data.arrays import nth_smallest
from diffuserec.recommenders.markov import Markov

N_USERS, N_ITEMS = 5_000, 50


def made(n_each: int, n_users: int = N_USERS) -> SequenceDataset:
    """A log of n interactions a user, whose times ascend."""
    draw = np.random.default_rng(n_each)
    n = n_users * n_each
    return SequenceDataset.from_offsets(
        draw.integers(1, N_ITEMS + 1, n, dtype=np.int32),
        np.arange(0, n + 1, n_each),
        Catalog(pl.Series("item_id", np.arange(N_ITEMS)), n_users),
        timestamps=np.tile(np.arange(n_each), n_users) * 1000,
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[SequenceDataset]:
    """Prepared data of 2.2 and of 5 million interactions of as many users, mapped."""
    folder = tmp_path_factory.mktemp("stores")
    for name, n_each in (("small", 450), ("large", 1000)):
        made(n_each).save(folder / name)
    return [load_dataset(folder / name) for name in ("small", "large")]


def epoch(examples: str) -> Callable[[SequenceDataset], object]:
    """The first batches of an epoch, and what is counted before."""

    def run(train: SequenceDataset) -> object:
        n_training_examples(train, 50, examples)
        batches = training_batches(train, 64, 50, seed=0, epoch=0, examples=examples)
        return [next(batches) for _ in range(3)]

    return run


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(epoch("per_user"), id="users"),
        pytest.param(epoch("prefixes"), id="prefixes"),
        pytest.param(lambda train: next(pair_batches(train, 64, 0, 0)), id="pairs"),
        pytest.param(SequenceDataset.item_counts, id="counts"),
        pytest.param(lambda train: train.fingerprint, id="fingerprint"),
        pytest.param(temporal, id="temporal split"),
        pytest.param(new_items, id="split by new items"),
        pytest.param(Markov().fit, id="baselines"),
    ],
)
def test_memory_does_not_grow_with_the_log(
    stores: list[SequenceDataset], work: Callable[[SequenceDataset], object]
) -> None:
    peaks = []
    for store in stores:
        train = leave_one_out(store).train
        tracemalloc.start()
        work(train)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    small, large = peaks
    assert large < 1.4 * small + 2**20  # of a log 2.2 times as large


def test_what_is_counted_in_parts_is_what_the_whole_log_has(stores: list[SequenceDataset]) -> None:
    train = leave_one_out(stores[0]).train
    rows = train.items.reshape(N_USERS, -1).astype(np.int64)
    pairs = (rows[:, :-1] * (N_ITEMS + 1) + rows[:, 1:]).reshape(-1)
    counts = np.bincount(pairs, minlength=(N_ITEMS + 1) ** 2).reshape(N_ITEMS + 1, -1)
    shares = counts[1:] / counts[1:].sum(1, keepdims=True)
    found = Markov().fit(train).transitions
    assert np.diff(found.offsets).tolist() == [0] + [N_ITEMS] * N_ITEMS
    assert np.allclose(found.values, shares[:, 1:].reshape(-1), rtol=1e-6)

    split = new_items(stores[0], share=0.1)
    new = np.setdiff1d(np.arange(1, N_ITEMS + 1), split.train.items)
    assert len(new) == 5
    assert np.isin(split.test.targets, new).all()
    assert not np.isin(split.test.histories.items, new).any()
    whole = stores[0].items.reshape(N_USERS, -1)
    first = np.isin(whole, new).argmax(1)
    assert np.array_equal(split.test.histories.lengths, first[first > 0])
    assert np.array_equal(split.test.targets, whole[np.arange(N_USERS), first][first > 0])


def test_a_large_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    n_each, n_users = 41, 27_000  # 1.08 million examples of one target
    dataset = made(n_each, n_users)

    def targets(epoch: int) -> Iterator[np.ndarray]:
        batches = training_batches(dataset, 2**14, 1, 3, epoch, "windows", by_length=False)
        return (batch.last_target_index.numpy() for batch in batches)

    first, other = (list(targets(number)) for number in (0, 1))
    assert all(map(np.array_equal, first, itertools.islice(targets(0), 3)))
    order, another = np.concatenate(first), np.concatenate(other)
    wanted = np.setdiff1d(np.arange(n_each * n_users), np.arange(0, n_each * n_users, n_each))
    assert np.array_equal(np.sort(order), wanted)
    assert np.array_equal(np.sort(another), wanted)
    assert (order == another).mean() < 0.01
    # a batch has users from everywhere
    assert min(np.ptp(batch) for batch in first) > 0.7 * n_each * n_users


def test_pairs_of_a_large_log_come_once() -> None:
    dataset = made(40, 27_000)
    batches = list(pair_batches(dataset, 2**15, seed=1, epoch=0))
    found = np.concatenate([b.users.numpy() * (N_ITEMS + 1) + b.items.numpy() for b in batches])
    wanted = np.repeat(dataset.users, dataset.lengths) * (N_ITEMS + 1) + dataset.items
    assert np.array_equal(np.sort(found), np.sort(wanted))
    assert not np.array_equal(found, wanted)


def test_nth_smallest_is_that_of_sorting() -> None:
    draw = np.random.default_rng(0)
    for low, high in ((-5, 5), (-(2**63), 2**63 - 1), (1_500_000_000, 1_500_100_000)):
        values = draw.integers(low, high, 1000)
        ordered = np.sort(values)
        for n in (0, 1, 499, 999):
            assert nth_smallest(lambda values=values: np.array_split(values, 7), n) == ordered[n]
