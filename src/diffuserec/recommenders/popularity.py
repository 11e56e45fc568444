"""Popularity: every history is answered by the items that occur most often in training.

The trivial baseline below which a recommender has learned nothing. Only real items of the training
part are counted.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Settings
from diffuserec.models.recommender import ScoreRecommender


class Popularity(ScoreRecommender):
    """Scores an item by how often it occurs in the training part."""

    class Config(Settings):
        """Popularity has no settings."""

    config: Config
    trained = False

    def build(self, catalog: Catalog) -> None:
        """Adds nothing to the counts that every method keeps."""

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Learns nothing more; `valid` is not used."""
        return []

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Training count of each item, equal for all users."""
        return self.popularity.to(torch.float32).expand(len(histories.users), -1)
