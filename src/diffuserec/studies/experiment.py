"""From a prepared log to trained runs and their comparison.

One run (:func:`train_run`), several beside each other and the floors (:func:`compare_runs`), and
all rows and seeds of an experiment file (:func:`run_experiment`).
"""

import json
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diffuserec.studies.examples import drawn_lists, examples, short_inspection, varied_sequences
from diffuserec.models.base import (
    Augmenter,
    ContrastiveRecommender,
    GenerativeRecommender,
    Recommender,
    Run,
    VaryingAugmenter,
    find,
    load,
)
from diffuserec.data import Catalog, Queries, Split, load_dataset
from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation, Report, evaluate
from diffuserec.reports.html import write_html
from diffuserec.studies.run_directory import (
    Plan,
    TrainedRun,
    claim,
    cost,
    finish,
    is_finished,
    log_facts,
    open_run,
    read_curve,
    seen_kept,
    split_dataset,
    write_json,
)
from diffuserec.training.loop import Epoch, device_of

FLOORS = ("popularity", "markov")
"""Recommenders that cost nothing and stand beside every trained row."""


def train_run(
    plan: Plan,
    out: Path | str,
    run: Run,
    *,
    augmenter_from: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> TrainedRun:
    """Trains a plan into a directory, measures it and writes its report.

    Args:
        plan: what to train.
        out: the run's directory.
        run: surroundings; its seed is the plan's.
        augmenter_from: take this fitted augmenter instead of fitting one.
        say: told what is going on, a line at a time.

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
    claim(path, plan, run.resume)
    run = replace(run, seed=plan.seed, checkpoint=path / "checkpoint")
    seconds: dict[str, float] = {}
    curve: list[Epoch] = []
    train_data, start = split.train, time.perf_counter()
    if augmenter is not None:
        if (path / "augmenter").is_dir():
            augmenter = load(path / "augmenter").to(device_of(run))
            curve += read_curve(path / "augmenter-curve.json")
        elif augmenter_from is not None:
            augmenter = load(augmenter_from).to(device_of(run))
            write_json(path / "augmenter-curve.json", [])
            augmenter.save(path / "augmenter")
        else:
            say(f"fitting {plan.augment}")
            augmenter.fit(split.train, split.valid, run.stage("augmenter"))
            curve += [replace(e, phase=f"{plan.augment} {e.phase}") for e in augmenter.curve]
            write_json(path / "augmenter-curve.json", [asdict(epoch) for epoch in curve])
            augmenter.save(path / "augmenter")
        seconds["fit_augmenter"] = time.perf_counter() - start
        start = time.perf_counter()
        say(f"augmenting {len(split.train):,} histories")
        train_data = augmenter.augment(split.train, plan.seed)
        seconds["augment"] = time.perf_counter() - start
    say(f"training {plan.model}")
    start = time.perf_counter()
    model.fit(train_data, augmented(split.valid, augmenter, plan.seed), run.stage("model"))
    seconds["fit_model"] = time.perf_counter() - start
    curve += model.curve
    model.save(path / "model")
    write_json(path / "curve.json", [asdict(epoch) for epoch in curve])
    trained = TrainedRun(path, plan, model, augmenter, split, log_facts(plan.data, split))
    say("measuring")
    trained.evaluate("valid")
    report = Report.of(_beside({plan.label: [trained.evaluate()]}, trained))
    write_html(
        path / "report.html",
        report,
        title=f"{plan.label} on {Path(plan.data).name}",
        curves={plan.label: curve},
        examples=examples(trained),
        drawn=drawn_lists(trained),
        varied=varied_sequences(trained),
        inspection=short_inspection(trained, train_data),
    )
    finish(path, plan, seconds)
    return trained


def methods_of(plan: Plan) -> tuple[Recommender, Augmenter | None]:
    """The plan's recommender and augmenter, not fitted.

    Raises:
        ConfigError: their settings are wrong, or the augmenter has nothing for this recommender.
    """
    model = find("recommender", plan.model)(**plan.settings)
    if plan.augment is None:
        return model, None
    augmenter = find("augmenter", plan.augment)(**(plan.augment_settings or {}))
    epochs = getattr(model.config, "epochs", None)
    if isinstance(augmenter, VaryingAugmenter):
        if epochs is None:
            raise ConfigError(
                f"{plan.augment} makes variants to train on, and {plan.model} is not trained in "
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
                method.build(catalog)


def augmented(queries: Queries, augmenter: Augmenter | None, seed: int) -> Queries:
    """The queries with lengthened histories."""
    if augmenter is None:
        return queries
    return Queries(augmenter.lengthened(queries.histories, seed), queries.targets)


def compare_runs(
    paths: Sequence[Path | str],
    out: Path | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> Report:
    """One report of several runs, floors included, with significance.

    Runs of one plan that differ only in their seed become one row. Rows are compared with the
    first, an augmented one with the same recommender alone where that is among them.

    Args:
        paths: directories of finished runs, all of the same data.
        out: where to write the HTML report; None writes none.
        title: of that report.
        names: of the rows, one for each run; runs of one name are one row. By default what was
            trained.

    Raises:
        ConfigError: no runs, or runs of different data.
    """
    if not paths:
        raise ConfigError("give at least one run to compare")
    runs = [open_run(path) for path in paths]
    data = {run.plan.data for run in runs}
    if len(data) > 1:
        raise ConfigError(
            f"these runs are of different data and can't be compared: {', '.join(sorted(data))}"
        )
    rows = _by_plan(runs)
    if names is not None:
        rows = {
            name: [r for r, own in zip(runs, names, strict=True) if own == name] for name in names
        }
    results: dict[str, list[Evaluation]] = {
        name: [run.evaluate() for run in members] for name, members in rows.items()
    }
    report = Report.of(_beside(results, runs[0]), _unaugmented(rows))
    if out is not None:
        first = {name: members[0] for name, members in rows.items()}
        shown = next((run for run in first.values() if run.augmenter is not None), None)
        generative = [run for run in first.values() if isinstance(run.model, GenerativeRecommender)]
        drawing = max(generative, key=lambda run: run.evaluate().metrics["MRR"], default=None)
        contrastive = [
            run for run in first.values() if isinstance(run.model, ContrastiveRecommender)
        ]
        viewed = max(contrastive, key=lambda run: run.evaluate().metrics["MRR"], default=None)
        write_html(
            out,
            report,
            title=title or f"{len(runs)} runs on {Path(runs[0].plan.data).name}",
            curves={name: read_curve(run.path / "curve.json") for name, run in first.items()},
            examples=examples(shown) if shown else [],
            drawn=drawn_lists(drawing) if drawing else [],
            varied=varied_sequences(shown) if shown else [],
            inspection=short_inspection(viewed, viewed.training_data()) if viewed else None,
        )
    return report


def run_experiment(
    file: Path,
    data: Path,
    out: Path,
    run: Run,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Trains every row and seed of an experiment file and reports on them.

    Rows that are finished already are kept, interrupted ones are resumed. An augmenter is fitted
    once, with the first seed of the first row that has it with these settings, and shared by that
    row's other seeds, as DiffuASR's authors did, and by the later rows.

    Args:
        file: TOML with ``title``, ``seeds`` and ``[[rows]]`` of ``name``, ``model``, ``settings``,
            ``augment``, ``augment_settings`` and, where a row has its own, ``seeds``.
        data: the prepared dataset.
        out: directory of all runs, and of report.txt, report.json (which has the same runs measured
            with seen items kept, too) and report.html.
        run: surroundings; seeds come from the file.

    Raises:
        ConfigError: the file is not a valid experiment; before anything is trained.
    """
    title, rows = read_experiment(file, data)
    catalog = load_dataset(data).catalog
    for name, plans in rows.items():
        finished = [is_finished(out / f"{slug(name)}-seed{plan.seed}", plan) for plan in plans]
        if not all(finished):
            require_buildable(plans[0], catalog)
    paths: list[Path] = []
    names: list[str] = []
    fitted: dict[str, Path] = {}
    for name, plans in rows.items():
        for plan in plans:
            path = out / f"{slug(name)}-seed{plan.seed}"
            paths.append(path)
            names.append(name)
            which = json.dumps([plan.augment, plan.augment_settings or {}], sort_keys=True)
            first = fitted.setdefault(which, path)
            complete_run(
                name,
                plan,
                path,
                run,
                augmenter_from=None if path == first else first / "augmenter",
                say=say,
            )
    report = compare_runs(paths, out / "report.html", title, names)
    (out / "report.txt").write_text(report.text())
    document = json.loads(report.json())
    document["training"] = [
        {"method": name, **cost(path)} for name, path in zip(names, paths, strict=True)
    ]
    kept: dict[str, list[Evaluation]] = {}
    for name, path in zip(names, paths, strict=True):
        kept.setdefault(name, []).append(seen_kept(path))
    document["seen_kept"] = {
        name: {m: sum(e.metrics[m] for e in found) / len(found) for m in found[0].metrics}
        for name, found in kept.items()
    }
    write_json(out / "report.json", document)
    return report


def complete_run(
    name: str,
    plan: Plan,
    path: Path,
    run: Run,
    *,
    augmenter_from: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains one run of several: a finished one is kept, an interrupted one resumed.

    Args:
        name: what the run is called where several are trained.
        plan: what to train.
        path: the run's directory.
        run: surroundings.
        augmenter_from: take this fitted augmenter instead of fitting one.
        say: told what is going on, a line at a time.

    Raises:
        ConfigError: the directory holds a run of another plan.
    """
    if is_finished(path, plan):
        return
    say(f"{name}, seed {plan.seed}")
    resumed = replace(run, resume=path.exists())
    train_run(plan, path, resumed, augmenter_from=augmenter_from, say=say)


def floor_evaluations(split: Split, like: TrainedRun) -> dict[str, Evaluation]:
    """The recommenders that cost nothing, on the test queries of a run's log."""
    results = {}
    for name in FLOORS:
        floor = find("recommender", name)().fit(split.train)
        results[name] = evaluate(
            floor,
            split.test,
            dataset_name=Path(like.plan.data).name,
            facts={**like.facts, "split": f"{split.protocol}, test"},
        )
    return results


def read_experiment(file: Path, data: Path) -> tuple[str, dict[str, list[Plan]]]:
    """Title of an experiment file, and by row name its plans, one for each seed."""
    content = read_toml(file)
    unknown = content.keys() - {"title", "seeds", "rows"}
    rows = content.get("rows")
    if unknown or not isinstance(rows, list) or not rows:
        what = f"has unknown keys {', '.join(sorted(unknown))}" if unknown else "has no [[rows]]"
        raise ConfigError(f"{file} {what}: it needs title, seeds and [[rows]]")
    seeds = seeds_of(file, content, [0])
    plans: dict[str, list[Plan]] = {}
    for row in rows:
        extra = row.keys() - {"name", "model", "settings", "augment", "augment_settings", "seeds"}
        if extra or not {"name", "model"} <= row.keys():
            raise ConfigError(
                f"{file}: a row needs name and model and may have settings, augment, "
                f"augment_settings and seeds; got {', '.join(row)}"
            )
        same = next((name for name in plans if slug(name) == slug(row["name"])), None)
        if same is not None:
            raise ConfigError(
                f"{file}: rows need names that differ in letters or digits; got {same!r} and "
                f"{row['name']!r}"
            )
        plan = Plan(
            data=str(data.resolve()),
            model=row["model"],
            settings=row.get("settings", {}),
            augment=row.get("augment"),
            augment_settings=row.get("augment_settings"),
        )
        plans[row["name"]] = [replace(plan, seed=seed) for seed in seeds_of(file, row, seeds)]
    return str(content.get("title", file.stem)), plans


def read_toml(file: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ConfigError: it is missing or not TOML.
    """
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as TOML: {error}") from error


def seeds_of(file: Path, table: Mapping[str, Any], default: list[int]) -> list[int]:
    """The ``seeds`` of a table of that file, or the default where it says none.

    Raises:
        ConfigError: they are not different whole numbers, at least one.
    """
    seeds = table.get("seeds", default)
    if (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise ConfigError(
            f"{file}: seeds must be a list of different whole numbers, like [0, 1, 2], got {seeds}"
        )
    return seeds


def slug(name: str) -> str:
    """The name as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-").replace("---", "-")


def _beside(
    results: Mapping[str, list[Evaluation]], like: TrainedRun
) -> dict[str, list[Evaluation]]:
    """The results with the floors after them; a floor trained with other settings keeps its row."""
    floors = floor_evaluations(like.split, like)
    named = {f"{n} (default)" if n in results else n: [floor] for n, floor in floors.items()}
    return {**results, **named}


def _unaugmented(rows: Mapping[str, list[TrainedRun]]) -> dict[str, str]:
    """Of each augmented row the one of the same recommender and settings without augmentation."""
    plain: dict[str, str] = {}
    for name, members in rows.items():
        if members[0].plan.augment is None:
            plain.setdefault(_recommender(members[0]), name)
    return {
        name: plain[_recommender(members[0])]
        for name, members in rows.items()
        if members[0].plan.augment is not None and _recommender(members[0]) in plain
    }


def _recommender(run: TrainedRun) -> str:
    return f"{run.plan.model} {run.model.config.model_dump_json()}"


def _by_plan(runs: Sequence[TrainedRun]) -> dict[str, list[TrainedRun]]:
    """Runs grouped by what they are but for the seed; named by label, then by directory."""
    groups: dict[str, list[TrainedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(asdict(replace(run.plan, seed=0)), sort_keys=True), []).append(
            run
        )
    labels = [members[0].plan.label for members in groups.values()]
    named = {}
    for members in groups.values():
        label = members[0].plan.label
        if labels.count(label) > 1:
            label = f"{label} ({members[0].path.name})"
        named[label] = members
    return named
