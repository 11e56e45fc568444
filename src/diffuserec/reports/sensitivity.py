"""Table and figure of a sensitivity study: test metrics of one model at several settings.

Both take the document of the study, which ``sensitivity.json`` holds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuserec.files import replacing
from diffuserec.reports.figures import svg_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = ("NDCG@10", "HR@10")
"""Metrics in the table and the figure; the document has all."""

_LOG_FROM = 20  # ratio of greatest to least value from which the axis is logarithmic
_GRID, _LINE = "#d8dee4", "#0550ae"


def sensitivity_table(document: Mapping[str, Any]) -> str:
    """Markdown table of the test metrics of each point, means over the seeds."""
    trained = document["at"] == "training"
    header = [document["setting"] or "point", *METRICS]
    header += ["best validation NDCG@10", "epochs", "training, s"] if trained else []
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for point in document["points"]:
        cells = [point["metrics"][metric] for metric in METRICS]
        line = [point["name"].replace("|", "\\|")]
        line += [f"{cell['value']:.4f} ± {cell['margin']:.4f}" for cell in cells]
        lines.append(line + (list(_training(point["runs"])) if trained else []))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    seeds = ", ".join(str(seed) for seed in document["seeds"])
    note = (
        f"{document['model']} on {document['data']}, test; ± half of the 95 % interval over users. "
        f"Seeds: {seeds}{' (means)' if len(document['seeds']) > 1 else ''}."
    )
    if not trained:
        valid, epochs, seconds = _training(document["points"][0]["runs"])
        note += (
            f" One model was trained for each seed (best validation NDCG@10 {valid}, {epochs} "
            f"epochs, {seconds} s) and measured at every point."
        )
    notes = [f"Note: {text}." for text in document["notes"]]
    return "\n\n".join([f"# {document['title']}", table, note, document["protocol"], *notes]) + "\n"


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


def _training(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """Best validation metric, epochs and seconds of training, as means over the runs."""
    valid, epochs, seconds = (
        float(np.mean([run[what] for run in runs])) for what in ("best_valid", "epochs", "seconds")
    )
    return f"{valid:.4f}", f"{epochs:.4g}", f"{seconds:,.1f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plot_sensitivity(axes: Sequence["Axes"], document: Mapping[str, Any]) -> None:
    """Draws the test metrics of each point, with their intervals.

    Numbers are drawn on a numeric axis, logarithmic if they span much; other points on an axis of
    names.

    Args:
        axes: one for each of `METRICS`.
    """
    from matplotlib.ticker import MaxNLocator

    points = document["points"]
    numeric = all(_is_number(point["value"]) for point in points)
    if numeric:
        points = sorted(points, key=lambda point: float(point["value"]))
    x = [point["value"] if numeric else number for number, point in enumerate(points)]
    names = [point["name"] for point in points]
    for panel, metric in zip(axes, METRICS, strict=True):
        cells = [point["metrics"][metric] for point in points]
        panel.errorbar(
            x,
            [cell["value"] for cell in cells],
            yerr=[cell["margin"] for cell in cells],
            color=_LINE,
            marker="o",
            linestyle="-" if numeric else "none",
            elinewidth=1,
            capsize=3,
        )
        panel.set_ylim(bottom=max(0.0, panel.get_ylim()[0]))
        panel.set_ylabel(f"{metric}, test")
        panel.set_xlabel(document["setting"] or "")
        if not numeric:
            crowded = sum(map(len, names)) > 40
            look: dict[str, Any] = {"rotation": 20, "ha": "right"} if crowded else {}
            panel.set_xticks(x, names, **look)
            panel.set_xlim(-0.5, len(x) - 0.5)
        elif x[0] > 0 and x[-1] / x[0] > _LOG_FROM:
            panel.set_xscale("log")
            panel.set_xticks(x, names)
            panel.set_xticks([], minor=True)
        elif all(isinstance(value, int) for value in x):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
