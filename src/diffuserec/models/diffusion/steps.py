"""Which diffusion step each row of a training batch is corrupted to.

Sources:
    Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020: algorithm 1,
    uniform steps.
    Song, Meng and Ermon's released DDIM code draws them in mirrored pairs (antithetic), as do
    systems built on it: same distribution per row, less variance of the batch's loss.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, section
    3.3: importance sampling by recorded losses.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def uniform(n: int, num_train_timesteps: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draws n independent steps, uniform over 0..T-1, on the generator's device."""
    return torch.randint(num_train_timesteps, (n,), generator=generator, device=generator.device)


def antithetic(n: int, num_train_timesteps: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draws n steps in mirrored pairs t and T - 1 - t, each uniform over 0..T-1.

    Row i is paired with row i + ceil(n / 2); if n is odd, the last row of the first half is alone.
    """
    half = uniform((n + 1) // 2, num_train_timesteps, generator)
    return torch.cat([half, num_train_timesteps - 1 - half])[:n]


class ImportanceSteps(nn.Module):
    """Draws steps in proportion to the root mean square of each step's newest recorded losses.

    Uniform until every step has `n_recorded` losses; then mixed with a small uniform share, so that
    no step is forgotten. The records are buffers: they go into checkpoints with the parameters.

    Args:
        num_train_timesteps: T.
        n_recorded: losses remembered of each step.
        uniform_share: of the draws once records are complete.
    """

    def __init__(
        self, num_train_timesteps: int, n_recorded: int = 10, uniform_share: float = 0.001
    ) -> None:
        super().__init__()
        self.uniform_share = uniform_share
        self.losses: Tensor
        self.counts: Tensor
        self.register_buffer("losses", torch.zeros(num_train_timesteps, n_recorded))
        self.register_buffer("counts", torch.zeros(num_train_timesteps, dtype=torch.int64))

    def probabilities(self) -> Float[Tensor, " T"]:
        """How likely each step is to be drawn."""
        n_steps, n_recorded = self.losses.shape
        uniform = torch.full((n_steps,), 1 / n_steps, device=self.losses.device)
        if bool((self.counts < n_recorded).any()):
            return uniform
        size = self.losses.square().mean(1).sqrt()
        total = size.sum()
        if not 0 < float(total) < torch.inf:  # nothing to go by, or a loss that is no number
            return uniform
        return (1 - self.uniform_share) * size / total + self.uniform_share * uniform

    @torch.no_grad()
    def record(self, steps: Int[Tensor, " n"], losses: Float[Tensor, " n"]) -> None:
        """Remembers the unweighted losses of these steps, the newest of each.

        A step may occur any number of times; rows are taken as oldest first.
        """
        n_recorded = self.losses.shape[1]
        ordered, order = torch.sort(steps, stable=True)
        sizes = torch.bincount(ordered, minlength=len(self.counts))
        first = (sizes.cumsum(0) - sizes)[ordered]
        turn = torch.arange(len(steps), device=steps.device) - first
        kept = turn >= sizes[ordered] - n_recorded
        place = (self.counts[ordered] + turn) % n_recorded
        self.losses[ordered[kept], place[kept]] = losses[order][kept].to(self.losses)
        self.counts += sizes
