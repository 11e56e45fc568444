"""Progress of a fit on standard error: a bar on a terminal, else a line an epoch."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from torch import Tensor

from diffuserec.models.base import Epoch, Runtime


class Progress:
    """Progress of one phase: each epoch is begun, stepped through and ended."""

    def __init__(self, runtime: Runtime, phase: str, epochs: int, n_batches: int) -> None:
        console = Console(stderr=True)
        shown = runtime.progress is not False
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[status]}"),
        )
        self.bar = bars.Progress(
            *columns, console=console, disable=not (shown and console.is_terminal), transient=True
        )
        self.lines = runtime.progress is True and not console.is_terminal
        self.phase, self.epochs, self.n_batches = phase, epochs, n_batches
        self.begun = time.perf_counter()
        self.n_before: int | None = None
        self.task = self.bar.add_task(phase, total=n_batches, status="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def begin(self, records: Sequence[Epoch]) -> None:
        """Begins the epoch after these."""
        self.records = records
        if self.n_before is None:  # epochs of an earlier part of a resumed fit
            self.n_before = len(records)
        self.start = time.perf_counter()
        text = f"{self.phase} {len(records) + 1}/{self.epochs}"
        self.bar.reset(self.task, total=self.n_batches, description=text)

    def step(self, total: Tensor, n: int) -> None:
        """Tells that n batches are done, whose losses sum to `total`."""
        if self.bar.disable:
            return
        self.bar.update(self.task, advance=1)
        if n % 20 == 1:  # reading the loss waits for the device
            done = len(self.records) + n / self.n_batches
            best = best_epoch(self.records)
            words = [f"loss {float(total) / n:.3f}"]
            if best >= 0:
                last, top = self.records[-1].valid, self.records[best].valid
                words.append(f"valid {last:.4f} (best {top:.4f})")
            words += [f"{n / (time.perf_counter() - self.start):.0f} it/s", self._left(done)]
            self.bar.update(self.task, status=" ".join(words))

    def end(self, records: Sequence[Epoch]) -> None:
        """Ends the last of these epochs."""
        if not self.lines:
            return
        record = records[-1]
        words = [f"{self.phase}: epoch {len(records)} of {self.epochs}", f"loss {record.loss:.4f}"]
        if record.valid is not None:
            best = " (best)" if best_epoch(records) == len(records) - 1 else ""
            words.append(f"valid {record.valid:.4f}{best}")
        words += [f"{record.seconds:.1f} s", self._left(len(records))]
        print(", ".join(words), file=sys.stderr, flush=True)

    def _left(self, done: int | float) -> str:
        """Time until all epochs are trained, validation included; patience may end it earlier."""
        elapsed = time.perf_counter() - self.begun
        left = elapsed / (done - (self.n_before or 0)) * (self.epochs - done)
        return f"at most {duration(left)} left"


def best_epoch(records: Sequence[Epoch]) -> int:
    """Number of the first epoch with the best validation metric; -1 if none was measured."""
    metrics = [record.valid for record in records if record.valid is not None]
    return metrics.index(max(metrics)) if metrics else -1


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
