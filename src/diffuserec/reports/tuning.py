"""Figures and page of a tuning: what each trial reached, and which settings mattered."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuserec.reports.curves import draw_svg
from diffuserec.tables import Estimate, Record, format_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATES = {"finished": "finished", "pruned": "ended early", "failed": "failed"}


def draw_history(path: Path, trials: Sequence[Mapping[str, Any]]) -> None:
    """Writes the validation metric of each trial, and the best so far, as an SVG.

    Args:
        trials: each with ``number``, ``valid``, ``state`` and ``default``.
    """

    from matplotlib.ticker import MaxNLocator  # not on top: training needs no figures

    def draw(axes: "Sequence[Axes]") -> None:
        (panel,) = axes
        best, tops = 0.0, []
        for trial in trials:
            if trial["state"] == "finished":
                best = max(best, trial["valid"])
            tops.append(best)
        for state, marker, color in (("finished", "o", "#0550ae"), ("pruned", "x", "#8c959f")):
            found = [trial for trial in trials if trial["state"] == state]
            if not found:
                continue
            panel.plot(
                [trial["number"] for trial in found],
                [trial["valid"] for trial in found],
                marker,
                color=color,
                label=_STATES[state],
            )
        panel.step(
            [trial["number"] for trial in trials], tops, where="post", color="#1a7f37", label="best"
        )
        for trial in trials:
            if trial["default"] and trial["valid"] is not None:
                panel.axhline(
                    trial["valid"], color="#57606a", linewidth=1, linestyle=":", label="defaults"
                )
        panel.set_xlabel("trial")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel("validation NDCG@10")
        panel.legend(frameon=False, fontsize=9)

    draw_svg(path, "Trials", 1, draw)


def draw_importance(path: Path, importance: Mapping[str, float]) -> None:
    """Writes the share of the spread of the metric that each setting explains, as an SVG."""
    names = sorted(importance, key=lambda name: importance[name])

    def draw(axes: "Sequence[Axes]") -> None:
        (panel,) = axes
        panel.barh(names, [importance[name] for name in names], color="#0550ae")
        panel.set_xlabel("share of the spread explained")
        panel.grid(visible=False, axis="y")

    draw_svg(path, "Importance of the settings", 1, draw)


def tuning_page(title: str, document: Mapping[str, Any], folder: Path) -> str:
    """A page with the figures in a folder and a table of all trials, best first."""
    trials = sorted(document["trials"], key=lambda t: -(t["valid"] or 0.0))
    settings = list(dict.fromkeys(name for trial in trials for name in trial["settings"]))
    records: list[Record] = [
        {"trial": str(t["number"]) + (" (defaults)" if t["default"] else "")}
        | {"validation NDCG@10": None if t["valid"] is None else Estimate(t["valid"])}
        | {"epochs": t["epochs"], "state": _STATES[t["state"]]}
        | {name: _shown(t["settings"].get(name)) for name in settings}
        for t in trials
    ]
    figures = "".join(
        f"<figure>{(folder / name).read_text(encoding='utf-8').partition('<svg')[1]}"
        f"{(folder / name).read_text(encoding='utf-8').partition('<svg')[2]}</figure>"
        for name in ("history.svg", "importance.svg")
        if (folder / name).is_file()
    )
    heading = html.escape(f"Tuning of {title}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{_STYLE}</style></head><body><h1>{heading}</h1>"
        "<p>Chosen on validation alone; the test part was not looked at. The best settings stand "
        "in <code>best.toml</code>, for <code>diffuserec train --config best.toml</code>.</p>"
        f'<div class="figures">{figures}</div>'
        f'<div class="wide">{format_table(records, "html")}</div></body></html>\n'
    )


def _shown(value: Any) -> str | float | int | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    ".figures{display:flex;flex-wrap:wrap}figure{margin:1rem 1rem 1rem 0}"
    "svg{max-width:100%;height:auto}.wide{overflow-x:auto}"
    "table{border-collapse:collapse;font-size:14px}td,th{padding:.25rem .6rem;"
    "border-bottom:1px solid #d8dee4;text-align:left}"
)
