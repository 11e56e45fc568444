"""Parts of encoders in NumPy, and blocks beside a sequence, for states written out by hand."""

import numpy as np
import torch

from diffuserec.models.encoders.transformer import TransformerEncoder, rotations


def norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    """(x - mean) / std of each position, scaled and shifted."""
    centered = x - x.mean(1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-12)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + torch.erf(torch.from_numpy(x) / 2**0.5).numpy()) / 2


def with_a_block(
    encoder: TransformerEncoder, sequence: torch.Tensor, block: torch.Tensor
) -> torch.Tensor:
    """States of a block behind a sequence: one pass over both, in which the sequence is causal."""
    n, total = len(sequence), len(sequence) + len(block)
    position = torch.arange(total)
    distance = position[:, None] - position
    visible = (distance >= 0) | (position[:, None] >= n)
    bias = torch.zeros(1, encoder.n_heads, total, total)
    if encoder.kind == "relative":
        bias = encoder.distances(distance + encoder.max_len - 1).permute(2, 0, 1)[None]
    if encoder.kind == "alibi":
        slopes = [2 ** (-8 * head / encoder.n_heads) for head in range(1, encoder.n_heads + 1)]
        bias = torch.stack([-slope * distance.abs() for slope in slopes])[None]
    states = torch.cat([sequence, block])[None]
    if encoder.kind == "from_oldest":
        states = states + encoder.positions.weight[:total]
    states = encoder.norm(states)
    width = sequence.shape[1] // encoder.n_heads
    turns = rotations(position, width) if encoder.kind == "rotary" else None
    for layer in encoder.layers:
        states = layer(states, bias.masked_fill(~visible, -torch.inf), turns)
    return states[0, n:]
