"""Audit of a table of results: what in it cannot be, and what in it cannot be compared.

Any table will do, published or one's own: a row is a method on a data set. The checks need nothing
but the table, except that of untrained floors, which needs to know the data set:

===============  ==================================================================================
``impossible``   HR, NDCG and MRR that no ranking has together; a metric outside 0 to 1
``doubtful``     the same, but less than half a unit of the last digit beyond rounding, so that one
                 more rounding on the way would explain it
``below floor``  a metric below that of a method that only counts, on the same data
``unequal``      rows of one data set with different losses, epochs or numbers of trials
``candidates``   rows ranked among sampled items, or among different numbers of them
``seen items``   nobody says whether seen items were hidden, or rows differ in it
``duplicate``    two rows with the same metrics throughout
===============  ==================================================================================

:func:`read_table` reads a CSV file of this shape: a header, then a row for each method and data
set. ``method`` is required. ``dataset``, ``loss``, ``epochs``, ``trials``, ``candidates``
(``full`` or ``uniform:N``), ``filter_seen`` (``true`` or ``false``), ``users``, ``items`` and
``note`` are optional, and every other column is a metric, such as ``HR@10``, ``NDCG@10`` or
``MRR``, as a share of 1. Empty cells say that nothing is known.

It reads our own tables, too: ``results.json`` of a study, and what ``diffuserec results --format
csv`` prints. Rows are compared with others of the same data set, split and protocol. That training
was ended by validation after different epochs is no finding; different limits are, in the JSON.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffuserec.errors import ConfigError, DataError, did_you_mean
from diffuserec.evaluation.metrics import Metric, parse_metric
from diffuserec.evaluation.significance import Violation, check_consistency
from diffuserec.files import read_document

Check = Literal[
    "impossible",
    "doubtful",
    "below floor",
    "unequal",
    "candidates",
    "seen items",
    "duplicate",
]


@dataclass(frozen=True)
class TableRow:
    """One method on one data set, as a table says it.

    Attributes:
        method: name of the method.
        metrics: values by name, as shares of 1.
        dataset: name of the data set; empty in a table of one.
        decimals: digits after the point that the values were rounded to.
        loss: of the training; None where it is not said, like the fields below.
        epochs: of the training.
        trials: settings that were tried before this row was chosen.
        candidates: items that a target was ranked among, ``full`` or ``uniform:N``.
        filter_seen: whether seen items were hidden.
        n_users: users of the data set.
        n_items: items of the data set.
        split: how the data set was divided, where it is said and is not leave-one-out.
        protocol: of a table of a study, where it is not the full ranking: its rows are compared
            with no others.
        is_floor: whether it is a method that only counts, measured as the rows beside it.
    """

    method: str
    metrics: Mapping[str, float]
    dataset: str = ""
    decimals: int = 4
    loss: str | None = None
    epochs: float | None = None
    trials: float | None = None
    candidates: str | None = None
    filter_seen: bool | None = None
    n_users: int | None = None
    n_items: int | None = None
    split: str = ""
    protocol: str = ""
    is_floor: bool = False

    @property
    def table(self) -> str:
        """Name of the rows that it stands among: the data set and what is special of it."""
        return ", ".join(word for word in (self.dataset, self.split, self.protocol) if word)


@dataclass(frozen=True)
class Finding:
    """Something in a table that is wrong, or that keeps rows from being compared.

    Attributes:
        check: name of the check.
        dataset: name of the data set, with split and protocol if it has several; empty in a table
            of one.
        methods: names of the methods concerned.
        message: what is wrong, with the numbers.
    """

    check: Check
    dataset: str
    methods: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Audit:
    """Findings about one table.

    Attributes:
        n_rows: rows that were checked.
        findings: what was found; empty for a clean table.
        unchecked: what could not be checked, and why.
    """

    n_rows: int
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...] = ()

    def summary(self) -> str:
        """How many rows each kind of finding concerns, in one line."""
        rows = {
            check: len({(f.dataset, method) for f in self.of(check) for method in f.methods})
            for check in dict.fromkeys(finding.check for finding in self.findings)
        }
        counts = ", ".join(f"{check} {n}" for check, n in rows.items())
        return f"of {self.n_rows} rows: {counts}" if rows else f"{self.n_rows} rows, no finding"

    def of(self, check: Check) -> tuple[Finding, ...]:
        """The findings of one check."""
        return tuple(finding for finding in self.findings if finding.check == check)


def audit(rows: Sequence[TableRow], floors: Sequence[TableRow] | None = None) -> Audit:
    """Checks a table of results; see the list of checks above.

    Args:
        rows: the table.
        floors: rows of methods that only count, to be cleared by all rows of a data set of as many
            users and items or, where either side does not say how many, of the same name; by
            default those that stand in the table, or else :func:`known_floors`.

    Raises:
        ConfigError: a metric that is not known.
    """
    findings: list[Finding] = []
    unchecked: list[str] = []
    for row in rows:
        findings += _impossible(row)
    for table in dict.fromkeys(row.table for row in rows):
        mine = [row for row in rows if row.table == table]
        own = [row for row in mine if row.is_floor]
        if own and floors is None:
            found, why = _below(mine, own), ""
        else:
            found, why = _below_floors(mine, known_floors() if floors is None else floors)
        findings += found + _unequal(mine) + _mixed_protocols(mine) + _duplicates(mine)
        unchecked += [f"{table or 'the table'}: {why}"] if why else []
    return Audit(len(rows), tuple(findings), tuple(unchecked))


def mrr_bounds(
    metrics: Mapping[str, float], decimals: int | None = 4
) -> tuple[float, float] | None:
    """The least and the greatest MRR that rankings with these hit rates and NDCGs can have.

    A linear program over the share of targets at each rank up to the greatest cutoff, half ranks
    included, and beyond it; a target beyond cutoff k adds at most 1 / (k + 1).

    Args:
        metrics: HR and NDCG at any cutoffs; others are passed over.
        decimals: digits that the values were rounded to; None when not rounded.

    Returns:
        The bounds, or None if no ranking has these hit rates and NDCGs.
    """
    from scipy.optimize import linprog  # type: ignore[attr-defined]  # not on top: as in paired

    half = 1e-9 + (0.5 * 10.0**-decimals if decimals is not None else 0.0)
    named = {parse_metric(name): value for name, value in metrics.items()}
    known = {m: v for m, v in named.items() if m.name in ("HR", "NDCG")}
    n = max((metric.k or 0 for metric in known), default=0)
    # 0-based ranks inside the list, by halves; the nearest rank outside; one infinitely far away
    ranks = np.append(np.arange(0, n, 0.5), [n, np.inf])
    within = [metric.per_user(ranks) for metric in known]
    values = np.array(list(known.values()))
    gains = 1.0 / (ranks + 1.0)
    ends = []
    for sign in (1.0, -1.0):
        solved = linprog(
            sign * gains,
            A_ub=np.vstack([*within, *(-w for w in within)]) if within else None,
            b_ub=np.concatenate([values + half, half - values]) if within else None,
            A_eq=np.ones((1, len(ranks))),
            b_eq=[1.0],
            bounds=(0, 1),
        )
        if not solved.success:
            return None
        ends.append(sign * float(solved.fun))
    return ends[0], ends[1]


def read_table(path: Path | str) -> list[TableRow]:
    """Reads a table of results, CSV or ``results.json``; the module's docstring describes both.

    The digits that a column of a CSV file was rounded to are those of its longest value.

    Raises:
        DataError: the file is missing, neither CSV in UTF-8 nor results of a study, or a cell is
            not what its column holds.
        ConfigError: a column that is not known.
    """
    file = Path(path)
    if file.suffix == ".json":
        return _read_results(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error
    return _parse_table(text, file.name)


def _read_results(file: Path) -> list[TableRow]:
    """Rows of all tables of a study, without those that failed."""
    try:
        document = read_document(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if document.get("format") != "diffuserec-results":
        raise DataError(f"{file} holds no results of a study: 'diffuserec study' makes them")
    try:
        return [row for table in document["tables"] for row in _rows_of(table)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{file} is damaged or of another release ({error!r}): run the study again"
        ) from error


def _rows_of(table: Mapping[str, Any]) -> list[TableRow]:
    candidates, filter_seen = _parts_of_protocol(table["protocol"])
    facts: dict[str, Any] = {
        "dataset": table["data"],
        "decimals": 9,
        "candidates": candidates,
        "filter_seen": filter_seen,
        "split": _unusual(table["split"], table["part"]),
        "protocol": table["protocol"] if table["protocol"] != "full" else "",
    }
    users = re.search(r"users ([\d,]*\d)(?:, too short ([\d,]*\d))?", table["line"])
    items = re.search(r"of ([\d,]+) items", table["line"])
    if users is not None:
        facts["n_users"] = sum(int(n.replace(",", "")) for n in users.groups() if n)
    if items is not None:
        facts["n_items"] = int(items[1].replace(",", ""))
    return [
        TableRow(
            method=row["name"],
            metrics={name: float(cell["value"]) for name, cell in row["metrics"].items()},
            epochs=_as_float(limit := row.get("epoch_limit")),
            trials=_as_float(row["trials"] if limit is not None else None),
            is_floor=bool(row.get("floor")),
            **facts,
        )
        for row in table["rows"]
        if row["metrics"]
    ]


def _unusual(split: str, part: str) -> str:
    """What is special of a split and its part; empty for the test part of leave-one-out."""
    return ", ".join([split] * (split != _USUAL) + [part] * (part != "test"))


def _as_float(number: int | None) -> float | None:
    return None if number is None else float(number)


_USUAL = "leave-one-out"


def _parts_of_protocol(protocol: str) -> tuple[str, bool]:
    """Candidates and whether seen items are hidden, of a protocol such as ``full, seen kept``."""
    parts = [part.strip() for part in protocol.split(",")]
    candidates = next((part for part in parts if part != _KEPT), "full")
    return candidates, _KEPT not in parts


_KEPT = "seen kept"


def known_floors() -> list[TableRow]:
    """Floors of data sets that many papers share: methods that count, leave-one-out, full ranking.

    Measured with this package where it has the log; ties get the mean rank.
    """
    text = files("diffuserec.evaluation").joinpath("floors.csv").read_text(encoding="utf-8")
    return _parse_table(text, "floors.csv")


_FACTS = (
    *("method", "dataset", "loss", "epochs", "trials"),
    *("candidates", "filter_seen", "users", "items", "note"),
)
_OWN_FACTS = (
    *("data", "split", "protocol", "part", "seeds"),
    *("against", "seconds", "looks", "not ranked"),
)
"""Further columns of what ``diffuserec results --format csv`` prints, known by its protocol."""


def _parse_table(text: str, name: str) -> list[TableRow]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(lines, [])]
        table = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(line)]
    except csv.Error as error:
        raise DataError(f"{name}, line {lines.line_num}: not CSV ({error})") from error
    own = "protocol" in header
    metrics = _metric_columns(header, name, own)
    if not table:
        raise DataError(f"{name} has no row: give a method and its metrics on each line")
    for line, cells in table:
        if len(cells) != len(header):
            raise DataError(
                f"{name}, line {line}: {len(cells)} cells, and the header has {len(header)}"
            )
    digits = [
        max(_n_decimals(cells[header.index(column)]) for _, cells in table) for column in metrics
    ]
    rows = []
    for line, cells in table:
        given = {column: cell for column, cell in zip(header, cells, strict=True) if cell}
        where = f"{name}, line {line}"
        if "method" not in given:
            raise DataError(f"{where}: no method: name it")
        if own:
            given = _said_as_usual(given)
            if not metrics.keys() & given.keys():
                continue  # a row that failed
        numbers = {
            name_: _number(given, name_, where) for name_ in ("epochs", "trials", "users", "items")
        }
        values = {
            spelled: _share(given[column], column, where)
            for column, spelled in metrics.items()
            if column in given
        }
        used = [d for column, d in zip(metrics, digits, strict=True) if column in given]
        rows.append(
            TableRow(
                method=given["method"],
                metrics=values,
                dataset=given.get("dataset", ""),
                decimals=min(used, default=4),
                loss=given.get("loss"),
                epochs=numbers["epochs"],
                trials=numbers["trials"],
                candidates=_candidates(given.get("candidates"), where),
                filter_seen=_flag(given.get("filter_seen"), where),
                n_users=None if numbers["users"] is None else int(numbers["users"]),
                n_items=None if numbers["items"] is None else int(numbers["items"]),
                split=given.get("split", "") if own else "",
                protocol=given.get("protocol", "") if own else "",
            )
        )
    return rows


def _said_as_usual(given: Mapping[str, str]) -> dict[str, str]:
    """A line of our own table with the columns of any: its epochs are where validation ended it."""
    said = {column: cell for column, cell in given.items() if column not in ("data", "epochs")}
    candidates, filter_seen = _parts_of_protocol(given.get("protocol", "full"))
    said |= {"candidates": candidates, "filter_seen": str(filter_seen)}
    said |= {"dataset": given["data"]} if "data" in given else {}
    said["split"] = _unusual(said.get("split", _USUAL), said.get("part", "test"))
    if said.get("protocol") == "full":
        del said["protocol"]
    if "epochs" not in given:
        said.pop("trials", None)  # nothing was trained
    return said


def _metric_columns(header: Sequence[str], name: str, own: bool) -> dict[str, str]:
    """For each column of a metric, the one spelling of its name."""
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise DataError(f"{name}: column {twice[0]!r} stands twice in the header: rename one")
    if "method" not in header:
        raise DataError(f"{name}: no column 'method' among: {', '.join(header) or 'none'}")
    metrics: dict[str, str] = {}
    for column in header:
        if column in _FACTS or (own and column in _OWN_FACTS):
            continue
        if own and column.endswith((" ±", " published")):
            continue
        try:
            spelled = str(parse_metric(column))
        except ConfigError as error:
            hint = did_you_mean(column, _FACTS)
            raise ConfigError(
                f"{name}: column {column!r} is neither a metric nor a known fact{hint}; facts are: "
                f"{', '.join(_FACTS)}; {error}"
            ) from error
        if spelled in metrics.values():
            raise DataError(f"{name}: two columns are {spelled}: leave one out")
        metrics[column] = spelled
    if not metrics:
        raise DataError(f"{name}: no column is a metric: give some, such as HR@10 and NDCG@10")
    return metrics


def _n_decimals(cell: str) -> int:
    digits = cell.lower().partition("e")[0].partition(".")[2]
    return len(digits)


def _share(cell: str, column: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {cell!r} in column {column!r} is not a number")
    if value > 1:
        raise DataError(
            f"{where}: {cell} in column {column!r} is above 1: give shares, not percent"
        )
    return value


def _number(given: Mapping[str, str], column: str, where: str) -> float | None:
    if column not in given:
        return None
    try:
        value = float(given[column].replace(",", ""))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(
            f"{where}: {given[column]!r} in column {column!r} is not a number from 0 up"
        )
    return value


def _flag(cell: str | None, where: str) -> bool | None:
    if cell is None:
        return None
    if cell.lower() not in ("true", "false"):
        raise DataError(f"{where}: {cell!r} in column 'filter_seen' is neither true nor false")
    return cell.lower() == "true"


def _candidates(cell: str | None, where: str) -> str | None:
    if cell is None or cell == "full":
        return cell
    kind, _, number = cell.partition(":")
    if kind != "uniform" or not number.isdecimal():
        raise DataError(f"{where}: {cell!r} in column 'candidates' is neither full nor uniform:N")
    return cell


def _impossible(row: TableRow) -> list[Finding]:
    """What no ranking can have: shares, pairs of HR and NDCG, hit rates that shrink, an MRR."""

    def found(check: Check, message: str) -> Finding:
        return Finding(check, row.table, (row.method,), message)

    findings = []
    half = 0.5 * 10.0**-row.decimals
    named = {parse_metric(name): value for name, value in row.metrics.items()}
    of_ranks = {metric: value for metric, value in named.items() if metric.is_per_user}
    outside = [f"{metric} is {value}" for metric, value in of_ranks.items() if not 0 <= value <= 1]
    if outside:
        return [found("impossible", f"{', '.join(outside)}, and it is a share of 1")]
    pairs = {str(m): value for m, value in of_ranks.items() if m.name in ("HR", "NDCG")}
    violations = check_consistency({row.method: pairs}, row.decimals)
    for violation in violations:
        check: Check = "impossible" if _excess(violation, half) > half else "doubtful"
        findings.append(found(check, str(violation).removeprefix(f"{row.method}: ")))
    for name in ("HR", "NDCG"):  # of cutoffs where the other metric is not given
        cuts = sorted(metric.k for metric in of_ranks if metric.name == name and metric.k)
        for a, b in combinations(cuts, 2):
            less = of_ranks[Metric(name, a)] - of_ranks[Metric(name, b)]
            if less > 2 * half + 1e-9 and not violations:
                findings.append(found("impossible", f"{name}@{b} is below {name}@{a}"))
    if Metric("MRR") in of_ranks and not findings:
        findings += [found("impossible", text) for text in _impossible_mrr(row, pairs, half)]
    return findings


def _impossible_mrr(row: TableRow, pairs: Mapping[str, float], half: float) -> list[str]:
    mrr, bounds = row.metrics["MRR"], mrr_bounds(pairs, row.decimals)
    if bounds is None:
        return ["HR and NDCG at all cutoffs together are of no ranking"]
    low, high = bounds
    if low - half - 1e-9 <= mrr <= high + half + 1e-9:
        return []
    digits = max(row.decimals, 4)
    return [f"MRR is {mrr:.{digits}f}, and HR and NDCG allow only {low:.4f} to {high:.4f}"]


def _excess(violation: Violation, half: float) -> float:
    """How far a gain is beyond what rounding of its numbers explains, with whole ranks."""
    a, b = violation.cutoffs
    n_rounded = 1 if a == 0 else 2
    most, least = 1 / math.log2(a + 2), 1 / math.log2(b + 1)
    hits = violation.most / most
    return max(
        violation.gain - hits * most - n_rounded * half * (1 + most),
        hits * least - violation.gain - n_rounded * half * (1 + least),
        -hits - n_rounded * half,
    )


def _below_floors(
    rows: Sequence[TableRow], floors: Sequence[TableRow]
) -> tuple[list[Finding], str]:
    """Rows of one data set below a floor, and why nothing could be compared, if so."""
    if rows[0].split:
        return [], "floors are of the test part of leave-one-out"
    full = [row for row in rows if row.candidates in (None, "full")]
    if not full:
        return [], "floors are of full rankings, and its candidates are sampled"
    mine = [floor for floor in floors if _same_data(full[0], floor)]
    if not mine:
        return [], "no floor is known for this data set"
    return _below(full, mine), ""


def _below(rows: Sequence[TableRow], floors: Sequence[TableRow]) -> list[Finding]:
    """Rows with a metric below a floor that was measured alike; floors may be below each other."""
    findings = []
    for row in rows:
        if row.is_floor:
            continue
        below: dict[str, list[str]] = {}
        for name, value in row.metrics.items():
            least, method = _highest_floor(floors, name, row.filter_seen)
            if value < least - 10.0**-row.decimals:
                below.setdefault(method, []).append(f"{name} {value:.4f} < {least:.4f}")
        if below:
            text = "; ".join(f"{method}: {', '.join(less)}" for method, less in below.items())
            findings.append(Finding("below floor", row.table, (row.method,), text))
    return findings


def _highest_floor(
    floors: Sequence[TableRow], metric: str, filter_seen: bool | None
) -> tuple[float, str]:
    """The highest floor of a metric, and the method that it is of; -inf if there is none.

    A floor with seen items treated as in the row counts, if there is one. To a row that does not
    say, the lower of a method's two floors applies.
    """
    by_method: dict[str, list[TableRow]] = {}
    for floor in floors:
        if metric in floor.metrics:
            by_method.setdefault(floor.method, []).append(floor)
    best = (-math.inf, "")
    for method, both in by_method.items():
        alike = [floor for floor in both if filter_seen in (None, floor.filter_seen)] or both
        lowest = min(alike, key=lambda floor: floor.metrics[metric])
        treated = f"{method} with seen items {_SEEN[lowest.filter_seen]}"
        best = max(best, (lowest.metrics[metric], treated))
    return best


_SEEN = {True: "hidden", False: "kept", None: "not stated"}


def _same_data(row: TableRow, floor: TableRow) -> bool:
    if row.n_users and row.n_items and floor.n_users and floor.n_items:
        return (row.n_users, row.n_items) == (floor.n_users, floor.n_items)
    return row.dataset.lower() == floor.dataset.lower()


def _unequal(rows: Sequence[TableRow]) -> list[Finding]:
    """Rows of one data set whose training is known to differ."""
    findings = []
    for what in ("loss", "epochs", "trials"):
        groups = _grouped(rows, lambda row, what=what: getattr(row, what))
        if len(groups) > 1:
            findings.append(
                Finding("unequal", rows[0].table, _names(rows), f"{what}: {_listed(groups)}")
            )
    return findings


def _mixed_protocols(rows: Sequence[TableRow]) -> list[Finding]:
    """Sampled or different candidates, and seen items that are treated differently or not said."""

    def found(check: Check, message: str) -> Finding:
        return Finding(check, rows[0].table, _names(rows), message)

    findings = []
    by_candidates = _grouped(rows, lambda row: row.candidates)
    if len(by_candidates) > 1:
        findings.append(
            found("candidates", f"numbers cannot be compared: {_listed(by_candidates)}")
        )
    elif any(name != "full" for name in by_candidates):
        (name,) = by_candidates
        message = f"all rows: {name}; sampled metrics need not order methods as full rankings do"
        findings.append(found("candidates", message))
    by_seen = _grouped(rows, lambda row: row.filter_seen)
    unsaid = [row.method for row in rows if row.filter_seen is None]
    if len(by_seen) > 1:
        named = {_SEEN[key]: methods for key, methods in by_seen.items()}
        findings.append(found("seen items", f"numbers cannot be compared: {_listed(named)}"))
    elif unsaid and "full" in (*by_candidates, *(["full"] if not by_candidates else [])):
        whose = "all rows" if len(unsaid) == len(rows) else ", ".join(unsaid)
        findings.append(found("seen items", f"not said whether they were hidden: {whose}"))
    return findings


def _duplicates(rows: Sequence[TableRow]) -> list[Finding]:
    """Methods with the same values throughout; two values could agree by chance."""
    findings = []
    for one, other in combinations(rows, 2):
        if one.method == other.method:
            findings.append(
                Finding("duplicate", one.table, (one.method,), "the method stands twice")
            )
        elif len(one.metrics) > 2 and dict(one.metrics) == dict(other.metrics):
            message = f"the same {len(one.metrics)} metrics throughout"
            findings.append(Finding("duplicate", one.table, (one.method, other.method), message))
    return findings


def _grouped(rows: Iterable[TableRow], key: Any) -> dict[Any, list[str]]:
    """Methods by what is said of them; those of which nothing is said are left out."""
    groups: dict[Any, list[str]] = {}
    for row in rows:
        if key(row) is not None:
            groups.setdefault(key(row), []).append(row.method)
    return groups


def _listed(groups: Mapping[Any, Sequence[str]]) -> str:
    return "; ".join(
        f"{key:g} ({', '.join(names)})" if isinstance(key, float) else f"{key} ({', '.join(names)})"
        for key, names in groups.items()
    )


def _names(rows: Sequence[TableRow]) -> tuple[str, ...]:
    return tuple(row.method for row in rows)
