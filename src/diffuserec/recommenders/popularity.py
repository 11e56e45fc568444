"""Popularity: everyone is shown what most others took, and nobody's history matters.

The floor below which a recommender has learned nothing. Only real items of the training part are
counted.
"""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from diffuserec.models.base import Recommender, Run, Settings
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset


class Popularity(Recommender):
    """Scores an item by how often it occurs in the training part."""

    class Config(Settings):
        """Popularity has no settings."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        """The counts that every method keeps are all it needs."""

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Counts the items of `train`; `valid` is not used."""
        self.begin(train, run or Run())
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        """The training count of each item, the same row for every user."""
        return self.popularity.to(torch.float32).repeat(len(histories.users), 1)
