"""Figures of the report: inline SVG whose colors are CSS variables of the page.

A figure is a heading, keys, panels and a caption; the caption says in numbers what the panels
show. The same input gives the same drawing.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from diffuserec.evaluation import GROUPS, Evaluation, calibration, expected_calibration_error
from diffuserec.evaluation.uncertainty import COLUMNS
from diffuserec.models.base import Epoch
from diffuserec.reports.dataset_summary import DatasetSummary, Role, role_of
from diffuserec.reports.report import Report, half_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VARIABLES = ("ink", "muted", "grid", "bars", "card", "baseline", *(f"s{i}" for i in range(6)))
_COLORS = {name: f"#0a0a{number:02x}" for number, name in enumerate(_VARIABLES)}
"""Color that matplotlib draws with, by the CSS variable that takes its place."""

_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
"""Possible lower ends of bins of history lengths; the groups' limits are among them."""

_PANEL = (5.4, 3.3)
_SHOWN = 10  # items of the lists whose probability is compared with hits
_HIT = f"HR@{_SHOWN}"
_CERTAINTIES = {
    "confidence": ("Calibration", "probability of the list"),
    "entropy": ("By entropy", "entropy (nats)"),
    "disagreement": ("By disagreement", "disagreement of draws (nats)"),
}
_SIZES = {"short": "≤ 5", "medium": "6–20", "long": "> 20", "head": "top fifth", "tail": "the rest"}

Styles = Mapping[str, dict[str, Any]]
"""Line style of each method for matplotlib: baselines are gray and dashed, the oracle is dotted."""


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
            color, marker, line = "baseline", "vX"[n % 2], ("--", "-.")[n % 2]
        else:
            color, marker, line = "ink", "*", ":"
        styles.setdefault(name, {"color": _COLORS[color], "marker": marker, "linestyle": line})
    return styles


def length_figure(data: DatasetSummary, styles: Styles, index: int) -> dict[str, Any]:
    """Histogram of history lengths, and the ranking metric of each method by length."""
    from matplotlib.ticker import FuncFormatter

    lengths, _ = data.by_user(data.methods[0])
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
    lines.set_ylabel(data.metric)
    best: dict[int, tuple[float, str]] = {}
    for number, method in enumerate(data.methods):
        owned, values = data.by_user(method)
        inside = np.searchsorted(begins, owned, side="right") - 1
        parts = [values[inside == i] for i in at]
        means = np.array([part.mean() for part in parts])
        margins = np.array([half_interval(part) for part in parts])
        shift = 0.06 * (number - (len(data.methods) - 1) / 2)
        _plot(lines, at + shift, means, styles[method], margins)
        if data.roles[method] != "oracle":
            for i in (0, len(at) - 1):
                best[i] = max(best.get(i, (-1.0, "")), (float(means[i]), method))
    lines.set_ylim(bottom=0)
    labels = _bin_names(begins, int(lengths.max()))
    bars.set_xticks(at, labels, rotation=45 if sum(map(len, labels)) > 28 else 0)
    caption = (
        f"Bars: how many users have a history of that length, target not counted; half have "
        f"{np.median(lengths):.0f} items or fewer. Lines: {data.metric} of each method for "
        "these users, with 95% intervals."
    )
    if len(at) > 1 and len(data.methods) > 1:
        caption += "".join(
            f" {what} histories ({labels[i]}, {counts[i] / counts.sum():.0%} of users): "
            f"{best[i][1]} is best with {best[i][0]:.4f}."
            for what, i in (("Shortest", 0), ("Longest", len(at) - 1))
        )
    name = f"lengths-{index}"
    alt = f"Histogram of history lengths with {data.metric} by length"
    panel = {"title": "", "svg": _svg(figure, alt, name)}
    return _figure(
        "Accuracy by length of history", data.dataset, data.methods, styles, [panel], caption, name
    )


def group_figure(data: DatasetSummary, styles: Styles, index: int) -> dict[str, Any]:
    """Ranking metric of each method by group of users and of targets."""
    name = f"groups-{index}"
    panels, sentences = [], []
    for grouping, names in GROUPS.items():
        groups = [g for g in names if (data.methods[0], g, data.metric) in data.cells]
        figure, axes = _panel(data.metric, "")
        at = np.arange(len(groups))
        for number, method in enumerate(data.methods):
            cells = [data.cells[method, group, data.metric] for group in groups]
            shift = (number - (len(data.methods) - 1) / 2) * min(0.12, 0.7 / len(data.methods))
            means, margins = (np.array([c[what] for c in cells]) for what in ("value", "margin"))
            _plot(axes, at + shift, means, styles[method], margins, linestyle="none")
        sizes = [data.cells[data.methods[0], group, data.metric]["n_users"] for group in groups]
        axes.set_xticks(
            at, [f"{g} ({_SIZES[g]})\n{n:,} users" for g, n in zip(groups, sizes, strict=True)]
        )
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(bottom=0)
        heading = {"history": "By history", "popularity": "By popularity of the target"}[grouping]
        alt = f"{data.metric} of each method, {heading.lower()}: {', '.join(groups)}"
        panels.append({"title": heading, "svg": _svg(figure, alt, f"{name}-{grouping}")})
        sentences += [f"{g}: {(m := data.ranked(g)[0])} ({data.value(m, g):.4f})" for g in groups]
    caption = f"{data.metric} with 95% intervals over users. "
    if len(data.methods) > 1:
        caption += f"Best in each group: {'; '.join(sentences)}. "
    caption += (
        "A user's group is set by the number of interactions, target included; what an augmenter "
        "adds does not count. The head is the fifth of the catalog most frequent in training."
    )
    return _figure("Accuracy by group", data.dataset, data.methods, styles, panels, caption, name)


def certainty_figure(data: DatasetSummary, styles: Styles, index: int) -> dict[str, Any] | None:
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
            _plot(axes, at, rates, styles[method], margins)
        axes.set_ylim(bottom=0)
        alt = f"{_HIT} by {label}, in tenths of the users"
        panels.append({"title": title, "svg": _svg(figure, alt, f"{name}-{column}")})
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
    return _figure(
        "Does certainty mean accuracy?", data.dataset, list(stating), styles, panels, caption, name
    )


def _certain_run(runs: Sequence[Evaluation]) -> Evaluation | None:
    """First run that states its certainty about lists of ten, and has ten users in a tenth.

    Ranks among sampled candidates are no hits of the list that was shown.
    """
    for run in runs:
        stated = set(COLUMNS) <= set(run.per_user.columns) and f"Coverage@{_SHOWN}" in run.metrics
        if stated and run.protocol.candidates == "full" and len(run.per_user) >= 100:
            return run
    return None


def curve_figure(curves: Mapping[str, Sequence[Epoch]], styles: Styles) -> dict[str, Any]:
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
                _plot(axes, x, y, styles[method])
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
    return _figure("Training", None, list(curves), styles, panels, caption, "curves")


def _figure(
    heading: str,
    dataset: str | None,
    methods: Sequence[str],
    styles: Styles,
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
        _plot(axes, np.arange(3.0), np.ones(3), styles[method], markevery=[1])
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
    style: dict[str, Any],
    margins: np.ndarray | None = None,
    **changes: Any,
) -> None:
    if margins is not None:
        axes.vlines(x, np.maximum(0, y - margins), y + margins, style["color"], lw=1, alpha=0.6)
    look = {
        "linewidth": 1.7,
        "markersize": 9 if style["marker"] == "*" else 6,
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
