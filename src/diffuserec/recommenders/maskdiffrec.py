"""MaskDiffRec: masked discrete diffusion over items fills in what comes next.

This project's own method, the recommender beside the augmenter MaskDiff. The network and its bound
are those of :mod:`diffuserec.models.masked_items`. An example is the history of a user up to a
random item, the newest few of which are masked in part: the next items are generated together, each
given those of them that are there already. Long histories give more examples. Recommending is the
fill of one mask behind a history.

Two things set it apart from a causal transformer, and make it a good part of a blend: every item of
a history sees all others, and what counting knows is evidence, the weight of which is learned.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.data.dataset import offsets_of
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.masked_items import (
    MaskedItems,
    MaskedItemsSettings,
    Pieces,
    next_items,
)
from diffuserec.models.recommender import ScoreRecommender
from diffuserec.training import train_on_masks, validation


class MaskDiffRec(MaskedItems, ScoreRecommender):
    """Masked discrete diffusion over the next items, with counted pairs as evidence."""

    class Config(MaskedItemsSettings):
        """Hyper-parameters of MaskDiffRec."""

        max_len: int = Field(50, ge=2)
        """Newest items that the model sees, the masks among them."""
        patience: int = Field(10, ge=1)
        """Epochs without a better validation NDCG@10 before training stops."""
        next_items: int = Field(3, ge=1)
        """Newest items of an example, at most, some of which are masked."""

        @property
        def scores_are_logits(self) -> bool:
            return True

    config: Config
    version = 2

    def build(self, catalog: Catalog) -> None:
        self.build_network(catalog)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Counts pairs and trains on users of two items or more; stops by `valid`."""
        endings = partial(Pieces.endings, most=self.config.next_items)
        metric = None if valid is None else validation(self, self.scorer, valid)
        rows = train.without_copies()
        if train.copies is not None:
            whole = train.compact()
            assert whole.copies is not None
            for items in whole.copies.items:
                rows = rows.joined(whole.without_copies().with_items(items, whole.lengths, None))
        n_targets = np.diff(offsets_of(next_items(rows))[rows.offsets])
        rows = rows.select(np.flatnonzero(n_targets))
        return train_on_masks(self, rows, runtime, endings, hold_out=False, validate=metric)[0]

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Logits of a mask behind each history."""
        newest = histories.truncate(self.config.max_len - 1)
        items = F.pad(newest.items, (0, 1))
        position = torch.arange(items.shape[1], device=items.device)
        return self.logits(items, newest.lengths + 1, position == newest.lengths[:, None])
