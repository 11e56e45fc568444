"""STOSA: items and states are Gaussians, compared by their Wasserstein distance.

Source: Fan, Liu, Wang, Wang, Nazari, Zheng, Peng & Yu, "Sequential Recommendation via Stochastic
Self-Attention", WWW 2022 (arXiv 2201.06035), and its released code.

Every item has a mean and, through ELU + 1, a diagonal covariance; two streams of blocks turn those
of a history into those of a state. Both share the attention ``A = softmax(-W2² / sqrt(width of a
head))`` between query and key Gaussians: means are summed with A, covariances with A squared, as
independent Gaussians are. An item is ranked by ``-W2²(state, item)``. With diagonal covariances W2
is the Euclidean distance of points (mean, standard deviations), so that the scores are products,
``2 state · item - |item|²``: they are -W2² but for a constant of the state, which changes neither
ranks nor the softmax.

Departures and options:
- Both streams are updated, as in the paper. The released code assigns each layer's mean to a
  misspelt name, so that the mean of a state is that of its newest item's embedding.
- ``loss="softmax"`` over the scores; the paper's pairs are ``loss="bpr"``. To either is added
  ``margin_weight`` times the paper's margin relu(W2²(state, item) - W2²(item, negative)).
- Negatives exclude the user's training items only, not those of the test.
- Means enter without the ELU that the released code has there (``add_position_mean_embedding``).
- Each stream has norms of its own; the code shares one at the entrance and one after attention.
- Blocks are this project's (post-norm, GELU, feed-forward width 4·dim), ELU + 1 after each block of
  covariances. No dropout on attention weights. Positions count from the oldest item kept.
"""

import math
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.encoders import last_states
from diffuserec.models.encoders.transformer import TransformerBlock, TransformerEncoder
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import (
    sampled_softmax,
    softmax_cross_entropy,
    uniform_negatives,
    unseen_negatives,
)
from diffuserec.models.parts import by_rows
from diffuserec.models.recommender import StateRecommender
from diffuserec.models.settings import AttentiveSettings, ExampleSettings
from diffuserec.training import real_positions, train_next_item


class STOSA(StateRecommender):
    """Causal transformer over Gaussians with Wasserstein attention."""

    class Config(ExampleSettings, AttentiveSettings):
        """Hyper-parameters of STOSA."""

        encoder: Literal["transformer"] = "transformer"
        """Of both streams, which share their attention."""
        position_encoding: Literal["from_oldest"] = "from_oldest"
        """Both streams add the same vectors of positions."""
        loss: Literal["softmax", "sampled_softmax", "bpr"] = "softmax"
        """Of the next item, by its score."""
        n_negatives: Annotated[int | None, OnlyIf(loss=("sampled_softmax", "bpr"))] = Field(
            None, ge=1
        )
        """By default 1 for bpr, 1000 for sampled_softmax."""
        margin_weight: Annotated[float, Search(1e-4, 0.1, log=True)] = Field(0.005, ge=0)
        """Weight of the margin; the authors have .005 for Beauty."""

        @model_validator(mode="after")
        def _attends_by_itself(self) -> Self:
            self.require_whole_attention("the attention of distributions is STOSA's own")
            return self

        @property
        def scores_are_logits(self) -> bool:
            return self.loss != "bpr"

    config: Config
    table: "GaussianTable"  # type: ignore[assignment]

    def build(self, catalog: Catalog) -> None:
        means, of_means = self.config.build_encoder(catalog.vocab_size)
        covariances, of_covariances = self.config.build_encoder(catalog.vocab_size)
        assert isinstance(of_means, TransformerEncoder)
        assert isinstance(of_covariances, TransformerEncoder)
        self.means, self.covariances = of_means, of_covariances
        self.table = GaussianTable(means, covariances)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        draw = unseen_negatives(train)

        def loss(batch: Batch) -> Tensor:
            found, targets, users = real_positions(batch, self.encode(batch.items))
            points = self.table.points()
            n_pairs = (c.n_negatives or 1) if c.loss == "bpr" else 1
            drawn = draw(users, n_pairs)
            items, others = points[targets], points[drawn]
            near = (found - items).square().sum(1, keepdim=True)
            if c.loss == "bpr":
                total = F.softplus(near - (found[:, None] - others).square().sum(2)).mean()
            elif c.loss == "softmax":
                total = softmax_cross_entropy(
                    self.table.states(found), with_squares(points), targets
                )
            else:
                shared = uniform_negatives(users[:1], c.n_negatives or 1000, len(points))[0]
                scores = self.table.states(found)
                vectors = with_squares(points)
                total = sampled_softmax(
                    (scores * vectors[targets]).sum(1),
                    scores @ vectors[shared].T,
                    shared == targets[:, None],
                    math.log(len(shared) / (len(points) - 1)),
                )
            margin = (near - (items[:, None] - others).square().sum(2)).relu().mean()
            return total + c.margin_weight * margin

        return train_next_item(self, loss, train, valid, runtime)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B 1 E"]:
        newest = histories.truncate(self.config.max_len)
        points = last_states(self.encode(newest.items), newest.lengths)
        return self.table.states(points)[:, None]

    def encode(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L P"]:
        """Points of the states at every position."""
        tables = self.table.means, self.table.covariances
        return by_rows(self._through_blocks, *(table.embed(items) for table in tables))

    def _through_blocks(
        self, means: Float[Tensor, "B L D"], covariances: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B L P"]:
        mean, covariance = (
            encoder.enter(embedded + encoder.positions.weight[: embedded.shape[1]])
            for embedded, encoder in ((means, self.means), (covariances, self.covariances))
        )
        covariance = positive(covariance)
        for blocks in zip(self.means.layers, self.covariances.layers, strict=True):
            mean, covariance = attend(*blocks, mean, covariance)
        return point(mean, covariance)


class GaussianTable(nn.Module):
    """Means and covariances of items, each an item table; the covariances go through ELU + 1."""

    def __init__(self, means: ItemTable, covariances: ItemTable) -> None:
        super().__init__()
        self.means = means
        self.covariances = covariances

    def points(self) -> Float[Tensor, "V P"]:
        """The items as points of width P = 2D."""
        return point(self.means.embeddings(), positive(self.covariances.embeddings()))

    def weight(self) -> Float[Tensor, "V E"]:
        """Vectors that states are multiplied with: the points, and -|point|² as a last column."""
        return with_squares(self.points())

    def states(self, points: Float[Tensor, "*n P"]) -> Float[Tensor, "*n E"]:
        """Vectors whose products with :meth:`weight` are |point|² - |point - item|²."""
        return F.pad(2 * points, (0, 1), value=1.0)


def with_squares(points: Float[Tensor, "V P"]) -> Float[Tensor, "V E"]:
    """Points with -|point|² as a last column."""
    return torch.cat([points, -points.square().sum(1, keepdim=True)], dim=1)


def positive(values: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """ELU + 1, which maps any number to a covariance."""
    return F.elu(values.float()) + 1


def point(mean: Float[Tensor, "*n D"], covariance: Float[Tensor, "*n D"]) -> Float[Tensor, "*n P"]:
    """A diagonal Gaussian as a point of width P = 2D: W2 is the Euclidean distance of points.

    Standard deviations are counted from 1, near which they are: distances remain, and low
    precision loses nothing of them.
    """
    # ELU + 1 rounds to 0 far below 0, where the slope of the root has no number
    deviation = covariance.clamp(min=1e-12).sqrt()
    return torch.cat([mean.float(), deviation - 1], dim=-1)


def squared_distances(
    these: Float[Tensor, "*n L P"], those: Float[Tensor, "*n M P"]
) -> Float[Tensor, "*n L M"]:
    """Squared Euclidean distances of all pairs, which between points of Gaussians are W2²."""
    squares = these.square().sum(-1)[..., None] + those.square().sum(-1)[..., None, :]
    return squares - 2 * these @ those.transpose(-1, -2)


def attend(
    of_means: TransformerBlock,
    of_covariances: TransformerBlock,
    mean: Float[Tensor, "B L D"],
    covariance: Float[Tensor, "B L D"],
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """One block of both streams, which share the attention of nearby Gaussians."""
    query, key, value = of_means.heads(mean)
    query_of, key_of, value_of = (positive(heads) for heads in of_covariances.heads(covariance))
    with torch.autocast(mean.device.type, enabled=False):
        far = squared_distances(point(query, query_of), point(key, key_of))
        later = torch.ones(far.shape[-2:], dtype=torch.bool, device=far.device).triu(1)
        logits = -far / math.sqrt(query.shape[-1])
        weights = torch.softmax(logits.masked_fill(later, -torch.inf), dim=-1)
        seen, seen_of = weights @ value.float(), weights.square() @ value_of
    return of_means.after(mean, seen), positive(of_covariances.after(covariance, seen_of))
