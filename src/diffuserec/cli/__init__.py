"""Command line: thin, no logic. Bad input gets one line on standard error and status 2."""

import sys

import typer

from diffuserec.cli import audit, data, results, training
from diffuserec.cli.show import print_error
from diffuserec.errors import ConfigError, DataError

app = typer.Typer(
    help="Diffusion models for sequential recommendation: augment, recommend, measure, deploy.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (
    training.demo,
    data.prepare,
    data.describe,
    training.train,
    results.evaluate,
    results.compare,
    results.views,
    data.augment,
    results.recommend,
    results.models,
    audit.audit,
    training.experiment,
    training.curve,
):
    app.command()(command)


def main() -> None:
    """Entry point: bad input, or a path that cannot be used, is one line and status 2."""
    try:
        app()
    except (DataError, ConfigError, OSError) as error:
        print_error(f"diffuserec: {error}")
        sys.exit(2)
