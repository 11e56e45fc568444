"""Test metrics of recommenders that count and are not trained, on some logs.

python benchmarks/floors.py beauty.txt ml-1m.txt --json docs/lab/results/floors.json
"""

import argparse
import time
from pathlib import Path

import diffuserec as dr
from report import show

METHODS = {
    "popularity": ("popularity", {}),
    "markov, order 1": ("markov", {"decay": 0.0}),
    "markov, decayed": ("markov", {}),
    "itemknn": ("itemknn", {}),
    "itemknn, decayed": ("itemknn", {"decay": 0.7}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result: dict[str, object] = {}
    for log in given.logs:
        split = dr.leave_one_out(dr.read_log(log).to_dataset())
        results: dict[str, object] = {}
        for name, (method, settings) in METHODS.items():
            start = time.perf_counter()
            model = dr.find_recommender(method)(**settings).fit(split.train)
            measured = dr.evaluate(model, split.test, dataset_name=log.name)
            results[name] = {**measured.metrics, "seconds": time.perf_counter() - start}
        result[log.name] = {"protocol": str(measured.protocol), "results": results}
    show(result, given.json)


if __name__ == "__main__":
    main()
