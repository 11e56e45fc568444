"""HSTU: pointwise gated attention that predicts each next item from those before it.

Source: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
Generative Recommendations", ICML 2024 (arXiv 2402.17152). ``--preset as_published`` is the authors'
released recipe for MovieLens-1M (HSTU-large), as far as the departures allow.

Departures:
- The full softmax over dot products; the released code samples 128 or more negatives and compares
  normed vectors with a temperature. ``loss="sampled_softmax"`` samples, too.
- The bias by times is an option, ``time_bias``, and reads no time of the target: see the encoder.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.settings import (
    EncoderName,
    NextItemSettings,
    PlainSettings,
    has_heads,
)
from diffuserec.training import NextItemRecommender


class HSTU(NextItemRecommender):
    """Pointwise attention with tied item embeddings."""

    class Config(PlainSettings, NextItemSettings):
        """Hyper-parameters of HSTU."""

        gives_times: ClassVar[bool] = True

        encoder: EncoderName = "hstu"
        """Name of the sequence encoder."""
        n_heads: Annotated[int, OnlyIf(encoder=has_heads)] = Field(1, ge=1)
        """Attention heads; a divisor of dim."""
        time_bias: Annotated[bool, OnlyIf(encoder="hstu")] = False
        """Whether the time between two items matters, where the log has times."""
        dropout: float = Field(0.2, ge=0, lt=1)
        """Share of values that training sets to zero."""
        batch_size: int = Field(128, ge=1)
        """Training examples a batch, on average."""

    config: Config
    as_published: ClassVar[Mapping[str, Any]] = {
        "dim": 50,
        "max_len": 200,
        "n_layers": 8,
        "n_heads": 2,
        "time_bias": True,
        "loss": "sampled_softmax",
        "n_negatives": 128,
        "epochs": 101,
        "patience": 101,
        "average_epochs": 0.0,
    }
