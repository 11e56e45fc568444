"""A runner that is killed at random moments and started again ends as one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffuserec import Runtime, Store
from diffuserec.studies.results import read_results, results_of
from diffuserec.studies.runner import run_study
from diffuserec.studies.study import read

STUDY = """
title = "Kills"
data = ["store"]
seeds = [0]
floors = ["popularity"]

[settings]
sasrec = { epochs = 3, dim = 8, patience = 1 }
asrep = { n_items = 2, model_settings = { epochs = 2, dim = 8 } }

[[rows]]
model = ["sasrec", "markov"]
augment = ["none", "asrep"]

[[rows]]
name = "draws"
model = "diffrec"
settings = { epochs = 2, dim = 8 }
grid = { n_draws = [1, 2] }
at = "inference"
"""
RUNTIME = Runtime(device="cpu", progress=False)
CASES = int(os.environ.get("DIFFUSEREC_CASES", "40"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kills")
    Store(n_users=100, n_items=40, seed=1).dataset().save(path / "store", note={})
    (path / "study.toml").write_text(STUDY, encoding="utf-8")
    return path


def fill(folder: Path, out: Path) -> None:
    study = read(folder / "study.toml")
    outcome = run_study(study, out, folder / "store", RUNTIME, workers=1)
    results_of(study, outcome, out)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[dict[str, Any], float]:
    """The results of a study that nothing stopped, and the seconds that it took."""
    start = time.monotonic()
    fill(folder, folder / "undisturbed")
    return numbers(folder / "undisturbed"), time.monotonic() - start


def numbers(out: Path) -> dict[str, Any]:
    """All that a study found, without times and places."""
    found = read_results(out)
    for table in found["tables"]:
        for row in table["rows"]:
            del row["seconds"], row["environment"]
    return found


def finished(out: Path) -> dict[str, int]:
    """When each finished cell and each trained model was written."""
    paths = [*out.glob("cells/*.json"), *out.glob("runs/*/model/manifest.json")]
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in paths}


def no_work_was_repeated(before: dict[str, int], out: Path) -> bool:
    after = finished(out)
    return all(after.get(path) == written for path, written in before.items())


@pytest.mark.slow
def test_a_study_survives_kills(folder: Path, undisturbed: tuple[dict[str, Any], float]) -> None:
    expected, seconds = undisturbed
    out = folder / "killed"
    draw = random.Random(7)
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                fill(folder, out)
            finally:
                os._exit(0)
        before = finished(out)
        time.sleep(draw.uniform(0.05, 0.5) * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert no_work_was_repeated(before, out)
    before = finished(out)
    fill(folder, out)
    assert no_work_was_repeated(before, out)
    assert numbers(out) == expected


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_runner_of_processes_survives_many_kills(
    folder: Path, undisturbed: tuple[dict[str, Any], float]
) -> None:
    """Only the runner is killed: its workers must end by themselves, and let go of their runs."""
    expected, _ = undisturbed
    command = [sys.executable, "-m", "diffuserec.cli", "study", str(folder / "study.toml")]
    command += ["--data", str(folder / "store"), "--workers", "2", "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
    seconds = time.monotonic() - start
    assert numbers(folder / "whole") == expected
    draw = random.Random(0)
    n_kills, attempt = 0, 0
    while n_kills < CASES:
        out = folder / f"killed-{attempt}"
        attempt += 1
        for _ in range(8):  # then it is let to its end
            before = finished(out)
            child = subprocess.Popen(
                [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(draw.uniform(0.1, 0.9) * seconds)
            if child.poll() is None:
                child.kill()
                n_kills += 1
            child.wait()
            assert no_work_was_repeated(before, out)
        before = finished(out)
        done = subprocess.run(
            [*command, str(out)], capture_output=True, text=True, check=False, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
        assert no_work_was_repeated(before, out)
        assert json.dumps(numbers(out)) == json.dumps(expected)
    print(f"{n_kills} kills in {attempt} studies")
