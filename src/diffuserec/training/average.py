"""Running averages of a method's parameters (Polyak & Juditsky, 1992), as exponential ones."""

import contextlib
import math
from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from diffuserec.training.rows import RowAdam

_AT_ONCE = 2**16
"""Rows treated at once, so that what is made on the way stays small beside a table."""


class Average:
    """Exponential running averages of parameters, which can take the parameters' place.

    An update keeps 1 - 1 / `n_steps` of the averages; after n updates at most (1 + n) / (10 + n),
    so that the first parameters are soon forgotten. Of a parameter whose optimizer moves some rows
    a step, a row is averaged when it is about to be moved, and all rows by :meth:`settle`: a row
    that stands still for k updates is kept by the product of their shares. It takes no notice that
    momentum moves the row a little in the first of these.

    Args:
        n_steps: mean age of what is averaged, in updates; averages over one or less are the
            parameters.
        optimizer: that moves them.
    """

    def __init__(
        self, method: nn.Module, n_steps: float, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.decay = 1 - 1 / max(n_steps, 1)
        self.parameters = list(method.parameters())
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.n_updates = 0
        self.by_row: dict[nn.Parameter, _ByRow] = {}
        if isinstance(optimizer, RowAdam):
            optimizer.before_change = self._before_change

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters as they are now."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        values: list[Tensor] = []
        parameters: list[Tensor] = []
        for value, parameter in zip(self.values, self.parameters, strict=True):
            if parameter in self.by_row:
                self.by_row[parameter].decays(decay)
            else:
                values.append(value)
                parameters.append(parameter)
        if values:
            torch._foreach_lerp_(values, parameters, 1 - decay)  # one kernel on a GPU

    @torch.no_grad()
    def settle(self) -> None:
        """Averages what is still to be averaged of rows; their optimizer has settled before."""
        for rows in self.by_row.values():
            rows.settle()

    def _before_change(self, parameter: nn.Parameter, rows: Int64[Tensor, " R"] | None) -> None:
        """Averages rows that are about to be moved; None are all, from now on at every update."""
        if rows is None:
            if parameter in self.by_row:
                self.by_row.pop(parameter).settle()
            return
        if parameter not in self.by_row:
            index = next(i for i, own in enumerate(self.parameters) if own is parameter)
            self.by_row[parameter] = _ByRow(self.values[index], parameter)
        self.by_row[parameter].average(rows)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the averages and the parameters."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parts = (value, parameter) if value.ndim else (value[None], parameter[None])
            for mine, own in zip(*(part.split(_AT_ONCE) for part in parts), strict=True):
                current = own.clone()
                own.copy_(mine)
                mine.copy_(current)

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


class _ByRow:
    """Averages of a parameter, of which each row is as old as its last move."""

    def __init__(self, value: Tensor, parameter: nn.Parameter) -> None:
        self.value, self.parameter = value, parameter
        self.last = torch.zeros(len(parameter), dtype=torch.int32, device=parameter.device)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.n = 0
        self.last.zero_()
        # log of the product of the shares kept by the updates so far
        self.log_kept = torch.zeros(1024, device=self.parameter.device)

    def decays(self, decay: float) -> None:
        """One more update, which no row has seen yet."""
        self.n += 1
        if self.n == len(self.log_kept):
            self.log_kept = torch.cat([self.log_kept, torch.zeros_like(self.log_kept)])
        self.log_kept[self.n] = self.log_kept[self.n - 1] + math.log(max(decay, 1e-30))

    def average(self, rows: Int64[Tensor, " R"]) -> None:
        """Brings rows up to date with all updates so far."""
        kept = torch.exp(self.log_kept[self.n] - self.log_kept[self.last[rows].long()])
        kept = kept.view(-1, *(1,) * (self.parameter.ndim - 1))
        now, before = self.parameter.index_select(0, rows), self.value.index_select(0, rows)
        self.value.index_copy_(0, rows, now.lerp(before, kept))
        self.last[rows] = self.n

    def settle(self) -> None:
        """Brings all rows up to date; those that never moved are."""
        for rows in torch.arange(len(self.value), device=self.value.device).split(_AT_ONCE):
            part = slice(rows[0], rows[-1] + 1)
            apart = self.parameter[part] != self.value[part]
            self.average(rows[apart.any(1) if apart.ndim > 1 else apart])
        self._begin_anew()
