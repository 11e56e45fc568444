"""BlockDiffRec: masked discrete diffusion over blocks of next items.

This project's own: block diffusion, after a history, by the loss of masked diffusion over items
(:mod:`diffuserec.models.diffusion.masking`). It is MaskDiffRec's task at a causal transformer's
price: MaskDiffRec reads a history anew for the few items behind it that are masked; here a history
is read once, each item seeing those before it, and what is masked stands beside it.

In training a user's items are cut into blocks of 1 to ``next_items`` at random, and some items of
each are masked. A block sees the items before it, and its own that are not masked. The numbers of
masks are drawn so that every mask counts alike, and the loss is that of the next item: the mean
over all masks. A mask begins as the item nearest before it that is seen, and a vector for how far
that is. All items are ranked by the state of one mask behind the history.

With ``next_items=1`` every block is one mask: no diffusion, but SASRec that is asked for the next
item by another token than the newest one.

Source: Arriola et al., "Block Diffusion: Interpolating Between Autoregressive and Diffusion
Language Models", ICLR 2025 (arXiv 2503.09573): the blocks, and both streams in one pass.
"""

from dataclasses import replace
from typing import Annotated, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.data.batches import ONE_TARGET
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.diffusion import draw_masks_alike
from diffuserec.models.encoders import ENCODERS, following, initialize
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.parts import by_rows
from diffuserec.models.settings import NextItemSettings, PlainSettings
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class BlockDiffRec(EncoderRecommender):
    """A causal transformer, beside which blocks of next items are masked in part."""

    class Config(PlainSettings, NextItemSettings):
        """Hyper-parameters of BlockDiffRec."""

        next_items: int = Field(3, ge=1)
        """Items of a block, at most."""
        learning_rate: Annotated[float, Search(2e-4, 5e-3, log=True)] = Field(2e-3, gt=0)

        @model_validator(mode="after")
        def _reads_blocks(self) -> Self:
            if self.examples in ONE_TARGET:
                raise ValueError(
                    f"examples {self.examples!r} have one target each and leave no blocks: "
                    "'per_user', 'windows' or 'whole_prefixes'"
                )
            if not issubclass(ENCODERS.find(self.encoder), TransformerEncoder):
                raise ValueError(
                    f"encoder {self.encoder!r} reads no blocks beside a history: 'transformer' does"
                )
            if self.position_encoding == "from_newest":
                raise ValueError(
                    "position_encoding 'from_newest' has no blocks beside a history: an item would "
                    "have another place for each"
                )
            return self

    config: Config
    encoder: TransformerEncoder

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, encoder = c.build_encoder(catalog.vocab_size, extra_positions=1)
        assert isinstance(encoder, TransformerEncoder)
        self.encoder = encoder
        self.gaps = nn.Embedding(c.next_items, c.dim)  # to the item seen before: 1 to next_items
        initialize(self.gaps, c.init_std)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        of_masks = next_item_loss(self.config, train)

        def loss(batch: Batch) -> Tensor:
            blocks = draw_blocks(batch.items, batch.targets, self.config.next_items)
            states = by_rows(self._block_states, batch.items, *blocks)
            targets = batch.targets.masked_fill(~blocks.masked, 0)
            masked = replace(batch, targets=targets)
            return of_masks(masked, self.table.states(states), self.table)

        return train_next_item(self, loss, train, valid, runtime)

    def _block_states(
        self,
        items: Int[Tensor, "B L"],
        slots: Int[Tensor, "B L"],
        n_before: Int[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L D"]:
        """States of the blocks' items, which stand one position later than the history's."""
        embedded = self.table.embed(torch.cat([items[:, :1], slots], dim=1))
        place = torch.arange(1, items.shape[1] + 1, device=items.device).expand_as(items)
        shown = place.masked_fill(masked, 0).cummax(1).values  # the newest place that is not masked
        shown = torch.maximum(F.pad(shown[:, :-1], (1, 0)), n_before - 1).clamp(min=0)
        nearest = embedded.gather(1, shown[:, :, None].expand(-1, -1, embedded.shape[2]))
        gap = (place - shown - 1).clamp(max=self.config.next_items - 1)
        asked = torch.where(masked[:, :, None], nearest + self.gaps(gap), embedded[:, 1:])
        return self.encoder.blocks_beside(embedded[:, :-1], asked, n_before, place)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B 1 D"]:
        newest = histories.truncate(self.config.max_len)
        embedded = self.table.embed(newest.items)
        at = newest.lengths[:, None, None].expand(-1, 1, embedded.shape[2])
        mask = embedded.gather(1, (at - 1).clamp(min=0)) + self.gaps.weight[0]
        asked = F.pad(embedded, (0, 0, 0, 1)).scatter(1, at, mask)
        states = by_rows(self.encoder.newest, asked, newest.lengths + 1)
        return self.table.states(states)[:, None]


class Blocks(NamedTuple):
    """Next items in blocks, one for each position of a history: the item that follows it.

    Attributes:
        slots: the items, 0 where none follows.
        n_before: items of the history before each one's block, which it sees; 0 where none follows.
        masked: those to be filled in.
    """

    slots: Int[Tensor, "B L"]
    n_before: Int[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]


def draw_blocks(items: Int[Tensor, "B L"], targets: Int[Tensor, "B L"], most: int) -> Blocks:
    """Cuts what follows the positions of histories into random blocks, and masks a part of each.

    Args:
        items: right-padded.
        targets: what follows each position if it is to be learned, else 0.
        most: items of a block, at most; every number up to it is as likely.
    """
    n_rows, length = items.shape
    device = items.device
    slots = torch.where(following(items) > 0, following(items), targets)
    sizes = torch.randint(1, most + 1, items.shape, device=device)
    ends = sizes.cumsum(1)
    position = torch.arange(length, device=device).expand(n_rows, -1).contiguous()
    block = torch.searchsorted(ends, position, right=True)
    start = (ends - sizes).gather(1, block)
    row = torch.arange(n_rows, device=device)[:, None]
    region = torch.zeros(n_rows, length, most, dtype=torch.bool, device=device)
    region[row, block, position - start] = targets > 0
    masked, _ = draw_masks_alike(region.flatten(0, 1))
    return Blocks(
        slots,
        (start + 1).masked_fill(slots == 0, 0),
        masked.view_as(region)[row, block, position - start],
    )
