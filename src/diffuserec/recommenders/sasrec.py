"""SASRec: a causal transformer that predicts each next item from those before it.

Source: Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (arXiv 1808.09781).

Departures, each because it is better on sparse logs and documented as such:
- The default loss is the full softmax (Klenitskiy & Vasilev, RecSys 2023); the paper's binary
  cross entropy with one negative is ``loss="bce"``, gSASRec's is ``loss="gbce"`` (Petrov &
  Macdonald, RecSys 2023, here with the tied item table).
- Post-norm blocks with LayerNorm on the embedding sum, GELU and a feed-forward width of 4·dim (the
  BERT lineage), instead of the paper's pre-normed queries, ReLU and width dim.
- Positions count from the oldest item kept. All positions of a user train in one pass.
"""

from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec import training
from diffuserec.contracts import Recommender, Run, Settings
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.losses import (
    binary_cross_entropy,
    gbce,
    sampled_softmax,
    seen_keys,
    softmax_cross_entropy,
    uniform_negatives,
)
from diffuserec.nn.encoders import TransformerEncoder, last_states

_DEFAULT_NEGATIVES = {"softmax": 0, "bce": 1, "gbce": 256, "sampled_softmax": 1000}


class SASRec(Recommender):
    """Causal transformer with tied item embeddings."""

    class Config(Settings):
        """Hyper-parameters of SASRec."""

        dim: int = Field(64, ge=1)
        """Width D of items and states."""
        max_len: int = Field(50, ge=1)
        """Newest items that the model sees."""
        all_targets: bool = False
        """Train on every item of a history, a long one in windows of max_len, and not only on its
        newest max_len items."""
        n_layers: int = Field(2, ge=1)
        n_heads: int = Field(2, ge=1)
        dropout: float = Field(0.5, ge=0, lt=1)
        loss: Literal["softmax", "bce", "gbce", "sampled_softmax"] = "softmax"
        n_negatives: int | None = Field(None, ge=1)
        """For the sampled losses; by default 1 for bce, 256 for gbce, 1000 for sampled_softmax."""
        gbce_t: float = Field(0.75, ge=0, le=1)
        """Calibration of gbce: 0 is plain bce."""
        learning_rate: float = Field(1e-3, gt=0)
        batch_size: int = Field(64, ge=1)
        epochs: int = Field(100, ge=1)
        patience: int = Field(10, ge=1)
        """Epochs without a better validation NDCG@10 before training stops."""

        @model_validator(mode="after")
        def _heads_divide(self) -> Self:
            if self.dim % self.n_heads:
                raise ValueError(f"dim {self.dim} is not divisible by n_heads {self.n_heads}")
            return self

    config: Config

    @property
    def gives_logits(self) -> bool:
        return self.config.loss in ("softmax", "sampled_softmax")

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.encoder = TransformerEncoder(
            catalog.vocab_size, c.dim, c.n_layers, c.n_heads, c.max_len, c.dropout
        )

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        seen = seen_keys(train) if c.loss == "bce" else None

        def loss(batch: Batch) -> Tensor:
            states = self.encoder(batch.items, batch.lengths)
            return self._loss(*training.real_positions(batch, states), seen)

        self.curve = training.train_next_item(
            self,
            loss,
            train,
            valid,
            run,
            score=self.score,
            rows="windows" if c.all_targets else "users",
        )
        return self

    def _loss(self, states: Tensor, targets: Tensor, users: Tensor, seen: Tensor | None) -> Tensor:
        table = self.encoder.table
        c = self.config
        if c.loss == "softmax":
            return softmax_cross_entropy(states, table, targets)
        n = c.n_negatives or _DEFAULT_NEGATIVES[c.loss]
        if c.loss == "sampled_softmax":
            shared = uniform_negatives(users[:1], n, table.shape[0])[0]
            return sampled_softmax(states, table, targets, shared)
        if seen is not None:
            seen = seen.to(users.device)
        drawn = uniform_negatives(users, n, table.shape[0], seen)
        positive = (states * table[targets]).sum(-1)
        negative = torch.bmm(table[drawn], states[:, :, None])[:, :, 0]
        if c.loss == "bce":
            return binary_cross_entropy(positive, negative)
        return gbce(positive, negative, table.shape[0], c.gbce_t)

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        states = self.encoder(newest.items, newest.lengths)
        return last_states(states, newest.lengths) @ self.encoder.table.T
