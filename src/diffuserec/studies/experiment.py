"""Experiment: all variants and seeds of a TOML file, trained and compared.

    title = "..."
    seeds = [0, 1, 2]                    # of every variant that has none of its own

    [[variants]]
    name = "SASRec + DiffuASR"           # in tables, and of its directories
    model = "sasrec"
    settings = { epochs = 60 }
    augment = "diffuasr"
    augment_settings = { epochs = 40 }
    seeds = [0]

The directory of an experiment holds a run for each variant and seed, report.txt, report.html and
report.json, which also has the cost of each run and its metrics with seen items not filtered.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from diffuserec.data import load_dataset
from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation
from diffuserec.files import locked, sweep, write_json, write_text
from diffuserec.models.base import Runtime
from diffuserec.reports.report import Report
from diffuserec.studies.compare import compare_runs
from diffuserec.studies.run_directory import Plan, cost, evaluate_unfiltered, is_finished
from diffuserec.studies.study_file import Seeds, StudyTable, read_study, slug
from diffuserec.studies.train_run import Say, complete_run, require_buildable, silent


class Variant(StudyTable):
    """Methods and settings to train, under a name."""

    name: str
    model: str
    settings: dict[str, Any] = Field({})
    augment: str | None = None
    augment_settings: dict[str, Any] | None = None
    seeds: Seeds | None = None


class Experiment(StudyTable):
    """Content of an experiment file."""

    title: str | None = None
    seeds: Seeds = Field([0])
    variants: list[Variant] = Field(min_length=1)


def run_experiment(
    file: Path, data: Path, out: Path, runtime: Runtime, say: Say = silent
) -> Report:
    """Trains every variant and seed of an experiment file and reports on them.

    Finished runs are kept, interrupted ones are resumed. An augmenter is fitted once, with the
    first seed of the first variant that has it with these settings, and shared by that variant's
    other seeds, as DiffuASR's authors did, and by later variants.

    Args:
        out: directory of all runs and of the report.
        runtime: device and the like; seeds come from the file.

    Raises:
        ConfigError: the file is not a valid experiment; then nothing is trained.
        DataError: another process runs it, or runs that are there are of other data.
    """
    title, variants = read_experiment(file, data)
    with locked(out):
        return _run_experiment(title, variants, data, out, runtime, say)


def _run_experiment(
    title: str,
    variants: dict[str, list[Plan]],
    data: Path,
    out: Path,
    runtime: Runtime,
    say: Say,
) -> Report:
    dataset = load_dataset(data)
    fingerprint = dataset.fingerprint
    runs = [
        (name, plan, out / f"{slug(name)}-seed{plan.seed}")
        for name, plans in variants.items()
        for plan in plans
    ]
    waiting = {name: plan for name, plan, path in runs if not is_finished(path, plan, fingerprint)}
    for plan in waiting.values():
        require_buildable(plan, dataset.catalog)
    fitted: dict[str, Path] = {}
    for name, plan, path in runs:
        augmenter = json.dumps([plan.augment, plan.augment_settings or {}], sort_keys=True)
        first = fitted.setdefault(augmenter, path)
        shared = None if path == first else first
        complete_run(name, plan, path, fingerprint, runtime, augmenter_from=shared, say=say)
    names, paths = [name for name, _, _ in runs], [path for _, _, path in runs]
    report = compare_runs(paths, out / "report.html", title, names, data)
    write_text(out / "report.txt", report.text())
    unfiltered: dict[str, list[Evaluation]] = {}
    for name, path in zip(names, paths, strict=True):
        unfiltered.setdefault(name, []).append(evaluate_unfiltered(path, data))
    document = json.loads(report.json()) | {
        "training": [{"method": name, **cost(path)} for name, _, path in runs],
        "seen_not_filtered": {
            name: {m: sum(e.metrics[m] for e in found) / len(found) for m in found[0].metrics}
            for name, found in unfiltered.items()
        },
    }
    write_json(out / "report.json", document)
    sweep(out)
    return report


def read_experiment(file: Path, data: Path) -> tuple[str, dict[str, list[Plan]]]:
    """Title of an experiment file, and the plans of each variant, one for each seed.

    Raises:
        ConfigError: the file is not a valid experiment.
    """
    content = read_study(file, Experiment)
    plans: dict[str, list[Plan]] = {}
    for variant in content.variants:
        same = next((name for name in plans if slug(name) == slug(variant.name)), None)
        if same is not None:
            raise ConfigError(
                f"{file}: variants need names that differ in letters or digits; got {same!r} and "
                f"{variant.name!r}"
            )
        plan = Plan(str(data.resolve()), **variant.model_dump(exclude={"name", "seeds"}))
        seeds = variant.seeds or content.seeds
        plans[variant.name] = [replace(plan, seed=seed) for seed in seeds]
    return content.title or file.stem, plans
