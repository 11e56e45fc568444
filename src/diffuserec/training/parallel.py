"""Training by several processes, on one machine or many, as ``torchrun`` starts them.

All have the data, make the same batches with the same draws and compute a part of their rows each
(:mod:`diffuserec.models.parts`); after the backward pass, one sum over the processes gives all of
them the gradient that one process would have found, and all make the same step. So they train what
one process trains, but for the order of sums. They choose epochs together, each measuring a part
of the validation batches. The first process alone writes.

Processes talk by gloo, and on GPUs by nccl; who hears nothing for ten minutes gives up.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffuserec.errors import ConfigError
from diffuserec.models.dropout import FullDropout
from diffuserec.models.parts import Share, collective

_PATIENCE = timedelta(minutes=10)

_has_left = False
"""Whether this process has done its part of a training and goes on alone."""


def n_started() -> int:
    """How many processes train together, 1 without ``torchrun`` or the like."""
    if _has_left:
        return 1
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return n_started() == 1 or not int(os.environ.get("RANK") or 0)


def share() -> Share | None:
    """This process among those that train together; None if it is alone.

    Processes that ``torchrun`` started and that do not know each other yet meet here.

    Raises:
        ConfigError: the others do not come.
    """
    if n_started() == 1:
        return None
    if not dist.is_initialized():
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ConfigError(
                f"the {n_started()} processes of this training did not find each other ({reason}): "
                "start them with torchrun"
            ) from error
    return Share(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def together() -> Iterator[Share | None]:
    """:func:`share`; after the context, this process goes on alone."""
    global _has_left
    had_met = dist.is_available() and dist.is_initialized()
    found = share()
    yield found
    if found is not None:
        _has_left = True
        if not had_met:
            dist.destroy_process_group()


def meet() -> None:
    """Waits until all processes are here."""
    totals([0.0])


def require_like_draws() -> None:
    """Refuses a training in which the processes have drawn different random numbers.

    Raises:
        ConfigError: a part of a method drew for the rows of its process alone.
    """
    own = float(torch.rand((), dtype=torch.float64))
    if agreed(own) != own:
        raise ConfigError(
            "the processes of this training have drawn different random numbers: what draws in an "
            "encoder has to do so by diffuserec.models.parts.drawn, or train it in one process"
        )


def agreed(value: float | bool) -> float:
    """The first process's value, for all."""
    if n_started() == 1:
        return float(value)
    return float(collective(dist.broadcast, torch.tensor(float(value), dtype=torch.float64), 0))


def totals(values: Sequence[float]) -> list[float]:
    """Sums of numbers over the processes, to the last bit where all but one have 0."""
    if n_started() == 1:
        return list(values)
    found: list[float] = collective(
        dist.all_reduce, torch.tensor(values, dtype=torch.float64)
    ).tolist()
    return found


def start_alike(method: nn.Module) -> None:
    """Gives all processes the first one's parameters and buffers.

    Torch's dropout becomes one that draws for all rows of a batch, of which a part is computed.
    """
    for module in method.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FullDropout
    for tensor in method.state_dict().values():
        sent = tensor.detach().contiguous()
        if sent.dtype == torch.bool:  # gloo sends none
            sent = sent.to(torch.uint8)
        tensor.copy_(collective(dist.broadcast, sent, 0))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by their sums over the processes, in one call for those of one type.

    The rows that a sparse gradient holds are the same in every process.
    """
    found: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            grad = parameter.grad = grad.coalesce()
            grad = grad.values()
        found.setdefault(grad.dtype, []).append(grad)
    for grads in found.values():
        flat = collective(dist.all_reduce, torch.cat([grad.reshape(-1) for grad in grads]))
        for grad, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(summed.view_as(grad))
