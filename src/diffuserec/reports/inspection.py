"""What a contrastive recommender contrasts: the views that training makes, and figures of them.

First numbers (:func:`inspected`, :func:`view_figures`), then words for people
(:func:`shown_sequence`, :func:`figure_rows`): what the command line and the pages print.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffuserec.models.base import ContrastiveRecommender
from diffuserec.data import PAD, SequenceDataset
from diffuserec.data.batches import batch_of, trainable_rows

_ROWS = 512
"""Sequences whose views are made at once."""

Mark = Literal["", "replaced", "kept"]
"""Of an item of a view: as it was, another item, or chosen anew and the original's again."""


@dataclass(frozen=True, eq=False)
class InspectedView:
    """A view of one sequence.

    Attributes:
        name: what it is, for people.
        items: item numbers, oldest first; 0 is padding inside the sequence, a number beyond the
            catalog ``[mask]``; shape (M,).
        changed: the positions whose items were chosen anew, shape (L,); None where positions do
            not line up with the original's.
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
        views: what training makes of them.
    """

    user: int
    items: Int64[np.ndarray, " L"]
    views: tuple[InspectedView, ...]


@dataclass(frozen=True)
class ViewFigures:
    """What a view does to sequences, over many of them; None where there is nothing to count.

    The first eight are of views whose positions line up with the original's, the last two of the
    others. Positions and items of all sequences count the same.

    Attributes:
        view: its name.
        changed: changed positions of a sequence, mean.
        changed_share: share of all positions that are changed.
        kept: share of the changed positions that hold the original's item again.
        similarity_replaced: mean cosine of the embeddings of original and replacement, of those
            that differ; ``[mask]`` and ``[pad]`` have none.
        similarity_changed: the same of all changed positions.
        similarity_random: the same of all pairs of different items of the catalog: the yardstick.
        confidence_changed: mean confidence at the changed positions.
        confidence: mean confidence at all positions.
        shared: share of a sequence's items, counted as often as they occur, that are still in
            the view; mean of the sequences.
        length_ratio: length of the view over that of the sequence, mean of the sequences.
    """

    view: str
    changed: float | None = None
    changed_share: float | None = None
    kept: float | None = None
    similarity_replaced: float | None = None
    similarity_changed: float | None = None
    similarity_random: float | None = None
    confidence_changed: float | None = None
    confidence: float | None = None
    shared: float | None = None
    length_ratio: float | None = None


@dataclass(frozen=True)
class ShownView:
    """A view of one sequence in words.

    Attributes:
        name: what it is.
        items: names of the items, oldest first; also ``[mask]`` and ``[pad]``.
        marks: of each item. Where positions do not line up, ``replaced`` is what the original
            does not hold.
        lines_up: whether position i is the original's position i.
        confidence: of the model in what it restores at each position, if it has any.
    """

    name: str
    items: list[str]
    marks: list[Mark]
    lines_up: bool
    confidence: list[float] | None


@dataclass(frozen=True)
class ShownSequence:
    """A training sequence and its views in words.

    Attributes:
        user: name of the user.
        items: names of the items, oldest first.
        views: what training makes of them.
    """

    user: str
    items: list[str]
    views: list[ShownView]

    @property
    def confidences(self) -> dict[str, list[float]]:
        """Columns of confidences by their headings; views that share theirs share a column."""
        columns: dict[str, list[float]] = {}
        for view in self.views:
            if view.confidence is not None and view.confidence not in columns.values():
                columns[f"confidence, {view.name}"] = view.confidence
        return {"confidence": next(iter(columns.values()))} if len(columns) == 1 else columns


@dataclass(frozen=True)
class Inspection:
    """What training contrasts, for people: some users, and figures over many.

    Attributes:
        method: the recommender, as it is called in tables.
        seed: of what is random in the views and in who was drawn.
        sequences: the users who are shown.
        figures: of each view.
        n_sequences: how many training sequences the figures are of.
    """

    method: str
    seed: int
    sequences: list[ShownSequence]
    figures: list[ViewFigures]
    n_sequences: int


@torch.no_grad()
def inspected(
    model: ContrastiveRecommender,
    train: SequenceDataset,
    rows: Int64[np.ndarray, " R"],
    max_len: int,
    seed: int = 0,
) -> list[InspectedSequence]:
    """The views that training would make of these sequences now, but for dropout.

    They are made for a few hundred sequences at a time. What is random in a view depends on which
    sequences are inspected together, as it does in training; torch's generators are left as they
    were.

    Args:
        model: fitted; on any device.
        train: what it was trained on.
        rows: sequences of two items or more, shape (R,).
        max_len: newest items that the model sees.
        seed: of what is random in the views.

    Returns:
        The sequences in the order of `rows`.
    """
    model.eval()
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, len(rows), _ROWS):
            batch = batch_of(train, rows[first : first + _ROWS], max_len)
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
            for row, (user, length) in enumerate(
                zip(batch.users.tolist(), batch.lengths.tolist(), strict=True)
            ):
                of_row = tuple(
                    InspectedView(
                        name,
                        items[row, : lengths[row]],
                        None if changed is None else changed[row, :length],
                        None if confidence is None else confidence[row, :length],
                    )
                    for name, items, lengths, changed, confidence in views
                )
                items = batch.items[row, :length].numpy()
                found.append(InspectedSequence(user, items, of_row))
    return found


def sampled_rows(train: SequenceDataset, n: int = 2000, seed: int = 0) -> Int64[np.ndarray, " R"]:
    """At most `n` trainable rows of a dataset, drawn from the seed, in order; shape (R,)."""
    rows = trainable_rows(train)
    if len(rows) <= n:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))


def view_figures(
    sequences: Sequence[InspectedSequence], table: Float[Tensor, "V D"]
) -> list[ViewFigures]:
    """What each view does to these sequences.

    Args:
        sequences: all with the same views, as :func:`inspected` gives them; at least one.
        table: item embeddings, row 0 padding.
    """
    units = F.normalize(table.detach().cpu().double(), dim=1).numpy()
    random = _random_similarity(units)
    figures = []
    for place, view in enumerate(sequences[0].views):
        pairs = [(sequence.items, sequence.views[place]) for sequence in sequences]
        if view.changed is None:
            figures.append(_figures_of_lists(view.name, pairs))
        else:
            figures.append(_figures_in_line(view.name, pairs, units, random))
    return figures


_Pair = tuple[np.ndarray, InspectedView]


def _figures_in_line(
    name: str, pairs: list[_Pair], units: Float[np.ndarray, "V D"], random: float | None
) -> ViewFigures:
    originals = np.concatenate([items for items, _ in pairs])
    replacements = np.concatenate([view.items for _, view in pairs])
    changed = np.concatenate([view.changed for _, view in pairs if view.changed is not None])
    own, new = originals[changed], replacements[changed]
    is_item = (new != PAD) & (new < len(units))
    cosines = np.einsum("pd,pd->p", units[own[is_item]], units[new[is_item]])
    told = [view.confidence for _, view in pairs if view.confidence is not None]
    confidence = np.concatenate(told) if told else None
    return ViewFigures(
        name,
        changed=float(changed.sum() / len(pairs)),
        changed_share=float(changed.mean()),
        kept=_mean(own == new),
        similarity_replaced=_mean(cosines[(own != new)[is_item]]),
        similarity_changed=_mean(cosines),
        similarity_random=random,
        confidence_changed=None if confidence is None else _mean(confidence[changed]),
        confidence=None if confidence is None else _mean(confidence),
    )


def _figures_of_lists(name: str, pairs: list[_Pair]) -> ViewFigures:
    shared = [
        (Counter(items.tolist()) & Counter(view.items.tolist())).total() / len(items)
        for items, view in pairs
    ]
    ratios = [len(view.items) / len(items) for items, view in pairs]
    return ViewFigures(name, shared=float(np.mean(shared)), length_ratio=float(np.mean(ratios)))


def _random_similarity(units: Float[np.ndarray, "V D"]) -> float | None:
    """Mean product of all pairs of different items; the square of a sum holds every pair."""
    n = len(units) - 1
    if n < 2:
        return None
    total = units[1:].sum(0)
    return float((total @ total - np.square(units[1:]).sum()) / (n * (n - 1)))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def shown_sequence(
    sequence: InspectedSequence,
    user: str,
    names: Callable[[np.ndarray], list[str]],
    vocab_size: int,
) -> ShownSequence:
    """A sequence and its views in words.

    Args:
        sequence: the numbers.
        user: name of the user.
        names: of item numbers 1..V-1.
        vocab_size: V; numbers from there on are ``[mask]``.
    """
    return ShownSequence(
        user,
        names(sequence.items),
        [
            ShownView(
                view.name,
                _words(view.items, names, vocab_size),
                _marks(sequence.items, view),
                view.changed is not None,
                None if view.confidence is None else view.confidence.tolist(),
            )
            for view in sequence.views
        ],
    )


def _words(
    items: np.ndarray, names: Callable[[np.ndarray], list[str]], vocab_size: int
) -> list[str]:
    is_item = (items != PAD) & (items < vocab_size)
    found = iter(names(items[is_item]))
    return [
        next(found) if named else "[pad]" if item == PAD else "[mask]"
        for item, named in zip(items.tolist(), is_item.tolist(), strict=True)
    ]


def _marks(original: np.ndarray, view: InspectedView) -> list[Mark]:
    if view.changed is None:
        return ["" if known else "replaced" for known in np.isin(view.items, original)]
    return [
        "" if not changed else "kept" if same else "replaced"
        for changed, same in zip(view.changed, view.items == original, strict=True)
    ]


_LABELS = (
    ("changed", "changed positions of a sequence", ".2f"),
    ("changed_share", "share of all positions", ".1%"),
    ("kept", "kept: the original's item again", ".1%"),
    ("similarity_replaced", "similarity to the original, where replaced", ".3f"),
    ("similarity_changed", "similarity to the original, all changed", ".3f"),
    ("similarity_random", "similarity of two random items", ".3f"),
    ("confidence_changed", "confidence at changed positions", ".3f"),
    ("confidence", "confidence at all positions", ".3f"),
    ("shared", "the original's items still in it", ".1%"),
    ("length_ratio", "length over the original's", ".2f"),
)


def figure_rows(figures: Sequence[ViewFigures]) -> list[tuple[str, list[str]]]:
    """The figures as rows of a table, a column a view: label and cells.

    Figures that no view has are left out; a single view's missing one is a dash.
    """
    rows = []
    for field, label, form in _LABELS:
        values = [getattr(view, field) for view in figures]
        if any(value is not None for value in values):
            rows.append((label, ["–" if v is None else format(v, form) for v in values]))
    return rows
