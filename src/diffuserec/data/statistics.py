"""Statistics of a prepared dataset: sizes, history lengths, repeats, what the split leaves."""

from pathlib import Path
from typing import Any

import numpy as np

from diffuserec.data.dataset import dataset_manifest, load_dataset
from diffuserec.data.splits import leave_one_out


def description(data: Path | str) -> dict[str, Any]:
    """What a prepared dataset holds, for printing."""
    dataset = load_dataset(data)
    lengths = dataset.real_lengths
    counts = np.bincount(dataset.items, minlength=dataset.vocab_size)[1:]
    ranked = np.sort(counts)[::-1]
    top_share = ranked[: max(1, len(ranked) // 10)].sum() / max(1, ranked.sum())
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 0.9, 1]).astype(int)
    short, medium, long = (
        int(((lengths >= low) & (lengths <= high)).sum())
        for low, high in ((0, 5), (6, 20), (21, np.iinfo(np.int64).max))
    )
    facts: dict[str, Any] = {
        "source": dataset_manifest(data)["note"].get("source", "not stated"),
        "filters": dataset_manifest(data)["note"].get("filters", "none"),
        "users": len(dataset),
        "items": dataset.catalog.n_items,
        "interactions": int(lengths.sum()),
        "synthetic": int(dataset.synthetic.sum()),
        "density": f"{lengths.sum() / max(1, len(dataset) * dataset.catalog.n_items):.4%}",
        "history length min/25%/50%/75%/90%/max": "/".join(str(q) for q in quantiles),
        "users with at most 5, 6-20, more than 20": f"{short:,} / {medium:,} / {long:,}",
        "share of the most popular tenth of items": f"{top_share:.1%}",
        "timestamps": "yes" if dataset.timestamps is not None else "no, order only",
    }
    if not dataset.synthetic.any() and (lengths >= 3).any():
        split = leave_one_out(dataset)
        facts["users too short for leave-one-out"] = split.n_too_short
        facts["test targets that are repeats"] = f"{split.test.repeat_share:.2%}"
    return facts
