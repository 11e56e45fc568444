"""A log larger than memory: from Parquet to prepared data, and the first steps of an epoch on it.

    python benchmarks/out_of_core.py 1e7 [2e8] [--memory 4GiB] [--steps 200] [--folder DIR]

Every size runs in processes of its own, in a folder that is removed. A Parquet file of so many rows
is written first, a piece at a time (n/100 users, skewed, at most 100,000 items, shuffled rows,
integer ids and seconds). Then:

* Polars alone scans the file and sorts it by user and time, to another Parquet file, in memory
  (left out where that would not do);
* ``prepare_log`` makes prepared data of it within ``--memory``;
* SASRec trains ``--steps`` steps of an epoch on the leave-one-out training part, mapped from disk.

A process' peak is measured as the kernel counts it: *resident* is all that was in memory at a time,
pages of mapped files included, which the system takes back at will; *own* is the memory that only
this process had, sampled every 50 ms.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

PIECE = 2**20
N_ITEMS = 100_000

SORTING = 70
"""Bytes that Polars takes to sort a row."""


def write_log(path: Path, n: int, seed: int = 0) -> None:
    """Writes a log of n interactions as one Parquet file, without ever holding it."""

    def pieces() -> Iterator[pl.DataFrame]:
        for number, first in enumerate(range(0, n, PIECE)):
            draw, size = np.random.default_rng([seed, number]), min(PIECE, n - first)
            users = max(2, n // 100) * draw.random(size) ** 1.2
            items = min(N_ITEMS, max(2, n // 50)) * draw.random(size) ** 3
            yield pl.DataFrame(
                {
                    "user_id": users.astype(np.int64),
                    "item_id": items.astype(np.int64),
                    "timestamp": draw.integers(1_500_000_000, 1_600_000_000, size),
                }
            )

    import pyarrow.parquet as pq

    writer = None
    for piece in pieces():
        table = piece.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


@contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Seconds, processor seconds and peaks of what runs in the block."""
    ended, own = threading.Event(), [0]

    def sample() -> None:
        while not ended.wait(0.05):
            own[0] = max(own[0], anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    began, worked = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        found["seconds"] = time.perf_counter() - began
        found["processor"] = time.process_time() - worked
        ended.set()
        sampler.join()
        found["own_mib"] = own[0] / 2**20
        found["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def anonymous() -> int:
    """Bytes of this process that no file backs (Linux; 0 elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = status.read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def available() -> float:
    """Bytes of memory that can be taken now (Linux; without bound elsewhere)."""
    status = Path("/proc/meminfo")
    if not status.exists():
        return float("inf")
    lines = status.read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def generate(folder: Path, n: int, memory: str, steps: int) -> None:
    write_log(folder / "log.parquet", n)


def sort_alone(folder: Path, n: int, memory: str, steps: int) -> None:
    frame = pl.scan_parquet(folder / "log.parquet")
    frame.sort("user_id", "timestamp").sink_parquet(folder / "sorted.parquet")


def prepare(folder: Path, n: int, memory: str, steps: int) -> None:
    from diffuserec.cli.options import parse_size
    from diffuserec.data import prepare_log

    prepare_log(folder / "log.parquet", folder / "data", memory=parse_size(memory, "--memory"))


class Enough(Exception):
    """So many steps were made."""


def train(folder: Path, n: int, memory: str, steps: int) -> None:
    """A fit that ends after some steps of its first epoch."""
    from diffuserec import SASRec, leave_one_out, load_dataset
    from diffuserec.training import next_item

    split = leave_one_out(load_dataset(folder / "data"))
    model, batches = (
        SASRec(max_len=50, examples="per_user", loss="sampled_softmax"),
        next_item.training_batches,
    )

    def some(*given: Any, **options: Any) -> Iterator[Any]:
        for number, batch in enumerate(batches(*given, **options)):
            if number == steps:
                raise Enough
            yield batch

    next_item.training_batches = some  # the loop knows no end but that of an epoch
    try:
        model.fit(split.train)
    except Enough:
        return


STEPS: dict[str, Callable[[Path, int, str, int], None]] = {
    "generate": generate,
    "sort alone": sort_alone,
    "prepare": prepare,
    "train": train,
}


def measure(n: int, memory: str, steps: int, folder: Path | None) -> dict[str, Any]:
    """All steps of one size, each in a fresh process."""
    results: dict[str, Any] = {"interactions": n}
    with tempfile.TemporaryDirectory(prefix="diffuserec-large-", dir=folder) as place:
        for name in STEPS:
            if name == "sort alone" and n * SORTING > 0.7 * available():
                print(f"{n:>13,} {name:<11} left out: it would take more memory than there is")
                continue
            words = ["--step", name, place, str(n), memory, str(steps)]
            done = subprocess.run(
                [sys.executable, __file__, *words],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            found = results[name] = json.loads(done.stdout.splitlines()[-1])
            rate = n if name != "train" else steps
            print(
                f"{n:>13,} {name:<11} {found['seconds']:>8.1f} {found['processor']:>8.1f} "
                f"{rate / found['seconds']:>12,.0f} {found['own_mib']:>9,.0f} "
                f"{found['resident_mib']:>9,.0f}",
                flush=True,
            )
            (Path(place) / "sorted.parquet").unlink(missing_ok=True)
            if name == "prepare":
                (Path(place) / "log.parquet").unlink()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=float, default=[1e7])
    parser.add_argument("--memory", default="4GiB", help="of prepare")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--folder", type=Path, help="for the files: some 100 bytes a row")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.add_argument("--step", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, folder, n, memory, steps = arguments.step
        if name in ("prepare", "train"):
            importlib.import_module("diffuserec.data")  # which takes as long whatever the size
        found: dict[str, Any] = {}
        with watched(found):
            STEPS[name](Path(folder), int(n), memory, int(steps))
        print(json.dumps(found))
        return
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, memory {arguments.memory}")
    print(
        f"{'interactions':>13} {'step':<11} {'seconds':>8} {'CPU s':>8} {'rows or steps/s':>12} "
        f"{'own MiB':>9} {'resident':>9}",
        flush=True,
    )
    results = [
        measure(int(size), arguments.memory, arguments.steps, arguments.folder)
        for size in arguments.sizes
    ]
    for result in results:
        if "sort alone" not in result:
            continue
        ratio = result["prepare"]["seconds"] / result["sort alone"]["seconds"]
        print(f"{result['interactions']:,}: prepare takes {ratio:.2f} times what the sort takes")
    if len(results) > 1:
        small, large = (result["train"]["own_mib"] for result in (results[0], results[-1]))
        print(f"memory of training, largest to first: {large / small:.2f}")
    if arguments.json:
        found = {"memory": arguments.memory, "steps": arguments.steps, "sizes": results}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
