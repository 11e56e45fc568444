"""Overwriting a model or prepared data leaves, at every step, the old one or the new one."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import Result
from typer.testing import CliRunner

from diffuserec import cli
from diffuserec.data import Catalog, SequenceDataset, load_dataset
from diffuserec.models.methods import load
from diffuserec.recommenders.popularity import Popularity

STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
"""What Python tells of before it happens, of all that changes a directory."""

_watchers: list[Callable[[str, tuple[Any, ...]], None]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STEPS and _watchers:
        watcher = _watchers.pop()  # what a watcher does is not watched
        watcher(event, arguments)
        _watchers.append(watcher)


sys.addaudithook(_hook)


def dataset(n: int) -> SequenceDataset:
    ids = pl.Series("item_id", [f"{n}-{item}" for item in range(5)])
    items = np.array([1, 2, 3, 4, 5, n], dtype=np.int32)
    return SequenceDataset.from_offsets(items, np.array([0, 3, 6]), Catalog(ids, 2))


def save_model(n: int, path: Path) -> None:
    Popularity().fit(dataset(n)).save(path)


def save_data(n: int, path: Path) -> None:
    dataset(n).save(path, overwrite=True)


def model_at(path: Path) -> str:
    model = load(path)
    frame = model.recommend([[]], 1)
    assert frame["score"].to_list() == [2]
    return str(frame["item_id"].item())


def data_at(path: Path) -> str:
    found = load_dataset(path)
    assert int(found.items[-1]) == int(found.catalog.item_ids[0].partition("-")[0])
    return f"{found.items[-1]}-{found.items[-1] - 1}"


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


KINDS = {"model": (save_model, model_at), "data": (save_data, data_at)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_overwriting_leaves_the_old_or_the_new(kind: str, tmp_path: Path) -> None:
    save, found_at = KINDS[kind]
    home, seen = tmp_path / "home", tmp_path / "seen"
    save(1, home / "it")
    n_seen = 0

    def snapshot(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n_seen
        shutil.copytree(home, seen / str(n_seen), symlinks=True)
        n_seen += 1

    _watchers.append(snapshot)
    try:
        save(2, home / "it")
    finally:
        _watchers.clear()
    assert n_seen > 12
    found = [found_at(seen / str(step) / "it") for step in range(n_seen)]
    save(3, tmp_path / "clean" / "it")
    for step in range(0, n_seen, 3):  # and what was left is no obstacle, and goes
        save(3, seen / str(step) / "it")
        assert names_in(seen / str(step)) == names_in(tmp_path / "clean")
        assert found_at(seen / str(step) / "it") == "3-2"
    assert found == sorted(found)
    assert set(found) == {"1-0", "2-1"}
    assert found_at(home / "it") == "2-1"


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_writing_a_new_one_leaves_none_or_all(kind: str, tmp_path: Path) -> None:
    save, found_at = KINDS[kind]
    home, found = tmp_path / "home", []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        found.append(found_at(home / "it") if (home / "it").exists() else "none")

    _watchers.append(look)
    try:
        save(2, home / "it")
    finally:
        _watchers.clear()
    assert set(found) == {"none", "2-1"}
    assert [path.name for path in home.iterdir()] == ["it"]


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_reads_while_it_is_replaced_gets_one_or_the_other(
    kind: str, tmp_path: Path
) -> None:
    save, found_at = KINDS[kind]
    path = tmp_path / "it"
    endings = {"model": (".safetensors", ".parquet"), "data": (".npy", ".parquet")}[kind]
    n_opened = at = 0

    def replace(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n_opened
        n_opened += event == "open" and str(arguments[0]).endswith(endings)
        if n_opened == at:
            n_opened += 1000
            save(2, path)

    found = []
    for at in range(1, 9):  # noqa: B007 (replace reads it)
        save(1, path)
        n_opened = 0
        _watchers.append(replace)
        try:
            found.append(found_at(path))
        finally:
            _watchers.clear()
    assert set(found) <= {"1-0", "2-1"}
    assert "2-1" in found


def test_saving_over_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    save_model(1, tmp_path / "there" / "model")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "model")
    (tmp_path / "dangling").symlink_to(tmp_path / "there" / "other")
    for name in ("link", "dangling"):
        save_model(2, tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert model_at(tmp_path / name) == "2-1"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["model", "other"]


def test_a_name_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    for name, n in (("[d]ata", 1), ("data", 2), ("m[1]", 1), ("m1", 2), ("a*", 1), ("ab", 2)):
        save_data(n, tmp_path / "data" / name)
        save_model(n, tmp_path / "models" / name)
    for name in ("[d]ata", "m[1]", "a*"):
        assert data_at(tmp_path / "data" / name) == "1-0"
        assert model_at(tmp_path / "models" / name) == "1-0"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_overwriting as this
kind, path, at = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
n = 0
def kill(event, arguments):
    global n
    n += 1
    if n == at:
        os.kill(os.getpid(), signal.SIGKILL)
this._watchers.append(kill)
this.KINDS[kind][0](2, path)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_kill_at_every_step(kind: str, tmp_path: Path) -> None:
    save, found_at = KINDS[kind]
    path, n_killed = tmp_path / "it", 0
    for at in range(1, 200):
        save(1, path)
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), kind, str(path)]
        code = subprocess.run([*command, str(at)]).returncode
        assert found_at(path) in {"1-0", "2-1"}
        if code == 0:
            break
        assert code == -signal.SIGKILL
        n_killed += 1
    assert code == 0
    assert n_killed > 12
    save(3, path)
    assert found_at(path) == "3-2"
    assert [p.name for p in tmp_path.iterdir()] == ["it"]
    print(f"{kind}: killed at {n_killed} steps")


def test_prepare_replaces_prepared_data_and_nothing_else(tmp_path: Path) -> None:
    def prepare(name: str, *options: str) -> Result:
        words = ["prepare", str(tmp_path / name), "--out", str(tmp_path / "data"), *options]
        return CliRunner().invoke(cli.app, words)

    for n in (1, 2):
        (tmp_path / f"{n}.csv").write_text(
            f"user_id,item_id,time\na,x{n},1\na,y{n},2\nb,x{n},3\n", encoding="utf-8"
        )
    assert prepare("1.csv").exit_code == 0
    assert "exists already: choose another --out, or add --overwrite" in str(
        prepare("2.csv").exception
    )
    assert load_dataset(tmp_path / "data").catalog.item_ids.to_list() == ["x1", "y1"]
    assert prepare("2.csv", "--overwrite").exit_code == 0
    assert load_dataset(tmp_path / "data").catalog.item_ids.to_list() == ["x2", "y2"]
