"""Figures of curves: a metric by values of a setting or by epoch, and gains by size of a log."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuserec.files import replacing
from diffuserec.reports.figures import svg_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOG_FROM = 20  # ratio of greatest to least value from which the axis is logarithmic
_GRID = "#d8dee4"
_COLUMNS = 3  # panels beside each other
_STYLES = ("-", "--", ":", "-.")
LINE_COLORS = ("#0550ae", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")

Curves = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""Rows of results, each with ``point`` and ``metrics``, by method and varied setting."""


def draw_curves(path: Path, title: str, curves: Curves, metrics: Sequence[str]) -> None:
    """Writes curves as an SVG: a panel for each setting and metric.

    Numbers stand on a numeric axis, logarithmic if they span much; other values on one of names.
    """
    settings = list(dict.fromkeys(setting for _, setting in curves))
    panels = [(setting, metric) for setting in settings for metric in metrics]

    def draw(axes: Sequence["Axes"]) -> None:
        for panel, (setting, metric) in zip(axes, panels, strict=True):
            of_setting = {method: rows for (method, s), rows in curves.items() if s == setting}
            _draw(panel, setting, metric, of_setting)

    draw_svg(path, title, len(panels), draw)


Gains = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Points with ``users, difference, low, high, p_holm``, by reference and by row; the interval may
be None."""


def draw_gains(path: Path, title: str, gains: Gains, metric: str) -> None:
    """Writes gains by the number of users as an SVG: a panel for each reference, a line a row.

    Intervals and significance are Holm's, as in the tables. All panels have the same axes.
    """
    points = [point for rows in gains.values() for found in rows.values() for point in found]
    ends = [v for p in points for v in (p["difference"], p["low"], p["high"]) if v is not None]
    least, most = min(0.0, *ends), max(0.0, *ends)
    room = 0.05 * (most - least) or 1e-4
    sizes = sorted({point["users"] for point in points})

    def draw(axes: Sequence["Axes"]) -> None:
        for panel, (reference, rows) in zip(axes, gains.items(), strict=True):
            panel.axhline(0, color="#57606a", linewidth=1)
            for number, (name, found) in enumerate(rows.items()):
                shift = 1.04 ** (number - (len(rows) - 1) / 2)
                _draw_gain(panel, name, sorted(found, key=lambda p: int(p["users"])), shift, number)
            panel.set_xscale("log")
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30, ha="right")
            panel.set_xticks([], minor=True)
            panel.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
            panel.set_ylim(least - room, most + 5 * room)  # the key stands on top
            panel.set_xlabel("users")
            panel.set_ylabel(f"gain in {metric} over {reference}")
            panel.legend(frameon=False, fontsize=9)

    draw_svg(path, f"{title} (filled: significant)", len(gains), draw)


def draw_epochs(
    path: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    published: Mapping[str, Any] | None = None,
) -> None:
    """Writes validation by epoch as an SVG: a thin line for each seed of a row.

    Args:
        rows: with ``name`` and ``curve``, a list of values by epoch for each seed.
        published: ``name, epochs, values`` of another code's, drawn as points.
    """

    def draw(axes: Sequence["Axes"]) -> None:
        (panel,) = axes
        for number, row in enumerate(rows):
            turn, place = divmod(number, len(LINE_COLORS))
            color, style = LINE_COLORS[place], _STYLES[turn % len(_STYLES)]
            for seed, curve in enumerate(row["curve"]):
                at = range(1, len(curve) + 1)
                label = row["name"] if seed == 0 else None
                panel.plot(at, curve, color=color, linestyle=style, linewidth=1, label=label)
        if published is not None:
            at, values = published["epochs"], published["values"]
            panel.plot(at, values, "D", color="black", markersize=4, label=published["name"])
        panel.set_ylim(bottom=0)
        panel.set_xlabel("epoch")
        panel.set_ylabel("NDCG@10 on validation")
        panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

    # the legend has a line for each row, beside the panel
    draw_svg(path, title, 1, draw, width=9.0, height=max(3.5, 1 + 0.18 * len(rows)))


def _draw_gain(
    panel: "Axes", name: str, found: Sequence[Mapping[str, Any]], shift: float, number: int
) -> None:
    color = LINE_COLORS[number % len(LINE_COLORS)]
    at = [point["users"] * shift for point in found]
    panel.plot(at, [point["difference"] for point in found], color=color, label=name)
    for x, point in zip(at, found, strict=True):
        if point["low"] is not None:
            panel.vlines(x, point["low"], point["high"], color, linewidth=1)
        significant = point["p_holm"] is not None and point["p_holm"] < 0.05
        face = color if significant else "white"
        panel.plot(x, point["difference"], "o", color=color, markerfacecolor=face)


def draw_svg(
    path: Path,
    title: str,
    n_panels: int,
    draw: Callable[[Sequence["Axes"]], None],
    width: float = 4.6,
    height: float = 3.5,
) -> None:
    """Writes a standalone SVG on a white ground; text stays text, the same input same bytes.

    Args:
        draw: fills the axes.
        width: of a panel, in inches.
        height: of it, in inches.
    """
    from matplotlib.figure import Figure  # not on top: training needs no figures

    n_columns = min(n_panels, _COLUMNS)
    n_rows = math.ceil(n_panels / n_columns)
    with svg_settings(), replacing(path) as work:
        size = (width * n_columns, height * n_rows)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        figure.suptitle(title, fontsize=12)
        axes = [figure.add_subplot(n_rows, n_columns, number + 1) for number in range(n_panels)]
        for panel in axes:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(axis="y", color=_GRID, linewidth=0.7)
            panel.set_axisbelow(True)
        draw(axes)
        figure.savefig(work, format="svg", metadata={"Date": None, "Creator": None, "Title": title})


def _draw(
    panel: "Axes", setting: str, metric: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    values = list(dict.fromkeys(row["point"][setting] for found in rows.values() for row in found))
    numeric = all(_is_number(value) for value in values)
    values = sorted(values) if numeric else values
    at = {value: value if numeric else number for number, value in enumerate(values)}
    for color, (method, found) in zip(LINE_COLORS * len(rows), rows.items(), strict=False):
        ordered = sorted(found, key=lambda row: at[row["point"][setting]])
        panel.errorbar(
            [at[row["point"][setting]] for row in ordered],
            [row["metrics"][metric]["value"] for row in ordered],
            yerr=[row["metrics"][metric]["margin"] or 0.0 for row in ordered],
            color=color,
            marker="o",
            linestyle="-" if numeric else "none",
            elinewidth=1,
            capsize=3,
            label=method,
        )
    panel.set_ylim(bottom=max(0.0, panel.get_ylim()[0]))
    panel.set_ylabel(metric)
    panel.set_xlabel(setting)
    if len(rows) > 1:
        panel.legend(frameon=False, fontsize=9)
    names = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    if not numeric:
        crowded = sum(map(len, names)) > 40
        look: dict[str, Any] = {"rotation": 20, "ha": "right"} if crowded else {}
        panel.set_xticks(range(len(values)), names, **look)
        panel.set_xlim(-0.5, len(values) - 0.5)
    elif values[0] > 0 and values[-1] / values[0] > _LOG_FROM:
        panel.set_xscale("log")
        panel.set_xticks(values, names)
        panel.set_xticks([], minor=True)
    else:
        panel.set_xticks(values, names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
