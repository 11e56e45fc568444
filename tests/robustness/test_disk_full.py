"""A disk that fills up: one line with the path and the cause, and nothing half-written.

Here the system's limit on the size of a file stands for the disk. The slow test fills real ones,
small file systems in memory, where the tests may mount them.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from diffuserec.data import SequenceDataset, Store, from_dataset, leave_one_out, load_dataset
from diffuserec.errors import DataError
from diffuserec.evaluation import evaluate
from diffuserec.files import replacing, write_json
from diffuserec.models.base import Runtime
from diffuserec.models.methods import load
from diffuserec.recommenders.markov import Markov
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.serving.lists import recommend_from
from diffuserec.studies.run_file import Plan
from diffuserec.studies.train_run import train_run

resource = pytest.importorskip("resource", reason="limits are told by Unix alone")

SETTINGS = {"dim": 16, "epochs": 2, "n_layers": 1, "max_len": 7}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with prepared data, its log, and a model."""
    folder = tmp_path_factory.mktemp("home")
    dataset = Store(n_users=80, n_items=40, seed=1).dataset()
    dataset.save(folder / "data")
    from_dataset(dataset).write(folder / "log.csv")
    Markov().fit(dataset).save(folder / "model")
    return folder


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Writing beyond so many bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def data(home: Path, out: Path) -> None:
    load_dataset(home / "data").save(out / "it", overwrite=True)


def model(home: Path, out: Path) -> None:
    load(home / "model").save(out / "it")


def checkpoint(home: Path, out: Path) -> None:
    runtime = Runtime(device="cpu", progress=False, checkpoint=out)
    SASRec(**SETTINGS).fit(load_dataset(home / "data"), None, runtime)


def lists(ending: str) -> Callable[[Path, Path], None]:
    def write(home: Path, out: Path) -> None:
        recommend_from(home / "model", None, home / "log.csv", out=out / f"x.{ending}", k=20)

    return write


def log(ending: str) -> Callable[[Path, Path], None]:
    def write(home: Path, out: Path) -> None:
        from_dataset(load_dataset(home / "data")).write(out / f"x.{ending}")

    return write


def measured(home: Path, out: Path) -> None:
    split = leave_one_out(load_dataset(home / "data"))
    evaluate(load(home / "model"), split.test).save(out / "test")


def run(home: Path, out: Path) -> None:
    runtime = Runtime(device="cpu", progress=False)
    train_run(Plan(str(home / "data"), "markov", {}), out / "run", runtime)


def document(home: Path, out: Path) -> None:
    write_json(out / "x.json", list(range(5000)))


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "data": data,
    "model": model,
    "checkpoint": checkpoint,
    "measured": measured,
    "document": document,
    **{f"lists.{ending}": lists(ending) for ending in ("csv", "parquet", "jsonl")},
    **{f"log.{ending}": log(ending) for ending in ("csv", "parquet", "inter")},
}


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def require_one_line(error: DataError, out: Path, cause: str) -> None:
    told = str(error)
    assert "\n" not in told
    assert str(out) in told
    assert f"cannot be written: {cause}" in told
    assert ".partial" not in told


def require_nothing_half_written(out: Path) -> None:
    for path in out.rglob("*"):
        assert not path.name.endswith((".partial", ".lock")), path


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("n_bytes", [0, 1100])
def test_a_file_that_does_not_fit(home: Path, tmp_path: Path, name: str, n_bytes: int) -> None:
    with files_of_at_most(n_bytes), pytest.raises(DataError) as caught:
        WRITERS[name](home, tmp_path)
    require_one_line(caught.value, tmp_path, "File too large")
    # an evaluation is two files, of which each is whole or not there
    assert names_in(tmp_path) in ([], ["test/per_user.parquet"])
    WRITERS[name](home, tmp_path)
    assert names_in(tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 150, 600])
def test_what_stood_there_still_does(home: Path, tmp_path: Path, n_bytes: int) -> None:
    first = SequenceDataset.from_lists([[1, 2, 3], [2, 1]])
    first.save(tmp_path / "data")
    Markov().fit(first).save(tmp_path / "model")
    before = names_in(tmp_path)
    second = load_dataset(home / "data")
    with files_of_at_most(n_bytes):
        with pytest.raises(DataError, match="data cannot be written: File too large"):
            second.save(tmp_path / "data", overwrite=True)
        with pytest.raises(DataError, match="model cannot be written: File too large"):
            SASRec(**SETTINGS).fit(second).save(tmp_path / "model")
    assert names_in(tmp_path) == before
    assert load_dataset(tmp_path / "data").fingerprint == first.fingerprint
    assert load(tmp_path / "model").catalog.n_items == 3


def test_a_full_device_is_told_by_its_cause(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    frame = pl.DataFrame({"a": np.arange(10**5)})

    def fill(write: Callable[[Path], object]) -> None:
        with replacing(tmp_path / "x") as work:
            work.symlink_to("/dev/full")
            write(work)

    for write in (frame.write_csv, frame.write_parquet, frame.write_ndjson):
        with pytest.raises(DataError, match=r"x cannot be written: No space left on device$"):
            fill(write)
        assert not list(tmp_path.iterdir())


@contextmanager
def small_disk(at: Path, size: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(at)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


COMMANDS = {
    "prepare": "prepare {home}/log.csv --out {out}/it",
    "prepare in pieces": "prepare {home}/log.csv --memory 8KiB --out {out}/it",
    "train markov": "train {home}/data --model markov --out {out}/it",
    "train sasrec": "train {home}/data --model sasrec --set dim=64 --set epochs=2 --out {out}/it",
    "augment csv": "augment {home}/data --method random --out {out}/it.csv",
    "augment parquet": "augment {home}/data --method random --out {out}/it.parquet",
    "recommend csv": "recommend {home}/run --histories {home}/log.csv --out {out}/it.csv",
    "recommend parquet": "recommend {home}/run --histories {home}/log.csv --out {out}/it.parquet",
    "recommend jsonl": "recommend {home}/run --histories {home}/log.csv --out {out}/it.jsonl",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_real_full_disks(home: Path, tmp_path: Path, name: str) -> None:
    if not (home / "run").exists():
        run(home, home)
    n_full = 0
    for size in ("4k", "8k", "16k", "100k"):
        with small_disk(tmp_path / "disk", size) as out:
            words = COMMANDS[name].format(home=home, out=out).split()
            done = subprocess.run(
                [sys.executable, "-m", "diffuserec.cli", *words],
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
            require_nothing_half_written(out)
            assert "Traceback" not in done.stderr
            if done.returncode == 0:
                continue
            n_full += 1
            assert done.returncode == 2, (size, done.stderr)
            last = [line for line in done.stderr.splitlines() if line.startswith("diffuserec: ")]
            assert len(last) == 1, (size, done.stderr)
            assert str(out) in last[0]
            assert "No space left on device" in last[0]
            assert ".partial" not in last[0]
            if not name.startswith("train"):
                assert names_in(out) == []
    print(f"{name}: full at {n_full} of 4 sizes")
    assert n_full


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_real_full_disks_in_python(home: Path, tmp_path: Path, name: str) -> None:
    n_full = 0
    for size in ("4k", "8k", "12k", "20k", "40k"):
        with small_disk(tmp_path / "disk", size) as out:
            try:
                WRITERS[name](home, out)
            except DataError as error:
                n_full += 1
                require_one_line(error, out, "No space left on device")
            require_nothing_half_written(out)
    print(f"{name}: full at {n_full} of 5 sizes")


@pytest.mark.slow
def test_a_resumed_training_goes_on_when_there_is_room_again(home: Path, tmp_path: Path) -> None:
    words = f"train {home}/data --model sasrec --set dim=64 --set epochs=3"
    with small_disk(tmp_path / "disk", "64k") as out:
        command = [sys.executable, "-m", "diffuserec.cli", *words.split(), "--out", str(out / "r")]
        full = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        assert full.returncode == 2
        assert "No space left on device" in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        again = subprocess.run(
            [*command, "--resume"], capture_output=True, text=True, encoding="utf-8"
        )
        plain = [*command[:-1], str(tmp_path / "plain")]
        if again.returncode:  # nothing had been kept, so there is nothing to resume
            again = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        assert again.returncode == 0, again.stderr
        assert subprocess.run(plain, capture_output=True).returncode == 0
        name = "model/manifest.json"
        assert (out / "r" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
