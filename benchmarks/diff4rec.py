"""Recall of the items that Diff4Rec's generator proposes, of popularity and of a plain Mult-VAE.

    python benchmarks/diff4rec.py beauty.txt --json docs/lab/results/diff4rec_beauty_generator.json
    python benchmarks/diff4rec.py DATA --set prediction_type=sample --corruptions 0.25

Recall of x̂ on the test items and on those of validation, the users' own items left out, and the
seconds that it takes. Both models are fitted on the training part, chosen on validation. The log is
a file or a prepared dataset's directory.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diffuserec as dr
from diffuserec.augmenters.diff4rec import Diff4Rec
from diffuserec.data import Histories, Queries, history_batches
from diffuserec.models.methods import with_settings
from diffuserec.models.retrieval import Matrix, Scorer, rank_of, seen_items
from report import show

CUTOFFS = (10, 20, 50, 100)


@torch.no_grad()
def recall(scorer: Callable[[Histories], Scorer], queries: Queries) -> dict[str, float]:
    """Share of the targets among the best k of each user."""
    targets = torch.from_numpy(queries.targets)
    hits = dict.fromkeys(CUTOFFS, 0)
    for index, histories in history_batches(queries.histories, 512):
        hidden = seen_items(queries.histories, index)
        ranks = rank_of(scorer(histories), targets[index], hidden)
        for k in CUTOFFS:
            hits[k] += int((ranks < k).sum())
    return {f"recall@{k}": hits[k] / len(queries) for k in CUTOFFS}


def both(scorer: Callable[[Histories], Scorer], split: dr.Split) -> dict[str, float]:
    """Recall on the test items, and on those of validation, by which settings are chosen."""
    chosen = recall(scorer, split.valid)
    return recall(scorer, split.test) | {f"validation {name}": chosen[name] for name in chosen}


def fitted(
    settings: dict[str, Any], split: dr.Split, runtime: dr.Runtime
) -> tuple[Diff4Rec, dict[str, Any]]:
    """A model and its cost."""
    start = time.perf_counter()
    model = Diff4Rec(**settings).fit(split.train, split.valid, runtime)
    facts = {
        "fit_s": time.perf_counter() - start,
        "epochs": len(model.curve),
        "best_valid": max(epoch.valid for epoch in model.curve),
    }
    return model, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--corruptions", type=float, nargs="*", default=[0, 0.1, 0.25, 0.5, 0.75])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = dict(part.split("=", 1) for part in given.set)
    path = Path(given.log)
    data = dr.load_dataset(path) if path.is_dir() else dr.read_log(path).to_dataset()
    split = dr.leave_one_out(data)
    counts = torch.from_numpy(split.train.item_counts()).float()
    found = {"popularity": both(lambda h: Matrix(counts.expand(len(h.users), -1)), split)}
    runtime = dr.Runtime(device="cpu", precision=given.precision, seed=given.seed)
    plain = settings | {"noise_weight": 0, "corruption": 0}
    vae, vae_facts = fitted(plain, split, runtime)
    found["Mult-VAE (no diffusion)"] = both(vae.proposals, split)
    model, facts = fitted(settings, split, runtime)
    for corruption in given.corruptions:
        other = with_settings(model, {"corruption": corruption})
        found[f"Diff4Rec, T'/T = {corruption:g}"] = both(other.proposals, split)
    start = time.perf_counter()
    copies = model.augment(split.train, given.seed).copies
    assert copies is not None
    result = {
        "log": path.stem,
        "settings": model.config.model_dump(mode="json"),
        "seed": given.seed,
        "precision": given.precision,
        "training": {"Mult-VAE (no diffusion)": vae_facts, "Diff4Rec": facts},
        "augment_s": time.perf_counter() - start,
        "difficulty": copies.difficulty.mean(1).tolist(),
        "recall": found,
    }
    show(result, given.json)


if __name__ == "__main__":
    main()
