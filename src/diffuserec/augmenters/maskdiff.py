"""MaskDiff: masked discrete diffusion over items fills in what a history lacks, at any place.

This project's own method. The network and its bound are those of
:mod:`diffuserec.models.masked_items`: no item table is frozen and every generated item has a
probability. Generating starts from masks alone and fills in the likeliest ones first, in a few
steps.

- Where: in training the masks lie in a span in front, at the end or in the middle of a piece, or in
  all of it. Attention knows the distance of two positions alone, and pieces are cut out of
  histories at random, so that what stands in front of a short piece is known from every place in
  every history of two items or more.
- A twentieth of the users is held out: they decide when to stop, the temperature that makes the
  probabilities right, and, with ``n_items="auto"``, from which probability on an item is used.

How it was found, and what it does not do: docs/methods/maskdiff.md.
"""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.data import PAD, Catalog, Queries, SequenceDataset
from diffuserec.data.batches import padded
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.masked_items import MaskedItems, MaskedItemsSettings
from diffuserec.models.settings import PrependingSettings, puts_some
from diffuserec.training import train_on_masks

_MOST = 10
"""Items that n_items="auto" puts in front of a history at most."""

_NONE = 2.0
"""A least probability that no item has."""

_TEMPERATURES = np.geomspace(0.25, 4, 33)
"""Those that are tried."""

_EXPECTED = 10
"""Items after a history whose probabilities are told."""

_CALIBRATED = 2**24
"""Probabilities of held-out users at most that the temperature is fitted on."""

_AT_ONCE = 2**22
"""Probabilities held at once: positions times items."""


class MaskDiff(MaskedItems, PrependingAugmenter):
    """Masked discrete diffusion over items, with counted pairs as evidence."""

    class Config(PrependingSettings, MaskedItemsSettings):
        """Hyper-parameters of MaskDiff."""

        gives_probabilities: ClassVar[bool] = True
        writes_inside: ClassVar[bool] = True

        n_items: Annotated[int | Literal["auto"], Search(1, 15)] = Field(10)  # type: ignore[assignment]
        """M, the items put in front of a history; ``auto`` chooses them for each by their
        probability: at most 10, perhaps none."""
        precision: Annotated[float, OnlyIf(n_items="auto")] = Field(0.3, gt=0, lt=1)
        """Least chance, as measured on held-out users, of an item that is used to be right: to be
        one of those that stood there."""
        use_threshold: Annotated[float, OnlyIf(puts_items=puts_some), Search(0.0, 0.5)] = Field(
            0.0, ge=0, lt=1
        )
        use_soft: Annotated[float, Search(0.0, 0.5)] = Field(0.0, ge=0, lt=1)
        num_inference_steps: int = Field(1, ge=1)
        """Steps in which the masks are filled in."""
        exclude_seen: bool = True
        """Whether an item that is there already is not generated, own items or generated ones."""

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.n_items != "auto" and not 1 <= self.n_items < self.max_len:
                raise ValueError(
                    f"n_items must be from 1 to max_len - 1 = {self.max_len - 1}, or 'auto', got "
                    f"{self.n_items}"
                )
            return self

    config: Config
    version: ClassVar[int] = 2
    least_probability: Tensor

    def build(self, catalog: Catalog) -> None:
        self.build_network(catalog)
        self.register_buffer("least_probability", torch.zeros(()))

    def learn_to_generate(
        self, train: SequenceDataset, valid: Queries | None, runtime: Runtime
    ) -> list[Epoch]:
        """Counts pairs and trains on users of two items or more; `valid` is not used."""
        records, held_out = train_on_masks(self, train, runtime)
        self._calibrate(held_out)
        return records

    @property
    def n_generated(self) -> int:
        """M, the items generated for a history; with ``auto`` not all of them are used."""
        return _MOST if self.config.n_items == "auto" else self.config.n_items

    @torch.no_grad()
    def _calibrate(self, held_out: SequenceDataset) -> None:
        """Finds the temperature, and the least probability of an item that is used.

        The first items of held-out users are hidden: as many as half of the users have, and at most
        those that are generated.
        """
        c, shown = self.config, self.config.n_condition
        self.least_probability.fill_(c.precision if c.n_items == "auto" else 0.0)
        if not len(held_out):
            return
        n = int(np.clip(np.median(held_out.lengths) - shown, 1, self.n_generated))
        chosen = np.flatnonzero(held_out.lengths >= n + shown)
        chosen = chosen[: max(1, _CALIBRATED // (n * len(self.popularity)))]
        if not len(chosen):
            return
        starts = held_out.starts[chosen]
        first = held_out.log.items[starts[:, None] + np.arange(n)].astype(np.int64)
        after = held_out.view(starts + n, starts + n + shown, chosen)
        items = torch.from_numpy(
            np.pad(padded(after.log.items, after.starts, after.ends), ((0, 0), (n, 0)))
        )
        masked = torch.zeros(items.shape, dtype=torch.bool)
        masked[:, :n] = True
        lengths = torch.full((len(items),), n + shown)
        items, lengths, masked = (part.to(self.device) for part in (items, lengths, masked))
        log_p = self._probabilities(items, lengths, masked).log()
        truth = torch.from_numpy(first).to(self.device).view(-1, 1)
        # not on top: scipy.optimize takes long to load, and few programs fit
        from scipy.optimize import isotonic_regression  # type: ignore[attr-defined]

        possible = log_p.gather(1, truth)[:, 0] > -torch.inf
        if bool(possible.any()):
            losses = [
                -torch.log_softmax(log_p[possible] / t, dim=1).gather(1, truth[possible]).mean()
                for t in _TEMPERATURES
            ]
            self.temperature.fill_(float(_TEMPERATURES[int(torch.stack(losses).argmin())]))
        made = self.insert(after, np.zeros(len(after), dtype=np.int64), n)
        right = (made.items[:, :, None] == first[:, None]).any(2).reshape(-1)
        chance = made.probability.reshape(-1)
        order = np.argsort(chance, kind="stable")
        share = isotonic_regression(right[order].astype(float)).x  # rises with the probability
        good = np.flatnonzero(share >= c.precision)
        least = float(chance[order[good[0]]]) if len(good) else _NONE
        if c.n_items == "auto":
            self.least_probability.fill_(least)

    @torch.no_grad()
    def insert(
        self,
        dataset: SequenceDataset,
        at: Int64[np.ndarray, " S"],
        n: int,
        count_before: bool = True,
        distinct: bool = False,
    ) -> "Inserted":
        """n items for each sequence that could stand before its item number `at`, from 0.

        `at` = 0 is in front, and the length of a sequence is its end. What is looked at are the
        max_len - n items around that place.

        Args:
            count_before: whether the counts of what stood after the items before that place are
                evidence. For a history that was learned from they hold what came next in it.
            distinct: no item is generated twice, also where those that are there may come again.

        Raises:
            ConfigError: more items than the network has places for.
            DataError: a place outside its sequence, or a dataset of another catalog.
        """
        c = self.config
        self.require_fitted()
        if not 1 <= n < c.max_len:
            raise ConfigError(f"n must be from 1 to max_len - 1 = {c.max_len - 1}, got {n}")
        if dataset.vocab_size != self.catalog.vocab_size:
            raise DataError(
                f"this MaskDiff knows {self.catalog.n_items} items and the dataset has "
                f"{dataset.catalog.n_items}: fit one on this data"
            )
        outside = np.flatnonzero((at < 0) | (at > dataset.lengths))
        if len(outside):
            where = int(outside[0])
            raise DataError(
                f"sequence {where} has {dataset.lengths[where]} items, and others are to stand "
                f"before number {at[where]}: give it a place from 0 to {dataset.lengths[where]}"
            )
        items = np.zeros((len(dataset), n), dtype=np.int32)
        probability = np.zeros((len(dataset), n), dtype=np.float32)
        for part, whole, masked, lengths in self._with_masks(dataset, at, n):
            found = self._fill(whole, masked, lengths, count_before, distinct)
            items[part], probability[part] = (tensor.cpu().numpy() for tensor in found)
        return Inserted(items, probability)

    @torch.no_grad()
    def expected(
        self, histories: SequenceDataset
    ) -> tuple[Int32[np.ndarray, "S N"], Float32[np.ndarray, "S N"]]:
        k = min(_EXPECTED, self.catalog.n_items)
        items = np.zeros((len(histories), k), dtype=np.int32)
        probability = np.zeros((len(histories), k), dtype=np.float32)
        for part, *holes in self._with_masks(histories, histories.lengths, 1):
            whole, masked, lengths = (torch.from_numpy(h).to(self.device) for h in holes)
            best = self._probabilities(whole, lengths, masked).topk(k, dim=1)
            items[part], probability[part] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        return items, probability

    def _with_masks(
        self, dataset: SequenceDataset, at: Int64[np.ndarray, " S"], n: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Batches of sequences with n masks before item number `at` of each.

        Yields:
            Their indices; items around that place, with room for the masks; where these are; and
            the lengths with them.
        """
        self.eval()
        lengths = np.minimum(dataset.lengths, self.config.max_len - n)
        first = np.clip(at - (self.config.max_len - n) // 2, 0, dataset.lengths - lengths)
        starts = dataset.starts + first
        order = np.argsort(lengths, kind="stable")
        size = max(1, _AT_ONCE // (n * len(self.popularity)))
        for begin in range(0, len(order), size):
            part = order[begin : begin + size]
            shown = padded(dataset.log.items, starts[part], starts[part] + lengths[part])
            place = (at - first)[part, None]
            column = np.arange(shown.shape[1] + n)
            masked = (column >= place) & (column < place + n)
            whole = np.zeros(masked.shape, dtype=np.int64)
            whole[~masked] = shown.reshape(-1)
            yield part, whole, masked, lengths[part] + n

    def _fill(
        self,
        whole: Int64[np.ndarray, "B L"],
        masked: Bool[np.ndarray, "B L"],
        lengths: Int64[np.ndarray, " B"],
        count_before: bool = True,
        distinct: bool = False,
    ) -> tuple[Int64[Tensor, "B M"], Float[Tensor, "B M"]]:
        """Items for the masks, equally many in each row, the likeliest first, and their chances."""
        items, free = torch.from_numpy(whole).to(self.device), torch.from_numpy(masked.copy())
        free, ends = free.to(self.device), torch.from_numpy(lengths).to(self.device)
        holes, distinct = free, distinct or self.config.exclude_seen
        row = torch.arange(len(items), device=items.device)
        chance = torch.zeros(items.shape, device=items.device)
        steps = min(self.config.num_inference_steps, int(masked[0].sum()))
        for left in range(steps, 0, -1):
            n_free = int(free[0].sum())
            p = self._probabilities(items, ends, free, count_before).view(len(items), n_free, -1)
            expected = p.sum(1)  # how many of the masks hold each item
            if distinct:
                expected.scatter_(1, items.masked_fill(~holes, PAD), -1)
            expected[:, PAD] = -torch.inf  # whatever else is used up
            for _ in range(math.ceil(n_free / left)):
                likely, best = expected.max(1)
                holders = p.gather(2, best[:, None, None].expand(-1, n_free, 1))[:, :, 0]
                columns = free.nonzero()[:, 1].view(len(items), n_free)
                taken = items.gather(1, columns) > 0
                slot = holders.masked_fill(taken, -1).argmax(1)
                at = columns[row, slot]
                items[row, at], chance[row, at] = best, likely.clamp(0, 1)
                if distinct:
                    expected[row, best] = -1
                else:  # whether it comes again is for the other masks to say
                    expected[row, best] -= holders[row, slot]
            free = free & (items == PAD)
        return items[holes].view(len(items), -1), chance[holes].view(len(items), -1)

    def _probabilities(
        self,
        items: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
        masked: Bool[Tensor, "B L"],
        count_before: bool = True,
    ) -> Float[Tensor, "P V"]:
        """Distribution over all items at every mask."""
        logits = self.logits(items, lengths, masked, count_before)
        if self.config.exclude_seen:
            owner = masked.nonzero()[:, 0]
            seen = torch.zeros(len(items), logits.shape[1], dtype=torch.bool, device=items.device)
            seen.scatter_(1, items.masked_fill(masked, PAD), True)
            some_left = ~seen.all(1, keepdim=True)
            logits.masked_fill_((seen & some_left)[owner], -torch.inf)
        return torch.softmax(logits, dim=1)

    def generate(self, conditions: SequenceDataset, seed: int) -> Int32[np.ndarray, "S M"]:
        """M items, oldest first, that could have come before each of these sequences."""
        return self.likely(conditions, seed)[0]

    def likely(
        self, conditions: SequenceDataset, seed: int, before: int = 0
    ) -> tuple[Int32[np.ndarray, "S M"], Float32[np.ndarray, "S M"]]:
        at = np.full(len(conditions), before)
        made = self.insert(conditions, at, self.n_generated, count_before=False)
        used = np.where(made.probability >= float(self.least_probability), made.items, PAD)
        return used, made.probability


class Inserted(NamedTuple):
    """Generated items.

    Attributes:
        items: as they stand there, oldest first, shape (S, M).
        probability: that an item is one of the M that stood there, shape (S, M).
    """

    items: Int32[np.ndarray, "S M"]
    probability: Float32[np.ndarray, "S M"]
