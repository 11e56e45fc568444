"""Cells of a study and the work they need: plain functions of values, for any process or machine.

A cell is one number with all that explains it: a line of the table on a data set and a split, with
one seed, under one protocol. Its key is a digest of what decides the number: the resolved settings
and version of each method, the fingerprint of the data, the split, the seeds, the precision and the
protocol. A cell whose file has that key and was measured is never worked on again.

    OUT/augmenters/NAME/     a fitted augmenter, shared by all cells that need just this one
    OUT/pretrained/          what augmenters and their grids train before they differ
    OUT/runs/NAME/           a trained run; see ``run_directory``
    OUT/measured/NAME/       an evaluation with its values by user
    OUT/cells/NAME.json      the cell

A copy of results (``results --copy``) has the cells, and instead of evaluations the ranks of their
targets, ``ranks/NAME.parquet``. That is enough for every table: a study continues from it, and
trains again what it needs a model of.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from diffuserec.data import Split, load_dataset, split_dataset
from diffuserec.evaluation import Evaluation, load_evaluation, read_ranks
from diffuserec.files import read_document, write_json
from diffuserec.models.base import Epoch, Method, Runtime
from diffuserec.models.config import Settings
from diffuserec.models.methods import find_augmenter, find_recommender, with_settings
from diffuserec.models.settings import use_of, without_use
from diffuserec.studies.costs import Trial
from diffuserec.studies.epoch_log import seconds_of
from diffuserec.studies.ledger import looks, n_looks, record
from diffuserec.studies.run_directory import (
    Plan,
    is_finished,
    is_free,
    open_run,
    read_curve,
    settings_by_log,
)
from diffuserec.studies.run_file import read_run_file
from diffuserec.studies.study import parse_protocol
from diffuserec.studies.study_file import slug
from diffuserec.studies.train_run import methods_of, train_augmenter, train_run
from diffuserec.training.device import device_of

FORMAT = "diffuserec-cell"
VERSION = 1

Part = Literal["test", "valid"]
PARTS: tuple[Part, ...] = ("valid", "test")


_AUGMENTER_SEED = 0
"""Seed with which an augmenter is fitted, once for all seeds of the recommenders behind it."""


@dataclass(frozen=True)
class Cell:
    """One number of a study's table.

    Attributes:
        line: name of the line of the table.
        data: name of the data set.
        plan: what is trained, with data, split and seed.
        fingerprint: of the data.
        protocol: see ``study.parse_protocol``.
        precision: of training.
        measured_at: settings under which the trained model is measured.
        point: settings of the grid.
        family: number of the row of the file.
        choose: whether only the best line of its family is measured on the test part.
        trials: different settings that were validated elsewhere to choose these.
    """

    line: str
    data: str
    plan: Plan
    fingerprint: str
    protocol: str
    precision: str
    measured_at: Mapping[str, Any] = field(default_factory=dict)
    point: Mapping[str, Any] = field(default_factory=dict)
    family: int = 0
    choose: bool = False
    trials: int = 1

    @property
    def name(self) -> str:
        """Name of its file: readable, and another one for whatever decides another number."""
        parts = [self.plan.label, self.data, self.plan.split.partition(":")[0]]
        parts = [part for part in parts if part != "leave-one-out"]
        parts += [f"seed{self.plan.seed}"]
        parts += [self.protocol] * (self.protocol != "full")
        return "-".join([*(slug(part) for part in parts), self.key[:8]])

    @cached_property
    def augmenter_key(self) -> str | None:
        """Digest of what decides the fitted augmenter; None if there is none."""
        if self.plan.augment is None:
            return None
        method = find_augmenter(self.plan.augment)(**(self.plan.augment_settings or {}))
        *parts, settings = _identity(method)
        fitted = [*parts, without_use(settings)]  # however its items are used
        return _digest(*self._data_key, _AUGMENTER_SEED, fitted)

    @property
    def augmenter_plan(self) -> Plan:
        """Plan of the fit of its augmenter, the same for all cells that share it."""
        settings = self.plan.augment_settings
        fitted = None if settings is None else without_use(settings)
        return replace(
            self.plan, seed=_AUGMENTER_SEED, model="", settings={}, augment_settings=fitted
        )

    @cached_property
    def run_key(self) -> str:
        """Digest of what decides the trained model."""
        model, augmenter = methods_of(self.plan)
        parts = [*self._data_key, self.plan.seed, _identity(model), self.augmenter_key]
        use = {} if augmenter is None else use_of(augmenter.config)
        return _digest(*parts, *([use] if use else []))

    @cached_property
    def key(self) -> str:
        """Digest of what decides the number."""
        return _digest(self.run_key, self.protocol, dict(self.measured_at))

    @property
    def _data_key(self) -> tuple[Any, ...]:
        return (self.fingerprint, without_path(self.plan.split), self.precision)

    def run_path(self, out: Path) -> Path:
        """Directory of its run in that of the study."""
        name = f"{slug(self.plan.label)}-{slug(self.data)}-seed{self.plan.seed}"
        return out / "runs" / f"{name}-{self.run_key[:8]}"

    def augmenter_path(self, out: Path) -> Path | None:
        """Directory of its augmenter in that of the study; None if there is none."""
        if self.plan.augment is None or self.augmenter_key is None:
            return None
        name = f"{slug(self.plan.augment)}-{slug(self.data)}-{self.augmenter_key[:8]}"
        return out / "augmenters" / name

    def file(self, out: Path) -> Path:
        """Its file in the directory of the study."""
        return out / "cells" / f"{self.name}.json"


def without_path(split: str) -> str:
    """A split whose file counts by its checksum, which is part of it, wherever the file lies."""
    return split.partition(",path=")[0]


def _identity(method: Method) -> list[Any]:
    return [method.kind, method.name, method.version, method.config.identity()]


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def stored(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The cell's document if its file has its key, else None."""
    try:
        document = read_document(cell.file(out))
    except (OSError, ValueError):
        return None
    found = (document.get("format"), document.get("version"), document.get("key"))
    return document if found == (FORMAT, VERSION, cell.key) else None


def is_measured(cell: Cell, out: Path, part: Part) -> bool:
    """Whether the cell's document says what was measured on the part."""
    document = stored(cell, out)
    return (
        document is not None and document["status"] == "finished" and document.get(part) is not None
    )


def has_values_by_user(cell: Cell, out: Path, part: Part) -> bool:
    """Whether :func:`read_evaluation` finds the cell's values by user."""
    return any(path.exists() for path in by_user(cell.name, out, part))


def by_user(name: str, out: Path, part: Part) -> tuple[Path, Path]:
    """Where values by user of a cell are: an evaluation, and in a copy its ranks."""
    return out / "measured" / f"{name}-{part}", out / "ranks" / f"{name}-{part}.parquet"


def all_documents(out: Path) -> dict[str, dict[str, Any]]:
    """The documents of all cells in the directory of a study, whatever file asked for them.

    Returns:
        Documents by the name of their cell. A file that is none of ours, or that is damaged, is
        passed over: its cell is filled anew.
    """
    found = {}
    for file in sorted((out / "cells").glob("*.json")):
        with suppress(OSError, ValueError):
            found[file.stem] = read_document(file)
    ours = (FORMAT, VERSION)
    return {name: d for name, d in found.items() if (d.get("format"), d.get("version")) == ours}


def plan_of(document: Mapping[str, Any]) -> Plan:
    """Of a finished cell, what was trained; where its data is, its document does not say."""
    named = ("model", "settings", "augment", "augment_settings", "split", "seed")
    return Plan("", **{name: document[name] for name in named})


def fit_augmenter(cell: Cell, out: Path, runtime: Runtime) -> None:
    """Fits the augmenter that a cell needs, unless that is done."""
    path = cell.augmenter_path(out)
    assert path is not None
    train_augmenter(cell.augmenter_plan, path, runtime)


def train(cell: Cell, out: Path, runtime: Runtime) -> None:
    """Trains the run that a cell is measured on, unless that is done; looks at validation alone."""
    path = cell.run_path(out)
    if not is_finished(path, cell.plan, cell.fingerprint):
        runtime = replace(runtime, resume=not is_free(path))
        augmenter = cell.augmenter_path(out)
        train_run(cell.plan, path, runtime, augmenter_from=augmenter, report=False)


def _keep_earlier_looks(cell: Cell, run: Path, out: Path) -> None:
    """Adds to the ledger of a new run the looks that an earlier training of the same was given."""
    began = read_run_file(run).starts[0].time
    earlier = [
        document
        for document in all_documents(out).values()
        if document.get("run_key") == cell.run_key and document["environment"]["time"] < began
    ]
    kept = {look["event"] for look in looks(run) if look.get("earlier")}
    for event, count in (("validation", "validations"), ("test", "looks_at_test")):
        n = max((document[count] for document in earlier), default=0)
        if n and event not in kept:
            record(run, event, epochs=n, earlier=True)


def measure(cells: Sequence[Cell], out: Path, runtime: Runtime, part: Part) -> None:
    """Measures cells of one run on validation and, if asked, on test; writes their documents.

    Args:
        cells: that differ in the protocol alone.
        part: ``test`` measures both parts.
    """
    run = open_run(cells[0].run_path(out), cells[0].plan.data)
    _keep_earlier_looks(cells[0], run.path, out)
    model = run.model.to(device_of(runtime))
    if cells[0].measured_at:
        model = with_settings(model, cells[0].measured_at)
    run = replace(run, model=model)
    parts: tuple[Part, ...] = ("valid",) if part == "valid" else ("valid", "test")
    leak = run.measure_leak(with_test=part == "test")
    for cell in cells:
        candidates, filter_seen = parse_protocol(cell.protocol)
        known = stored(cell, out) or {}
        found = {what: known.get(what) for what in ("valid", "test", "protocol_line")}
        found["leak"] = None if leak is None else leak.to_json()
        for which in parts:
            if found[which] is None or not has_values_by_user(cell, out, which):
                # training ended with a validation, which is kept with the run
                kept = which == "valid" and not cell.measured_at
                look = run.evaluate if kept else run.look
                result = look(which, candidates=candidates, filter_seen=filter_seen)
                result.save(by_user(cell.name, out, which)[0])
                found |= {which: result.metrics, "protocol_line": str(result.protocol)}
        document = _document(cell, run.path, out) | found
        write_json(cell.file(out), document | {"by_the_log": settings_by_log(run)})


def fail(cell: Cell, out: Path, message: str) -> dict[str, Any]:
    """Writes and returns the document of a cell that could not be filled, with the reason.

    What was measured before, such as validation, is kept.
    """
    document = (stored(cell, out) or {}) | {
        "format": FORMAT,
        "version": VERSION,
        "status": "failed",
        "key": cell.key,
        "line": cell.line,
        "data": cell.data,
        "split": cell.plan.split,
        "seed": cell.plan.seed,
        "protocol": cell.protocol,
        "error": message,
    }
    write_json(cell.file(out), document)
    return document


def seconds_to_the_limit(cell: Cell, runtime: Runtime, users: int = 256) -> float | None:
    """Seconds that training takes to its epoch limit, from two epochs on a few of the users.

    Returns:
        Seconds of all epochs, which early stopping makes fewer; None for a method that is not
        trained in epochs.
    """
    limit = getattr(methods_of(cell.plan)[0].config, "epochs", None)
    if limit is None:
        return None
    split = split_dataset(load_dataset(cell.plan.data), cell.plan.split)
    tried = Trial(cell.plan, split.train, None, runtime, users)
    an_epoch = sum(tried.epoch_seconds.values()) * len(split.train) / tried.n_users
    return an_epoch * float(limit)


def read_evaluation(cell: Cell, out: Path, part: Part) -> Evaluation:
    """What a cell was measured to be, with values by user; of a copy, those that its ranks give."""
    evaluation, ranks = by_user(cell.name, out, part)
    if evaluation.exists():
        return load_evaluation(evaluation)
    split = _split(cell.plan.data, cell.plan.split, cell.fingerprint)
    queries = split.test if part == "test" else split.valid
    return read_ranks(ranks, queries, split.train.item_counts())


@lru_cache(maxsize=2)
def _split(data: str, split: str, fingerprint: str) -> Split:
    return split_dataset(load_dataset(data), split)


def looks_of(document: Mapping[str, Any], out: Path, event: str) -> int:
    """Looks at validation or test that a finished cell's run was given, all cells together.

    Args:
        event: as in the ledger.
    """
    known = int(document["validations" if event == "validation" else "looks_at_test"])
    return max(known, n_looks(looks(out / document["run"]), event))


def _document(cell: Cell, run: Path, out: Path) -> dict[str, Any]:
    model = find_recommender(cell.plan.model)(**cell.plan.settings)
    record = read_run_file(run)
    epochs = read_curve(run / "curve.json")
    events = looks(run)
    seconds = dict(record.seconds)
    # of a run that was resumed, or of parts that were fitted before, the file has the last alone
    before = f"{cell.plan.augment} "
    own = [epoch for epoch in epochs if not epoch.phase.startswith(before)]
    seconds["fit_model"] = max(seconds.get("fit_model", 0.0), seconds_of(own))
    augmenter = cell.augmenter_path(out)
    if augmenter is not None:  # fitted once for several runs, each of which would have needed it
        seconds["fit_augmenter"] += sum(read_run_file(augmenter).seconds.values())
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "status": "finished",
        "key": cell.key,
        "line": cell.line,
        "data": cell.data,
        "split": cell.plan.split,
        "seed": cell.plan.seed,
        "protocol": cell.protocol,
        "model": cell.plan.model,
        "settings": dict(cell.plan.settings),
        "augment": cell.plan.augment,
        "augment_settings": cell.plan.augment_settings,
        "point": dict(cell.point),
        "measured_at": dict(cell.measured_at),
        "family": cell.family,
        "fingerprint": cell.fingerprint,
        "run": run.relative_to(out).as_posix(),
        "run_key": cell.run_key,
        "seconds": seconds,
        "environment": asdict(record.starts[-1]),
        "validations": n_looks(events, "validation"),
        "looks_at_test": n_looks(events, "test"),
    }
    return document | training_facts(own, model.config)


def _last_phase(epochs: list[Epoch]) -> list[Epoch]:
    return [epoch for epoch in epochs if epoch.phase == epochs[-1].phase]


def training_facts(epochs: list[Epoch], config: Settings) -> dict[str, Any]:
    """Epochs of the last phase, where the best was, and why it ended there.

    Returns:
        ``stage, epochs, best_epoch`` (from 1)``, best_valid, curve, seconds_to_best, epoch_limit,
        stop``; ``stage`` is the phase that is told of where there are several, else null; ``curve``
        the validation metric by epoch; ``seconds_to_best`` are those of all epochs up to the best,
        earlier phases included, with their validations; ``stop`` is ``patience`` if waiting longer
        would have changed nothing, ``limit`` if the epochs ran out before, and ``none`` for a
        method that is not trained in epochs.
    """
    limit, patience = getattr(config, "epochs", None), getattr(config, "patience", None)
    last = _last_phase(epochs)
    facts: dict[str, Any] = {
        "stage": last[-1].phase if len(last) < len(epochs) else None,
        "epochs": len(last),
        "best_epoch": None,
        "best_valid": None,
        "curve": [],
        "seconds_to_best": None,
        "epoch_limit": limit,
        "stop": "none" if limit is None else "limit",
    }
    valid = [epoch.valid for epoch in last if epoch.valid is not None]
    if limit is None or not valid:
        return facts
    best = valid.index(max(valid))
    waited = len(valid) - 1 - best
    if patience is not None and waited >= patience:
        facts["stop"] = "patience"
    reached = len(epochs) - len(last) + best + 1
    return facts | {
        "best_epoch": best + 1,
        "best_valid": valid[best],
        "curve": [round(value, 6) for value in valid],
        "seconds_to_best": seconds_of(epochs[:reached]),
    }
