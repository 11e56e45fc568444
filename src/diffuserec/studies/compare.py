"""Comparison of finished runs with each other and with trivial baselines."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation
from diffuserec.models.methods import find_recommender
from diffuserec.models.recommender import Contrastive
from diffuserec.reports.figures import write_figures
from diffuserec.reports.html import write_html
from diffuserec.reports.report import Report
from diffuserec.studies.examples import (
    augmented_histories,
    drawn_lists,
    sequences_with_copies,
    short_inspection,
)
from diffuserec.studies.made import made_of, next_steps
from diffuserec.studies.run_directory import RunDirectory, open_run, read_curve

Part = Literal["test", "valid"]

BASELINES = ("popularity", "markov")
"""Recommenders that need no training and are compared with every run."""


def compare_runs(
    paths: Sequence[Path | str],
    out: Path | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
    data: Path | None = None,
    part: Part = "test",
    figures: Path | None = None,
) -> Report:
    """One report of several runs and the trivial baselines, with significance.

    Runs of one plan that differ only in their seed are one method. Methods are compared with the
    first, an augmented one with the same recommender alone if that is among them.

    Args:
        paths: directories of finished runs, all of the same data.
        out: file of the HTML report; None writes none.
        names: of the methods, one for each run; runs of one name are one method. By default the
            names of recommender and augmenter.
        data: where their data is now, if it was moved.
        part: ``valid`` compares on the validation queries and never looks at the test part.
        figures: directory to write every panel of the report's figures to, as SVG.

    Raises:
        ConfigError: no runs, runs of different data, or one run twice.
    """
    methods = open_methods(paths, names, data)
    runs = [run for seeds in methods.values() for run in seeds]
    results = {name: [run.evaluate(part) for run in seeds] for name, seeds in methods.items()}
    made = {name: [made_of(run) for run in seeds] for name, seeds in methods.items()}
    report = Report.of(with_baselines(results, runs[0], part), _unaugmented(methods), made)
    first = {name: seeds[0] for name, seeds in methods.items()}
    curves = {name: read_curve(run.path / "curve.json") for name, run in first.items()}
    if figures is not None:
        write_figures(figures, report, curves)
    if out is not None:
        augmented = next((run for run in first.values() if run.augmenter is not None), None)
        best = max(first, key=lambda name: _mean_mrr(results[name]))
        generative = _best((r for r in first.values() if r.model.is_generative), part)
        contrastive = _best((r for r in first.values() if isinstance(r.model, Contrastive)), part)
        write_html(
            out,
            report,
            title=title or f"{len(runs)} runs on {Path(runs[0].plan.data).name}",
            curves=curves,
            augmented=augmented_histories(augmented, part=part) if augmented else [],
            copied=sequences_with_copies(augmented) if augmented else [],
            drawn=drawn_lists(generative or first[best], part=part),
            next_steps=(
                next_steps(first[best], results[best][0], len(results[best]))
                if part == "test"
                else ()
            ),
            inspection=(
                short_inspection(contrastive, contrastive.training_data()) if contrastive else None
            ),
        )
    return report


def open_methods(
    paths: Sequence[Path | str], names: Sequence[str] | None = None, data: Path | None = None
) -> dict[str, list[RunDirectory]]:
    """Finished runs by method: those of one plan that differ only in their seed are one.

    Raises:
        ConfigError: no runs, runs of different data, or one run twice.
    """
    if not paths:
        raise ConfigError("give at least one run to compare")
    runs = [open_run(path, data) for path in paths]
    if len({run.fingerprint for run in runs}) > 1:
        places = sorted({run.plan.data for run in runs})
        raise ConfigError(
            f"these runs are of different data and can't be compared: {', '.join(places)}"
        )
    methods: dict[str, list[RunDirectory]] = {}
    for name, run in zip(names or _names(runs), runs, strict=True):
        seeds = methods.setdefault(name, [])
        for other in seeds:
            if other.plan.seed == run.plan.seed:
                raise ConfigError(
                    f"{other.path} and {run.path} are the same run (methods, settings and seed): "
                    "give it once"
                )
        seeds.append(run)
    return methods


def baseline_evaluations(run: RunDirectory, part: Part = "test") -> dict[str, Evaluation]:
    """Evaluations of the trivial baselines, fitted to the log of a run."""
    return {
        name: run.measure(find_recommender(name)().fit(run.split.train), part) for name in BASELINES
    }


def with_baselines(
    results: Mapping[str, list[Evaluation]], run: RunDirectory, part: Part = "test"
) -> dict[str, list[Evaluation]]:
    """Evaluations with those of the trivial baselines after them.

    Args:
        results: evaluations by method; one called like a baseline, of other settings, stays.
        run: any of the runs.
        part: that was measured.
    """
    baselines = {
        f"{name} (default)" if name in results else name: [evaluation]
        for name, evaluation in baseline_evaluations(run, part).items()
    }
    return {**results, **baselines}


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """Label of each run's plan, with the first directory where different plans share a label."""
    keys = [json.dumps(replace(run.plan, seed=0).document(), sort_keys=True) for run in runs]
    first: dict[str, RunDirectory] = {}
    for key, run in zip(keys, runs, strict=True):
        first.setdefault(key, run)
    labels = [run.plan.label for run in first.values()]
    names = {
        key: label if labels.count(label) == 1 else f"{label} ({run.path.name})"
        for (key, run), label in zip(first.items(), labels, strict=True)
    }
    return [names[key] for key in keys]


def _best(runs: Iterable[RunDirectory], part: Part) -> RunDirectory | None:
    return max(runs, key=lambda run: run.evaluate(part).metrics["MRR"], default=None)


def _mean_mrr(results: Sequence[Evaluation]) -> float:
    return sum(result.metrics["MRR"] for result in results) / len(results)


def _unaugmented(methods: Mapping[str, list[RunDirectory]]) -> dict[str, str]:
    """By augmented method, the one of the same recommender and settings without augmenter."""
    keys = {
        name: f"{seeds[0].plan.model} {seeds[0].model.config.model_dump_json()}"
        for name, seeds in methods.items()
    }
    plain: dict[str, str] = {}
    for name, seeds in methods.items():
        if seeds[0].plan.augment is None:
            plain.setdefault(keys[name], name)
    return {
        name: plain[keys[name]]
        for name, seeds in methods.items()
        if seeds[0].plan.augment is not None and keys[name] in plain
    }
