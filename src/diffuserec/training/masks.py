"""Training of masked diffusion over items: its bound, and the users that decide when to stop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffuserec.data import SequenceDataset
from diffuserec.data.batches import length_buckets
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.diffusion import draw_masks
from diffuserec.models.masked_items import MaskedBatch, MaskedItems, Pieces
from diffuserec.training.loop import train
from diffuserec.training.next_item import adam

PiecesOf = Callable[[SequenceDataset, int, np.random.Generator], Pieces]

_HELD_OUT = 20
"""One user of so many is held out."""

_CHECKS = 256
"""Pieces of held-out users that the bound is measured on."""


def train_on_masks(
    method: MaskedItems,
    log: SequenceDataset,
    runtime: Runtime,
    pieces_of: PiecesOf = Pieces.of,
    hold_out: bool = True,
    validate: Callable[[], float] | None = None,
) -> tuple[list[Epoch], SequenceDataset]:
    """Counts pairs and trains on users of two items or more.

    Args:
        pieces_of: makes an epoch's pieces of sequences at most so long.
        hold_out: whether some users are held out, by whose bound training stops; their pieces are
            one for each.
        validate: what it stops by otherwise; without, it trains all epochs.

    Returns:
        The records of the epochs, and the users that were held out.
    """
    c = method.config
    users = np.flatnonzero(log.lengths >= 2)
    order = np.random.Generator(np.random.Philox(key=[runtime.seed, 2**40]))
    users = order.permutation(users)
    held_out, chosen = np.split(users, [len(users) // _HELD_OUT if hold_out else 0])
    groups = method.count_pairs(log.select(chosen).real())

    def batch_of(pieces: Pieces, generator: np.random.Generator) -> MaskedBatch:
        items, region = pieces.cut()
        masked, weight = draw_masks(
            torch.from_numpy(region),
            torch.Generator().manual_seed(int(generator.integers(2**62))),
        )
        found = method.counted_items(items, masked.numpy(), groups, pieces.group)
        return MaskedBatch(torch.from_numpy(items), masked, weight, found)

    def pieces_of_epoch(generator: np.random.Generator) -> Pieces:
        return pieces_of(log.select(chosen), c.max_len, generator)

    def batches(epoch: int) -> Iterator[MaskedBatch]:
        generator = np.random.Generator(np.random.Philox(key=[runtime.seed, epoch]))
        pieces = pieces_of_epoch(generator)
        weights = pieces.n_maskable()
        for index in length_buckets(pieces.lengths, c.batch_size, generator, weights):
            yield batch_of(pieces.select(index), generator)

    def loss(batch: MaskedBatch) -> Tensor:
        weight = batch.weight[batch.masked.nonzero()[:, 0]]
        return -(weight * method.log_likelihood(batch)).sum() / weight.sum()

    @torch.no_grad()
    def bound() -> float:
        generator = np.random.Generator(np.random.Philox(key=[runtime.seed, 2**41]))
        shown = np.resize(held_out, max(_CHECKS, len(held_out)))
        alone = np.full(len(shown), -1)
        pieces = replace(pieces_of(log.select(shown), c.max_len, generator), group=alone)
        total, n = 0.0, 0.0
        for start in range(0, len(shown), _CHECKS):
            part = pieces.select(np.arange(start, min(start + _CHECKS, len(shown))))
            batch = batch_of(part, generator).to(method.device)
            weight = batch.weight[batch.masked.nonzero()[:, 0]]
            total += float((weight * method.log_likelihood(batch)).sum())
            n += float(weight.sum())
        return total / n

    n_pieces = len(pieces_of_epoch(np.random.default_rng(0)))  # as many in every epoch
    n_batches = math.ceil(n_pieces / c.batch_size)
    records = train(
        method,
        loss,
        batches,
        n_batches=n_batches,
        optimizer=adam(c, method.parameters()),
        epochs=c.epochs,
        runtime=runtime,
        data=log,
        validate=bound if len(held_out) else validate,
        patience=c.patience,
        rate=c.rate(c.epochs, n_batches),
        max_norm=c.max_norm,
        average_epochs=c.average_epochs,
    )
    return records, log.select(held_out)
