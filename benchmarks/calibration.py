"""Calibration of finished runs: hit rates by tenths of the certainty that they state.

    python benchmarks/calibration.py runs/table/sasrec-softmax-seed0 runs/table/diffrec-seed0 \
        --json docs/lab/results/diffrec_calibration.json
"""

import argparse
import json
from pathlib import Path

from diffuserec.evaluation import calibration, expected_calibration_error, load_evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="directories of finished runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    for run in given.runs:
        result = load_evaluation(run / "test")
        hit = (result.per_user["target_rank"] < 10).to_numpy()
        bins = {
            what: calibration(result.per_user[what].to_numpy(), hit)
            for what in ("confidence", "entropy", "disagreement")
        }
        found[result.method] = {
            "protocol": str(result.protocol),
            "expected_calibration_error": expected_calibration_error(bins["confidence"]),
            "bins": {what: frame.to_dicts() for what, frame in bins.items()},
        }
    text = json.dumps(found, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
