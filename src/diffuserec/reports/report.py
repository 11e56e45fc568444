"""Several results in one table, with what is needed to read them: protocol, spread, significance.

The first method is the reference that all others are compared with, but for those that have one of
their own. The free floors are methods like any other here: put them in.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation, protocol_line
from diffuserec.evaluation.groups import GROUPS
from diffuserec.evaluation.significance import compare, holm

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_ROWS = {
    "method": pl.String,
    "dataset": pl.String,
    "seed": pl.Int64,
    "group": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "n_users": pl.Int64,
}
_SUMMARY = {
    "method": pl.String,
    "dataset": pl.String,
    "group": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "margin": pl.Float64,
    "seed_std": pl.Float64,
    "n_seeds": pl.Int64,
    "n_users": pl.Int64,
}
_COMPARISONS = {
    "method": pl.String,
    "reference": pl.String,
    "dataset": pl.String,
    "metric": pl.String,
    "group": pl.String,
    "ours": pl.Float64,
    "reference_value": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_t": pl.Float64,
    "p_wilcoxon": pl.Float64,
    "p_seeds": pl.Float64,
    "p_holm": pl.Float64,
    "n_users": pl.Int64,
    "n_seeds": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class Report:
    """What several methods achieved, ready for a table, a file or a page.

    Attributes:
        rows: ``method, dataset, seed, group, metric, value, n_users``: every number measured;
            ``group`` is ``all``, ``short``, ``medium``, ``long``, ``head`` or ``tail``.
        summary: ``method, dataset, group, metric, value, margin, seed_std, n_seeds, n_users``:
            means over seeds; ``margin`` is half the width of the 95 % interval of the mean over
            users, ``seed_std`` the standard deviation over seeds (null where there is none).
        comparisons: each method against its reference, of the same data: ``method, reference,
            dataset, metric, group, ours, reference_value, difference, low, high, p_t, p_wilcoxon,
            p_seeds, p_holm, n_users, n_seeds``; see :class:`Comparison`. ``p_holm`` is ``p_t``
            corrected over all comparisons of that data set and group.
        protocol: one line, or one for each data set.
        notes: what to know about these numbers, such as many hidden repeats.
        evaluations: the results themselves, by method.
    """

    rows: pl.DataFrame
    summary: pl.DataFrame
    comparisons: pl.DataFrame
    protocol: str
    notes: tuple[str, ...]
    evaluations: dict[str, tuple[Evaluation, ...]]

    @staticmethod
    def of(
        evaluations: Mapping[str, Evaluation | Sequence[Evaluation]],
        references: Mapping[str, str] | None = None,
    ) -> "Report":
        """A report of results by method, the reference first.

        Args:
            evaluations: one run or several (seeds, data sets) of each method.
            references: methods that are compared with another one than the first, and which.

        Raises:
            ConfigError: there are none, those of one data set were not measured the same way, or a
                reference is none of them.
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
            rows=_rows(cells),
            summary=_summary(cells),
            comparisons=_comparisons(cells, references or {}),
            protocol="\n".join(lines),
            notes=tuple(dict.fromkeys(run.repeat_note for run in every if run.repeat_note)),
            evaluations=runs,
        )

    def text(self, metrics: Sequence[str] | None = None, width: int = 100) -> str:
        """The tables for a terminal: all users, then one metric by group.

        Args:
            metrics: columns of the first table; by default HR, NDCG, MRR, coverage and novelty.
            width: of the terminal, in characters.
        """
        out = io.StringIO()
        console = Console(file=out, width=width, color_system=None)
        groups = [name for names in GROUPS.values() for name in names]
        for dataset in self.summary["dataset"].unique(maintain_order=True):
            inside = self.summary.filter(pl.col("dataset").eq_missing(dataset))
            available = inside["metric"].unique(maintain_order=True).to_list()
            columns = metrics or _main_metrics(available)
            title = dataset or "results"
            console.print(
                self._table(
                    title, [(name, "all", name) for name in columns if name in available], dataset
                )
            )
            by = next((name for name in columns if name.startswith("NDCG")), columns[0])
            present = set(inside.filter(pl.col("metric") == by)["group"])
            columns_by = [(group, group, by) for group in groups if group in present]
            console.print(self._table(f"{title}: {by} by group", columns_by, dataset))
        console.print(self.protocol, markup=False, highlight=False)
        for note in self.notes:
            console.print(f"Note: {note}.", markup=False, highlight=False)
        legend = "± half of the 95 % interval over users"
        if len(self.evaluations) > 1:
            legend += (
                f"; against {self.compared_with}, paired t-test over users with Holm's correction: "
                "* p < .05, ** p < .01, *** p < .001"
            )
        console.print(legend, markup=False, highlight=False)
        return out.getvalue()

    def json(self) -> str:
        """One JSON object: ``protocol, notes, rows, summary, comparisons``; rows as objects."""
        document = {
            "protocol": self.protocol,
            "notes": list(self.notes),
            "rows": self.rows.to_dicts(),
            "summary": self.summary.to_dicts(),
            "comparisons": self.comparisons.to_dicts(),
        }
        return json.dumps(document, indent=2, allow_nan=False)

    @property
    def compared_with(self) -> str:
        """What the stars are about: the reference, or what most have and the others' own."""
        first = next(iter(self.evaluations))
        found = self.comparisons.select("method", "reference").unique(maintain_order=True)
        own = [
            f"{method} against {reference}"
            for method, reference in found.iter_rows()
            if reference != first
        ]
        return f"{first} ({', '.join(own)})" if own else first

    def stars(self, method: str, dataset: str | None, metric: str, group: str = "all") -> str:
        """Up to three stars for a difference from its reference that is significant."""
        found = self.comparisons.filter(
            pl.col("dataset").eq_missing(dataset),
            method=method,
            metric=metric,
            group=group,
        )["p_holm"]
        return next((star for level, star in _STARS if len(found) and found[0] < level), "")

    def _table(self, title: str, columns: list[tuple[str, str, str]], dataset: str | None) -> Table:
        table = Table(title=title, title_justify="left")
        table.add_column("method", no_wrap=True)
        for head, _, _ in columns:
            table.add_column(head, justify="right", no_wrap=True)
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
            table.add_row(method, *texts)
        return table


_Cells = Mapping[tuple[str, str | None], Sequence[Evaluation]]


def _rows(cells: _Cells) -> pl.DataFrame:
    rows = []
    for (method, dataset), runs in cells.items():
        for run in runs:
            seed = run.protocol.seed
            for metric, value in run.metrics.items():
                rows.append((method, dataset, seed, "all", metric, value, run.protocol.n_users))
            for _, group, n_users, metric, value in run.groups.iter_rows():
                rows.append((method, dataset, seed, group, metric, value, n_users))
    return pl.DataFrame(rows, schema=_ROWS, orient="row")


def _summary(cells: _Cells) -> pl.DataFrame:
    rows = []
    for (method, dataset), runs in cells.items():
        shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
        of_users = [name for name in shared if name in runs[0].per_user.columns]
        for metric in shared:
            values = [run.metrics[metric] for run in runs]
            margin = None
            if metric in of_users:
                margin = _margin(np.stack([run.per_user[metric].to_numpy() for run in runs]))
            rows.append(
                (method, dataset, "all", metric, *_spread(values, margin), runs[0].protocol.n_users)
            )
        for grouping, names in GROUPS.items():
            inside = runs[0].per_user[f"{grouping}_group"].to_numpy()
            for group in names:
                for metric in of_users if (inside == group).any() else []:
                    by_run = np.stack([run.per_user[metric].to_numpy() for run in runs])
                    chosen = by_run[:, inside == group]
                    spread = _spread(chosen.mean(1).tolist(), _margin(chosen))
                    rows.append((method, dataset, group, metric, *spread, chosen.shape[1]))
    return pl.DataFrame(rows, schema=_SUMMARY, orient="row")


def _comparisons(cells: _Cells, references: Mapping[str, str]) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    firsts: dict[str | None, str] = {}
    for (method, dataset), runs in cells.items():
        first = firsts.setdefault(dataset, method)
        if method == first:
            continue
        own = references.get(method, first)
        against = own if (own, dataset) in cells else first
        reference = cells[against, dataset]
        inside = runs[0].groups["group"].unique(maintain_order=True).to_list()
        shown = [m for m in _main_metrics(list(runs[0].metrics)) if m.startswith(("HR", "NDCG"))]
        for group in ["all", *inside]:
            for metric in shown:
                found = asdict(compare(runs, reference, metric, group=group))
                found["reference_value"] = found.pop("reference")
                rows.append({"method": method, "reference": against, "dataset": dataset, **found})
    families: dict[tuple[object, object], list[dict[str, object]]] = {}
    for row in rows:
        families.setdefault((row["dataset"], row["group"]), []).append(row)
    for family in families.values():
        corrected = holm([float(str(row["p_t"])) for row in family])
        for row, p in zip(family, corrected, strict=True):
            row["p_holm"] = float(p)
    return pl.DataFrame(rows, schema=_COMPARISONS)


def _main_metrics(available: Sequence[str]) -> list[str]:
    """HR and NDCG at 10 (else at the longest list), MRR, coverage and novelty."""
    cuts = [int(name.partition("@")[2]) for name in available if name.startswith("HR@")]
    k = 10 if 10 in cuts else max(cuts)
    lists = [name for name in available if name.startswith(("Coverage", "Novelty"))]
    return [f"HR@{k}", f"NDCG@{k}", "MRR", *lists]


def _margin(by_run: np.ndarray) -> float:
    """Half of the 95 % interval (normal) of the mean over users; shape (seeds, users)."""
    of_user = by_run.mean(0)
    return float(1.96 * of_user.std(ddof=1) / np.sqrt(len(of_user))) if len(of_user) > 1 else 0.0


def _spread(
    values: Sequence[float], margin: float | None
) -> tuple[float, float | None, float | None, int]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), margin, std, len(values)
