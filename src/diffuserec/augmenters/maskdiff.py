"""MaskDiff: masked discrete diffusion over items fills in what a history lacks, at any place.

This project's own method. A bidirectional transformer is shown a piece of a user's history in
which some items are masked, and gives a distribution over all items at every mask, learned by the
bound of masked diffusion (:mod:`diffuserec.models.diffusion.masking`): items are discrete, so that
nothing is rounded, no item table is frozen and every generated item has a probability. Generating
starts from masks alone and fills in the likeliest ones first, in a few steps.

- Where: in training the masks lie in a span in front, at the end or in the middle of a piece, or in
  all of it. Attention knows the distance of two positions alone, and pieces are cut out of
  histories at random, so that what stands in front of a short piece is known from every place in
  every history of two items or more.
- A mask begins as the mean of the items around it, the nearer the heavier. From a vector that
  says nothing, as in BERT4Rec, the network takes several times as many epochs to learn as much.
  A vector for the distance to the next visible item on either side is added: an attention of
  relative positions alone can't tell how far off all that it sees is.
- What counting knows is not left for the network to learn again. Of each visible item it is counted
  how often every other item stood so near before (or after) it, and the counts n of a mask, each
  by 1 / distance, raise the network's odds e^z:

      p(j) ∝ e^z(j) · (1 + c · n(j))^w,    n(j) = Σ_visible count(visible item, j) / distance,

  with a scale c and, of the mask's state, a weight w that are learned. So the network is at least
  as good as counting from the first epoch on, and learns where counting is wrong. The normalizer
  is that of e^z and a sum over the counted items alone. In training the counts of a user's own
  group (a twentieth of the users) are left out, because they hold the answer.
- A twentieth of the users is held out: they decide when to stop, the temperature that makes the
  probabilities right, and, with ``n_items="auto"``, from which probability on an item is used.

How it was found, and what it does not do: docs/methods/maskdiff.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64
from pydantic import Field, model_validator
from scipy.optimize import isotonic_regression  # type: ignore[attr-defined]  # made at run time
from scipy.sparse import csr_array
from torch import Tensor, nn

from diffuserec import training
from diffuserec.data import PAD, Catalog, Queries, SequenceDataset
from diffuserec.data.batches import length_buckets, padded
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.diffusion import draw_masks
from diffuserec.models.encoders import check_heads, initialize
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.item_matrix import ItemMatrix, pairs_within
from diffuserec.models.items import ItemTable
from diffuserec.models.parts import by_rows
from diffuserec.models.retrieval import log_partition
from diffuserec.models.settings import PrependingSettings, SequenceSettings, puts_some

_GROUPS = 20
"""Groups of users whose own counts are left out together in training."""

_HELD_OUT = 20
"""One user of so many is held out."""

_CHECKS = 256
"""Pieces of held-out users that the bound is measured on."""

_ROUNDING = 1e-4
"""Counts below it are what is left of a difference of equal sums."""

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


class MaskDiff(PrependingAugmenter):
    """Masked discrete diffusion over items, with counted pairs as evidence."""

    class Config(PrependingSettings, SequenceSettings):
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
        n_layers: Annotated[int, Search(1, 3)] = Field(2, ge=1)
        """Layers of the transformer."""
        n_heads: int = Field(2, ge=1)
        """Attention heads; a divisor of dim."""
        window: int = Field(5, ge=0)
        """Positions within which two items count as a pair; 0 counts none and leaves the network
        alone."""
        num_inference_steps: int = Field(1, ge=1)
        """Steps in which the masks are filled in."""
        exclude_seen: bool = True
        """Whether an item that is there already is not generated, own items or generated ones."""
        dropout: Annotated[float, Search(0.1, 0.7)] = Field(0.3, ge=0, lt=1)
        epochs: int = Field(60, ge=1)
        patience: int = Field(6, ge=1)
        """Epochs without a better bound on held-out users before training stops."""

        @model_validator(mode="after")
        def _fits(self) -> Self:
            check_heads(self.dim, self.n_heads)
            if self.n_items != "auto" and not 1 <= self.n_items < self.max_len:
                raise ValueError(
                    f"n_items must be from 1 to max_len - 1 = {self.max_len - 1}, or 'auto', got "
                    f"{self.n_items}"
                )
            return self

    config: Config
    version: ClassVar[int] = 2
    temperature: Tensor
    least_probability: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table = ItemTable(catalog.vocab_size, c.dim, bias=True, n_special=1)
        own = TransformerEncoder.Config(
            n_layers=c.n_layers, n_heads=c.n_heads, position_encoding="relative"
        )
        self.encoder = TransformerEncoder(c.dim, c.max_len, c.dropout, own, causal=False)
        self.trust = nn.Linear(c.dim, 1)  # w, through softplus
        # c: so that a count of one begins to tell against all items that were not counted
        self.log_scale = nn.Parameter(torch.tensor(math.log(max(1, catalog.vocab_size / 20))))
        distances = torch.arange(1 - c.max_len, c.max_len).abs().clamp(min=1)
        self.nearness = nn.Parameter(-distances.log())  # of visible items, by signed distance
        # how far the next visible item is, on either side of a mask; 0: there is none
        self.gaps = nn.ModuleList(nn.Embedding(c.max_len, c.dim) for _ in range(2))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("least_probability", torch.zeros(()))
        self.before = ItemMatrix(catalog.vocab_size)
        self.after = ItemMatrix(catalog.vocab_size)
        self.table.reset_parameters()
        self.encoder.reset_parameters()
        for module in (self.trust, self.gaps):
            module.apply(initialize)

    def learn_to_generate(
        self, train: SequenceDataset, valid: Queries | None, runtime: Runtime
    ) -> list[Epoch]:
        """Counts pairs and trains on users of two items or more; `valid` is not used."""
        c = self.config
        users = np.flatnonzero(train.lengths >= 2)
        order = np.random.Generator(np.random.Philox(key=[runtime.seed, 2**40]))
        users = order.permutation(users)
        held_out, chosen = np.split(users, [len(users) // _HELD_OUT])
        groups = self._count(train.select(chosen))

        def batch_of(pieces: _Pieces, generator: np.random.Generator) -> _Batch:
            masked, weight = draw_masks(
                torch.from_numpy(pieces.region),
                torch.Generator().manual_seed(int(generator.integers(2**62))),
            )
            found = self._evidence(pieces.items, masked.numpy(), groups, pieces.group)
            return _Batch(torch.from_numpy(pieces.items), masked, weight, found)

        def batches(epoch: int) -> Iterator[_Batch]:
            generator = np.random.Generator(np.random.Philox(key=[runtime.seed, epoch]))
            pieces = _Pieces.of(train.select(chosen), c.max_len, generator)
            for index in length_buckets(
                pieces.lengths, c.batch_size, generator, pieces.region.sum(1)
            ):
                yield batch_of(pieces.select(index), generator)

        def loss(batch: _Batch) -> Tensor:
            weight = batch.weight[batch.masked.nonzero()[:, 0]]
            return -(weight * self._log_likelihood(batch)).sum() / weight.sum()

        @torch.no_grad()
        def metric() -> float:
            generator = np.random.Generator(np.random.Philox(key=[runtime.seed, 2**41]))
            shown = np.resize(held_out, max(_CHECKS, len(held_out)))
            pieces = _Pieces.of(train.select(shown), c.max_len, generator, grouped=False)
            total, n = 0.0, 0.0
            for start in range(0, len(shown), _CHECKS):
                part = pieces.select(np.arange(start, min(start + _CHECKS, len(shown))))
                batch = batch_of(part, generator).to(self.device)
                weight = batch.weight[batch.masked.nonzero()[:, 0]]
                total += float((weight * self._log_likelihood(batch)).sum())
                n += float(weight.sum())
            return total / n

        n_batches = math.ceil(len(chosen) / c.batch_size)
        records = training.train(
            self,
            loss,
            batches,
            n_batches=n_batches,
            optimizer=training.adam(c, self.parameters()),
            epochs=c.epochs,
            runtime=runtime,
            data=train,
            validate=metric if len(held_out) else None,
            patience=c.patience,
            rate=c.rate(c.epochs, n_batches),
            max_norm=c.max_norm,
            average_epochs=c.average_epochs,
        )
        self._calibrate(train.select(held_out))
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

    def _states(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], masked: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "P D"]:
        """States at the masks of right-padded items."""
        embedded = self.table.embed(items.masked_fill(masked, self.table.mask_token))
        position = torch.arange(items.shape[1], device=items.device)
        visible = (position < lengths[:, None]) & ~masked
        apart = position[None, :] - position[:, None] + self.config.max_len - 1
        near = self.nearness[apart].exp() * visible[:, None]  # (B, L, L)
        around = torch.bmm(near / near.sum(2, keepdim=True).clamp(min=1e-9), embedded)
        for embed, gap in zip(self.gaps, _gaps(visible, position), strict=True):
            around = around + embed(gap)
        embedded = torch.where(masked[:, :, None], embedded + around, embedded)
        states: Tensor = by_rows(self.encoder, embedded, lengths)[masked]
        return states

    def _log_likelihood(self, batch: "_Batch") -> Float[Tensor, " P"]:
        """Log probability of the item behind each mask."""
        states = self._states(batch.items, (batch.items > 0).sum(1), batch.masked)
        target, table = batch.items[batch.masked], self.table.weight()
        wide, found = self.table.states(states), batch.found
        normalizer = log_partition(wide, table)
        log_q = (wide * table[target]).sum(1) - normalizer
        if not self.config.window:
            return log_q
        gain = self._gain(states, found)
        n = len(log_q)
        raised = log_q.new_zeros(n).index_add(
            0, found.mask, gain * (found.item == target[found.mask])
        )
        # what the counted items add to the normalizer, as a share of it
        q = ((wide[found.mask] * table[found.item]).sum(1) - normalizer[found.mask]).exp()
        added = log_q.new_zeros(n).index_add(0, found.mask, q * torch.expm1(gain))
        return log_q + raised - torch.log1p(added)

    def _gain(self, states: Float[Tensor, "P D"], found: "_Found") -> Float[Tensor, " N"]:
        """Log of the factor by which counts raise the odds of the items that they found."""
        trust = F.softplus(self.trust(states)[:, 0])
        return trust[found.mask] * torch.log1p(found.n * self.log_scale.exp())

    def _count(self, train: SequenceDataset) -> csr_array:
        """Counts the pairs of all users; returns those of each group, for :meth:`_evidence`.

        Row (side · groups + group) · V + item has an item's counts of the items before it (side
        0) or after it.
        """
        size = train.vocab_size
        owner, later, earlier, weight = pairs_within(train, self.config.window)
        counts = csr_array((weight, (later, earlier)), shape=(size, size))
        self.before.set(counts)
        self.after.set(counts.T.tocsr())
        group = owner % _GROUPS
        rows = np.concatenate([group * size + later, (group + _GROUPS) * size + earlier])
        columns = np.concatenate([earlier, later])
        return csr_array((np.tile(weight, 2), (rows, columns)), shape=(2 * _GROUPS * size, size))

    def _evidence(
        self,
        items: Int64[np.ndarray, "B L"],
        masked: Bool[np.ndarray, "B L"],
        groups: csr_array | None = None,
        group: Int64[np.ndarray, " B"] | None = None,
        count_before: bool = True,
    ) -> "_Found":
        """Counts of all items at each mask, from the visible items; a user's own group left out."""
        visible = (items > 0) & ~masked
        row, mask, seen = np.nonzero(masked[:, :, None] & visible[:, None])
        if not count_before:
            row, mask, seen = (part[seen > mask] for part in (row, mask, seen))
        number = (np.cumsum(masked).reshape(masked.shape) - 1)[row, mask]
        reach, item = (1 / np.abs(seen - mask)).astype(np.float32), items[row, seen]
        n, size, later = int(masked.sum()), len(self.popularity), seen > mask
        total = csr_array((n, size), dtype=np.float32)
        for which, matrix in ((later, self.before), (~later, self.after)):
            cells = (reach[which], (number[which], item[which]))
            total = total + matrix.sums(csr_array(cells, shape=(n, size)))
        if groups is not None and group is not None:
            of_row = group[row]
            left_out = of_row >= 0
            rows = (of_row + _GROUPS * ~later) * size + item
            cells = (reach[left_out], (number[left_out], rows[left_out]))
            total = total - csr_array(cells, shape=(n, groups.shape[0])) @ groups
        found = total.tocoo()
        kept = found.data > _ROUNDING
        masks, counted = (torch.from_numpy(part[kept].astype(np.int64)) for part in found.coords)
        return _Found(masks, counted, torch.from_numpy(found.data[kept].astype(np.float32)))

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
        """Distribution over all items at every mask, tempered."""
        states = self._states(items, lengths, masked)
        logits = self.table.states(states) @ self.table.weight().T
        logits[:, PAD] = -torch.inf
        if self.config.window:
            real = items.masked_fill(masked, PAD).cpu().numpy()
            found = self._evidence(real, masked.cpu().numpy(), count_before=count_before)
            found = found.to(items.device)
            logits.index_put_((found.mask, found.item), self._gain(states, found), accumulate=True)
        owner = masked.nonzero()[:, 0]
        if self.config.exclude_seen:
            seen = torch.zeros(len(items), logits.shape[1], dtype=torch.bool, device=items.device)
            seen.scatter_(1, items.masked_fill(masked, PAD), True)
            some_left = ~seen.all(1, keepdim=True)
            logits.masked_fill_((seen & some_left)[owner], -torch.inf)
        return torch.softmax(logits / self.temperature, dim=1)

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


def _gaps(
    visible: Bool[Tensor, "B L"], position: Int[Tensor, " L"]
) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Distance of each position to the nearest visible one before it and after it; 0 if none is."""
    length = len(position)
    before = torch.where(visible, position, -1).cummax(dim=1).values
    later = torch.where(visible, position, length).flip(1).cummin(dim=1).values.flip(1)
    return (
        torch.where(before < 0, 0, position - before),
        torch.where(later == length, 0, later - position),
    )


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Pieces of histories, which part of each may be masked, and the groups of their users."""

    items: Int64[np.ndarray, "B L"]
    region: Bool[np.ndarray, "B L"]
    group: Int64[np.ndarray, " B"]

    @property
    def lengths(self) -> Int64[np.ndarray, " B"]:
        lengths: np.ndarray = (self.items > 0).sum(1)
        return lengths

    def select(self, index: Int64[np.ndarray, " S"]) -> "_Pieces":
        """Some of the pieces, no wider than they need."""
        width = int((self.items[index] > 0).sum(1).max())
        return _Pieces(self.items[index, :width], self.region[index, :width], self.group[index])

    @staticmethod
    def of(
        dataset: SequenceDataset,
        max_len: int,
        generator: np.random.Generator,
        grouped: bool = True,
    ) -> "_Pieces":
        """A random piece of each sequence: of two items or more, from anywhere in it.

        The span that may be masked is all of it, or in front of, behind or between what is seen.
        """
        lengths = generator.integers(2, np.minimum(dataset.lengths, max_len) + 1)
        starts = dataset.starts + generator.integers(0, dataset.lengths - lengths + 1)
        items = padded(dataset.log.items, starts, starts + lengths)
        kind = generator.random(len(lengths))
        width = np.where(kind < 0.2, lengths, generator.integers(1, lengths))
        last = lengths - width
        first = np.where(kind < 0.6, 0, np.where(kind < 0.8, last, generator.integers(0, last + 1)))
        column = np.arange(items.shape[1])
        region = (column >= first[:, None]) & (column < (first + width)[:, None])
        group = np.arange(len(dataset)) % _GROUPS if grouped else np.full(len(dataset), -1)
        return _Pieces(items, region, group)


class _Found(NamedTuple):
    """Items that were counted near what is visible around the masks.

    Attributes:
        mask: number of the mask, shape (N,).
        item: number of the item.
        n: its count there.
    """

    mask: Tensor
    item: Tensor
    n: Tensor

    def to(self, device: torch.device) -> "_Found":
        return _Found(*(part.to(device) for part in self))


class _Batch(NamedTuple):
    items: Tensor
    masked: Tensor
    weight: Tensor
    found: _Found

    def to(self, device: torch.device) -> "_Batch":
        items, masked, weight, found = self
        return _Batch(items.to(device), masked.to(device), weight.to(device), found.to(device))
