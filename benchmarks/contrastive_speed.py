"""Cost of a training epoch of each contrastive method, compared with SASRec's.

    python benchmarks/contrastive_speed.py beauty.txt --json docs/lab/results/contrastive_speed.json

All models are timed in turns in one process, and each one's growth of the process' peak memory is
printed, in the order in which they first train: a model that never held more than those before it
adds nothing.
"""

import argparse
import json
import resource
import statistics
from pathlib import Path
from typing import Any

import torch

import diffuserec as dr

MODELS = ("sasrec", "cl4srec", "duorec", "contrarec", "ecl", "cadirec", "mclrec", "simdiffrec")


def peak_mib() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def epochs(
    split: dr.Split, turns: int, precision: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of an epoch of each model at its defaults, taken in turns, and growth in memory."""
    seconds: dict[str, list[float]] = {name: [] for name in MODELS}
    grown: dict[str, float] = {}
    runtime = dr.Runtime(device="cpu", precision=precision, progress=False)
    for _ in range(turns):
        for name in MODELS:
            before = peak_mib()
            model = dr.find_recommender(name)(epochs=1)
            model.fit(split.train, runtime=runtime)
            seconds[name].append(model.curve[0].seconds)
            grown.setdefault(name, peak_mib() - before)
            print(name, f"{seconds[name][-1]:.1f} s, peak {peak_mib():.0f} MiB", flush=True)
    return seconds, grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    split = dr.leave_one_out(dr.read_log(given.log).to_dataset())
    seconds, grown = epochs(split, given.turns, given.precision)
    reference = seconds["sasrec"]
    result: dict[str, Any] = {
        "data": given.log.stem,
        "threads": given.threads,
        "precision": given.precision,
        "models": {
            name: {
                "seconds": times,
                "times_sasrec": statistics.median(
                    mine / theirs for mine, theirs in zip(times, reference, strict=True)
                ),
                "memory_grown_mib": grown[name],
            }
            for name, times in seconds.items()
        },
    }
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
