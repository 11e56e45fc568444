"""Summary of a report on one data set: the winner and how sure that is, and the cells of tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import polars as pl

from diffuserec.evaluation import Evaluation, Metric, compare, parse_metric
from diffuserec.evaluation.oracle import Oracle
from diffuserec.models.recommender import RECOMMENDERS
from diffuserec.reports.report import Report

Role = Literal["trained", "baseline", "oracle"]
"""Trained, a trivial baseline that needs no training, or the oracle, which knows the truth."""

_LIST_FORMATS = {"Coverage": ".1%", "Gini": ".3f", "Novelty": ".2f"}


class DatasetSummary:
    """Results of a report on one data set.

    Attributes:
        methods: names of the methods in the order of the report.
        roles: role of each.
        runs: evaluations of each.
        metrics: names of the metrics of the target's rank.
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
        self.metrics = [str(metric) for metric in found if metric.is_per_user]
        self.list_metrics = [metric for metric in found if not metric.is_per_user]
        gains = [metric for metric in found if metric.name == "NDCG"]
        self.metric = str(next((m for m in gains if m.k == 10), gains[-1]))
        self.cells = {
            (c["method"], c["group"], c["metric"]): c for c in entries.iter_rows(named=True)
        }

    def value(self, method: str, group: str = "all") -> float:
        """Ranking metric of a method, averaged over its seeds."""
        return float(self.cells[method, group, self.metric]["value"])

    def ranked(self, group: str = "all") -> list[str]:
        """Methods from best to worst; the oracle does not compete."""
        competing = [m for m in self.methods if self.roles[m] != "oracle"] or self.methods
        return sorted(competing, key=lambda method: -self.value(method, group))

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
        columns = {m: [self._cell(m, metric) for metric in self.metrics] for m in self.methods}
        for index in range(len(self.metrics)):
            cells = [cells[index] for name, cells in columns.items() if name in self.ranked()]
            for cell in cells:
                cell["best"] = len(columns) > 1 and cell["value"] == max(c["value"] for c in cells)
        return {
            "dataset": self.dataset,
            "columns": self.metrics,
            "methods": [
                {"name": m, "role": self.roles[m], "cells": cells} for m, cells in columns.items()
            ],
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
            return {"value": "", "margin": "", "spread": "", "stars": "", "best": False}
        return {
            "value": f"{cell['value']:.4f}",
            "margin": f"{cell['margin']:.4f}",
            "spread": "" if cell["seed_std"] is None else f"{cell['seed_std']:.4f}",
            "stars": self.report.stars(method, self.dataset, metric),
            "best": False,
        }

    def _kind(self, method: str) -> str:
        return " (a trivial baseline)" if self.roles[method] == "baseline" else ""

    def _versus(self, ours: str, other: str, group: str = "all") -> str:
        """End of a sentence: how far ours is above the other, and how certain that is."""
        mine, theirs = self.value(ours, group), self.value(other, group)
        named = f"{other}{self._kind(other)}"
        if mine == theirs:
            return f"level with {named}."
        pair = pl.col("method", "reference").is_in([ours, other])
        found = self.report.comparisons.filter(
            pl.col("dataset").eq_missing(self.dataset), pair, group=group, metric=self.metric
        ).to_dicts()
        if found:
            test = found[0]
            ends = (test["low"], test["high"])
            low, high = ends if test["method"] == ours else (-ends[1], -ends[0])
        else:
            test = asdict(compare(self.runs[ours], self.runs[other], self.metric, group=group))
            low, high = test["low"], test["high"]
        p = test.get("p_holm", test["p_t"])
        details = [f"95% interval {_signed(low)} to {_signed(high)}"]
        details.append(_chance(p) if "p_holm" in test else f"{_chance(p)} uncorrected")
        if test["p_seeds"] is not None:
            details.append(f"over seeds {_chance(test['p_seeds'])}")
        if mine < 2 * theirs:
            above = f"{mine / theirs - 1:.1%} more than"
        else:
            above = f"{mine / theirs:,.1f} times" if theirs else "above"
        verdict = "is significant" if p < 0.05 else "may be chance"
        return (
            f"{above} {named} at {theirs:.4f}; the difference of {mine - theirs:.4f} {verdict} "
            f"({', '.join(details)})."
        )


def role_of(runs: Sequence[Evaluation]) -> Role:
    """Role of a method in a report, by the class of its recommender."""
    name = runs[0].method.partition(" + ")[0]
    if name == Oracle.__name__.lower():
        return "oracle"
    known = name in RECOMMENDERS.names()
    return "baseline" if known and not RECOMMENDERS.find(name).trained else "trained"


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _signed(number: float) -> str:
    return f"{number:.4f}".replace("-", "−")
