"""Training of one run: from a plan to a directory with models, evaluations and a report."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diffuserec.data import Catalog, Queries, SequenceDataset, Split, load_dataset, split_dataset
from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation
from diffuserec.files import locked, write_json
from diffuserec.health import memory_there
from diffuserec.models.augmenter import Augmenter, ParallelAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.methods import find_augmenter, find_recommender, load, load_augmenter
from diffuserec.models.recommender import Recommender
from diffuserec.models.settings import TRAINING_USES, use_of
from diffuserec.reports.html import write_html
from diffuserec.reports.report import Report
from diffuserec.studies.compare import with_baselines
from diffuserec.studies.epoch_log import complete_log, log_epoch
from diffuserec.studies.examples import run_examples, short_inspection
from diffuserec.studies.final import model_to_start
from diffuserec.studies.ledger import record
from diffuserec.studies.made import made_of, next_steps
from diffuserec.studies.run_directory import (
    Plan,
    RunDirectory,
    claim,
    finish,
    is_finished,
    is_free,
    kept_beside,
    load_fitted_augmenter,
    read_curve,
    release,
    write_leak,
)
from diffuserec.training import fit_shared, parallel
from diffuserec.training.device import device_of
from diffuserec.training.tracking import Tracking

Say = Callable[[str], None]
"""Function that is called with progress, a line at a time."""


def silent(line: str) -> None:
    """Says nothing."""


def train_run(
    plan: Plan,
    out: Path | str,
    runtime: Runtime,
    *,
    overwrite: bool = False,
    augmenter_from: Path | None = None,
    report: bool = True,
    track: Sequence[str] = (),
    say: Say = silent,
) -> RunDirectory:
    """Trains a plan into a directory, measures it and writes its report.

    The directory is claimed after all that can be checked without training was; if nothing was
    trained, it is not there afterwards. A final model is not measured and has no report.

    Args:
        runtime: device and the like; its seed is replaced by the plan's.
        overwrite: replace a run that is there, once this one has finished.
        augmenter_from: directory of a run whose augmenter to use instead of fitting one.
        report: measure the test part and write the report; without it nothing of the test part is
            looked at.
        track: trackers to tell of it, see :class:`Tracking`.

    Raises:
        ConfigError: `out` holds another run, or one that was not asked to be resumed; the
            augmenter has nothing for this recommender; settings do not fit the catalog or device;
            a tracker is not known or not installed.
        DataError: the data cannot be used, or another process trains this run.
    """
    path = Path(out)
    dataset = load_dataset(plan.data)
    split = split_dataset(dataset, plan.split)
    require_buildable(plan, dataset.catalog)
    shared = None
    if plan.augment is not None and augmenter_from is not None:
        shared = load_fitted_augmenter(augmenter_from, plan, dataset.fingerprint)
    start = model_to_start(plan)
    tracking = Tracking(track, path.name, _facts(plan, dataset.fingerprint, split.train), path)
    runtime = replace(
        runtime,
        seed=plan.seed,
        checkpoint=path / "checkpoint",
        on_epoch=_hook(path, tracking, runtime.on_epoch),
        stop_after=plan.epochs,
    )
    with locked(path):
        claim(path, plan, dataset.fingerprint, runtime, overwrite)
        old = kept_beside(path)
        if old is not None:
            say(f"the run that was here is kept as {old} until this one has finished")
        runtime = replace(runtime, resume=True)  # what an interrupted run left is its own by now
        try:
            with tracking:
                seconds: dict[str, float] = {}
                with parallel.together():
                    parallel.meet()
                    fitted = _fit(plan, split, path, runtime, shared, say, seconds, start)
                model, augmenter, train = fitted
                run = RunDirectory(path, plan, dataset.fingerprint, model, augmenter, split)
                if not plan.is_final:
                    say("measuring")
                    _track(tracking, "valid", run.evaluate("valid"))
                if report and not plan.is_final:
                    _track(tracking, "test", run.evaluate())
                    _measure_leak(run, train, say)
                    _write_report(run, train)
            finish(path, seconds)
        except BaseException:
            release(path)
            raise
    return run


def train_along(plan: Plan, out: Path | str, runtime: Runtime) -> None:
    """What the other ones of several processes do while the first is in :func:`train_run`.

    They fit the same with it, and write nothing. All see the same data and the same `out`.

    Raises:
        LostProcess: another process has ended.
    """
    path = Path(out)
    with parallel.together():
        parallel.meet()  # the first has claimed the directory
        split = split_dataset(load_dataset(plan.data), plan.split)
        runtime = replace(
            runtime,
            seed=plan.seed,
            checkpoint=path / "checkpoint",
            resume=True,
            on_epoch=None,
            stop_after=plan.epochs,
        )
        _fit(plan, split, path, runtime, None, silent, {}, model_to_start(plan))


def _fit(
    plan: Plan,
    split: Split,
    path: Path,
    runtime: Runtime,
    shared: Augmenter | None,
    say: Say,
    seconds: dict[str, float],
    start: Recommender | None,
) -> tuple[Recommender, Augmenter | None, SequenceDataset]:
    """The plan's recommender and augmenter, fitted into a run's directory, and the training data.

    Args:
        seconds: is told how long the parts took.
    """
    augmenter, train = None, split.train
    if plan.augment is not None:
        with _timed(seconds, "fit_augmenter"):
            augmenter = fit_augmenter(plan, split, path, runtime, shared, say)
        with _timed(seconds, "augment"):
            say(f"augmenting {len(split.train):,} histories")
            train = augmenter.augment(split.train, plan.seed)
    with _timed(seconds, "fit_model"):
        valid = None if plan.is_final else augmented(split.valid, augmenter, plan.seed)
        model = fit_recommender(plan, train, valid, path, runtime, say, start)
    return model, augmenter, train


def _hook(
    path: Path, tracking: Tracking, other: Callable[[Epoch], bool | None] | None
) -> Callable[[Epoch], bool | None]:
    """The hook of a run: its own line first, then whoever else wants to know."""

    def told(epoch: Epoch) -> bool | None:
        log_epoch(path, epoch)
        tracking(epoch)
        return other and other(epoch)

    return told


def _facts(plan: Plan, fingerprint: str, log: SequenceDataset) -> dict[str, Any]:
    """What trackers are told of a run: the plan, with all settings, and the data."""
    model, augmenter = methods_of(plan)
    facts: dict[str, Any] = {
        "data": plan.data,
        "fingerprint": fingerprint,
        "split": plan.split,
        "seed": plan.seed,
        "model": plan.model,
        "augmenter": plan.augment,
    } | model.config.suited_to(log).model_dump(mode="json")
    if augmenter is not None:
        settings = augmenter.config.suited_to(log).model_dump(mode="json")
        facts |= {f"augment.{name}": value for name, value in settings.items()}
    return facts


def _track(tracking: Tracking, part: str, result: Evaluation) -> None:
    tracking.results(part, result.metrics, str(result.protocol))


def _measure_leak(run: RunDirectory, train: SequenceDataset, say: Say) -> None:
    leak = run.measure_leak(True, train)
    if leak is not None:
        write_leak(run.path, leak)
        say(f"leak meter: {leak.verdict}")


def _write_report(run: RunDirectory, train: SequenceDataset) -> None:
    label = run.plan.label
    write_html(
        run.path / "report.html",
        Report.of(with_baselines({label: [run.evaluate()]}, run), made={label: [made_of(run)]}),
        title=f"{label} on {Path(run.plan.data).name}",
        curves={label: read_curve(run.path / "curve.json")},
        inspection=short_inspection(run, train),
        next_steps=next_steps(run, run.evaluate()),
        **run_examples(run),
    )


def train_augmenter(plan: Plan, path: Path, runtime: Runtime, *, say: Say = silent) -> None:
    """Fits a plan's augmenter alone, into a directory that ``augmenter_from`` may name.

    A finished one is kept, an interrupted one continued.

    Raises:
        ConfigError: the directory holds something of another plan.
        DataError: the data cannot be used, or another process works there.
    """
    dataset = load_dataset(plan.data)
    if is_finished(path, plan, dataset.fingerprint):
        return
    split = split_dataset(dataset, plan.split)
    runtime = replace(
        runtime,
        seed=plan.seed,
        checkpoint=path / "checkpoint",
        resume=not is_free(path),
        on_epoch=_hook(path, Tracking((), path.name), runtime.on_epoch),
    )
    with locked(path):
        claim(path, plan, dataset.fingerprint, runtime)
        try:
            seconds: dict[str, float] = {}
            with _timed(seconds, "fit_augmenter"):
                fit_augmenter(plan, split, path, replace(runtime, resume=True), None, say)
            finish(path, seconds)
        except BaseException:
            release(path)
            raise


def fit_augmenter(
    plan: Plan, split: Split, path: Path, runtime: Runtime, shared: Augmenter | None, say: Say
) -> Augmenter:
    """The plan's augmenter, fitted into a run's directory; kept if it stands there already.

    Args:
        shared: one that is fitted already, to use instead of fitting one.
    """
    fitted = path / "augmenter"
    if not parallel.agreed(fitted.is_dir()):
        augmenter, curve = shared, []
        if augmenter is None:
            say(f"fitting {plan.augment}")
            assert plan.augment is not None
            augmenter = find_augmenter(plan.augment)(**(plan.augment_settings or {}))
            before = f"{plan.augment} "
            valid = None if plan.is_final else split.valid
            augmenter.fit(split.train, valid, runtime.within("augmenter", before))
            curve = [replace(e, phase=before + e.phase) for e in augmenter.curve]
        if parallel.is_first():
            complete_log(path, curve)
            write_json(path / "augmenter-curve.json", [asdict(epoch) for epoch in curve])
            augmenter.save(fitted)
        parallel.meet()
    return load_augmenter(fitted).to(device_of(runtime))


def fit_recommender(
    plan: Plan,
    train: SequenceDataset,
    valid: Queries | None,
    path: Path,
    runtime: Runtime,
    say: Say,
    start: Recommender | None = None,
) -> Recommender:
    """The plan's recommender, fitted into a run's directory; kept if it stands there already.

    Args:
        valid: queries to stop by; None for a final model.
        start: the model that it starts from, if any.
    """
    fitted = path / "model"
    if not parallel.agreed(fitted.is_dir()):
        say(f"training {plan.model}")
        model, _ = methods_of(plan)
        of_model = runtime.within("model")
        if plan.augment is None and start is None:  # a blend may hold the same
            fit_shared(model, train, valid, of_model)
        else:
            model.fit(train, valid, of_model, start=start)
        if parallel.is_first():
            before = path / "augmenter-curve.json"
            curve = [*(read_curve(before) if before.exists() else []), *model.curve]
            complete_log(path, curve)
            if valid is not None:
                n_looks = sum(epoch.valid is not None for epoch in model.curve)
                record(path, "validation", epochs=n_looks)
            write_json(path / "curve.json", [asdict(epoch) for epoch in curve])
            model.save(fitted)
        parallel.meet()
    return load(fitted).to(device_of(runtime))


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


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
    unnoticed = use_of(augmenter.config).keys() & TRAINING_USES
    if unnoticed and not model.config.heeds_use:
        raise ConfigError(
            f"{plan.model} is not trained on next items of sequences, and {min(unnoticed)} would "
            "change nothing: leave it out, or choose another recommender"
        )
    return model, augmenter


def require_buildable(plan: Plan, catalog: Catalog) -> None:
    """Builds the plan's methods for a catalog, before time is spent on fitting any.

    Raises:
        ConfigError: their settings are wrong, do not fit the catalog, or ask for more than the
            memory of this machine.
    """
    for method, empty in zip(methods_of(plan), methods_of(plan), strict=True):
        if method is None or empty is None:
            continue
        try:
            _require_memory(empty, catalog)
            with torch.random.fork_rng():
                method.take(catalog)
        except (RuntimeError, MemoryError, OverflowError) as error:
            reason = (str(error).strip() or "out of memory").splitlines()[0]
            raise ConfigError(
                f"{method.name} cannot be built for {catalog.n_items:,} items with these settings: "
                f"{reason[:200]}; choose smaller ones"
            ) from error


def _require_memory(method: Recommender | Augmenter, catalog: Catalog) -> None:
    """Compares what a method's tensors take with the memory there is, before they are made.

    Raises:
        MemoryError: it is more.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng():
            method.take(catalog)
    except NotImplementedError:
        return  # a method whose parameters depend on numbers, which are not there
    needed = sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers()))
    there = memory_there()
    if there is not None and needed > there:
        raise MemoryError(
            f"its parameters take {needed / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f}"
        )


def augmented(queries: Queries, augmenter: Augmenter | None, seed: int) -> Queries:
    """Queries with the histories that a model trained with the augmenter is given."""
    if augmenter is None:
        return queries
    return Queries(augmenter.augment_for_inference(queries.histories, seed), queries.targets)
