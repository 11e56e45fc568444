"""Directory of a run: the plan of what is trained, and everything that came of it.

    run.json      the plan: data, methods, settings, seed; whether it is finished, and seconds
    model/        the recommender; ``diffuserec.load`` reads it
    augmenter/    the augmenter, if there is one
    curve.json    loss and validation metric of each epoch
    test/         metrics.json and per_user.parquet
    valid/        the same files for the validation queries
    report.html   figures and tables
    checkpoint/   only while training: ``--resume`` continues from it

:func:`diffuserec.studies.train_run.train_run` claims a directory, fills it and marks it finished.
Here a run is opened, measured and asked what it cost.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diffuserec.data import (
    SequenceDataset,
    Split,
    dataset_manifest,
    leave_one_out,
    load_dataset,
    temporal,
)
from diffuserec.errors import ConfigError, DataError, did_you_mean
from diffuserec.evaluation import Evaluation, evaluate, load_evaluation
from diffuserec.files import read_document, write_json
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Epoch
from diffuserec.models.methods import load, load_augmenter, run_of
from diffuserec.models.recommender import Recommender
from diffuserec.training.checkpoint import checkpoint_files

_FORMAT = "diffuserec-run"
_VERSION = 2

SPLITS: dict[str, Callable[[SequenceDataset], Split]] = {
    "leave-one-out": leave_one_out,
    "temporal": temporal,
}
"""Splits of a log by name."""


@dataclass(frozen=True)
class Plan:
    """Plan of a run: enough to train it again.

    Attributes:
        data: the prepared dataset.
        model: name of the recommender.
        settings: its hyper-parameters that are not the defaults.
        augment: name of the augmenter, or None.
        augment_settings: hyper-parameters of the augmenter that are not the defaults.
        split: name of the split, see ``SPLITS``.
        seed: of the run.
    """

    data: str
    model: str
    settings: Mapping[str, Any]
    augment: str | None = None
    augment_settings: Mapping[str, Any] | None = None
    split: str = "leave-one-out"
    seed: int = 0

    @property
    def label(self) -> str:
        """Name of the run in tables."""
        return self.model if self.augment is None else f"{self.model} + {self.augment}"


@dataclass(frozen=True, eq=False)
class RunDirectory:
    """A run read back.

    Attributes:
        path: its directory.
        plan: what was trained.
        model: the trained recommender.
        augmenter: the fitted augmenter, or None.
        split: the log that it was trained on, divided.
    """

    path: Path
    plan: Plan
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
        queries = self.split.test if part == "test" else self.split.valid
        name = Path(self.plan.data).name
        return evaluate(model, queries, dataset_name=name, facts=facts, **options)

    def evaluate(
        self,
        part: Literal["test", "valid"] = "test",
        candidates: str = "full",
        filter_seen: bool = True,
        metrics: Sequence[str] = (),
    ) -> Evaluation:
        """Evaluation of the run; under the default protocol it is stored, and read from there."""
        standard = candidates == "full" and filter_seen
        default = standard and not metrics
        if default and (self.path / part / "metrics.json").is_file():
            return load_evaluation(self.path / part)
        result = self.measure(
            self.model,
            part,
            augmenter=self.augmenter,
            filter_seen=filter_seen,
            candidates=candidates,
            metrics=metrics,
            seed=self.plan.seed,
            with_uncertainty=standard and part == "test" and self.model.has_distribution,
        )
        if default:
            result.save(self.path / part)
        return result


def split_dataset(dataset: SequenceDataset, name: str) -> Split:
    """The log divided by the split of that name.

    Raises:
        ConfigError: there is no such split.
    """
    if name not in SPLITS:
        raise ConfigError(
            f"no split {name!r}{did_you_mean(name, SPLITS)}; there are: {', '.join(SPLITS)}"
        )
    return SPLITS[name](dataset)


def claim(path: Path, plan: Plan, resume: bool) -> None:
    """Makes a directory that of a run of this plan, or resumes an interrupted one.

    Raises:
        ConfigError: it holds a run that was not asked to be resumed, is finished, or is of another
            plan; or none that could be resumed.
        DataError: it holds something else.
    """
    if path.exists() and any(path.iterdir()):
        document = _read_run(path)
        if not resume:
            raise ConfigError(
                f"{path} holds a run already: choose another --out, or add --resume to continue it"
            )
        if document["complete"]:
            raise ConfigError(f"{path} is finished: there is nothing to resume")
        _require_same_plan(path, plan)
    elif resume:
        raise ConfigError(f"{path} holds no run to resume: leave out --resume")
    else:
        path.mkdir(parents=True, exist_ok=True)
        _write_run(path, plan, complete=False, seconds={})


def is_finished(path: Path, plan: Plan) -> bool:
    """Whether the directory holds a finished run of this plan.

    Raises:
        ConfigError: it holds a run of another plan.
        DataError: it holds something else.
    """
    if not path.exists() or not any(path.iterdir()):
        return False
    _require_same_plan(path, plan)
    return bool(_read_run(path)["complete"])


def finish(path: Path, plan: Plan, seconds: Mapping[str, float]) -> None:
    """Marks a run as finished and removes its checkpoint, which is not needed any more."""
    _write_run(path, plan, complete=True, seconds=seconds)
    shutil.rmtree(path / "checkpoint", ignore_errors=True)


def open_run(path: Path | str) -> RunDirectory:
    """Reads a finished run back.

    Raises:
        DataError: not a run, not finished, or its data is gone.
    """
    source = run_of(path)
    document = _read_run(source)
    if not document["complete"]:
        hint = " (add --resume to its command)" if checkpoint_files(source / "checkpoint") else ""
        raise DataError(f"{source} is a run that has not finished{hint}")
    plan = Plan(**document["plan"])
    split = split_dataset(load_dataset(plan.data), plan.split)
    augmenter = load_augmenter(source / "augmenter") if plan.augment is not None else None
    return RunDirectory(source, plan, load(source / "model"), augmenter, split)


def evaluate_unfiltered(path: Path) -> Evaluation:
    """Test evaluation of a finished run with seen items not filtered, made once and stored."""
    stored = path / "test_seen_not_filtered"
    if not stored.is_dir():
        open_run(path).evaluate(filter_seen=False).save(stored)
    return load_evaluation(stored)


def cost(path: Path) -> dict[str, Any]:
    """Seed, seconds, validated epochs of the recommender and its best validation metric.

    Seconds are those of fitting and augmenting; of a run that was resumed, which measured its last
    part alone, those of all its epochs. The fit of an augmenter counts in the run in which it was
    fitted, not in those that share it.
    """
    document = _read_run(path)
    epochs = read_curve(path / "curve.json")
    augmenter_curve = path / "augmenter-curve.json"
    n_before = len(read_curve(augmenter_curve)) if augmenter_curve.exists() else 0
    valid = [epoch.valid for epoch in epochs[n_before:] if epoch.valid is not None]
    return {
        "seed": document["plan"]["seed"],
        "seconds": max(sum(document["seconds"].values()), sum(epoch.seconds for epoch in epochs)),
        "epochs": len(valid),
        "best_valid": max(valid, default=None),
    }


def read_curve(file: Path) -> list[Epoch]:
    """Epochs of a run, from its ``curve.json``."""
    return [Epoch(**record) for record in json.loads(file.read_text(encoding="utf-8"))]


def _require_same_plan(path: Path, plan: Plan) -> None:
    started = _read_run(path)["plan"]
    for what, value in json.loads(json.dumps(asdict(plan))).items():
        if started[what] != value:
            raise ConfigError(
                f"{path} was started with {what} = {started[what]}, not {value}: "
                "use the same, or another --out"
            )


def _write_run(path: Path, plan: Plan, complete: bool, seconds: Mapping[str, float]) -> None:
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "complete": complete,
        "plan": asdict(plan),
        "seconds": dict(seconds),
    }
    write_json(path / "run.json", document)


def _read_run(path: Path) -> dict[str, Any]:
    try:
        document = read_document(path / "run.json")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a run: 'diffuserec train' makes one") from error
    if document.get("format") != _FORMAT or document.get("version") != _VERSION:
        raise DataError(
            f"{path / 'run.json'} is of another format or version: choose another directory, or "
            "remove this one and train again"
        )
    return document
