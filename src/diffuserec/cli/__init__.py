"""Command line: thin, no logic. Bad input gets one line on standard error and status 2."""

import os
import signal
import sys
import warnings
from signal import SIGINT, SIGTERM
from types import FrameType
from typing import Annotated, Any

import typer

from diffuserec import __version__
from diffuserec.cli import (
    audit,
    data,
    deploy,
    doctor,
    fetching,
    results,
    serving,
    show,
    studies,
    training,
)
from diffuserec.errors import ConfigError, DataError, LostProcess

app = typer.Typer(
    help="Diffusion models for sequential recommendation: augment, recommend, measure, deploy.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool | None) -> None:
    if asked:
        show.print_line(f"diffuserec {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = None,
) -> None:
    pass


def _number() -> int | None:
    """Number of this process among several that were started together; None if it is alone."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE") or 1) > 1 else None


for command in (
    training.demo,
    data.prepare,
    data.describe,
    training.plan,
    training.train,
    deploy.update,
    results.evaluate,
    results.compare,
    results.beyond,
    results.views,
    data.augment,
    results.recommend,
    results.models,
    audit.audit,
    studies.study,
    studies.reproduce,
    studies.tune,
    studies.results,
    deploy.export,
    serving.serve,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(fetching.app, name="data")


def main() -> None:
    """Entry point: bad input, or a path that cannot be used, is one line and status 2.

    A termination (SIGTERM) is an interruption as Ctrl-C is: what is half-written is removed, and
    what was trained stays. The status is 128 and the signal's number.
    """
    received, ended = 0, False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if not ended:  # afterwards nothing is left to be interrupted
            raise KeyboardInterrupt

    warnings.showwarning = lambda message, *_: (
        None if _number() else show.print_error(f"diffuserec: {message}")
    )
    before: dict[signal.Signals, Any] = {}
    try:
        for number in (SIGINT, SIGTERM):
            before[number] = signal.signal(number, interrupt)
        if _number() is not None and sys.argv[1:2] != ["train"]:
            raise ConfigError(
                "several processes were started, and each would do all of this command: start one, "
                "without torchrun; 'diffuserec train' is what several can share"
            )
        try:
            app()
        finally:
            ended = True
    except (DataError, ConfigError, OSError) as error:
        if not _number():  # the others found the same
            show.print_error(f"diffuserec: {error}")
        sys.exit(2)
    except LostProcess as error:
        show.print_error(f"diffuserec: {error}")
        sys.exit(1)
    except (SystemExit, KeyboardInterrupt):
        if received:
            sys.exit(128 + received)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
