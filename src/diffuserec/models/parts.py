"""Rows of a batch that several processes compute, each its part of them.

Training by several processes (:mod:`diffuserec.training.parallel`) runs the same program in each,
on the same batches and with the same draws, so that what a loss makes of a whole batch (means,
contrasts of its rows, negatives, counts) is made as one process makes it. Shared is what costs the
most, encoders and the softmax over the items: :func:`by_rows` gives each process its part of the
rows and every process the results of all.

Every process has the whole loss. It takes the gradients of a share of it, one by the number of
processes, and the sum over the processes is the gradient: the backward pass sums what they say of
the rows of each other, and is linear. Outside of such a training, all of this does nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from diffuserec.errors import LostProcess

T = TypeVar("T", Tensor, tuple[Tensor, ...])
Place = TypeVar("Place", Tensor, list[Tensor])


class Share(NamedTuple):
    """One of several processes that train together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
    """

    rank: int
    world: int

    def part_of(self, n: int) -> tuple[int, int]:
        """Its part of n rows: the first, and the one after the last."""
        least, more = divmod(n, self.world)
        first = self.rank * least + min(self.rank, more)
        return first, first + least + (self.rank < more)


class Part(NamedTuple):
    """The rows first to end of n, which are computed here."""

    first: int
    end: int
    n: int


_SHARE: ContextVar[Share | None] = ContextVar("share", default=None)
_PART: ContextVar[Part | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def shared(share: Share | None) -> Iterator[None]:
    """:func:`by_rows` gives a process its part, for as long as the context lasts; None: all."""
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)


def by_rows(function: Callable[..., T], *rows: Any, **more: Any) -> T:
    """function(*rows), computed by all processes together.

    Args:
        function: whose results, one tensor or several, have a row for each row of its arguments,
            which depends on no other row. Random numbers in it are drawn by :func:`drawn`.
        rows: arguments of as many rows, of one row that all share, or None; the first is not.
        more: arguments without rows.
    """
    share = _SHARE.get()
    if share is None or len(rows[0]) < share.world:
        return function(*rows, **more)
    n = len(rows[0])
    first, end = share.part_of(n)
    own = [x if x is None or len(x) == 1 else x[first:end] for x in rows]
    token = _PART.set(Part(first, end, n))
    try:
        with shared(None):
            found = function(*own, **more)
    finally:
        _PART.reset(token)
    if isinstance(found, Tensor):
        return _gathered(found, n, share)
    return tuple(_gathered(values, n, share) for values in found)


def mean_by_rows(function: Callable[..., Tensor], *rows: Tensor) -> Float[Tensor, ""]:
    """A mean over rows, of which every process takes the mean over its part."""
    share = _SHARE.get()
    if share is None or len(rows[0]) < share.world:
        return function(*rows)
    n = len(rows[0])
    first, end = share.part_of(n)
    with shared(None):
        own = function(*(values[first:end] for values in rows))
    return _gathered(own[None] * ((end - first) / n), share.world, share).sum()


def drawn(draw: Callable[[int], Tensor], n: int) -> Tensor:
    """Random numbers for n rows, first axis; within :func:`by_rows` the same as for all rows.

    Args:
        draw: makes them for so many rows.
    """
    part = _PART.get()
    if part is None:
        return draw(n)
    each, rest = divmod(n, part.end - part.first)
    assert not rest, f"{n} rows drawn for a part of {part.end - part.first}"
    return draw(each * part.n)[each * part.first : each * part.end]


def in_part() -> bool:
    """Whether a part of the rows is being computed: draws have to be made by :func:`drawn`."""
    return _PART.get() is not None


def summed(counts: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """What is counted of rows: within :func:`by_rows`, the sum over the parts."""
    return counts if not in_part() else collective(dist.all_reduce, counts.clone())


def collective(call: Callable[..., Any], place: Place, *others: Any) -> Place:
    """Calls a function of torch.distributed, which puts its result into `place`, and returns that.

    Raises:
        LostProcess: a process has ended, or does not answer.
    """
    try:
        call(place, *others)
    except RuntimeError as error:
        raise LostProcess(
            f"process {dist.get_rank()}: another process of this training has ended or does not "
            "answer; what was trained up to the last epoch is in the checkpoint (--resume)"
        ) from error
    return place


def _gathered(own: Tensor, n: int, share: Share) -> Tensor:
    found: Tensor = _Gather.apply(own, n, share)  # type: ignore[no-untyped-call]
    return found


class _Gather(torch.autograd.Function):
    """The rows of all processes, in their order."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int, share: Share) -> Tensor:
        ctx.part, ctx.dtype = share.part_of(n), own.dtype
        most = -(-n // share.world)
        sent = own.contiguous()
        if len(own) < most:
            sent = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        parts = list(own.new_empty(share.world, *sent.shape))
        collective(dist.all_gather, parts, sent)
        sizes = (share._replace(rank=rank).part_of(n) for rank in range(share.world))
        return torch.cat(
            [part[: end - first] for part, (first, end) in zip(parts, sizes, strict=True)]
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # in float32: sums of what was rounded before would be rounded again
        whole = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True).contiguous()
        collective(dist.all_reduce, whole)
        first, end = ctx.part
        return whole[first:end].to(ctx.dtype), None, None
