"""Attributes of items as numbers, and what a model learns of them.

What an item's attributes say is a sum, in which every attribute has about the same weight at first:

* of a column of categories, the mean of the learned vectors of the item's own;
* of a number, a learned vector times the number, standardized over the items that have one;
* of a vector, a learned projection of it, centered and scaled to a mean squared length of 1.

What is missing adds nothing. The column ``name`` is for people, and a category of a single item
says no more than its id; both are left out.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from diffuserec.data import Catalog
from diffuserec.errors import ConfigError

_LARGEST = 5.0
"""Standard deviations from the mean to which numbers are cut."""


@dataclass(frozen=True, eq=False)
class Members:
    """A sparse matrix of weights: which members each row has. In compressed rows.

    Attributes:
        starts: of each row, shape (R,).
        members: numbers of its members, shape (N,).
        weights: of each in the row's sum.
    """

    starts: Int64[np.ndarray, " R"]
    members: Int64[np.ndarray, " N"]
    weights: Float32[np.ndarray, " N"]

    @staticmethod
    def of(
        rows: Int64[np.ndarray, " N"],
        members: Int64[np.ndarray, " N"],
        weights: Float32[np.ndarray, " N"],
        n_rows: int,
    ) -> "Members":
        """From the row, the member and the weight of each entry."""
        order = np.argsort(rows, kind="stable")
        starts = np.searchsorted(rows[order], np.arange(n_rows))
        return Members(starts, members[order], weights[order])

    def transposed(self, n_members: int) -> "Members":
        """The rows of each member."""
        counts = np.diff(np.append(self.starts, len(self.members)))
        rows = np.repeat(np.arange(len(self.starts)), counts)
        return Members.of(self.members, rows, self.weights, n_members)


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """Attributes of V items as numbers; row 0, padding, has none.

    Attributes:
        categories: column and text of each category, C in all.
        of_items: the categories of each item.
        columns: name and width of each column of numbers and vectors.
        values: of those columns, side by side, standardized; shape (V, F).
    """

    categories: tuple[tuple[str, str], ...]
    of_items: Members
    columns: tuple[tuple[str, int], ...]
    values: Float32[np.ndarray, "V F"]

    @cached_property
    def of_categories(self) -> Members:
        """The items of each category."""
        return self.of_items.transposed(len(self.categories))


def item_features(catalog: Catalog) -> ItemFeatures:
    """What a catalog says of its items.

    Raises:
        ConfigError: nothing that tells items apart.
    """
    frame = pl.DataFrame() if catalog.attributes is None else catalog.attributes
    frame = frame.drop("name", strict=False)
    parts: list[pl.DataFrame] = []
    columns: list[tuple[str, int]] = []
    blocks = [np.zeros((catalog.n_items, 0), dtype=np.float32)]
    for values in frame:
        if isinstance(values.dtype, pl.List | pl.String) or values.name == "category":
            parts.append(_entries(values))
            continue
        block = _standardized(values)
        if block is not None:
            columns.append((values.name, block.shape[1]))
            blocks.append(block)
    schema = {"column": pl.String, "text": pl.String, "item": pl.Int64, "weight": pl.Float32}
    entries = pl.concat([pl.DataFrame(schema=schema), *parts])
    if not len(entries) and not columns:
        known = ", ".join(frame.columns) or "none beside names"
        raise ConfigError(
            "item_features=True needs attributes that several items share: prepare the log with "
            f"--items FILE (attributes there are: {known})"
        )
    names = entries.select("column", "text").unique(maintain_order=True).with_row_index("member")
    entries = entries.join(names, on=["column", "text"], maintain_order="left")
    of_items = Members.of(
        entries["item"].to_numpy(),
        entries["member"].to_numpy().astype(np.int64),
        entries["weight"].to_numpy(),
        catalog.vocab_size,
    )
    numbers = np.pad(np.concatenate(blocks, axis=1), ((1, 0), (0, 0)))
    pairs = tuple(names.select("column", "text").iter_rows())
    return ItemFeatures(pairs, of_items, tuple(columns), numbers)


def _entries(values: pl.Series) -> pl.DataFrame:
    """Column, text, item and weight of each category of an item that another item has, too."""
    texts = values if isinstance(values.dtype, pl.List) else values.cast(pl.String)
    frame = pl.DataFrame({"item": np.arange(1, len(values) + 1), "text": texts})
    if isinstance(values.dtype, pl.List):
        frame = frame.explode("text")
    frame = frame.filter(pl.col("text").str.len_bytes() > 0).unique(maintain_order=True)
    frame = frame.filter(pl.len().over("text") > 1).sort("text", "item")
    return frame.select(
        pl.lit(values.name).alias("column"),
        "text",
        "item",
        (1 / pl.len().over("item")).cast(pl.Float32).alias("weight"),
    )


def _standardized(values: pl.Series) -> Float32[np.ndarray, "I F"] | None:
    """A column of numbers or vectors, centered and scaled; None if all its values are equal."""
    if isinstance(values.dtype, pl.Array):
        block = values.to_numpy()
    elif values.dtype.is_numeric() or values.dtype.is_temporal() or values.dtype == pl.Boolean:
        block = values.to_physical().cast(pl.Float64).to_numpy()[:, None]
    else:
        return None
    there = np.isfinite(block).all(1)
    if not there.any() or bool((block[there] == block[there][0]).all()):
        return None
    center = block[there].mean(0, dtype=np.float64).astype(block.dtype)
    block = np.where(there[:, None], block - center, 0)
    length = np.sqrt(np.square(block[there]).sum(1, dtype=np.float64).mean())
    scaled: np.ndarray = (block / length).astype(np.float32)
    return scaled.clip(-_LARGEST, _LARGEST) if scaled.shape[1] == 1 else scaled


class FeatureMap(nn.Module):
    """A learned vector of what an item's attributes say; draws no initial weights by itself.

    The sum of all items is made in N · D multiplications and additions for N categories of items
    in all, and V · F · D for numbers and vectors; its gradient takes as many again.

    Args:
        features: of the items.
        dim: width D.
    """

    numbers: Tensor

    def __init__(self, features: ItemFeatures, dim: int) -> None:
        super().__init__()
        self.features = features
        self.dim = dim
        # None where there is nothing to learn
        self.categories = _parameter(len(features.categories), dim)
        self.values = _parameter(features.values.shape[1], dim)
        for name, part in (("items", features.of_items), ("members", features.of_categories)):
            self._keep(f"{name}_starts", part.starts)
            self._keep(f"{name}_members", part.members)
            self._keep(f"{name}_weights", part.weights)
        self._keep("numbers", features.values)

    def _keep(self, name: str, values: Any) -> None:
        """Keeps an array that follows from the catalog, and is not saved with the weights."""
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def reset_parameters(self, std: float) -> None:
        """Draws all weights from N(0, std²)."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)

    def of_all(self) -> Float[Tensor, "V D"]:
        """Vectors of all items; row 0 is zero."""
        found = self._of_values(self.numbers)
        if self.categories is None:
            return found
        there, back = self._part("items"), self._part("members")
        sums: Tensor = _Sums.apply(self.categories, there, back)  # type: ignore[no-untyped-call]
        return found + sums

    def of(self, items: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Vectors of these items; what it costs follows from their number."""
        if items.numel() >= len(self.numbers):
            return F.embedding(items, self.of_all())
        flat = items.reshape(-1)
        found = self._of_values(self.numbers[flat])
        if self.categories is not None:
            starts, members, weights = self._part("items")
            counts = (F.pad(starts[1:], (0, 1), value=len(members)) - starts)[flat]
            first = counts.cumsum(0) - counts
            at = torch.arange(int(counts.sum()), device=flat.device)
            at = at + torch.repeat_interleave(starts[flat] - first, counts)
            found = found + _sums(self.categories, first, members[at], weights[at])
        return found.view(*items.shape, self.dim)

    def _of_values(self, numbers: Float[Tensor, "n F"]) -> Float[Tensor, "n D"]:
        if self.values is None:
            return numbers.new_zeros(len(numbers), self.dim)
        return numbers @ self.values

    def _part(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        starts, members, weights = (
            self.get_buffer(f"{name}_{part}") for part in ("starts", "members", "weights")
        )
        return starts, members, weights

    @torch.no_grad()
    def carry_over(self, old: "FeatureMap") -> None:
        """Takes over what another map learned of categories of the same column and text, and of
        numbers and vectors of the same column and width."""
        if self.categories is not None and old.categories is not None:
            numbers = {pair: number for number, pair in enumerate(old.features.categories)}
            for here, pair in enumerate(self.features.categories):
                if pair in numbers:
                    self.categories[here] = old.categories[numbers[pair]]
        if self.values is not None and old.values is not None:
            theirs = _places(old.features)
            for column, place in _places(self.features).items():
                if column in theirs:
                    self.values[place] = old.values[theirs[column]]


def _parameter(n: int, dim: int) -> nn.Parameter | None:
    return nn.Parameter(torch.empty(n, dim)) if n else None


class _Sums(torch.autograd.Function):
    """Weighted sums of rows' members; the gradient of a member is such a sum over its rows."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, there: Any, back: Any) -> Tensor:
        ctx.back = back
        return _sums(vectors, *there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _sums(gradients[0], *ctx.back), None, None


def _sums(vectors: Tensor, starts: Tensor, members: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        members, vectors, starts, mode="sum", per_sample_weights=weights.to(vectors.dtype)
    )


def _places(features: ItemFeatures) -> dict[tuple[str, int], slice]:
    """Where each column of numbers and vectors stands, by its name and width."""
    ends = np.cumsum([width for _, width in features.columns])
    return {
        column: slice(int(end) - column[1], int(end))
        for column, end in zip(features.columns, ends, strict=True)
    }
