"""Parts of encoders in NumPy, for states written out by hand."""

import numpy as np
import torch


def norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    """(x - mean) / std of each position, scaled and shifted."""
    centered = x - x.mean(1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-12)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + torch.erf(torch.from_numpy(x) / 2**0.5).numpy()) / 2
