"""Tables and figures of a study's results, for a terminal, a page, a paper or another program."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffuserec.evaluation import GROUPS
from diffuserec.files import write_text
from diffuserec.reports.curves import Gains, draw_curves, draw_epochs, draw_gains
from diffuserec.studies.data_sets import parse_data
from diffuserec.studies.results import mean
from diffuserec.tables import Cell, Estimate, Record, format_table, stars_of

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; margin: 1.5rem 0 1rem; }}
caption, th:first-child {{ text-align: left; }}
caption {{ font-weight: 600; }}
th, td {{ padding: .25rem .75rem .25rem 0; white-space: nowrap; border-bottom: 1px solid gray; }}
</style>
"""
_ENDINGS = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}


def tables(
    document: Mapping[str, Any], format: str = "text", metrics: Sequence[str] | None = None
) -> str:
    """All tables of a study's results, with what was found in words, protocol and legend.

    Args:
        document: content of ``results.json``.
        format: one of ``TABLE_FORMATS``; CSV has the tables alone.
        metrics: columns, else those of the study.

    Raises:
        ConfigError: no such format.
    """
    shown = list(metrics or document["metrics"])
    if format == "csv":
        return _csv(document, shown)
    parts = []
    for table in document["tables"]:
        records = table_records(table, shown, document)
        parts.append(format_table(records, format, title=_title(table)))
        groups = _group_records(table, shown[0])
        if groups:
            parts.append(format_table(groups, format, title=f"{shown[0]} by group"))
        epochs = _epoch_records(table, document)
        if epochs:
            title = "NDCG@10 on validation by epoch, means over seeds"
            parts.append(format_table(epochs, format, title=title))
            kept = {record["method"] for record in epochs}
            lost = [r["name"] for r in table["rows"] if any(r.get("best_valid") or ())]
            lost = [name for name in lost if name not in kept]
            if lost:
                parts.append(_paragraph(f"Not kept by epoch: {', '.join(lost)}.", format))
        leaks = _leak_records(table)
        if leaks:
            parts.append(format_table(leaks, format, title="Leak meter"))
            parts.append(_paragraph(_LEAK_LEGEND, format))
        parts += [_paragraph(text, format) for text in _sentences(table, shown[0])]
    for some in sizes_of(document):
        records = _gain_records(gains_of(some, shown[0]))
        if records:
            title = f"{_log_title(some)}: gain in {shown[0]} by the number of users"
            parts.append(format_table(records, format, title=title))
    if document.get("said"):
        parts.append(_paragraph(f"The paper: {document['said']}", format))
    skipped = [f"{name} was left out: {why}" for name, why in document["skipped"].items()]
    small = ["Budget small: this shows that all of it runs, and is no result."]
    texts = skipped + small * (document["budget"] == "small") + [_LEGEND]
    parts += [_paragraph(text, format) for text in texts]
    return "\n".join(parts)


def _csv(document: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """One table for a program, whatever the number of data sets, splits and protocols."""
    records: list[Record] = []
    for table in document["tables"]:
        where = {what: table[what] for what in ("data", "split", "protocol", "part")}
        records += [
            {"method": record["method"], **where, **record}
            for record in table_records(table, metrics, document)
        ]
    return format_table(records, "csv") if records else ""


def _group_records(table: Mapping[str, Any], metric: str) -> list[Record]:
    """A metric by group of histories and of targets, a column for each group that has users."""
    records: list[Record] = []
    sizes: dict[str, Cell] = {}
    for row in table["rows"]:
        found = {g["group"]: g for g in row.get("groups", ()) if g["metric"] == metric}
        sizes |= {group: cell["n_users"] for group, cell in found.items()}
        if found:
            cells = {group: Estimate(g["value"], g["margin"]) for group, g in found.items()}
            records.append({"method": row["name"], **cells})
    return [{"method": "users", **sizes}, *records] if records else []


_EPOCHS = (1, 2, 5, 10, 20, 40, 60, 100, 150, 200)
"""Columns of validation by epoch, where no published curve gives others."""


def _epoch_records(table: Mapping[str, Any], document: Mapping[str, Any]) -> list[Record]:
    """Validation by epoch where that is the study's part, as far as every seed of a row trained."""
    rows = epochs_of(table)
    if not rows:
        return []
    records: list[Record] = []
    columns = [e for e in _EPOCHS if e <= max(len(c) for row in rows for c in row["curve"])]
    published = document.get("published_curve")
    if published:
        columns = published["epochs"]
        values = dict(zip(columns, published["values"], strict=True))
        records.append(_epoch_record(published["name"], columns, values))
    for row in rows:
        reached = [e for e in columns if all(len(curve) >= e for curve in row["curve"])]
        means = {e: statistics.fmean(curve[e - 1] for curve in row["curve"]) for e in reached}
        record = _epoch_record(row["name"], columns, means)
        record["best"] = Estimate(statistics.fmean(row["best_valid"]))
        record["at epoch"] = "/".join(str(epoch) for epoch in row["best_epoch"])
        record["seconds to it"] = _rounded(mean(row["seconds_to_best"]))
        records.append(record)
    return records


def _epoch_record(
    name: str, columns: Sequence[int], values: Mapping[int, float]
) -> dict[str, Cell]:
    shown = {str(e): Estimate(values[e]) if e in values else None for e in columns}
    return {"method": name, **shown, "best": None, "at epoch": None, "seconds to it": None}


def epochs_of(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of a table of the validation part whose validation by epoch is known, of every seed.

    Training validates under the protocol ``full``, so that other tables have none.
    """
    is_theirs = (table["part"], table["protocol"]) == ("valid", "full")
    rows = table["rows"] if is_theirs else []
    return [row for row in rows if row.get("curve") and all(row["curve"])]


def _leak_records(table: Mapping[str, Any]) -> list[Record]:
    """What the leak meter found of each augmented row, means over its seeds."""
    records: list[Record] = []
    for row in table["rows"]:
        leaks = [leak for leak in row.get("leak", ()) if leak is not None]
        if leaks:
            record: dict[str, Cell] = {"method": row["name"]}
            for part in ("training", "sample", "served", "validation", "test"):
                shares = [leak[part] and leak[part]["share"] for leak in leaks]
                record[part] = mean(shares)
            for part in ("training", "validation", "test"):
                cosines = [leak[part] and leak[part]["cosine"] for leak in leaks]
                record[f"cosine, {part}"] = mean(cosines)
            records.append(record)
    return records


def _gain_records(gains: Gains) -> list[Record]:
    """Gains of each row over its reference, a column for each number of users."""
    sizes = sorted(
        {p["users"] for rows in gains.values() for found in rows.values() for p in found}
    )
    records: list[Record] = []
    for reference, rows in gains.items():
        for name, found in rows.items():
            cells: dict[str, Cell] = {f"{size:,}": None for size in sizes}
            for p in found:
                margin = None if p["low"] is None else (p["high"] - p["low"]) / 2
                cells[f"{p['users']:,}"] = Estimate(p["difference"], margin, stars_of(p["p_holm"]))
            records.append({"method": name, "against": reference, **cells})
    return records


_LEAK_LEGEND = (
    "Leak meter: share of targets that are among the items generated in front of them, and mean "
    "cosine to those. A sample of the training targets is also measured as it is served: more in "
    "the sample than when served is a leak. Validation and test may be lower without one."
)

_LEGEND = (
    "± half of the 95 % interval over users; stars and intervals of differences: against the row "
    "that is named, with Holm's correction (* p < .05, ** p < .01, *** p < .001). trials: "
    "different settings of the method that were validated on this data; looks: at its test part. "
    "Rows under 'not ranked' had another effort."
)


def _title(table: Mapping[str, Any]) -> str:
    words = [table["data"]]
    words += [table["split"]] * (table["split"] != "leave-one-out")
    words += [table["protocol"]] * (table["protocol"] != "full")
    return ", ".join(words)


def _log_title(some: Sequence[Mapping[str, Any]]) -> str:
    """Title of tables of one log with different numbers of its users."""
    return _title({**some[0], "data": parse_data(some[0]["data"])[0]})


def table_records(
    table: Mapping[str, Any], metrics: Sequence[str], document: Mapping[str, Any]
) -> list[Record]:
    """A record for each row of a table, those that stand in one order first.

    A table of a curve or of a paper keeps its order; others are ordered by the first metric.
    """
    rows = list(table["rows"])
    if not document["published"] and not any(row["point"] for row in rows):
        rows.sort(key=lambda row: (bool(row["unranked"]), -_value(row, metrics[0])))
    best = {
        metric: max((_value(row, metric) for row in rows if not row["unranked"]), default=0.0)
        for metric in metrics
    }
    return [_record(row, metrics, best, document) for row in rows]


def _value(row: Mapping[str, Any], metric: str) -> float:
    found = row["metrics"].get(metric)
    return float(found["value"]) if found else float("-inf")


def _record(
    row: Mapping[str, Any],
    metrics: Sequence[str],
    best: Mapping[str, float],
    document: Mapping[str, Any],
) -> Record:
    record: dict[str, Cell] = {"method": row["name"], "seeds": len(row["seeds"])}
    compared = row["difference"] or {}
    for metric in metrics:
        cell = row["metrics"].get(metric)
        if cell is None:
            record[metric] = None
            continue
        stars = stars_of(compared.get(metric, {}).get("p_holm"))
        value = float(cell["value"])
        bold = not row["unranked"] and value == best[metric]
        record[metric] = Estimate(value, cell["margin"], stars, bold)
    if "published" in row:
        published = row["published"]
        record |= {f"{metric} published": published.get(metric) for metric in metrics}
    record["against"] = next((c["reference"] for c in compared.values()), None)
    record["epochs"] = "/".join(str(n) for n in row.get("epochs", []) if n) or None
    record["seconds"] = _rounded(mean(row.get("seconds", [])))
    record["trials"] = row["trials"]
    record["looks"] = max(row.get("looks_at_test", []), default=0)
    record["not ranked"] = row["failed"] or row["unranked"]
    return record


def _rounded(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _sentences(table: Mapping[str, Any], metric: str) -> list[str]:
    """What the comparisons say, in words, and how it was measured."""
    compared = [
        (row["name"], found)
        for row in table["rows"]
        if (found := (row["difference"] or {}).get(metric)) and found["p_holm"] is not None
    ]
    sentences = []
    for what in _VERDICTS:
        names = [f"{name} ({_gain(found)})" for name, found in compared if _verdict(found) == what]
        sentences += [f"{metric}, {what}: {', '.join(names)}."] if names else []
    least = [found["detectable"] for _, found in compared if found["detectable"] is not None]
    if least:
        sentences.append(
            f"With so many users and seeds, a true difference in {metric} is found four times in "
            f"five if it is {min(least):.4f} to {max(least):.4f}, by the pair."
        )
    sentences += [table["line"]] * bool(table["line"])
    sentences += [f"Tests take {table['random']}."] * bool(table["random"])
    sentences += _devices(table["rows"])
    return sentences + [f"Note: {note}." for note in table["notes"]]


def _devices(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was trained where; nothing if all of it was on a CPU."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["metrics"] and row.get("epochs") and not row.get("floor"):
            devices = row.get("devices") or [row["environment"]["device"]]  # a copy may be older
            found.setdefault(" and ".join(devices), []).append(row["name"])
    if set(found) <= {"cpu"}:
        return []
    if len(found) == 1:
        return [f"Trained on {next(iter(found))}."]
    return [
        *(f"Trained on {device}: {'; '.join(names)}." for device, names in sorted(found.items())),
        "Seconds of different devices do not compare.",
    ]


_VERDICTS = ("significantly above", "no difference shown", "significantly below")


def _verdict(found: Mapping[str, Any]) -> str:
    above, level, below = _VERDICTS
    if found["p_holm"] >= 0.05:
        return level
    return above if found["difference"] > 0 else below


def _gain(found: Mapping[str, Any]) -> str:
    interval = f"[{found['low']:+.4f}, {found['high']:+.4f}]"
    return f"{found['difference']:+.4f} {interval} from {found['reference']}"


def _paragraph(text: str, format: str) -> str:
    if format == "html":
        return f"<p>{escape(text)}</p>\n"
    if format == "latex":
        return f"% {text}\n"
    return f"{text}\n"


def side_by_side(
    documents: Sequence[Mapping[str, Any]], format: str = "text", metrics: Sequence[str] = ()
) -> str:
    """One table of several studies: a row a name, a column for each data set and metric.

    The first protocol of each study is shown. A row that is not ranked has a dagger.
    """
    records: dict[str, dict[str, Cell]] = {}
    columns: list[str] = []
    for document in documents:
        shown = list(metrics or document["metrics"])
        first = document["tables"][0]["protocol"]
        for table in (t for t in document["tables"] if t["protocol"] == first):
            names = [f"{table['data']} {metric}" for metric in shown]
            columns += names
            for row in table["rows"]:
                for name, metric in zip(names, shown, strict=True):
                    found = row["metrics"].get(metric)
                    if found is not None:
                        text = f"{found['value']:.4f}{' †' if row['unranked'] else ''}"
                        records.setdefault(row["name"], {})[name] = text
    order = sorted(records, key=lambda name: str(records[name].get(columns[0], "")), reverse=True)
    lines: list[Record] = [
        {"": name} | {column: records[name].get(column) for column in columns} for name in order
    ]
    note = "† another effort: it ran out of epochs, or has fewer seeds."
    return format_table(lines, format) + (
        "" if format == "csv" else "\n" + _paragraph(note, format)
    )


def write_tables(document: Mapping[str, Any], out: Path) -> None:
    """Writes the tables in every format, and the figures, beside the results."""
    for format, ending in _ENDINGS.items():
        text = tables(document, format)
        if format == "html":
            text = f"{_PAGE.format(title=escape(document['title']))}{text}"
        write_text(out / f"table.{ending}", text)
    write_curves(document, out)


def write_curves(document: Mapping[str, Any], out: Path, prefix: str = "") -> None:
    """Writes figures of what a study has: curves of a grid, validation by epoch, gains by size.

    Args:
        prefix: of the names of the files.
    """
    for number, table in enumerate(document["tables"]):
        curves = curves_of(table)
        if curves:
            name = "curve.svg" if len(document["tables"]) == 1 else f"curve-{number + 1}.svg"
            title = f"{document['title']}: {_title(table)}"
            draw_curves(out / f"{prefix}{name}", title, curves, document["metrics"][:2])
        rows = epochs_of(table)
        if rows:
            name = "epochs.svg" if len(document["tables"]) == 1 else f"epochs-{number + 1}.svg"
            title = f"{document['title']}: {_title(table)}"
            draw_epochs(out / f"{prefix}{name}", title, rows, document.get("published_curve"))
    metric = document["metrics"][0]
    series = sizes_of(document)
    for number, some in enumerate(series):
        place = "" if len(series) == 1 else f"-{number + 1}"
        for group in ("all", *(group for names in GROUPS.values() for group in names)):
            gains = gains_of(some, metric, group)
            if gains:
                which = "" if group == "all" else f"-{group}"
                title = f"{document['title']}: {_log_title(some)}{which.replace('-', ', ')}"
                draw_gains(out / f"{prefix}gains{place}{which}.svg", title, gains, metric)


def sizes_of(document: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Tables of one log with different numbers of its users, by log, split and protocol."""
    found: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for table in document["tables"]:
        log = (parse_data(table["data"])[0], table["split"], table["protocol"])
        if table.get("users"):
            found.setdefault(log, {})[table["users"]] = table
    return [list(by_size.values()) for by_size in found.values() if len(by_size) > 1]


def gains_of(tables: Sequence[Mapping[str, Any]], metric: str, group: str = "all") -> Gains:
    """Differences of rows from their references in tables of several sizes of a log.

    Floors are left out, and so are rows that others are compared with.
    """
    gains: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for table in tables:
        overall = {row["name"]: (row["difference"] or {}).get(metric) for row in table["rows"]}
        references = {found["reference"] for found in overall.values() if found}
        for row in table["rows"]:
            if row["floor"] or row["name"] in references:
                continue
            every = [{"group": "all", "metric": metric, **(overall[row["name"]] or {})}]
            for found in [*every, *row.get("group_differences", ())]:
                if (found["group"], found["metric"]) == (group, metric) and "reference" in found:
                    points = gains.setdefault(found["reference"], {}).setdefault(row["name"], [])
                    kept = ("difference", "low", "high", "p_holm")
                    points.append({"users": table["users"]} | {what: found[what] for what in kept})
    return gains


def curves_of(table: Mapping[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of a table by method and varied setting, for those that vary just one."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table["rows"]:
        if len(row["point"]) == 1 and row["metrics"]:
            (setting,) = row["point"]
            found.setdefault((row["name"].partition(",")[0], setting), []).append(row)
    return {key: rows for key, rows in found.items() if len(rows) > 1}
