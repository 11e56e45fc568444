"""STOSA: items and states are Gaussians, near each other by Wasserstein distance.

Source: Fan, Liu, Wang, Wang, Nazari, Zheng, Peng & Yu, "Sequential Recommendation via Stochastic
Self-Attention", WWW 2022 (arXiv 2201.06035), and its released code.

Every item has a mean and, through ELU + 1, a diagonal covariance; two streams of blocks turn those
of a history into those of a state. Both share the attention ``A = softmax(-W2² / sqrt(width of a
head))`` between query and key Gaussians: means are summed with A, covariances with A squared, as
independent Gaussians are. An item's score is ``-W2²(state, item)``. With diagonal covariances W2 is
the Euclidean distance of points (mean, standard deviations), so that all scores are one matrix
product, and the softmax over them that of the products ``2 state · item - |item|²``.

Departures and options:
- Both streams are updated, as in the paper. The released code assigns each layer's mean to a
  misspelt name, so that the mean of a state is that of its newest item's embedding.
- ``loss="softmax"`` over the scores; the paper's pairs are ``loss="bpr"``. To either is added
  ``margin_weight`` times the paper's margin relu(W2²(state, item) - W2²(item, negative)).
- Negatives exclude the user's training items only, not those of the test.
- Means enter without the ELU that the released code has there (``add_position_mean_embedding``).
- Each stream has norms of its own; there both share one at the entrance and one after attention.
- Blocks are this project's (post-norm, GELU, feed-forward width 4·dim), ELU + 1 after each block of
  covariances. No dropout on attention weights. Positions count from the oldest item kept.
"""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from diffuserec.training import loop as training
from diffuserec.models.base import Recommender, Run
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.losses import (
    sampled_softmax,
    seen_keys,
    softmax_cross_entropy,
    uniform_negatives,
)
from diffuserec.models.encoders import TransformerBlock, last_states
from diffuserec.models.settings import TransformerSettings


class STOSA(Recommender):
    """Causal transformer over Gaussians with Wasserstein attention."""

    class Config(TransformerSettings):
        """Hyper-parameters of STOSA."""

        loss: Literal["softmax", "sampled_softmax", "bpr"] = "softmax"
        """Of the next item, by its score -W2²."""
        n_negatives: int | None = Field(None, ge=1)
        """By default 1 for bpr, 1000 for sampled_softmax."""
        margin_weight: float = Field(0.005, ge=0)
        """lambda; the authors have .005 for Beauty."""
        rows: Literal["users", "windows", "prefixes"] = "users"
        """What a training row is, as for SASRec."""

        @property
        def gives_logits(self) -> bool:
            return self.loss != "bpr"

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.means = self.config.transformer(catalog.vocab_size)
        self.covariances = self.config.transformer(catalog.vocab_size)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        seen = seen_keys(train).to(training.device_of(run))

        def loss(batch: Batch) -> Tensor:
            states, targets, users = training.real_positions(batch, self._states(batch.items))
            table = self._table()
            n_pairs = (c.n_negatives or 1) if c.loss == "bpr" else 1
            drawn = uniform_negatives(users, n_pairs, len(table), seen)
            items, others = table[targets], table[drawn]
            near = (states - items).square().sum(1, keepdim=True)
            if c.loss == "bpr":
                total = F.softplus(near - (states[:, None] - others).square().sum(2)).mean()
            elif c.loss == "softmax":
                total = softmax_cross_entropy(*_as_products(states, table), targets)
            else:
                shared = uniform_negatives(users[:1], c.n_negatives or 1000, len(table))[0]
                total = sampled_softmax(*_as_products(states, table), targets, shared)
            margin = (near - (items[:, None] - others).square().sum(2)).relu().mean()
            return total + c.margin_weight * margin

        self.curve = training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=c.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        states = last_states(self._states(newest.items), newest.lengths)
        return -squared_distances(states, self._table())

    def _table(self) -> Float[Tensor, "V E"]:
        return point(self.means.table, positive(self.covariances.table))

    def _states(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """The points of the states."""
        mean, covariance = (
            encoder.enter(encoder.items(items) + encoder.positions.weight[: items.shape[1]])
            for encoder in (self.means, self.covariances)
        )
        covariance = positive(covariance)
        for blocks in zip(self.means.layers, self.covariances.layers, strict=True):
            mean, covariance = _attend(*blocks, mean, covariance)
        return point(mean, covariance)


def positive(values: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """ELU + 1: what makes a covariance of anything."""
    return F.elu(values.float()) + 1


def point(mean: Float[Tensor, "*n D"], covariance: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
    """Where a diagonal Gaussian lies: W2 is the Euclidean distance of such points, of width 2D.

    Standard deviations are counted from 1, near which they are: distances remain, and low
    precision loses nothing of them.
    """
    # ELU + 1 rounds to 0 far below 0, where the slope of the root has no number
    deviation = covariance.clamp(min=1e-12).sqrt()
    return torch.cat([mean.float(), deviation - 1], dim=-1)


def squared_distances(
    these: Float[Tensor, "*n P E"], those: Float[Tensor, "*n V E"]
) -> Float[Tensor, "*n P V"]:
    """Squared Euclidean distances of all pairs, which between points of Gaussians are W2²."""
    squares = these.square().sum(-1)[..., None] + those.square().sum(-1)[..., None, :]
    return squares - 2 * these @ those.transpose(-1, -2)


def _as_products(
    states: Float[Tensor, "P E"], table: Float[Tensor, "V E"]
) -> tuple[Float[Tensor, "P F"], Float[Tensor, "V F"]]:
    """States and rows whose products are -|state - row|² but for a constant of the state."""
    squares = table.square().sum(1, keepdim=True)
    return F.pad(2 * states, (0, 1), value=1.0), torch.cat([table, -squares], dim=1)


def _attend(
    of_means: TransformerBlock,
    of_covariances: TransformerBlock,
    mean: Float[Tensor, "B L D"],
    covariance: Float[Tensor, "B L D"],
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """One block of both streams."""
    query, key, value = of_means.heads(mean)
    query_of, key_of, value_of = (positive(heads) for heads in of_covariances.heads(covariance))
    with torch.autocast(mean.device.type, enabled=False):
        far = squared_distances(point(query, query_of), point(key, key_of))
        later = torch.ones(far.shape[-2:], dtype=torch.bool, device=far.device).triu(1)
        logits = -far / math.sqrt(query.shape[-1])
        weights = torch.softmax(logits.masked_fill(later, -torch.inf), dim=-1)
        seen, seen_of = weights @ value.float(), weights.square() @ value_of
    return of_means.after(mean, seen), positive(of_covariances.after(covariance, seen_of))
