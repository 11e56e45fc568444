"""Hyper-parameters that methods share: what each has of its own stands in its ``Config``.

One class says what belongs to one thing (an encoder, the next-item loss, a contrast), and the
settings of a method put them together. An encoder's settings make it.
"""

from typing import Literal, Self

from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.contracts import Settings
from diffuserec.losses import info_nce
from diffuserec.nn.convolutional import CaserEncoder
from diffuserec.nn.encoders import SequenceEncoder, TransformerEncoder
from diffuserec.nn.recurrent import GRUEncoder


class _Widths(Settings):
    dim: int = Field(64, ge=1)
    """Width D of items and states."""
    max_len: int = Field(50, ge=1)
    """Newest items that the model sees."""


class _Blocks(_Widths):
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not divisible by n_heads {self.n_heads}")
        return self


class SequenceSettings(_Widths):
    """Hyper-parameters of a model of sequences, whatever its encoder, and of its training."""

    dropout: float = Field(0.5, ge=0, lt=1)
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(64, ge=1)
    """Rows a batch, on average."""
    epochs: int = Field(100, ge=1)
    patience: int = Field(10, ge=1)
    """Epochs without a better validation NDCG@10 before training stops."""


class TransformerSettings(SequenceSettings, _Blocks):
    """Those of a transformer."""

    def transformer(
        self, vocab_size: int, causal: bool = True, n_extra: int = 0, n_more: int = 0
    ) -> TransformerEncoder:
        """The encoder of these settings.

        `n_extra` tokens that are no items, and `n_more` positions than `max_len`.
        """
        return TransformerEncoder(
            vocab_size,
            self.dim,
            self.n_layers,
            self.n_heads,
            self.max_len + n_more,
            self.dropout,
            causal,
            n_extra,
        )


class RecurrentSettings(SequenceSettings):
    """Those of gated recurrent units."""

    hidden_dim: int = Field(128, ge=1)
    """Units."""

    def gru(self, vocab_size: int, n_extra: int = 0) -> GRUEncoder:
        """The encoder of these settings; `n_extra` tokens that are no items."""
        return GRUEncoder(vocab_size, self.dim, self.hidden_dim, self.dropout, n_extra)


class ConvolutionalSettings(SequenceSettings):
    """Those of Caser's convolutions."""

    window: int = Field(5, ge=1)
    """Newest items that a state sees; of filters, every height from 1 to it."""
    n_horizontal: int = Field(16, ge=1)
    """Filters of each height."""
    n_vertical: int = Field(4, ge=1)
    """Weighted sums of the window's items."""
    rectified: bool = False
    """Whether a state is a ReLU, without negative components, or a LayerNorm."""

    def caser(self, vocab_size: int, n_extra: int = 0) -> CaserEncoder:
        """The encoder of these settings; `n_extra` tokens that are no items."""
        return CaserEncoder(
            vocab_size,
            self.dim,
            self.window,
            self.n_horizontal,
            self.n_vertical,
            self.dropout,
            self.rectified,
            n_extra,
        )


class AnyEncoderSettings(TransformerSettings, RecurrentSettings, ConvolutionalSettings):
    """Those of a model for any encoder; each reads its own."""

    encoder: Literal["transformer", "gru", "caser"] = "transformer"

    def chosen(self, vocab_size: int, causal: bool = True, n_extra: int = 0) -> SequenceEncoder:
        """The encoder that was chosen; only the transformer can be other than causal."""
        if self.encoder == "gru":
            return self.gru(vocab_size, n_extra)
        if self.encoder == "caser":
            return self.caser(vocab_size, n_extra)
        return self.transformer(vocab_size, causal, n_extra)


class LossSettings(Settings):
    """Those of a model that predicts each next item, whatever its encoder."""

    loss: Literal["softmax", "bce", "gbce", "sampled_softmax", "bpr_max"] = "softmax"
    """Of the next item; see diffuserec.losses."""
    n_negatives: int | None = Field(None, ge=1)
    """For the sampled losses; by default 1 for bce, 256 for gbce, 1000 for the other two."""
    gbce_t: float = Field(0.75, ge=0, le=1)
    """Calibration of gbce: 0 is plain bce."""
    rows: Literal["users", "windows", "prefixes"] = "users"
    """What a training row is: a user's newest max_len items, every one a target; as many such
    windows as it takes for every item to be a target; or a row for every item, its only target."""

    @property
    def gives_logits(self) -> bool:
        return self.loss in ("softmax", "sampled_softmax")


class TargetsSettings(LossSettings):
    """Those of one whose positions may predict more than the next item."""

    n_targets: int = Field(1, ge=1)
    """Next items that each position predicts."""

    @model_validator(mode="after")
    def _has_targets(self) -> Self:
        if self.n_targets > 1 and self.rows == "prefixes":
            raise ValueError(
                f"n_targets {self.n_targets} needs rows='users' or 'windows': a prefix has one"
            )
        return self


class NextItemSettings(LossSettings, TransformerSettings):
    """Those of a transformer that predicts each next item, as SASRec does."""


class ContrastSettings(SequenceSettings):
    """Those of a model that contrasts a batch's sequences with each other."""

    similarity: Literal["dot", "cosine"] = "dot"
    """Of two sequences' states, whose norm is about the square root of dim."""
    temperature: float = Field(1.0, gt=0)
    """What similarities of sequences are divided by."""

    def contrast(
        self,
        anchors: Float[Tensor, "B D"],
        positives: Float[Tensor, "B D"],
        two_way: bool = True,
        labels: Int[Tensor, " B"] | None = None,
        negatives: Float[Tensor, "N D"] | None = None,
    ) -> Float[Tensor, ""]:
        """:func:`diffuserec.losses.info_nce` with these settings."""
        return info_nce(
            anchors,
            positives,
            two_way=two_way,
            labels=labels,
            negatives=negatives,
            similarity=self.similarity,
            temperature=self.temperature,
        )

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if self.batch_size < 2:
            raise ValueError(
                "batch_size 1 leaves a sequence nothing to be told apart from: "
                "a contrast needs 2 or more"
            )
        return self


class ContrastiveSettings(ContrastSettings, NextItemSettings):
    """Those of a next-item transformer that also contrasts a batch's sequences."""


class PairSettings(Settings):
    """Those of a model of users and items that knows nothing of sequences."""

    dim: int = Field(64, ge=1)
    """Width D of users and items."""
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(1024, ge=1)
    """Interactions a batch."""
    epochs: int = Field(100, ge=1)
    patience: int = Field(10, ge=1)
    """Epochs without a better validation NDCG@10 before training stops."""
