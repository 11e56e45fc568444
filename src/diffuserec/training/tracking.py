"""Trackers: what a training does, told to TensorBoard, MLflow, trackio or Weights & Biases.

    with Tracking(["tensorboard:tb", "mlflow"], "sasrec", {"dim": 64}) as tracking:
        model.fit(split.train, split.valid, Runtime(on_epoch=tracking))
        result = evaluate(model, split.test)
        tracking.results("test", result.metrics, str(result.protocol))

Each is an extra of the package, imported when it is used. A tracker that fails, such as a server
that is away, is a warning; training goes on without it.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.files import read_document, write_json
from diffuserec.models.base import Epoch

_PROJECT = "diffuserec"
_IDS = "tracking.json"


class Tracker(ABC):
    """Where one run is told to.

    Args:
        where: what stands behind the tracker's name: a directory, an address or a project; or None.
        folder: of files, for trackers that are given none.
    """

    package: ClassVar[str]
    """What must be installed."""

    def __init__(self, where: str | None, folder: Path) -> None:
        self.where = where
        self.folder = folder

    @abstractmethod
    def begin(self, name: str, facts: Mapping[str, Any], known: str | None) -> str:
        """Begins a run, or continues the one of that id.

        Returns:
            The id by which it can be continued.
        """

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Takes numbers of an epoch, or of the end."""

    @abstractmethod
    def say(self, name: str, text: str) -> None:
        """Takes a text."""

    @abstractmethod
    def end(self, status: str) -> None:
        """Ends the run: FINISHED, FAILED or KILLED."""


class _TensorBoard(Tracker):
    package = "tensorboard"

    def begin(self, name: str, facts: Mapping[str, Any], known: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        directory = self.folder / "tensorboard" if self.where is None else Path(self.where) / name
        # a run that begins anew in the same place hides what an older one left there
        new: Any = SummaryWriter
        self.writer = new(str(directory), purge_step=0 if known is None else None)
        self.say("settings", "\n".join(f"    {fact}: {value}" for fact, value in facts.items()))
        return str(directory)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def say(self, name: str, text: str) -> None:
        self.writer.add_text(name, text)

    def end(self, status: str) -> None:
        self.writer.close()


class _MLflow(Tracker):
    package = "mlflow"

    def begin(self, name: str, facts: Mapping[str, Any], known: str | None) -> str:
        # a server that is away would be asked for minutes otherwise
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.client = importlib.import_module("mlflow").MlflowClient(tracking_uri=self.where)
        if known is not None:
            self.client.update_run(known, status="RUNNING")
            self.run: str = known
            return known
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self.client.get_experiment_by_name(project)
        experiment = (
            self.client.create_experiment(project) if found is None else found.experiment_id
        )
        self.run = self.client.create_run(experiment, run_name=name).info.run_id
        for fact, value in facts.items():
            self.client.log_param(self.run, self._name(fact), str(value))
        return self.run

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.client.log_metric(self.run, self._name(name), value, step=step)

    def say(self, name: str, text: str) -> None:
        self.client.set_tag(self.run, self._name(name), text)

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run, status)

    @staticmethod
    def _name(name: str) -> str:
        """A name without what MLflow refuses: NDCG_10 for NDCG@10."""
        return re.sub(r"[^\w\-. :/]", "_", name)


class _WandB(Tracker):
    package = "wandb"
    id_of: ClassVar[str] = "id"
    failed: ClassVar[Mapping[str, Any]] = {"exit_code": 1}

    def begin(self, name: str, facts: Mapping[str, Any], known: str | None) -> str:
        again = {} if known is None else {self.id_of: known, "resume": "must"}
        about = {"name": name, "config": dict(facts)} | again
        self.library = importlib.import_module(self.package)
        self.run = self.library.init(project=self.where or _PROJECT, **about)
        return str(getattr(self.run, self.id_of))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers))  # its own steps count up through all phases

    def say(self, name: str, text: str) -> None:
        self.run.log({name: text})

    def end(self, status: str) -> None:
        self.library.finish(**({} if status == "FINISHED" else self.failed))


class _Trackio(_WandB):
    package = "trackio"
    id_of = "name"
    failed: ClassVar[Mapping[str, Any]] = {}


TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "trackio": _Trackio,
    "wandb": _WandB,
}
"""Trackers by name, which are also the extras that install them."""


class Tracking:
    """Trackers of one run: a context, within which it is a hook for ``Runtime.on_epoch``.

    Args:
        trackers: ``tensorboard``, ``mlflow``, ``trackio`` or ``wandb``, each alone or with a colon
            and a directory, an address (``mlflow:http://host:5000``) or a project.
        name: of the run.
        facts: settings and the like, by name.
        directory: of the run. Ids are kept there, so that a resumed run continues what it began;
            TensorBoard's files lie there unless they are given a directory. None keeps no ids.

    Raises:
        ConfigError: there is no such tracker, or it is not installed.
    """

    def __init__(
        self,
        trackers: Sequence[str],
        name: str,
        facts: Mapping[str, Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._name, self._facts = name, dict(facts or {})
        self._ids = None if directory is None else directory / _IDS
        self._all = {text: _tracker(text, directory or Path()) for text in trackers}

    def __enter__(self) -> Self:
        known: dict[str, Any] = {}
        if self._ids is not None and self._ids.exists():
            with contextlib.suppress(ValueError):
                known = read_document(self._ids)
        ids: dict[str, str] = {}

        def begin(text: str, tracker: Tracker) -> None:
            ids[text] = tracker.begin(self._name, self._facts, known.get(text))

        self._each(begin)
        if self._ids is not None and ids:
            write_json(self._ids, known | ids)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        status = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
        self._each(lambda _, tracker: tracker.end(status))

    def __call__(self, epoch: Epoch) -> None:
        """Tells of an epoch; never ends a phase."""
        numbers = {"loss": epoch.loss, "valid": epoch.valid, "seconds": epoch.seconds}
        named = {
            f"{epoch.phase}/{name}": value
            for name, value in (numbers | epoch.watched).items()
            if value is not None
        }
        self._each(lambda _, tracker: tracker.log(named, epoch.epoch))

    def results(self, part: str, metrics: Mapping[str, float], protocol: str) -> None:
        """Tells of measured results.

        Args:
            part: ``valid`` or ``test``.
            metrics: by name.
            protocol: the line that says how they were measured.
        """
        named = {f"{part}/{name}": value for name, value in metrics.items()}
        self._each(lambda _, tracker: tracker.log(named, 0))
        self._each(lambda _, tracker: tracker.say(f"{part}/protocol", protocol))

    def _each(self, act: Callable[[str, Tracker], None]) -> None:
        """Acts on each tracker; one that fails is left out from then on."""
        for text, tracker in list(self._all.items()):
            try:
                with _quiet():
                    act(text, tracker)
            except Exception as error:  # whatever a tracker raises, training goes on
                del self._all[text]
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"{text} is not told of {self._name} any more ({reason}); training goes on",
                    stacklevel=4,
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends what trackers print to standard error, and drops the warnings of their packages."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tracker(text: str, folder: Path) -> Tracker:
    name, _, where = text.partition(":")
    if name not in TRACKERS:
        raise ConfigError(
            f"no tracker {name!r}{did_you_mean(name, TRACKERS)}; there are: {', '.join(TRACKERS)}"
        )
    kind = TRACKERS[name]
    if importlib.util.find_spec(kind.package) is None:
        raise ConfigError(f"{name} is not installed: pip install 'diffuserec[{name}]'")
    return kind(where or None, folder)
