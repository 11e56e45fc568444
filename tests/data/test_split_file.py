"""Split files: parts written by hand, and refusals that name the line."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffuserec.data import (
    Catalog,
    SequenceDataset,
    canonical_split,
    from_frame,
    leave_one_out,
    split_by_file,
    split_dataset,
    temporal,
)
from diffuserec.errors import ConfigError, DataError

LOG = pl.DataFrame(
    {
        "user_id": ["ann", "ann", "ann", "ann", "bob", "bob", "cy", "cy", "cy"],
        "item_id": [7, 8, 9, 7, 8, 9, 9, 8, 7],
        "timestamp": [1, 2, 3, 4, 1, 5, 2, 3, 9],
    }
)


@pytest.fixture
def data() -> SequenceDataset:
    return from_frame(LOG).to_dataset()  # items 7, 8, 9 are numbers 1, 2, 3


def lists(dataset: SequenceDataset) -> list[list[int]]:
    return [sequence.tolist() for sequence in dataset]


def write(folder: Path, text: str, name: str = "parts.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


BY_TIME = """user_id,item_id,timestamp,part
ann,7,1,train
cy,7,9,test
ann,7,4,test
ann,8,2,train
bob,9,5,test
ann,9,3,valid
bob,8,1,train
cy,9,2,train
cy,8,3,valid
"""


def test_parts_of_interactions(data: SequenceDataset, tmp_path: Path) -> None:
    split = split_by_file(data, write(tmp_path, BY_TIME))
    assert lists(split.train) == [[1, 2], [2], [3]]
    assert lists(split.valid.histories) == [[1, 2], [3]]
    assert split.valid.targets.tolist() == [3, 2]
    assert split.valid.histories.users.tolist() == [0, 2]
    assert lists(split.test.histories) == [[1, 2, 3], [2], [3, 2]]
    assert split.test.targets.tolist() == [1, 3, 1]
    assert split.n_too_short == 0
    assert split.protocol.startswith("file parts.csv (")
    assert split.protocol.endswith(") target=last")


def test_one_target_a_window(data: SequenceDataset, tmp_path: Path) -> None:
    path = write(tmp_path, BY_TIME.replace("ann,9,3,valid", "ann,9,3,test"))
    last, first = split_by_file(data, path), split_by_file(data, path, "first")
    assert lists(last.test.histories) == [[1, 2, 3], [2], [3, 2]]
    assert lists(first.test.histories) == [[1, 2], [2], [3, 2]]
    assert first.test.targets.tolist() == [3, 3, 1]


def test_parts_of_users(data: SequenceDataset, tmp_path: Path) -> None:
    path = write(tmp_path, "part;user\nvalid;ann\ntrain;bob\ntest;cy\n")
    split = split_by_file(data, path)
    assert lists(split.train) == [[], [2, 3], []]
    assert lists(split.valid.histories) == [[1, 2, 3]]
    assert split.valid.targets.tolist() == [1]
    assert lists(split.test.histories) == [[3, 2]]
    assert split.test.targets.tolist() == [1]
    assert split.n_too_short == 1
    with pytest.raises(DataError, match="no first target with a history before it"):
        split_by_file(data, path, "first")


def test_parts_of_pairs_need_no_times_where_pairs_are_in_one_part(
    data: SequenceDataset, tmp_path: Path
) -> None:
    lines = [line.rsplit(",", 2) for line in BY_TIME.splitlines()]
    untimed = "\n".join(f"{pair},{part}" for pair, _, part in lines) + "\n"
    with pytest.raises(DataError, match=r"line 2: this user has this item more than once"):
        split_by_file(data, write(tmp_path, untimed))
    log = LOG.filter(~((pl.col("user_id") == "ann") & (pl.col("timestamp") == 4)))
    once = write(tmp_path, untimed.replace("ann,7,test\n", ""))
    split = split_by_file(from_frame(log).to_dataset(), once)
    assert lists(split.train) == [[1, 2], [2], [3]]
    assert lists(split.test.histories) == [[2], [3, 2]]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "tsv", "csv"])
def test_formats(data: SequenceDataset, tmp_path: Path, suffix: str) -> None:
    frame = pl.read_csv(write(tmp_path, BY_TIME))
    path = tmp_path / f"others.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path)
    elif suffix == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator="\t" if suffix == "tsv" else ",")
    assert lists(split_by_file(data, path).test.histories) == [[1, 2, 3], [2], [3, 2]]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=8),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_written_split_is_read_back(
    tmp_path: Path, log: list[list[int]], by_time: bool, random: object
) -> None:
    """Whatever split: its parts, written down in any order, divide the log in the same way."""
    rows = [
        (f"u{u}", item, 10 * u + n) for u, items in enumerate(log) for n, item in enumerate(items)
    ]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")
    if frame["user_id"].n_unique() < 2 or frame["item_id"].n_unique() < 2:
        return
    dataset = from_frame(frame).to_dataset()
    try:
        split = temporal(dataset, 0.7, 0.7) if by_time else leave_one_out(dataset)
    except DataError:
        return
    n_train = split.train.lengths
    parts = []
    for user, count in enumerate(n_train):
        held_out = int(dataset.lengths[user]) - int(count)
        if by_time:
            cut = sorted(row[2] for row in rows)[int(0.7 * (len(rows) - 1))]
            times = [row[2] for row in rows if row[0] == f"u{user}"][int(count) :]
            parts += ["train"] * int(count) + ["valid" if t <= cut else "test" for t in times]
        else:
            parts += ["train"] * int(count) + ["valid", "test"] * (held_out == 2)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    path = tmp_path / "parts.parquet"
    frame.with_columns(part=pl.Series(parts))[order].write_parquet(path)
    again = split_by_file(dataset, path)
    assert lists(again.train) == lists(split.train)
    for name in ("valid", "test"):
        mine, theirs = getattr(again, name), getattr(split, name)
        assert lists(mine.histories) == lists(theirs.histories)
        assert mine.targets.tolist() == theirs.targets.tolist()
        assert mine.histories.users.tolist() == theirs.histories.users.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("part\n", "parts\n"), r"no column 'part' \(did you mean 'parts'\?\)"),
        (("ann,9,3,valid", "ann,9,3,vaild"), r"line 7: 'vaild' \(did you mean 'valid'\?\)"),
        (
            ("ann,9,3,valid", "ann,9,3,"),
            "line 7: an empty value in column 'part': say train, valid, test",
        ),
        (("ann,9,3", "dan,9,3"), "line 7: the dataset has no user 'dan'"),
        (("ann,9,3", "ann,4,3"), "line 7: the dataset has no item 4"),
        (("ann,9,3", "ann,9,2"), "line 7: this interaction is not in the dataset"),
        (("ann,9,3,valid\n", ""), "1 of the dataset's 9 interactions are not in the file"),
        (("ann,9,3,valid\n", "ann,9,3,valid\n" * 2), "line 8: this interaction is not in the"),
        (("ann,8,2,train", "ann,8,2,test"), "line 7: a valid interaction after one of test"),
        (("timestamp", "rating"), "column 'rating' is no user, item, time or part"),
        (("item_id", "asin,item_id"), "line 2: 5 fields expected, 4 found"),
        (("item_id", "part"), "'part' twice"),
        (("user_id", "name"), "no user column"),
        (("item_id", "thing"), "'thing' is no user"),
        (("cy,7,9,test", "cy,7,9,train"), "line 3: a train interaction after one of valid"),
    ],
)
def test_files_that_do_not_fit(
    data: SequenceDataset, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = write(tmp_path, BY_TIME.replace(*change))
    with pytest.raises(DataError, match=message) as refused:
        split_by_file(data, path)
    assert "parts.csv" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,part\nann,valid\nbob,train\n", "user 'cy' has no part"),
        ("user,part\nann,valid\nbob,train\ncy,test\nbob,train\n", "user 'bob' stands twice"),
        ("user,part\nann,train\nbob,train\ncy,train\n", "validation window holds no last target"),
        ("user,part\nann,valid\nbob,train\ncy,train\n", "test window holds no last target"),
        ("user,time,part\nann,1,valid\n", "no column has items"),
        ("user,uid,part\nann,1,valid\n", "could each be the user"),
        ("user,part\n", "no interaction"),
    ],
)
def test_user_files_that_do_not_fit(
    data: SequenceDataset, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split_by_file(data, write(tmp_path, text))


def test_datasets_without_what_a_file_needs(data: SequenceDataset, tmp_path: Path) -> None:
    path = write(tmp_path, BY_TIME)
    untimed = from_frame(LOG.drop("timestamp"), time="none").to_dataset()
    with pytest.raises(DataError, match="has no times: leave column 'timestamp' out"):
        split_by_file(untimed, path)
    nameless = SequenceDataset.from_lists([[1, 2, 3]], Catalog(pl.Series([1, 2, 3]), 1))
    with pytest.raises(DataError, match="keeps none"):
        split_by_file(nameless, path)
    with pytest.raises(DataError, match="no such file"):
        split_by_file(data, tmp_path / "none.csv")


def test_mixed_types_are_refused(data: SequenceDataset, tmp_path: Path) -> None:
    lines = '{"user": "ann", "part": "train"}\n{"user": 3, "part": "test"}\n'
    with pytest.raises(DataError, match="differ in type"):
        split_by_file(data, write(tmp_path, lines, "parts.jsonl"))


def test_integer_users_and_a_part_of_the_users(tmp_path: Path) -> None:
    log = LOG.with_columns(
        user_id=pl.col("user_id").replace_strict({"ann": 30, "bob": 10, "cy": 20})
    )
    dataset = from_frame(log).to_dataset()
    path = write(tmp_path, "user,part\n30,test\n20,valid\n10,train\n")
    assert lists(split_by_file(dataset, path).train) == [[2, 3], [], []]
    some = dataset.select(np.array([2, 1]))
    path = write(tmp_path, "user,part\n30,test\n20,valid\n")
    split = split_by_file(some, path)
    assert split.test.histories.users.tolist() == [2]
    assert split.valid.histories.users.tolist() == [1]


def test_a_name_holds_the_file_and_notices_its_change(
    data: SequenceDataset, tmp_path: Path
) -> None:
    path = write(tmp_path, BY_TIME, "a, target=first,path=b.csv")
    name = canonical_split(f"file:target=first,path={path}")
    assert name.startswith("file:target=first,sha256=")
    assert name.endswith(f",path={path.resolve()}")
    assert canonical_split(name) == name
    assert lists(split_dataset(data, name).test.histories) == [[1, 2, 3], [2], [3, 2]]
    assert split_dataset(data, f"file:{path}").protocol.endswith("target=last")
    path.write_text(BY_TIME.replace("ann,7,4,test", "ann,7,4,valid"), encoding="utf-8")
    with pytest.raises(ConfigError, match="has changed since this split was named"):
        split_dataset(data, name)
    with pytest.raises(DataError, match="cannot be read"):
        canonical_split(f"file:{tmp_path / 'none.csv'}")
