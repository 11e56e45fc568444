"""Seconds of a training epoch: all positions of a user, or one prefix at a time, by two encoders.

    python benchmarks/forms_speed.py beauty.txt --old ../diffuserec-0.1.0

Every epoch is timed in a process of its own, after a short training that warms it up; the forms
take turns, and medians are printed, in seconds of the processor, which other programs hardly
change. With ``--old``, SASRec's epochs of another source tree (a checkout of another release) stand
beside the same epochs of this one: with the settings that both have, positions from the oldest item
and no averages of the parameters.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import show

HERE = Path(__file__).resolve()
COMMON = {"dim": 64, "max_len": 50, "n_layers": 2, "dropout": 0.5, "batch_size": 64}
AS_BEFORE = {"position_encoding": "from_oldest", "average_epochs": 0.0}
PREFIXES = {"examples": "prefixes", "rows": "prefixes", "batch_size": 256}  # rows: an older name
FORMS: dict[str, dict[str, Any]] = {
    "SASRec, all positions": {"examples": "per_user"},
    "SASRec, a prefix an example": {"examples": "newest_prefixes", "batch_size": 256},
    "BSARec's layers, all positions": {"examples": "per_user", "encoder": "bsarec_causal"},
    "BSARec as published, a prefix an example": {
        "examples": "newest_prefixes",
        "encoder": "bsarec",
        "n_heads": 1,
        "batch_size": 256,
        "attention_dropout": 0.5,
        "average_epochs": 0.0,
        "first_items": True,
        "by_length": False,
    },
}


def one_epoch(
    log: Path, settings: dict[str, Any], precision: str, threads: int, users: int
) -> float:
    """Processor seconds of SASRec's first epoch in this process, by the package it imports."""
    import torch

    import diffuserec as dr

    assert Path(str(dr.__file__)).is_relative_to(os.environ["PYTHONPATH"]), dr.__file__
    torch.set_num_threads(threads)
    train = dr.leave_one_out(dr.read_log(log).to_dataset()).train
    known = dr.SASRec.Config.model_fields  # an older release has fewer
    chosen = {name: value for name, value in (COMMON | settings).items() if name in known}
    make = getattr(dr, "Runtime", None) or dr.Run
    runtime = make(device="cpu", precision=precision, progress=False)
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).numpy()
    dr.SASRec(**chosen, epochs=1).fit(train.select(index[:1000]), None, runtime)
    if users:
        train = train.select(index[:users])
    began = time.process_time()
    dr.SASRec(**chosen, epochs=1).fit(train, None, runtime)
    return time.process_time() - began


def timed(source: Path, given: argparse.Namespace, settings: dict[str, Any]) -> float:
    """Processor seconds of an epoch by a source tree's package, in a process of its own."""
    asked = [json.dumps(settings), given.precision, str(given.threads), str(given.users)]
    done = subprocess.run(
        [sys.executable, str(HERE), str(given.log.resolve()), "--one", *asked],
        env=os.environ | {"PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        encoding="utf-8",
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--users", type=int, default=0, help="at most so many, drawn; 0 takes all")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--old", type=Path, help="another source tree, to run beside this one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        settings, precision, threads, users = given.one
        print(one_epoch(given.log, json.loads(settings), precision, int(threads), int(users)))
        return
    here = HERE.parents[1] / "src"
    asked = {name: (here, settings) for name, settings in FORMS.items()}
    if given.old is not None:
        old = given.old.resolve()
        old = old / "src" if (old / "src").is_dir() else old
        if not (old / "diffuserec").is_dir():
            parser.error(f"--old: there is no diffuserec in {given.old}")
        for form, settings in (
            ("all positions", AS_BEFORE | {"examples": "per_user"}),
            ("a prefix an example", AS_BEFORE | PREFIXES),
        ):
            asked[f"SASRec as before, {form}: this tree"] = (here, settings)
            asked[f"SASRec as before, {form}: the old one"] = (old, settings)
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(given.turns):
        for name, (source, settings) in asked.items():
            seconds[name].append(timed(source, given, settings))
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    first = statistics.median(seconds[next(iter(asked))])
    result = {
        "log": given.log.name,
        "threads": given.threads,
        "precision": given.precision,
        "users": given.users or None,
        "old": None if given.old is None else given.old.name,
        "forms": {
            name: {
                "median_s": statistics.median(times),
                "times_first": statistics.median(times) / first,
                "all_s": times,
            }
            for name, times in seconds.items()
        },
    }
    show(result, given.json)


if __name__ == "__main__":
    main()
