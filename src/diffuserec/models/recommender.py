"""Recommenders: what they give, and how lists are made of it.

A recommender gives either states, vectors whose products with the item table are scores, or a score
of every item. Ranks and lists follow from either, a block of items at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffuserec.data import Batch, Histories, RawId, SequenceDataset, histories_of
from diffuserec.data.histories import encode_histories, encode_items
from diffuserec.errors import ConfigError
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Method, method_registry
from diffuserec.models.items import ItemTable
from diffuserec.models.retrieval import (
    Matrix,
    Mixture,
    OrPopularity,
    Products,
    Scorer,
    allowed_mask,
    draw_probabilities,
    seen_items,
    top_k,
)
from diffuserec.registry import Registry


class Recommender(Method):
    """Ranks every item as the next one of a history.

    A subclass gives either ``states`` (:class:`StateRecommender`) or ``all_scores``
    (:class:`ScoreRecommender`).
    """

    kind = "recommender"

    @abstractmethod
    def scorer(
        self,
        histories: Histories,
        seed: int = 0,
        n_draws: int | None = None,
        diversity: float = 0.0,
    ) -> Scorer:
        """Scores of all items for these histories, made when they are asked for.

        Nothing is hidden there. Random numbers are drawn for each user from (seed, user), so that a
        user's scores do not depend on the rest of the batch.

        Args:
            histories: on this method's device; every one holds at least one item.
            seed: of the noise, for methods that have any.
            n_draws: noise draws; by default the method's own number.
            diversity: weight of the first draw against the mean of all.
        """

    @property
    def is_generative(self) -> bool:
        """Whether it draws noise: each draw is a distribution over the items."""
        return False

    @property
    def scores_are_logits(self) -> bool:
        """Whether softmax(score) is the model's predictive distribution over the next item."""
        return self.config.scores_are_logits

    @property
    def has_distribution(self) -> bool:
        """Whether the scores are a distribution over the items, or its logits."""
        return self.is_generative or self.scores_are_logits

    @torch.no_grad()
    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        """A score for every item, higher is better; column 0 is padding and means nothing.

        Holds all of them: for small catalogs and for a look. Lists and ranks are made a
        block at a time, from :meth:`scorer_of`.
        """
        scorer = self.scorer(histories, seed)
        return scorer.block(slice(0, scorer.shape[1]))

    @torch.no_grad()
    def scorer_of(
        self,
        dataset: SequenceDataset,
        index: Int[np.ndarray, " B"],
        seed: int = 0,
        n_draws: int | None = None,
        diversity: float = 0.0,
    ) -> Scorer:
        """:meth:`scorer` for sequences of a dataset; empty ones are answered by popularity.

        Args:
            dataset: histories as the method is to see them (already augmented, if at all).
        """

        def known(histories: Histories) -> Scorer:
            return self.scorer(histories, seed, n_draws, diversity)

        return or_popularity(self, known, histories_of(dataset, index))

    def recommend(
        self,
        histories: Sequence[Sequence[RawId]],
        k: int = 10,
        *,
        filter_seen: bool = True,
        allow: Sequence[RawId] | None = None,
        deny: Sequence[RawId] | None = None,
        on_unknown: Literal["skip", "refuse"] = "skip",
        augmenter: "Augmenter | None" = None,
        n_draws: int | None = None,
        diversity: float = 0.0,
        seed: int = 0,
        batch_size: int = 256,
    ) -> pl.DataFrame:
        """The k best next items of each history, raw ids in and out.

        A history without a known item is answered by popularity. A generative recommender's scores
        are probabilities, the mean of its draws of noise, and come with their spread.

        Args:
            histories: raw item ids, oldest first, one list a query.
            k: list length; a catalog with fewer items gives shorter lists.
            filter_seen: leave out items of the history itself.
            allow: only these items may be shown.
            deny: these may not.
            on_unknown: whether ids that the catalog does not hold are skipped (and counted in the
                column ``n_unknown``) or refused.
            augmenter: changes the histories first, as it changed those of training.
            n_draws: noise draws of a generative recommender; by default its own number.
            diversity: from 0, which ranks by the mean of the draws, to 1, which ranks by the first
                draw alone, so that every seed gives another list; for generative recommenders.
            seed: of the noise, for methods that have any.
            batch_size: histories scored at once.

        Returns:
            Columns ``query`` (0-based), ``rank`` (from 1), ``item_id``, ``score``, ``n_unknown``
            (ids of that history that were skipped); best first within a query. A generative
            recommender has a column ``spread`` too, the standard deviation of the item's
            probability over the draws (0 where popularity answered).

        Raises:
            ConfigError: not fitted, k or n_draws below 1, diversity outside [0, 1], or one of the
                two given to a method without noise.
            DataError: an unknown id in `allow` or `deny`, or in a history when refused.
        """
        self.require_fitted()
        self._check_options(k, n_draws, diversity)
        dataset, n_unknown = encode_histories(self.catalog, histories, on_unknown)
        allowed = allowed_mask(
            self.catalog.vocab_size,
            None if allow is None else encode_items(self.catalog, "allow", allow),
            None if deny is None else encode_items(self.catalog, "deny", deny),
        )
        shown_to_model = dataset
        if augmenter is not None:
            shown_to_model = augmenter.augment_for_inference(dataset, seed)
        self.eval()
        frames = [self._lists(np.zeros(0, dtype=np.int64), *_no_lists(self.device), n_unknown)]
        for first in range(0, len(dataset), batch_size):
            index = np.arange(first, min(first + batch_size, len(dataset)))
            scorer = self.scorer_of(shown_to_model, index, seed, n_draws, diversity)
            hidden = seen_items(dataset, index) if filter_seen else None
            scores, items = top_k(scorer, k, hidden, allowed)
            spread = None
            if self.is_generative:
                chances = draw_probabilities(scorer, items.clamp(min=0))
                scores = chances.mean(1)
                spread = chances.std(1, correction=min(1, chances.shape[1] - 1))
            frames.append(self._lists(index, items, scores, spread, n_unknown))
        return pl.concat(frames)

    def next_items_of(self, items: Sequence[RawId], k: int = 10) -> pl.DataFrame:
        """The items that would be recommended after each of these alone.

        Returns:
            Columns ``target_item_id``, ``rank``, ``item_id``, ``score``.

        Raises:
            DataError: an id that the catalog does not hold.
        """
        found = self.recommend([[item] for item in items], k, on_unknown="refuse")
        targets = pl.DataFrame(
            {
                "query": np.arange(len(items)),
                "target_item_id": self.catalog.item_ids.gather(self.catalog.encode(items) - 1),
            }
        )
        return found.join(targets, on="query", maintain_order="left").select(
            "target_item_id", "rank", "item_id", "score"
        )

    def _check_options(self, k: int, n_draws: int | None, diversity: float) -> None:
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        if not self.is_generative and (n_draws is not None or diversity != 0):
            raise ConfigError(
                f"{self.name} draws no noise, its lists are always the same: leave out n_draws and "
                "diversity"
            )
        if n_draws is not None and n_draws < 1:
            raise ConfigError(f"n_draws must be at least 1, got {n_draws}")
        if not 0 <= diversity <= 1:
            raise ConfigError(f"diversity must be between 0 and 1, got {diversity}")

    def _lists(
        self,
        index: Int[np.ndarray, " B"],
        items: Int[Tensor, "B K"],
        scores: Float[Tensor, "B K"],
        spread: Float[Tensor, "B K"] | None,
        n_unknown: Int[np.ndarray, " Q"],
    ) -> pl.DataFrame:
        """Rows of :meth:`recommend` for some of the queries."""
        shown = items > 0
        n_shown = shown.sum(1).cpu().numpy()
        ranks = torch.arange(1, items.shape[1] + 1, device=items.device).expand_as(items)
        numbers = {"score": scores} | ({"spread": spread} if spread is not None else {})
        if self.is_generative and spread is None:
            numbers["spread"] = scores
        return pl.DataFrame(
            {
                "query": np.repeat(index, n_shown),
                "rank": ranks[shown].cpu().numpy(),
                "item_id": self.catalog.item_ids.gather(items[shown].cpu().numpy() - 1),
                **{name: v[shown].cpu().double().numpy() for name, v in numbers.items()},
                "n_unknown": np.repeat(n_unknown[index], n_shown),
            }
        )


def or_popularity(
    method: Method, scorer: Callable[[Histories], Scorer], histories: Histories
) -> Scorer:
    """Scorer of histories, empty ones answered by a method's popularity."""
    known = histories.lengths > 0
    if bool(known.all()):
        return scorer(histories.to(method.device))
    known = known.to(method.device)
    counts = method.popularity.to(torch.float32)
    if not bool(known.any()):
        return Matrix(counts.repeat(len(known), 1))
    return OrPopularity(known, scorer(histories.to(method.device).select(known)), counts)


def _no_lists(device: torch.device) -> tuple[Tensor, Tensor, None]:
    """No items and no scores, for a frame that has columns and no rows."""
    return (
        torch.zeros(0, 1, dtype=torch.int64, device=device),
        torch.zeros(0, 1, device=device),
        None,
    )


class StateRecommender(Recommender):
    """A recommender that gives states, whose products with the item table are scores.

    Attributes:
        combine: ``product``: one state a history, its products are the scores. ``mixture``: K
            states, one for each draw of noise, and the scores are the mean of the softmaxes of
            their products.
        table: the item table.
    """

    combine: ClassVar[Literal["product", "mixture"]] = "product"
    table: ItemTable

    @abstractmethod
    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B K E"]:
        """States of these histories, as wide as :meth:`item_weight`; K = 1 without noise.

        Args:
            n_draws: K; by default the method's own number. Not read by methods without noise.
        """

    def item_weight(self) -> Float[Tensor, "V E"]:
        """Vectors that states are multiplied with. May be overridden: by default the table's."""
        return self.table.weight()

    @property
    def n_candidates(self) -> int | None:
        """Items that a mixture is averaged over, see ``Mixture``; may be overridden."""
        return None

    @property
    def is_generative(self) -> bool:
        return self.combine == "mixture"

    def scorer(
        self,
        histories: Histories,
        seed: int = 0,
        n_draws: int | None = None,
        diversity: float = 0.0,
    ) -> Scorer:
        states = self.states(histories, seed, n_draws)
        if self.combine == "product":
            return Products(states[:, 0], self.item_weight())
        return Mixture(states, self.item_weight(), self.n_candidates, diversity)


class ScoreRecommender(Recommender):
    """A recommender that gives a score of every item: counting methods, networks of pairs."""

    @abstractmethod
    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """A score for every item, higher is better; column 0 is padding and means nothing."""

    def scorer(
        self,
        histories: Histories,
        seed: int = 0,
        n_draws: int | None = None,
        diversity: float = 0.0,
    ) -> Scorer:
        return Matrix(self.all_scores(histories))


@dataclass(frozen=True, eq=False)
class View:
    """One augmented view of each sequence in a batch, as used by the contrastive loss.

    Attributes:
        name: for people.
        items: item numbers, zeros after the end; a number beyond the catalog is ``[mask]``; (B, M).
        lengths: real positions, (B,).
        changed: positions whose items were chosen anew, (B, L); None if positions are not aligned
            with the original's.
        confidence: of the model in what it restores at each position, (B, L), if it has any.
    """

    name: str
    items: Int[Tensor, "B M"]
    lengths: Int[Tensor, " B"]
    changed: Bool[Tensor, "B L"] | None = None
    confidence: Float[Tensor, "B L"] | None = None


class Contrastive(ABC):
    """Base of recommenders that also learn from views of their training sequences.

    Stands beside a recommender's base: ``class Mine(StateRecommender, Contrastive)``.

    Attributes:
        table: the item table.
    """

    table: ItemTable

    @abstractmethod
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        """The views that training would make of these sequences now, to inspect them.

        Random numbers are drawn from torch's default generator.
        """


RECOMMENDERS: Registry[type[Recommender]] = method_registry(Recommender, "diffuserec.recommenders")
Recommender.registry = RECOMMENDERS
