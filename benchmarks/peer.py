"""What the scripts that time other libraries share: an environment of their own, and the report.

A peer cannot live in this project's environment, because it asks for other versions of the same
packages. Its script makes one on its first run, and starts itself again inside it; it imports
nothing of diffuserec.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

CACHE = Path(__file__).resolve().parent.parent / ".bench-peers"
"""Where the environments are made."""

TORCH = "torch==2.13.0"
"""Installed before all else. On Linux, the build for the CPU alone is asked for first: the plain
one brings gigabytes of packages for CUDA; where pip finds none (the variable PIP_EXTRA_INDEX_URL
names an index that has one), the plain one is installed, and runs on the CPU all the same."""

NO_ENVIRONMENT = 3
"""Exit status of a script whose peer cannot be installed here; the reason is its last line."""


@dataclass(frozen=True)
class Peer:
    """A library that is timed.

    Attributes:
        name: as people write it, the version included.
        pythons: versions of Python that it and the packages below exist for.
        installs: arguments of ``pip install``, one list a call, after torch has been installed;
            wheels only.
        reported: packages whose versions are part of the result.
    """

    name: str
    pythons: Sequence[tuple[int, int]]
    installs: Sequence[Sequence[str]]
    reported: Sequence[str]


def parse_arguments(
    peer: Peer, venv: str, train_batch_size: int, eval_batch_size: int
) -> argparse.Namespace:
    """Options that all peers have, with the defaults of one."""
    parser = argparse.ArgumentParser(description=f"Time SASRec in {peer.name} on the CPU.")
    parser.add_argument("log", type=Path, help="one user a line: user item item ..., oldest first")
    parser.add_argument("--epochs", type=_positive, default=1, help="timed, after any warm-up")
    parser.add_argument("--threads", type=_positive, default=2)
    parser.add_argument("--train-batch-size", type=_positive, default=train_batch_size)
    parser.add_argument("--eval-batch-size", type=_positive, default=eval_batch_size)
    parser.add_argument(
        "--venv", type=Path, default=CACHE / venv, help="the peer's environment, made if missing"
    )
    parser.add_argument("--python", help="makes the environment; by default one that the peer has")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument(
        "--time-limit", type=_positive, default=3600, help="seconds after which to give up"
    )
    args = parser.parse_args()
    if not args.log.is_file():
        parser.error(f"no such log: {args.log}")
    args.log, args.venv = args.log.resolve(), args.venv.resolve()
    args.json = args.json and args.json.resolve()
    return args


def run(peer: Peer, args: argparse.Namespace, measure: Callable[[], dict[str, Any]]) -> None:
    """Measures and reports; first makes the peer's environment and starts over inside it.

    Args:
        measure: called in the environment, within the time limit and with so many threads; it has
            read its arguments already.
    """
    if not args.venv.exists():
        _create_environment(peer, args.venv, args.python or _python_for(peer))
    elif not _holds(peer, args.venv):
        sys.exit(
            f"{args.venv} is not an environment with this script's pins: remove it, or pass "
            "another --venv"
        )
    if Path(sys.prefix).resolve() != args.venv:
        python, threads = _python_in(args.venv), str(args.threads)
        command = [python, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        os.execve(python, command, os.environ | variables)
    signal.signal(signal.SIGALRM, lambda *_: _give_up(args.time_limit))
    signal.setitimer(signal.ITIMER_REAL, args.time_limit)
    import torch

    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    sequences = list(read_sequences(args.log))
    with contextlib.redirect_stdout(sys.stderr):  # for peers that print what they do
        measured = measure()
    found = {
        "benchmark": f"SASRec in {peer.name}",
        "name": peer.name,
        "log": args.log.name,
        "users": len(sequences),
        "interactions": sum(len(items) for _, items in sequences),
        **measured,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average_at_start": round(load, 2),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in peer.reported},
    }
    text = json.dumps(found, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n", encoding="utf-8")


def read_sequences(log: Path) -> Iterator[tuple[str, list[str]]]:
    """The users of a log and their items, oldest first."""
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            user, *items = line.split() or [""]
            if items:
                yield user, items


def timed(task: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float, float]:
    """Call `task`; return its result, its seconds by the clock and its threads' CPU seconds."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = task(*arguments, **options)
    return result, time.perf_counter() - clock, time.process_time() - cpu


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _give_up(time_limit: int) -> None:
    sys.exit(f"stopped: not done after {time_limit} seconds (--time-limit)")


def _refuse(reason: str) -> None:
    print(reason, file=sys.stderr)
    sys.exit(NO_ENVIRONMENT)


def _python_for(peer: Peer) -> str:
    """A Python that the peer exists for: this one, or one on the path."""
    if sys.version_info[:2] in peer.pythons:
        return sys.executable
    for major, minor in peer.pythons:
        found = shutil.which(f"python{major}.{minor}")
        # a shim of pyenv is on the path whether or not its version is chosen
        if found and not subprocess.run([found, "--version"], capture_output=True).returncode:
            return found
    known = " or ".join(f"{major}.{minor}" for major, minor in peer.pythons)
    _refuse(f"{peer.name} needs Python {known}, and there is none on the path (--python)")
    raise AssertionError


def _python_in(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _pins(peer: Peer) -> str:
    return "".join(" ".join(words) + "\n" for words in ([TORCH], *peer.installs))


def _pins_file(folder: Path) -> Path:
    return folder / "peer-pins.txt"


def _holds(peer: Peer, folder: Path) -> bool:
    """Whether `folder` is an environment that was finished, with today's pins."""
    file = _pins_file(folder)
    return file.is_file() and file.read_text(encoding="utf-8") == _pins(peer)


def _create_environment(peer: Peer, folder: Path, python: str) -> None:
    """Installs the peer at `folder`; leaves nothing there if that fails."""
    print(f"installing {peer.name} in {folder}", file=sys.stderr)
    pip = [_python_in(folder), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    pip += ["--disable-pip-version-check", "--retries", "1"]
    try:
        subprocess.run([python, "-m", "venv", str(folder)], check=True, stdout=sys.stderr)
        if sys.platform != "linux" or _fails([*pip, f"{TORCH}+cpu"]):
            print(f"installing {TORCH}: no build for the CPU alone was found", file=sys.stderr)
            subprocess.run([*pip, TORCH], check=True, stdout=sys.stderr)
        for words in peer.installs:
            subprocess.run([*pip, *words], check=True, stdout=sys.stderr)
        _pins_file(folder).write_text(_pins(peer), encoding="utf-8")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, subprocess.CalledProcessError):
            _refuse(f"{peer.name} cannot be installed here: `{' '.join(error.cmd[-2:])}` failed")
        raise


def _fails(command: Sequence[str]) -> bool:
    return subprocess.run(command, stdout=sys.stderr).returncode != 0


def trainer_of(lightning: Any, epochs: int, seconds: list[tuple[float, float]]) -> Any:
    """A trainer of Lightning, the module as the peer imports it, that does nothing but train on the
    CPU and adds each epoch's seconds, see :func:`_epoch_clock`."""
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[_epoch_clock(lightning, seconds)],
    )


def _epoch_clock(lightning: Any, seconds: list[tuple[float, float]]) -> Any:
    """A callback of Lightning, the module as the peer imports it, that adds each epoch's seconds:
    those by the clock and its threads' CPU seconds."""

    class Clock(lightning.Callback):
        """Seconds of the epochs."""

        def on_train_epoch_start(self, *_: Any) -> None:
            self.start = time.perf_counter(), time.process_time()

        def on_train_epoch_end(self, *_: Any) -> None:
            clock, cpu = self.start
            seconds.append((time.perf_counter() - clock, time.process_time() - cpu))

    return Clock()
