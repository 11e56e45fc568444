"""A model that starts from an earlier one, against a training from nothing, on a log cut in time.

    python benchmarks/warm_start.py [LOG] [--model sasrec] [--set dim=32] [--seeds 3] [--json FILE]

LOG is in any known format; without one, a log of the built-in store is made. It is cut at two
moments. Without times it is cut by order: the moment of an item is its share of the user's
sequence, so that everybody's next part comes at the same time. A model is chosen on what came
before the first (leave-one-out, best epoch n) and trained on all of that. Then two models are
trained on what came before the second moment: one from nothing for n epochs, one started from the
first model, by raw id, for a fifth of them. Both are measured after each epoch on the first item of
each user after the second moment, by NDCG@10 (full ranking, seen items hidden); nothing is chosen
by it.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import diffuserec as dr
from diffuserec.cli.options import parse_pairs
from diffuserec.data import from_dataset
from diffuserec.models.methods import find_recommender
from diffuserec.studies.final import WARM_SHARE, chosen_epochs
from diffuserec.studies.newest import newest_queries
from report import save


def by_order(dataset: dr.SequenceDataset) -> dr.SequenceDataset:
    """The log with the share of each user's sequence that an item ends, in millionths, as time."""
    place = np.concatenate([np.arange(1, n + 1) / n for n in dataset.lengths.tolist()])
    return dr.SequenceDataset.from_offsets(
        np.asarray(dataset.items),
        dataset.offsets,
        dataset.catalog,
        timestamps=(1e6 * place).astype(np.int64),
    )


def measured(dataset: dr.SequenceDataset, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """NDCG@10 by epochs of both trainings, with one seed."""
    method, runtime = find_recommender(given.model), dr.Runtime(seed=seed, progress=given.progress)
    times = np.asarray(dataset.timestamps)
    first, second = (int(np.quantile(times, share)) for share in (given.first, given.second))
    newest = newest_queries(dataset, second)
    # a log of its own, with numbers of its own: the start has to match raw ids
    earlier = from_dataset(newest_queries(dataset, first).before).to_dataset()
    split = dr.leave_one_out(earlier)
    chosen = method(**parse_pairs(given.set)).fit(split.train, split.valid, runtime)
    (phase, n), *more = chosen_epochs(chosen.curve).items()
    if more:
        raise SystemExit(f"{given.model} is trained in several phases: choose another")
    few = math.ceil(WARM_SHARE * n)
    settings = chosen.chosen_settings() | {"patience": n}
    old = method(**settings).fit(earlier, None, replace(runtime, stop_after={phase: n}))
    curves = {}
    for name, epochs, start in (("full", n, None), ("warm", few, old)):
        fit = replace(runtime, stop_after={phase: epochs})
        model = method(**settings).fit(newest.before, newest.queries, fit, start=start)
        curves[name] = [epoch.valid for epoch in model.curve]
    return {
        "seed": seed,
        "n_users": len(dataset),
        "n_queries": len(newest.queries),
        "n_new_items": newest.before.catalog.n_items - earlier.catalog.n_items,
        "share_added": 1 - len(earlier.items) / int(newest.before.lengths.sum()),
        "epochs": {"full": n, "warm": few},
        "ndcg": {
            "full": curves["full"][-1],
            "warm": curves["warm"][-1],
            "full, as few epochs as warm": curves["full"][few - 1],
        },
        "curves": curves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, nargs="?")
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--set", action="append", metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=float, default=0.7, help="share of the log before")
    parser.add_argument("--second", type=float, default=0.9)
    parser.add_argument(
        "--users", type=int, help="the first of the log; of the built-in store: 1,500"
    )
    parser.add_argument("--items", type=int, default=300, help="of the built-in store")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.log is None:
        dataset = dr.Store(n_users=given.users or 1500, n_items=given.items, seed=0).dataset()
    else:
        dataset = dr.read_log(given.log).to_dataset()
        if given.users:
            some = np.arange(given.users)
            part = dataset.view(dataset.starts[some], dataset.ends[some], some)
            dataset = from_dataset(part).to_dataset()
    if dataset.timestamps is None:
        print("no times: cut by order")
        dataset = by_order(dataset)
    runs = [measured(dataset, given, seed) for seed in range(given.seeds)]
    print(f"{'seed':>4} {'epochs':>12} {'full':>8} {'warm':>8} {'full, few':>10}   NDCG@10")
    for run in runs:
        epochs, found = run["epochs"], list(run["ndcg"].values())
        shown = f"{epochs['full']} / {epochs['warm']}"
        print(f"{run['seed']:>4} {shown:>12} {found[0]:>8.4f} {found[1]:>8.4f} {found[2]:>10.4f}")
    reached = np.mean([run["ndcg"]["warm"] / run["ndcg"]["full"] for run in runs])
    print(f"warm reaches {reached:.1%} of the full training's NDCG@10, mean of the seeds")
    if given.json is not None:
        about = {name: str(value) for name, value in vars(given).items() if name != "json"}
        about["log"] = "none" if given.log is None else given.log.name
        found = {"given": about, "reached": float(reached), "runs": runs}
        save(found, given.json)


if __name__ == "__main__":
    main()
