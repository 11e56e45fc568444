"""BPR: matrix factorization that ranks a user's items above items the user does not have.

Source: Rendle, Freudenthaler, Gantner & Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from
Implicit Feedback", UAI 2009 (arXiv 1205.2618).

The score of item i for user u is p_u · q_i + b_i. Each interaction (u, i) is a positive once an
epoch, with items j that u does not have as negatives, drawn uniformly: -log σ(s_ui - s_uj), plus
the squared norms of the vectors in it, each kind with a weight of its own. The order of a history
is not used.

Departures and options:
- Adam on shuffled batches; the paper's is plain stochastic descent with replacement. Item biases
  and separate weights for users, items and biases are kept, the absence of which is what common
  implementations lose to the original (Milogradskii et al., RecSys 2024, arXiv 2409.14217).
- ``loss="softmax"`` over the catalog, or ``"bce"``, instead of the pairwise loss.
- A history whose user was not trained on, which is every history of ``recommend``, is scored by a
  vector made from its items: the mean, over them, of the mean vector of each item's training users.
- Synthetic items are no interactions.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from diffuserec.data import Catalog, Histories, Pairs, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import (
    binary_cross_entropy,
    softmax_cross_entropy,
    unseen_negatives,
)
from diffuserec.models.recommender import StateRecommender
from diffuserec.models.settings import PairSettings
from diffuserec.models.users import UserTable
from diffuserec.training import train_on_pairs


class BPR(StateRecommender):
    """Matrix factorization with item biases."""

    class Config(PairSettings):
        """Hyper-parameters of BPR."""

        loss: Literal["bpr", "softmax", "bce"] = "bpr"
        n_negatives: Annotated[int, OnlyIf(loss=("bpr", "bce"))] = Field(1, ge=1)
        """Negatives of an interaction; the loss is their mean."""
        l2_users: Annotated[float, Search(1e-5, 0.1, log=True)] = Field(0.01, ge=0)
        """Weight of the squared norm of an interaction's user."""
        l2_items: Annotated[float, Search(1e-5, 0.1, log=True)] = Field(0.01, ge=0)
        """Weight of the squared norms of its item and, averaged, of its negatives."""
        l2_bias: float = Field(0.0, ge=0)
        """Weight of their squared biases."""

        @property
        def scores_are_logits(self) -> bool:
            return self.loss == "softmax"

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.users = UserTable(catalog.n_users, catalog.vocab_size, self.config.dim)
        self.table = ItemTable(catalog.vocab_size, self.config.dim, bias=True)
        self.table.reset_parameters(std=0.01)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        draw = unseen_negatives(train)
        all_biases = self.table.bias
        assert all_biases is not None

        def loss(pairs: Pairs) -> Tensor:
            items = pairs.items[:, None]
            if c.loss != "softmax":
                drawn = draw(pairs.users, c.n_negatives)
                items = torch.cat([items, drawn], 1)
            users: Tensor = self.users(pairs.users)
            vectors, biases = self.table.embed(items), all_biases[items]
            norms = c.l2_items * vectors.square().sum(2) + c.l2_bias * biases.square()
            norms = norms[:, 0] + norms[:, 1:].sum(1) / c.n_negatives
            penalty = (c.l2_users * users.square().sum(1) + norms).mean()
            if c.loss == "softmax":
                states, weight = self.table.states(users), self.table.weight()
                return softmax_cross_entropy(states, weight, pairs.items) + penalty
            scores = (users[:, None] * vectors).sum(2) + biases
            positive, negative = scores[:, 0], scores[:, 1:]
            if c.loss == "bce":
                return binary_cross_entropy(positive, negative) + penalty
            return F.softplus(negative - positive[:, None]).mean() + penalty

        return train_on_pairs(self, loss, train, valid, runtime, users=self.users)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B 1 E"]:
        return self.table.states(self.users.of(histories))[:, None]
