"""A run: what was trained, and the directory that holds it.

    run.json      what was trained, on what, with which settings and seed
    model/        the recommender; ``diffuserec.load`` reads it
    augmenter/    the augmenter, where there was one
    curve.json    loss and validation figure of each epoch
    test/         metrics.json and per_user.parquet
    valid/        the same on the validation queries
    report.html   figures and tables
    checkpoint/   only while training: what ``--resume`` continues from

Training one is :func:`diffuserec.studies.experiment.train_run`: it claims the directory, fills it and
says when it is finished. Here a run is opened, measured and asked what it cost.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diffuserec.models.base import Augmenter, Recommender, load
from diffuserec.data import (
    SequenceDataset,
    Split,
    dataset_manifest,
    leave_one_out,
    load_dataset,
    temporal,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import Evaluation, evaluate, has_distribution, load_evaluation
from diffuserec.training.loop import Epoch, checkpoint_files

_FORMAT = "diffuserec-run"
_VERSION = 1

SplitName = Literal["leave-one-out", "temporal"]


@dataclass(frozen=True)
class Plan:
    """What a run is: enough to train it again.

    Attributes:
        data: the prepared dataset.
        model: name of the recommender.
        settings: its hyper-parameters that are not the defaults.
        augment: name of the augmenter, or None.
        augment_settings: likewise.
        split: how the log is divided.
        seed: of the run.
    """

    data: str
    model: str
    settings: Mapping[str, Any]
    augment: str | None = None
    augment_settings: Mapping[str, Any] | None = None
    split: SplitName = "leave-one-out"
    seed: int = 0

    @property
    def label(self) -> str:
        """How the run is called in tables."""
        return self.model if self.augment is None else f"{self.model} + {self.augment}"


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run read back: its plan, its models, and the log that it was trained on, divided."""

    path: Path
    plan: Plan
    model: Recommender
    augmenter: Augmenter | None
    split: Split
    facts: dict[str, Any]

    def training_data(self) -> SequenceDataset:
        """What the model was trained on: the training part, lengthened by the augmenter if any."""
        train = self.split.train
        return train if self.augmenter is None else self.augmenter.augment(train, self.plan.seed)

    def evaluate(
        self,
        part: Literal["test", "valid"] = "test",
        candidates: str = "full",
        filter_seen: bool = True,
    ) -> Evaluation:
        """Measures the run; the default protocol is read from the run where it stands there."""
        default = candidates == "full" and filter_seen
        if default and (self.path / part / "metrics.json").is_file():
            return load_evaluation(self.path / part)
        queries = self.split.test if part == "test" else self.split.valid
        result = evaluate(
            self.model,
            queries,
            augmenter=self.augmenter,
            filter_seen=filter_seen,
            candidates=candidates,
            seed=self.plan.seed,
            with_uncertainty=default and has_distribution(self.model),
            dataset_name=Path(self.plan.data).name,
            facts={**self.facts, "split": f"{self.split.protocol}, {part}"},
        )
        if default:
            result.save(self.path / part)
        return result


def split_dataset(dataset: SequenceDataset, name: str) -> Split:
    """The log divided by the split of that name.

    Raises:
        ConfigError: there is no such split.
    """
    splits: dict[str, Callable[[SequenceDataset], Split]] = {
        "leave-one-out": leave_one_out,
        "temporal": temporal,
    }
    if name not in splits:
        raise ConfigError(f"no split {name!r}; there are: {', '.join(splits)}")
    return splits[name](dataset)


def log_facts(data: str, split: Split) -> dict[str, Any]:
    """What every protocol says of a prepared log: its filters, and how many users are too short."""
    filters = dataset_manifest(data)["note"].get("filters", "none")
    return {"filters": filters, "n_too_short": split.n_too_short}


def claim(path: Path, plan: Plan, resume: bool) -> None:
    """Makes a directory that of a run of this plan, or takes an interrupted one up again.

    Args:
        path: the run's directory.
        plan: what is going to be trained.
        resume: whether a run that stands there may be continued.

    Raises:
        ConfigError: it holds a run that was not asked to be resumed, is finished, or is of another
            plan.
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
        _same_plan(path, plan)
        return
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "run.json", _document(plan, complete=False, seconds={}))


def is_finished(path: Path, plan: Plan) -> bool:
    """Whether a run of this plan stands there and is finished.

    Raises:
        ConfigError: a run of another plan does.
        DataError: something else does.
    """
    if not path.exists() or not any(path.iterdir()):
        return False
    _same_plan(path, plan)
    return bool(_read_run(path)["complete"])


def finish(path: Path, plan: Plan, seconds: Mapping[str, float]) -> None:
    """Says in a run's directory that it is finished; its checkpoint is not needed any more.

    Args:
        path: the run's directory.
        plan: what was trained.
        seconds: that each part took.
    """
    write_json(path / "run.json", _document(plan, complete=True, seconds=seconds))
    shutil.rmtree(path / "checkpoint", ignore_errors=True)


def open_run(path: Path | str) -> TrainedRun:
    """Reads a finished run back.

    Raises:
        DataError: not a run, not finished, or its data is gone.
    """
    source = Path(path)
    document = _read_run(source)
    if not document["complete"]:
        hint = " (add --resume to its command)" if checkpoint_files(source / "checkpoint") else ""
        raise DataError(f"{source} is a run that has not finished{hint}")
    plan = Plan(**document["plan"])
    split = split_dataset(load_dataset(plan.data), plan.split)
    augmenter = load(source / "augmenter") if plan.augment is not None else None
    return TrainedRun(
        source, plan, load(source / "model"), augmenter, split, log_facts(plan.data, split)
    )


def seen_kept(path: Path) -> Evaluation:
    """A finished run measured on test with seen items kept in the ranking, once for all."""
    if not (path / "test_seen_kept").is_dir():
        open_run(path).evaluate(filter_seen=False).save(path / "test_seen_kept")
    return load_evaluation(path / "test_seen_kept")


def cost(path: Path) -> dict[str, Any]:
    """Seed, seconds of a finished run, its recommender's validated epochs and best figure of them.

    Seconds are those of fitting and augmenting; of a run that was resumed, which measured its last
    part alone, those of all its epochs. The fit of an augmenter counts in the run that it was
    fitted in, not in those that took it over.
    """
    document = _read_run(path)
    epochs = read_curve(path / "curve.json")
    of_augmenter = path / "augmenter-curve.json"
    n_before = len(read_curve(of_augmenter)) if of_augmenter.exists() else 0
    valid = [epoch.valid for epoch in epochs[n_before:] if epoch.valid is not None]
    return {
        "seed": document["plan"]["seed"],
        "seconds": max(sum(document["seconds"].values()), sum(epoch.seconds for epoch in epochs)),
        "epochs": len(valid),
        "best_valid": max(valid, default=None),
    }


def read_curve(file: Path) -> list[Epoch]:
    """The epochs of a run, from its ``curve.json``."""
    return [Epoch(**record) for record in json.loads(file.read_text())]


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, which appears whole or not at all."""
    work = path.with_name(f".{path.name}.partial")
    work.write_text(json.dumps(content, indent=2) + "\n")
    work.replace(path)


def _same_plan(path: Path, plan: Plan) -> None:
    started = _read_run(path)["plan"]
    for what, value in json.loads(json.dumps(asdict(plan))).items():
        if started[what] != value:
            raise ConfigError(
                f"{path} was started with {what} = {started[what]}, not {value}: "
                "use the same, or another --out"
            )


def _document(plan: Plan, complete: bool, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "complete": complete,
        "plan": asdict(plan),
        "seconds": dict(seconds),
    }


def _read_run(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((path / "run.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a run: 'diffuserec train' makes one") from error
    if document.get("format") != _FORMAT or document.get("version") != _VERSION:
        raise DataError(f"{path / 'run.json'} is of another format or version")
    return document
