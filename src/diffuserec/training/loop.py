"""The training loop: a function that a method's ``learn`` calls, once for each phase it has.

Everything random in an epoch is drawn from (seed, phase, epoch): the order of the batches and,
through torch's default generator, dropout and negatives. An interrupted run therefore continues to
the same parameters bit for bit from one file: parameters, their averages, best parameters,
optimizer and the record of epochs.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Epoch, Method, Runtime
from diffuserec.models.parts import shared
from diffuserec.training import parallel
from diffuserec.training.average import Average
from diffuserec.training.checkpoint import Checkpoint
from diffuserec.training.device import device_of
from diffuserec.training.progress import Progress, best_epoch
from diffuserec.training.rows import RowAdam, clip_gradients


class Update(NamedTuple):
    """One of several updates a batch.

    Attributes:
        loss: of one batch.
        moved: the only parameters that it moves; None moves all.
    """

    loss: Callable[[Any], Tensor]
    moved: Sequence[nn.Parameter] | None = None


def train(
    method: Method,
    loss: Callable[[Any], Tensor] | Sequence[Update],
    batches: Callable[[int], Iterable[Any]],
    *,
    n_batches: int,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    runtime: Runtime,
    data: SequenceDataset,
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    least_epochs: int = 0,
    phase: str = "fit",
    prepare: Callable[[], None] | None = None,
    watch: Callable[[], dict[str, float]] | None = None,
    rate: Callable[[int, int], float] | None = None,
    max_norm: float | None = None,
    average_epochs: float = 0.0,
) -> list[Epoch]:
    """Minimizes a loss; with a validation metric, stops early and keeps the best parameters.

    Args:
        method: whose parameters are trained; it is moved to the runtime's device and left in
            evaluation mode.
        loss: of one batch, which is on the device already. Several updates are made one after the
            other on each batch; the loss of the first is the one that is recorded.
        batches: the batches of an epoch, fixed by the epoch's number; each has ``to(device)``.
        data: what is trained on; its fingerprint guards a resume.
        validate: called after each epoch in evaluation mode; higher is better.
        patience: epochs without a better metric before stopping; None never stops early.
        least_epochs: patience begins to count after so many.
        prepare: called before each epoch, with gradients off, in evaluation mode; what it makes
            must follow from the parameters alone, so that a resumed run makes the same.
        watch: numbers to record after each epoch, by name; they decide nothing.
        rate: factor of the optimizer's learning rate, by the number of the epoch and of the batch
            in it; None keeps it as it is.
        max_norm: gradients that are longer are cut to this length; None cuts none.
        average_epochs: what is validated and kept are running averages of the parameters over the
            steps of about so many epochs; 0 keeps the parameters.

    Returns:
        One record an epoch, those of an earlier part of a resumed run included.

    Raises:
        ConfigError: the loss is not finite, the checkpoint is another run's, or there is no
            directory to resume from.
        DataError: there are no batches.
        LostProcess: another of several processes has ended.
        KeyboardInterrupt: passed on; the epochs completed so far are in the checkpoint.
    """
    if n_batches == 0:
        raise DataError(
            f"{method.name} has nothing to learn from: no user of the training part has 2 items; "
            "leave-one-out holds out 2 more, so give it histories of 4"
        )
    if runtime.resume and runtime.checkpoint is None:
        raise ConfigError("resume needs the checkpoint directory of the interrupted run")
    epochs = min(epochs, (runtime.stop_after or {}).get(phase, epochs))
    device = device_of(runtime)
    method.to(device)
    average = Average(method, average_epochs * n_batches, optimizer) if average_epochs else None
    by_row = optimizer if isinstance(optimizer, RowAdam) else None
    share = parallel.share()
    if share is not None and share.rank:
        runtime = replace(runtime, progress=False)
    checkpoint = Checkpoint(method, optimizer, runtime, data, phase, average)
    full_rates = [group["lr"] for group in optimizer.param_groups]
    records, best = checkpoint.load() if runtime.resume else ([], None)
    if share is not None:
        parallel.start_alike(method)
    updates = [Update(loss)] if callable(loss) else loss
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=runtime.precision == "bf16")
    stopped = False
    with (
        Progress(runtime, phase, epochs, n_batches) as progress,
        torch.random.fork_rng(),
        contextlib.nullcontext() if by_row is None else by_row.reading(method),
    ):
        while not (
            stopped or len(records) >= epochs or _exhausted(records, patience, least_epochs)
        ):
            epoch = len(records)
            torch.manual_seed(_epoch_seed(runtime.seed, phase, epoch))
            start = time.perf_counter()
            if prepare is not None:
                method.eval()
                with torch.no_grad():
                    prepare()
            method.train()
            progress.begin(records)
            total, n = torch.zeros((), device=device), 0
            for batch in batches(epoch):
                batch = batch.to(device)
                if rate is not None:
                    factor = rate(epoch, n)
                    for group, full in zip(optimizer.param_groups, full_rates, strict=True):
                        group["lr"] = full * factor
                for number, update in enumerate(updates):
                    with autocast, shared(share):
                        value = update.loss(batch)
                    optimizer.zero_grad(set_to_none=True)
                    if share is None:
                        value.backward(inputs=update.moved)
                    else:
                        (value / share.world).backward(inputs=update.moved)
                        parallel.sum_gradients(method.parameters())
                    if max_norm is not None:
                        clip_gradients(method.parameters(), max_norm)
                    optimizer.step()  # passes over parameters without a gradient
                    if number == 0:
                        total += value.detach()
                if average is not None:
                    average.update()
                n += 1
                if n % 50 == 0 or n == 1:
                    _require_finite(total, phase, epoch)
                progress.step(total, n)
            _require_finite(total, phase, epoch)
            if share is not None:
                parallel.require_like_draws()
            if by_row is not None:
                by_row.settle()
            if average is not None:
                average.settle()
            seconds = time.perf_counter() - start
            method.eval()
            seen = validate is not None or watch is not None
            with average.in_place() if average is not None and seen else contextlib.nullcontext():
                metric = parallel.agreed(validate()) if validate is not None else None
                watched = watch() if watch is not None else {}
                mean = float(total) / max(n, 1)
                measured = time.perf_counter() - start - seconds
                records.append(Epoch(phase, epoch, mean, metric, seconds, watched, measured))
                if metric is not None and best_epoch(records) == epoch:
                    best = {name: tensor.clone() for name, tensor in method.state_dict().items()}
            checkpoint.save(records, best)
            progress.end(records)
            stopped = runtime.on_epoch is not None and runtime.on_epoch(records[-1]) is True
            stopped = bool(parallel.agreed(stopped))
    if best is not None:
        method.load_state_dict(best)
    elif average is not None:
        average.swap()
    method.eval()
    return records


def _epoch_seed(seed: int, phase: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{phase}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _exhausted(records: list[Epoch], patience: int | None, least: int) -> bool:
    best = best_epoch(records)
    waited = len(records) - 1 - max(best, least)
    return patience is not None and best >= 0 and waited >= patience


def _require_finite(total: Tensor, phase: str, epoch: int) -> None:
    if not bool(torch.isfinite(total)):
        raise ConfigError(
            f"the loss of phase {phase!r} became {float(total)} in epoch {epoch + 1}: "
            "try a smaller learning_rate (a tenth), precision fp32, or fewer layers"
        )
