"""BlockDiffRec: masked discrete diffusion over blocks of next items.

This project's own: block diffusion behind a history, with the loss of masked diffusion over items
(:mod:`diffuserec.models.diffusion.masking`). Like MaskDiffRec it fills in the next few items given
those of them that are there, but it has no counts, and it reads a history once for all of its
items, each of which sees those before it alone; MaskDiffRec reads a history, in which every item
sees all others, again for every few items behind it.

In training a user's items are cut into blocks of 1 to ``next_items`` at random, and some items of
each are masked. A block sees the items before it, and its own that are not masked. The loss is that
of the next item, the mean over all masks. A mask begins as the nearest item before it that is seen,
plus a vector for how far that is. All items are ranked by the state of one mask behind the history.

With ``next_items=1`` every block is one mask: no diffusion, but SASRec that is asked for the next
item by another token than the newest one.

Source: Arriola et al., "Block Diffusion: Interpolating Between Autoregressive and Diffusion
Language Models", ICLR 2025 (arXiv 2503.09573): the blocks, and both streams in one pass.

Departures:
- Blocks have random sizes, and the history is causal item by item, so that a block may begin
  anywhere; there, blocks are of one size, and an item of the history sees all of its own block.
- Masks are drawn so that all count alike among blocks of one size, and are averaged over blocks of
  all sizes: a block of three counts for .55 of its bound, a block of two for .67.
- A mask's input tells the item before it, and not only that it is a mask.
- Recommending asks for one item; nothing is generated block by block.
"""

from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import ByLog, Search
from diffuserec.models.diffusion import draw_masks_alike
from diffuserec.models.encoders import ENCODERS, initialize
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.parts import by_rows
from diffuserec.models.settings import NextItemSettings, PlainSettings
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class BlockDiffRec(EncoderRecommender):
    """A causal transformer, beside which blocks of next items are masked in part."""

    class Config(PlainSettings, NextItemSettings):
        """Hyper-parameters of BlockDiffRec."""

        examples: Annotated[Literal["per_user", "windows", "whole_prefixes"], ByLog()] = "per_user"
        """A training example: a user's newest max_len items; as many such windows as it takes for
        every item to be one that follows; or one for every item of the newest max_len, with all
        that stands before it."""
        first_items: Literal[False] = False
        """A first item has nothing in front that a mask could begin as."""
        next_items: int = Field(3, ge=1)
        """Items of a block, at most."""
        learning_rate: Annotated[float, Search(2e-4, 5e-3, log=True)] = Field(2e-3, gt=0)

        @field_validator("encoder")
        @classmethod
        def _reads_blocks(cls, encoder: str) -> str:
            if not issubclass(ENCODERS.find(encoder), TransformerEncoder):
                raise ValueError("must be 'transformer', which reads blocks beside a history")
            return encoder

        @model_validator(mode="after")
        def _has_one_place(self) -> Self:
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
            items = batch.with_last_target().items
            blocks = draw_blocks(items, batch.targets > 0, self.config.next_items)
            states = by_rows(self._block_states, items, *blocks)
            targets = batch.targets.masked_fill(~blocks.masked, 0)
            masked = replace(batch, targets=targets)
            return of_masks(masked, self.table.states(states), self.table)

        return train_next_item(self, loss, train, valid, runtime)

    def _block_states(
        self,
        items: Int[Tensor, "B M"],
        n_before: Int[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L D"]:
        """States of the items of blocks, which are all but the first."""
        embedded = self.table.embed(items)
        place = torch.arange(1, items.shape[1], device=items.device).expand_as(masked)
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
    """The items behind the first of each sequence, in blocks.

    Attributes:
        n_before: items before each one's block, which it sees; 0 of padding.
        masked: those to be filled in.
    """

    n_before: Int[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]


def draw_blocks(items: Int[Tensor, "B M"], maskable: Bool[Tensor, "B L"], most: int) -> Blocks:
    """Cuts sequences behind their first items into random blocks, and masks a part of each.

    Args:
        items: right-padded, M = L + 1.
        maskable: which of those behind the first are to be learned.
        most: items of a block, at most; every number up to it is as likely.
    """
    n_rows, length = maskable.shape
    device = items.device
    sizes = torch.randint(1, most + 1, maskable.shape, device=device)
    ends = sizes.cumsum(1)
    position = torch.arange(length, device=device).expand(n_rows, -1).contiguous()
    block = torch.searchsorted(ends, position, right=True)
    start = (ends - sizes).gather(1, block)
    row = torch.arange(n_rows, device=device)[:, None]
    region = torch.zeros(n_rows, length, most, dtype=torch.bool, device=device)
    region[row, block, position - start] = maskable
    masked = draw_masks_alike(region.flatten(0, 1))
    n_before = (start + 1).masked_fill(items[:, 1:] == 0, 0)
    return Blocks(n_before, masked.view_as(region)[row, block, position - start])
