"""Which diffusion step each row of a training batch is corrupted to.

Sources:
    Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020: algorithm 1,
    uniform steps.
    Song, Meng and Ermon's released DDIM code draws them in mirrored pairs (antithetic), as do
    systems built on it: same distribution per row, less variance of the batch's loss.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def uniform(n: int, num_train_timesteps: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draws n independent steps, uniform over 0..T-1, on the generator's device."""
    return torch.randint(num_train_timesteps, (n,), generator=generator, device=generator.device)


def antithetic(n: int, num_train_timesteps: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draws n steps in mirrored pairs t and T - 1 - t, each uniform over 0..T-1.

    Row i is paired with row i + ceil(n / 2); if n is odd, the last row of the first half is alone.
    """
    half = uniform((n + 1) // 2, num_train_timesteps, generator)
    return torch.cat([half, num_train_timesteps - 1 - half])[:n]
