"""Tables of plain records: text, Markdown, LaTeX, CSV and HTML.

A record maps the names of columns to what stands there; columns come in the order in which the
records name them, and a record may leave some out. Whatever the texts hold is shown as text: each
format's special characters are escaped. CSV has numbers in full and texts as they are, so that a
program reads back what was written.
"""

import csv
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffuserec.errors import ConfigError, did_you_mean

TABLE_FORMATS = ("text", "markdown", "latex", "csv", "html")
"""Names of the formats of tables."""


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the number.
        margin: half of its interval, or None.
        stars: of its significance, or empty.
        bold: whether it stands out; not in CSV and text.
        decimals: digits shown after the point; CSV has all.
    """

    value: float
    margin: float | None = None
    stars: str = ""
    bold: bool = False
    decimals: int = 4


Cell = str | int | float | Estimate | None
Record = Mapping[str, Cell]

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def stars_of(p: float | None) -> str:
    """Stars of a p-value: one below .05, two below .01, three below .001; none if there is none."""
    return next((stars for level, stars in _STARS if p is not None and p < level), "")


def format_table(
    records: Sequence[Record], format: str = "text", *, title: str | None = None
) -> str:
    """A table of records, a line each.

    Args:
        records: at least one.
        format: one of ``TABLE_FORMATS``; LaTeX needs the package booktabs.
        title: above the table; in LaTeX its caption, in CSV left out.

    Returns:
        The table, with a line feed at the end.

    Raises:
        ConfigError: there is no such format.
    """
    if format not in TABLE_FORMATS:
        raise ConfigError(
            f"no table format {format!r}{did_you_mean(format, TABLE_FORMATS)}; there are: "
            f"{', '.join(TABLE_FORMATS)}"
        )
    columns = list(dict.fromkeys(name for record in records for name in record))
    numeric = [
        name for name in columns if all(not isinstance(record.get(name), str) for record in records)
    ]
    return _WRITERS[format](records, columns, numeric, title)


def format_facts(
    facts: Mapping[str, Cell], format: Literal["text", "html"] = "text", *, title: str
) -> str:
    """A table of two columns: names of facts, and what they are."""
    if format == "html":
        lines = [
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(shown(cell))}</td></tr>"
            for name, cell in facts.items()
        ]
        return f"<table>{_html_caption(title)}{''.join(lines)}</table>\n"
    return _boxed([[name, shown(cell)] for name, cell in facts.items()], [False, False], title)


def shown(cell: Cell) -> str:
    """What stands in a cell, as text: whole numbers with commas, others with four digits."""
    if cell is None:
        return ""
    if isinstance(cell, Estimate):
        margin = "" if cell.margin is None else f" ± {cell.margin:.{cell.decimals}f}"
        return f"{cell.value:.{cell.decimals}f}{margin}{cell.stars}"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return printable(str(cell))
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


def printable(text: str) -> str:
    """Text with line breaks and control characters written out, as they are in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_Writer = Callable[[Sequence[Record], Sequence[str], Sequence[str], str | None], str]


def _text(
    records: Sequence[Record], columns: Sequence[str], numeric: Sequence[str], title: str | None
) -> str:
    lines = [[shown(record.get(name)) for name in columns] for record in records]
    return _boxed(lines, [name in numeric for name in columns], title, columns)


def _boxed(
    lines: Sequence[Sequence[str]],
    right: Sequence[bool],
    title: str | None,
    columns: Sequence[str] = (),
) -> str:
    from rich.console import Console  # not on top: rich takes time, and few programs print
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=None if title is None else Text(printable(title)),
        title_justify="left",
        show_header=bool(columns),
    )
    for number, to_right in enumerate(right):
        head = Text(printable(columns[number])) if columns else ""
        table.add_column(head, justify="right" if to_right else "left", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None).print(table)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _markdown(
    records: Sequence[Record], columns: Sequence[str], numeric: Sequence[str], title: str | None
) -> str:
    def cell(content: Cell) -> str:
        text = _escaped_markdown(shown(content))
        return f"**{text}**" if isinstance(content, Estimate) and content.bold else text

    lines = [
        [_escaped_markdown(printable(name)) for name in columns],
        ["---:" if name in numeric else "---" for name in columns],
        *([cell(record.get(name)) for name in columns] for record in records),
    ]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table if title is None else f"{_escaped_markdown(printable(title))}\n\n{table}"


def _escaped_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~&#$])", r"\\\1", text)


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    "-": "{-}",  # two of them would be a dash
    "±": r"$\pm$",
}


def _latex(
    records: Sequence[Record], columns: Sequence[str], numeric: Sequence[str], title: str | None
) -> str:
    def cell(content: Cell) -> str:
        if not isinstance(content, Estimate):
            return _escaped_latex(shown(content))
        value = f"{content.value:.{content.decimals}f}"
        text = f"${value}$" if value.startswith("-") else value
        text = f"\\textbf{{{text}}}" if content.bold else text
        if content.margin is not None:
            text += f" $\\pm$ {content.margin:.{content.decimals}f}"
        return text + (f"$^{{{content.stars}}}$" if content.stars else "")

    lines = [
        "\\begin{tabular}{" + "".join("r" if name in numeric else "l" for name in columns) + "}",
        "\\toprule",
        " & ".join(_escaped_latex(printable(name)) for name in columns) + " \\\\",
        "\\midrule",
        *(" & ".join(cell(record.get(name)) for name in columns) + " \\\\" for record in records),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    if title is not None:
        caption = f"\\caption{{{_escaped_latex(printable(title))}}}"
        lines = ["\\begin{table}", "\\centering", caption, *lines, "\\end{table}"]
    return "\n".join(lines) + "\n"


def _escaped_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def _csv(
    records: Sequence[Record], columns: Sequence[str], numeric: Sequence[str], title: str | None
) -> str:
    with_margin = {
        name
        for record in records
        for name, cell in record.items()
        if isinstance(cell, Estimate) and cell.margin is not None
    }

    def cells(name: str, cell: Cell) -> list[str | int | float | None]:
        value, margin = (cell.value, cell.margin) if isinstance(cell, Estimate) else (cell, None)
        return [value, margin] if name in with_margin else [value]

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(
        text
        for name in columns
        for text in ([name, f"{name} ±"] if name in with_margin else [name])
    )
    for record in records:
        writer.writerow(part for name in columns for part in cells(name, record.get(name)))
    return out.getvalue()


def _html(
    records: Sequence[Record], columns: Sequence[str], numeric: Sequence[str], title: str | None
) -> str:
    def cell(tag: str, name: str, text: str) -> str:
        align = ' style="text-align: right"' if name in numeric else ""
        return f"<{tag}{align}>{text}</{tag}>"

    def text(content: Cell) -> str:
        escaped = html.escape(shown(content))
        bold = isinstance(content, Estimate) and content.bold
        return f"<strong>{escaped}</strong>" if bold else escaped

    head = "".join(cell("th", name, html.escape(printable(name))) for name in columns)
    lines = [
        "<tr>" + "".join(cell("td", name, text(record.get(name))) for name in columns) + "</tr>"
        for record in records
    ]
    body = "\n".join(lines)
    return (
        f"<table>{_html_caption(title)}\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n"
    )


def _html_caption(title: str | None) -> str:
    return "" if title is None else f"<caption>{html.escape(printable(title))}</caption>"


_WRITERS: Mapping[str, _Writer] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
}
