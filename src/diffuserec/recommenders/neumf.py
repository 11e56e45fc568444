"""NeuMF: a matrix factorization and a neural network score a user and an item together.

Source: He, Liao, Zhang, Nie, Hu & Chua, "Neural Collaborative Filtering", WWW 2017 (arXiv
1708.05031).

A user and an item have two vectors each. The score is linear in the elementwise product of the
first two (GMF) and in the output of a tower of layers with ReLU over the second two, concatenated
(MLP). Each interaction is distinguished from ``n_negatives`` items that the user does not have,
drawn uniformly, by binary cross entropy over all 1 + n. The order of a history is not used.

To score all items, the tower's first layer is split into the user's share and the item's, which
are added for each pair, a block of pairs at a time.

Departures and options:
- Both branches learn together from the start; the paper's pre-training of each alone is left out.
- ``dropout`` in the tower, and squared norms of the vectors in the loss; the paper has neither.
- Negatives exclude the user's training items. The paper's are drawn before each epoch.
- A history whose user was not trained on, which is every history of ``recommend``, is scored by
  vectors made from its items: the mean, over them, of the mean vector of each item's training
  users.
- Synthetic items are no interactions.
- Tuned dot products (``bpr``) were found better (Rendle et al., RecSys 2020, arXiv 2005.09683).
"""

import itertools
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from diffuserec.data import Catalog, Histories, Pairs, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.dropout import full_dropout
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import unseen_negatives
from diffuserec.models.parts import by_rows
from diffuserec.models.recommender import ScoreRecommender
from diffuserec.models.settings import PairSettings
from diffuserec.models.users import UserTable
from diffuserec.training import train_on_pairs

_USERS = 64
_BLOCK = 250_000
"""Hidden values of pairs held at once: they stay in the cache from layer to layer."""


class NeuMF(ScoreRecommender):
    """Generalized matrix factorization and a multilayer perceptron, added."""

    class Config(PairSettings):
        """Hyper-parameters of NeuMF."""

        dim: int = Field(64, ge=1)
        """Width D of users and items, in either branch."""
        hidden: tuple[PositiveInt, ...] = Field((32, 16), min_length=1)
        """Widths of the tower's layers."""
        dropout: float = Field(0.5, ge=0, lt=1)
        n_negatives: int = Field(4, ge=1)
        l2_users: Annotated[float, Search(1e-5, 0.1, log=True)] = Field(0.003, ge=0)
        """Weight of the squared norm of an interaction's user."""
        l2_items: Annotated[float, Search(1e-5, 0.1, log=True)] = Field(0.003, ge=0)
        """Weight of the mean squared norm of its item and negatives."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        # the first half of a vector is GMF's, the second the tower's
        self.users = UserTable(catalog.n_users, catalog.vocab_size, 2 * c.dim)
        self.table = ItemTable(catalog.vocab_size, 2 * c.dim)
        self.table.reset_parameters(std=0.01)
        self.first = nn.Linear(2 * c.dim, c.hidden[0])
        self.others = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(c.hidden))
        self.output = nn.Linear(c.dim + c.hidden[-1], 1)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        draw = unseen_negatives(train)

        def loss(pairs: Pairs) -> Tensor:
            drawn = draw(pairs.users, c.n_negatives)
            items = self.table.embed(torch.cat([pairs.items[:, None], drawn], 1))
            users: Tensor = self.users(pairs.users)
            product = (self._weighted(users)[:, None] * items[..., : c.dim]).sum(2)
            logits = product + by_rows(self._tower, self._of_users(users), self._of_items(items))
            logits = torch.cat([-logits[:, :1], logits[:, 1:]], 1)
            norms = c.l2_items * items.square().sum(2).mean(1)
            penalty = c.l2_users * users.square().sum(1) + norms
            return F.softplus(logits).mean() + penalty.mean()

        return train_on_pairs(self, loss, train, valid, runtime, users=self.users)

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        users, items = self.users.of(histories), self.table.embeddings()
        scores = self._weighted(users) @ items[:, : self.config.dim].T
        of_users, of_items = self._of_users(users), self._of_items(items)
        n_items = max(1, _BLOCK // _USERS // max(self.config.hidden))
        for user in range(0, len(users), _USERS):
            rows = slice(user, user + _USERS)
            for item in range(0, len(items), n_items):
                columns = slice(item, item + n_items)
                scores[rows, columns] += self._tower(of_users[rows], of_items[columns])
        return scores

    def _weighted(self, users: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """GMF's halves of users, each dimension multiplied by its weight in the score."""
        dim = self.config.dim
        return users[:, :dim] * self.output.weight[0, :dim]

    def _of_users(self, users: Float[Tensor, "B F"]) -> Float[Tensor, "B H"]:
        """The users' share in the tower's first layer."""
        dim = self.config.dim
        return F.linear(users[:, dim:], self.first.weight[:, :dim], self.first.bias)

    def _of_items(self, items: Float[Tensor, "*P F"]) -> Float[Tensor, "*P H"]:
        """The items' share in the tower's first layer."""
        dim = self.config.dim
        return F.linear(items[..., dim:], self.first.weight[:, dim:])

    def _tower(
        self, users: Float[Tensor, "B H"], items: Float[Tensor, "*B K H"]
    ) -> Float[Tensor, "B K"]:
        """The tower's part of the scores, with the bias."""
        c = self.config
        chance = c.dropout if self.training else 0.0
        hidden = full_dropout((users[:, None] + items).relu_(), chance)
        for layer in self.others:
            hidden = full_dropout(layer(hidden).relu_(), chance)
        weights = self.output.weight[:, c.dim :]
        return F.linear(hidden, weights, self.output.bias)[..., 0]
