"""The report as one page: tables, figures and words in a single file that needs nothing else.

Whatever comes from data (titles, methods, users, items) is escaped. Figures are inline SVG whose
colors are CSS variables, so that they follow the reader's light or dark preference. The same
input gives the same bytes. What was not measured leaves no empty section.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FunctionLoader, StrictUndefined

from diffuserec.reports.dataset_summary import Board
from diffuserec.reports.figures import (
    certainty_figure,
    curve_figure,
    group_figure,
    length_figure,
    marks_of,
)
from diffuserec.reports.inspection import Inspection, figure_rows
from diffuserec.reports.report import Report
from diffuserec.training.loop import Epoch


@dataclass(frozen=True)
class Example:
    """What an augmenter made up for one user, beside what really happened.

    Attributes:
        user: name of the user.
        generated: names of the items put before the real ones, oldest first.
        real: names of the real items, oldest first.
        target: name of the item that came next.
    """

    user: str
    generated: list[str]
    real: list[str]
    target: str


@dataclass(frozen=True)
class Varied:
    """A training sequence and what an augmenter trains on beside it.

    Attributes:
        user: name of the user.
        sequence: names of the real items, oldest first.
        variants: by a word on its difficulty, each variant's items, oldest first: their names and
            whether they are new.
    """

    user: str
    sequence: list[str]
    variants: dict[str, list[tuple[str, bool]]]


@dataclass(frozen=True)
class DrawnLists:
    """What a generative recommender shows one user, with its draws averaged and one by one.

    Attributes:
        method: the recommender, as it is called in the tables.
        user: name of the user.
        history: names of the user's items, oldest first.
        target: name of the item that came next.
        lists: names of the items shown, best first, under what made the list; the first list is
            the one that the others are held against.
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
    examples: Sequence[Example],
    drawn: Sequence[DrawnLists] = (),
    varied: Sequence[Varied] = (),
    inspection: Inspection | None = None,
) -> None:
    """Writes a report as one self-contained HTML file, whole or not at all.

    Args:
        path: of the file; its directory is made when missing.
        report: the results.
        title: of the page.
        curves: the epochs of training, by method; may be empty.
        examples: augmented users; may be empty.
        drawn: users with the lists of single draws of noise.
        varied: users with the variants that were trained on.
        inspection: what training contrasts, if it does.
    """
    import matplotlib as mpl  # here, since reading a log or training needs no figures

    boards = [
        Board(report, dataset)
        for dataset in report.summary["dataset"].unique(maintain_order=True).to_list()
    ]
    trained = {name: epochs for name, epochs in curves.items() if epochs}
    marks = marks_of(report, list(trained))
    certain = (certainty_figure(board, marks, i) for i, board in enumerate(boards))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "diffuserec", "text.parse_math": False}
        )
        figures = [
            *(length_figure(board, marks, i) for i, board in enumerate(boards)),
            *(group_figure(board, marks, i) for i, board in enumerate(boards)),
            *(figure for figure in certain if figure is not None),
            *([curve_figure(trained, marks)] if trained else []),
        ]
    text = _page(
        "report.html.j2",
        title=title,
        summaries=[board.summary() for board in boards],
        protocols=report.protocol.splitlines(),
        notes=report.notes,
        reference=report.compared_with if len(report.evaluations) > 1 else None,
        tested=report.comparisons["metric"].unique(maintain_order=True).to_list(),
        tables=[board.table() for board in boards],
        figures=figures,
        examples=examples,
        drawn=[_side_by_side(shown) for shown in drawn],
        varied=varied,
        beyond=[table for board in boards if (table := board.beyond())["columns"]],
        made=_made(report, trained),
        **_views(inspection),
    )
    _write(path, text)


def write_inspection(path: Path | str, inspection: Inspection, *, title: str, facts: str) -> None:
    """Writes what training contrasts as one self-contained HTML file, whole or not at all.

    Args:
        path: of the file; its directory is made when missing.
        inspection: users with their views, and figures.
        title: of the page.
        facts: on what data and with which seed, in a line.
    """
    _write(path, _page("inspection.html.j2", title=title, facts=facts, **_views(inspection)))


def _views(inspection: Inspection | None) -> dict[str, Any]:
    if inspection is None:
        return {"inspection": None}
    return {"inspection": inspection, "figure_rows": figure_rows(inspection.figures)}


def _page(template: str, **content: Any) -> str:
    pages = Environment(
        loader=FunctionLoader(lambda name: files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(**content)


def _write(path: Path | str, text: str) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.partial")
    with work.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    work.replace(target)


def _side_by_side(drawn: DrawnLists) -> dict[str, Any]:
    """The lists as columns: where the target came in each, and what the first list lacks."""
    reference = next(iter(drawn.lists.values()), [])
    columns = []
    for name, items in drawn.lists.items():
        found = (
            f"at place {items.index(drawn.target) + 1}" if drawn.target in items else "not shown"
        )
        kinds = [
            "next" if item == drawn.target else "apart" if item not in reference else ""
            for item in items
        ]
        shown = list(zip(items, kinds, strict=True))
        columns.append({"name": name, "found": found, "shown": shown})
    return {
        "method": drawn.method,
        "user": drawn.user,
        "history": drawn.history,
        "target": drawn.target,
        "columns": columns,
    }


def _made(report: Report, curves: Mapping[str, Sequence[Epoch]]) -> list[tuple[str, str]]:
    from diffuserec import __version__

    seeds: dict[str, list[str]] = {}
    for method, runs in report.evaluations.items():
        used = ", ".join(str(s) for s in sorted({run.protocol.seed for run in runs}))
        seeds.setdefault(used, []).append(method)
    python = platform.python_version()
    software = f"diffuserec {__version__}, torch {torch.__version__}, Python {python}"
    made = [("Software", software)]
    made.append(("Seeds", "; ".join(f"{s} ({', '.join(names)})" for s, names in seeds.items())))
    for method, epochs in curves.items():
        parts = []
        for phase in dict.fromkeys(epoch.phase for epoch in epochs):
            inside = [epoch for epoch in epochs if epoch.phase == phase]
            n, seconds = len(inside), sum(epoch.seconds for epoch in inside)
            parts.append(f"{phase}: {n} {'epoch' if n == 1 else 'epochs'}, {seconds:,.1f} s")
        made.append((f"Training of {method}", "; ".join(parts)))
    return made
