"""What a report says about one data set: who won and how surely, and the cells of its tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from diffuserec.evaluation.evaluate import Evaluation
from diffuserec.reports.report import Report
from diffuserec.evaluation.significance import compare

_FLOORS = ("popularity", "markov")  # names of recommenders: they cost no training
_CEILING = "oracle"  # knows how the data came about: a yardstick, never the winner
_BEYOND = {"Coverage": ".1%", "Gini": ".3f", "Novelty": ".2f"}


class Board:
    """What a report says about one data set."""

    def __init__(self, report: Report, dataset: str | None) -> None:
        self.report = report
        self.dataset = dataset
        self.rows = report.summary.filter(pl.col("dataset").eq_missing(dataset))
        self.methods: list[str] = self.rows["method"].unique(maintain_order=True).to_list()
        self.runs = {
            method: [r for r in report.evaluations[method] if r.protocol.dataset == dataset]
            for method in self.methods
        }
        self.roles = {method: role_of(runs) for method, runs in self.runs.items()}
        names = self.rows["metric"].unique(maintain_order=True).to_list()
        columns = self.runs[self.methods[0]][0].per_user.columns
        self.metrics = [name for name in names if name in columns]
        self.beyond_metrics = [name for name in names if name not in columns]
        gains = [name for name in self.metrics if name.startswith("NDCG@")]
        self.metric = "NDCG@10" if "NDCG@10" in gains else gains[-1]
        self.cells = {
            (r["method"], r["group"], r["metric"]): r for r in self.rows.iter_rows(named=True)
        }

    def value(self, method: str, group: str = "all") -> float:
        return float(self.cells[method, group, self.metric]["value"])

    def ranked(self, group: str = "all") -> list[str]:
        """Methods from best to worst; the ceiling does not compete."""
        competing = [m for m in self.methods if self.roles[m] != "ceiling"] or self.methods
        return sorted(competing, key=lambda method: -self.value(method, group))

    def by_user(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """History length and metric of each user, the metric averaged over runs."""
        runs = self.runs[method]
        values = np.stack([run.per_user[self.metric].to_numpy() for run in runs]).mean(0)
        return runs[0].per_user["history_length"].to_numpy(), values

    def summary(self) -> str:
        """What won, by how much, whether that is certain, and how far from floor and ceiling."""
        best, *others = self.ranked()
        cell = self.cells[best, "all", self.metric]
        place = f"On {self.dataset}, " if self.dataset else ""
        averaged = f", averaged over {cell['n_seeds']} seeds" if cell["n_seeds"] > 1 else ""
        said = [
            f"{place}{best}{self._kind(best)} {'ranks best with' if others else 'reaches'} "
            f"{self.metric} {cell['value']:.4f} ± {cell['margin']:.4f} "
            f"over {cell['n_users']:,} users{averaged}."
        ]
        trained = [method for method in others if self.roles[method] == "trained"]
        floors = [method for method in others if self.roles[method] == "floor"]
        rivals = others[:1] + [floor for floor in floors[:1] if floor != others[0]]
        if self.roles[best] == "floor" and trained:
            rivals = trained[:1]
        for start, rival in zip(("That is", "It is"), rivals, strict=False):
            said.append(f"{start} {self._versus(best, rival)}")
        if self.roles[best] == "floor" and trained:
            said.append("No trained method beats what costs nothing.")
        if "short" in self.rows["group"] and others:
            first, second = self.ranked("short")[:2]
            said.append(
                f"Users with short histories are served best by {first}{self._kind(first)}: "
                f"{self.value(first, 'short'):.4f}, {self._versus(first, second, 'short')}"
            )
        for method in (m for m in self.methods if self.roles[m] == "ceiling" and m != best):
            said.append(
                f"{method}, which knows how the data came about, marks the ceiling at "
                f"{self.value(method):.4f}."
            )
            if self.value(method):
                said.append(f"{best} attains {self.value(best) / self.value(method):.0%} of it.")
        if len(self.methods) == 1:
            said.append("Nothing else was measured, so there is nothing to compare it with.")
        return " ".join(said)

    def table(self) -> dict[str, Any]:
        """Every metric of the target's rank, with interval, seeds and significance."""
        columns = {m: [self._cell(m, metric) for metric in self.metrics] for m in self.methods}
        for place in range(len(self.metrics)):
            cells = [cells[place] for name, cells in columns.items() if name in self.ranked()]
            for cell in cells:
                cell["best"] = len(columns) > 1 and cell["value"] == max(c["value"] for c in cells)
        rows = [{"name": m, "role": self.roles[m], "cells": cells} for m, cells in columns.items()]
        return {
            "dataset": self.dataset,
            "columns": self.metrics,
            "rows": rows,
            "seeds": self.rows["seed_std"].is_not_null().any(),
            "ceiling": "ceiling" in self.roles.values(),
        }

    def beyond(self) -> dict[str, Any]:
        """What the lists show, whoever likes it."""
        rows = [
            {
                "name": method,
                "cells": [
                    format(cell["value"], _BEYOND.get(metric.partition("@")[0], ".4f"))
                    if (cell := self.cells.get((method, "all", metric)))
                    else ""
                    for metric in self.beyond_metrics
                ],
            }
            for method in self.methods
        ]
        return {"dataset": self.dataset, "columns": self.beyond_metrics, "rows": rows}

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
        return " (a floor, which needs no training)" if self.roles[method] == "floor" else ""

    def _versus(self, ours: str, other: str, group: str = "all") -> str:
        """The end of a sentence: how far ours is above the other, and how certain that is."""
        mine, theirs = self.value(ours, group), self.value(other, group)
        named = f"{other}{self._kind(other)}"
        if mine == theirs:
            return f"level with {named}."
        pair = pl.col("method", "reference").is_in([ours, other])
        found = self.report.comparisons.filter(
            pl.col("dataset").eq_missing(self.dataset), pair, group=group, metric=self.metric
        ).rows(named=True)
        if found:
            row = found[0]
            ends = (row["low"], row["high"])
            low, high = ends if row["method"] == ours else (-ends[1], -ends[0])
        else:
            row = asdict(compare(self.runs[ours], self.runs[other], self.metric, group=group))
            low, high = row["low"], row["high"]
        p = row.get("p_holm", row["p_t"])
        details = [f"95% interval {_signed(low)} to {_signed(high)}"]
        details.append(_chance(p) if "p_holm" in row else f"{_chance(p)} uncorrected")
        if row["p_seeds"] is not None:
            details.append(f"over seeds {_chance(row['p_seeds'])}")
        if mine < 2 * theirs:
            above = f"{mine / theirs - 1:.1%} more than"
        else:
            above = f"{mine / theirs:,.1f} times" if theirs else "above"
        verdict = "is significant" if p < 0.05 else "may be chance"
        return (
            f"{above} {named} at {theirs:.4f}; the difference of {mine - theirs:.4f} {verdict} "
            f"({', '.join(details)})."
        )


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _signed(number: float) -> str:
    return f"{number:.4f}".replace("-", "−")


def role_of(runs: Sequence[Evaluation]) -> str:
    """What a method is in a report: ``floor``, ``ceiling`` or ``trained``."""
    name = runs[0].method
    return "floor" if name in _FLOORS else "ceiling" if name == _CEILING else "trained"
