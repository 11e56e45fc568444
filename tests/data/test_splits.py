"""Splits worked by hand, and the property that makes a temporal split honest."""

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuserec.data import (
    AugmentedCopies,
    Catalog,
    CurriculumSchedule,
    Queries,
    SequenceDataset,
    Split,
    canonical_split,
    leave_basket,
    leave_last,
    leave_one_out,
    new_items,
    require_split,
    split_dataset,
    temporal,
)
from diffuserec.errors import ConfigError, DataError


def lists(dataset: SequenceDataset) -> list[list[int]]:
    return [sequence.tolist() for sequence in dataset]


def timed(events: list[list[tuple[int, int]]]) -> SequenceDataset:
    """A dataset from (item, time) pairs, one list a user."""
    flat = [pair for user in events for pair in user]
    return SequenceDataset.from_offsets(
        items=np.array([item for item, _ in flat], dtype=np.int32),
        offsets=np.cumsum([0] + [len(user) for user in events]),
        catalog=Catalog(pl.Series("item_id", np.arange(1, 100)), len(events)),
        timestamps=np.array([time for _, time in flat], dtype=np.int64),
    )


def test_leave_one_out_by_hand() -> None:
    log = [[1, 2, 3, 4], [5], [6, 7], [1, 1, 1], [], [9, 8, 7]]
    split = leave_one_out(SequenceDataset.from_lists(log))
    assert lists(split.train) == [[1, 2], [5], [6, 7], [1], [], [9]]
    assert split.train.users.tolist() == [0, 1, 2, 3, 4, 5]
    assert lists(split.valid.histories) == [[1, 2], [1], [9]]
    assert split.valid.targets.tolist() == [3, 1, 8]
    assert lists(split.test.histories) == [[1, 2, 3], [1, 1], [9, 8]]
    assert split.test.targets.tolist() == [4, 1, 7]
    for queries in (split.valid, split.test):
        assert queries.histories.users.tolist() == [0, 3, 5]
    assert split.n_too_short == 3
    assert split.protocol == "leave-one-out"


def test_leave_last_by_hand() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 5], [5], [6, 7, 8], [4, 3, 2, 1]])
    split = leave_last(log, 2)
    assert lists(split.train) == [[1, 2], [5], [6, 7, 8], [4]]
    assert lists(split.valid.histories) == [[1, 2], [4]]
    assert split.valid.targets.tolist() == [3, 3]
    assert split.valid.following is None
    assert lists(split.test.histories) == [[1, 2, 3], [4, 3]]
    assert split.test.following is not None
    assert split.test.following.tolist() == [[4, 5], [2, 1]]
    assert split.test.targets.tolist() == [4, 2]
    assert (split.n_too_short, split.protocol) == (2, "leave-last k=2")
    named = split_dataset(log, canonical_split("leave-last:k=2"))
    assert lists(named.test.histories) == lists(split.test.histories)
    assert canonical_split("leave-last") == "leave-last:k=5"


def test_leaving_the_last_item_is_leave_one_out() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4], [5], [6, 7], [1, 1, 1], [], [9, 8, 7]])
    one, last = leave_one_out(log), leave_last(log, 1)
    assert lists(last.train) == lists(one.train)
    for part in ("valid", "test"):
        ours, theirs = getattr(last, part), getattr(one, part)
        assert lists(ours.histories) == lists(theirs.histories)
        assert ours.targets.tolist() == theirs.targets.tolist()


@pytest.mark.parametrize("k", ["0", "-1", "two", "1.5"])
def test_lists_of_no_length_are_refused(k: str) -> None:
    with pytest.raises(ConfigError, match="k must be a whole number of at least 1"):
        require_split(f"leave-last:k={k}")
    with pytest.raises(DataError, match="needs users with at least 9 interactions"):
        leave_last(SequenceDataset.from_lists([[1, 2, 3]]), 7)


BASKETS = [
    [(1, 0), (2, 0), (3, 5), (4, 5), (5, 9), (6, 9), (5, 9)],  # the five is there twice
    [(1, 0), (2, 1), (3, 2)],  # no basket in the end
    [(7, 3), (8, 4), (9, 6), (10, 6), (11, 6)],
    [(1, 1), (2, 2), (3, 2)],  # nothing to train on
    [(1, 1), (2, 2), (6, 3), (6, 3)],  # one item twice
    [],
]


def test_leave_basket_by_hand() -> None:
    split = leave_basket(timed(BASKETS))
    assert lists(split.train) == [[1, 2], [1, 2, 3], [7], [1, 2, 3], [1, 2, 6, 6], []]
    assert lists(split.valid.histories) == [[1, 2], [7]]
    assert split.valid.targets.tolist() == [3, 8]
    assert (split.valid.following, split.valid.together) == (None, False)
    assert lists(split.test.histories) == [[1, 2, 3, 4], [7, 8]]
    assert split.test.histories.users.tolist() == [0, 2]
    assert split.test.following is not None
    assert split.test.following.tolist() == [[5, 6, 0], [9, 10, 11]]
    assert split.test.targets.tolist() == [5, 9]
    assert split.test.together
    assert split.test.select(np.array([1])).together
    assert (split.n_too_short, split.protocol) == (4, "leave-basket")
    named = split_dataset(timed(BASKETS), canonical_split("leave-basket"))
    assert lists(named.test.histories) == lists(split.test.histories)


@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), max_size=9), max_size=6))
@settings(max_examples=60, deadline=None)
def test_nothing_of_a_basket_is_seen_before_it_is_asked_for(
    events: list[list[tuple[int, int]]],
) -> None:
    """By sets of items at each time: no part holds anything of the time that is asked for."""
    log = [sorted(user, key=lambda event: event[1]) for user in events]
    baskets = {}
    for user, mine in enumerate(log):
        times = sorted({time for _, time in mine})
        newest = [item for item, time in mine if time == times[-1]] if times else []
        if len(times) >= 3 and len(set(newest)) >= 2:
            baskets[user] = (times[-2], times[-1], set(newest))
    view = timed([[(50, 99)], *log, [(50, 99)]])
    view = view.select(np.arange(1, len(log) + 1))  # of a log that holds more
    if not baskets:
        with pytest.raises(DataError, match="the log has no baskets"):
            leave_basket(view)
        return
    split = leave_basket(view)

    def until(user: int, moment: int) -> list[int]:
        return [item for item, time in log[user] if time < moment]

    assert lists(split.train) == [
        until(user, baskets[user][0] if user in baskets else 99) for user in range(len(log))
    ]
    assert lists(split.valid.histories) == [until(user, b[0]) for user, b in baskets.items()]
    assert lists(split.test.histories) == [until(user, b[1]) for user, b in baskets.items()]
    following = split.test.following
    assert following is not None
    found = [[item for item in row if item] for row in following.tolist()]
    assert [set(row) for row in found] == [basket for _, _, basket in baskets.values()]
    assert all(len(set(row)) == len(row) for row in found)


def test_a_history_put_in_at_once_is_no_basket() -> None:
    log = [[(1, 0), (2, 1), *[(item, 2) for item in range(n)]] for n in (101, 100)]
    times = timed([[(item % 90 + 1, time) for item, time in user] for user in log])
    split = leave_basket(times)
    assert split.test.histories.users.tolist() == [1]
    assert split.test.following is not None
    assert split.test.following.shape == (1, 90)


def test_a_log_without_times_has_no_baskets() -> None:
    with pytest.raises(DataError, match="baskets need timestamps: prepare the log with --time"):
        leave_basket(SequenceDataset.from_lists([[1, 2, 3, 4]]))


def test_leave_one_out_keeps_the_numbers_of_users() -> None:
    dataset = SequenceDataset.from_lists([[1, 2], [1, 2, 3]], users=[40, 7])
    split = leave_one_out(dataset)
    assert split.train.users.tolist() == [40, 7]
    assert split.test.histories.users.tolist() == [7]


def test_leave_one_out_needs_someone_with_three() -> None:
    with pytest.raises(DataError, match=r"at least 3 interactions.*none of the 2.*longest: 2"):
        leave_one_out(SequenceDataset.from_lists([[1], [1, 2]]))


def parts_of(split) -> list[SequenceDataset]:
    return [split.train, split.valid.histories, split.test.histories]


def test_leave_one_out_of_a_view() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 9], [5, 9], [6, 7, 8, 9]], users=[4, 5, 6])
    view = log.view(log.starts, log.ends - 1).select(np.array([2, 0, 1]))  # without the nines
    split = leave_one_out(view)
    assert lists(split.train) == [[6], [1, 2], [5]]
    assert lists(split.test.histories) == [[6, 7], [1, 2, 3]]
    assert split.valid.targets.tolist() == [7, 3]
    assert split.test.targets.tolist() == [8, 4]
    assert split.test.histories.users.tolist() == [6, 4]
    assert split.valid.repeat_share == split.test.repeat_share == 0.0


@pytest.mark.parametrize("split", [leave_one_out, leave_basket, temporal])
def test_the_parts_of_a_split_are_views_of_the_log(split) -> None:
    times = [10 * n for n in range(9)]
    dataset = timed(
        [[(n + 1, t) for n, t in enumerate([*times, 80])], [(n + 1, 9 * n) for n in range(9)]]
    )
    for part in parts_of(split(dataset)):
        assert part.log is dataset.log
        assert np.shares_memory(part.log.items, dataset.items)
        assert all(np.shares_memory(sequence, dataset.items) for sequence in part)


def test_leave_one_out_of_a_million_interactions_costs_its_users() -> None:
    n_users, length = 10_000, 100
    dataset = SequenceDataset.from_offsets(
        np.ones(n_users * length, dtype=np.int32),
        np.arange(n_users + 1) * length,
        Catalog(pl.Series("item_id", [7]), n_users),
    )
    tracemalloc.start()
    split = leave_one_out(dataset)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(part) for part in parts_of(split)] == [n_users] * 3
    # three views share starts and users with the log, and training its ends with validation: two
    # arrays of ends and two of targets, of 8 bytes a user; a copy of the items would be 400
    assert np.shares_memory(split.train.ends, split.valid.histories.ends)
    assert kept < 36 * n_users
    assert peak < 130 * n_users


# eleven interactions: of the times 0..100, 0.8 ends with 80, and of the nine until then 0.9 with 70
LOG = [
    [(1, 0), (2, 10), (3, 80), (4, 90), (11, 100)],  # a query in both windows
    [(5, 20), (6, 30), (7, 40)],  # nothing in a window
    [(8, 50), (9, 60), (10, 70)],
]
SHARES = {"quantile": 0.8, "valid_quantile": 0.9}


def test_temporal_by_hand() -> None:
    split = temporal(timed(LOG), **SHARES)
    assert lists(split.train) == [[1, 2], [5, 6, 7], [8, 9, 10]]
    assert lists(split.valid.histories) == [[1, 2]]
    assert split.valid.targets.tolist() == [3]
    assert lists(split.test.histories) == [[1, 2, 3, 4]]
    assert split.test.targets.tolist() == [11]
    assert split.n_too_short == 2
    assert split.protocol == "temporal quantile=0.8 valid_quantile=0.9 target=last"
    split = temporal(timed(LOG), **SHARES, target="first")
    assert lists(split.train) == [[1, 2], [5, 6, 7], [8, 9, 10]]
    assert lists(split.test.histories) == [[1, 2, 3]]
    assert split.test.targets.tolist() == [4]


def test_temporal_asks_for_one_item_in_a_window() -> None:
    log = [
        [(1, 0), (2, 4), (3, 62), (4, 63), (5, 81)],
        [(6, 1), (7, 82), (13, 83)],  # only a test query
        [(8, 61)],  # new in the validation window: no query, nothing to train on
        [(9, 2), (10, 3), (11, 5)],
        [(12, 90), (14, 91)],  # new in the test window
    ]
    # of fourteen times, 0..5 are trained on, and 81 and later are test
    shares = {"quantile": 0.65, "valid_quantile": 0.65}
    split = temporal(timed(log), **shares, target="first")
    assert lists(split.train) == [[1, 2], [6], [], [9, 10, 11], []]
    assert split.train.users.tolist() == [0, 1, 2, 3, 4]
    assert lists(split.valid.histories) == [[1, 2]]
    assert split.valid.targets.tolist() == [3]
    assert lists(split.test.histories) == [[1, 2, 3, 4], [6]]
    assert split.test.targets.tolist() == [5, 7]
    assert split.test.histories.users.tolist() == [0, 1]
    assert split.n_too_short == 3
    split = temporal(timed(log), **shares)
    assert lists(split.valid.histories) == [[1, 2, 3]]
    assert split.valid.targets.tolist() == [4]
    assert lists(split.test.histories) == [[1, 2, 3, 4], [6, 7], [12]]
    assert split.test.targets.tolist() == [5, 13, 14]
    assert split.n_too_short == 2


TIMES = st.lists(st.lists(st.integers(0, 60), max_size=8), min_size=1, max_size=12)


def events_of(times: list[list[int]]) -> tuple[list[list[tuple[int, int]]], dict[int, int]]:
    """A log in which every interaction has an item of its own, and the time of each item."""
    when: dict[int, int] = {}
    log: list[list[tuple[int, int]]] = []
    for user in times:
        log.append([])
        for time in sorted(user):
            when[len(when) + 1] = time
            log[-1].append((len(when), time))
    return log, when


@settings(deadline=None)
@given(TIMES, st.floats(0.3, 0.95), st.floats(0.3, 0.95), st.sampled_from(["first", "last"]))
def test_temporal_lets_nothing_of_a_window_out(
    times: list[list[int]], quantile: float, valid_quantile: float, target: str
) -> None:
    log, when = events_of(times)
    if not when:
        return
    # the same moments as pandas has them, and a window's items are after one and until the next
    second = float(np.quantile(sorted(when.values()), quantile))
    early = sorted(time for time in when.values() if time <= second)
    first = float(np.quantile(early, valid_quantile))
    try:
        split = temporal(timed(log), quantile, valid_quantile, target)  # type: ignore[arg-type]
    except DataError:
        return
    assert sorted(split.train.items.tolist()) == [i for i, time in when.items() if time <= first]
    for queries, after, until in (
        (split.valid, first, second),
        (split.test, second, math.inf),
    ):
        expected = {}
        for user, mine in enumerate(log):
            inside = [at for at, (_, time) in enumerate(mine) if after < time <= until]
            if inside and (at := inside[0 if target == "first" else -1]) > 0:
                expected[user] = ([item for item, _ in mine[:at]], mine[at][0])
        assert queries.histories.users.tolist() == list(expected)
        assert lists(queries.histories) == [history for history, _ in expected.values()]
        assert queries.targets.tolist() == [item for _, item in expected.values()]
    # so nothing that is asked for is trained on, for any user
    asked = {*split.valid.targets.tolist(), *split.test.targets.tolist()}
    assert asked.isdisjoint(split.train.items.tolist())
    latest = max(when[item] for item in split.train.items.tolist())
    assert all(when[item] > latest for item in asked)


def test_temporal_of_a_view_is_that_of_its_interactions() -> None:
    whole = timed([[(50, -5), *user, (60, 195)] for user in LOG[::-1]])
    view = whole.view(whole.starts + 1, whole.ends - 1).select(np.array([2, 1, 0]))
    split, expected = temporal(view, **SHARES), temporal(timed(LOG), **SHARES)
    for part, wanted in zip(parts_of(split), parts_of(expected), strict=True):
        assert lists(part) == lists(wanted)
    assert split.valid.targets.tolist() == expected.valid.targets.tolist()
    assert split.test.targets.tolist() == expected.test.targets.tolist()
    assert split.n_too_short == expected.n_too_short


def test_temporal_needs_interactions() -> None:
    with pytest.raises(DataError, match="needs interactions"):
        temporal(timed([[], []]))


def test_temporal_needs_timestamps() -> None:
    with pytest.raises(DataError, match="needs timestamps"):
        temporal(SequenceDataset.from_lists([[1, 2, 3]]))


def test_temporal_refuses_coarse_timestamps() -> None:
    with pytest.raises(DataError, match="too coarse"):
        temporal(timed([[(1, 5), (2, 5), (3, 5)]] * 4))


def test_temporal_refuses_windows_without_a_query() -> None:
    log = [[(n + 1, n)] for n in range(20)]  # everyone once: nobody has a past
    with pytest.raises(DataError, match="validation window holds no last target with a history"):
        temporal(timed(log))


@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.5, 1.0), (-0.5, 0.5), (0.5, math.nan)])
def test_temporal_refuses_impossible_shares(shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="quantile must be between 0 and 1"):
        temporal(timed(LOG), *shares)


def test_times_beyond_floats_are_divided_exactly() -> None:
    base = 2**62
    log = [[(1, base), (2, base + 1), (3, base + 2), (4, base + 3)], [(5, base)]]
    split = temporal(timed(log), 0.8, 0.8)
    assert lists(split.train) == [[1, 2], [5]]
    assert split.valid.targets.tolist() == [3]
    assert split.test.targets.tolist() == [4]


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("leave-one-out", lambda data: leave_one_out(data)),
        ("temporal:quantile=0.8", lambda data: temporal(data, 0.8)),
        (
            "temporal:valid_quantile=0.7, target=first,quantile=0.8",
            lambda data: temporal(data, 0.8, 0.7, "first"),
        ),
    ],
)
def test_a_split_by_its_name(name: str, same: Callable[[SequenceDataset], Split]) -> None:
    dataset = timed(LOG)
    for written in (name, canonical_split(name)):
        require_split(written)
        split = split_dataset(dataset, written)
        assert split.protocol == same(dataset).protocol
        assert lists(split.test.histories) == lists(same(dataset).test.histories)


def test_a_name_with_all_settings_said() -> None:
    said = canonical_split("temporal:target=first")
    assert said == "temporal:quantile=0.9,valid_quantile=0.9,target=first"
    assert canonical_split(said) == said
    assert canonical_split("temporal") == "temporal:quantile=0.9,valid_quantile=0.9,target=last"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "",
            "no split ''; there are: leave-one-out, leave-last, leave-basket, temporal, new-items",
        ),
        ("temporl", r"no split 'temporl' \(did you mean 'temporal'\?\)"),
        ("leave-one-out:quantile=0.9", "leave-one-out has no setting 'quantile'; it has: none"),
        ("temporal:", "temporal has no setting ''"),
        ("temporal:quantil=0.9", r"no setting 'quantil' \(did you mean 'quantile'\?\)"),
        ("temporal:quantile", "written once, as name=value, got 'quantile'"),
        ("temporal:quantile=0.9,quantile=0.8", "written once"),
        ("temporal:quantile=9", "quantile must be between 0 and 1, got '9'"),
        ("temporal:quantile=x", "quantile must be between 0 and 1, got 'x'"),
        ("temporal:target=next", "no target 'next'"),
        ("new-items:share=1", "share must be between 0 and 1, got '1'"),
        ("new-items:seed=-1", "seed must be a whole number from 0 on, got '-1'"),
        ("file", "names the file"),
        ("file:", "names the file"),
        ("file:target=next,path=x.csv", "no target 'next'"),
    ],
)
def test_names_of_no_split(name: str, message: str) -> None:
    for read in (require_split, canonical_split, lambda name: split_dataset(timed(LOG), name)):
        with pytest.raises(ConfigError, match=message):
            read(name)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_new_items_are_targets_of_the_test_and_nowhere_else(
    share: float, random_log: SequenceDataset
) -> None:
    view = random_log.select(np.arange(1, 40))  # a view of a log that holds more
    split = new_items(view, share, seed=3)
    new = set(split.test.targets.tolist())
    for part in (split.train, split.valid.histories, split.test.histories):
        assert new.isdisjoint(part.items.tolist())
    assert new.isdisjoint(split.valid.targets.tolist())
    whole = dict(zip(view.users.tolist(), lists(view), strict=True))
    parts = (split.test, split.valid)
    for part, more in ((p, t) for p in parts for t in zip(p.histories, p.targets, strict=True)):
        assert any(s[: len(more[0]) + 1] == [*more[0], more[1]] for s in whole.values()), part
    # all the others are trained on, up to a user's first new item, but for the validation target
    targets = dict(zip(split.valid.histories.users.tolist(), split.valid.targets, strict=True))
    tested = set(split.test.histories.users.tolist())
    n_new = round(share * np.count_nonzero(view.item_counts()))
    assert 0 < len(new) <= n_new
    for user, sequence in zip(split.train.users.tolist(), lists(split.train), strict=True):
        sequence += [targets[user]] if user in targets else []
        assert sequence == whole[user][: len(sequence)]
        assert (user in tested) == (0 < len(sequence) < len(whole[user]))
        assert (user in targets) == (len(sequence) >= 3)
    assert split.n_too_short == len(view) - len(tested)
    again = split_dataset(view, f"new-items:share={share},seed=3")
    assert again.test.targets.tolist() == split.test.targets.tolist()
    assert new_items(view, share, seed=4).test.targets.tolist() != split.test.targets.tolist()
    assert canonical_split("new-items") == "new-items:share=0.1,seed=0"


@pytest.mark.parametrize("split", [leave_one_out, leave_basket, temporal, new_items])
def test_synthetic_items_never_become_targets(split) -> None:
    dataset = SequenceDataset.from_lists([[1, 2, 3, 4]])
    longer = dataset.prepend(np.array([[5]], dtype=np.int32), np.array([0]))
    with pytest.raises(DataError, match="synthetic"):
        split(longer)
    copies = AugmentedCopies(
        dataset.items[None], np.zeros((1, 1), dtype=np.float32), CurriculumSchedule()
    )
    with pytest.raises(DataError, match="copies"):  # they show what is held out
        split(dataset.with_copies(copies))
    # marks are no obstacle if no item of the view is marked
    mine = longer.view(longer.starts + 1, longer.ends)
    assert len(leave_one_out(mine).test) == 1


def test_repeat_share_by_hand() -> None:
    histories = SequenceDataset.from_lists([[1, 2, 1], [3], [], [4, 5]])
    queries = Queries(histories, np.array([1, 1, 4, 5]))
    assert queries.repeat_share == 2 / 4
    # a generated item is not one that the user had
    longer = histories.prepend(np.array([[1], [4]], dtype=np.int32), np.array([1, 2]))
    assert Queries(longer, queries.targets).repeat_share == 2 / 4


def test_repeat_share_of_no_queries() -> None:
    none = SequenceDataset.from_lists([])
    assert Queries(none, np.zeros(0, dtype=np.int64)).repeat_share == 0.0


def test_a_log_without_users_has_no_new_items() -> None:
    nothing = SequenceDataset.from_lists([[1, 2, 3]]).select(np.arange(0))
    with pytest.raises(DataError, match="no user has a new item"):
        new_items(nothing)
