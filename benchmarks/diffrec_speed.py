"""Cost of DiffRec compared with SASRec: training, ten draws against one, ranking, approximate too.

    python benchmarks/diffrec_speed.py beauty.txt --model runs/diffrec/model \
        --json docs/lab/results/diffrec_speed.json

Both models are timed in turns in one process. `--model` is a trained DiffRec: ranking among each
user's likeliest candidates only is measured in accuracy too, which an untrained one cannot show.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diffuserec as dr
from diffuserec.data import Queries, history_batches
from diffuserec.evaluation import evaluate
from diffuserec.models.methods import with_settings
from diffuserec.recommenders.diffrec import DiffRec
from diffuserec.recommenders.sasrec import SASRec


def epochs(split: dr.Split, n: int, precision: str, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of n epochs of each model at its default width, taken in turns."""
    seconds: dict[str, list[float]] = {"sasrec": [], "diffrec": []}
    runtime = dr.Runtime(device="cpu", precision=precision, seed=seed, progress=False)
    for turn in range(n + 1):
        for name, model in (("sasrec", SASRec(epochs=1)), ("diffrec", DiffRec(epochs=1))):
            model.fit(split.train, runtime=runtime)
            if turn:  # the first warms up
                seconds[name].append(model.curve[0].seconds)
    return seconds


@torch.inference_mode()
def encoder(model: DiffRec, queries: Queries, repeats: int) -> dict[int, list[float]]:
    """Seconds of the network alone over all queries, with one draw and with ten."""
    seconds: dict[int, list[float]] = {1: [], 10: []}
    batches = [histories for _, histories in history_batches(queries.histories, 256)]
    for turn in range(repeats + 1):
        for n_draws, times in seconds.items():
            start = time.perf_counter()
            for histories in batches:
                model.states(histories, seed=0, n_draws=n_draws)
            if turn:
                times.append(time.perf_counter() - start)
    return seconds


def ranking(
    models: dict[str, dr.Recommender], queries: Queries, repeats: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Seconds of a full ranking of all queries by each model, in turns, and its metrics."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    metrics = {}
    for turn in range(repeats + 1):
        for name, model in models.items():
            start = time.perf_counter()
            metrics[name] = evaluate(model, queries).metrics
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds, metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--model", type=Path, help="a trained DiffRec")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-epochs", action="store_true", help="leave training out")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    split = dr.leave_one_out(dr.read_log(given.log).to_dataset())
    quick = dr.Runtime(device="cpu", progress=False)
    model = dr.load(given.model) if given.model else DiffRec(epochs=1)
    assert isinstance(model, DiffRec), f"{given.model} holds no DiffRec"
    if not model.is_fitted:
        model.fit(split.train, runtime=quick)
    models: dict[str, dr.Recommender] = {
        "sasrec": SASRec(epochs=1).fit(split.train, runtime=quick),
        "diffrec": model,
        "diffrec, 256 candidates": with_settings(model, {"n_candidates": 256}),
    }
    ranked, metrics = ranking(models, split.valid, given.repeats)
    paper = with_settings(model, {"form": "prefixes"})
    found: dict[str, Any] = {
        "data": given.log.name,
        "threads": given.threads,
        "users": len(split.valid),
        "items": split.train.catalog.n_items,
        "mean history": float(split.valid.histories.lengths.clip(max=50).mean()),
        "epoch": {
            p: epochs(split, given.repeats, p)
            for p in (() if given.no_epochs else ("fp32", "bf16"))
        },
        "draws": encoder(model, split.valid, given.repeats),
        "draws, prefixes": encoder(paper, split.valid, given.repeats),
        "ranking": ranked,
        "valid": {n: {k: m[k] for k in ("HR@10", "NDCG@10", "MRR")} for n, m in metrics.items()},
    }
    middle: Callable[[list[float]], float] = statistics.median
    found["ratios"] = {
        **{
            f"epoch {p}: DiffRec / SASRec": middle(both["diffrec"]) / middle(both["sasrec"])
            for p, both in found["epoch"].items()
        },
        "network: ten draws / one": middle(found["draws"][10]) / middle(found["draws"][1]),
        "network, prefixes: ten draws / one": middle(found["draws, prefixes"][10])
        / middle(found["draws, prefixes"][1]),
        "ten draws: prefixes / two streams": middle(found["draws, prefixes"][10])
        / middle(found["draws"][10]),
        **{
            f"ranking: {name} / sasrec": middle(times) / middle(ranked["sasrec"])
            for name, times in ranked.items()
            if name != "sasrec"
        },
    }
    print(json.dumps(found, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
