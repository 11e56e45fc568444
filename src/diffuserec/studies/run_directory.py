"""Directory of a run: the plan of what is trained, and everything that came of it.

    run.json      the plan, the data's fingerprint, and how it was trained; see ``run_file``
    model/        the recommender; ``diffuserec.load`` reads it
    augmenter/    the augmenter, if there is one
    curve.json    loss and validation metric of each epoch
    epochs.jsonl  the same, a line as it happens; see ``epoch_log``
    ledger.jsonl  every look at validation and test; see ``ledger``
    test/         metrics.json and per_user.parquet
    valid/        the same files for the validation queries
    leak.json     what the leak meter found, where an augmenter puts items in front of targets
    report.html   figures and tables
    checkpoint/   only while training: ``--resume`` continues from it

A finished run knows the checksums of its models and curves, and a stored evaluation names the run
that it is of: parts of two runs are never taken for one. A run that is overwritten stands beside
the new one, as ``.NAME.old``, until that has finished.

:func:`diffuserec.studies.train_run.train_run` claims a directory, fills it and marks it finished.
Here a run is opened, measured and asked what it cost. Whatever is read from a run is read with the
data that it was trained on, or refused.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from diffuserec.data import (
    Queries,
    SequenceDataset,
    Split,
    dataset_manifest,
    load_dataset,
    split_dataset,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import Evaluation, Leak, Passes, evaluate, leak_meter, load_evaluation
from diffuserec.files import (
    beside,
    cause_of,
    flush_directory,
    read_document,
    real,
    sha256,
    sweep,
    telling,
    write_json,
)
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import by_log
from diffuserec.models.methods import (
    find_augmenter,
    find_recommender,
    load,
    load_augmenter,
    run_of,
    with_settings,
)
from diffuserec.models.recommender import Recommender
from diffuserec.models.settings import UseSettings, without_use
from diffuserec.studies.ledger import record
from diffuserec.studies.run_file import Plan as Plan
from diffuserec.studies.run_file import RunFile, Start, holds_a_run, read_run_file
from diffuserec.training.checkpoint import checkpoint_files

_TIED = (
    "model/manifest.json",
    "augmenter/manifest.json",
    "curve.json",
    "augmenter-curve.json",
)
"""Files whose checksums a finished run knows; a manifest has those of the files beside it."""

_OWN = frozenset(
    {"run.json", "model", "augmenter", "curve.json", "augmenter-curve.json", "epochs.jsonl"}
    | {"ledger.jsonl", "test", "valid", "report.html", "checkpoint", "tensorboard"}
    | {"tracking.json", "leak.json", "model.index.safetensors"}
)
"""Names in the directory of a run."""


@dataclass(frozen=True, eq=False)
class RunDirectory:
    """A run read back.

    Attributes:
        path: its directory.
        plan: what was trained, with the place where its data is now.
        fingerprint: of that data.
        model: the trained recommender.
        augmenter: the fitted augmenter, or None.
        split: the log that it was trained on, divided.
    """

    path: Path
    plan: Plan
    fingerprint: str
    model: Recommender
    augmenter: Augmenter | None
    split: Split

    def training_data(self) -> SequenceDataset:
        """Sequences that the model was trained on: the training part, augmented if at all."""
        train = self.split.train
        return train if self.augmenter is None else self.augmenter.augment(train, self.plan.seed)

    def measure(self, model: Recommender, part: str = "test", **options: Any) -> Evaluation:
        """Evaluation of any model on the test or validation queries of the run's log.

        Args:
            part: ``test`` or ``valid``.
            options: of :func:`evaluate`.
        """
        facts = {
            "split": f"{self.split.protocol}, {part}",
            "filters": dataset_manifest(self.plan.data)["note"].get("filters", "none"),
            "n_too_short": self.split.n_too_short,
        }
        name = Path(self.plan.data).name
        return evaluate(model, self.queries(part), dataset_name=name, facts=facts, **options)

    def queries(self, part: str = "test") -> Queries:
        """The test or validation queries of the run's log.

        Raises:
            ConfigError: the run is final, and has seen all of its log.
        """
        if self.plan.is_final:
            raise ConfigError(
                f"{self.path} is a final model, trained on everything: nothing is held out to "
                "measure it on; 'diffuserec compare --newest LOG' measures it on what came later"
            )
        return self.split.test if part == "test" else self.split.valid

    def evaluate(
        self,
        part: Literal["test", "valid"] = "test",
        candidates: str = "full",
        filter_seen: bool = True,
        metrics: Sequence[str] = (),
        passes: Passes | None = None,
    ) -> Evaluation:
        """Evaluation of the run; under the default protocol it is stored, and read from there."""
        standard = candidates == "full" and filter_seen
        default = standard and not metrics
        if default and (self.path / part / "metrics.json").is_file():
            return load_evaluation(self.path / part, of=self.identity)
        result = self.look(
            part,
            filter_seen=filter_seen,
            candidates=candidates,
            metrics=metrics,
            with_uncertainty=standard and part == "test" and self.model.has_distribution,
            passes=passes,
        )
        if default:
            result.save(self.path / part, of=self.identity)
        return result

    def measure_leak(self, with_test: bool, train: SequenceDataset | None = None) -> Leak | None:
        """What the leak meter finds; None if no augmenter puts items in front of targets.

        Args:
            with_test: whether it looks at the test targets, too.
            train: the sequences that the model was trained on, if they are at hand.
        """
        if self.augmenter is None or self.augmenter.training_only:
            return None
        if train is None:
            train = self.augmenter.training_sequences(self.split.train, self.plan.seed)
        return leak_meter(
            self.augmenter,
            train,
            self.split.valid,
            self.split.test if with_test else None,
            model=self.model,
            seed=self.plan.seed,
        )

    @property
    def identity(self) -> str:
        """Digest of the plan, the data and the models, wherever the run and its data lie."""
        return _identity(self.path, self.plan, self.fingerprint)

    def look(self, part: Literal["test", "valid"], **options: Any) -> Evaluation:
        """Evaluation of the run's own model and augmenter, told to the ledger of the run first.

        Args:
            options: of :func:`evaluate`.
        """
        protocol = {k: options[k] for k in ("candidates", "filter_seen") if k in options}
        record(self.path, "test" if part == "test" else "validation", **protocol)
        seed = self.plan.seed
        return self.measure(self.model, part, augmenter=self.augmenter, seed=seed, **options)


def claim(
    path: Path, plan: Plan, fingerprint: str, runtime: Runtime, overwrite: bool = False
) -> None:
    """Makes a directory that of a run of this plan, or resumes an interrupted one.

    A run in which nothing was trained yet is in nobody's way. The caller holds the lock of `path`.

    Args:
        fingerprint: of the plan's data.
        runtime: what the run is trained on; whether an interrupted run is meant.
        overwrite: set a run that is there aside; :func:`finish` removes it, and :func:`release`
            or the next claim puts it back if nothing was trained in its place.

    Raises:
        ConfigError: it holds a run that was not asked to be resumed, is finished, or is of another
            plan; or none that could be resumed.
        DataError: it holds something else, a run of other data, or one to overwrite that has files
            of somebody else in it.
    """
    start = Start.now(runtime)
    if overwrite and runtime.resume:
        raise ConfigError("a run is either resumed or overwritten: leave out one of the two")
    _put_back(path)
    if overwrite and holds_a_run(path):
        _set_aside(path)
    if is_free(path):
        if runtime.resume:
            raise ConfigError(f"{path} holds no run to resume: leave out --resume")
    else:
        found = read_run_file(path)
        if found.complete:
            raise ConfigError(
                f"{path} is finished: there is nothing to resume"
                if runtime.resume
                else f"{path} holds a finished run: choose another --out, or add --overwrite"
            )
        if _trained(path):
            if not runtime.resume:
                raise ConfigError(
                    f"{path} holds a run already, which was interrupted: add --resume to continue "
                    "it, --overwrite to begin anew, or choose another --out"
                )
            _require_same(path, found, plan, fingerprint)
            replace(found, plan=plan, starts=(*found.starts, start)).write(path)
            return
        _clear(path)
    path.mkdir(parents=True, exist_ok=True)
    try:
        RunFile(plan, fingerprint, (start,), complete=False, seconds={}, parts={}).write(path)
    except BaseException:
        release(path)
        raise


def is_free(path: Path) -> bool:
    """Whether nothing stands there but, at most, what a killed writer left."""
    if not path.is_dir():
        return not path.exists()
    return all(part.name.startswith(".") for part in path.iterdir())


def release(path: Path) -> None:
    """Removes an interrupted run in which nothing was trained yet; what it was to replace returns.

    The caller holds the lock of `path`.
    """
    if not _trained(path):
        _clear(path)
        with suppress(OSError):  # somebody put something else there
            path.rmdir()
        _put_back(path)


def is_complete(path: Path) -> bool:
    """Whether a finished run stands there."""
    return holds_a_run(path) and read_run_file(path).complete


def kept_beside(path: Path) -> Path | None:
    """Where the run is that this one is to replace; None if there is none."""
    old = beside(real(path), "old")
    return old if old.exists() else None


def is_finished(path: Path, plan: Plan, fingerprint: str) -> bool:
    """Whether the directory holds a finished run of this plan, on data with this fingerprint.

    Raises:
        ConfigError: it holds a run of another plan.
        DataError: it holds something else, or a run of other data.
    """
    if is_free(path):
        return False
    found = read_run_file(path)
    if found.complete or _trained(path):
        _require_same(path, found, plan, fingerprint)
    return found.complete


def finish(path: Path, seconds: Mapping[str, float]) -> None:
    """Marks a run as finished and removes its checkpoint, which is not needed any more."""
    shutil.rmtree(path / "checkpoint", ignore_errors=True)
    sweep(path)
    found = replace(read_run_file(path), parts=_checksums(path))
    replace(found, complete=True, seconds=dict(seconds)).write(path)
    old = kept_beside(path)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def open_run(path: Path | str, data: Path | str | None = None) -> RunDirectory:
    """Reads a finished run back, with the data that it was trained on.

    Args:
        data: where its data is now, if it was moved.

    Raises:
        DataError: not a run, not finished, its data is gone or another, or a part of it is that
            of another run.
    """
    source, found = finished_run(path)
    plan = found.plan if data is None else replace(found.plan, data=str(data))
    dataset = data_of(source, found, data)
    split = split_dataset(dataset, plan.split)
    augmenter = load_augmenter(source / "augmenter") if plan.augment is not None else None
    model = load(source / "model")
    _require_planned(source, plan, model)
    return RunDirectory(source, plan, found.fingerprint, model, augmenter, split)


def finished_run(path: Path | str) -> tuple[Path, RunFile]:
    """Directory and file of a finished run, whose parts are its own; its data is not looked at.

    Raises:
        DataError: not a run, not finished, or a part of it is that of another run.
    """
    source = run_of(path)
    found = read_run_file(source)
    if not found.complete:
        hint = " (add --resume to its command)" if _trained(source) else ""
        raise DataError(f"{source} is a run that has not finished{hint}")
    _require_parts(source, found)
    return source, found


def data_of(path: Path, found: RunFile, data: Path | str | None = None) -> SequenceDataset:
    """The prepared log that a run was trained on.

    Args:
        data: where it is now, if it was moved.

    Raises:
        DataError: it is gone, or another.
    """
    place = found.plan.data if data is None else str(data)
    if data is None and not Path(place).exists():
        raise DataError(
            f"the data of {path} is not at {place} any more: say where it is with --data"
        )
    dataset = load_dataset(place)
    _require_data(path, found, place, dataset.fingerprint)
    return dataset


def identity_of(path: Path, found: RunFile) -> str:
    """Digest of the plan, the data and the models of a run, wherever these lie."""
    return _identity(path, found.plan, found.fingerprint)


def _identity(path: Path, plan: Plan, fingerprint: str) -> str:
    own = {name: value for name, value in plan.document().items() if name != "data"}
    models = {name: value for name, value in _checksums(path).items() if "/" in name}
    text = json.dumps([own, fingerprint, models], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_by_log(run: RunDirectory) -> dict[str, Any]:
    """The settings of a run's recommender that its log decided, where they are not the usual."""
    config, given = run.model.config, run.plan.settings
    usual = {name: field.get_default() for name, field in type(config).model_fields.items()}
    taken = {name: getattr(config, name) for name in by_log(type(config)) if name not in given}
    return {name: value for name, value in taken.items() if value != usual[name]}


def load_fitted_augmenter(path: Path, plan: Plan, fingerprint: str) -> Augmenter:
    """The augmenter of another run, for a run of this plan, which may use its items otherwise.

    Raises:
        ConfigError: it was fitted with other settings.
        DataError: it was fitted to other data, or is not there.
    """
    found = read_run_file(path)
    theirs = replace(plan, augment=found.plan.augment, augment_settings=found.plan.augment_settings)
    if _fitted(theirs) != _fitted(plan) or found.plan.split != plan.split:
        raise ConfigError(f"{path} has an augmenter of other settings: use the same, or fit one")
    _require_data(path, found, plan.data, fingerprint)
    augmenter = load_augmenter(path / "augmenter")
    own = find_augmenter(augmenter.name)(**(plan.augment_settings or {})).config.model_dump()
    use = {name: value for name, value in own.items() if name in UseSettings.model_fields}
    return with_settings(augmenter, use) if use else augmenter


def read_curve(file: Path) -> list[Epoch]:
    """Epochs of a run, from its ``curve.json``.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return TypeAdapter(list[Epoch]).validate_json(file.read_bytes(), strict=True)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({cause_of(error)}): train again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        reason = f"{where}{first['msg']}"
        raise DataError(f"{file} is damaged ({reason}): train the run again") from error


def write_leak(path: Path, leak: Leak) -> None:
    """Writes what the leak meter found into a run's directory."""
    write_json(path / "leak.json", leak.to_json())


def read_leak(path: Path) -> Leak | None:
    """What the leak meter found of a run; None if it was not measured.

    Raises:
        DataError: the file is damaged.
    """
    file = path / "leak.json"
    if not file.exists():
        return None
    try:
        return Leak.from_json(read_document(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is damaged: remove it, or train the run again") from error


def _checksums(path: Path) -> dict[str, str]:
    """Checksums of those files of a run that it is tied to, by name, as far as they are there."""
    return {name: sha256(path / name) for name in _TIED if (path / name).is_file()}


def _require_parts(path: Path, found: RunFile) -> None:
    """Refuses a finished run in which a model or a curve is not its own."""
    there = _checksums(path)
    for name in _TIED:
        if there.get(name) != found.parts.get(name):
            what = "is missing" if name not in there else "is not the one that this run made"
            raise DataError(f"{path / name} {what}: copy the run again, or train it again")


def _require_planned(path: Path, plan: Plan, model: Recommender) -> None:
    planned = find_recommender(plan.model)(**plan.settings)
    if type(model) is not type(planned) or not model.config.comes_of(planned.given):
        raise DataError(
            f"{path / 'run.json'} plans another model than the one in {path / 'model'}: copy the "
            "run again, or train it again"
        )


def _set_aside(path: Path) -> None:
    """Renames a run that is to be replaced; what was set aside before remains the older one.

    Raises:
        DataError: something in its directory is not of a run.
    """
    foreign = sorted(
        part.name
        for part in path.iterdir()
        if part.name not in _OWN and not part.name.startswith(".")
    )
    if foreign:
        raise DataError(
            f"{path} holds {foreign[0]!r}, which is of no run and would be lost: move it elsewhere "
            "before --overwrite"
        )
    old = beside(real(path), "old")
    if old.exists():
        _clear(path)
    else:
        with telling(path):
            real(path).rename(old)
            flush_directory(old.parent)


def _put_back(path: Path) -> None:
    """Gives a run that was set aside its place again, unless something was trained there."""
    old = kept_beside(path)
    if old is None or (not is_free(path) and (not holds_a_run(path) or _trained(path))):
        return
    with telling(path):
        if path.exists():
            _clear(path)
            path.rmdir()
        old.rename(real(path))
        flush_directory(old.parent)


def _require_same(path: Path, found: RunFile, plan: Plan, fingerprint: str) -> None:
    """Refuses a run of another plan or of other data; where the data lies does not matter."""
    started, wanted = found.plan.document(), plan.document()
    for what in wanted | started:
        value, other = wanted.get(what), started.get(what)
        if what != "data" and other != value:
            raise ConfigError(
                f"{path} was started with {what} = {other}, not {value}: use the same, or another "
                "--out"
            )
    _require_data(path, found, plan.data, fingerprint)


def _require_data(path: Path, found: RunFile, data: str, fingerprint: str) -> None:
    if fingerprint != found.fingerprint:
        raise DataError(
            f"the data at {data} is not what {path} was trained on: say where that is (--data), or "
            "train again"
        )


def _fitted(plan: Plan) -> dict[str, Any]:
    """The plan as it is read back, without what does not change the fit of its augmenter."""
    return replace(plan, augment_settings=without_use(plan.augment_settings or {})).document()


def _trained(path: Path) -> bool:
    """Whether a run's directory holds anything that it would take time to make again."""
    parts = (path / "augmenter", path / "model")
    return any(part.exists() for part in parts) or bool(checkpoint_files(path / "checkpoint"))


def _clear(path: Path) -> None:
    """Removes what is of a run from its directory; what says that it is a run's goes last."""
    own = [part for part in path.iterdir() if part.name in _OWN or part.name.startswith(".")]
    for part in sorted(own, key=lambda part: part.name == "run.json"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()
