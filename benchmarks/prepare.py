"""Time and memory in which a CSV log becomes a prepared dataset on disk.

    python benchmarks/prepare.py 2e6 5e6 10e6 20e6 [--json OUT]

Every size runs in a process of its own: the file is generated first (skewed users and items,
shuffled rows, integer ids and seconds), then read, sorted, numbered and saved. The peak is the
resident memory of the preparing process, the file's own mapped pages and the imports included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from diffuserec.data import read_log


def write_log(path: Path, n: int, seed: int = 0) -> None:
    """A shuffled log of n interactions: n/10 users, n/50 items, squared and cubed uniform draws."""
    generator = np.random.default_rng(seed)
    users = (max(2, n // 10) * generator.random(n) ** 2).astype(np.int64)
    items = (max(2, n // 50) * generator.random(n) ** 3).astype(np.int64)
    times = generator.integers(1_500_000_000, 1_600_000_000, n)
    pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).write_csv(path)


def prepare(log: Path, out: Path) -> None:
    """Runs in the measured process; prints what it took as JSON."""
    began = time.perf_counter()
    interactions = read_log(log)
    interactions.to_dataset().save(out)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"interactions": len(interactions), "seconds": seconds, "peak_gib": peak}))


def measure(n: int) -> dict[str, float]:
    """One size, in fresh processes and a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="diffuserec-prepare-") as folder:
        log, out = Path(folder) / "log.csv", Path(folder) / "data"
        for step in (["--generate", str(n), str(log)], ["--prepare", str(log), str(out)]):
            done = subprocess.run(
                [sys.executable, __file__, *step],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        result: dict[str, float] = json.loads(done.stdout)
        result["csv_mib"] = log.stat().st_size / 2**20
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=float, default=[2e6, 5e6, 10e6, 20e6])
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the table there")
    parser.add_argument("--generate", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate:
        write_log(Path(arguments.generate[1]), int(arguments.generate[0]))
        return
    if arguments.prepare:
        prepare(*arguments.prepare)
        return
    print(f"{'interactions':>12} {'CSV MiB':>8} {'seconds':>8} {'a second':>12} {'peak GiB':>9}")
    results = []
    for size in arguments.sizes:
        result = measure(int(size))
        results.append(result)
        print(
            f"{result['interactions']:>12,.0f} {result['csv_mib']:>8.0f} {result['seconds']:>8.1f} "
            f"{result['interactions'] / result['seconds']:>12,.0f} {result['peak_gib']:>9.2f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
