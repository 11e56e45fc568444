"""AdamW whose updates of a large table cost what the rows of a step cost.

A table that is read row by row has a gradient for those rows alone, and a step that moves two
thousand of ten million rows should not pass over all of them. What AdamW does to the others in
that step follows from what it did before: :class:`RowAdam` does it when a row is read or moved
again, and to all rows at the end of an epoch. It is therefore no other optimizer: after
:meth:`RowAdam.settle`, parameters and moments are those of AdamW, but for rounding and for the
share of ε in steps that no gradient had a part in.

Let a row be last moved in step s, with moments m and v, and moved again in step t. In the steps
between, whose learning rates are η_j, its gradient is zero, and AdamW with weight decay λ does

    m ← β₁ m,   v ← β₂ v,   w ← (1 - η_j λ) w - η_j (m / (1 - β₁^j)) / (√(v / (1 - β₂^j)) + ε)

for j = s+1 .. t-1, which together is

    m ← β₁^(t-1-s) m,   v ← β₂^(t-1-s) v,
    w ← (k_(t-1) / k_s) w - (m / (√v + ε √(1 - β₂^s))) · Σ_j c_j ρ^(j-s) k_(t-1) / k_j

with ρ = β₁ / √β₂, c_j = η_j √(1 - β₂^j) / (1 - β₁^j) and k_j the product of (1 - η_i λ) over i ≤ j.
The sums depend on s and the steps alone; each step adds its term to those of the last
:data:`_REACH` steps, after which ρ^(j-s) is nothing. Quotients of k are of a later step by an
earlier one, so that none grows however long an epoch is.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from diffuserec.models.items import ItemTable

_REACH = 256
"""Steps after which a row that is not moved stands still: (0.9 / √0.999)^256 is 2·10⁻¹²."""

_AT_ONCE = 2**16
"""Rows settled at once: what is made on the way stays small beside the table."""


class RowAdam(torch.optim.AdamW):
    """AdamW that touches only the rows of a step where a gradient is sparse.

    Parameters with dense gradients are AdamW's. A parameter may have either from step to step. A
    state dict is AdamW's and is taken after :meth:`settle`.

    Args:
        parameters: to train.
        learning_rate, weight_decay: η and λ.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay=weight_decay, fused=True)
        self.behind: dict[Tensor, _Behind] = {}
        self.before_change: Callable[[nn.Parameter, Tensor | None], None] | None = None
        """Called with a parameter and the rows, up to date, that a step is about to move; None are
        all of them."""
        self.register_step_pre_hook(lambda *_: self._rows_first())

    @torch.no_grad()
    def _rows_first(self) -> None:
        """Moves the rows of sparse gradients, which are gone then: the others are AdamW's."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    self._move_rows(parameter, group)
                    parameter.grad = None
                elif parameter in self.behind:  # all of its rows are moved
                    self._settle(parameter)
                    if self.before_change is not None:
                        self.before_change(parameter, None)
                    del self.behind[parameter]

    @torch.no_grad()
    def catch_up(self, parameter: Tensor, rows: Int64[Tensor, "*n"]) -> None:
        """Brings rows of a parameter to where AdamW would have them now."""
        if parameter in self.behind:
            self.behind[parameter].catch_up(rows.unique())

    @torch.no_grad()
    def settle(self) -> None:
        """Brings all rows of all parameters to where AdamW would have them now."""
        for parameter in self.behind:
            self._settle(parameter)

    @contextlib.contextmanager
    def reading(self, module: nn.Module) -> Iterator[None]:
        """Within the context, item tables of a module give sparse gradients of what they read.

        What is read by :meth:`ItemTable.embed` and :meth:`ItemTable.rows` is brought up to date
        first.
        """
        tables = [part for part in module.modules() if isinstance(part, ItemTable)]

        def before_reading(table: ItemTable) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def catch_up(_: nn.Module, given: tuple[Tensor, ...]) -> None:
                self.catch_up(table.vectors.weight, given[0])
                if table.bias is not None:  # special tokens have none
                    self.catch_up(table.bias, given[0][given[0] < table.vocab_size])

            return catch_up

        hooks = [t.vectors.register_forward_pre_hook(before_reading(t)) for t in tables]
        for table in tables:
            table.vectors.sparse = True
        try:
            yield
        finally:
            for table, hook in zip(tables, hooks, strict=True):
                table.vectors.sparse = False
                hook.remove()

    def _settle(self, parameter: Tensor) -> None:
        behind = self.behind[parameter]
        for rows in torch.arange(len(parameter), device=parameter.device).split(_AT_ONCE):
            behind.catch_up(behind.not_at_rest(rows))
        behind.begin_anew()

    def _move_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if parameter not in self.behind:
            self.behind[parameter] = _Behind(parameter, state, group)
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows = gradient.indices()[0]
        behind = self.behind[parameter]
        behind.catch_up(rows)
        if self.before_change is not None:
            self.before_change(parameter, rows)
        behind.move(rows, gradient.values())


class _Behind:
    """How far each row of a parameter is behind, and what it has missed.

    Steps are counted from the last time that no row was behind, which is step `first`.
    """

    def __init__(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        self.parameter, self.state, self.group = parameter, state, group
        self.betas: tuple[float, float] = group["betas"]
        self.last = torch.zeros(len(parameter), dtype=torch.int32, device=parameter.device)
        ratio = self.betas[0] / math.sqrt(self.betas[1])
        exponents = torch.arange(_REACH, 0, -1, dtype=torch.float64)
        self.powers = torch.pow(ratio, exponents).to(torch.float32).to(parameter.device)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Counts from now on; no row may be behind."""
        self.first = int(self.state["step"])
        self.n = 0
        self.last.zero_()
        size = 1024
        # of each step s the sum of the module's formula over the next ones, as of the last of
        # these, and the log of k_s
        self.drift = torch.zeros(size, device=self.parameter.device)
        self.kept = torch.zeros(size, dtype=torch.float64, device=self.parameter.device)

    def not_at_rest(self, rows: Int64[Tensor, " R"]) -> Int64[Tensor, " M"]:
        """Those of consecutive rows that something is to be done to: not what never moved."""
        if self.group["weight_decay"]:
            return rows
        moved = self.state["exp_avg_sq"][rows[0] : rows[-1] + 1]
        return rows[moved.flatten(1).any(1) if moved.ndim > 1 else moved > 0]

    def catch_up(self, rows: Int64[Tensor, " R"]) -> None:
        """Does to these rows, each of which comes once, what they have missed."""
        last = self.last[rows]
        late = last < self.n
        rows, last = rows[late], last[late].long()
        if not len(rows):
            return
        steps = (self.first + last).clamp(min=1).to(torch.float32)
        missed = (self.n - last).to(torch.float32)
        w, m, v = (x.index_select(0, rows) for x in self._tensors())
        shape = (-1,) + (1,) * (w.ndim - 1)
        floor = self.group["eps"] * torch.sqrt(1 - self.betas[1] ** steps)
        drift = self.drift[last] * self._kept_since((last + _REACH).clamp(max=self.n))
        moved = m / (v.sqrt() + floor.view(shape)) * drift.view(shape)
        w = w * self._kept_since(last).view(shape) - moved
        m = m * (self.betas[0] ** missed).view(shape)
        v = v * (self.betas[1] ** missed).view(shape)
        self._put(rows, w, m, v)

    def move(self, rows: Int64[Tensor, " R"], gradient: Tensor) -> None:
        """The next step, of rows that are not behind."""
        beta_1, beta_2 = self.betas
        rate, decay = self.group["lr"], self.group["weight_decay"]
        self.n += 1
        step = self.first + self.n
        self.state["step"] += 1
        root = math.sqrt(1 - beta_2**step)
        size = rate * root / (1 - beta_1**step)
        if self.n == len(self.drift):
            self.drift, self.kept = (torch.cat([x, torch.zeros_like(x)]) for x in self._sums())
        recent = slice(max(0, self.n - _REACH), self.n)
        self.kept[self.n] = self.kept[self.n - 1] + math.log1p(-rate * decay)
        of_recent = self.powers[-(self.n - recent.start) :] * size
        self.drift[recent].mul_(1 - rate * decay).add_(of_recent)
        w, m, v = (x.index_select(0, rows) for x in self._tensors())
        m.lerp_(gradient.to(m.dtype), 1 - beta_1)
        v.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        w.mul_(1 - rate * decay).addcdiv_(m, v.sqrt().add_(self.group["eps"] * root), value=-size)
        self._put(rows, w, m, v)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.parameter.data, self.state["exp_avg"], self.state["exp_avg_sq"]

    def _kept_since(self, steps: Int64[Tensor, " R"]) -> Tensor:
        """Share of a weight that decay has left since these steps, shape (R,)."""
        return torch.exp(self.kept[self.n] - self.kept[steps]).to(torch.float32)

    def _sums(self) -> tuple[Tensor, Tensor]:
        return self.drift, self.kept

    def _put(self, rows: Tensor, *values: Tensor) -> None:
        for whole, part in zip(self._tensors(), values, strict=True):
            whole.index_copy_(0, rows, part)
        self.last[rows] = self.n


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Cuts all gradients together, dense and sparse ones, to a length that they do not exceed."""
    parts = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            parts.append(parameter.grad.values())
        else:
            parts.append(parameter.grad)
    norm = nn.utils.get_total_norm(parts)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for part in parts:
        part.mul_(factor)
