"""Results of a study as data: what its cells say, put together and never typed.

``results.json`` in the directory of a study holds a table for each data set, split and protocol;
every other form of a table, in a terminal, a page or a paper, comes from it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffuserec.errors import ConfigError, DataError
from diffuserec.files import read_document, write_json, write_text
from diffuserec.models.methods import find_recommender
from diffuserec.reports.figures import write_figures
from diffuserec.reports.html import write_html
from diffuserec.reports.report import Report
from diffuserec.studies.cells import (
    Cell,
    all_documents,
    looks_of,
    plan_of,
    read_evaluation,
    without_path,
)
from diffuserec.studies.ledger import looks, n_looks
from diffuserec.studies.made import made_of_cell
from diffuserec.studies.published import Figure, Results, published_table
from diffuserec.studies.run_directory import Plan, read_curve
from diffuserec.studies.run_file import read_run_file
from diffuserec.studies.runner import Outcome
from diffuserec.studies.study import Study
from diffuserec.studies.study_file import slug

FORMAT = "diffuserec-results"
VERSION = 1


def results_of(study: Study, outcome: Outcome, out: Path, small: bool = False) -> dict[str, Any]:
    """The results of a study, from its cells; writes ``results.json`` and returns its content.

    Each table has ``data, split, protocol, part, users`` (measured ones), ``line`` (its protocol)
    and ``rows``; each row has ``name, seeds, metrics`` (``value, margin, seed_std`` by name),
    ``difference`` from the row it is compared with, ``group_differences`` of the study's metrics,
    what was spent on it, ``leak`` (what the leak meter found, for each seed, or null), and
    ``unranked``: why it does not stand in one order with the others, or null.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "title": study.title,
        "text": study.text,
        "budget": "small" if small else "full",
        "metrics": study.metrics,
        "published": study.published,
        "said": _said(study.published),
        "published_curve": None if study.published_curve is None else dict(study.published_curve),
        "skipped": outcome.skipped,
        "tables": [
            {"data": data, "split": split, "protocol": protocol, "part": study.part}
            | _table(study, group, outcome, out)
            for (data, split, protocol), group in _groups(study, outcome).items()
        ],
    }
    write_json(out / "results.json", document)
    return document


def write_report(study: Study, outcome: Outcome, out: Path) -> None:
    """Writes ``report.html`` and ``figures/`` of the first table in which something is finished."""
    for group in _groups(study, outcome).values():
        finished = _finished(_by_line(group), outcome)
        if finished:
            report = _report(study, finished, outcome, out)
            runs = {
                name: out / outcome.documents[cells[0].name]["run"]
                for name, cells in finished.items()
            }
            curves = {
                name: read_curve(run / "curve.json") for name, run in runs.items() if run.is_dir()
            }
            write_html(out / "report.html", report, title=study.title, curves=curves)
            write_figures(out / "figures", report, curves)
            return


def read_results(path: Path | str) -> dict[str, Any]:
    """The results in the directory of a study, or in a copy of its ``results.json``.

    Raises:
        DataError: there are none, or they are of another version.
    """
    source = Path(path)
    file = source / "results.json" if source.is_dir() else source
    try:
        document = read_document(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} holds no results: 'diffuserec study' makes them") from error
    if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise DataError(f"{file} holds no results of this release: run the study again")
    return document


def _groups(study: Study, outcome: Outcome) -> dict[tuple[str, str, str], list[Cell]]:
    """Cells of each table, by data set, split and protocol."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in outcome.cells:
        if outcome.shows(cell, study.part):
            where = (cell.data, cell.plan.split, cell.protocol)
            groups.setdefault(where, []).append(cell)
    return groups


def _by_line(group: Sequence[Cell]) -> dict[str, list[Cell]]:
    by_line: dict[str, list[Cell]] = {}
    for cell in group:
        by_line.setdefault(cell.line, []).append(cell)
    return by_line


def _finished(by_line: Mapping[str, list[Cell]], outcome: Outcome) -> dict[str, list[Cell]]:
    """Lines of which every seed is finished."""
    return {
        name: cells
        for name, cells in by_line.items()
        if all(outcome.documents[c.name]["status"] == "finished" for c in cells)
    }


def _report(
    study: Study, finished: Mapping[str, Sequence[Cell]], outcome: Outcome, out: Path
) -> Report:
    evaluations = {
        name: [read_evaluation(cell, out, study.part) for cell in cells]
        for name, cells in finished.items()
    }
    made = {
        name: [made_of_cell(outcome.documents[cell.name], out) for cell in cells]
        for name, cells in finished.items()
    }
    return Report.of(_first(evaluations, study.against), _references(study, finished), made)


def _table(study: Study, group: Sequence[Cell], outcome: Outcome, out: Path) -> dict[str, Any]:
    by_line = _by_line(group)
    finished = _finished(by_line, outcome)
    report = _report(study, finished, outcome, out) if finished else None
    trials = _trials(outcome, out)
    rows = [
        _row(study, name, cells, outcome, out, report if name in finished else None, trials)
        for name, cells in by_line.items()
    ]
    _say_unranked(rows, len(study.seeds))
    if study.published is not None:
        _add_published(rows, study.published, group[0].data)
    notes = list(report.notes) if report else []
    if finished:
        notes += _absent_references(study, finished)
    found: dict[str, Any] = {"users": 0, "line": "", "random": "", "notes": notes, "rows": rows}
    if report is not None:
        dataset = report.summary["dataset"][0]
        users = report.summary.filter(pl.col("group") == "all")["n_users"][0]
        found |= {"users": users, "line": report.protocol, "random": report.randomness(dataset)}
    return found


def _first(found: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The mapping with one key in front, which a report takes for the reference of all others."""
    front = {name: found[name]} if name is not None and name in found else {}
    return {**front, **found}


def _absent_references(study: Study, finished: Mapping[str, Sequence[Cell]]) -> list[str]:
    """A line for each row that others name to be compared with and that is not there.

    It says what they are compared with instead, rows of one reference by the first of them.
    """
    first, references = next(iter(_first(finished, study.against))), _references(study, finished)
    instead: dict[str, str] = {}
    if study.against is not None:
        instead[study.against] = first
    for name, cells in finished.items():
        against = _own_reference(study, cells)
        if against is not None and name != first:
            instead.setdefault(against, references.get(name, first))
    return [
        f"{against} is not there: compared with {other}"
        for against, other in instead.items()
        if against not in finished
    ]


def _own_reference(study: Study, cells: Sequence[Cell]) -> str | None:
    """The row that a line's row names; the floors are none of the file's rows."""
    family = cells[0].family
    return study.rows[family].against if family < len(study.rows) else None


def _references(study: Study, finished: Mapping[str, Sequence[Cell]]) -> dict[str, str]:
    """By line, the one that it is compared with, if not with the first.

    That is the one that its row names; else, in a study that names none either, for an augmented
    line the one of the same recommender and settings without augmenter.
    """
    named: dict[str, str] = {}
    for name, cells in finished.items():
        against = _own_reference(study, cells)
        if against is not None and against in finished and against != name:
            named[name] = against
    if study.against is not None:
        return named
    plain: dict[str, str] = {}
    for name, cells in finished.items():
        if cells[0].plan.augment is None:
            plain.setdefault(_recommender(cells[0]), name)
    unaugmented = {
        name: plain[_recommender(cells[0])]
        for name, cells in finished.items()
        if cells[0].plan.augment is not None and _recommender(cells[0]) in plain
    }
    return unaugmented | named


def _recommender(cell: Cell) -> str:
    return json.dumps([cell.plan.model, dict(cell.plan.settings)], sort_keys=True)


def _trials(outcome: Outcome, out: Path) -> dict[tuple[str, ...], int]:
    """How many different settings of each method were validated on each data set.

    Counted are all runs in the directory of the study, whatever file asked for them, and those
    that its cells tell of; the points under which one of them was measured; and the trials that a
    row says were made elsewhere.
    """
    tried: dict[tuple[str, ...], set[str]] = {}

    def add(plan: Plan, fingerprint: str) -> None:
        settings = [dict(plan.settings), plan.augment_settings or None]
        of_method = tried.setdefault((plan.label, fingerprint, without_path(plan.split)), set())
        of_method.add(json.dumps(settings, sort_keys=True))

    for path in sorted((out / "runs").glob("*/run.json")):
        if n_looks(looks(path.parent), "validation"):
            run = read_run_file(path.parent)
            add(run.plan, run.fingerprint)
    for document in all_documents(out).values():
        if document.get("validations"):
            add(plan_of(document), document["fingerprint"])
    points: dict[tuple[str, ...], set[str]] = {}
    elsewhere: dict[tuple[str, ...], int] = {}
    for cell in outcome.cells:
        method = _method(cell)
        if cell.measured_at:
            points.setdefault(method, set()).add(json.dumps(dict(cell.measured_at)))
        elsewhere[method] = max(elsewhere.get(method, 0), cell.trials - 1)
    return {
        method: len(tried.get(method, ())) + max(len(points.get(method, ())) - 1, 0) + n
        for method, n in elsewhere.items()
    }


def _method(cell: Cell) -> tuple[str, ...]:
    return (cell.plan.label, cell.fingerprint, without_path(cell.plan.split))


def _row(
    study: Study,
    name: str,
    cells: Sequence[Cell],
    outcome: Outcome,
    out: Path,
    report: Report | None,
    trials: Mapping[tuple[str, ...], int],
) -> dict[str, Any]:
    first = cells[0]
    documents = [outcome.documents[cell.name] for cell in cells]
    row: dict[str, Any] = {
        "name": name,
        "model": first.plan.model,
        "augment": first.plan.augment,
        "settings": dict(first.plan.settings),
        "augment_settings": first.plan.augment_settings,
        "point": dict(first.point),
        "seeds": [cell.plan.seed for cell in cells],
        "trials": trials[_method(first)],
        "floor": first.plan.augment is None and not find_recommender(first.plan.model).trained,
        "failed": next((d["error"] for d in documents if d["status"] == "failed"), None),
        "metrics": {},
        "difference": None,
        "unranked": None,
        "keys": [document["key"] for document in documents],
    }
    if row["failed"] is not None or report is None:
        return row
    every = report.summary.filter(pl.col("group") == "all", method=name)
    row["metrics"] = {
        cell["metric"]: {what: cell[what] for what in ("value", "margin", "seed_std")}
        for cell in every.iter_rows(named=True)
    }
    compared = report.comparisons.filter(pl.col("group") == "all", method=name)
    row["difference"] = {c.pop("metric"): c for c in compared.to_dicts()} or None
    row["group_differences"] = (
        report.comparisons.filter(pl.col("group") != "all", method=name)
        .filter(pl.col("metric").is_in(study.metrics))
        .select(_OF_GROUPS)
        .to_dicts()
    )
    row["groups"] = report.summary.filter(pl.col("group") != "all", method=name).to_dicts()
    for what in ("epochs", "best_epoch", "best_valid", "stop"):
        row[what] = [document[what] for document in documents]
    row["epoch_limit"] = documents[0]["epoch_limit"]
    row["stage"] = documents[0].get("stage")  # a copy may be older
    for what in ("curve", "seconds_to_best"):
        row[what] = [document.get(what) for document in documents]
    for what, event in (("validations", "validation"), ("looks_at_test", "test")):
        row[what] = [looks_of(document, out, event) for document in documents]
    row["seconds"] = [sum(document["seconds"].values()) for document in documents]
    row["leak"] = [document.get("leak") for document in documents]
    row["environment"] = documents[0]["environment"]
    row["devices"] = sorted({document["environment"]["device"] for document in documents})
    return row


_OF_GROUPS = ("group", "metric", "reference", "difference", "low", "high", "p_holm", "n_users")
"""What is kept of the comparisons of groups."""


def _say_unranked(rows: Iterable[dict[str, Any]], n_seeds: int) -> None:
    """Says why a row does not stand in one order with the others: its effort was a smaller one.

    Args:
        n_seeds: of the study; a row of its own may have more.
    """
    for row in rows:
        if row["failed"] is not None:
            row["unranked"] = "failed"
        elif "limit" in row.get("stop", ()):
            n, within = max(row["epochs"]), f"{row['epoch_limit']} epochs"
            if row["stage"] is not None and n != row["epoch_limit"]:  # it has its own length
                within = f"the {n} epochs of {row['stage']}"
            elif n < row["epoch_limit"]:  # of a cell that was written before stages were named
                within = f"the {n} epochs of its last stage"
            row["unranked"] = f"not stopped by validation within {within}"
        elif len(row["seeds"]) < n_seeds and not row["floor"]:
            row["unranked"] = f"{len(row['seeds'])} of {n_seeds} seeds"


def _said(name: str | None) -> str | None:
    """What the text of a paper says of a figure, whose values are not printed."""
    content = None if name is None else published_table(name).content
    return content.said if isinstance(content, Figure) else None


def _add_published(rows: Iterable[dict[str, Any]], name: str, data: str) -> None:
    """Adds the published values of each row, by its name and that of its data set."""
    content = published_table(name).content
    if not isinstance(content, Results):
        return
    dataset = next((d for d in content.datasets if slug(d) == slug(data)), None)
    for row in rows:
        method = row["name"].removesuffix(" (as published)")
        row["published"] = content.values(dataset, method) if dataset is not None else {}


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is there; None if nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def fill_page(page: Path, name: str, text: str) -> None:
    """Replaces what stands between ``<!-- results NAME -->`` and ``<!-- /results NAME -->``.

    Raises:
        ConfigError: the page has no such marks.
    """
    begin, end = f"<!-- results {name} -->", f"<!-- /results {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ConfigError(f"{page} has no marks '{begin}' and '{end}' to put the tables between")
    write_text(page, f"{before}{begin}\n{text.rstrip()}\n{end}{after}")
