"""Statistics of a prepared dataset: sizes, history lengths, popularity, repeats."""

from pathlib import Path
from typing import Any

import numpy as np

from diffuserec.data.splits import leave_one_out
from diffuserec.data.storage import dataset_manifest, load_dataset


def description(data: Path | str) -> dict[str, Any]:
    """Facts about a prepared dataset by name, for printing.

    Raises:
        DataError: the directory holds no prepared dataset.
    """
    dataset, note = load_dataset(data), dataset_manifest(data)["note"]
    lengths = dataset.real_lengths
    n_interactions = int(lengths.sum())
    ranked = np.sort(dataset.item_counts()[1:])[::-1]
    top_share = ranked[: max(1, len(ranked) // 10)].sum() / max(1, n_interactions)
    quantiles = [0, 0.25, 0.5, 0.75, 0.9, 1]
    spread = np.quantile(lengths, quantiles).astype(int) if len(lengths) else []
    short, medium, long = (
        int(((lengths >= low) & (lengths <= high)).sum())
        for low, high in ((0, 5), (6, 20), (21, np.iinfo(np.int64).max))
    )
    n_synthetic = int(dataset.lengths.sum()) - n_interactions
    facts: dict[str, Any] = {
        "source": note.get("source", "not stated"),
        "filters": note.get("filters", "none"),
        "users": len(dataset),
        "items": dataset.catalog.n_items,
        "interactions": n_interactions,
        "synthetic": n_synthetic,
        "density": f"{n_interactions / max(1, len(dataset) * dataset.catalog.n_items):.4%}",
        "history length min/25%/50%/75%/90%/max": "/".join(map(str, spread)),
        "users with at most 5, 6-20, more than 20": f"{short:,} / {medium:,} / {long:,}",
        "share of the most popular tenth of items": f"{top_share:.1%}",
        "timestamps": "no, order only" if dataset.log.timestamps is None else "yes",
    }
    n_unseen = len(ranked) - int(np.count_nonzero(ranked))
    if dataset.catalog.attributes is not None:
        facts["attributes of items"] = ", ".join(dataset.catalog.attributes.columns)
    if n_unseen:
        facts["items without an interaction"] = n_unseen
    if not n_synthetic and (lengths >= 3).any():
        split = leave_one_out(dataset)
        facts["users too short for leave-one-out"] = split.n_too_short
        facts["test targets that are repeats"] = f"{split.test.repeat_share:.2%}"
    return facts
