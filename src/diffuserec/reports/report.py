"""Table of several evaluations, with protocol, spread over users and seeds, and significance.

The first method is the reference that all others are compared with, but for those that have one of
their own. Trivial baselines are methods like any other here: add their evaluations.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from math import isfinite
from typing import Any, Literal

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffuserec.errors import ConfigError
from diffuserec.evaluation import (
    GROUPS,
    Evaluation,
    Leak,
    Metric,
    compare,
    groups_of,
    holm,
    holm_levels,
    parse_metric,
    protocol_line,
)
from diffuserec.evaluation.oracle import Oracle
from diffuserec.evaluation.paired import ALPHA
from diffuserec.evaluation.significance import Comparison
from diffuserec.models.recommender import RECOMMENDERS
from diffuserec.tables import stars_of

_TABLES_OF_GROUPS = {
    ("history", "popularity"): "group",
    ("frequency",): "frequency",
}
"""Groupings that stand in one table, and what it is by: more columns would be cut."""

_NAMES = dict.fromkeys(("method", "dataset", "group", "metric"), pl.String)
_SIZES = dict.fromkeys(("n_seeds", "n_users"), pl.Int64)
_RESULTS = {**_NAMES, "seed": pl.Int64, "value": pl.Float64, "n_users": pl.Int64}
_SUMMARY = _NAMES | dict.fromkeys(("value", "margin", "seed_std"), pl.Float64) | _SIZES
_COMPARED = ("ours", "reference_value", "difference", "low", "high", "alpha", "p", "p_holm")
_FURTHER = ("p_wilcoxon", "se_users", "se_seeds", "df", "effect_size", "detectable")
_COUNTS = dict.fromkeys(("n_seeds", "n_seeds_reference", "n_users", "n_comparisons"), pl.Int64)
_COMPARISONS = (
    _NAMES | {"reference": pl.String} | dict.fromkeys((*_COMPARED, *_FURTHER), pl.Float64) | _COUNTS
)

Role = Literal["trained", "baseline", "oracle"]
"""Trained, a trivial baseline that needs no training, or the oracle, which knows the truth."""


@dataclass(frozen=True)
class Made:
    """How a run came about.

    Attributes:
        settings: hyper-parameters that are not the defaults, by name; those of the augmenter after
            its name and a dot.
        command: that makes the run again, or None where there is none.
        directory: of the run, or None.
        epochs: trained, or None where nothing was.
        seconds: of fitting and augmenting.
        facts: further ones by their headings, such as versions and the device.
        leak: what the leak meter found; None if no augmenter puts items in front of targets.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    directory: str | None = None
    epochs: int | None = None
    seconds: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    leak: Leak | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """Evaluations of several methods, ready for a table, a file or a page.

    Attributes:
        results: ``method, dataset, group, metric, seed, value, n_users``: every number measured;
            ``group`` is ``all`` or one of ``diffuserec.evaluation.GROUPS``, such as ``short``.
        summary: ``method, dataset, group, metric, value, margin, seed_std, n_seeds, n_users``:
            means over seeds; ``margin`` is half the width of the 95 % interval of the mean over
            users, ``seed_std`` the standard deviation over seeds (null where there is none).
        comparisons: each method against its reference, of the same data: ``method, dataset,
            group, metric, reference, ours, reference_value, difference, low, high, alpha, p,
            p_holm, p_wilcoxon, se_users, se_seeds, df, effect_size, detectable, n_seeds,
            n_seeds_reference, n_users, n_comparisons``; see :class:`PairedDifference`. ``p_holm``
            is ``p`` after Holm's correction for the ``n_comparisons`` of that data set and group.
            ``low`` and ``high`` are the interval at the level 1 - ``alpha`` at which Holm's
            procedure tested: it leaves out 0 exactly if ``p_holm`` is below 0.05.
            ``detectable`` is the smallest difference that would be found at 0.05 over
            ``n_comparisons``. What a single user cannot give is null.
        protocol: one line, or one for each data set.
        notes: warnings about these numbers, such as many hidden repeats.
        evaluations: the evaluations themselves, by method.
        made: how the runs of a method came about, where it is known, and whether their augmenter
            leaks targets into training.
    """

    results: pl.DataFrame
    summary: pl.DataFrame
    comparisons: pl.DataFrame
    protocol: str
    notes: tuple[str, ...]
    evaluations: dict[str, tuple[Evaluation, ...]]
    made: Mapping[str, Sequence[Made]] = field(default_factory=dict)

    @staticmethod
    def of(
        evaluations: Mapping[str, Evaluation | Sequence[Evaluation]],
        references: Mapping[str, str] | None = None,
        made: Mapping[str, Sequence[Made]] | None = None,
    ) -> "Report":
        """A report of results by method, the reference first.

        Args:
            evaluations: one run or several (seeds, data sets) of each method.
            references: methods that are compared with another one than the first, and which.
            made: how the runs of a method came about, where it is known.

        Raises:
            ConfigError: there are none, those of one data set were not measured the same way, or
                there is no evaluation of a reference.
        """
        unknown = {*(references or {}), *(references or {}).values()} - evaluations.keys()
        if unknown:
            raise ConfigError(f"no evaluation is called {', '.join(sorted(unknown))}")
        runs = {
            method: (given,) if isinstance(given, Evaluation) else tuple(given)
            for method, given in evaluations.items()
        }
        if not runs or not all(runs.values()):
            raise ConfigError("a report needs at least one evaluation of each method")
        every = [run for method_runs in runs.values() for run in method_runs]
        datasets = list(dict.fromkeys(run.protocol.dataset for run in every))
        cells = {
            (method, dataset): chosen
            for dataset in datasets
            for method, method_runs in runs.items()
            if (chosen := [run for run in method_runs if run.protocol.dataset == dataset])
        }
        lines = (
            protocol_line([run.protocol for run in every if run.protocol.dataset == dataset])
            for dataset in datasets
        )
        return Report(
            results=_results(cells),
            summary=_summary(cells),
            comparisons=_comparisons(cells, references or {}),
            protocol="\n".join(lines),
            notes=(
                *dict.fromkeys(run.repeat_note for run in every if run.repeat_note),
                *_leak_notes(made or {}),
            ),
            evaluations=runs,
            made=dict(made or {}),
        )

    def text(self, metrics: Sequence[str] | None = None, width: int = 100) -> str:
        """Tables for a terminal: all users, then one metric by groups.

        Args:
            metrics: columns of the first table; by default HR, NDCG, MRR, coverage and novelty.
        """
        out = io.StringIO()
        console = Console(file=out, width=width, color_system=None)
        for dataset in self.summary["dataset"].unique(maintain_order=True):
            inside = self.summary.filter(pl.col("dataset").eq_missing(dataset))
            available = inside["metric"].unique(maintain_order=True).to_list()
            columns = metrics or [str(metric) for metric in _main_metrics(available)]
            title = dataset or "results"
            console.print(
                self._table(
                    title, [(name, "all", name) for name in columns if name in available], dataset
                )
            )
            by = next((m for m in columns if parse_metric(m).name == "NDCG"), columns[0])
            present = set(inside.filter(pl.col("metric") == by)["group"])
            for groupings, words in _TABLES_OF_GROUPS.items():
                groups = [name for grouping in groupings for name in GROUPS[grouping]]
                columns_by = [(group, group, by) for group in groups if group in present]
                console.print(self._table(f"{title}: {by} by {words}", columns_by, dataset))
        console.print(self.protocol, markup=False, highlight=False)
        for note in self.notes:
            console.print(f"Note: {note}.", markup=False, highlight=False)
        legend = "± half of the 95 % interval over users"
        if len(self.evaluations) > 1:
            datasets = self.summary["dataset"].unique(maintain_order=True)
            how = dict.fromkeys(self.correction(dataset) for dataset in datasets)
            legend += (
                f"; against {self.compared_with}, paired t-test, {' or '.join(how)}: "
                "* p < .05, ** p < .01, *** p < .001"
            )
        console.print(legend, markup=False, highlight=False)
        return out.getvalue()

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """Tables of all users for notebooks, and the protocol."""
        from diffuserec.reports.tables import results_table  # it reads reports

        lines = [*self.protocol.splitlines(), *(f"Note: {note}." for note in self.notes)]
        return results_table(self, "html") + "".join(f"<p>{escape(line)}</p>" for line in lines)

    def json(self) -> str:
        """One JSON object: ``protocol, notes, results, summary, comparisons, leaks``."""
        document = {
            "protocol": self.protocol,
            "notes": list(self.notes),
            "results": self.results.to_dicts(),
            "summary": self.summary.to_dicts(),
            "comparisons": self.comparisons.to_dicts(),
            "leaks": {
                method: [run.leak.to_json() for run in runs if run.leak is not None]
                for method, runs in self.made.items()
            },
        }
        return json.dumps(document, indent=2, allow_nan=False)

    @property
    def compared_with(self) -> str:
        """Method that the stars compare with, and in brackets the references of single methods."""
        first = next(iter(self.evaluations))
        found = self.comparisons.select("method", "reference").unique(maintain_order=True)
        own = [
            f"{method} against {reference}"
            for method, reference in found.iter_rows()
            if reference != first
        ]
        return f"{first} ({', '.join(own)})" if own else first

    def n_comparisons(self, dataset: str | None) -> str:
        """Number of comparisons on a data set that are corrected together, in words."""
        found = self.comparisons.filter(pl.col("dataset").eq_missing(dataset))["n_comparisons"]
        return f"{' or '.join(map(str, found.unique().sort()))} comparisons"

    def correction(self, dataset: str | None) -> str:
        """What the tests on a data set take for random and are corrected for, in words."""
        count = self.n_comparisons(dataset)
        return f"{self.randomness(dataset)}, with Holm's correction for {count}"

    def randomness(self, dataset: str | None) -> str:
        """What the tests on a data set take for random, in words: users, and seeds if they can."""
        inside = self.summary.filter(pl.col("dataset").eq_missing(dataset))
        n_seeds = {
            method: inside.filter(method=method)["n_seeds"][0]
            for method in inside["method"].unique(maintain_order=True)
            if role_of(self.evaluations[method]) == "trained"
        }
        single = [method for method, n in n_seeds.items() if n == 1]
        if not n_seeds:
            return "users as random"
        if len(single) == len(n_seeds):
            return "users as random (one seed each, so seeds are not counted)"
        if single:
            return (
                "users and seeds as random (of one seed, so that seeds are not counted: "
                f"{', '.join(single)})"
            )
        return "users and seeds as random"

    def stars(self, method: str, dataset: str | None, metric: str, group: str = "all") -> str:
        """Stars of a significant difference of a method from its reference; else empty."""
        found = self.comparisons.filter(
            pl.col("dataset").eq_missing(dataset), method=method, metric=metric, group=group
        )["p_holm"]
        return stars_of(found[0] if len(found) else None)

    def _table(self, title: str, columns: list[tuple[str, str, str]], dataset: str | None) -> Table:
        table = Table(title=Text(title), title_justify="left")
        table.add_column("method", no_wrap=True)
        for head, _, _ in columns:
            table.add_column(Text(head), justify="right", no_wrap=True)
        inside = self.summary.filter(pl.col("dataset").eq_missing(dataset))
        if any(group != "all" for _, group, _ in columns):
            sizes = {row["group"]: row["n_users"] for row in inside.iter_rows(named=True)}
            table.add_row("users", *(f"{sizes[group]:,}" for _, group, _ in columns))
        for method in inside["method"].unique(maintain_order=True):
            texts = []
            for _, group, metric in columns:
                cell = inside.filter(method=method, group=group, metric=metric)
                if not len(cell):
                    texts.append("")
                    continue
                value, margin = cell["value"][0], cell["margin"][0]
                spread = "" if margin is None else f" ±{margin:.4f}"
                texts.append(f"{value:.4f}{spread}{self.stars(method, dataset, metric, group)}")
            table.add_row(Text(method), *texts)
        return table


_Cells = Mapping[tuple[str, str | None], Sequence[Evaluation]]


def _leak_notes(made: Mapping[str, Sequence[Made]]) -> list[str]:
    """What the leak meter found of each method, in words; of several runs the worst."""
    notes = []
    for method, runs in made.items():
        leaks = [run.leak for run in runs if run.leak is not None]
        worst = max(leaks, key=lambda leak: (leak.is_leaking, leak.is_reversed), default=None)
        if worst is not None:
            notes.append(f"{method}, leak meter: {worst.verdict}")
    return notes


def _results(cells: _Cells) -> pl.DataFrame:
    found = []
    for (method, dataset), runs in cells.items():
        for run in runs:
            seed = run.protocol.seed
            for metric, value in run.metrics.items():
                found.append((method, dataset, "all", metric, seed, value, run.protocol.n_users))
            for _, group, n_users, metric, value in run.groups.iter_rows():
                found.append((method, dataset, group, metric, seed, value, n_users))
    return pl.DataFrame(found, schema=_RESULTS, orient="row")


def _summary(cells: _Cells) -> pl.DataFrame:
    entries = []
    for (method, dataset), runs in cells.items():
        shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
        by_run = {
            name: np.stack([run.per_user[name].to_numpy() for run in runs])
            for name in shared
            if all(name in run.per_user.columns for run in runs)
        }
        for metric in shared:
            margin = half_interval(by_run[metric].mean(0)) if metric in by_run else None
            spread = _spread([run.metrics[metric] for run in runs], margin)
            entries.append((method, dataset, "all", metric, *spread, runs[0].protocol.n_users))
        for grouping, names in GROUPS.items():
            inside = groups_of(runs[0].per_user, grouping).to_numpy()
            for group in (name for name in names if (inside == name).any()):
                for metric, values in by_run.items():
                    chosen = values[:, inside == group]
                    margin = half_interval(chosen.mean(0))
                    spread = _spread(chosen.mean(1).tolist(), margin)
                    entries.append((method, dataset, group, metric, *spread, chosen.shape[1]))
    return pl.DataFrame(entries, schema=_SUMMARY, orient="row")


def _comparisons(cells: _Cells, references: Mapping[str, str]) -> pl.DataFrame:
    families: dict[tuple[str | None, str], list[tuple[dict[str, object], Comparison]]] = {}
    firsts: dict[str | None, str] = {}
    for (method, dataset), runs in cells.items():
        first = firsts.setdefault(dataset, method)
        if method == first:
            continue
        own = references.get(method, first)
        against = own if (own, dataset) in cells else first
        reference = cells[against, dataset]
        inside = runs[0].groups["group"].unique(maintain_order=True).to_list()
        compared = [m for m in _main_metrics(runs[0].metrics) if m.name in ("HR", "NDCG")]
        for group in ["all", *inside]:
            for metric in compared:
                found = compare(runs, reference, str(metric), group=group)
                names: dict[str, object] = {"method": method, "reference": against}
                names["dataset"] = dataset
                families.setdefault((dataset, group), []).append((names, found))
    entries = []
    for family in families.values():
        p_values = [found.p for _, found in family]
        corrected = zip(holm(p_values), holm_levels(p_values), strict=True)
        for (names, found), (p, alpha) in zip(family, corrected, strict=True):
            low, high = found.interval(float(alpha))
            entry: dict[str, object] = asdict(found)
            entry["reference_value"] = entry.pop("reference")
            entry |= {"low": low, "high": high, "alpha": float(alpha), "p_holm": float(p)}
            entry["detectable"] = found.detectable(ALPHA / len(family))
            entry["n_comparisons"] = len(family)
            finite = {
                name: None if isinstance(value, float) and not isfinite(value) else value
                for name, value in entry.items()
            }
            entries.append(names | finite)
    return pl.DataFrame(entries, schema=_COMPARISONS)


def role_of(runs: Sequence[Evaluation]) -> Role:
    """Role of a method in a report, by the class of its recommender."""
    name = runs[0].method.partition(" + ")[0]
    if name == Oracle.__name__.lower():
        return "oracle"
    known = name in RECOMMENDERS.names()
    return "baseline" if known and not RECOMMENDERS.find(name).trained else "trained"


def _main_metrics(available: Iterable[str]) -> list[Metric]:
    """HR and NDCG at 10 (else at the longest list), MRR, coverage and novelty."""
    measured = [parse_metric(name) for name in available]
    cuts = [metric.k for metric in measured if metric.name == "HR" and metric.k is not None]
    k = 10 if 10 in cuts else max(cuts)
    lists = [metric for metric in measured if metric.name in ("Coverage", "Novelty")]
    return [Metric("HR", k), Metric("NDCG", k), Metric("MRR"), *lists]


def half_interval(of_user: np.ndarray) -> float:
    """Half of the 95 % interval (normal) of the mean over users; 0 for a single user."""
    return float(1.96 * of_user.std(ddof=1) / np.sqrt(len(of_user))) if len(of_user) > 1 else 0.0


def _spread(
    values: Sequence[float], margin: float | None
) -> tuple[float, float | None, float | None, int]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), margin, std, len(values)
