"""Summary of a report on one data set: the winner and how sure that is, and the cells of tables."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from diffuserec.evaluation import Metric, compare, parse_metric
from diffuserec.evaluation.paired import ALPHA
from diffuserec.reports.report import Report, role_of

_LIST_FORMATS = {"Coverage": ".1%", "Gini": ".3f", "Novelty": ".2f"}


@dataclass(frozen=True)
class Verdict:
    """Difference of two methods with interval and p-value, both corrected for the same tests.

    Attributes:
        difference: of the means.
        low: lower end of the corrected interval; it leaves out 0 exactly if the difference is
            significant. Not a number where there is none.
        high: its upper end.
        p: corrected.
        detectable: smallest true difference that would be found four times in five.
        corrected_for: in words.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float
    corrected_for: str

    @property
    def significant(self) -> bool:
        """Whether chance alone gives so large a difference in fewer than 1 of 20 such families."""
        return self.p < ALPHA

    def __str__(self) -> str:
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        if not math.isfinite(self.low + self.high):
            return f"{p}, corrected for {self.corrected_for}"
        return (
            f"interval {signed(self.low)} to {signed(self.high)}, {p}, both corrected for "
            f"{self.corrected_for}"
        )


class DatasetSummary:
    """Results of a report on one data set.

    Attributes:
        methods: names of the methods in the order of the report.
        roles: role of each.
        runs: evaluations of each.
        metrics: names of the metrics of the target's rank, the one that ranks the methods first.
        list_metrics: names of the metrics of whole lists.
        metric: name of the metric that ranks the methods: NDCG at 10, else at the longest list.
        cells: entry of the report's summary by method, group and metric.
    """

    def __init__(self, report: Report, dataset: str | None) -> None:
        self.report = report
        self.dataset = dataset
        entries = report.summary.filter(pl.col("dataset").eq_missing(dataset))
        self.methods: list[str] = entries["method"].unique(maintain_order=True).to_list()
        self.runs = {
            method: [r for r in report.evaluations[method] if r.protocol.dataset == dataset]
            for method in self.methods
        }
        self.roles = {method: role_of(runs) for method, runs in self.runs.items()}
        found = [parse_metric(name) for name in entries["metric"].unique(maintain_order=True)]
        self.list_metrics = [metric for metric in found if not metric.is_per_user]
        gains = [metric for metric in found if metric.name == "NDCG"]
        main = next((m for m in gains if m.k == 10), gains[-1])
        self.metric = str(main)
        # what ranks the methods comes first, so that a narrow screen shows it
        per_user = sorted(
            (metric for metric in found if metric.is_per_user and self._is_by_user(str(metric))),
            key=lambda m: (m != main, m.name != "HR" or m.k != main.k, m.name != "MRR"),
        )
        self.metrics = [str(metric) for metric in per_user]
        self.cells = {
            (c["method"], c["group"], c["metric"]): c for c in entries.iter_rows(named=True)
        }

    def _is_by_user(self, metric: str) -> bool:
        """Whether all who have a metric of the rank have it by user; a copy's results may not."""
        runs = [run for runs in self.runs.values() for run in runs if metric in run.metrics]
        return all(metric in run.per_user.columns for run in runs)

    def value(self, method: str, group: str = "all") -> float:
        """Ranking metric of a method, averaged over its seeds."""
        return float(self.cells[method, group, self.metric]["value"])

    def ranked(self, group: str = "all") -> list[str]:
        """Methods from best to worst; the oracle does not compete."""
        competing = [m for m in self.methods if self.roles[m] != "oracle"] or self.methods
        return sorted(competing, key=lambda method: -self.value(method, group))

    def comparisons(self, group: str) -> pl.DataFrame:
        """Comparisons with references in the ranking metric of a group."""
        return self.report.comparisons.filter(
            pl.col("dataset").eq_missing(self.dataset), group=group, metric=self.metric
        )

    def seconds(self, method: str) -> float | None:
        """Seconds that a run of a method trained, the mean over its seeds; None if not known."""
        known = [m.seconds for m in self.report.made.get(method, ()) if m.seconds is not None]
        return float(np.mean(known)) if known else None

    def by_user(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """History length and ranking metric of each user, the metric averaged over seeds."""
        runs = self.runs[method]
        values = np.stack([run.per_user[self.metric].to_numpy() for run in runs]).mean(0)
        return runs[0].per_user["history_length"].to_numpy(), values

    def text(self) -> str:
        """The winner in words: by how much, how certain, how far from baselines and oracle."""
        best, *others = self.ranked()
        cell = self.cells[best, "all", self.metric]
        on = f"On {self.dataset}, " if self.dataset else ""
        averaged = f", averaged over {cell['n_seeds']} seeds" if cell["n_seeds"] > 1 else ""
        sentences = [
            f"{on}{best}{self._kind(best)} {'ranks best with' if others else 'reaches'} "
            f"{self.metric} {cell['value']:.4f} ± {cell['margin']:.4f} "
            f"over {cell['n_users']:,} users{averaged}."
        ]
        trained = [method for method in others if self.roles[method] == "trained"]
        baselines = [method for method in others if self.roles[method] == "baseline"]
        rivals = others[:1] + [method for method in baselines[:1] if method != others[0]]
        beaten = self.roles[best] == "baseline" and bool(trained)
        if beaten:
            rivals = trained[:1]
        for start, rival in zip(("That is", "It is"), rivals, strict=False):
            sentences.append(f"{start} {self._versus(best, rival)}")
        if beaten:
            sentences.append("No trained method beats the trivial baselines.")
        if (best, "short", self.metric) in self.cells and others:
            first, second = self.ranked("short")[:2]
            sentences.append(
                f"Users with short histories are served best by {first}{self._kind(first)}: "
                f"{self.value(first, 'short'):.4f}, {self._versus(first, second, 'short')}"
            )
        for method in (m for m in self.methods if self.roles[m] == "oracle" and m != best):
            sentences.append(
                f"{method}, which knows how the data came about, reaches {self.value(method):.4f}."
            )
            if self.value(method):
                sentences.append(
                    f"{best} attains {self.value(best) / self.value(method):.0%} of it."
                )
        if len(self.methods) == 1:
            sentences.append("No other method was measured to compare it with.")
        return " ".join(sentences)

    def table(self) -> dict[str, Any]:
        """Every metric of the target's rank, with interval, seeds and significance."""
        leads = {metric: self.leads(metric) for metric in self.metrics}
        columns = {m: [self._cell(m, metric) for metric in self.metrics] for m in self.methods}
        for index, (best, clear) in enumerate(leads.values()):
            if len(columns) > 1:
                columns[best][index] |= {"best": True, "bold": clear}
        return {
            "dataset": self.dataset,
            "columns": self.metrics,
            "methods": [
                {"name": m, "role": self.roles[m], "cells": cells, "seconds": self.seconds(m)}
                for m, cells in columns.items()
            ],
            "seconds": any(self.seconds(m) is not None for m in self.methods),
            "correction": self.report.correction(self.dataset),
            "n_pairs": len(self.ranked()) * (len(self.ranked()) - 1) // 2,
            "seeds": any(cell["seed_std"] is not None for cell in self.cells.values()),
            "oracle": "oracle" in self.roles.values(),
        }

    def list_table(self) -> dict[str, Any]:
        """Every metric of whole lists: beyond accuracy."""
        methods = [
            {"name": method, "cells": [self._list_cell(method, m) for m in self.list_metrics]}
            for method in self.methods
        ]
        return {"dataset": self.dataset, "columns": self.list_metrics, "methods": methods}

    def _list_cell(self, method: str, metric: Metric) -> str:
        cell = self.cells.get((method, "all", str(metric)))
        return "" if cell is None else format(cell["value"], _LIST_FORMATS.get(metric.name, ".4f"))

    def _cell(self, method: str, metric: str) -> dict[str, Any]:
        cell = self.cells.get((method, "all", metric))
        if cell is None:
            return {
                "value": "",
                "margin": "",
                "spread": "",
                "stars": "",
                "best": False,
                "bold": False,
            }
        return {
            "value": f"{cell['value']:.4f}",
            "margin": f"{cell['margin']:.4f}",
            "spread": "" if cell["seed_std"] is None else f"{cell['seed_std']:.4f}",
            "stars": self.report.stars(method, self.dataset, metric),
            "best": False,
            "bold": False,
        }

    def _kind(self, method: str) -> str:
        return " (a trivial baseline)" if self.roles[method] == "baseline" else ""

    def verdict(
        self, ours: str, other: str, metric: str | None = None, group: str = "all"
    ) -> Verdict:
        """Difference of two methods, corrected for the comparisons that it is one of.

        If one is the other's reference, these are all comparisons with references. If not, the two
        were chosen by their results, out of all pairs of methods.

        Args:
            metric: by default the ranking metric.
        """
        metric = metric or self.metric
        pair = pl.col("method", "reference").is_in([ours, other])
        found = self.report.comparisons.filter(
            pl.col("dataset").eq_missing(self.dataset), pair, group=group, metric=metric
        ).to_dicts()
        if not found:
            test = compare(self.runs[ours], self.runs[other], metric, group=group)
            n = len(self.ranked()) * (len(self.ranked()) - 1) // 2
            low, high = test.interval(ALPHA / n)
            detectable = test.detectable(ALPHA / n)
            of = "the only pair" if n == 1 else f"all {n:,} pairs of methods"
            return Verdict(test.difference, low, high, min(1.0, n * test.p), detectable, of)
        sign = 1 if found[0]["method"] == ours else -1
        ends = (found[0][end] for end in ("low", "high"))
        low, high = sorted(sign * (math.nan if end is None else end) for end in ends)
        of = f"{found[0]['n_comparisons']:,} comparisons"
        detectable = found[0]["detectable"]
        return Verdict(
            sign * found[0]["difference"],
            low,
            high,
            found[0]["p_holm"],
            math.inf if detectable is None else detectable,
            of,
        )

    def leads(self, metric: str) -> tuple[str, bool]:
        """Best method in a metric of all users, and whether its lead over the next is no chance."""
        measured = [m for m in self.ranked() if (m, "all", metric) in self.cells]
        first, *others = sorted(measured, key=lambda m: -self.cells[m, "all", metric]["value"])
        return first, bool(others) and self.verdict(first, others[0], metric).significant

    def _versus(self, ours: str, other: str, group: str = "all") -> str:
        """End of a sentence: how far ours is above the other, and how certain that is."""
        mine, theirs = self.value(ours, group), self.value(other, group)
        named = f"{other}{self._kind(other)}"
        if mine == theirs:
            return f"level with {named}."
        if mine < 2 * theirs:
            above = f"{mine / theirs - 1:.1%} more than"
        else:
            above = f"{mine / theirs:,.1f} times" if theirs else "above"
        found = self.verdict(ours, other, group=group)
        is_what = "is significant" if found.significant else "may be chance"
        text = (
            f"{above} {named} at {theirs:.4f}; the difference of {mine - theirs:.4f} {is_what} "
            f"({found})."
        )
        if not found.significant and math.isfinite(found.detectable):
            text += (
                f" A true difference of {found.detectable:.4f} would be found four times in five."
            )
        return text


def signed(number: float) -> str:
    """The number with its sign, a true minus, and four digits."""
    return f"{number:+.4f}".replace("-", "−")
