"""Command about tables of results, whoever's: audit."""

from pathlib import Path
from typing import Annotated

import typer

from diffuserec.cli import options, show
from diffuserec.errors import ConfigError


def audit(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            help="CSV files, results.json, or names of published tables such as diffrec-table2."
        ),
    ] = None,
    floors: Annotated[
        Path | None,
        typer.Option(
            help="A CSV file of floors to clear; else those of the study itself, or built-in ones."
        ),
    ] = None,
    all_published: Annotated[
        bool, typer.Option("--all-published", help="All published tables of results.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Checks tables of results: impossible metrics, missed floors, unequal conditions.

    A CSV file has a row for each method and data set: a column *method*, columns of metrics such
    as HR@10, NDCG@10 and MRR, as shares of 1, and if known *dataset*, *loss*, *epochs*, *trials*,
    *candidates* (full or uniform:100), *filter_seen* (true or false), *users*, *items* and *note*.

    It also takes results.json of a study, or what 'diffuserec results --format csv' prints.

    Status 0 says that nothing was found, 1 that something was, 2 that a table cannot be read.

    Examples:

        diffuserec audit my_table.csv
        diffuserec audit runs/beauty/results.json
        diffuserec audit diffrec-table2 --json
        diffuserec audit --all-published
    """
    from dataclasses import asdict

    from diffuserec.evaluation.audit import audit as check
    from diffuserec.evaluation.audit import read_table
    from diffuserec.studies.published import published_names, published_table

    names = [*(tables or [])]
    if all_published:
        names += published_names("results")
    if not names:
        raise ConfigError("nothing to check: give a CSV file or a published table's name")
    known = published_names()
    limits = None if floors is None else read_table(floors)
    found = {}
    for name in names:
        published = name in known or not (Path(name).suffix or Path(name).exists())
        rows = published_table(name).rows_to_audit() if published else read_table(name)
        found[name] = check(rows, limits)
    if as_json:
        show.print_json({"tables": {name: asdict(result) for name, result in found.items()}})
    else:
        show.audits(found)
    if any(result.findings for result in found.values()):
        raise typer.Exit(1)
