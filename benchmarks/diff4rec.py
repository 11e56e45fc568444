"""What Diff4Rec's generator proposes, beside popularity and a plain Mult-VAE; seconds.

    python benchmarks/diff4rec.py beauty.txt --json docs/results/diff4rec_beauty_generator.json
    python benchmarks/diff4rec.py DATA --set prediction_type=sample --corruptions 0.25

Recall of x̂ on the test items and on those of validation, the users' own items left out. Both
models are fitted on the training part, chosen on validation. The log is a file or a prepared
dataset's directory.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diffuserec as dr
from diffuserec.augmenters.diff4rec import Diff4Rec
from diffuserec.data import Histories, Queries, history_batches
from diffuserec.models.retrieval import hide, seen_pairs, target_ranks

CUTOFFS = (10, 20, 50, 100)


@torch.no_grad()
def recall(score: Callable[[Histories], torch.Tensor], queries: Queries) -> dict[str, float]:
    """Share of the targets among the best k of each user."""
    targets = torch.from_numpy(queries.targets)
    hits = dict.fromkeys(CUTOFFS, 0)
    for rows, histories in history_batches(queries.histories, 512):
        scores = hide(score(histories), seen_pairs(queries.histories, rows))
        ranks = target_ranks(scores, targets[rows])
        for k in CUTOFFS:
            hits[k] += int((ranks < k).sum())
    return {f"recall@{k}": hits[k] / len(queries) for k in CUTOFFS}


def both(score: Callable[[Histories], torch.Tensor], split: dr.Split) -> dict[str, float]:
    """Recall on the test items, and on those of validation, by which settings are chosen."""
    chosen = recall(score, split.valid)
    return recall(score, split.test) | {f"validation {name}": chosen[name] for name in chosen}


def fitted(
    settings: dict[str, Any], split: dr.Split, run: dr.Run
) -> tuple[Diff4Rec, dict[str, Any]]:
    """A model and what it cost."""
    start = time.perf_counter()
    model = Diff4Rec(**settings).fit(split.train, split.valid, run)
    facts = {
        "fit_s": time.perf_counter() - start,
        "epochs": len(model.curve),
        "best_valid": max(epoch.valid for epoch in model.curve),
    }
    return model, facts


def with_settings(model: Diff4Rec, **settings: Any) -> Diff4Rec:
    """The same parameters under other settings of what is proposed."""
    other = Diff4Rec(**model.config.model_dump() | settings)
    other._take(model.catalog)
    other.load_state_dict(model.state_dict())
    return other.eval()


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
    counts = torch.bincount(torch.from_numpy(split.train.items).long(), minlength=data.vocab_size)
    rows: dict[str, dict[str, float]] = {
        "popularity": both(lambda h: counts.float().expand(len(h.users), -1).clone(), split)
    }
    run = dr.Run(device="cpu", precision=given.precision, seed=given.seed)
    plain = settings | {"noise_weight": 0, "corruption": 0}
    vae, vae_facts = fitted(plain, split, run)
    rows["Mult-VAE (no diffusion)"] = both(vae.proposals, split)
    model, facts = fitted(settings, split, run)
    for corruption in given.corruptions:
        other = with_settings(model, corruption=corruption)
        rows[f"Diff4Rec, T'/T = {corruption:g}"] = both(other.proposals, split)
    start = time.perf_counter()
    variants = model.augment(split.train, given.seed).variants
    assert variants is not None
    result = {
        "log": path.stem,
        "settings": model.config.model_dump(mode="json"),
        "seed": given.seed,
        "precision": given.precision,
        "training": {"Mult-VAE (no diffusion)": vae_facts, "Diff4Rec": facts},
        "augment_s": time.perf_counter() - start,
        "difficulty": variants.difficulty.mean(1).tolist(),
        "rows": rows,
    }
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
