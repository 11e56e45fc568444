"""The report as one page: tables, figures and words in a single file that needs nothing else.

Whatever comes from data (titles, methods, users, items) is escaped. Figures are inline SVG whose
colors are CSS variables, so that they follow the reader's light or dark preference. The same
input gives the same bytes. What was not measured leaves no empty section.
"""

import io
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from diffuserec.evaluation.evaluate import Evaluation
from diffuserec.evaluation.groups import GROUPS
from diffuserec.evaluation.report import Report
from diffuserec.evaluation.significance import compare
from diffuserec.training import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FLOORS = ("popularity", "markov")  # names of recommenders: they cost no training
_CEILING = "oracle"  # knows how the data came about: a yardstick, never the winner
_VARIABLES = ("ink", "muted", "grid", "bars", "card", "floor", *(f"s{i}" for i in range(6)))
_COLORS = {name: f"#0a0a{number:02x}" for number, name in enumerate(_VARIABLES)}
"""What matplotlib draws with, by the CSS variable that takes its place."""

_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
"""Where bins of history lengths may begin; the groups' limits are among them."""

_PANEL = (5.4, 3.3)
_BEYOND = {"Coverage": ".1%", "Gini": ".3f", "Novelty": ".2f"}
_SIZES = {"short": "≤ 5", "medium": "6–20", "long": "> 20", "head": "top fifth", "tail": "the rest"}


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


def write_html(
    path: Path | str,
    report: Report,
    *,
    title: str,
    curves: Mapping[str, Sequence[Epoch]],
    examples: Sequence[Example],
) -> None:
    """Writes a report as one self-contained HTML file, whole or not at all.

    Args:
        path: of the file; its directory is made when missing.
        report: the results.
        title: of the page.
        curves: the epochs of training, by method; may be empty.
        examples: augmented users; may be empty.
    """
    import matplotlib as mpl  # here, since reading a log or training needs no figures

    boards = [
        _Board(report, dataset)
        for dataset in report.summary["dataset"].unique(maintain_order=True).to_list()
    ]
    trained = {name: epochs for name, epochs in curves.items() if epochs}
    marks = _marks(report, list(trained))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "diffuserec", "text.parse_math": False}
        )
        figures = [
            *(_length_figure(board, marks, i) for i, board in enumerate(boards)),
            *(_group_figure(board, marks, i) for i, board in enumerate(boards)),
            *([_curve_figure(trained, marks)] if trained else []),
        ]
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    text = page.render(
        title=title,
        summaries=[board.summary() for board in boards],
        protocols=report.protocol.splitlines(),
        notes=report.notes,
        reference=next(iter(report.evaluations)) if len(report.evaluations) > 1 else None,
        tested=report.comparisons["metric"].unique(maintain_order=True).to_list(),
        tables=[board.table() for board in boards],
        figures=figures,
        examples=examples,
        beyond=[table for board in boards if (table := board.beyond())["columns"]],
        made=_made(report, trained),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.partial")
    with work.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    work.replace(target)


_Marks = Mapping[str, dict[str, Any]]
"""By method, how matplotlib draws it: floors are gray and dashed, the ceiling is dotted."""


class _Board:
    """What a report says about one data set."""

    def __init__(self, report: Report, dataset: str | None) -> None:
        self.report = report
        self.dataset = dataset
        self.rows = report.summary.filter(pl.col("dataset").eq_missing(dataset))
        self.methods: list[str] = self.rows["method"].unique(maintain_order=True).to_list()
        self.runs = {
            method: [r for r in report.evaluations[method] if r.protocol.dataset == dataset]
            for method in self.methods
        }
        self.roles = {method: _role(runs) for method, runs in self.runs.items()}
        names = self.rows["metric"].unique(maintain_order=True).to_list()
        columns = self.runs[self.methods[0]][0].per_user.columns
        self.metrics = [name for name in names if name in columns]
        self.beyond_metrics = [name for name in names if name not in columns]
        gains = [name for name in self.metrics if name.startswith("NDCG@")]
        self.metric = "NDCG@10" if "NDCG@10" in gains else gains[-1]
        self.cells = {
            (r["method"], r["group"], r["metric"]): r for r in self.rows.iter_rows(named=True)
        }

    def value(self, method: str, group: str = "all") -> float:
        return float(self.cells[method, group, self.metric]["value"])

    def ranked(self, group: str = "all") -> list[str]:
        """Methods from best to worst; the ceiling does not compete."""
        competing = [m for m in self.methods if self.roles[m] != "ceiling"] or self.methods
        return sorted(competing, key=lambda method: -self.value(method, group))

    def by_user(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """History length and metric of each user, the metric averaged over runs."""
        runs = self.runs[method]
        values = np.stack([run.per_user[self.metric].to_numpy() for run in runs]).mean(0)
        return runs[0].per_user["history_length"].to_numpy(), values

    def summary(self) -> str:
        """What won, by how much, whether that is certain, and how far from floor and ceiling."""
        best, *others = self.ranked()
        cell = self.cells[best, "all", self.metric]
        place = f"On {self.dataset}, " if self.dataset else ""
        averaged = f", averaged over {cell['n_seeds']} seeds" if cell["n_seeds"] > 1 else ""
        said = [
            f"{place}{best}{self._kind(best)} {'ranks best with' if others else 'reaches'} "
            f"{self.metric} {cell['value']:.4f} ± {cell['margin']:.4f} "
            f"over {cell['n_users']:,} users{averaged}."
        ]
        trained = [method for method in others if self.roles[method] == "trained"]
        floors = [method for method in others if self.roles[method] == "floor"]
        rivals = others[:1] + [floor for floor in floors[:1] if floor != others[0]]
        if self.roles[best] == "floor" and trained:
            rivals = trained[:1]
        for start, rival in zip(("That is", "It is"), rivals, strict=False):
            said.append(f"{start} {self._versus(best, rival)}")
        if self.roles[best] == "floor" and trained:
            said.append("No trained method beats what costs nothing.")
        if "short" in self.rows["group"] and others:
            first, second = self.ranked("short")[:2]
            said.append(
                f"Users with short histories are served best by {first}{self._kind(first)}: "
                f"{self.value(first, 'short'):.4f}, {self._versus(first, second, 'short')}"
            )
        for method in (m for m in self.methods if self.roles[m] == "ceiling" and m != best):
            said.append(
                f"{method}, which knows how the data came about, marks the ceiling at "
                f"{self.value(method):.4f}."
            )
            if self.value(method):
                said.append(f"{best} attains {self.value(best) / self.value(method):.0%} of it.")
        if len(self.methods) == 1:
            said.append("Nothing else was measured, so there is nothing to compare it with.")
        return " ".join(said)

    def table(self) -> dict[str, Any]:
        """Every metric of the target's rank, with interval, seeds and significance."""
        columns = {m: [self._cell(m, metric) for metric in self.metrics] for m in self.methods}
        for place in range(len(self.metrics)):
            cells = [cells[place] for name, cells in columns.items() if name in self.ranked()]
            for cell in cells:
                cell["best"] = len(columns) > 1 and cell["value"] == max(c["value"] for c in cells)
        rows = [{"name": m, "role": self.roles[m], "cells": cells} for m, cells in columns.items()]
        return {
            "dataset": self.dataset,
            "columns": self.metrics,
            "rows": rows,
            "seeds": self.rows["seed_std"].is_not_null().any(),
            "ceiling": "ceiling" in self.roles.values(),
        }

    def beyond(self) -> dict[str, Any]:
        """What the lists show, whoever likes it."""
        rows = [
            {
                "name": method,
                "cells": [
                    format(cell["value"], _BEYOND.get(metric.partition("@")[0], ".4f"))
                    if (cell := self.cells.get((method, "all", metric)))
                    else ""
                    for metric in self.beyond_metrics
                ],
            }
            for method in self.methods
        ]
        return {"dataset": self.dataset, "columns": self.beyond_metrics, "rows": rows}

    def _cell(self, method: str, metric: str) -> dict[str, Any]:
        cell = self.cells.get((method, "all", metric))
        if cell is None:
            return {"value": "", "margin": "", "spread": "", "stars": "", "best": False}
        return {
            "value": f"{cell['value']:.4f}",
            "margin": f"{cell['margin']:.4f}",
            "spread": "" if cell["seed_std"] is None else f"{cell['seed_std']:.4f}",
            "stars": self.report.stars(method, self.dataset, metric),
            "best": False,
        }

    def _kind(self, method: str) -> str:
        return " (a floor, which needs no training)" if self.roles[method] == "floor" else ""

    def _versus(self, ours: str, other: str, group: str = "all") -> str:
        """The end of a sentence: how far ours is above the other, and how certain that is."""
        mine, theirs = self.value(ours, group), self.value(other, group)
        named = f"{other}{self._kind(other)}"
        if mine == theirs:
            return f"level with {named}."
        pair = pl.col("method", "reference").is_in([ours, other])
        found = self.report.comparisons.filter(
            pl.col("dataset").eq_missing(self.dataset), pair, group=group, metric=self.metric
        ).rows(named=True)
        if found:
            row = found[0]
            ends = (row["low"], row["high"])
            low, high = ends if row["method"] == ours else (-ends[1], -ends[0])
        else:
            row = asdict(compare(self.runs[ours], self.runs[other], self.metric, group=group))
            low, high = row["low"], row["high"]
        p = row.get("p_holm", row["p_t"])
        details = [f"95% interval {_signed(low)} to {_signed(high)}"]
        details.append(_chance(p) if "p_holm" in row else f"{_chance(p)} uncorrected")
        if row["p_seeds"] is not None:
            details.append(f"over seeds {_chance(row['p_seeds'])}")
        if mine < 2 * theirs:
            above = f"{mine / theirs - 1:.1%} more than"
        else:
            above = f"{mine / theirs:,.1f} times" if theirs else "above"
        verdict = "is significant" if p < 0.05 else "may be chance"
        return (
            f"{above} {named} at {theirs:.4f}; the difference of {mine - theirs:.4f} {verdict} "
            f"({', '.join(details)})."
        )


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _signed(number: float) -> str:
    return f"{number:.4f}".replace("-", "−")


def _role(runs: Sequence[Evaluation]) -> str:
    name = runs[0].method
    return "floor" if name in _FLOORS else "ceiling" if name == _CEILING else "trained"


def _marks(report: Report, trained: Sequence[str]) -> _Marks:
    roles = {name: _role(runs) for name, runs in report.evaluations.items()}
    marks: dict[str, dict[str, Any]] = {}
    for name in [*roles, *trained]:
        role = roles.setdefault(name, "trained")
        n = sum(roles[other] == role for other in marks if other != name)
        if role == "trained":
            color, marker, line = f"s{n % 6}", "osD^"[n % 4], "-"
        elif role == "floor":
            color, marker, line = "floor", "vX"[n % 2], ("--", "-.")[n % 2]
        else:
            color, marker, line = "ink", "*", ":"
        marks.setdefault(name, {"color": _COLORS[color], "marker": marker, "linestyle": line})
    return marks


def _length_figure(board: _Board, marks: _Marks, index: int) -> dict[str, Any]:
    from matplotlib.ticker import FuncFormatter

    lengths, _ = board.by_user(board.methods[0])
    begins = _bins(lengths)
    figure, bars = _panel("users", "items in the history")
    counts = np.bincount(np.searchsorted(begins, lengths, side="right") - 1, minlength=len(begins))
    at = np.arange(len(begins))
    bars.bar(at, counts, width=0.86, color=_COLORS["bars"])
    lines = bars.twinx()
    _dress(lines)
    bars.yaxis.tick_right()
    bars.yaxis.set_label_position("right")
    lines.yaxis.tick_left()
    lines.yaxis.set_label_position("left")
    bars.tick_params(length=0)
    lines.tick_params(length=0)
    bars.grid(visible=False)
    lines.grid(axis="y", color=_COLORS["grid"], linewidth=0.6)
    bars.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    lines.set_ylabel(board.metric)
    best: dict[int, tuple[float, str]] = {}
    for place, method in enumerate(board.methods):
        owned, values = board.by_user(method)
        inside = np.searchsorted(begins, owned, side="right") - 1
        parts = [values[inside == i] for i in at]
        means = np.array([part.mean() for part in parts])
        margins = np.array([_margin(part) for part in parts])
        shift = 0.06 * (place - (len(board.methods) - 1) / 2)
        _plot(lines, at + shift, means, marks[method], margins)
        if board.roles[method] != "ceiling":
            for i in (0, len(at) - 1):
                best[i] = max(best.get(i, (-1.0, "")), (float(means[i]), method))
    lines.set_ylim(bottom=0)
    labels = _bin_names(begins, int(lengths.max()))
    bars.set_xticks(at, labels, rotation=45 if sum(map(len, labels)) > 28 else 0)
    caption = (
        f"Bars: how many users have a history of that length, target not counted; half have "
        f"{np.median(lengths):.0f} items or fewer. Lines: {board.metric} of each method for these "
        "users, with 95% intervals."
    )
    if len(at) > 1 and len(board.methods) > 1:
        caption += "".join(
            f" {what} histories ({labels[i]}, {counts[i] / counts.sum():.0%} of users): "
            f"{best[i][1]} is best with {best[i][0]:.4f}."
            for what, i in (("Shortest", 0), ("Longest", len(at) - 1))
        )
    name = f"lengths-{index}"
    alt = f"Histogram of history lengths with {board.metric} by length"
    panel = {"title": "", "svg": _svg(figure, alt, name)}
    return _figure(
        "Accuracy by length of history", board.dataset, board.methods, marks, [panel], caption, name
    )


def _group_figure(board: _Board, marks: _Marks, index: int) -> dict[str, Any]:
    name = f"groups-{index}"
    panels, sentences = [], []
    for grouping, names in GROUPS.items():
        groups = [g for g in names if (board.methods[0], g, board.metric) in board.cells]
        figure, axes = _panel(board.metric, "")
        at = np.arange(len(groups))
        for place, method in enumerate(board.methods):
            cells = [board.cells[method, group, board.metric] for group in groups]
            shift = (place - (len(board.methods) - 1) / 2) * min(0.12, 0.7 / len(board.methods))
            means, margins = (np.array([c[what] for c in cells]) for what in ("value", "margin"))
            _plot(axes, at + shift, means, marks[method], margins, linestyle="none")
        sizes = [board.cells[board.methods[0], group, board.metric]["n_users"] for group in groups]
        axes.set_xticks(
            at,
            [f"{g} ({_SIZES[g]})\n{n:,} users" for g, n in zip(groups, sizes, strict=True)],
        )
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(bottom=0)
        heading = {"history": "By history", "popularity": "By popularity of the target"}[grouping]
        alt = f"{board.metric} of each method, {heading.lower()}: {', '.join(groups)}"
        panels.append({"title": heading, "svg": _svg(figure, alt, f"{name}-{grouping}")})
        sentences += [f"{g}: {(m := board.ranked(g)[0])} ({board.value(m, g):.4f})" for g in groups]
    caption = f"{board.metric} with 95% intervals over users. "
    if len(board.methods) > 1:
        caption += f"Best in each group: {'; '.join(sentences)}. "
    caption += (
        "A user's group is set by the number of interactions, target included; what an augmenter "
        "adds does not count. The head is the fifth of the catalog most frequent in training."
    )
    return _figure("Accuracy by group", board.dataset, board.methods, marks, panels, caption, name)


def _curve_figure(curves: Mapping[str, Sequence[Epoch]], marks: _Marks) -> dict[str, Any]:
    from matplotlib.ticker import MaxNLocator

    by_phases = sorted(curves.values(), key=lambda epochs: -len({e.phase for e in epochs}))
    phases = list(dict.fromkeys(epoch.phase for epochs in by_phases for epoch in epochs))
    panels, sentences = [], []
    for number, phase in enumerate(phases):
        for what in ("loss", "validation"):
            figure, axes = _panel(what, "epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            drawn = False
            for method, epochs in curves.items():
                points = [
                    (e.epoch + 1, value)
                    for e in epochs
                    if e.phase == phase
                    and (value := e.loss if what == "loss" else e.valid) is not None
                ]
                if not points:
                    continue
                drawn = True
                x, y = np.array(points).T
                _plot(axes, x, y, marks[method])
                if what == "validation":
                    top = int(y.argmax())
                    axes.plot(x[top], y[top], "o", mfc="none", mec=_COLORS["ink"], ms=10, mew=1.2)
                    sentences.append(
                        f"{method}, {phase}: best {y[top]:.4f} after epoch {x[top]:.0f} of {len(y)}"
                    )
            if drawn:
                alt = f"{what} by epoch of phase {phase}"
                svg = _svg(figure, alt, f"curves-{number}-{what}")
                panels.append({"title": f"{phase}: {what}", "svg": svg})
    caption = "Loss (lower is better; different kinds of loss cannot be compared) after each epoch."
    if sentences:
        caption += (
            f" Validation: higher is better, the best epoch is ringed. {'; '.join(sentences)}."
        )
    return _figure("Training", None, list(curves), marks, panels, caption, "curves")


def _figure(
    heading: str,
    dataset: str | None,
    methods: Sequence[str],
    marks: _Marks,
    panels: list[dict[str, Any]],
    caption: str,
    name: str,
) -> dict[str, Any]:
    from matplotlib.figure import Figure

    keys = []
    for number, method in enumerate(methods):
        figure = Figure(figsize=(0.4, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 2), ylim=(0, 2))
        _plot(axes, np.arange(3.0), np.ones(3), marks[method], markevery=[1])
        keys.append({"name": method, "svg": _svg(figure, None, f"{name}-key-{number}")})
    return {
        "heading": heading,
        "dataset": dataset,
        "keys": keys,
        "panels": panels,
        "caption": caption,
    }


def _panel(y: str, x: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=_PANEL, layout="constrained")
    axes = figure.add_subplot()
    _dress(axes)
    axes.grid(axis="y", color=_COLORS["grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _dress(axes: "Axes") -> None:
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_COLORS["muted"], linewidth=0.8)
    axes.tick_params(colors=_COLORS["ink"], labelsize=11, length=0)
    axes.xaxis.label.set(color=_COLORS["ink"], size=11)
    axes.yaxis.label.set(color=_COLORS["ink"], size=11)


def _plot(
    axes: "Axes",
    x: np.ndarray,
    y: np.ndarray,
    mark: dict[str, Any],
    margins: np.ndarray | None = None,
    **changes: Any,
) -> None:
    if margins is not None:
        axes.vlines(x, np.maximum(0, y - margins), y + margins, mark["color"], lw=1, alpha=0.6)
    look = {
        "linewidth": 1.7,
        "markersize": 9 if mark["marker"] == "*" else 6,
        "markeredgecolor": _COLORS["card"],
        "markeredgewidth": 0.6,
        "markevery": max(1, len(x) // 12),
    }
    axes.plot(x, y, **{**look, **mark, **changes})


def _svg(figure: "Figure", alt: str | None, name: str) -> Markup:
    """The drawing as an element of the page: its ids are its own, its colors are the page's.

    Args:
        figure: what to draw.
        alt: what a reader who cannot see it is told; None hides it from that reader.
        name: unique on the page.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)  # that style would rule the whole page
    names = {color: name for name, color in _COLORS.items()}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag != "text":
            element.text = None
        element.tail = None
        given = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in given.items():
            if key == "id" and element.tag == "g":
                continue
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href":
                value = f"#{name}-{value[1:]}"
            elif key == "clip-path":
                value = value.replace("url(#", f"url(#{name}-")
            elif key == "style":
                value = re.sub(r"font-family:[^;]*;?", "", value)
                value = re.sub("#0a0a..", lambda found: f"var(--{names[found[0]]})", value)
            element.set(key, " ".join(value.split()))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    if alt is None:
        root.set("aria-hidden", "true")
    else:
        root.set("role", "img")
        root.set("aria-label", alt)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _bins(lengths: np.ndarray) -> np.ndarray:
    """Where the bins begin: each holds enough users for a mean that says something."""
    least = max(10, len(lengths) // 50)
    begins = [begin for begin in _LENGTHS if begin <= lengths.max()]
    first = max(begin for begin in begins if begin <= lengths.min())
    kept = [first]
    for begin in begins:
        if ((lengths >= kept[-1]) & (lengths < begin)).sum() >= least:
            kept.append(begin)
    if len(kept) > 1 and (lengths >= kept[-1]).sum() < least:
        kept.pop()  # the few that are left join those before them
    return np.array(kept)


def _bin_names(begins: np.ndarray, longest: int) -> list[str]:
    lasts = [*(begins[1:] - 1), longest]
    return [
        f"{begin}" if begin == last else f"{begin}–{last}"
        for begin, last in zip(begins, lasts, strict=True)
    ]


def _margin(values: np.ndarray) -> float:
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


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
