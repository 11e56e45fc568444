"""Figures of the report: inline SVG whose colors are CSS variables of the page.

A figure is a heading, keys, panels and a caption; the caption says in numbers what the panels
show. A panel is also written as an SVG file of its own, in the colors of the light page. The same
input gives the same drawing.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from diffuserec.evaluation import GROUPS, Evaluation, calibration, expected_calibration_error
from diffuserec.evaluation.uncertainty import COLUMNS
from diffuserec.files import write_text
from diffuserec.models.base import Epoch
from diffuserec.reports.dataset_summary import DatasetSummary, signed
from diffuserec.reports.report import Report, Role, half_interval, role_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTES = {
    "light": {
        "page": "#f5f6f8",
        "card": "#ffffff",
        "ink": "#1c2127",
        "muted": "#5a636e",
        "rule": "#d9dde3",
        "grid": "#e3e6eb",
        "bars": "#bcc4cf",
        "tint": "#eef4fb",
        "floor0": "#6e7781",
        "floor1": "#8a6a4f",
        "s0": "#0068a8",
        "s1": "#c8500a",
        "s2": "#00805e",
        "s3": "#a8437f",
        "s4": "#8a6100",
        "s5": "#5b55c4",
    },
    "dark": {
        "page": "#14171b",
        "card": "#1c2025",
        "ink": "#e4e7eb",
        "muted": "#a0a8b3",
        "rule": "#363c45",
        "grid": "#2c3239",
        "bars": "#4a5563",
        "tint": "#202c3a",
        "floor0": "#a3abb5",
        "floor1": "#c9a98c",
        "s0": "#56b4e9",
        "s1": "#ff8c4b",
        "s2": "#2fc39a",
        "s3": "#e391c2",
        "s4": "#e6b03c",
        "s5": "#a5a1ff",
    },
}
"""Colors of the page by the name of their CSS variable; figures use those names, too."""

_COLORS = {name: f"#0a0a{number:02x}" for number, name in enumerate(PALETTES["light"])}
"""Color that matplotlib draws with, by the CSS variable that takes its place."""

_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
"""Possible lower ends of bins of history lengths; the groups' limits are among them."""

_PANEL = (4.4, 3.0)
_TEXT = 11.5  # at this size and width, texts have 12 pixels on a phone
_MOST_LABELS = 10
_SHOWN = 10  # items of the lists whose probability is compared with hits
_HIT = f"HR@{_SHOWN}"
_CERTAINTIES = {
    "confidence": ("Calibration", "probability of the list"),
    "entropy": ("By entropy", "entropy (nats)"),
    "disagreement": ("By disagreement", "disagreement of draws (nats)"),
}
_GROUPINGS = {
    "history": "By history",
    "popularity": "By popularity of the target",
    "frequency": "By training interactions of the target",
}
_SIZES = {
    "short": "≤ 5",
    "medium": "6–20",
    "long": "> 20",
    "head": "top fifth",
    "tail": "the rest",
    "unseen": "0",
    "rare": "1–5",
    "frequent": "> 5",
}

Styles = Mapping[str, dict[str, Any]]
"""Line style of each method for matplotlib: baselines are dashed, the oracle is dotted."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One drawing of a figure.

    Attributes:
        title: above it, or empty.
        drawing: of matplotlib.
        alt: description for readers who cannot see it.
        name: unique on the page; the name of its file.
    """

    title: str
    drawing: "Figure"
    alt: str
    name: str

    @property
    def svg(self) -> Markup:
        """Element of the page, in the page's colors."""
        return _svg(self.drawing, self.alt, self.name)

    def write(self, directory: Path) -> Path:
        """Writes a file of its own with the keys of its lines, and returns its path."""
        axes = self.drawing.axes[0]
        handles, labels = axes.get_legend_handles_labels()
        with svg_settings():
            if handles:
                width, height = self.drawing.get_size_inches()
                self.drawing.set_size_inches(width, height + 0.25 * math.ceil(len(handles) / 2))
                self.drawing.legend(
                    handles, labels, loc="outside lower center", ncols=2, frameon=False
                )
            out = io.StringIO()
            meta = {"Date": None, "Creator": None, "Title": self.alt}
            self.drawing.savefig(out, format="svg", metadata=meta)
        light = {_COLORS[name]: color for name, color in PALETTES["light"].items()}
        text = re.sub("#0a0a..", lambda found: light[found[0]], out.getvalue())
        path = directory / f"{self.name}.svg"
        write_text(path, text)
        return path


@dataclass(frozen=True, eq=False)
class ReportFigure:
    """Panels with a heading, the keys of their lines and a caption.

    Attributes:
        heading: of the section.
        dataset: that it is about, or None.
        keys: name and line of each method; empty where panels name the methods themselves.
        panels: the drawings.
        caption: what they show, in numbers.
    """

    heading: str
    dataset: str | None
    keys: Sequence[tuple[str, Markup]]
    panels: Sequence[Panel]
    caption: str


@contextmanager
def svg_settings() -> Iterator[None]:
    """Matplotlib's defaults, with text kept as text and the same bytes for the same drawing."""
    import matplotlib as mpl  # not on top: reading a log or training needs no figures

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "diffuserec", "text.parse_math": False}
        )
        yield


def line_styles(report: Report, trained: Sequence[str]) -> Styles:
    """Line styles of all methods of a report and of those that were trained."""
    roles: dict[str, Role] = {name: role_of(runs) for name, runs in report.evaluations.items()}
    styles: dict[str, dict[str, Any]] = {}
    for name in [*roles, *trained]:
        role = roles.setdefault(name, "trained")
        n = sum(roles[other] == role for other in styles if other != name)
        if role == "trained":
            color, marker, line = f"s{n % 6}", "osD^"[n % 4], "-"
        elif role == "baseline":
            color, marker = f"floor{n % 2}", "vXP<"[n % 4]
            line = ("--", "-.", "-.", "--")[n % 4]
        else:
            color, marker, line = "ink", "*", ":"
        styles.setdefault(name, {"color": _COLORS[color], "marker": marker, "linestyle": line})
    return styles


def report_figures(
    report: Report, curves: Mapping[str, Sequence[Epoch]] | None = None
) -> list[ReportFigure]:
    """All figures of a report, those about each data set together.

    Args:
        curves: epochs of training, by method.
    """
    trained = {name: epochs for name, epochs in (curves or {}).items() if epochs}
    styles = line_styles(report, list(trained))
    datasets = report.summary["dataset"].unique(maintain_order=True).to_list()
    summaries = [DatasetSummary(report, dataset) for dataset in datasets]
    kinds = (
        forest_figure,
        cost_figure,
        gain_figure,
        length_figure,
        group_figure,
        certainty_figure,
    )
    with svg_settings():
        found = [kind(data, styles, i) for kind in kinds for i, data in enumerate(summaries)]
        found.append(curve_figure(trained, styles) if trained else None)
    return [figure for figure in found if figure is not None]


def write_figures(
    directory: Path | str, report: Report, curves: Mapping[str, Sequence[Epoch]] | None = None
) -> list[Path]:
    """Writes every panel of a report's figures as an SVG file, and returns their paths."""
    figures = report_figures(report, curves)
    return [panel.write(Path(directory)) for figure in figures for panel in figure.panels]


def forest_figure(data: DatasetSummary, styles: Styles, index: int) -> ReportFigure | None:
    """Difference of each method from its reference with its corrected interval."""
    tests = [
        test
        for test in data.comparisons("all").iter_rows(named=True)
        if test["low"] is not None and data.roles[test["method"]] != "oracle"
    ]
    if not tests:
        return None
    tests.sort(key=lambda test: test["difference"])
    figure, axes = _panel("", f"difference in {data.metric}", height=0.8 + 0.55 * len(tests))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=_COLORS["grid"], linewidth=0.6)
    axes.axvline(0, color=_COLORS["muted"], linewidth=1)
    for at, test in enumerate(tests):
        style = {**styles[test["method"]], "linestyle": "none"}
        axes.hlines(at, test["low"], test["high"], style["color"], lw=2)
        _plot(axes, np.array([test["difference"]]), np.array([at]), style)
        axes.annotate(
            f"{_short(test['method'], 26)}  {signed(test['difference'])}",
            (0, at),
            xycoords=("axes fraction", "data"),
            xytext=(2, 7),
            textcoords="offset points",
            color=_COLORS["ink"],
            size=_TEXT,
            bbox={"facecolor": _COLORS["card"], "edgecolor": "none", "pad": 1.5},
        )
    axes.set_ylim(-0.5, len(tests) - 0.1)
    axes.set_yticks([])
    _few_ticks(axes, "x")
    least = max((t["detectable"] for t in tests if t["detectable"] is not None), default=None)
    caption = (
        f"Difference of each method from {data.report.compared_with} in {data.metric} of all "
        f"users. An interval that leaves out 0 is a difference that is significant: intervals and "
        f"tests take {data.report.correction(data.dataset)}."
    )
    if least is not None:
        caption += (
            f" So many users and seeds find a true difference of {least:.4f} four times in five; "
            "smaller ones may stay hidden."
        )
    name = f"differences-{index}"
    alt = f"Differences in {data.metric} with corrected intervals"
    panel = Panel("", figure, alt, name)
    return ReportFigure("Differences", data.dataset, [], [panel], caption)


def gain_figure(data: DatasetSummary, styles: Styles, index: int) -> ReportFigure | None:
    """Difference of each trained method from its reference in each group of users."""
    methods = [m for m in data.methods if data.roles[m] == "trained"]
    methods = [m for m in methods if len(data.comparisons("all").filter(method=m))]
    if not methods:
        return None
    name = f"gains-{index}"
    panels, gains = [], []
    for grouping, names in GROUPS.items():
        groups = [g for g in names if (data.methods[0], g, data.metric) in data.cells]
        figure, axes = _panel(f"difference in {data.metric}", "")
        axes.axhline(0, color=_COLORS["muted"], linewidth=1)
        at = np.arange(len(groups))
        for number, method in enumerate(methods):
            tests = [data.comparisons(g).filter(method=method).row(0, named=True) for g in groups]
            shift = _shift(number, len(methods))
            means = np.array([test["difference"] for test in tests])
            for x, test in zip(at + shift, tests, strict=True):
                if test["low"] is not None:
                    color = styles[method]["color"]
                    axes.vlines(x, test["low"], test["high"], color, lw=1, alpha=0.6)
                if test["p_holm"] < 0.05:
                    gains.append(f"{method} {test['group']} {signed(test['difference'])}")
            _plot(axes, at + shift, means, styles[method], linestyle="none", label=method)
        _group_ticks(axes, data, groups)
        alt = f"Difference in {data.metric} by {grouping}: {', '.join(groups)}"
        panels.append(Panel(_GROUPINGS[grouping], figure, alt, f"{name}-{grouping}"))
    caption = (
        f"Difference in {data.metric} from {data.report.compared_with}, with intervals corrected "
        f"for {data.report.n_comparisons(data.dataset)} in each group. Significant: "
        f"{'; '.join(gains) or 'none'}."
    )
    keys = _keys(methods, styles, name)
    return ReportFigure("Gain by group", data.dataset, keys, panels, caption)


def cost_figure(data: DatasetSummary, styles: Styles, index: int) -> ReportFigure | None:
    """Ranking metric against seconds of training, with the methods that none beats in both."""
    seconds = {m: s for m in data.methods if (s := data.seconds(m)) is not None and s > 0}
    if not seconds:
        return None
    figure, axes = _panel(data.metric, "seconds of training")
    least, most = min(seconds.values()), max(seconds.values())
    axes.set_xscale("log")
    axes.set_xlim(least / 2, most * 2)
    for method, x in seconds.items():
        cell = data.cells[method, "all", data.metric]
        at, value, margin = (np.array([v]) for v in (x, cell["value"], cell["margin"]))
        _plot(axes, at, value, styles[method], margin, linestyle="none", label=method)
    for method in (m for m in data.methods if data.roles[m] == "baseline" and m not in seconds):
        style = styles[method]
        axes.axhline(
            data.value(method),
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=1.5,
            label=method,
        )
    front: list[str] = []
    for method in sorted(seconds, key=lambda m: (seconds[m], -data.value(m))):
        if not front or data.value(method) > data.value(front[-1]):
            front.append(method)
    axes.step(
        [seconds[m] for m in front],
        [data.value(m) for m in front],
        where="post",
        color=_COLORS["muted"],
        linewidth=1,
        zorder=1,
    )
    axes.set_ylim(bottom=0)
    axes.set_xticks(_seconds_ticks(least, most))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
    caption = (
        f"{data.metric} with the 95% interval over users against the seconds that one run trained, "
        "augmenter included, on a logarithmic axis. On the gray line: trained methods that no "
        f"faster one reaches (Pareto front): {', '.join(front)}. "
        + "; ".join(f"{m}: {duration(s)}" for m, s in seconds.items())
        + ". Seconds of different machines cannot be compared."
    )
    if any(data.roles[m] == "baseline" and m not in seconds for m in data.methods):
        caption += " Level lines: trivial baselines, which take next to no time."
    shown = [m for m in data.methods if m in seconds or data.roles[m] == "baseline"]
    name = f"cost-{index}"
    panel = Panel("", figure, f"{data.metric} against seconds of training", name)
    keys = _keys(shown, styles, name)
    return ReportFigure("Accuracy and cost", data.dataset, keys, [panel], caption)


def length_figure(data: DatasetSummary, styles: Styles, index: int) -> ReportFigure:
    """Ranking metric of each method by length of history, and how many users have it."""
    from matplotlib.ticker import FuncFormatter

    lengths, _ = data.by_user(data.methods[0])
    begins = _bins(lengths)
    counts = np.bincount(np.searchsorted(begins, lengths, side="right") - 1, minlength=len(begins))
    at = np.arange(len(begins))
    figure, lines = _panel(data.metric, "items in the history")
    best: dict[int, tuple[float, str]] = {}
    for number, method in enumerate(data.methods):
        owned, values = data.by_user(method)
        inside = np.searchsorted(begins, owned, side="right") - 1
        parts = [values[inside == i] for i in at]
        means = np.array([part.mean() for part in parts])
        margins = np.array([half_interval(part) for part in parts])
        shift = 0.06 * (number - (len(data.methods) - 1) / 2)
        _plot(lines, at + shift, means, styles[method], margins, label=method)
        if data.roles[method] != "oracle":
            for i in (0, len(at) - 1):
                best[i] = max(best.get(i, (-1.0, "")), (float(means[i]), method))
    lines.set_ylim(bottom=0)
    users, bars = _panel("users", "items in the history")
    bars.bar(at, counts, width=0.86, color=_COLORS["bars"])
    bars.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    labels = _bin_names(begins, int(lengths.max()))
    some = slice(None, None, 1 + (len(at) - 1) // _MOST_LABELS)
    for axes in (lines, bars):
        axes.set_xticks(at[some], labels[some], rotation=45 if sum(map(len, labels)) > 18 else 0)
    caption = (
        f"{data.metric} of each method by the length of users' histories, target not counted, with "
        f"95% intervals; and how many users have such a history. Half of them have "
        f"{np.median(lengths):.0f} items or fewer."
    )
    if len(at) > 1 and len(data.methods) > 1:
        caption += "".join(
            f" {what} histories ({labels[i]}, {counts[i] / counts.sum():.0%} of users): "
            f"{best[i][1]} is best with {best[i][0]:.4f}."
            for what, i in (("Shortest", 0), ("Longest", len(at) - 1))
        )
    name = f"lengths-{index}"
    panels = [
        Panel("Accuracy", figure, f"{data.metric} by length of history", name),
        Panel("Users", users, "Histogram of history lengths", f"{name}-users"),
    ]
    keys = _keys(data.methods, styles, name)
    return ReportFigure("Accuracy by length of history", data.dataset, keys, panels, caption)


def group_figure(data: DatasetSummary, styles: Styles, index: int) -> ReportFigure:
    """Ranking metric of each method by group of users and of targets."""
    name = f"groups-{index}"
    panels, sentences = [], []
    for grouping, names in GROUPS.items():
        groups = [g for g in names if (data.methods[0], g, data.metric) in data.cells]
        figure, axes = _panel(data.metric, "")
        at = np.arange(len(groups))
        for number, method in enumerate(data.methods):
            cells = [data.cells[method, group, data.metric] for group in groups]
            means, margins = (np.array([c[what] for c in cells]) for what in ("value", "margin"))
            x = at + _shift(number, len(data.methods))
            _plot(axes, x, means, styles[method], margins, linestyle="none", label=method)
        _group_ticks(axes, data, groups)
        axes.set_ylim(bottom=0)
        heading = _GROUPINGS[grouping]
        alt = f"{data.metric} of each method, {heading.lower()}: {', '.join(groups)}"
        panels.append(Panel(heading, figure, alt, f"{name}-{grouping}"))
        sentences += [f"{g}: {(m := data.ranked(g)[0])} ({data.value(m, g):.4f})" for g in groups]
    caption = f"{data.metric} with 95% intervals over users. "
    if len(data.methods) > 1:
        caption += f"Best in each group: {'; '.join(sentences)}. "
    caption += (
        "A user's group is set by the number of interactions, target included; what an augmenter "
        "adds does not count. The head is the fifth of the catalog most frequent in training."
    )
    keys = _keys(data.methods, styles, name)
    return ReportFigure("Accuracy by group", data.dataset, keys, panels, caption)


def certainty_figure(data: DatasetSummary, styles: Styles, index: int) -> ReportFigure | None:
    """Hit rate by the certainty that methods state; None if no method states any.

    Several seeds have the same users, so that only the first is drawn.
    """
    stating = {m: run for m in data.methods if (run := _certain_run(data.runs[m])) is not None}
    if not stating:
        return None
    name = f"certainty-{index}"
    tenths = {
        column: {
            method: calibration(
                run.per_user[column].to_numpy(), (run.per_user["target_rank"] < _SHOWN).to_numpy()
            )
            for method, run in stating.items()
            if (run.per_user[column] > 0).any()  # without noise, nothing can disagree
        }
        for column in COLUMNS
    }
    panels = []
    for column, (title, label) in _CERTAINTIES.items():
        if not tenths[column]:
            continue
        figure, axes = _panel(_HIT, label)
        if column == "confidence":
            ends = [float(bins["predicted"].to_numpy().max()) for bins in tenths[column].values()]
            axes.plot([0, max(ends)], [0, max(ends)], color=_COLORS["muted"], linewidth=1)
        for method, bins in tenths[column].items():
            at, rates, margins = (bins[c].to_numpy() for c in ("predicted", "observed", "margin"))
            _plot(axes, at, rates, styles[method], margins, label=method)
        axes.set_ylim(bottom=0)
        alt = f"{_HIT} by {label}, in tenths of the users"
        _few_ticks(axes, "x")
        panels.append(Panel(title, figure, alt, f"{name}-{column}"))
    stated = tenths["confidence"].items()
    errors = [f"{m} {expected_calibration_error(bins):.4f}" for m, bins in stated]
    extremes = [
        f"{m} {bins['observed'][-1]:.4f} and {bins['observed'][0]:.4f}" for m, bins in stated
    ]
    several = any(len(data.runs[method]) > 1 for method in stating)
    caption = (
        f"Each marker is a tenth of the users, by the horizontal axis: {_HIT} with 95% intervals. "
        f"{'Of several seeds the first is drawn. ' if several else ''}Calibration: the "
        f"probability that a method itself gives to the {_SHOWN} items it shows, against how often "
        "the next item is among them. On the line the two agree; below it the method is too sure, "
        f"above it not sure enough. Expected calibration error: {'; '.join(errors)}. {_HIT} of the "
        f"most and the least certain tenth, by that probability: {'; '.join(extremes)}. Entropy: "
        "how widely the distribution spreads over all items."
    )
    if tenths["disagreement"]:
        caption += " Disagreement: the part of the entropy that is there because draws differ."
    keys = _keys(list(stating), styles, name)
    return ReportFigure("Does certainty mean accuracy?", data.dataset, keys, panels, caption)


def _certain_run(runs: Sequence[Evaluation]) -> Evaluation | None:
    """First run that states its certainty about lists of ten, and has ten users in a tenth.

    Ranks among sampled candidates are no hits of the list that was shown.
    """
    for run in runs:
        stated = set(COLUMNS) <= set(run.per_user.columns) and f"Coverage@{_SHOWN}" in run.metrics
        if stated and run.protocol.candidates == "full" and len(run.per_user) >= 100:
            return run
    return None


def curve_figure(curves: Mapping[str, Sequence[Epoch]], styles: Styles) -> ReportFigure:
    """Loss and validation metric of each phase of training by epoch."""
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
                _plot(axes, x, y, styles[method], label=method)
                if what == "validation":
                    top = int(y.argmax())
                    axes.plot(x[top], y[top], "o", mfc="none", mec=_COLORS["ink"], ms=10, mew=1.2)
                    sentences.append(
                        f"{method}, {phase}: best {y[top]:.4f} after epoch {x[top]:.0f} of {len(y)}"
                    )
            if drawn:
                alt = f"{what} by epoch of phase {phase}"
                panels.append(Panel(f"{phase}: {what}", figure, alt, f"curves-{number}-{what}"))
    caption = "Loss (lower is better; different kinds of loss cannot be compared) after each epoch."
    if sentences:
        caption += (
            f" Validation: higher is better, the best epoch is ringed. {'; '.join(sentences)}."
        )
    keys = _keys(list(curves), styles, "curves")
    return ReportFigure("Training", None, keys, panels, caption)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is easiest to read."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _keys(methods: Sequence[str], styles: Styles, name: str) -> list[tuple[str, Markup]]:
    from matplotlib.figure import Figure

    keys = []
    for number, method in enumerate(methods):
        figure = Figure(figsize=(0.4, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 2), ylim=(0, 2))
        _plot(axes, np.arange(3.0), np.ones(3), styles[method], markevery=[1])
        keys.append((method, _svg(figure, None, f"{name}-key-{number}")))
    return keys


def _group_ticks(axes: "Axes", data: DatasetSummary, groups: Sequence[str]) -> None:
    sizes = [data.cells[data.methods[0], group, data.metric]["n_users"] for group in groups]
    axes.set_xticks(
        np.arange(len(groups)),
        [f"{g}\n{_SIZES[g]}\n{n:,} users" for g, n in zip(groups, sizes, strict=True)],
    )
    axes.set_xlim(-0.5, len(groups) - 0.5)


def _shift(number: int, of: int) -> float:
    """Distance of one of several markers that stand at the same place."""
    return (number - (of - 1) / 2) * min(0.12, 0.7 / of)


def _few_ticks(axes: "Axes", which: Literal["x", "y"]) -> None:
    axes.locator_params(axis=which, nbins=5)


def _seconds_ticks(least: float, most: float) -> list[float]:
    """Round numbers within the axis: powers of ten and, if those are few, their multiples."""
    exponents = range(int(np.floor(np.log10(least))) - 1, int(np.ceil(np.log10(most))) + 2)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**e for e in exponents for f in factors]
        ticks = [tick for tick in ticks if least / 2 <= tick <= most * 2]
        if len(ticks) > 1:
            break
    return ticks


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _panel(y: str, x: str, height: float = _PANEL[1]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL[0], height), layout="constrained", facecolor=_COLORS["card"])
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
    axes.set_facecolor("none")
    axes.tick_params(colors=_COLORS["ink"], labelsize=_TEXT, length=0)
    axes.xaxis.label.set(color=_COLORS["ink"], size=_TEXT)
    axes.yaxis.label.set(color=_COLORS["ink"], size=_TEXT)


def _plot(
    axes: "Axes",
    x: np.ndarray,
    y: np.ndarray,
    style: dict[str, Any],
    margins: np.ndarray | None = None,
    **changes: Any,
) -> None:
    if margins is not None:
        axes.vlines(x, np.maximum(0, y - margins), y + margins, style["color"], lw=1, alpha=0.6)
    look = {
        "linewidth": 1.7,
        "markersize": {"*": 10, "v": 8, "X": 8, "P": 8, "<": 8}.get(style["marker"], 6.5),
        "markeredgecolor": _COLORS["card"],
        "markeredgewidth": 0.6,
        "markevery": max(1, len(x) // 12),
    }
    axes.plot(x, y, **{**look, **style, **changes})


def _svg(figure: "Figure", alt: str | None, name: str) -> Markup:
    """Drawing as an element of the page, with ids of its own and the colors of the page.

    Args:
        alt: description for readers who cannot see it; None hides it from them.
        name: unique on the page.
    """
    out = io.StringIO()
    with svg_settings():
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
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
    """Lower ends of the bins, each of which holds enough users for a meaningful mean."""
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
