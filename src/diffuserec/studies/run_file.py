"""``run.json``: what a run was asked to train, on which data, and where and how it was trained.

    format, version   of the file
    complete          whether the run is finished
    plan              what is trained, see :class:`Plan`
    fingerprint       of the data, see ``SequenceDataset.fingerprint``
    starts            when, with which versions and on what machine it was started, and resumed
    seconds           that its parts took
    parts             checksums of its models and curves, once it is finished
    sha256            checksum of all this

The file is read strictly: one that lacks something, or has something more, is refused in one line.
"""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

import diffuserec
from diffuserec.data.splits import NOTHING_HELD_OUT
from diffuserec.errors import DataError
from diffuserec.files import is_sealed, read_document, sealed, write_json
from diffuserec.models.base import Runtime
from diffuserec.training.device import device_of

_FORMAT = "diffuserec-run"
_VERSION = 4
_STRICT = ConfigDict(strict=True, extra="forbid")
_OF_FINAL = ("settings_from", "epochs", "start_from")


@dataclass(frozen=True)
class Source:
    """A run that another one took something from.

    Attributes:
        run: its directory at that time.
        identity: digest of its plan, data and models, see :attr:`RunDirectory.identity`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    run: str
    identity: str


@dataclass(frozen=True)
class Plan:
    """Plan of a run: enough to train it again.

    Attributes:
        data: the prepared dataset.
        model: name of the recommender.
        settings: its hyper-parameters that are not the defaults.
        augment: name of the augmenter, or None.
        augment_settings: hyper-parameters of the augmenter that are not the defaults.
        split: name of the split, see :mod:`diffuserec.data.splits`.
        seed: of the run.
        settings_from: of a final run, the run that was measured with these settings.
        epochs: of a final run, after how many each phase ends, by its name in ``curve.json``.
        start_from: the run whose model it starts from; None starts from drawn parameters.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    data: str
    model: str
    settings: Mapping[str, Any]
    augment: str | None = None
    augment_settings: Mapping[str, Any] | None = None
    split: str = "leave-one-out"
    seed: int = 0
    settings_from: Source | None = None
    epochs: Mapping[str, int] | None = None
    start_from: Source | None = None

    @property
    def label(self) -> str:
        """Name of the run in tables."""
        return self.model if self.augment is None else f"{self.model} + {self.augment}"

    @property
    def is_final(self) -> bool:
        """Whether it trains on everything, so that nothing is held out to measure it on."""
        return self.split == NOTHING_HELD_OUT

    def document(self) -> dict[str, Any]:
        """The plan as JSON values; what only final runs have is left out of others."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        unset = [name for name in _OF_FINAL if found[name] is None]
        return {name: value for name, value in found.items() if name not in unset}


@dataclass(frozen=True)
class Start:
    """A start of a run, or a resumption: what can make its numbers differ from another's.

    Attributes:
        time: UTC, as ISO 8601.
        command: command line, quoted for a shell; ``Python`` if there was none of ours.
        version: of diffuserec.
        commit: of its source, with ``-dirty`` if files were changed; None if it is installed.
        torch: version of torch.
        python: version of Python.
        platform: operating system and processor.
        device: that was trained on.
        precision: of matrix products.
        threads: of a computation on the CPU; two give other weights than one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    time: str
    command: str
    version: str
    commit: str | None
    torch: str
    python: str
    platform: str
    device: str
    precision: str
    threads: int

    @staticmethod
    def now(runtime: Runtime) -> "Start":
        """A start at this moment.

        Raises:
            ConfigError: the device is not there.
        """
        device = device_of(runtime)
        gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        return Start(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            command=_command(),
            version=diffuserec.__version__,
            commit=_commit(),
            torch=torch.__version__,
            python=platform.python_version(),
            platform=platform.platform(),
            device=f"{device}{gpu}",
            precision=runtime.precision,
            threads=torch.get_num_threads(),
        )


@dataclass(frozen=True)
class RunFile:
    """Content of ``run.json``.

    Attributes:
        plan: what is trained.
        fingerprint: of the data that it is trained on.
        starts: the start, and every resumption.
        complete: whether the run is finished.
        seconds: that parts of the last start took, by name.
        parts: checksums of files of a finished run, by their names in its directory.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    plan: Plan
    fingerprint: str
    starts: tuple[Start, ...]
    complete: bool
    seconds: Mapping[str, float]
    parts: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Writes the file into a run's directory, in one step."""
        document = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        document["plan"] = self.plan.document()
        write_json(path / "run.json", sealed(document))


def read_run_file(path: Path) -> RunFile:
    """The file in a run's directory.

    Raises:
        DataError: the directory holds no run, one of another release, or one that is damaged.
    """
    file = path / "run.json"
    try:
        document = read_document(file)
    except OSError as error:
        raise DataError(f"{path} is not a run: 'diffuserec train' makes one") from error
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}): train the run again") from error
    is_whole = is_sealed(document)
    version = document.pop("version", None)
    if document.pop("format", None) != _FORMAT or type(version) is not int:
        raise DataError(f"{file} is damaged (it does not describe a run): train the run again")
    if version != _VERSION:
        age, advice = (
            ("a newer release of diffuserec", "update diffuserec")
            if version > _VERSION
            else ("an older release of diffuserec", "train it again (--overwrite replaces it)")
        )
        raise DataError(
            f"{file} was written by {age} (version {version} of runs, this one reads {_VERSION}): "
            f"{advice}"
        )
    document.pop("sha256", None)
    try:
        found = TypeAdapter(RunFile).validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file} is damaged ({where}: {first['msg']}): train it again") from error
    missing = found.plan.document().keys() - document["plan"].keys()
    if missing:
        raise DataError(f"{file} is damaged (plan lacks {', '.join(missing)}): train it again")
    if not is_whole:
        raise DataError(f"{file} is damaged (it does not match its own checksum): train it again")
    return found


def holds_a_run(path: Path) -> bool:
    """Whether the directory is a run's, of any release; damaged files are nobody's."""
    try:
        return read_document(path / "run.json").get("format") == _FORMAT
    except (OSError, ValueError):
        return False


def _command() -> str:
    """The command line of this process, if it is one of ours."""
    program = Path(sys.argv[0])
    ours = Path(diffuserec.__file__).parent
    if program.stem != "diffuserec" and ours not in program.resolve().parents:
        return "Python"
    return shlex.join(["diffuserec", *sys.argv[1:]])


def _commit() -> str | None:
    """The commit of the package's source; None where git or a checkout of it is missing."""
    source = Path(diffuserec.__file__)

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(source.parent), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, encoding="utf-8"
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # not in a checkout of something else
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
