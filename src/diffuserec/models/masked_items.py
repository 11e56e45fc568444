"""Masked discrete diffusion over the items of histories: the network, and what it is trained on.

A bidirectional transformer is shown a piece of a user's history in which some items are masked, and
gives a distribution over all items at every mask, learned by the bound of masked diffusion
(:mod:`diffuserec.models.diffusion.masking`): items are discrete, so that nothing is rounded and
every item has a probability.

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
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from pydantic import Field, model_validator
from scipy.sparse import csr_array
from torch import Tensor, nn

from diffuserec.data import PAD, Catalog, SequenceDataset
from diffuserec.data.batches import padded
from diffuserec.data.dataset import offsets_of
from diffuserec.models.base import Method
from diffuserec.models.config import Search
from diffuserec.models.encoders import check_heads, initialize
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.item_matrix import ItemMatrix, pairs_within
from diffuserec.models.items import ItemTable
from diffuserec.models.parts import by_rows
from diffuserec.models.retrieval import Raised, log_prob
from diffuserec.models.settings import SequenceSettings

GROUPS = 20
"""Groups of users whose own counts are left out together in training."""

EXAMPLE_EVERY = 3
"""An epoch draws ⌈n / 3⌉ examples from a history with n next items, so that users weigh by what
they chose, as they do in methods that train on all positions."""

_CUT_AT_ONCE = 4096
"""Pieces that are cut out together where they are counted alone."""

_ROUNDING = 1e-4
"""Counts below it are what is left of a difference of equal sums."""


class MaskedItemsSettings(SequenceSettings):
    """Hyper-parameters of masked diffusion over items."""

    n_layers: Annotated[int, Search(1, 3)] = Field(2, ge=1)
    """Layers of the transformer."""
    n_heads: int = Field(2, ge=1)
    """Attention heads; a divisor of dim."""
    window: int = Field(5, ge=0)
    """Positions within which two items count as a pair; 0 counts none and leaves the network
    alone."""
    dropout: Annotated[float, Search(0.1, 0.7)] = Field(0.3, ge=0, lt=1)
    epochs: int = Field(60, ge=1)
    patience: int = Field(6, ge=1)
    """Epochs without a better bound on held-out users before training stops."""

    @property
    def heeds_use(self) -> bool:
        return False

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.dim, self.n_heads)
        return self


class MaskedItems(Method):
    """Base of the methods that fill in masked items.

    Attributes:
        temperature: what the logits are divided by; 1 until it is chosen.
    """

    config: MaskedItemsSettings
    temperature: Tensor

    def build_network(self, catalog: Catalog) -> None:
        """Makes the network, and room for the counts."""
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
        self.before = ItemMatrix(catalog.vocab_size)
        self.after = ItemMatrix(catalog.vocab_size)
        self.table.reset_parameters()
        self.encoder.reset_parameters()
        for module in (self.trust, self.gaps):
            module.apply(initialize)

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

    def log_likelihood(self, batch: "MaskedBatch") -> Float[Tensor, " P"]:
        """Log probability of the item behind each mask."""
        states = self._states(batch.items, (batch.items > 0).sum(1), batch.masked)
        found, raised = batch.found, None
        if self.config.window:
            raised = Raised(found.mask, found.item, self._gain(states, found))
        target = batch.items[batch.masked]
        return log_prob(self.table.states(states), self.table.weight(), target, raised)

    def _gain(self, states: Float[Tensor, "P D"], found: "CountedItems") -> Float[Tensor, " N"]:
        """Log of the factor by which counts raise the odds of the items that they found."""
        trust = F.softplus(self.trust(states)[:, 0])
        return trust[found.mask] * torch.log1p(found.n * self.log_scale.exp())

    def count_pairs(self, train: SequenceDataset) -> csr_array:
        """Counts the pairs of all users; returns those of each group, for :meth:`counted_items`.

        Row (side · groups + group) · V + item has an item's counts of the items before it (side
        0) or after it.
        """
        size = train.vocab_size
        owner, later, earlier, weight = pairs_within(train, self.config.window)
        counts = csr_array((weight, (later, earlier)), shape=(size, size))
        self.before.set(counts)
        self.after.set(counts.T.tocsr())
        group = _groups(train)[owner]
        rows = np.concatenate([group * size + later, (group + GROUPS) * size + earlier])
        columns = np.concatenate([earlier, later])
        return csr_array((np.tile(weight, 2), (rows, columns)), shape=(2 * GROUPS * size, size))

    def counted_items(
        self,
        items: Int64[np.ndarray, "B L"],
        masked: Bool[np.ndarray, "B L"],
        groups: csr_array | None = None,
        group: Int64[np.ndarray, " B"] | None = None,
        count_before: bool = True,
    ) -> "CountedItems":
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
            rows = (of_row + GROUPS * ~later) * size + item
            cells = (reach[left_out], (number[left_out], rows[left_out]))
            total = total - csr_array(cells, shape=(n, groups.shape[0])) @ groups
        found = total.tocoo()
        kept = found.data > _ROUNDING
        masks, counted = (torch.from_numpy(part[kept].astype(np.int64)) for part in found.coords)
        return CountedItems(masks, counted, torch.from_numpy(found.data[kept].astype(np.float32)))

    def logits(
        self,
        items: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
        masked: Bool[Tensor, "B L"],
        count_before: bool = True,
    ) -> Float[Tensor, "P V"]:
        """Scores of all items at every mask, whose softmax is their distribution.

        Args:
            items: right-padded; what stands at a mask is not looked at.
            lengths: with the masks.
            count_before: whether the counts of what stood after the items before a mask are
                evidence.
        """
        states = self._states(items, lengths, masked)
        logits = self.table.states(states) @ self.table.weight().T
        logits[:, PAD] = -torch.inf
        if self.config.window:
            real = items.masked_fill(masked, PAD).cpu().numpy()
            found = self.counted_items(real, masked.cpu().numpy(), count_before=count_before)
            found = found.to(items.device)
            logits.index_put_((found.mask, found.item), self._gain(states, found), accumulate=True)
        return logits / self.temperature


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
class Pieces:
    """Pieces of histories, which are cut out a batch at a time.

    Attributes:
        dataset: of the histories.
        starts: where each piece begins among the dataset's items, shape (B,).
        lengths: of the pieces.
        first: number of the first of a piece's items that may be masked.
        width: how many after each other may be.
        group: of the users.
        never: arrays over the dataset's items: those that are masked in no case.
    """

    dataset: SequenceDataset
    starts: Int64[np.ndarray, " B"]
    lengths: Int64[np.ndarray, " B"]
    first: Int64[np.ndarray, " B"]
    width: Int64[np.ndarray, " B"]
    group: Int64[np.ndarray, " B"]
    never: tuple[Bool[np.ndarray, " N"], ...] = ()

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, index: Int64[np.ndarray, " S"]) -> "Pieces":
        names = ("starts", "lengths", "first", "width", "group")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def cut(self) -> tuple[Int64[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
        """The items of the pieces, right-padded, and which of them may be masked."""
        ends = self.starts + self.lengths
        items = padded(self.dataset.log.items, self.starts, ends)
        after = np.arange(items.shape[1]) - self.first[:, None]
        region = (after >= 0) & (after < self.width[:, None])
        for never in self.never:
            region &= ~padded(never, self.starts, ends).astype(bool)
        return items, region

    def n_maskable(self) -> Int64[np.ndarray, " B"]:
        """How many items of each piece may be masked."""
        if not self.never:
            return self.width
        starts = range(0, len(self), _CUT_AT_ONCE)
        parts = [np.arange(start, min(start + _CUT_AT_ONCE, len(self))) for start in starts]
        counts = [self.select(part).cut()[1].sum(1) for part in parts]
        found: np.ndarray = np.concatenate([*counts, np.empty(0, dtype=np.int64)])
        return found

    @classmethod
    def of(cls, dataset: SequenceDataset, max_len: int, generator: np.random.Generator) -> "Pieces":
        """A random piece of each sequence: of two items or more, from anywhere in it.

        The span that may be masked is all of it, or in front of, behind or between what is seen.
        """
        lengths = generator.integers(2, np.minimum(dataset.lengths, max_len) + 1)
        starts = dataset.starts + generator.integers(0, dataset.lengths - lengths + 1)
        kind = generator.random(len(lengths))
        width = np.where(kind < 0.2, lengths, generator.integers(1, lengths))
        last = lengths - width
        first = np.where(kind < 0.6, 0, np.where(kind < 0.8, last, generator.integers(0, last + 1)))
        return cls(dataset, starts, lengths, first, width, _groups(dataset))

    @classmethod
    def endings(
        cls, dataset: SequenceDataset, max_len: int, generator: np.random.Generator, most: int
    ) -> "Pieces":
        """The newest items of each sequence up to a random one; the last of them may be masked.

        A sequence gives one for every :data:`EXAMPLE_EVERY` of its next items, or fewer.

        Args:
            dataset: of sequences with a next item, see :func:`next_items`.
            most: items that may be masked in a piece, at most; one at least is not.
        """
        possible = next_items(dataset)
        before = offsets_of(possible)[dataset.offsets]
        n_targets = np.diff(before)
        index = np.repeat(np.arange(len(dataset)), -(-n_targets // EXAMPLE_EVERY))
        chosen = np.flatnonzero(possible)[before[index] + generator.integers(0, n_targets[index])]
        ends = chosen - dataset.offsets[index] + 1
        lengths = np.minimum(ends, max_len)
        width = np.minimum(generator.integers(1, most + 1, len(ends)), lengths - 1)
        starts = dataset.starts[index] + ends - lengths
        group = _groups(dataset)[index]
        never = tuple(dataset.log.non_targets)
        return cls(dataset, starts, lengths, lengths - width, width, group, never)


def _groups(dataset: SequenceDataset) -> Int64[np.ndarray, " B"]:
    """Group of each sequence; those of one user, such as copies, are in one group."""
    _, first, number = np.unique(dataset.users, return_index=True, return_inverse=True)
    found: np.ndarray = first[number] % GROUPS
    return found


def next_items(dataset: SequenceDataset) -> Bool[np.ndarray, " N"]:
    """Which of a dataset's items are targets that something stands before."""
    possible = ~dataset.synthetic
    if dataset.context_only is not None:
        possible &= ~dataset.context_only
    possible[dataset.offsets[:-1][dataset.lengths > 0]] = False
    return possible


class CountedItems(NamedTuple):
    """Items that were counted near what is visible around the masks.

    Attributes:
        mask: number of the mask, shape (N,).
        item: number of the item.
        n: its count there.
    """

    mask: Tensor
    item: Tensor
    n: Tensor

    def to(self, device: torch.device) -> "CountedItems":
        return CountedItems(*(part.to(device) for part in self))


class MaskedBatch(NamedTuple):
    items: Tensor
    masked: Tensor
    weight: Tensor
    found: CountedItems

    def to(self, device: torch.device) -> "MaskedBatch":
        items, masked, weight, found = self
        return MaskedBatch(items.to(device), masked.to(device), weight.to(device), found.to(device))
