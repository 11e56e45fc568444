"""The training loop: a function that a method's ``fit`` calls, once for each phase it has.

Everything random in an epoch is drawn from (seed, epoch): the order of the batches and, through
torch's default generator, dropout and negatives. An interrupted run therefore continues to the
same parameters bit for bit from what stands in one file: parameters, best parameters, optimizer
and the record of epochs. That file is replaced in one step after every epoch.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffuserec.contracts import Method, Run
from diffuserec.data import (
    Batch,
    Histories,
    Pairs,
    Queries,
    Rows,
    SequenceDataset,
    history_batches,
    pair_batches,
    training_batches,
    training_rows,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.losses import (
    binary_cross_entropy,
    bpr_max,
    gbce,
    sampled_softmax,
    seen_keys,
    softmax_cross_entropy,
    uniform_negatives,
)
from diffuserec.nn.encoders import SequenceEncoder
from diffuserec.nn.users import UserTable
from diffuserec.ranking import hide, seen_pairs, target_ranks
from diffuserec.settings import ContrastSettings, LossSettings


@dataclass(frozen=True)
class Epoch:
    """What one epoch of one phase came to.

    Attributes:
        phase: which call of :func:`train` it belongs to.
        epoch: from 0.
        loss: mean of the batches' losses.
        valid: the validation figure, higher is better; None where there is none.
        seconds: of training and what prepares it, without validation.
        watched: other figures of this epoch, by name.
    """

    phase: str
    epoch: int
    loss: float
    valid: float | None
    seconds: float
    watched: dict[str, float] = field(default_factory=dict)


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
    run: Run,
    data: SequenceDataset,
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    phase: str = "fit",
    prepare: Callable[[], None] | None = None,
    watch: Callable[[], dict[str, float]] | None = None,
    rate: Callable[[int], float] | None = None,
) -> list[Epoch]:
    """Minimizes a loss; with a validation figure, stops early and keeps the best parameters.

    Where the data has variants, the loss of a batch's variants is added to its own by the weight
    of their schedule, and training does not stop early before all of them were in use.

    Args:
        method: whose parameters are trained; it is moved to the run's device and left in
            evaluation mode.
        loss: of one batch, which is on the device already. Several updates are made one after the
            other on each batch; the loss of the first is the one that is recorded.
        batches: the batches of an epoch, fixed by the epoch's number.
        n_batches: how many an epoch has, for the progress bar.
        optimizer: over the method's parameters.
        epochs: at most so many.
        run: device, precision, seed, progress, checkpoint.
        data: what is trained on; its fingerprint guards a resume.
        validate: called after each epoch in evaluation mode.
        patience: epochs without a better figure before stopping; None never stops early.
        phase: name of this call within a fit.
        prepare: called before each epoch, with gradients off, in evaluation mode; what it makes
            must follow from the parameters alone, so that a resumed run makes the same.
        watch: figures to record after each epoch, by name; they decide nothing.
        rate: what the optimizer's learning rate is multiplied by in an epoch, by its number; None
            keeps it as it is.

    Returns:
        One record an epoch, those of an earlier part of a resumed run included.

    Raises:
        ConfigError: the loss is not finite, the checkpoint is another run's, or the epochs end
            before all variants are in use.
        DataError: there are no batches.
        KeyboardInterrupt: passed on; the epochs completed so far are in the checkpoint.
    """
    if n_batches == 0:
        raise DataError(
            f"{method.name} has nothing to learn from: no user of the training part has 2 items; "
            "leave-one-out holds out 2 more, so give it histories of 4"
        )
    accelerator = _accelerator(run)
    method.to(accelerator.device)
    checkpoint = _Checkpoint(method, optimizer, run, data, phase)
    records, best = checkpoint.load() if run.resume else ([], None)
    scheduler = None if rate is None else LambdaLR(optimizer, rate, last_epoch=len(records) - 1)
    updates = [Update(loss)] if callable(loss) else loss
    others = data.variants
    least = 0 if others is None else others.schedule.n_epochs(len(others))
    if others is not None:
        others.schedule.require_epochs(epochs, len(others))
    with _progress(run) as progress, torch.random.fork_rng():
        bar = progress.add_task(phase, total=n_batches, status="")
        while len(records) < epochs and not _exhausted(records, patience, least):
            epoch = len(records)
            torch.manual_seed(_epoch_seed(run.seed, phase, epoch))
            start = time.perf_counter()
            if prepare is not None:
                method.eval()
                with torch.no_grad():
                    prepare()
            method.train()
            progress.reset(bar, total=n_batches, description=f"{phase} {epoch + 1}/{epochs}")
            total, n = torch.zeros((), device=accelerator.device), 0
            for batch in batches(epoch):
                batch = batch.to(accelerator.device)
                for number, update in enumerate(updates):
                    with accelerator.autocast():
                        value = update.loss(batch)
                        variants = getattr(batch, "variants", None)
                        if variants is not None:
                            value = value + batch.variants_weight * update.loss(variants)
                    optimizer.zero_grad(set_to_none=True)
                    accelerator.backward(value, inputs=update.moved)
                    optimizer.step()  # passes over parameters without a gradient
                    total += value.detach() if number == 0 else 0
                n += 1
                if n % 50 == 0 or n == 1:
                    _require_finite(total, phase, epoch)
                if not progress.disable:
                    progress.update(bar, advance=1, status=_status(total, n, start, records))
            _require_finite(total, phase, epoch)
            seconds = time.perf_counter() - start
            method.eval()
            figure = validate() if validate is not None else None
            watched = watch() if watch is not None else {}
            mean = float(total) / max(n, 1)
            records.append(Epoch(phase, epoch, mean, figure, seconds, watched))
            if figure is not None and _best_epoch(records) == epoch:
                best = {name: tensor.clone() for name, tensor in method.state_dict().items()}
            checkpoint.save(records, best)
            if scheduler is not None:
                scheduler.step()
    if best is not None:
        method.load_state_dict(best)
    method.eval()
    return records


def validation(
    method: Method,
    score: Callable[[Histories], Tensor],
    valid: Queries,
    batch_size: int = 512,
) -> Callable[[], float]:
    """NDCG@10 on validation queries, full ranking, seen items hidden: what chooses an epoch.

    Args:
        method: on whose device the scores are made.
        score: histories to scores (B, V).
        valid: the queries.
        batch_size: histories scored at once.

    Raises:
        DataError: there are no queries.
    """
    if not len(valid):
        raise DataError(
            "there are no validation queries to choose an epoch by: leave valid out to train all "
            "epochs"
        )

    @torch.inference_mode()
    def figure() -> float:
        gain = 0.0
        targets = torch.from_numpy(valid.targets)
        for rows, histories in history_batches(valid.histories, batch_size):
            scores = score(histories.to(method.device))
            if bool(scores.isnan().any()):
                raise ConfigError(
                    "the model's scores are not numbers: try a smaller learning_rate (a tenth)"
                )
            owner, seen = seen_pairs(valid.histories, rows)
            hide(scores, (owner.to(scores.device), seen.to(scores.device)))
            ranks = target_ranks(scores, targets[rows].to(scores.device))
            gain += float((1 / torch.log2(ranks[ranks < 10] + 2)).sum())
        return gain / len(valid)

    return figure


def next_item(
    c: LossSettings, data: SequenceDataset, n_targets: int = 1
) -> Callable[[Batch, Float[Tensor, "B L D"], Float[Tensor, "V D"]], Float[Tensor, ""]]:
    """The next-item loss of these settings: of a batch, its states and the item table.

    Args:
        c: settings.
        data: whose interactions are no negatives of bce.
        n_targets: next items that each position predicts.
    """
    of_items = item_loss(c, data)

    def loss(batch: Batch, states: Tensor, table: Tensor) -> Tensor:
        return of_items(*real_positions(batch, states, n_targets), table)

    return loss


def encoder_loss(
    encoder: SequenceEncoder, c: LossSettings, data: SequenceDataset, n_targets: int = 1
) -> Callable[[Batch], Float[Tensor, ""]]:
    """:func:`next_item` of a batch, by an encoder that makes its states and holds the table."""
    loss = next_item(c, data, n_targets)
    return lambda batch: loss(batch, encoder(batch.items, batch.lengths), encoder.table)


def item_loss(
    c: LossSettings, data: SequenceDataset
) -> Callable[
    [Float[Tensor, "P D"], Int[Tensor, " P"], Int[Tensor, " P"], Float[Tensor, "V D"]],
    Float[Tensor, ""],
]:
    """The same of single states: of states, the items they predict, their users and the table.

    Args:
        c: settings.
        data: whose interactions are no negatives of bce.
    """
    defaults = {"softmax": 0, "bce": 1, "gbce": 256, "sampled_softmax": 1000, "bpr_max": 1000}
    n = c.n_negatives or defaults[c.loss]
    seen = seen_keys(data) if c.loss == "bce" else None

    def loss(chosen: Tensor, targets: Tensor, users: Tensor, table: Tensor) -> Tensor:
        nonlocal seen
        if c.loss == "softmax":
            return softmax_cross_entropy(chosen, table, targets)
        if c.loss in ("sampled_softmax", "bpr_max"):
            shared = uniform_negatives(users[:1], n, len(table))[0]
            of_shared = bpr_max if c.loss == "bpr_max" else sampled_softmax
            return of_shared(chosen, table, targets, shared)
        if seen is not None:
            seen = seen.to(users.device)  # and there it stays
        drawn = uniform_negatives(users, n, len(table), seen)
        positive = (chosen * table[targets]).sum(-1)
        negative = torch.bmm(table[drawn], chosen[:, :, None])[:, :, 0]
        if c.loss == "bce":
            return binary_cross_entropy(positive, negative)
        return gbce(positive, negative, len(table), c.gbce_t)

    return loss


def train_next_item(
    method: Method,
    loss: Callable[[Batch], Tensor] | Sequence[Update],
    data: SequenceDataset,
    valid: Queries | None,
    run: Run,
    *,
    score: Callable[[Histories], Tensor],
    rows: Rows = "users",
    prepare: Callable[[], None] | None = None,
    watch: Callable[[], dict[str, float]] | None = None,
    phase: str = "fit",
    epochs: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    rate: Callable[[int], float] | None = None,
) -> list[Epoch]:
    """:func:`train` on next-item batches, by Adam, as most recommenders do.

    Takes ``batch_size, max_len, learning_rate, epochs, patience`` from the method's settings.

    Args:
        method: begun; its parameters are trained.
        loss: of one batch, or several updates, as for :func:`train`.
        data: the sequences.
        valid: what decides when to stop, by full ranking; None trains all epochs.
        run: surroundings.
        score: what validation ranks by.
        rows: what a row of a batch is, see :func:`training_rows`.
        prepare: as for :func:`train`.
        watch: as for :func:`train`.
        phase: as for :func:`train`.
        epochs: at most so many, if not as in the settings.
        optimizer: over the method's parameters, if not Adam.
        rate: as for :func:`train`.

    Raises:
        DataError: a method that contrasts sequences is given a single one.
    """
    c: Any = method.config
    n_rows = len(training_rows(data, c.max_len, rows)[0])
    if isinstance(c, ContrastSettings) and n_rows < 2:
        raise DataError(
            f"{method.name} tells sequences apart and needs 2 with a next item, got {n_rows}: "
            "give it more users"
        )

    def batches(epoch: int) -> Iterator[Batch]:
        return training_batches(data, c.batch_size, c.max_len, run.seed, epoch, rows)

    return train(
        method,
        loss,
        batches,
        n_batches=next_item_batches(n_rows, c.batch_size),
        optimizer=optimizer or torch.optim.Adam(method.parameters(), c.learning_rate, fused=True),
        epochs=epochs or c.epochs,
        run=run,
        data=data,
        validate=None if valid is None else validation(method, score, valid),
        patience=c.patience,
        phase=phase,
        prepare=prepare,
        watch=watch,
        rate=rate,
    )


def train_on_pairs(
    method: Method,
    loss: Callable[[Pairs], Tensor],
    data: SequenceDataset,
    valid: Queries | None,
    run: Run,
    *,
    users: UserTable,
    score: Callable[[Histories], Tensor],
) -> list[Epoch]:
    """:func:`train` on interactions, each once an epoch, by Adam.

    Takes ``batch_size, learning_rate, epochs, patience`` from the method's settings.

    Args:
        method: begun; its parameters are trained.
        loss: of one batch.
        data: whose real items are the interactions.
        valid: what decides when to stop, by full ranking; None trains all epochs.
        run: surroundings.
        users: the method's; it is left remembering the data.
        score: what validation ranks by.
    """
    c: Any = method.config
    users.remember(data)

    def batches(epoch: int) -> Iterator[Pairs]:
        return pair_batches(data, c.batch_size, run.seed, epoch)

    def validate(figure: Callable[[], float]) -> float:
        users.remember(data)
        return figure()

    records = train(
        method,
        loss,
        batches,
        n_batches=math.ceil(int(data.real_lengths.sum()) / c.batch_size),
        optimizer=torch.optim.Adam(method.parameters(), c.learning_rate, fused=True),
        epochs=c.epochs,
        run=run,
        data=data,
        validate=None if valid is None else partial(validate, validation(method, score, valid)),
        patience=c.patience,
    )
    users.remember(data)
    return records


def linear_decay(epochs: int) -> Callable[[int], float]:
    """A rate for :func:`train` that falls in a straight line, to 0 after so many epochs."""
    return lambda epoch: 1 - epoch / epochs


def next_item_batches(n_sequences: int, batch_size: int) -> int:
    """How many batches an epoch has."""
    return math.ceil(n_sequences / batch_size)


def real_positions(
    batch: Batch, states: Float[Tensor, "B L D"], n_targets: int = 1
) -> tuple[Float[Tensor, "P D"], Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Each position with each of its next `n_targets` items: states, those items, user numbers.

    Positions that have fewer come with what they have.
    """
    ahead = F.pad(batch.targets, (0, n_targets - 1)).unfold(1, n_targets, 1)
    real = ahead > 0
    users = batch.users[:, None, None].expand_as(ahead)
    return states[:, :, None].expand(-1, -1, n_targets, -1)[real], ahead[real], users[real]


def device_of(run: Run) -> torch.device:
    """Where a run computes.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    device: torch.device = _accelerator(run).device
    return device


def _accelerator(run: Run) -> Any:
    # imported here: it takes a second, and reading a log does not need it
    from accelerate.accelerator import Accelerator
    from accelerate.state import AcceleratorState

    if run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for and torch sees none: use --device cpu")
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # one process may train at two precisions
    return Accelerator(
        cpu=run.device == "cpu", mixed_precision="bf16" if run.precision == "bf16" else "no"
    )


def _epoch_seed(seed: int, phase: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{phase}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _best_epoch(records: list[Epoch]) -> int:
    figures = [record.valid for record in records if record.valid is not None]
    return figures.index(max(figures)) if figures else -1


def _exhausted(records: list[Epoch], patience: int | None, least: int) -> bool:
    best = _best_epoch(records)
    waited = len(records) - 1 - max(best, least)
    return patience is not None and best >= 0 and waited >= patience


def _require_finite(total: Tensor, phase: str, epoch: int) -> None:
    if not bool(torch.isfinite(total)):
        raise ConfigError(
            f"the loss of phase {phase!r} became {float(total)} in epoch {epoch + 1}: "
            "try a smaller learning_rate (a tenth), precision fp32, or fewer layers"
        )


def _status(total: Tensor, n: int, start: float, records: list[Epoch]) -> str:
    best = _best_epoch(records)
    figure = f" valid {records[-1].valid:.4f} (best {records[best].valid:.4f})" if best >= 0 else ""
    return f"loss {float(total) / n:.3f}{figure} {n / (time.perf_counter() - start):.0f} it/s"


@contextlib.contextmanager
def _progress(run: Run) -> Iterator[Progress]:
    console = Console(stderr=True, force_terminal=run.progress)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        yield progress


class _Checkpoint:
    """The state after the last complete epoch of a phase, as one safetensors file."""

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        run: Run,
        data: SequenceDataset,
        phase: str,
    ) -> None:
        self.path = run.checkpoint / f"{phase}.safetensors" if run.checkpoint else None
        self.method = method
        self.optimizer = optimizer
        self.owner = {
            "method": method.name,
            "config": method.config.model_dump(mode="json"),
            "seed": run.seed,
            "precision": run.precision,
            "data": _fingerprint(data) if run.checkpoint else "",
        }

    def save(self, records: list[Epoch], best: dict[str, Tensor] | None) -> None:
        if self.path is None:
            return
        state = self.optimizer.state_dict()
        tensors = {f"model/{k}": v for k, v in self.method.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in (best or {}).items()}
        for index, slots in state["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in slots.items()}
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        metadata = {
            "owner": json.dumps(self.owner),
            "records": json.dumps([asdict(record) for record in records]),
            "groups": json.dumps(state["param_groups"]),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path)

    def load(self) -> tuple[list[Epoch], dict[str, Tensor] | None]:
        if self.path is None or not self.path.exists():
            return [], None
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.path} is damaged ({error}): start without --resume") from error
        owner = json.loads(metadata.get("owner", "{}"))
        for what, value in self.owner.items():
            if owner.get(what) != value:
                raise ConfigError(
                    f"{self.path} is the checkpoint of another run (its {what} differs): resume "
                    "with the settings and data that it was started with, or without --resume"
                )
        model = _part(tensors, "model/")
        best = _part(tensors, "best/")
        self.method.load_state_dict(model)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer/").items():
            index, _, slot = name.partition("/")
            slots.setdefault(int(index), {})[slot] = tensor
        groups = json.loads(metadata["groups"])
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        device = self.method.device
        records = [Epoch(**record) for record in json.loads(metadata["records"])]
        return records, {k: v.to(device) for k, v in best.items()} or None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _fingerprint(data: SequenceDataset) -> str:
    digest = hashlib.sha256(str(data.vocab_size).encode())
    variants = () if data.variants is None else (data.variants.items,)
    for array in (data.items, data.offsets, data.users, np.flatnonzero(data.synthetic), *variants):
        digest.update(np.ascontiguousarray(array).data)
    if data.variants is not None:
        digest.update(repr(data.variants.schedule).encode())
    return digest.hexdigest()[:32]


def checkpoint_files(directory: Path) -> list[Path]:
    """The checkpoints that a run left in a directory."""
    return sorted(directory.rglob("*.safetensors"))
