"""Pictures of trained sequence models: t-SNE of items and of states, a color a user.

    python benchmarks/representations.py runs/confident runs/random --out representations

Figure 5 of the SimDiffRec paper shows items of some users' sequences, trained with and without
confidence in choosing positions. A picture of t-SNE proves little, so two numbers are printed with
it, over all users with at least two items: the mean cosine of two items of one sequence, and of
two items of different ones; the same for the states after each item.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.manifold import TSNE

from diffuserec.data import SequenceDataset, history_batches
from diffuserec.studies.run_directory import open_run
from diffuserec.training import EncoderRecommender

N_USERS = 10
LENGTHS = (15, 30)
"""Histories that are drawn: long enough to see, short enough to tell apart."""


@torch.inference_mode()
def vectors(
    model: EncoderRecommender, dataset: SequenceDataset
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Unit vectors of every item and of every state of these sequences, and their sequences."""
    owners, items, states = [], [], []
    for index, histories in history_batches(dataset, 256, model.config.max_len):
        real = histories.items > 0
        owners.append(np.repeat(index, histories.lengths.numpy()))
        items.append(model.table.embed(histories.items[real]))
        states.append(model.encode(histories.items, histories.lengths)[real])
    owner = np.concatenate(owners)
    return {
        name: (torch.nn.functional.normalize(torch.cat(found), dim=1).numpy(), owner)
        for name, found in (("items", items), ("states", states))
    }


def cosines(unit: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Mean cosine of pairs within sequences (sequences weigh by their pairs) and across them."""
    n_sequences = int(owners.max()) + 1
    sums = np.zeros((n_sequences, unit.shape[1]))
    np.add.at(sums, owners, unit)
    counts = np.bincount(owners, minlength=n_sequences)
    squares = (sums**2).sum(1)
    within = (squares - counts).sum() / (counts * (counts - 1)).sum()
    total = sums.sum(0)
    across = (total @ total - squares.sum()) / (counts.sum() ** 2 - (counts**2).sum())
    return {"within a sequence": float(within), "across sequences": float(across)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="without an ending")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    figure, axes = plt.subplots(
        2, len(given.runs), figsize=(4.5 * len(given.runs), 8), squeeze=False
    )
    for column, path in enumerate(given.runs):
        run = open_run(path)
        train = run.split.train
        train = train.select(train.lengths >= 2)
        candidates = np.flatnonzero((train.lengths >= LENGTHS[0]) & (train.lengths <= LENGTHS[1]))
        shown = np.random.default_rng(given.seed).choice(candidates, N_USERS, replace=False)
        result[path.name] = {}
        assert isinstance(run.model, EncoderRecommender), f"{path} has no encoder"
        for line, (name, (unit, owners)) in enumerate(vectors(run.model, train).items()):
            result[path.name][name] = cosines(unit, owners)
            chosen = np.isin(owners, shown)
            points = TSNE(
                metric="cosine", init="random", random_state=given.seed, perplexity=15
            ).fit_transform(unit[chosen])
            colors = np.searchsorted(np.sort(shown), owners[chosen])
            axis = axes[line, column]
            axis.scatter(*points.T, c=colors, cmap="tab10", s=14)
            numbers = result[path.name][name]
            axis.set_title(
                f"{path.name}: {name}\ncosine within {numbers['within a sequence']:.3f}, "
                f"across {numbers['across sequences']:.3f}",
                fontsize=10,
            )
            axis.set_xticks([])
            axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(given.out.with_suffix(".svg"))
    given.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
