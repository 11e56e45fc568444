"""BPR: matrix factorization that ranks what a user had above what they did not.

Source: Rendle, Freudenthaler, Gantner & Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from
Implicit Feedback", UAI 2009 (arXiv 1205.2618).

The score of item i for user u is p_u · q_i + b_i. Each interaction (u, i) is a positive once an
epoch, beside items j that u does not have, drawn uniformly: -log σ(s_ui - s_uj), plus the squared
norms of the vectors in it, each kind with a weight of its own. The order of a history is not used.

Departures and options:
- Adam on shuffled batches; the paper's is plain stochastic descent with replacement. Item biases
  and separate weights for users, items and biases are kept, the absence of which is what common
  implementations lose to the original (Milogradskii et al., RecSys 2024, arXiv 2409.14217).
- ``loss="softmax"`` over the catalog, or ``"bce"``, instead of the pairwise loss.
- A history whose user was not trained on, which is every history of ``recommend``, is scored by a
  vector made from its items: the mean over them of each one's mean training user.
- Synthetic items are no interactions.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import Recommender, Run
from diffuserec.data import PAD, Catalog, Histories, Pairs, Queries, SequenceDataset
from diffuserec.models.losses import (
    binary_cross_entropy,
    seen_keys,
    softmax_cross_entropy,
    uniform_negatives,
)
from diffuserec.models.users import UserTable
from diffuserec.models.settings import PairSettings


class BPR(Recommender):
    """Matrix factorization with item biases."""

    class Config(PairSettings):
        """Hyper-parameters of BPR."""

        loss: Literal["bpr", "softmax", "bce"] = "bpr"
        n_negatives: int = Field(1, ge=1)
        """For bpr and bce, which average over them."""
        l2_users: float = Field(0.01, ge=0)
        """Weight of the squared norm of an interaction's user."""
        l2_items: float = Field(0.01, ge=0)
        """Of its item, and the mean of its negatives."""
        l2_bias: float = Field(0.0, ge=0)

        @property
        def gives_logits(self) -> bool:
            return self.loss == "softmax"

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.users = UserTable(catalog.n_users, catalog.vocab_size, self.config.dim)
        self.items = nn.Embedding(catalog.vocab_size, self.config.dim, padding_idx=PAD)
        nn.init.normal_(self.items.weight, std=0.01)
        self.bias = nn.Embedding(catalog.vocab_size, 1, padding_idx=PAD)
        with torch.no_grad():
            self.items.weight[PAD] = 0
            self.bias.weight.zero_()

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        seen = seen_keys(train).to(training.device_of(run))

        def loss(pairs: Pairs) -> Tensor:
            items = pairs.items[:, None]
            if c.loss != "softmax":
                drawn = uniform_negatives(pairs.users, c.n_negatives, train.vocab_size, seen)
                items = torch.cat([items, drawn], 1)
            users: Tensor = self.users(pairs.users)
            vectors: Tensor = self.items(items)
            bias: Tensor = self.bias(items)[:, :, 0]
            norms = c.l2_items * vectors.square().sum(2) + c.l2_bias * bias.square()
            norms = norms[:, 0] + norms[:, 1:].sum(1) / c.n_negatives
            penalty = (c.l2_users * users.square().sum(1) + norms).mean()
            if c.loss == "softmax":
                # a bias is one more dimension, in which every user is 1
                table = torch.cat([self.items.weight, self.bias.weight], 1)
                users = torch.cat([users, torch.ones_like(bias)], 1)
                return softmax_cross_entropy(users, table, pairs.items) + penalty
            scores = (users[:, None] * vectors).sum(2) + bias
            positive, negative = scores[:, 0], scores[:, 1:]
            if c.loss == "bce":
                return binary_cross_entropy(positive, negative) + penalty
            return F.softplus(negative - positive[:, None]).mean() + penalty

        self.curve = training.train_on_pairs(
            self, loss, train, valid, run, users=self.users, score=self.score
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        users = self.users.of(histories)
        return torch.addmm(self.bias.weight[:, 0], users, self.items.weight.T)
