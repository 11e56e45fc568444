"""Tables and pictures of what goes beyond the next item: lists, baskets, diversity, reliability."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuserec.reports.curves import LINE_COLORS, draw_svg
from diffuserec.tables import Cell, Estimate, Record, format_table, stars_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = {"list": ("*", "none"), "MMR": ("o", "-")}
_DRAWS = ("s", "--")


def draw_pareto(path: Path, diversity: Mapping[str, Any], metric: str) -> None:
    """Writes accuracy against diversity as an SVG: a color a method, a line a way to make a list.

    Args:
        diversity: ``points`` with ``method, way, setting, metrics``, and the ``least`` accuracy
            that counts as equal.
    """
    methods = list(dict.fromkeys(point["method"] for point in diversity["points"]))
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in diversity["points"]:
        lines.setdefault((point["method"], point["way"]), []).append(point)

    def draw(axes: Sequence["Axes"]) -> None:
        (panel,) = axes
        for (method, way), points in lines.items():
            if way == "MMR":  # which begins from the list itself
                points = [*lines.get((method, "list"), []), *points]
            color = LINE_COLORS[methods.index(method) % len(LINE_COLORS)]
            marker, line = _LOOKS.get(way, _DRAWS)
            x, y = (
                [point["metrics"][name]["value"] for point in points]
                for name in ("Diversity", metric)
            )
            label = method if way == "list" else f"{method}, {way}"
            panel.plot(x, y, color=color, marker=marker, linestyle=line, label=label)
        front = sorted(
            (point["metrics"]["Diversity"]["value"], point["metrics"][metric]["value"])
            for point in diversity["points"]
            if point["front"]
        )
        panel.plot(
            *zip(*front, strict=True), color="#57606a", linewidth=4, alpha=0.3, label="front"
        )
        panel.axhline(diversity["least"], color="#57606a", linewidth=1, linestyle=":")
        panel.set_xlabel("diversity within the list")
        panel.set_ylabel(metric)
        panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

    draw_svg(path, "Accuracy and diversity (dotted: equal accuracy)", 1, draw, width=7.5)


def draw_reliability(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes reliability diagrams as an SVG: before the temperature and after it.

    Args:
        rows: ``method``, and ``before`` and ``after`` with their ``bins`` and ``error``.
    """

    def draw(axes: Sequence["Axes"]) -> None:
        ends = [b["predicted"] for row in rows for w in ("before", "after") for b in row[w]["bins"]]
        for panel, when in zip(axes, ("before", "after"), strict=True):
            panel.plot([0, max(ends)], [0, max(ends)], color="#57606a", linewidth=1)
            for number, row in enumerate(rows):
                bins = row[when]["bins"]
                panel.errorbar(
                    [b["predicted"] for b in bins],
                    [b["observed"] for b in bins],
                    yerr=[b["margin"] for b in bins],
                    color=LINE_COLORS[number % len(LINE_COLORS)],
                    marker="o",
                    elinewidth=1,
                    label=f"{row['method']}: {row[when]['error']:.4f}",
                )
            panel.set_title(f"{when} the temperature", fontsize=10)
            panel.set_xlabel("probability of the first item")
            panel.set_ylabel("share of hits")
            panel.legend(frameon=False, fontsize=9, title="calibration error")

    draw_svg(path, "Reliability, in tenths of the users", 2, draw)


def beyond_tables(document: Mapping[str, Any], format: str = "text") -> str:
    """The tables of what was measured, with what must be known to read them.

    Args:
        document: as ``diffuserec.studies.beyond.beyond`` gives it.
        format: one of ``TABLE_FORMATS``; CSV has the tables alone.

    Raises:
        ConfigError: no such format.
    """
    parts: list[tuple[str, list[Record]]] = []
    lists, baskets = document["lists"], document["baskets"]
    made = {} if lists is None else {f"The next {lists['k']} items": lists}
    if baskets is not None:
        made["The last basket, by lists as long as it"] = baskets["as_long"]
        made[f"The last basket, by lists of {document['length']}"] = baskets["longer"]
    for title, table in made.items():
        rows: list[Record] = [
            {"method": row["method"]} | {m: _estimate(cell) for m, cell in row["metrics"].items()}
            for row in table["rows"]
        ]
        parts.append((f"{title}, against {table['against']}", rows))
    of_list = document["diversity"]
    parts.append(("Accuracy and diversity", [_point(point) for point in of_list["points"]]))
    title = (
        f"Most diverse with {of_list['equal']:.0%} of the first NDCG@{document['length']} on "
        "validation" + (f", against MMR of {of_list['against']}" if of_list["against"] else "")
    )
    parts += [(title, [_point(point) for point in of_list["best"]])] if of_list["best"] else []
    if document["calibration"]:
        rows = [_calibration_cells(row) for row in document["calibration"]]
        parts.append(("Probability of the first item", rows))
    if format == "csv":
        return "\n".join(format_table(rows, "csv") for _, rows in parts)
    text = "\n".join(format_table(rows, format, title=title) for title, rows in parts)
    return text + "\n" + "\n\n".join(_words(document)) + "\n"


def _estimate(cell: Mapping[str, Any]) -> Estimate:
    return Estimate(cell["value"], cell["margin"], stars_of(cell.get("p_holm")))


def _point(point: Mapping[str, Any]) -> Record:
    measured = {name: _estimate(cell) for name, cell in point["metrics"].items()}
    way = point["way"] + (f", {point['setting']:g}" if point["way"] != "list" else "")
    front = "yes" if point["front"] else None
    return {
        "method": point["method"],
        "list": way,
        **measured,
        "Coverage": point["coverage"],
        "front": front,
    }


def _calibration_cells(row: Mapping[str, Any]) -> Record:
    cells: dict[str, Cell] = {
        "method": row["method"],
        "temperature": Estimate(row["temperature"], decimals=3),
    }
    for what, name in (
        ("error", "calibration error"),
        ("log_loss", "log loss"),
        ("probability", "probability"),
        ("hits", "hits"),
    ):
        for when in ("before", "after"):
            cells[f"{name}, {when}"] = Estimate(row[when][what])
    return cells


def _words(document: Mapping[str, Any]) -> list[str]:
    words = [document["line"]]
    words += [
        f"Without {what}: {', '.join(names)}." for what, names in document["left_out"].items()
    ]
    lists, baskets, n_baskets = (document[name] for name in ("lists", "baskets", "n_baskets"))
    if baskets is not None:
        words.append(f"A basket has {baskets['mean_size']:.1f} items on average.")
    elif lists is None:
        words.append("No lists: train the runs with --split leave-last:k=5.")
    if baskets is None and n_baskets:
        words.append(
            f"No baskets: train the runs with --split leave-basket, which {n_baskets:,} users have."
        )
    elif baskets is None:
        words.append("No baskets: no user of this log ends with two items or more at one time.")
    return [
        *words,
        "± half of the 95 % interval over users; stars (* p < .05, ** p < .01, *** p < .001, Holm) "
        "against what the title names. Diversity: mean of 1 - cosine over the pairs of a list, "
        f"items alike by {document['alike_by']}. Draws: the places of a list take turns among so "
        "many draws; how many, and the weight of MMR, are chosen on validation where the most "
        "diverse lists are asked for. Front: no other list is more diverse or more accurate "
        "without being less of the other, by the means of the test part. Calibration error: mean "
        "distance of the first item's probability and its share of hits, in tenths of the users. "
        "The temperature is found on validation.",
    ]
