"""Figure of curves: a metric at several values of one setting, a line a method."""

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
_LINES = ("#0550ae", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")

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


def draw_svg(
    path: Path, title: str, n_panels: int, draw: Callable[[Sequence["Axes"]], None]
) -> None:
    """Writes a standalone SVG on a white ground; text stays text, the same input same bytes.

    Args:
        draw: fills the axes.
    """
    from matplotlib.figure import Figure  # not on top: training needs no figures

    with svg_settings(), replacing(path) as work:
        figure = Figure(figsize=(4.6 * n_panels, 3.5), layout="constrained", facecolor="white")
        figure.suptitle(title, fontsize=12)
        axes = [figure.add_subplot(1, n_panels, number + 1) for number in range(n_panels)]
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
    for color, (method, found) in zip(_LINES * len(rows), rows.items(), strict=False):
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
