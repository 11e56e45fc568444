"""How the costs of training grow: SASRec's and BSARec's epoch, its memory, and what `plan` foresaw.

    python benchmarks/scale.py --json docs/lab/results/scale.json

Logs of several sizes are generated. For each, ``diffuserec plan`` foresees an epoch; then a process
of its own trains two epochs, of which the second is timed, and reports its peak memory. A line is
fitted to the seconds by least squares of shares, without negative weights:

    seconds = a · steps + b · positions + c · targets · items


"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

import diffuserec as dr
from diffuserec.data import split_dataset
from diffuserec.data.batches import training_examples
from diffuserec.models.base import Runtime
from diffuserec.studies.costs import foresee, peak_memory
from diffuserec.studies.run_directory import Plan

SIZES = ((2_000, 1_000), (2_000, 10_000), (8_000, 4_000), (8_000, 30_000), (20_000, 10_000))
"""Users and items of the logs."""


def measured(data: str, model: str, precision: str) -> dict[str, Any]:
    """Second epoch of a training in this process, and its peak memory."""
    method = dr.find_recommender(model)(epochs=2)
    train = split_dataset(dr.load_dataset(data), "leave-one-out").train
    method.fit(train, None, Runtime(device="cpu", precision=precision, progress=False))
    lengths = np.minimum(train.lengths, method.config.max_len + 1)
    examples = training_examples(train, method.config.max_len, method.config.examples)[0]
    return {
        "seconds": method.curve[1].seconds,
        "memory": peak_memory(),
        "steps": -(-len(examples) // method.config.batch_size),
        "positions": int((lengths - 1).clip(min=0).sum()),
        "parameters": sum(p.numel() for p in method.parameters()),
    }


def foreseen(data: str, model: str, precision: str) -> dict[str, Any]:
    """What ``diffuserec plan`` says."""
    return asdict(foresee(Plan(data, model, {}), Runtime(device="cpu", precision=precision)))


def in_a_process(what: str, *words: str) -> dict[str, Any]:
    """The answer of one of the two functions above, in a process of its own."""
    command = [sys.executable, __file__, "--part", what, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, encoding="utf-8")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--models", nargs="*", default=["sasrec", "bsarec"])
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        what, *words = given.part
        print(json.dumps({"measured": measured, "foreseen": foreseen}[what](*words)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for users, items in SIZES:
            data = str(Path(folder) / f"{users}-{items}")
            dr.Store(n_users=users, n_items=items, seed=0).dataset().save(data)
            for model in given.models:
                plan = in_a_process("foreseen", data, model, given.precision)
                row = in_a_process("measured", data, model, given.precision)
                row |= {"model": model, "users": users, "items": items}
                row["foreseen"] = plan["epoch_seconds"]["fit"]
                row["foreseen_memory"] = plan["memory"]
                rows.append(row)
                print(
                    f"{model} {users:,} x {items:,}: {row['seconds']:.2f} s, "
                    f"foreseen {row['foreseen']:.2f} s",
                    flush=True,
                )
    found = {"rows": rows, "precision": given.precision, "cores": os.cpu_count()}
    found["fits"] = {
        model: fitted([r for r in rows if r["model"] == model]) for model in given.models
    }
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def fitted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Weights of the line of seconds, and its largest error as a share."""
    terms = np.array(
        [[r["steps"], r["positions"], r["positions"] * r["items"]] for r in rows], dtype=float
    )
    seconds = np.array([r["seconds"] for r in rows])
    scale = terms.max(0)
    weights, _ = nnls(terms / scale / seconds[:, None], np.ones(len(rows)))
    weights = weights / scale
    error = np.abs(terms @ weights / seconds - 1).max()
    names = ("step", "position", "score")
    return dict(zip(names, weights.tolist(), strict=True)) | {"largest_error": float(error)}


if __name__ == "__main__":
    main()
