"""Training of one run: from a plan to a directory with models, evaluations and a report."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from diffuserec.data import Catalog, Queries, load_dataset
from diffuserec.errors import ConfigError
from diffuserec.files import write_json
from diffuserec.models.augmenter import Augmenter, ParallelAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.methods import find_augmenter, find_recommender, load_augmenter
from diffuserec.models.recommender import Recommender
from diffuserec.reports.html import write_html
from diffuserec.reports.report import Report
from diffuserec.studies.compare import with_baselines
from diffuserec.studies.examples import run_examples, short_inspection
from diffuserec.studies.run_directory import (
    Plan,
    RunDirectory,
    claim,
    finish,
    is_finished,
    read_curve,
    split_dataset,
)
from diffuserec.training.device import device_of

Say = Callable[[str], None]
"""Function that is called with progress, a line at a time."""


def silent(line: str) -> None:
    """Says nothing."""


def train_run(
    plan: Plan,
    out: Path | str,
    runtime: Runtime,
    *,
    augmenter_from: Path | None = None,
    say: Say = silent,
) -> RunDirectory:
    """Trains a plan into a directory, measures it and writes its report.

    Args:
        runtime: device and the like; its seed is replaced by the plan's.
        augmenter_from: directory of a fitted augmenter to use instead of fitting one.

    Raises:
        ConfigError: `out` holds another run, or one that was not asked to be resumed; the
            augmenter has nothing for this recommender; settings do not fit the catalog.
        DataError: the data cannot be used.
    """
    path = Path(out)
    model, augmenter = methods_of(plan)
    dataset = load_dataset(plan.data)
    split = split_dataset(dataset, plan.split)
    require_buildable(plan, dataset.catalog)
    claim(path, plan, runtime.resume)
    runtime = replace(runtime, seed=plan.seed, checkpoint=path / "checkpoint")
    seconds: dict[str, float] = {}
    curve: list[Epoch] = []
    train, start = split.train, time.perf_counter()
    if augmenter is not None:
        fitted, records = path / "augmenter", path / "augmenter-curve.json"
        if fitted.is_dir():
            augmenter = load_augmenter(fitted).to(device_of(runtime))
            curve += read_curve(records)
        else:
            if augmenter_from is not None:
                augmenter = load_augmenter(augmenter_from).to(device_of(runtime))
            else:
                say(f"fitting {plan.augment}")
                augmenter.fit(split.train, split.valid, runtime.within("augmenter"))
                curve += [replace(e, phase=f"{plan.augment} {e.phase}") for e in augmenter.curve]
            write_json(records, [asdict(epoch) for epoch in curve])
            augmenter.save(fitted)
        seconds["fit_augmenter"] = time.perf_counter() - start
        start = time.perf_counter()
        say(f"augmenting {len(split.train):,} histories")
        train = augmenter.augment(split.train, plan.seed)
        seconds["augment"] = time.perf_counter() - start
    say(f"training {plan.model}")
    start = time.perf_counter()
    model.fit(train, augmented(split.valid, augmenter, plan.seed), runtime.within("model"))
    seconds["fit_model"] = time.perf_counter() - start
    curve += model.curve
    model.save(path / "model")
    write_json(path / "curve.json", [asdict(epoch) for epoch in curve])
    run = RunDirectory(path, plan, model, augmenter, split)
    say("measuring")
    run.evaluate("valid")
    write_html(
        path / "report.html",
        Report.of(with_baselines({plan.label: [run.evaluate()]}, run)),
        title=f"{plan.label} on {Path(plan.data).name}",
        curves={plan.label: curve},
        inspection=short_inspection(run, train),
        **run_examples(run),
    )
    finish(path, plan, seconds)
    return run


def complete_run(
    name: str,
    plan: Plan,
    path: Path,
    runtime: Runtime,
    *,
    augmenter_from: Path | None = None,
    say: Say = silent,
) -> None:
    """Trains one run of several, called `name`: a finished one is kept, an interrupted one resumed.

    The other arguments are those of :func:`train_run`.

    Raises:
        ConfigError: the directory holds a run of another plan.
    """
    if is_finished(path, plan):
        return
    say(f"{name}, seed {plan.seed}")
    begun = path.exists() and any(path.iterdir())
    train_run(plan, path, replace(runtime, resume=begun), augmenter_from=augmenter_from, say=say)


def methods_of(plan: Plan) -> tuple[Recommender, Augmenter | None]:
    """The plan's recommender and augmenter, not fitted.

    Raises:
        ConfigError: their settings are wrong, or the augmenter has nothing for this recommender.
    """
    model = find_recommender(plan.model)(**plan.settings)
    if plan.augment is None:
        return model, None
    augmenter = find_augmenter(plan.augment)(**(plan.augment_settings or {}))
    if isinstance(augmenter, ParallelAugmenter):
        epochs = getattr(model.config, "epochs", None)
        if epochs is None:
            raise ConfigError(
                f"{plan.augment} makes copies to train on, and {plan.model} is not trained in "
                "epochs: they would change nothing; choose another recommender"
            )
        augmenter.require_epochs(epochs)
    return model, augmenter


def require_buildable(plan: Plan, catalog: Catalog) -> None:
    """Builds the plan's methods for a catalog, before time is spent on fitting any.

    Raises:
        ConfigError: their settings are wrong, or do not fit the catalog.
    """
    with torch.random.fork_rng():
        for method in methods_of(plan):
            if method is not None:
                method.take(catalog)


def augmented(queries: Queries, augmenter: Augmenter | None, seed: int) -> Queries:
    """Queries with the histories that a model trained with the augmenter is given."""
    if augmenter is None:
        return queries
    return Queries(augmenter.augment_for_inference(queries.histories, seed), queries.targets)
