"""Views that a contrastive recommender is trained on, for people: altered items, and metrics.

First numbers (:func:`inspect_views`, :func:`view_metrics`), then names
(:func:`describe_sequence`, :func:`metric_table`), which the command line and the pages print.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffuserec.data import PAD, SequenceDataset, batch_of, trainable_sequences
from diffuserec.errors import ConfigError
from diffuserec.models.recommender import Contrastive, Recommender

_AT_ONCE = 512
"""Sequences whose views are made at once."""

ChangeKind = Literal["", "replaced", "kept"]
"""Change of an item in a view: none, another item, or chosen anew and the original's again."""

Names = Callable[[np.ndarray], list[str]]
"""Names of item numbers 1..V-1."""


@dataclass(frozen=True, eq=False)
class InspectedView:
    """A view of one sequence.

    Attributes:
        name: for people.
        items: item numbers, oldest first; 0 is padding inside the sequence, a number beyond the
            catalog ``[mask]``; shape (M,).
        changed: True for positions whose items were chosen anew, shape (L,); None if positions
            are not aligned with the original's.
        confidence: of the model in what it restores at each position, shape (L,), if it has any.
    """

    name: str
    items: Int64[np.ndarray, " M"]
    changed: Bool[np.ndarray, " L"] | None
    confidence: Float[np.ndarray, " L"] | None


@dataclass(frozen=True, eq=False)
class InspectedSequence:
    """A training sequence and its views.

    Attributes:
        user: user number.
        items: item numbers as training sees them, oldest first, without the newest, which is
            only a target; shape (L,).
        views: altered versions that training makes of them.
    """

    user: int
    items: Int64[np.ndarray, " L"]
    views: tuple[InspectedView, ...]


VIEW_METRICS = {
    "changed": ("changed positions of a sequence", ".2f"),
    "changed_share": ("share of all positions", ".1%"),
    "kept": ("kept: the original's item again", ".1%"),
    "similarity_replaced": ("similarity to the original, where replaced", ".3f"),
    "similarity_changed": ("similarity to the original, all changed", ".3f"),
    "similarity_random": ("similarity of two random items", ".3f"),
    "confidence_changed": ("confidence at changed positions", ".3f"),
    "confidence": ("confidence at all positions", ".3f"),
    "shared": ("the original's items still in it", ".1%"),
    "length_ratio": ("length over the original's", ".2f"),
}
"""Labels and formats of the metrics of a view; all are means.

The first eight are of views that are aligned with the original, the last two of the others.
Positions and items of all sequences count the same. A similarity is the cosine of two item
embeddings; ``[mask]`` and ``[pad]`` have none.
"""


@dataclass(frozen=True)
class ViewMetrics:
    """Changes that a view makes, over many sequences.

    Attributes:
        view: its name.
        values: metrics by name, see ``VIEW_METRICS``; without those that have nothing to count.
    """

    view: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class ShownView:
    """A view of one sequence by the names of its items.

    Attributes:
        name: for people.
        items: names of the items, oldest first; also ``[mask]`` and ``[pad]``.
        changes: change of each item. In a view that is not aligned, ``replaced`` is an item that
            the original does not hold.
        aligned: whether position i is the original's position i.
        confidence: of the model in what it restores at each position, if it has any.
    """

    name: str
    items: list[str]
    changes: list[ChangeKind]
    aligned: bool
    confidence: list[float] | None


@dataclass(frozen=True)
class ShownSequence:
    """A training sequence and its views by the names of their items.

    Attributes:
        user: name of the user.
        items: names of the items, oldest first.
        views: altered versions that training makes of them.
    """

    user: str
    items: list[str]
    views: list[ShownView]

    @property
    def confidences(self) -> dict[str, list[float]]:
        """Columns of confidences by their headings; views with equal ones share a column."""
        columns: dict[str, list[float]] = {}
        for view in self.views:
            if view.confidence is not None and view.confidence not in columns.values():
                columns[f"confidence, {view.name}"] = view.confidence
        return {"confidence": next(iter(columns.values()))} if len(columns) == 1 else columns


@dataclass(frozen=True)
class Inspection:
    """Views of some users' sequences by name, and metrics of the views over many sequences.

    Attributes:
        method: name of the recommender in tables.
        seed: of what is random in the views and in who was drawn.
        sequences: sequences of the users who are shown.
        metrics: of each view.
        n_sequences: number of training sequences behind the metrics.
    """

    method: str
    seed: int
    sequences: list[ShownSequence]
    metrics: list[ViewMetrics]
    n_sequences: int


@torch.no_grad()
def inspect_views(
    model: Recommender, train: SequenceDataset, index: Int64[np.ndarray, " S"], seed: int = 0
) -> list[InspectedSequence]:
    """Views that training would make of these sequences now, but for dropout.

    They are made for a few hundred sequences at a time. What is random in a view depends on which
    sequences are inspected together, as it does in training; torch's generators are left as they
    were.

    Args:
        model: fitted, contrastive; on any device.
        index: of sequences with two items or more, shape (S,).

    Returns:
        The sequences in the order of `index`.

    Raises:
        ConfigError: the model is not contrastive.
    """
    if not isinstance(model, Contrastive):
        raise ConfigError(f"{model.name} contrasts no views")
    model.eval()
    max_len = model.max_len or max(1, int(train.lengths.max(initial=0)))
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, len(index), _AT_ONCE):
            batch = batch_of(train, index[first : first + _AT_ONCE], max_len)
            views = [
                (
                    view.name,
                    view.items.long().cpu().numpy(),
                    view.lengths.tolist(),
                    None if view.changed is None else view.changed.cpu().numpy(),
                    None if view.confidence is None else view.confidence.float().cpu().numpy(),
                )
                for view in model.views(batch.to(model.device), train)
            ]
            for number, (user, length) in enumerate(
                zip(batch.users.tolist(), batch.lengths.tolist(), strict=True)
            ):
                own = tuple(
                    InspectedView(
                        name,
                        items[number, : lengths[number]],
                        None if changed is None else changed[number, :length],
                        None if confidence is None else confidence[number, :length],
                    )
                    for name, items, lengths, changed, confidence in views
                )
                found.append(InspectedSequence(user, batch.items[number, :length].numpy(), own))
    return found


def sample_sequences(
    train: SequenceDataset, n: int = 2000, seed: int = 0
) -> Int64[np.ndarray, " S"]:
    """Indices of at most `n` trainable sequences, drawn from the seed, in order; shape (S,)."""
    index = trainable_sequences(train)
    if len(index) <= n:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, n, replace=False))


def view_metrics(
    sequences: Sequence[InspectedSequence], embeddings: Float[Tensor, "V D"]
) -> list[ViewMetrics]:
    """Changes that each view makes to these sequences.

    Args:
        sequences: all with the same views, from :func:`inspect_views`; at least one.
    """
    units = F.normalize(embeddings.detach().cpu().double(), dim=1).numpy()
    found = []
    for number, view in enumerate(sequences[0].views):
        pairs = [(sequence.items, sequence.views[number]) for sequence in sequences]
        values = _unaligned(pairs) if view.changed is None else _aligned(pairs, units)
        counted = {name: float(np.mean(of)) for name, of in values.items() if len(of)}
        found.append(ViewMetrics(view.name, counted))
    return found


_Pair = tuple[np.ndarray, InspectedView]


def _aligned(pairs: list[_Pair], units: Float[np.ndarray, "V D"]) -> dict[str, np.ndarray]:
    originals = np.concatenate([items for items, _ in pairs])
    replacements = np.concatenate([view.items for _, view in pairs])
    changed = np.concatenate([view.changed for _, view in pairs if view.changed is not None])
    own, new = originals[changed], replacements[changed]
    is_item = (new != PAD) & (new < len(units))
    cosines = np.einsum("pd,pd->p", units[own[is_item]], units[new[is_item]])
    stated = [view.confidence for _, view in pairs if view.confidence is not None]
    confidence = np.concatenate(stated) if stated else np.zeros(0)
    return {
        "changed": np.array([changed.sum() / len(pairs)]),
        "changed_share": changed,
        "kept": own == new,
        "similarity_replaced": cosines[(own != new)[is_item]],
        "similarity_changed": cosines,
        "similarity_random": _random_similarity(units),
        "confidence_changed": confidence[changed] if stated else confidence,
        "confidence": confidence,
    }


def _unaligned(pairs: list[_Pair]) -> dict[str, np.ndarray]:
    shared = [
        (Counter(items.tolist()) & Counter(view.items.tolist())).total() / len(items)
        for items, view in pairs
    ]
    ratios = [len(view.items) / len(items) for items, view in pairs]
    return {"shared": np.array(shared), "length_ratio": np.array(ratios)}


def _random_similarity(units: Float[np.ndarray, "V D"]) -> np.ndarray:
    """Mean product of all pairs of different items; the square of a sum holds every pair."""
    n = len(units) - 1
    total = units[1:].sum(0)
    pairs = n * (n - 1)
    return np.array([(total @ total - np.square(units[1:]).sum()) / pairs] if pairs else [])


def describe_sequence(
    sequence: InspectedSequence, user: str, names: Names, vocab_size: int
) -> ShownSequence:
    """A sequence and its views by the names of their items.

    Args:
        vocab_size: V; numbers from there on are ``[mask]``.
    """
    return ShownSequence(
        user,
        names(sequence.items),
        [
            ShownView(
                view.name,
                _item_names(view.items, names, vocab_size),
                _changes(sequence.items, view),
                view.changed is not None,
                None if view.confidence is None else view.confidence.tolist(),
            )
            for view in sequence.views
        ],
    )


def _item_names(items: np.ndarray, names: Names, vocab_size: int) -> list[str]:
    is_item = (items != PAD) & (items < vocab_size)
    found = iter(names(items[is_item]))
    return [
        next(found) if named else "[pad]" if item == PAD else "[mask]"
        for item, named in zip(items.tolist(), is_item.tolist(), strict=True)
    ]


def _changes(original: np.ndarray, view: InspectedView) -> list[ChangeKind]:
    if view.changed is None:
        return ["" if known else "replaced" for known in np.isin(view.items, original)]
    return [
        "" if not changed else "kept" if same else "replaced"
        for changed, same in zip(view.changed, view.items == original, strict=True)
    ]


def metric_table(metrics: Sequence[ViewMetrics]) -> list[tuple[str, list[str]]]:
    """Lines of a table of the metrics, each with a label and a cell for each view.

    Metrics that no view has are left out; one that a single view lacks is a dash.
    """
    lines = []
    for name, (label, form) in VIEW_METRICS.items():
        if any(name in view.values for view in metrics):
            cells = [format(v.values[name], form) if name in v.values else "–" for v in metrics]
            lines.append((label, cells))
    return lines
