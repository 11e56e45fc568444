"""An epoch of SASRec by one and two OpenMP threads, alone and beside a busy process.

    python benchmarks/threads.py [--rounds 5] [--precision bf16]

Each setting trains in a process of its own, one after the other, round by round, so that what else
the machine does meets all of them alike; the table has medians over the rounds of the median epoch,
and their ratio to one thread under the same conditions. Wanted: at most 1.3 beside a busy process,
and alone at most 1.1 times the time of two threads that spin as by default. Figures of "alone" mean
something only where the load that is printed first is near 0.
"""

import argparse
import os
import statistics
import subprocess
import sys

import numpy as np

import diffuserec as dr
from diffuserec.recommenders.sasrec import SASRec

SETTINGS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two, as the package sets them": {"OMP_NUM_THREADS": "2"},
    "two, OpenMP's default": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "300000"},
    "two, OMP_WAIT_POLICY=PASSIVE": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
_VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def log() -> dr.SequenceDataset:
    """1,090 users and 3,646 items, as many as LastFM's, about 47,000 interactions."""
    generator = np.random.default_rng(0)
    lengths = np.maximum(5, generator.lognormal(3.5, 0.8, 1090).astype(int))
    lists = [(generator.zipf(1.3, n) % 3646 + 1).tolist() for n in lengths]
    return dr.SequenceDataset.from_lists(lists)


def epoch(precision: str) -> float:
    """Median seconds of three epochs in this process."""
    runtime = dr.Runtime(device="cpu", precision=precision, progress=False)
    model = SASRec(epochs=3).fit(log(), runtime=runtime)
    return statistics.median(record.seconds for record in model.curve)


def measured(setting: str, precision: str, limit: float) -> float:
    """Seconds of an epoch in a process of its own; infinite beyond the limit."""
    environment = {name: text for name, text in os.environ.items() if name not in _VARIABLES}
    command = [sys.executable, __file__, "--child", "--precision", precision]
    try:
        done = subprocess.run(
            command,
            env=environment | SETTINGS[setting],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return float("inf")
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--limit", type=float, default=120, help="seconds of three epochs at most")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(epoch(given.precision))
        return
    if hasattr(os, "getloadavg"):
        print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    for condition in ("alone", "beside a busy process"):
        seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
        other = None
        if condition != "alone":
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            for _ in range(given.rounds):
                for name in SETTINGS:
                    seconds[name].append(measured(name, given.precision, given.limit))
        finally:
            if other is not None:
                other.kill()
                other.wait()
        one = statistics.median(seconds["one thread"])
        print(f"\n| {condition} | s an epoch (median; least to most) | to one thread |")
        print("| --- | --- | --- |")
        for name, values in seconds.items():
            middle = statistics.median(values)
            print(
                f"| {name} | {middle:.2f}; {min(values):.2f} to {max(values):.2f} "
                f"| {middle / one:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
