"""Logs larger than memory: read in pieces, they give what reading them whole gives.

``DIFFUSEREC_CASES=2000 pytest -m slow tests/data/test_large.py`` compares that many random logs.
"""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from diffuserec.data import dataset_manifest, load_dataset, prepare_log
from diffuserec.data.preparing import bytes_in_memory, log_files
from diffuserec.errors import ConfigError, DataError

WHOLE = 2**40
"""Memory enough to read any log at once."""

IDS = {
    "integers": lambda draw, n: f"{draw.randrange(n)}",
    "strings": lambda draw, n: f"ü{draw.randrange(n)}",
    "with zeros in front": lambda draw, n: f"{draw.randrange(n):03}",
    "decimals": lambda draw, n: f"{draw.randrange(n)}{draw.choice(['', '.0'])}",
    "mixed": lambda draw, n: f"{draw.choice(['', '', '', 'x'])}{draw.randrange(n)}",
    "with blanks": lambda draw, n: f"{draw.choice(['', ' '])}u{draw.randrange(n)} ",
    "quoted": lambda draw, n: f'"a, {draw.randrange(n)}\n"',
}
TIMES = {
    "integers": lambda draw: f"{draw.randrange(40)}",
    "decimals": lambda draw: f"{draw.randrange(40)}{draw.choice(['', '.0'])}",
    "late fractions": lambda draw: draw.choice(["7"] * 99 + ["7.25"]),
    "dates": lambda draw: f"2024-01-{draw.randrange(1, 29):02}{draw.choice(['', ' 12:00:00'])}",
    "large": lambda draw: draw.choice(["9007199254740993", "1e16"]),
}
WRONG = {
    "user": ["", "null", "9007199254740993.0"],
    "item": ["", " NaN "],
    "time": ["", "soon", "nan", "1e30"],
    "synthetic": ["maybe"],
}


def write_random_log(folder: Path, draw: random.Random) -> tuple[Path, dict[str, Any]]:
    """A log of a few hundred rows with at most one wrong value, and options to prepare it with."""
    n_rows = draw.choice([3, 60, 400])
    user, item = draw.choice(list(IDS.values())), draw.choice(list(IDS.values()))
    time, marks = draw.choice(list(TIMES.values())), draw.choice(["0", "01"])
    names = ["user", "item", "rating", "time", "synthetic", "event"]
    rows = [
        [
            user(draw, draw.choice([2, 30])),
            item(draw, 12),
            draw.choice(["1", "2.5", " 3", ""]),
            time(draw),
            draw.choice(marks),
            draw.choice(["buy", "view", ""]),
        ]
        for _ in range(n_rows)
    ]
    if draw.random() < 0.2:
        column = draw.choice(list(WRONG))
        draw.choice(rows)[names.index(column)] = draw.choice(WRONG[column])
    lines = [",".join(row) for row in [names, *rows]]
    for _ in range(draw.choice([0, 0, 3])):
        lines.insert(draw.randrange(1, len(lines)), "")
    if draw.random() < 0.05:
        lines[draw.randrange(1, len(lines))] = "too,few"
    log = folder / draw.choice(["log.csv", "log.tsv"])
    text = "\n".join(lines) + draw.choice(["", "\n"])
    log.write_text(text.replace(",", "\t") if log.suffix == ".tsv" else text, encoding="utf-8")
    options: dict[str, Any] = {}
    if draw.random() < 0.3:
        options["where"] = draw.choice(
            ["rating >= 2", "event = 'buy' and rating < 3", "rating > 9", "time > 4", "no = 1"]
        )
    for name, least in (("min_user", 3), ("min_item", 6)):
        if draw.random() < 0.4:
            options[name] = draw.randint(1, least)
    for name in ("merge_repeats", "literal_ids"):
        options[name] = draw.random() < 0.3
    if draw.random() < 0.3:
        try:
            frame = pl.read_csv(log, separator="\t" if log.suffix == ".tsv" else ",")
        except pl.exceptions.PolarsError:
            return log, options
        log = folder / "log.parquet"
        frame.write_parquet(log, row_group_size=draw.choice([7, 1000]))
    return log, options


def outcome(log: Any, out: Path, memory: int, **options: Any) -> tuple[str, ...]:
    """What prepared data holds and what is said of it, or the error."""
    try:
        summary = prepare_log(log, out, memory=memory, **options)
    except DataError as error:
        assert not out.exists()
        return ("error", str(error))
    return load_dataset(out).fingerprint, str(summary), str(dataset_manifest(out)["note"])


def compare(folder: Path, seed: int) -> bool:
    """Prepares a random log whole and in pieces; whether it was one."""
    draw = random.Random(seed)
    folder.mkdir()
    log, options = write_random_log(folder, draw)
    whole = outcome(log, folder / "whole", WHOLE, **options)
    memory = draw.choice([1, 2**15, 2**18])
    in_pieces = outcome(log, folder / "pieces", memory, **options)
    assert in_pieces == whole, f"seed {seed}: {log.name}, {memory} bytes, {options}"
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return whole[0] != "error"


def test_pieces_give_what_the_whole_gives(tmp_path: Path) -> None:
    n_logs = sum(compare(tmp_path / f"{seed}", seed) for seed in range(8))
    assert n_logs > 2


@pytest.mark.slow
def test_pieces_of_many_logs(tmp_path: Path) -> None:
    n_cases = int(os.environ.get("DIFFUSEREC_CASES", "300"))
    n_logs = sum(compare(tmp_path / f"{seed}", seed) for seed in range(8, 8 + n_cases))
    print(f"\n{n_logs} of {n_cases} were logs")


def write_parts(folder: Path) -> tuple[pl.DataFrame, list[Path]]:
    """A log of 300 rows, and three files that hold it one after the other."""
    draw = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": draw.integers(0, 20, 300),
            "item_id": [f"i{n}" for n in draw.integers(0, 30, 300)],
            "timestamp": draw.integers(0, 50, 300),
        }
    )
    parts = [folder / f"{name}.csv" for name in ("2", "10", "1")]
    for number, part in enumerate(parts):
        frame[number * 100 : (number + 1) * 100].write_csv(part)
    return frame, parts


def test_several_files_are_one_log_in_their_order(tmp_path: Path) -> None:
    frame, parts = write_parts(tmp_path)
    frame.write_csv(tmp_path / "all.csv")
    (whole, *_) = outcome(tmp_path / "all.csv", tmp_path / "whole", WHOLE)
    (given, said, note) = outcome(parts, tmp_path / "given", WHOLE)
    assert given == whole
    assert said.startswith("2.csv and 2 more: csv; user_id, item_id, timestamp")
    assert "'source': '2.csv and 2 more'" in note
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    for part in parts:
        part.rename(folder / part.name)
    named = [folder / name for name in ("1.csv", "10.csv", "2.csv")]
    for logs in (folder, folder / "*.csv", str(folder / "[12]*")):
        assert log_files([logs]) == named


def test_files_that_are_no_log_together_are_refused(tmp_path: Path) -> None:
    frame, parts = write_parts(tmp_path)
    more, lines = tmp_path / "more.csv", tmp_path / "log.jsonl"
    kinds = [tmp_path / "integers.parquet", tmp_path / "strings.parquet"]

    def refusal(*logs: Path | str) -> str:
        kind, message = outcome(logs, tmp_path / "out", WHOLE)
        assert kind == "error"
        return message

    assert "2.csv is named twice" in refusal(parts[0], tmp_path / "[2]*")
    assert "there is no log file" in refusal(tmp_path / "none-*.csv")
    frame.with_columns(rating=1).write_csv(more)
    assert "more.csv: its columns are user_id, item_id, timestamp, rating" in refusal(*parts, more)
    frame.write_ndjson(lines)
    assert "log.jsonl: files of this format are read whole" in refusal(lines, more)
    frame.write_parquet(kinds[0])
    frame.cast({"user_id": pl.String}).write_parquet(kinds[1])
    assert "strings.parquet: its columns are user_id (String), item_id" in refusal(*kinds)
    assert "2.csv: read as csv, and integers.parquet as parquet" in refusal(kinds[0], parts[0])
    (tmp_path / "inner").mkdir()
    assert "holds folders (inner): name the files" in refusal(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_wrong_value_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    for number in range(3):
        rows = [f"{n},{n % 7},{n}" for n in range(500)]
        if number == 1:
            rows[321] = "5,3,soon"
        text = "\n".join(["user,item,time", *rows])
        (tmp_path / f"{number}.csv").write_text(text, encoding="utf-8")
    kind, message = outcome(tmp_path / "?.csv", tmp_path / "out", 2**14)
    assert kind == "error"
    assert message.startswith("0.csv and 2 more, 1.csv, line 323: 'soon' in column 'time'")


def test_an_expression_may_look_at_all_rows_and_must_tell_of_each(tmp_path: Path) -> None:
    frame, _ = write_parts(tmp_path)
    log = tmp_path / "all.csv"
    frame.write_csv(log)
    for number, where in enumerate(["timestamp > AVG(timestamp)", "COUNT(*) > 3"]):
        whole = outcome(log, tmp_path / f"whole {number}", WHOLE, where=where)
        assert (whole[0] == "error") == bool(number)
        assert outcome(log, tmp_path / f"pieces {number}", 1, where=where) == whole


def test_items_of_a_file_come_with_a_log_in_pieces(tmp_path: Path) -> None:
    frame, _ = write_parts(tmp_path)
    log, items = tmp_path / "all.csv", tmp_path / "items.csv"
    frame.write_csv(log)
    names = "".join(f"i{n},Item {n}\n" for n in range(5, 40))
    items.write_text(f"item_id,name\n{names}", encoding="utf-8")
    options = {"items": items, "min_item": 10}
    whole = outcome(log, tmp_path / "whole", WHOLE, **options)
    assert whole[0] != "error"
    assert outcome(log, tmp_path / "pieces", 1, **options) == whole


def test_a_format_that_is_only_read_whole_is_read_whole(tmp_path: Path) -> None:
    frame, _ = write_parts(tmp_path)
    frame.write_ndjson(tmp_path / "log.jsonl")
    assert outcome(tmp_path / "log.jsonl", tmp_path / "out", 1)[0] != "error"


def test_memory_is_a_positive_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory must be at least 1 byte"):
        prepare_log(tmp_path / "log.csv", tmp_path / "out", memory=0)


def test_rows_of_a_parquet_file_count_however_small_it_is(tmp_path: Path) -> None:
    n = 200_000
    users = np.arange(n) // 20
    log = pl.DataFrame({"user_id": users, "item_id": users % 20, "timestamp": users})
    log.write_parquet(tmp_path / "log.parquet", row_group_size=2000)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:-9])
    assert (tmp_path / "log.parquet").stat().st_size < 2 * n
    assert bytes_in_memory([tmp_path / "log.parquet"]) > 100 * n
    assert bytes_in_memory([tmp_path / "cut.parquet", tmp_path / "none"]) < 30 * n
