"""Scores of all items for a batch of histories, made a block of columns at a time.

Products of one state with the item vectors; a mixture, the mean over K states of the softmaxes of
such products; a matrix that a counting method made; and training counts for empty histories.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffuserec.models.retrieval.blocks import block_shape


class Scorer(ABC):
    """Scores of V items for B histories; higher is better, column 0 is padding."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """B and V."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where scores are made."""

    @abstractmethod
    def rows(self, part: slice) -> Self:
        """The scorer of some of the histories."""

    @abstractmethod
    def block(self, columns: slice) -> Float[Tensor, "B C"]:
        """Scores of the items in `columns`; a fresh tensor that the caller may write into."""

    @abstractmethod
    def draws(self, columns: slice) -> Iterator[Float[Tensor, "B C"]]:
        """Probabilities of the items in `columns` by each draw, one after another; padding has 0.

        A model without noise has one draw. A tensor is valid until the next one is asked for.
        """

    def tempered(self, temperature: float) -> "Scorer":
        """The scorer with its logits divided by a temperature; itself if it has none, as counts."""
        return self

    def columns(self) -> list[slice]:
        """Blocks of columns that cover all items, each within the memory budget for all rows."""
        n_rows, vocab_size = self.shape
        _, width = block_shape(n_rows, vocab_size, self.device, cached=True, group=max(1, n_rows))
        return [
            slice(first, min(first + width, vocab_size)) for first in range(0, vocab_size, width)
        ]


@dataclass(frozen=True, eq=False)
class _OfStates(Scorer):
    """Common part of scorers by products of states, one row a history, with the item vectors."""

    states: Float[Tensor, "B *K E"]
    vectors: Float[Tensor, "V E"]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.states), len(self.vectors)

    @property
    def device(self) -> torch.device:
        return self.states.device

    def rows(self, part: slice) -> Self:
        return replace(self, states=self.states[part])

    def tempered(self, temperature: float) -> Self:
        return replace(self, states=self.states / temperature)


@dataclass(frozen=True, eq=False)
class Products(_OfStates):
    """Products of one state a history with the item vectors.

    Attributes:
        states: shape (B, E).
        vectors: of the items, shape (V, E).
    """

    states: Float[Tensor, "B E"]

    def block(self, columns: slice) -> Float[Tensor, "B C"]:
        return self.states @ self.vectors[columns].T

    def draws(self, columns: slice) -> Iterator[Float[Tensor, "B C"]]:
        return self._as_mixture.draws(columns)

    @cached_property
    def _as_mixture(self) -> "Mixture":
        """The mixture of one state, which remembers its partition from block to block."""
        return Mixture(self.states[:, None], self.vectors)


@dataclass(frozen=True, eq=False)
class Mixture(_OfStates):
    """Mean over K states of softmax(state · vectors): probabilities of the items.

    Attributes:
        states: one for each draw of noise, shape (B, K, E).
        vectors: of the items, shape (V, E).
        n_candidates: average over so many items that the mean state puts first; the others keep
            the order of the mean state, below every candidate. None averages over all. Draws stay
            exact.
        diversity: weight of the first draw against the mean of all, 0 to 1.
    """

    states: Float[Tensor, "B K E"]
    n_candidates: int | None = None
    diversity: float = 0.0

    def block(self, columns: slice) -> Float[Tensor, "B C"]:
        if self.n_candidates is not None and not self.diversity:
            return self._among_candidates(columns)
        total = torch.zeros(len(self.states), columns.stop - columns.start, device=self.device)
        first = None
        for draw in self.draws(columns):
            if self.diversity and first is None:
                first = draw * self.diversity
            total += draw
        mean = total / self.states.shape[1]
        return mean if first is None else mean * (1 - self.diversity) + first

    def draws(self, columns: slice) -> Iterator[Float[Tensor, "B C"]]:
        is_whole = columns.stop - columns.start == len(self.vectors)
        for number, logits in enumerate(self._logits(columns)):
            if is_whole:
                yield torch.softmax(logits, dim=1, out=logits)
            else:
                yield logits.sub_(self._log_partition[:, number, None]).exp_()

    @cached_property
    def _log_partition(self) -> Float[Tensor, "B K"]:
        parts = [
            torch.stack([torch.logsumexp(logits, dim=1) for logits in self._logits(columns)], dim=1)
            for columns in self.columns()
        ]
        return torch.logsumexp(torch.stack(parts), dim=0)

    def _logits(self, columns: slice) -> Iterator[Float[Tensor, "B C"]]:
        """Logits of the items in `columns` by each state, in one piece of memory."""
        # fresh pages for every draw would cost more than the products
        states, vectors = self.states.detach(), self.vectors.detach()[columns]
        memory = states.new_empty(len(states), len(vectors))
        for number in range(states.shape[1]):
            logits = torch.mm(states[:, number], vectors.T, out=memory).float()
            if columns.start == 0:
                logits[:, 0] = -torch.inf
            yield logits

    def _among_candidates(self, columns: slice) -> Float[Tensor, "B C"]:
        scores = self._mean_scores(columns)
        if columns.stop - columns.start == len(self.vectors):
            best = scores.topk(self._n_best, dim=1, sorted=False)
            scores -= best.values.amax(1, keepdim=True)
            return scores.scatter_(1, best.indices, self._chances(best.indices))
        greatest, items, chances = self._candidates
        scores -= greatest
        inside = (items >= columns.start) & (items < columns.stop)
        row = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        scores[row[inside], items[inside] - columns.start] = chances[inside]
        return scores

    @cached_property
    def _candidates(
        self,
    ) -> tuple[Float[Tensor, "B 1"], Int[Tensor, "B N"], Float[Tensor, "B N"]]:
        """The mean state's best score, its best items, and their averaged probabilities."""
        values, items = [], []
        for columns in self.columns():
            scores = self._mean_scores(columns)
            found = scores.topk(min(self._n_best, scores.shape[1]), dim=1, sorted=False)
            values.append(found.values)
            items.append(found.indices + columns.start)
        best = torch.cat(values, 1).topk(self._n_best, dim=1, sorted=False)
        chosen = torch.cat(items, 1).gather(1, best.indices)
        return best.values.amax(1, keepdim=True), chosen, self._chances(chosen)

    @property
    def _n_best(self) -> int:
        return min(self.n_candidates or 1, len(self.vectors) - 1)

    def _mean_scores(self, columns: slice) -> Float[Tensor, "B C"]:
        """Scores of the mean state; padding has minus infinity."""
        scores = self.states.mean(1) @ self.vectors[columns].T
        if columns.start == 0:
            scores[:, 0] = -torch.inf
        return scores

    def _chances(self, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """Mean over the states of the probabilities of some items among each other."""
        logits = self.states @ self.vectors[items].transpose(1, 2)
        return torch.softmax(logits, dim=2).mean(1)


@dataclass(frozen=True, eq=False)
class Matrix(Scorer):
    """Scores that are all there already, as counting methods make them.

    A score of minus infinity becomes the least finite number, so that an impossible item stays
    apart from a hidden one.

    Attributes:
        scores: shape (B, V).
    """

    scores: Float[Tensor, "B V"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.scores.shape[0], self.scores.shape[1]

    @property
    def device(self) -> torch.device:
        return self.scores.device

    def rows(self, part: slice) -> "Matrix":
        return Matrix(self.scores[part])

    def block(self, columns: slice) -> Float[Tensor, "B C"]:
        part = self.scores[:, columns]
        return torch.clamp(part.float(), min=torch.finfo(torch.float32).min)

    def draws(self, columns: slice) -> Iterator[Float[Tensor, "B C"]]:
        """One draw, in proportion to the scores, which must be counts or probabilities."""
        part = self.scores[:, columns].float() / self._total
        if columns.start == 0:
            part[:, 0] = 0
        yield part

    @cached_property
    def _total(self) -> Float[Tensor, "B 1"]:
        total = self.scores[:, 1:].sum(1, keepdim=True, dtype=torch.float32)
        return total.clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, eq=False)
class OrPopularity(Scorer):
    """Scores of the histories that hold an item; the empty ones are answered by popularity.

    Attributes:
        known: which histories hold an item, shape (B,).
        scorer: of those, in their order.
        counts: training count of each item, shape (V,).
    """

    known: Bool[Tensor, " B"]
    scorer: Scorer
    counts: Float[Tensor, " V"]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.known), len(self.counts)

    @property
    def device(self) -> torch.device:
        return self.counts.device

    def rows(self, part: slice) -> "OrPopularity":
        first = int(self.known[: part.start].sum())
        known = self.known[part]
        mine = self.scorer.rows(slice(first, first + int(known.sum())))
        return OrPopularity(known, mine, self.counts)

    def tempered(self, temperature: float) -> "OrPopularity":
        return replace(self, scorer=self.scorer.tempered(temperature))

    def block(self, columns: slice) -> Float[Tensor, "B C"]:
        return self._filled(self.counts[columns], self.scorer.block(columns))

    def draws(self, columns: slice) -> Iterator[Float[Tensor, "B C"]]:
        chances = self.counts / self.counts[1:].sum().clamp(min=1)
        chances[0] = 0
        for draw in self.scorer.draws(columns):
            yield self._filled(chances[columns], draw)

    def _filled(
        self, for_empty: Float[Tensor, " C"], for_known: Float[Tensor, "K C"]
    ) -> Float[Tensor, "B C"]:
        whole = for_empty.to(torch.float32).repeat(len(self.known), 1)
        whole[self.known] = for_known.to(torch.float32)
        return whole


def mean_of(first: Scorer, second: Scorer) -> Scorer:
    """Mean of two scorers of one model, for other readings of the same histories.

    Means of products of states are products of mean states, and a mixture has the draws of both.
    """
    if isinstance(first, OrPopularity) and isinstance(second, OrPopularity):
        return OrPopularity(first.known, mean_of(first.scorer, second.scorer), first.counts)
    if isinstance(first, Products) and isinstance(second, Products):
        return Products((first.states + second.states) / 2, first.vectors)
    if isinstance(first, Mixture) and isinstance(second, Mixture):
        return replace(first, states=torch.cat([first.states, second.states], dim=1))
    everything = slice(0, first.shape[1])
    return Matrix((first.block(everything) + second.block(everything)) / 2)
