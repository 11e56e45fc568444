"""Printing of results on a terminal: tables on standard output, messages on standard error."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import polars as pl

    from diffuserec.evaluation import Evaluation
    from diffuserec.evaluation.audit import Audit
    from diffuserec.reports.inspection import Inspection, ShownView
    from diffuserec.reports.report import Report
    from diffuserec.tables import Record

_out = (
    Console(emoji=False) if sys.stdout.isatty() else Console(width=130, emoji=False)
)  # a pipe has no 80 columns
_err = Console(stderr=True, emoji=False)

_MOST_LINES = 200

# C0, DEL and C1, marks that change the direction of text, separators of lines, lone surrogates
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> Text:
    """A value as text: no markup, control characters written out, so that none reaches a terminal.

    A line break becomes ``\\n``, the escape character ``\\x1b``.
    """
    return Text(_CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text)))


def say(line: str) -> None:
    """Prints a message on standard error, in one line however long it is."""
    _err.print(plain(line), style="dim", markup=False, highlight=False, soft_wrap=True)


def print_error(line: str) -> None:
    """Prints an error on standard error, in one line however long it is."""
    _err.print(plain(line), style="red", markup=False, highlight=False, soft_wrap=True)


def print_line(line: str) -> None:
    """Prints text on standard output as it is, but for control characters other than line ends."""
    _out.print(Text("\n").join(map(plain, line.split("\n"))), markup=False, highlight=False)


def print_text(text: str) -> None:
    """Prints text on standard output, lines unbroken however long they are."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def print_json(content: Any) -> None:
    """Prints one JSON object on standard output."""
    print_text(json.dumps(content, indent=2, allow_nan=False, default=str))


@contextmanager
def transfer(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, if that is a terminal, for a file that comes over the network.

    Gives what takes the bytes that are there, and how many there will be.
    """
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    shown = bars.Progress(*columns, console=_err, disable=not _err.is_terminal, transient=True)
    with shown:
        task = shown.add_task(name, total=None, visible=False)
        yield lambda done, total: shown.update(task, completed=done, total=total, visible=True)


def facts(title: str, values: Mapping[str, Any]) -> None:
    """Prints a table of facts by name; whole numbers with commas."""
    shown = Table(title=plain(title), show_header=False)
    for name, value in values.items():
        shown.add_row(plain(name), plain(f"{value:,}" if isinstance(value, int) else value))
    _out.print(shown)


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints a table of texts; whatever they hold is shown as text, never as markup."""
    shown = Table()
    for column in columns:
        shown.add_column(plain(column))
    for line in lines:
        shown.add_row(*map(plain, line))
    _out.print(shown)


def settings(found: Sequence[Mapping[str, Any]]) -> None:
    """Prints hyper-parameters: name, type, default, what it means and when it is read."""
    shown = Table("setting", "type", "default", "meaning", show_lines=False)
    for setting in found:
        searched = f"Tuned over {setting['searched']}." if setting["searched"] else ""
        meaning = " ".join(filter(None, (setting["meaning"], setting["only_if"], searched)))
        kind = " ".join(filter(None, (setting["type"], setting["bounds"])))
        published = setting["as_published"]
        default = setting["default"] + f" (as published: {published})" * bool(published)
        shown.add_row(*map(plain, (setting["name"], kind, default, meaning)))
    _out.print(shown)


def lists(found: "pl.DataFrame") -> None:
    """Prints recommendations, the first of them if there are many."""
    shown = found.drop("n_unknown")
    lines = [[_cell(value) for value in values] for values in shown.head(_MOST_LINES).iter_rows()]
    table(shown.columns, lines)
    if shown.height > _MOST_LINES:
        say(f"the first {_MOST_LINES} of {shown.height:,} lines; --out FILE writes them all")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def report(found: "Report") -> None:
    """Prints a report as wide as the terminal."""
    print_line(found.text(width=_out.width))


def evaluation(found: "Evaluation", as_json: bool) -> None:
    """Prints metrics and protocol of an evaluation."""
    if as_json:
        print_text(found.to_json())
        return
    print_text(str(found))


def audits(found: "Mapping[str, Audit]") -> None:
    """Prints the findings about tables, and how many rows each kind of finding concerns."""
    for name, result in found.items():
        shown = Table("check", "data set", "methods", "finding", title=Text(name))
        for finding in result.findings:
            methods = finding.methods
            few = ", ".join(methods) if len(methods) < 4 else f"{len(methods)} methods"
            cells = (finding.check, finding.dataset, few, finding.message)
            shown.add_row(*(Text(cell) for cell in cells))
        if result.findings:
            _out.print(shown)
        print_line(f"{name}: {result.summary()}")
        for reason in result.unchecked:
            print_line(f"{name}: not checked: {reason}")


def inspection(found: "Inspection") -> None:
    """Prints users' sequences with their views, and metrics of the views."""
    from diffuserec.reports.inspection import metric_table

    for sequence in found.sequences:
        _out.print(plain(f"{found.method}, user {sequence.user}"))
        aligned = [view for view in sequence.views if view.aligned]
        if aligned:
            columns = Table()
            columns.add_column("position", justify="right")
            for heading in ("original", *sequence.confidences, *(view.name for view in aligned)):
                columns.add_column(plain(heading))
            for position, item in enumerate(sequence.items):
                columns.add_row(
                    str(position + 1),
                    plain(item),
                    *(f"{values[position]:.3f}" for values in sequence.confidences.values()),
                    *(_marked(view, position) for view in aligned),
                )
            _out.print(columns)
        else:
            _out.print(plain(f"original: {', '.join(sequence.items)}"))
        for view in sequence.views:
            if not view.aligned:
                items = Text(", ").join(_marked(view, at) for at in range(len(view.items)))
                same = view.items == sequence.items
                _out.print(plain(f"{view.name}: ") + (Text("the same items") if same else items))
        _out.print()
    print_line(
        "* another item than the original's, or one that it does not hold; "
        "= chosen anew, and the original's item again"
    )
    print_line(f"\nover {found.n_sequences:,} training sequences")
    by_view = Table("")
    for metrics in found.metrics:
        by_view.add_column(plain(metrics.view), justify="right")
    for label, cells in metric_table(found.metrics):
        by_view.add_row(label, *cells)
    _out.print(by_view)


def _marked(view: "ShownView", position: int) -> Text:
    signs = {"replaced": ("* ", "bold"), "kept": ("= ", "dim"), "": ("", "")}
    sign, style = signs[view.changes[position]]
    shown = plain(sign + view.items[position])
    shown.stylize(style)
    return shown


def records(found: "Sequence[Record]", as_json: bool) -> None:
    """Prints records as a table."""
    if as_json:
        print_json({"records": found})
    else:
        from diffuserec.tables import format_table

        print_text(format_table(found))
