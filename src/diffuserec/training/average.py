"""Running averages of a method's parameters (Polyak & Juditsky, 1992), as exponential ones."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """Exponential running averages of parameters, which can take the parameters' place.

    An update keeps 1 - 1 / `n_steps` of the averages; after n updates at most (1 + n) / (10 + n),
    so that the first parameters are soon forgotten.

    Args:
        n_steps: mean age of what is averaged, in updates; averages over one or less are the
            parameters.
    """

    def __init__(self, method: nn.Module, n_steps: float) -> None:
        self.decay = 1 - 1 / max(n_steps, 1)
        self.parameters = list(method.parameters())
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.n_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters as they are now."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the averages and the parameters."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            current = parameter.clone()
            parameter.copy_(value)
            value.copy_(current)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Averages stand where the parameters were, for as long as the context lasts."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def tensors(self) -> dict[str, Tensor]:
        """The averages and the number of updates, by name, for a checkpoint."""
        named = {str(index): value for index, value in enumerate(self.values)}
        return named | {"n_updates": torch.tensor(self.n_updates)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what :meth:`tensors` gave."""
        self.n_updates = int(tensors["n_updates"])
        for index, value in enumerate(self.values):
            value.copy_(tensors[str(index)])
