"""A denoiser of sequences: restores clean embeddings at every position from noised ones."""

from collections.abc import Iterable
from typing import Annotated, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Search
from diffuserec.models.encoders import initialize, real_keys
from diffuserec.models.encoders.transformer import TransformerBlock
from diffuserec.models.settings import ContrastiveSettings, HeadsSettings, NoiseSettings
from diffuserec.models.step_embeddings import sinusoidal


class DenoiserSettings(HeadsSettings, ContrastiveSettings, NoiseSettings):
    """Hyper-parameters of a contrastive method whose views a :class:`SequenceDenoiser` makes."""

    dim: Annotated[int, Search(choices=(32, 64, 128))] = Field(64, ge=4, multiple_of=2)
    """Width D of items and states; even, for the step's sinusoid."""
    beta_schedule: Literal["sqrt", "linear", "cosine"] = "linear"
    """Name of the noise schedule."""
    n_denoiser_layers: int = Field(1, ge=1)
    """Blocks of the denoiser."""


class SequenceDenoiser(nn.Module):
    """Transformer that restores clean embeddings; each position sees all others.

    The diffusion step enters as a small network of its sinusoid, added to the noised embeddings.

    Args:
        dim: width D, even and at least 4, for the sinusoid.
        n_layers: blocks of its own; 0 if it is always called with another encoder's.
    """

    def __init__(self, dim: int, n_layers: int, n_heads: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_len, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.of_step = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, n_heads, dropout, causal=False) for _ in range(n_layers)
        )
        self.apply(initialize)

    def forward(
        self,
        x_t: Float[Tensor, "B L D"],
        t: Int[Tensor, " B"],
        lengths: Int[Tensor, " B"],
        blocks: Iterable[nn.Module] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The restored embeddings; `blocks` are used instead of its own."""
        step = self.of_step(sinusoidal(t, x_t.shape[2]))[:, None]
        states: Tensor = self.norm(x_t + step + self.positions.weight[: x_t.shape[1]])
        states = self.dropout(states)
        seen = real_keys(lengths, x_t.shape[1])
        for block in self.blocks if blocks is None else blocks:
            states = block(states, seen)
        return states
