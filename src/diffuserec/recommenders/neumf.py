"""NeuMF: a matrix factorization and a neural network of user and item, judged together.

Source: He, Liao, Zhang, Nie, Hu & Chua, "Neural Collaborative Filtering", WWW 2017 (arXiv
1708.05031).

A user and an item have two vectors each. The score is linear in the elementwise product of the
first two (GMF) and in what a tower of layers with ReLU makes of the second two, joined (MLP). Each
interaction is told from ``n_negatives`` items that the user does not have, drawn uniformly, by
binary cross entropy over all 1 + n. The order of a history is not used.

To score all items, the tower's first layer is taken apart into the user's share and the item's,
which are added for each pair, a block of pairs at a time.

Departures and options:
- Both branches learn together from the start; the paper's pre-training of each alone is left out.
- ``dropout`` in the tower, and squared norms of the vectors in the loss; the paper has neither.
- Negatives exclude the user's training items. The paper's are drawn before each epoch.
- A history whose user was not trained on, which is every history of ``recommend``, is scored by
  vectors made from its items: the mean over them of each one's mean training user.
- Synthetic items are no interactions.
- Tuned dot products (``bpr``) were found better (Rendle et al., RecSys 2020, arXiv 2005.09683).
"""

import itertools
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import Recommender, Run
from diffuserec.data import PAD, Catalog, Histories, Pairs, Queries, SequenceDataset
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.models.users import UserTable
from diffuserec.models.settings import PairSettings

_USERS = 64
_BLOCK = 250_000
"""Hidden values of pairs held at once: they stay in the cache from layer to layer."""


class NeuMF(Recommender):
    """Generalized matrix factorization beside a multilayer perceptron."""

    class Config(PairSettings):
        """Hyper-parameters of NeuMF."""

        dim: int = Field(64, ge=1)
        """Width D of users and items, in either branch."""
        hidden: tuple[PositiveInt, ...] = Field((32, 16), min_length=1)
        """Widths of the tower's layers."""
        dropout: float = Field(0.5, ge=0, lt=1)
        n_negatives: int = Field(4, ge=1)
        l2_users: float = Field(0.003, ge=0)
        """Weight of the squared norm of an interaction's user."""
        l2_items: float = Field(0.003, ge=0)
        """Of its item, and of its negatives."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        # GMF's half, then the tower's
        self.users = UserTable(catalog.n_users, catalog.vocab_size, 2 * c.dim)
        self.items = nn.Embedding(catalog.vocab_size, 2 * c.dim, padding_idx=PAD)
        nn.init.normal_(self.items.weight, std=0.01)
        with torch.no_grad():
            self.items.weight[PAD] = 0
        self.first = nn.Linear(2 * c.dim, c.hidden[0])
        self.others = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(c.hidden))
        self.output = nn.Linear(c.dim + c.hidden[-1], 1)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        seen = seen_keys(train).to(training.device_of(run))

        def loss(pairs: Pairs) -> Tensor:
            drawn = uniform_negatives(pairs.users, c.n_negatives, train.vocab_size, seen)
            items: Tensor = self.items(torch.cat([pairs.items[:, None], drawn], 1))
            users: Tensor = self.users(pairs.users)
            product = (self._weighted(users)[:, None] * items[..., : c.dim]).sum(2)
            logits = product + self._judged(self._of_users(users), self._of_items(items))
            logits = torch.cat([-logits[:, :1], logits[:, 1:]], 1)
            norms = c.l2_items * items.square().sum(2).mean(1)
            penalty = c.l2_users * users.square().sum(1) + norms
            return F.softplus(logits).mean() + penalty.mean()

        self.curve = training.train_on_pairs(
            self, loss, train, valid, run, users=self.users, score=self.score
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        users, items = self.users.of(histories), self.items.weight
        scores = self._weighted(users) @ items[:, : self.config.dim].T
        of_users, of_items = self._of_users(users), self._of_items(items)
        n_items = max(1, _BLOCK // _USERS // max(self.config.hidden))
        for row in range(0, len(users), _USERS):
            rows = slice(row, row + _USERS)
            for item in range(0, len(items), n_items):
                columns = slice(item, item + n_items)
                scores[rows, columns] += self._judged(of_users[rows], of_items[columns])
        return scores

    def _weighted(self, users: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """GMF's halves of users, each dimension by its weight in the score."""
        dim = self.config.dim
        return users[:, :dim] * self.output.weight[0, :dim]

    def _of_users(self, users: Float[Tensor, "B F"]) -> Float[Tensor, "B H"]:
        """The users' share in the tower's first layer."""
        dim = self.config.dim
        return F.linear(users[:, dim:], self.first.weight[:, :dim], self.first.bias)

    def _of_items(self, items: Float[Tensor, "*P F"]) -> Float[Tensor, "*P H"]:
        """The items' share in it."""
        dim = self.config.dim
        return F.linear(items[..., dim:], self.first.weight[:, dim:])

    def _judged(
        self, users: Float[Tensor, "B H"], items: Float[Tensor, "*B K H"]
    ) -> Float[Tensor, "B K"]:
        """The tower's part of the scores, with the bias.

        Args:
            users: their share in the first layer.
            items: that of the items, K for each user or the same for all.
        """
        c = self.config
        hidden = F.dropout((users[:, None] + items).relu_(), c.dropout, self.training)
        for layer in self.others:
            hidden = F.dropout(layer(hidden).relu_(), c.dropout, self.training)
        weights = self.output.weight[:, c.dim :]
        return F.linear(hidden, weights, self.output.bias)[..., 0]
