"""Recommenders: what they give, and how lists are made of it.

A recommender gives either states, vectors whose products with the item table are scores, or a score
of every item. Ranks and lists follow from either, a block of items at a time.
"""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffuserec.data import Batch, Histories, SequenceDataset, bounded_batches, histories_of
from diffuserec.data.histories import encode_histories, encode_items
from diffuserec.data.ids import RawIds
from diffuserec.errors import ConfigError
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Method, method_registry
from diffuserec.models.items import ItemTable
from diffuserec.models.retrieval import (
    ItemIndex,
    Matrix,
    Mixture,
    OrPopularity,
    Products,
    Scorer,
    allowed_mask,
    approximate_top_k,
    draw_probabilities,
    mean_of,
    most_scores,
    seen_items,
    top_k,
)
from diffuserec.registry import Registry

if hasattr(os, "register_at_fork"):
    # a forked process has none of the threads that OpenMP would wait for
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


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

    def at_once(self, batch_size: int) -> int:
        """Histories that may be scored at once, of as many as are wished for."""
        return batch_size

    @property
    def is_generative(self) -> bool:
        """Whether it draws noise: each draw is a distribution over the items."""
        return False

    @property
    def scores_are_logits(self) -> bool:
        """Whether softmax(score) is the model's predictive distribution over the next item."""
        return self.config.scores_are_logits

    @property
    def reads_times(self) -> bool:
        """Whether it is given the times of a history's items, where they are known. May be
        overridden: by default it reads none."""
        return False

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

        return scorer_of_readings(self, known, dataset, index)

    def recommend(
        self,
        histories: Iterable[RawIds],
        k: int = 10,
        *,
        times: Iterable[Any] | None = None,
        filter_seen: bool = True,
        allow: RawIds | None = None,
        deny: RawIds | None = None,
        on_unknown: Literal["skip", "refuse"] = "skip",
        augmenter: "Augmenter | None" = None,
        n_draws: int | None = None,
        diversity: float = 0.0,
        seed: int = 0,
        batch_size: int = 256,
        index: ItemIndex | None = None,
    ) -> pl.DataFrame:
        """The k best next items of each history, raw ids in and out.

        A history without a known item is answered by popularity, and the column ``source`` says so:
        there, a score is how often training held the item, which compares with no score of the
        model's. A generative recommender's scores are probabilities, the mean of its draws of
        noise, and come with their spread; popularity then gives its share of the interactions.

        A process that was forked after the model was loaded may ask, too: a request uses no
        threads of Polars, and torch one thread after a fork. Polars' own operations on the frame
        that comes back may wait for ever there; ``to_dicts`` and ``rows`` do not.

        Args:
            histories: raw item ids, oldest first, one list a query. What counts as an id is told
                in :mod:`diffuserec.data.ids`.
            k: list length; a catalog with fewer items gives shorter lists.
            times: of the items of all histories, for a method that reads them: whole numbers as
                `SequenceDataset.timestamps` of the training data has them, microseconds if its log
                has dates. None: they are not known.
            filter_seen: leave out items of the history itself.
            allow: a list or set: only these items may be shown.
            deny: these may not.
            on_unknown: whether ids that the catalog does not hold are skipped (and counted in the
                column ``n_unknown``) or refused.
            augmenter: changes the histories first, as it changed those of training.
            n_draws: noise draws of a generative recommender; by default its own number.
            diversity: from 0, which ranks by the mean of the draws, to 1, which ranks by the first
                draw alone, so that every seed gives another order; for generative recommenders.
                Most items stay those of the mean, and ``score`` is the mean in any case: it does
                not descend within such a list.
            seed: of the noise, for methods that have any.
            batch_size: histories scored at once.
            index: made by :meth:`item_index`: look only at the items that it finds, which costs a
                fraction where there are a million. The scores of these are exact.

        Returns:
            Columns ``query`` (0-based), ``rank`` (from 1), ``item_id``, ``name`` (where the catalog
            has names), ``score``, ``source`` (``model`` or ``popularity``), ``n_unknown`` (ids of
            that history that were skipped); best first within a query. A generative recommender has
            a column ``spread`` too, the standard deviation of the item's probability over the draws
            (0 where popularity answered). A history that leaves no item to show has no line.

        Raises:
            ConfigError: not fitted, a number that is not whole or below 1, an index for a method
                that scores otherwise than by one product, times given to a method
                that reads none, diversity outside [0, 1], n_draws or diversity given to a method
                without noise, or another word for `on_unknown`.
            DataError: histories that are no list of lists, an unknown id in `allow` or `deny`, or
                in a history when refused.
        """
        self.require_fitted()
        self._check_options(k, n_draws, diversity, seed, batch_size)
        require_augmenter(augmenter)
        require_flag("filter_seen", filter_seen)
        if times is not None and not self.reads_times:
            raise ConfigError(f"{self.name} reads no times as it is set: leave them out")
        dataset, n_unknown = encode_histories(self.catalog, histories, on_unknown, times)
        if index is not None:
            self.require_products()
        allowed = None
        if allow is not None or deny is not None:
            allowed = allowed_mask(
                self.catalog.vocab_size,
                None if allow is None else encode_items(self.catalog, "allow", allow),
                None if deny is None else encode_items(self.catalog, "deny", deny),
            )
        shown_to_model = dataset
        if augmenter is not None:
            shown_to_model = augmenter.augment_for_inference(dataset, seed)
        self.eval()
        parts = []
        at_once = self.at_once(batch_size)
        for batch in bounded_batches(shown_to_model.lengths, at_once, self.max_len):
            rows = np.arange(batch.start, batch.stop)
            scorer = self.scorer_of(shown_to_model, rows, seed, n_draws, diversity)
            hidden = seen_items(dataset, rows) if filter_seen else None
            if index is None:
                scores, items = top_k(scorer, k, hidden, allowed)
            else:
                scores, items = approximate_top_k(scorer, index, k, hidden, allowed)
            numbers = {"score": scores}
            if self.is_generative:
                chances = draw_probabilities(scorer, items.clamp(min=0))
                numbers = {
                    "score": chances.mean(1),
                    "spread": chances.std(1, correction=min(1, chances.shape[1] - 1)),
                }
            parts.append(_lines(rows, items, numbers))
        by_popularity = shown_to_model.lengths == 0
        return self._lists(parts, by_popularity, n_unknown)

    def require_products(self) -> None:
        """Raises ConfigError unless scores are products of one state and the item vectors."""
        raise ConfigError(
            f"{self.name} does not score by the product of one state and item vectors, and an "
            "index finds items by nothing else: leave approximate lists out"
        )

    def next_items_of(self, items: RawIds, k: int = 10) -> pl.DataFrame:
        """The items that would be recommended after each of these alone.

        Returns:
            Columns ``target_item_id``, ``rank``, ``item_id``, ``name`` (where the catalog has
            names), ``score``.

        Raises:
            ConfigError: not fitted, or k below 1.
            DataError: not a list, or an id that the catalog does not hold.
        """
        self.require_fitted()
        numbers = encode_items(self.catalog, "items", items)
        found = self.recommend([[item] for item in self.catalog.decode(numbers)], k)
        asked = self.catalog.item_ids.gather(numbers[found["query"].to_numpy()] - 1)
        kept = [
            column for column in ("rank", "item_id", "name", "score") if column in found.columns
        ]
        return pl.DataFrame([asked.alias("target_item_id"), *(found[name] for name in kept)])

    def _check_options(
        self, k: int, n_draws: int | None, diversity: float, seed: int, batch_size: int
    ) -> None:
        own = 1 if n_draws is None else n_draws
        for name, value in (("k", k), ("batch_size", batch_size), ("n_draws", own)):
            _require_whole(name, value)
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        _require_whole("seed", seed)
        if isinstance(diversity, bool) or not isinstance(diversity, Real):
            raise ConfigError(f"diversity must be a number between 0 and 1, got {diversity!r}")
        if not self.is_generative and (n_draws is not None or diversity != 0):
            raise ConfigError(
                f"{self.name} draws no noise, its lists are always the same: leave out n_draws and "
                "diversity"
            )
        if not 0 <= diversity <= 1:
            raise ConfigError(f"diversity must be between 0 and 1, got {diversity}")

    def _lists(
        self,
        parts: Sequence[dict[str, np.ndarray]],
        by_popularity: Bool[np.ndarray, " Q"],
        n_unknown: Int[np.ndarray, " Q"],
    ) -> pl.DataFrame:
        """The frame of :meth:`recommend`, of columns of item numbers; see there for fork."""
        none = torch.zeros(0, 1)
        numbers = {"score": none, "spread": none} if self.is_generative else {"score": none}
        empty = _lines(np.zeros(0, dtype=np.int64), none.to(torch.int64), numbers)
        whole = {name: np.concatenate([part[name] for part in (empty, *parts)]) for name in empty}
        query, items = whole.pop("query"), whole.pop("item")
        columns = [
            pl.Series("query", query),
            pl.Series("rank", whole.pop("rank")),
            self.catalog.item_ids.gather(items - 1).alias("item_id"),
        ]
        names = self.catalog.names
        if names is not None:
            columns.append(names.gather(items - 1).alias("name"))
        columns += [pl.Series(name, values) for name, values in whole.items()]
        sources = ["popularity" if alone else "model" for alone in by_popularity[query].tolist()]
        columns.append(pl.Series("source", sources, dtype=pl.String))
        columns.append(pl.Series("n_unknown", n_unknown[query]))
        return pl.DataFrame(columns)


def require_augmenter(given: object) -> None:
    """Raises ConfigError unless a fitted augmenter is given, or None."""
    if given is None:
        return
    if not isinstance(given, Augmenter):
        raise ConfigError(f"augmenter must be a fitted augmenter, got {given!r}")
    given.require_fitted()


def require_flag(name: str, value: object) -> None:
    """Raises ConfigError unless the value is True or False; "no" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} must be True or False, got {value!r}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _require_whole(name: str, value: object) -> None:
    if not is_whole(value):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")


def _lines(
    index: Int[np.ndarray, " B"],
    items: Int[Tensor, "B K"],
    numbers: Mapping[str, Float[Tensor, "B K"]],
) -> dict[str, np.ndarray]:
    """Query, rank, item number and further numbers of each item shown, as flat arrays."""
    shown = items > 0
    ranks = torch.arange(1, items.shape[1] + 1, device=items.device).expand_as(items)
    return {
        "query": np.repeat(index, shown.sum(1).cpu().numpy()),
        "rank": ranks[shown].cpu().numpy(),
        "item": items[shown].cpu().numpy(),
        **{name: values[shown].cpu().double().numpy() for name, values in numbers.items()},
    }


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


def scorer_of_readings(
    method: Method,
    scorer: Callable[[Histories], Scorer],
    dataset: SequenceDataset,
    index: Int[np.ndarray, " B"],
) -> Scorer:
    """Scorer of sequences of a dataset, in all their readings.

    Args:
        scorer: of histories that hold at least one item.
    """
    with_times = isinstance(method, Recommender) and method.reads_times
    found = [
        or_popularity(method, scorer, histories_of(part, index, method.max_len, with_times))
        for part in dataset.readings
    ]
    return functools.reduce(mean_of, found)


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

    def require_products(self) -> None:
        if self.combine != "product":
            super().require_products()

    @torch.no_grad()
    def item_index(self, n_sampled: int = 200) -> ItemIndex:
        """An index of the items for approximate lists, see :meth:`recommend`; needs faiss.

        Its recall is measured on histories of one item each, drawn by popularity.

        Raises:
            ConfigError: not fitted, a mixture of states, or faiss is not installed.
        """
        self.require_fitted()
        self.require_products()
        self.eval()
        generator = torch.Generator().manual_seed(0)
        ends = torch.cumsum(self.popularity[1:].cpu() + 1, 0)
        at = torch.randint(int(ends[-1]), (n_sampled,), generator=generator)
        items = torch.searchsorted(ends, at, right=True)[:, None] + 1
        histories = Histories(
            torch.arange(n_sampled), items, torch.ones(n_sampled, dtype=torch.int64)
        )
        states = self.states(histories.to(self.device))[:, 0]
        return ItemIndex.of(self.item_weight(), states)

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

    def at_once(self, batch_size: int) -> int:
        # the scores of a batch are all made before a block of them is looked at
        return max(1, min(batch_size, most_scores(self.device) // self.catalog.vocab_size))

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
