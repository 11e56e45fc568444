"""The runner of studies: plans the cells, fills them on all cores, and survives what happens.

Work is done once: a fitted augmenter and a trained run are shared by all cells that need just them,
and what an earlier start finished is kept. Work that failed is told in the table, with the reason,
and tried again by the next start.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffuserec.data import load_dataset
from diffuserec.data.splits import canonical_split
from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.files import locked, sweep
from diffuserec.models.base import Epoch, Runtime
from diffuserec.studies import cells
from diffuserec.studies.cells import Cell, Part
from diffuserec.studies.costs import spoken
from diffuserec.studies.data_sets import find_data
from diffuserec.studies.run_directory import is_finished
from diffuserec.studies.study import Line, Options, Study, lines
from diffuserec.studies.train_run import Say, methods_of, require_buildable, silent
from diffuserec.studies.workers import Event, Work, Workers, n_cores
from diffuserec.training.device import device_of

_WITHOUT = "of what was measured before, values by user are not here"


@dataclass(frozen=True)
class Outcome:
    """What a start of a study left.

    Attributes:
        cells: all of the study that were asked for, or filled before.
        documents: of each cell, by its name: finished or failed.
        chosen: lines and names of the cells whose point was chosen among those of its row.
        skipped: data sets that are not there, with what to do, by name.
    """

    cells: tuple[Cell, ...]
    documents: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    chosen: frozenset[tuple[str, str]] = frozenset()

    def shows(self, cell: Cell, part: Part) -> bool:
        """Whether tables of a part have the cell: on test, of a choice what was chosen alone."""
        return part == "valid" or not cell.choose or (cell.line, cell.name) in self.chosen


@dataclass
class _Task:
    """A piece of work, what must be done before, and the cells that cannot be filled without it."""

    key: str
    work: Work
    label: str
    needs: tuple[str, ...] = ()
    cells: list[Cell] = field(default_factory=list)

    @property
    def measures(self) -> bool:
        """Whether it measures a run that is there."""
        return self.key.startswith("measure ")

    @property
    def kind(self) -> str:
        """Tasks of one kind take about the same time: those of one line on one data set."""
        what = self.key.partition(" ")[0]
        return f"{what} {self.cells[0].line} {self.cells[0].data} {self.cells[0].plan.split}"


def run_study(
    study: Study,
    out: Path,
    data: Path,
    runtime: Runtime,
    *,
    options: Options | None = None,
    workers: int | None = None,
    pool: Callable[[int, Runtime], Workers] = Workers,
    say: Say = silent,
) -> Outcome:
    """Fills every cell of a study that is not filled yet.

    Args:
        out: directory of all that it makes; the same one continues.
        data: a prepared dataset or log in place of the study's data, or a directory in which they
            are looked for by name.
        runtime: device and precision; seeds come from the study.
        workers: processes, of one thread each; None takes one for each core.
        pool: makes them, for so many and a runtime.
        say: is told of each cell and of the time left.

    Raises:
        ConfigError: the study or an option is wrong, or none of its data is there; then nothing
            is trained.
        DataError: data is there and cannot be read, or another process works in `out`.
    """
    options = options or Options()
    planned, others = lines(study, options), lines(study, replace(options, only=()))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        found, skipped = find_data(study.data, data, out / "data", _users(study, options), say)
        for name, why in skipped.items():
            say(f"{name} is left out: {why}")
        if not found:
            raise ConfigError(
                f"no data set of the study is there ({', '.join(skipped)}): name a directory that "
                "has one with --data"
            )
        asked = _asked(found, options.on)
        wanted = tuple(_cells(study, planned, asked, runtime.precision))
        every = tuple(_cells(study, others, found, runtime.precision))
        for cell in {cell.run_key: cell for cell in wanted}.values():
            require_buildable(cell.plan, load_dataset(cell.plan.data).catalog)
        n_workers = workers or _n_workers(runtime)
        outcome = _fill(study, wanted, every, out, runtime, n_workers, pool, say)
        sweep(out)
    return replace(_with_others(study, every, outcome, out, say), skipped=skipped)


def _asked(found: dict[str, Path], names: Sequence[str]) -> dict[str, Path]:
    """The data sets of these names; all, if there are no names."""
    for name in names:
        if name not in found:
            raise ConfigError(
                f"no data set {name!r} in the study{did_you_mean(name, found)}; there are: "
                f"{', '.join(found)}"
            )
    return {name: path for name, path in found.items() if not names or name in names}


def _n_workers(runtime: Runtime) -> int:
    """A process for each core; one alone on a GPU, whose memory and time they would share."""
    return n_cores() if device_of(runtime).type == "cpu" else 1


def _with_others(
    study: Study, every: Sequence[Cell], outcome: Outcome, out: Path, say: Say
) -> Outcome:
    """The outcome with cells that were filled before, and without those that can't be shown.

    That are rows that choose and are not decided, and cells of a copy without values by user.
    """
    asked = {_choice(cell) for cell in outcome.cells}
    rest = [cell for cell in every if _choice(cell) not in asked]
    before = {(cell.line, cell.name) for cell in _chosen(study, rest, {}, out)}
    decided = replace(outcome, chosen=outcome.chosen | before)
    documents, kept = dict(outcome.documents), []
    without_values: dict[str, None] = {}
    for cell in every:
        known = outcome.documents.get(cell.name)
        if known and known["status"] != "finished":  # a failure of now is told
            kept.append(cell)
            continue
        known = known or cells.stored(cell, out)
        is_shown = decided.shows(cell, study.part)
        if known is None or known.get(study.part if is_shown else "valid") is None:
            continue
        if is_shown and not cells.has_values_by_user(cell, out, study.part):
            without_values[_title(cell)] = None
            continue
        documents[cell.name] = known
        kept.append(cell)
    shown = {_choice(cell) for cell in kept if cell.choose and decided.shows(cell, study.part)}
    waiting = [cell for cell in outcome.cells if cell.choose and _choice(cell) not in shown]
    finished = [cell for cell in waiting if documents[cell.name].get("status") == "finished"]
    for line, where in {(cell.line, cell.data): None for cell in finished}:
        say(f"{line} ({where}) is shown once all points of its row are there to choose among")
    if without_values:
        say(
            f"left out of the tables, because {_WITHOUT}: {', '.join(without_values)}; ask for the "
            "rows to have them trained and measured once more"
        )
    return replace(decided, cells=tuple(kept), documents=documents)


def _title(cell: Cell) -> str:
    return f"{cell.line} ({cell.data}, seed {cell.plan.seed})"


def _users(study: Study, options: Options) -> int | None:
    return study.small.users if options.small else None


def _cells(
    study: Study, planned: Sequence[Line], found: dict[str, Path], precision: str
) -> Iterator[Cell]:
    for name, path in found.items():
        fingerprint = load_dataset(path).fingerprint
        for split in map(canonical_split, study.splits):
            for line in planned:
                for seed in line.seeds:
                    plan = replace(line.plan, data=str(path), split=split, seed=seed)
                    for protocol in study.protocols:
                        yield Cell(
                            line=line.name,
                            data=name,
                            plan=plan,
                            fingerprint=fingerprint,
                            protocol=protocol,
                            precision=precision,
                            measured_at=line.measured_at,
                            point=line.point,
                            family=line.family,
                            choose=line.choose,
                            trials=line.trials,
                        )


def _fill(
    study: Study,
    wanted: Sequence[Cell],
    every: Sequence[Cell],
    out: Path,
    runtime: Runtime,
    n_workers: int,
    pool: Callable[[int, Runtime], Workers],
    say: Say,
) -> Outcome:
    documents: dict[str, dict[str, Any]] = {}

    def has_values(cell: Cell, part: Part) -> bool:
        return part != study.part or cells.has_values_by_user(cell, out, part)

    def fill(workers: Workers, some: Sequence[Cell], parts: dict[str, Part]) -> None:
        measured = [cell for cell in some if cells.is_measured(cell, out, parts[cell.name])]
        done = {cell.name for cell in measured if has_values(cell, parts[cell.name])}
        again = {_title(cell): None for cell in measured if cell.name not in done}
        if again:
            say(f"once more, because {_WITHOUT}: {', '.join(again)}")
        waiting = [cell for cell in some if cell.name not in done]
        failed = _Schedule(workers, _tasks(waiting, out, parts), say).run()
        for cell in some:
            if cell.name in failed:
                documents[cell.name] = cells.fail(cell, out, failed[cell.name])
            else:
                documents[cell.name] = cells.stored(cell, out) or {}

    parts: dict[str, Part] = {cell.name: "valid" for cell in wanted}
    parts |= {cell.name: study.part for cell in wanted if not cell.choose}
    with pool(n_workers, replace(runtime, shared=out / "pretrained")) as workers:
        fill(workers, wanted, parts)
        if study.part == "test":
            rows = {_choice(cell) for cell in wanted if cell.choose}
            points = [cell for cell in every if _choice(cell) in rows]
            best = _chosen(study, points, documents, out)
            fill(workers, best, {cell.name: "test" for cell in best})
        else:
            best = _chosen(study, every, documents, out)
    chosen = frozenset((cell.line, cell.name) for cell in best)
    return Outcome(tuple(wanted), documents, {}, chosen)


def _choice(cell: Cell) -> tuple[Any, ...]:
    """What a point is chosen for: one method of a row, on one data set."""
    return (cell.family, cell.plan.label, cell.data, cell.plan.split)


def _chosen(
    study: Study,
    every: Sequence[Cell],
    documents: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> list[Cell]:
    """Cells of the best point of each row that chooses, by the study's first metric on validation.

    Points are compared by their mean over seeds under the study's first protocol, with the seeds
    with which all of them were validated, or failed; without one, nothing is chosen. Of a row in
    which every point failed, the first point, so that its failure is told.

    Args:
        every: cells of all points of the rows.
        documents: of cells that were filled now, by name; others are looked for in `out`.
    """
    known: dict[str, Mapping[str, Any]] = {}
    points: dict[tuple[Any, ...], dict[str, list[Cell]]] = {}
    missing: set[tuple[Any, ...]] = set()
    for cell in every:
        if not cell.choose:
            continue
        document = documents.get(cell.name) or cells.stored(cell, out)
        if document is None or (document["status"] == "finished" and not document.get("valid")):
            missing.add((_choice(cell), cell.plan.seed))
            continue
        known[cell.name] = document
        points.setdefault(_choice(cell), {}).setdefault(cell.line, []).append(cell)
    found = []
    for row, of_row in points.items():
        there = {
            line: [cell for cell in group if (row, cell.plan.seed) not in missing]
            for line, group in of_row.items()
        }
        values = {line: _validated(study, group, known) for line, group in there.items()}
        found += there[max(there, key=lambda line: values[line])]
    return found


def _validated(
    study: Study, group: Sequence[Cell], documents: Mapping[str, Mapping[str, Any]]
) -> float:
    """Mean validation metric over the seeds of a point; minus infinity where one is missing."""
    values = []
    for cell in group:
        if cell.protocol == study.protocols[0]:
            metrics = documents[cell.name].get("valid") or {}
            values.append(float(metrics.get(study.metrics[0], -math.inf)))
    return sum(values) / len(values) if values else -math.inf


def _tasks(wanted: Sequence[Cell], out: Path, parts: dict[str, Part]) -> dict[str, _Task]:
    """All work that these cells need, by key; what is shared once."""
    tasks: dict[str, _Task] = {}

    def add(key: str, cell: Cell, work: Callable[..., Any], label: str, *needs: str | None) -> str:
        known = tuple(need for need in needs if need is not None)
        task = tasks.setdefault(key, _Task(key, partial(_call, work, cell, out), label, known))
        task.cells.append(cell)
        return key

    for cell in wanted:
        where = f"{cell.data}, seed {cell.plan.seed}"
        augmenter = None
        trained = is_finished(cell.run_path(out), cell.plan, cell.fingerprint)
        if cell.augmenter_key is not None and not trained:
            label = f"{cell.plan.augment}, {cell.data}"
            augmenter = add(f"fit {cell.augmenter_key}", cell, cells.fit_augmenter, label)
        label = f"{cell.line}, {where}" if not cell.measured_at else f"{cell.plan.label}, {where}"
        needs: tuple[str, ...] = ()
        if not trained:
            needs = (add(f"train {cell.run_key}", cell, cells.train, label, augmenter),)
        key = f"measure {cell.run_key} {json.dumps(dict(cell.measured_at), sort_keys=True)}"
        task = tasks.setdefault(key, _Task(key, _nothing, f"{cell.line}, {where}, measured", needs))
        task.cells.append(cell)  # rows that come to the same are measured once
        of_run = tuple({c.name: c for c in task.cells}.values())
        part: Part = "test" if "test" in (parts[c.name] for c in of_run) else "valid"
        task.work = partial(_measure, of_run, out, part)
    return tasks


def _nothing(runtime: Runtime) -> None:
    """No work."""


def _measure(of_run: Sequence[Cell], out: Path, part: Part, runtime: Runtime) -> None:
    cells.measure(of_run, out, runtime, part)


def _call(
    work: Callable[[Cell, Path, Runtime], Any], cell: Cell, out: Path, runtime: Runtime
) -> Any:
    return work(cell, out, runtime)


class _Schedule:
    """Work in the order of what it needs, on all workers, with the time that is left.

    The time of a kind of training is taken from an epoch on a few users before anything is
    trained, then from its epochs, then from the first that ends.
    """

    def __init__(self, pool: Workers, tasks: dict[str, _Task], say: Say) -> None:
        self.pool = pool
        self.say = say
        self.tasks = tasks
        self.failed: dict[str, str] = {}  # by name of the cell
        self.left = dict(tasks)
        self.busy: dict[str, float] = {}  # when it began
        self.seconds: dict[str, float] = {}  # that a task of a kind takes, as far as is known
        self.expected: dict[str, float] = {}  # the same, before any ended
        self.slower = 1.0  # how much longer than expected those took that ended

    def run(self) -> dict[str, str]:
        """Does all of it.

        Returns:
            The cells that cannot be filled, with the reason, by name.
        """
        self._time_first_epochs()
        if self.left:
            n = sum(key.startswith("train ") for key in self.left)
            self.say(f"{n} to train, {len(self.left)} steps in all; {self._time_left()}")
        while self.left or self.busy:
            ready = [task for task in self.left.values() if not self._waits(task)]
            # a run is measured as soon as it is there: a study that is stopped has its row
            ready.sort(key=lambda task: (not task.measures, -self._seconds(task)))
            for task in ready[: self.pool.n - self.pool.n_busy]:
                self.busy[task.key] = time.monotonic()
                del self.left[task.key]
                self.pool.submit(task.key, task.work)
            for event in self.pool.events():
                self._take(event)
        return self.failed

    def _waits(self, task: _Task) -> bool:
        return any(need in self.left or need in self.busy for need in task.needs)

    def _take(self, event: Event) -> None:
        task = self.tasks[event.key]
        if event.kind == "epoch":
            self._learn_from(task, event.value)
            return
        took = time.monotonic() - self.busy.pop(event.key)
        if event.kind == "done":
            self._learn_from_end(task, took)
            done = len(self.tasks) - len(self.left) - len(self.busy)
            self.say(
                f"[{done}/{len(self.tasks)}] {task.label}: {spoken(took)}; {self._time_left()}"
            )
            return
        self.say(f"{task.label} failed: {event.value}")
        self._give_up(task, event.value)

    def _give_up(self, task: _Task, why: str) -> None:
        for cell in task.cells:
            self.failed[cell.name] = why
        for other in [other for other in self.left.values() if task.key in other.needs]:
            del self.left[other.key]
            self._give_up(other, why)

    def _learn_from(self, task: _Task, epoch: Epoch) -> None:
        model, _ = methods_of(task.cells[0].plan)
        limit = getattr(model.config, "epochs", None)
        if limit is not None and task.key.startswith("train ") and epoch.epoch < limit:
            took = time.monotonic() - self.busy[task.key]
            self.seconds[task.kind] = max(took / (epoch.epoch + 1), epoch.seconds) * limit

    def _learn_from_end(self, task: _Task, took: float) -> None:
        self.seconds[task.kind] = took
        if self.expected.get(task.kind):
            self.slower = max(took / self.expected[task.kind], 1.0)

    def _time_first_epochs(self) -> None:
        first: dict[str, _Task] = {}
        for task in self.tasks.values():
            if task.key.startswith("train "):
                first.setdefault(task.kind, task)
        waiting = list(first.values())
        while waiting or self.pool.n_busy:
            while waiting and self.pool.n_busy < self.pool.n:
                task = waiting.pop()
                work = partial(_timed, task.cells[0])
                self.pool.submit(task.kind, work)
            for event in self.pool.events():
                if event.kind == "done" and event.value is not None:
                    self.expected[event.key] = event.value

    def _seconds(self, task: _Task) -> float:
        """What a task takes, by others of its kind that ended, or as was expected; else 0."""
        known = self.seconds.get(task.kind)
        return self.slower * self.expected.get(task.kind, 0.0) if known is None else known

    def _time_left(self) -> str:
        now = time.monotonic()
        to_do = [*self.left.values(), *(self.tasks[key] for key in self.busy)]
        if any(_takes_time(task) and not self._seconds(task) for task in to_do):
            return "how much time is left is not known yet"
        rest = sum(self._seconds(task) for task in self.left.values())
        for key, began in self.busy.items():
            rest += max(self._seconds(self.tasks[key]) - (now - began), 0.0)
        return f"about {spoken(rest / self.pool.n)} left, as far as is known"


def _takes_time(task: _Task) -> bool:
    """Whether it trains: counting takes seconds, whatever is not known of them."""
    return task.key.startswith("train ") and methods_of(task.cells[0].plan)[0].trained


def _timed(cell: Cell, runtime: Runtime) -> float | None:
    return cells.seconds_to_the_limit(cell, runtime)
