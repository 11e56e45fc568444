"""Kills at random moments: what is continued ends as if nothing had happened, bit for bit.

    DIFFUSEREC_CASES=200 pytest -m slow --timeout=0 tests/robustness/test_kills.py -s

kills 200 commands; the normal suite kills a few.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from diffuserec import Store, load, load_dataset
from diffuserec.recommenders.sasrec import SASRec

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="it needs fork and SIGKILL")

SEED = 15
TINY = ["dim=8", "max_len=8"]
METHODS = {
    "sasrec": ["--model", "sasrec", "--set", "epochs=6", "--set", "patience=6"],
    "diffrec": ["--model", "diffrec", "--set", "epochs=4", "--set", "num_train_timesteps=8"],
    "simdiffrec": [
        *("--model", "simdiffrec", "--set", "epochs=4", "--set", "num_train_timesteps=25"),
        *("--set", "k_noise=3", "--set", "k_sample=4"),
    ],
    "sasrec + diff4rec": [
        *("--model", "sasrec", "--set", "epochs=4", "--augment", "diff4rec"),
        *("--augment-set", "n_copies=2", "--augment-set", "epochs=4"),
        *("--augment-set", "num_train_timesteps=25", "--augment-set", "hidden_dim=8"),
    ],
}
STUDY = """
title = "Killed"
data = ["any"]
floors = []
[settings]
sasrec = { epochs = 3, dim = 8, max_len = 8 }
random = { n_items = 2 }
[[rows]]
model = "sasrec"
augment = ["none", "random"]
"""
CURVE = """
title = "Killed"
data = ["any"]
floors = []
[[rows]]
name = "widths"
model = "sasrec"
settings = { epochs = 3, max_len = 8 }
grid = { dim = [4, 8] }
choose = true
"""


class KillServer:
    """Runs commands in forks of a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "said.txt"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "KILL_SERVER_LOG": str(self.log)},
            encoding="utf-8",
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.jobs, self.answers = self.process.stdin, self.process.stdout
        assert self.answers.readline() == "ready\n"

    def run(self, *words: object, kill: float | None = None, number: int = 9) -> tuple[int, float]:
        """Exit status (-9: killed) and seconds of a command.

        Args:
            kill: send it a signal after so many seconds.
            number: of the signal.
        """
        job = {"words": [str(word) for word in words], "kill": kill, "number": number}
        print(json.dumps(job), file=self.jobs)
        self.jobs.flush()
        status, seconds = json.loads(self.answers.readline())
        return status, seconds

    def complete(self, *words: object) -> float:
        """Seconds of a command that must succeed."""
        status, seconds = self.run(*words)
        assert status == 0, self.log.read_text(errors="replace", encoding="utf-8")[-3000:]
        return seconds


@dataclass
class Case:
    """A command that is killed.

    Attributes:
        words: of the command that writes `out`.
        resumed: those of the command that continues it.
        done: whether it has ended, by what is there.
        check: of what stands there after a kill.
    """

    words: Callable[[Path], list[object]]
    resumed: Callable[[Path], list[object]]
    done: Callable[[Path], bool]
    check: Callable[[Path], None] = lambda out: None
    before: Callable[[Path], None] = lambda out: None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[KillServer]:
    server = KillServer(folder)
    yield server
    with server.process:  # closes its ends
        server.jobs.close()
    assert server.process.returncode == 0


@pytest.fixture(scope="module")
def cases(folder: Path, server: KillServer) -> dict[str, Case]:
    log, data = folder / "log.csv", folder / "data"
    Store(n_users=80, n_items=40, seed=1).frame().write_csv(log)
    server.complete("prepare", log, "--out", data)
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    (folder / "curve.toml").write_text(CURVE, encoding="utf-8")
    found = {}

    def again(words: Callable[[Path], list[object]], done: Callable[[Path], bool]) -> Case:
        return Case(words, words, done)

    def trained(method: str) -> Case:
        def words(out: Path) -> list[object]:
            tiny = [word for setting in TINY for word in ("--set", setting)]
            return ["train", data, *METHODS[method], *tiny, "--out", out]

        def resumed(out: Path) -> list[object]:
            return [*words(out), *(["--resume"] if (out / "run.json").exists() else [])]

        return Case(words, resumed, _complete)

    found["prepare"] = again(lambda out: ["prepare", log, "--out", out], Path.exists)
    small = ["--memory", "64KiB", "--min-item", "2"]
    found["prepare in pieces"] = again(
        lambda out: ["prepare", log, *small, "--out", out], Path.exists
    )
    found["augment"] = again(
        lambda out: ["augment", data, "--method", "random", "--out", out.with_suffix(".csv")],
        lambda out: out.with_suffix(".csv").exists(),
    )
    for method in METHODS:
        found[f"train {method}"] = trained(method)
    for name in ("study", "curve"):
        words = ["study", folder / f"{name}.toml", "--data", data, "--workers", "1", "--out"]
        found[name] = again(lambda out, words=words: [*words, out], lambda out: False)
    old, new = folder / "old", folder / "new"
    for path, dim in ((old, 8), (new, 16)):
        model = SASRec(dim=dim)
        model.take(load_dataset(data).catalog)
        model.save(path)

    def whole(out: Path) -> None:
        assert load(out).config.model_dump()["dim"] in (8, 16)

    found["save"] = Case(
        words=lambda out: ["save", new, out],
        resumed=lambda out: ["save", new, out],
        done=lambda out: False,
        check=whole,
        before=lambda out: shutil.copytree(old, out) and None,
    )
    return found


def _complete(out: Path) -> bool:
    file = out / "run.json"
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["complete"]


def _epochs(out: Path) -> int:
    """Epochs in the checkpoints of a run."""
    from safetensors import safe_open

    n = 0
    for file in out.rglob("checkpoint/**/fit.safetensors"):
        with safe_open(file, framework="pt") as opened:
            n += len(json.loads(opened.metadata()["records"]))
    return n


def _content(out: Path) -> dict[str, Any]:
    """All that a command wrote, without seconds and times."""
    found: dict[str, Any] = {}
    for file in sorted(out.parent.rglob("*")):
        name = file.relative_to(out.parent).as_posix()
        if not file.is_file() or file.suffix == ".lock":
            continue
        if file.suffix == ".parquet":
            found[name] = pl.read_parquet(file, glob=False).to_dicts()
        elif file.suffix == ".json":
            found[name] = _timeless(json.loads(file.read_text(encoding="utf-8")))
            if file.name in ("run.json", "metrics.json"):
                found[name].pop("sha256", None)  # of the times, too
                curves = [part for part in found[name].get("parts", {}) if "curve" in part]
                for part in curves:
                    del found[name]["parts"][part]  # they have seconds
        elif file.name == "epochs.jsonl":
            lines = file.read_text(encoding="utf-8").splitlines()
            found[name] = [_timeless(json.loads(line)) for line in lines]
        elif file.stem in ("table", "ledger") or file.suffix in (".html", ".svg", ".md"):
            found[name] = None  # they have times; results.json and report.json have all
        else:
            found[name] = file.read_bytes()
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        times = ("seconds", "time", "starts", "run", "per_user_sha256", "environment")
        times += ("validation_seconds",)
        times += ("validations", "looks_at_test")  # a look that a kill cut short was one
        return {k: _timeless(v) for k, v in content.items() if k not in times}
    return [_timeless(v) for v in content] if isinstance(content, list) else content


def _untouched(out: Path) -> dict[Path, int]:
    """When each finished run's weights were written."""
    finished = [run.parent for run in out.rglob("run.json") if _complete(run.parent)]
    weights = {run: next(run.glob("*/weights*.safetensors")) for run in finished}
    return {run: file.stat().st_mtime_ns for run, file in weights.items()}


def kill_and_continue(
    server: KillServer, name: str, case: Case, folder: Path, whole: Any, seconds: float, seed: int
) -> int:
    """Kills a command up to three times, continues it, and looks; returns how often it hit."""
    draw = random.Random(seed)
    out = folder / "out"
    out.parent.mkdir(parents=True)
    case.before(out)
    hits, words, finished, epochs = 0, case.words(out), {}, 0
    for _ in range(draw.choice((1, 1, 2, 3))):
        status, _ = server.run(*words, kill=draw.uniform(0, seconds))
        if status == 0:
            break
        assert status == -9, server.log.read_text(errors="replace", encoding="utf-8")[-3000:]
        hits += 1
        case.check(out)
        now, n = _untouched(out), _epochs(out)
        assert now.items() >= finished.items(), f"{name}, {seed}: a finished run was lost"
        if not now and name.startswith("train sasrec") and not (out / "model").exists():
            assert n >= epochs or (out / "augmenter").exists(), f"{name}, {seed}: epochs were lost"
        finished, epochs, words = now, n, case.resumed(out)
        if case.done(out):
            break
    status, _ = server.run(*words)
    assert status == 0 or (status == 2 and case.done(out)), server.log.read_text(encoding="utf-8")[
        -3000:
    ]
    assert _untouched(out).items() >= finished.items(), f"{name}, {seed}: trained once more"
    # a command that had ended but for its lock leaves that, which stops nobody
    leftovers = [
        path.name
        for path in out.parent.rglob(".*")
        if path.suffix != ".lock" or name.startswith(("train", "study", "curve"))
    ]
    assert leftovers == [], f"{name}, {seed}"
    end = _content(out)
    assert end.keys() == whole.keys(), f"{name}, {seed}"
    different = [file for file, content in whole.items() if content != end[file]]
    assert different == [], f"{name}, {seed}"
    shutil.rmtree(out.parent)
    return hits


def campaign(server: KillServer, cases: dict[str, Case], folder: Path, n: int) -> dict[str, int]:
    """Kills commands until n kills have hit, of all cases in turn; how many of each."""
    hits = dict.fromkeys(cases, 0)
    whole: dict[str, tuple[Any, float]] = {}
    seed = SEED
    while sum(hits.values()) < n:
        for name, case in cases.items():
            if sum(hits.values()) >= n:
                break
            seed += 1
            if name not in whole:
                out = folder / "whole" / name.replace(" ", "-") / "out"
                out.parent.mkdir(parents=True)
                case.before(out)
                seconds = server.complete(*case.words(out))
                whole[name] = _content(out), seconds
            content, seconds = whole[name]
            hits[name] += kill_and_continue(
                server, name, case, folder / f"{seed}", content, seconds, seed
            )
    return hits


def test_killed_commands_continue_to_the_same_end(
    server: KillServer, cases: dict[str, Case], tmp_path: Path
) -> None:
    some = {name: cases[name] for name in ("prepare in pieces", "train sasrec", "save")}
    assert sum(campaign(server, some, tmp_path, 3).values()) >= 3


@pytest.mark.parametrize("name", ["prepare", "prepare in pieces", "augment"])
def test_what_is_terminated_leaves_nothing(
    name: str, server: KillServer, cases: dict[str, Case], tmp_path: Path
) -> None:
    seconds = server.complete(*cases[name].words(tmp_path / "whole"))
    draw = random.Random(SEED)
    for n in range(3):
        out = tmp_path / str(n) / "out"
        out.parent.mkdir()
        moment = draw.uniform(0.2, 1) * seconds
        status, _ = server.run(*cases[name].words(out), kill=moment, number=signal.SIGTERM)
        assert status in (0, 143, -15)  # the last: before the command line began
        if not cases[name].done(out):
            assert status != 0
            assert list(out.parent.iterdir()) == []


@pytest.mark.slow
def test_kills_of_everything(server: KillServer, cases: dict[str, Case], tmp_path: Path) -> None:
    hits = campaign(server, cases, tmp_path, int(os.environ.get("DIFFUSEREC_CASES", "60")))
    print(f"\nkills: {hits}")
