"""A report as one page: tables, figures and words in a single file that needs nothing else.

Whatever comes from data (titles, methods, users, items) is escaped. Figures are inline SVG whose
colors are CSS variables, so that they follow the reader's light or dark preference. The same
input gives the same bytes. A section without content is left out.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FunctionLoader, StrictUndefined

from diffuserec.files import write_text
from diffuserec.models.base import Epoch
from diffuserec.reports.dataset_summary import DatasetSummary
from diffuserec.reports.figures import PALETTES, duration, report_figures
from diffuserec.reports.inspection import Inspection, metric_table
from diffuserec.reports.report import Report


@dataclass(frozen=True)
class AugmentedHistory:
    """A user's history with the items that an augmenter generated for it.

    Attributes:
        user: name of the user.
        items: name of each item, oldest first, and whether it was generated.
        target: name of the item that came next.
    """

    user: str
    items: list[tuple[str, bool]]
    target: str


@dataclass(frozen=True)
class SequenceWithCopies:
    """A training sequence and augmented copies of it that are trained on, too.

    Attributes:
        user: name of the user.
        sequence: names of the real items, oldest first.
        copies: items of each copy, oldest first, by a heading that says how difficult it is; of
            each item its name and whether the sequence does not have it.
    """

    user: str
    sequence: list[str]
    copies: dict[str, list[tuple[str, bool]]]


@dataclass(frozen=True)
class DrawnLists:
    """Lists of a recommender for one user; of a generative one, averaged and single draws.

    Attributes:
        method: name of the recommender in the tables.
        user: name of the user.
        history: names of the user's items, oldest first.
        target: name of the item that came next.
        lists: names of the items shown, best first, by the heading of the list. The others are
            compared with the first.
    """

    method: str
    user: str
    history: list[str]
    target: str
    lists: dict[str, list[str]]


def write_html(
    path: Path | str,
    report: Report,
    *,
    title: str,
    curves: Mapping[str, Sequence[Epoch]],
    augmented: Sequence[AugmentedHistory] = (),
    copied: Sequence[SequenceWithCopies] = (),
    drawn: Sequence[DrawnLists] = (),
    inspection: Inspection | None = None,
    next_steps: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes a report as one self-contained HTML file, whole or not at all.

    Args:
        curves: epochs of training, by method; may be empty.
        inspection: views of training sequences that are contrasted, if any are.
        next_steps: what to do next, and the command that does it.
    """
    summaries = [
        DatasetSummary(report, dataset)
        for dataset in report.summary["dataset"].unique(maintain_order=True).to_list()
    ]
    text = _page(
        "report.html.j2",
        title=title,
        summaries=[summary.text() for summary in summaries],
        protocols=report.protocol.splitlines(),
        notes=report.notes,
        reference=report.compared_with if len(report.evaluations) > 1 else None,
        tested=report.comparisons["metric"].unique(maintain_order=True).to_list(),
        tables=[summary.table() for summary in summaries],
        figures=report_figures(report, curves),
        leaks=_leaks(report),
        augmented=augmented,
        copied=copied,
        drawn=[_columns(lists) for lists in drawn],
        draws=any(len(lists.lists) > 1 for lists in drawn),
        list_tables=[summary.list_table() for summary in summaries if summary.list_metrics],
        next_steps=next_steps,
        methods=_methods(report, curves),
        provenance=_provenance(report),
        **_views(inspection),
    )
    write_text(Path(path), text)


def write_inspection(path: Path | str, inspection: Inspection, *, title: str, facts: str) -> None:
    """Writes contrasted views as one self-contained HTML file, whole or not at all.

    Args:
        facts: the data and the seed, in a line.
    """
    page = _page("inspection.html.j2", title=title, facts=facts, **_views(inspection))
    write_text(Path(path), page)


def _views(inspection: Inspection | None) -> dict[str, Any]:
    if inspection is None:
        return {"inspection": None}
    return {"inspection": inspection, "metric_table": metric_table(inspection.metrics)}


def _page(template: str, **content: Any) -> str:
    pages = Environment(
        loader=FunctionLoader(lambda name: files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["duration"] = duration
    return pages.get_template(template).render(palettes=PALETTES, **content)


def _columns(drawn: DrawnLists) -> dict[str, Any]:
    """Lists as columns, with the rank of the target and marks on items the first list lacks."""
    reference = next(iter(drawn.lists.values()), [])
    columns = []
    for name, items in drawn.lists.items():
        rank = f"at rank {items.index(drawn.target) + 1}" if drawn.target in items else "not shown"
        kinds = [
            "next" if item == drawn.target else "other" if item not in reference else ""
            for item in items
        ]
        columns.append({"name": name, "rank": rank, "items": list(zip(items, kinds, strict=True))})
    return {"lists": drawn, "columns": columns}


def _methods(report: Report, curves: Mapping[str, Sequence[Epoch]]) -> list[dict[str, Any]]:
    """How each method was made: facts under their headings, and commands."""
    found = []
    for method in dict.fromkeys([*report.evaluations, *curves]):
        made, epochs = report.made.get(method, ()), curves.get(method, ())
        facts: dict[str, str] = {}
        if made:
            settings = [
                ", ".join(f"{name} = {value}" for name, value in run.settings.items())
                for run in made
            ]
            facts["settings"] = _each(settings) or "the defaults"
        if runs := report.evaluations.get(method, ()):
            facts["seeds" if len(runs) > 1 else "seed"] = _each(str(r.protocol.seed) for r in runs)
        parts = []
        for phase in dict.fromkeys(epoch.phase for epoch in epochs):
            inside = [epoch for epoch in epochs if epoch.phase == phase]
            n, seconds = len(inside), sum(epoch.seconds for epoch in inside)
            parts.append(f"{phase}: {n} {'epoch' if n == 1 else 'epochs'}, {duration(seconds)}")
        if parts:
            facts["training"] = "; ".join(parts)
        if total := [duration(run.seconds) for run in made if run.seconds is not None]:
            facts["time in all"] = _each(total)
        for name in dict.fromkeys(name for run in made for name in run.facts):
            facts[name] = _each(run.facts.get(name, "") for run in made)
        commands = [run.command for run in made if run.command is not None]
        found.append({"name": method, "facts": facts, "commands": commands})
    return [method for method in found if method["facts"]]


def _leaks(report: Report) -> list[dict[str, str]]:
    """What the leak meter found of each method, a row a part; of several seeds the first."""
    found = []
    for method, runs in report.made.items():
        leak = next((run.leak for run in runs if run.leak is not None), None)
        for part, seen in (leak.rows if leak else {}).items():
            found.append(
                {
                    "method": method,
                    "part": part,
                    "n_targets": f"{seen.n_targets:,}",
                    "share": f"{seen.share:.2%}",
                    "cosine": "" if seen.cosine is None else f"{seen.cosine:.3f}",
                }
            )
    return found


def _each(values: Iterable[str]) -> str:
    """Values with commas between, each once."""
    return ", ".join(dict.fromkeys(value for value in values if value))


def _provenance(report: Report) -> list[tuple[str, str]]:
    """Software that made the page, and words of the protocol, under their headings."""
    from diffuserec import __version__

    python = platform.python_version()
    found = [
        ("This page", f"diffuserec {__version__}, torch {torch.__version__}, Python {python}"),
    ]
    if any(run.protocol.ties == "mid-rank" for runs in report.evaluations.values() for run in runs):
        found.append(
            (
                "Ties, mid-rank",
                "a target that scores the same as other items gets the mean of the ranks that they "
                "share",
            )
        )
    return found
