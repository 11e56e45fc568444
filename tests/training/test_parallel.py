"""Several processes train what one trains; one that is killed ends all, and any number resume."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffuserec.data import Store
from diffuserec.models.methods import find_augmenter, find_recommender, method_names
from diffuserec.training import validation

from . import several

IN_DOUBLE = {"recommender/sasrec", "recommender/cl4srec", "recommender/diffrec"}
"""Methods that compute in double precision where that is the default: nothing hides in rounding."""


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What ``torchrun`` says to a process."""
    return dict(
        os.environ,
        OMP_NUM_THREADS="1",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def start(world: int, *command: str) -> list[subprocess.Popen]:
    """A Python program in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(rank, world, port),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        for rank in range(world)
    ]


def fitted_by(world: int, names: list[str], folder: Path, *options: str) -> list[list[dict]]:
    """What each of some processes found for each method."""
    processes = start(world, several.__file__, str(folder), *names, *options)
    for process in processes:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    return [
        [
            load_file(folder / f"{name.replace('/', '-')}-{rank}.safetensors")
            for rank in range(world)
        ]
        for name in names
    ]


def assert_one_found_the_same(name: str, by_rank: list[dict], double: bool) -> None:
    """Compares what some processes found with what this one finds."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        method, alone = several.fit(*name.split("/"), several.small_log())
        for found in by_rank:
            torch.testing.assert_close(found["curve"], alone["curve"], rtol=1e-6, atol=1e-6)
            for key, value in alone.items():
                # Adam makes steps of one size out of gradients that are nothing but rounding
                near = 1e-6 if double else 2e-3
                torch.testing.assert_close(found[key], value, rtol=near, atol=near, msg=key)
        if "metric" in alone:
            state = {key: by_rank[0][key] for key in method.state_dict()}
            method.restore(state)
            valid = several.small_log().valid
            metric = validation(method, method.scorer, valid, batch_size=8)()
            assert all(float(found["metric"]) == metric for found in by_rank)
    finally:
        torch.set_default_dtype(before)
    for found in by_rank[1:]:
        for key, value in found.items():
            assert torch.equal(value, by_rank[0][key]), key


def test_two_processes_train_what_one_trains(tmp_path):
    """Draws, means and contrasts over a batch that two do not divide; gradients to 1e-6."""
    names = sorted(IN_DOUBLE)
    for name, found in zip(names, fitted_by(2, names, tmp_path, "--double"), strict=True):
        assert_one_found_the_same(name, found, double=True)


TRAINED = [f"recommender/{name}" for name in method_names("recommender")] + [
    f"augmenter/{name}" for name in method_names("augmenter")
]
TRAINED = [
    name
    for name in TRAINED
    for find in [find_recommender if name.startswith("recommender") else find_augmenter]
    if find(name.partition("/")[2]).trained
]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_every_method_trains_in_several_processes(tmp_path, world):
    for name, found in zip(TRAINED, fitted_by(world, TRAINED, tmp_path), strict=True):
        assert_one_found_the_same(name, found, double=False)


@pytest.mark.slow
def test_methods_that_can_agree_in_double_precision(tmp_path):
    names = [f"recommender/{n}" for n in ("bsarec", "hstu", "mclrec", "mfgan", "neumf", "s3rec")]
    names.append("augmenter/maskdiff")
    for name, found in zip(names, fitted_by(3, names, tmp_path, "--double"), strict=True):
        assert_one_found_the_same(name, found, double=True)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_any_number_resume(tmp_path):
    """Three processes go on where two were; the curve is that of one."""
    log, data = tmp_path / "log.csv", tmp_path / "data"
    Store(n_users=300, n_items=60, seed=0).frame().write_csv(log)
    base = [sys.executable, "-m", "diffuserec"]
    subprocess.run([*base, "prepare", str(log), "--out", str(data)], check=True, timeout=120)
    settings = {"epochs": 12, "dim": 32, "batch_size": 8, "patience": 12}
    command = ["-m", "diffuserec", "train", str(data), "--model", "sasrec"]
    command += [word for name, v in settings.items() for word in ("--set", f"{name}={v}")]

    alone, out = tmp_path / "alone", tmp_path / "together"
    subprocess.run([sys.executable, *command, "--out", str(alone)], check=True, timeout=200)
    processes = start(2, *command, "--out", str(out))
    epochs = out / "epochs.jsonl"
    while not epochs.exists() or epochs.read_text(encoding="utf-8").count("\n") < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate(timeout=60)
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("diffuserec:")]
    assert "another process of this training has ended" in line
    assert "Traceback" not in errors

    for process in start(3, *command, "--out", str(out), "--resume"):
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors

    def curve(run: Path) -> list[tuple[float, float]]:
        found = json.loads((run / "curve.json").read_text(encoding="utf-8"))
        return [(epoch["loss"], epoch["valid"]) for epoch in found]

    assert len(curve(out)) == 12
    torch.testing.assert_close(
        torch.tensor(curve(out)), torch.tensor(curve(alone)), rtol=1e-4, atol=1e-4
    )
