"""From a prepared log to trained runs and their comparison: what the command line calls.

A run is a directory:

    run.json      what was trained, on what, with which settings and seed
    model/        the recommender; ``diffuserec.load`` reads it
    augmenter/    the augmenter, where there was one
    curve.json    loss and validation figure of each epoch
    test/         metrics.json and per_user.parquet
    valid/        the same on the validation queries
    report.html   figures and tables
    checkpoint/   only while training: what ``--resume`` continues from
"""

import json
import shutil
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from diffuserec.contracts import (
    Augmenter,
    ContrastiveRecommender,
    GenerativeRecommender,
    Recommender,
    Run,
    find,
    load,
    method_names,
    parse_settings,
)
from diffuserec.data import (
    Queries,
    SequenceDataset,
    Split,
    Store,
    dataset_manifest,
    leave_one_out,
    load_dataset,
    read_log,
    temporal,
)
from diffuserec.data.batches import trainable_rows
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import Evaluation, Report, evaluate, has_distribution, load_evaluation
from diffuserec.evaluation.html import DrawnLists, Example, write_html
from diffuserec.evaluation.inspection import (
    Inspection,
    inspected,
    sampled_rows,
    shown_sequence,
    view_figures,
)
from diffuserec.evaluation.oracle import Oracle
from diffuserec.ranking import hide, seen_pairs, top_k
from diffuserec.training import Epoch, checkpoint_files

_FORMAT = "diffuserec-run"
_VERSION = 1
FLOORS = ("popularity", "markov")
"""Recommenders that cost nothing and stand beside every trained row."""

SplitName = Literal["leave-one-out", "temporal"]


@dataclass(frozen=True)
class Plan:
    """What a run is: enough to train it again.

    Attributes:
        data: the prepared dataset.
        model: name of the recommender.
        settings: its hyper-parameters that are not the defaults.
        augment: name of the augmenter, or None.
        augment_settings: likewise.
        split: how the log is divided.
        seed: of the run.
    """

    data: str
    model: str
    settings: Mapping[str, Any]
    augment: str | None = None
    augment_settings: Mapping[str, Any] | None = None
    split: SplitName = "leave-one-out"
    seed: int = 0

    @property
    def label(self) -> str:
        """How the run is called in tables."""
        return self.model if self.augment is None else f"{self.model} + {self.augment}"


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run read back: its plan, its models, and the log that it was trained on, divided."""

    path: Path
    plan: Plan
    model: Recommender
    augmenter: Augmenter | None
    split: Split
    facts: dict[str, Any]

    def training_data(self) -> SequenceDataset:
        """What the model was trained on: the training part, lengthened by the augmenter if any."""
        train = self.split.train
        return train if self.augmenter is None else self.augmenter.augment(train, self.plan.seed)

    def evaluate(
        self,
        part: Literal["test", "valid"] = "test",
        candidates: str = "full",
        filter_seen: bool = True,
    ) -> Evaluation:
        """Measures the run; the default protocol is read from the run where it stands there."""
        default = candidates == "full" and filter_seen
        if default and (self.path / part / "metrics.json").is_file():
            return load_evaluation(self.path / part)
        queries = self.split.test if part == "test" else self.split.valid
        result = evaluate(
            self.model,
            queries,
            augmenter=self.augmenter,
            filter_seen=filter_seen,
            candidates=candidates,
            seed=self.plan.seed,
            with_uncertainty=default and has_distribution(self.model),
            dataset_name=Path(self.plan.data).name,
            facts={**self.facts, "split": f"{self.split.protocol}, {part}"},
        )
        if default:
            result.save(self.path / part)
        return result


def split_dataset(dataset: SequenceDataset, name: str) -> Split:
    """The log divided by the split of that name.

    Raises:
        ConfigError: there is no such split.
    """
    splits: dict[str, Callable[[SequenceDataset], Split]] = {
        "leave-one-out": leave_one_out,
        "temporal": temporal,
    }
    if name not in splits:
        raise ConfigError(f"no split {name!r}; there are: {', '.join(splits)}")
    return splits[name](dataset)


def augmented(queries: Queries, augmenter: Augmenter | None, seed: int) -> Queries:
    """The queries with lengthened histories."""
    if augmenter is None:
        return queries
    return Queries(augmenter.augment(queries.histories, seed), queries.targets)


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
        ConfigError: `out` holds another run, or one that was not asked to be resumed.
        DataError: the data cannot be used.
    """
    path = Path(out)
    model_class = find("recommender", plan.model)
    parse_settings(model_class.Config, dict(plan.settings), plan.model)
    if plan.augment is not None:
        augmenter_class = find("augmenter", plan.augment)
        parse_settings(augmenter_class.Config, dict(plan.augment_settings or {}), plan.augment)
    dataset = load_dataset(plan.data)
    split = split_dataset(dataset, plan.split)
    _claim(path, plan, run.resume)
    run = replace(run, seed=plan.seed, checkpoint=path / "checkpoint")
    seconds: dict[str, float] = {}
    curve: list[Epoch] = []
    augmenter: Augmenter | None = None
    train_data, start = split.train, time.perf_counter()
    if plan.augment is not None:
        if (path / "augmenter").is_dir():
            augmenter = load(path / "augmenter")
            curve += read_curve(path / "augmenter-curve.json")
        elif augmenter_from is not None:
            augmenter = load(augmenter_from)
            augmenter.save(path / "augmenter")
            _write_json(path / "augmenter-curve.json", [])
        else:
            say(f"fitting {plan.augment}")
            augmenter = augmenter_class(**(plan.augment_settings or {}))
            augmenter.fit(split.train, split.valid, run.stage("augmenter"))
            curve += augmenter.curve
            _write_json(path / "augmenter-curve.json", [asdict(epoch) for epoch in curve])
            augmenter.save(path / "augmenter")
        seconds["fit_augmenter"] = time.perf_counter() - start
        start = time.perf_counter()
        say(f"augmenting {len(split.train):,} histories")
        train_data = augmenter.augment(split.train, plan.seed)
        seconds["augment"] = time.perf_counter() - start
    say(f"training {plan.model}")
    start = time.perf_counter()
    model = model_class(**plan.settings)
    model.fit(train_data, augmented(split.valid, augmenter, plan.seed), run.stage("model"))
    seconds["fit_model"] = time.perf_counter() - start
    curve += model.curve
    model.save(path / "model")
    _write_json(path / "curve.json", [asdict(epoch) for epoch in curve])
    trained = TrainedRun(path, plan, model, augmenter, split, _facts(plan.data, split))
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
        inspection=short_inspection(trained, train_data),
    )
    _write_json(path / "run.json", _document(plan, complete=True, seconds=seconds))
    shutil.rmtree(path / "checkpoint", ignore_errors=True)
    return trained


def open_run(path: Path | str) -> TrainedRun:
    """Reads a finished run back.

    Raises:
        DataError: not a run, not finished, or its data is gone.
    """
    source = Path(path)
    document = _read_run(source)
    if not document["complete"]:
        hint = " (add --resume to its command)" if checkpoint_files(source / "checkpoint") else ""
        raise DataError(f"{source} is a run that has not finished{hint}")
    plan = Plan(**document["plan"])
    split = split_dataset(load_dataset(plan.data), plan.split)
    augmenter = load(source / "augmenter") if plan.augment is not None else None
    return TrainedRun(
        source, plan, load(source / "model"), augmenter, split, _facts(plan.data, split)
    )


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


def _beside(
    results: Mapping[str, list[Evaluation]], like: TrainedRun
) -> dict[str, list[Evaluation]]:
    """The results with the floors after them; a floor trained with other settings keeps its row."""
    floors = floor_evaluations(like.split, like)
    named = {f"{n} (default)" if n in results else n: [floor] for n, floor in floors.items()}
    return {**results, **named}


def compare_runs(
    paths: Sequence[Path | str],
    out: Path | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> Report:
    """One report of several runs, floors included, significance against the first.

    Runs of one plan that differ only in their seed become one row.

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
    report = Report.of(_beside(results, runs[0]))
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
    once, with the first seed, and shared by the row's other seeds, as DiffuASR's authors did.

    Args:
        file: TOML with ``title``, ``seeds`` and ``[[rows]]`` of ``name``, ``model``, ``settings``,
            ``augment``, ``augment_settings`` and, where a row has its own, ``seeds``.
        data: the prepared dataset.
        out: directory of all runs, and of report.txt, report.json (which has the same runs measured
            with seen items kept, too) and report.html.
        run: surroundings; seeds come from the file.

    Raises:
        ConfigError: the file is not a valid experiment.
    """
    title, rows = read_experiment(file, data)
    paths: list[Path] = []
    names: list[str] = []
    for name, plans in rows.items():
        first = out / f"{slug(name)}-seed{plans[0].seed}"
        for plan in plans:
            path = out / f"{slug(name)}-seed{plan.seed}"
            paths.append(path)
            names.append(name)
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
    _write_json(out / "report.json", document)
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
    if (path / "run.json").is_file() and _read_run(path)["complete"]:
        _same_plan(path, plan)
        return
    say(f"{name}, seed {plan.seed}")
    resumed = replace(run, resume=path.exists())
    train_run(plan, path, resumed, augmenter_from=augmenter_from, say=say)


def seen_kept(path: Path) -> Evaluation:
    """A finished run measured on test with seen items kept in the ranking, once for all."""
    if not (path / "test_seen_kept").is_dir():
        open_run(path).evaluate(filter_seen=False).save(path / "test_seen_kept")
    return load_evaluation(path / "test_seen_kept")


def cost(path: Path) -> dict[str, Any]:
    """Seed, seconds, epochs and best validation figure of a finished run."""
    document = _read_run(path)
    valid = [epoch.valid for epoch in read_curve(path / "curve.json") if epoch.valid is not None]
    return {
        "seed": document["plan"]["seed"],
        "seconds": sum(document["seconds"].values()),
        "epochs": len(valid),
        "best_valid": max(valid, default=None),
    }


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
        if row["name"] in plans:
            raise ConfigError(f"{file}: two rows are called {row['name']!r}")
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


def augment_log(
    data: Path | str,
    method: str,
    settings: Mapping[str, Any],
    run: Run,
) -> SequenceDataset:
    """The whole log with synthetic items, for training any other system on.

    The augmenter learns from the training part and sees only the training part when it
    generates: the validation and test items are appended afterwards, untouched.
    """
    dataset = load_dataset(data)
    split = leave_one_out(dataset)
    augmenter = find("augmenter", method)(**settings)
    augmenter.fit(split.train, split.valid, run)
    return append_rest(augmenter.augment(split.train, run.seed), dataset, split.train)


def append_rest(
    longer: SequenceDataset, whole: SequenceDataset, part: SequenceDataset
) -> SequenceDataset:
    """Augmented beginnings of sequences, followed by what the whole sequences have after them.

    Args:
        longer: `part`, augmented.
        whole: the full sequences.
        part: the first items of each.
    """
    rest = whole.slice(whole.offsets[:-1] + part.lengths, whole.offsets[1:])
    lengths = longer.lengths + rest.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    begin = np.repeat(offsets[:-1] - longer.offsets[:-1], longer.lengths)
    items = np.empty(offsets[-1], dtype=np.int32)
    synthetic = np.zeros(offsets[-1], dtype=bool)
    at = begin + np.arange(len(longer.items))
    items[at], synthetic[at] = longer.items, longer.synthetic
    after = np.repeat(offsets[1:] - rest.offsets[1:], rest.lengths) + np.arange(len(rest.items))
    items[after] = rest.items
    times = None
    if longer.timestamps is not None and rest.timestamps is not None:
        times = np.empty(offsets[-1], dtype=np.int64)
        times[at], times[after] = longer.timestamps, rest.timestamps
    return SequenceDataset(items, offsets, whole.catalog, whole.users, synthetic, times)


def demo(out: Path, run: Run, say: Callable[[str], None] = lambda line: None) -> Report:
    """The built-in store: floors, SASRec with and without DiffuASR's items, DiffRec, the best.

    Args:
        out: directory for the prepared log, the runs and report.html.
        run: surroundings.
    """
    mark = out / "demo.json"
    if out.exists() and not mark.is_file():
        raise ConfigError(f"{out} exists and is not a demo's: choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _write_json(mark, {"seed": run.seed})
    say("making the built-in store's log")
    store = Store(n_users=4000, n_items=800, seed=run.seed)
    data = out / "store"
    store.dataset().save(data, note={"source": "the built-in store"})
    settings = {"epochs": 15, "patience": 3}
    plans = {
        "sasrec": Plan(str(data.resolve()), "sasrec", settings, seed=run.seed),
        "sasrec + diffuasr": Plan(
            str(data.resolve()), "sasrec", settings, "diffuasr", {}, seed=run.seed
        ),
        "diffrec": Plan(str(data.resolve()), "diffrec", settings, seed=run.seed),
    }
    results: dict[str, Evaluation] = {}
    trained = {}
    for name, plan in plans.items():
        trained[name] = train_run(plan, out / slug(name), run, say=say)
        results[name] = trained[name].evaluate()
    one = trained["sasrec"]
    results |= floor_evaluations(one.split, one)
    facts = {**one.facts, "split": f"{one.split.protocol}, test"}
    results["oracle"] = evaluate(
        Oracle(store).fit(one.split.train), one.split.test, dataset_name="store", facts=facts
    )
    report = Report.of(results)
    write_html(
        out / "report.html",
        report,
        title="The built-in store",
        curves={name: read_curve(run.path / "curve.json") for name, run in trained.items()},
        examples=examples(trained["sasrec + diffuasr"]),
        drawn=drawn_lists(trained["diffrec"]),
    )
    return report


def examples(run: TrainedRun, n: int = 5) -> list[Example]:
    """Some users' generated items beside their real ones and what came next; short users first."""
    if run.augmenter is None:
        return []
    queries = run.split.test
    rows = np.flatnonzero((queries.histories.lengths >= 3) & (queries.histories.lengths <= 8))[:n]
    if not len(rows):
        rows = np.arange(min(n, len(queries)))
    longer = run.augmenter.augment(queries.histories.select(rows), run.plan.seed)
    names = _display_names(run.split.train)
    found = []
    for place, row in enumerate(rows):
        part = slice(longer.offsets[place], longer.offsets[place + 1])
        made = longer.synthetic[part]
        items = longer.items[part]
        found.append(
            Example(
                user=str(_user_name(run.split.train, int(longer.users[place]))),
                generated=names(items[made]),
                real=names(items[~made]),
                target=names(queries.targets[row : row + 1])[0],
            )
        )
    return found


def drawn_lists(run: TrainedRun, n_users: int = 3, n_items: int = 5) -> list[DrawnLists]:
    """What a generative recommender shows some users: ten draws averaged, and three seeds alone.

    Empty for other recommenders.
    """
    model, queries = run.model, run.split.test
    if not isinstance(model, GenerativeRecommender):
        return []
    model.eval()
    rows = np.flatnonzero((queries.histories.lengths >= 4) & (queries.histories.lengths <= 10))
    rows = rows[:n_users] if len(rows) else np.arange(min(n_users, len(queries)))
    histories = queries.histories.select(rows)
    longer = histories if run.augmenter is None else run.augmenter.augment(histories, run.plan.seed)
    everyone = np.arange(len(rows))
    tables = {"mean of 10 draws": model.averaged(longer, everyone, run.plan.seed, 10).mean}
    for seed in range(3):
        tables[f"one draw, seed {seed}"] = model.averaged(longer, everyone, seed, 1).first
    names = _display_names(run.split.train)
    shown = {
        what: top_k(hide(table, seen_pairs(histories, everyone)), n_items)[1].cpu().numpy()
        for what, table in tables.items()
    }
    return [
        DrawnLists(
            method=run.plan.label,
            user=str(_user_name(run.split.train, int(histories.users[place]))),
            history=names(histories.items[histories.offsets[place] : histories.offsets[place + 1]]),
            target=names(queries.targets[row : row + 1])[0],
            lists={what: names(items[place][items[place] > 0]) for what, items in shown.items()},
        )
        for place, row in enumerate(rows)
    ]


def inspection(
    run: TrainedRun, users: Sequence[str] | None = None, n: int = 3, seed: int = 0
) -> Inspection:
    """What training would contrast now: the views of some users in raw ids, and their figures.

    Args:
        run: of a contrastive recommender.
        users: raw user ids; None draws users from the seed.
        n: how many users to draw.
        seed: of what is random in the views and in who is drawn.

    Raises:
        ConfigError: the run's recommender is not contrastive, or n is below 1.
        DataError: a user is not in the training part, or has fewer than two items there.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    if not isinstance(run.model, ContrastiveRecommender):
        contrastive = [
            name
            for name in method_names("recommender")
            if issubclass(find("recommender", name), ContrastiveRecommender)
        ]
        raise ConfigError(
            f"{run.path} is of {run.plan.model}, which contrasts no views; "
            f"these do: {', '.join(contrastive)}"
        )
    train = run.training_data()
    rows = sampled_rows(train, n, seed) if users is None else _rows_of(train, users)

    def names(items: np.ndarray) -> list[str]:
        return [str(raw) for raw in train.catalog.decode(items)]

    return _inspection(run.model, run.plan.label, train, rows, seed, names)


def short_inspection(
    run: TrainedRun, train: SequenceDataset, n_users: int = 3
) -> Inspection | None:
    """What training contrasts for some users of short histories; None for other recommenders.

    Args:
        run: the run.
        train: what its model was trained on.
        n_users: how many to show.
    """
    rows = trainable_rows(train)
    if not isinstance(run.model, ContrastiveRecommender) or not len(rows):
        return None
    short = rows[(train.lengths[rows] >= 5) & (train.lengths[rows] <= 10)]
    chosen = (short if len(short) else rows)[:n_users]
    names = _display_names(train)
    return _inspection(run.model, run.plan.label, train, chosen, run.plan.seed, names)


def _inspection(
    model: ContrastiveRecommender,
    label: str,
    train: SequenceDataset,
    rows: np.ndarray,
    seed: int,
    names: Callable[[np.ndarray], list[str]],
) -> Inspection:
    max_len = model.config.max_len
    sample = sampled_rows(train, seed=seed)
    return Inspection(
        label,
        seed,
        [
            shown_sequence(sequence, str(_user_name(train, sequence.user)), names, train.vocab_size)
            for sequence in inspected(model, train, rows, max_len, seed)
        ],
        view_figures(inspected(model, train, sample, max_len, seed), model.encoder.table),
        len(sample),
    )


def _rows_of(train: SequenceDataset, users: Sequence[str]) -> np.ndarray:
    """The rows of raw user ids, each with two items or more."""
    ids = train.catalog.user_ids
    known = (pl.Series(np.arange(train.catalog.n_users)) if ids is None else ids).cast(pl.String)
    rows, trainable = [], trainable_rows(train)
    for user in users:
        number = known.index_of(user)
        found = np.flatnonzero(train.users == (-1 if number is None else number))
        if not len(found):
            raise DataError(f"the training part holds no user {user!r}")
        row = int(found[0])
        if not (trainable == row).any():
            raise DataError(
                f"user {user!r} has too few training items ({train.real_lengths[row]}): a sequence "
                "to contrast and the item that comes next take two"
            )
        rows.append(row)
    return np.array(rows)


def description(data: Path | str) -> dict[str, Any]:
    """What a prepared dataset holds, for printing."""
    dataset = load_dataset(data)
    lengths = dataset.real_lengths
    counts = np.bincount(dataset.items, minlength=dataset.vocab_size)[1:]
    ranked = np.sort(counts)[::-1]
    top_share = ranked[: max(1, len(ranked) // 10)].sum() / max(1, ranked.sum())
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 0.9, 1]).astype(int)
    short, medium, long = (
        int(((lengths >= low) & (lengths <= high)).sum())
        for low, high in ((0, 5), (6, 20), (21, np.iinfo(np.int64).max))
    )
    facts: dict[str, Any] = {
        "source": dataset_manifest(data)["note"].get("source", "not stated"),
        "filters": dataset_manifest(data)["note"].get("filters", "none"),
        "users": len(dataset),
        "items": dataset.catalog.n_items,
        "interactions": int(lengths.sum()),
        "synthetic": int(dataset.synthetic.sum()),
        "density": f"{lengths.sum() / max(1, len(dataset) * dataset.catalog.n_items):.4%}",
        "history length min/25%/50%/75%/90%/max": "/".join(str(q) for q in quantiles),
        "users with at most 5, 6-20, more than 20": f"{short:,} / {medium:,} / {long:,}",
        "share of the most popular tenth of items": f"{top_share:.1%}",
        "timestamps": "yes" if dataset.timestamps is not None else "no, order only",
    }
    if not dataset.synthetic.any() and (lengths >= 3).any():
        split = leave_one_out(dataset)
        facts["users too short for leave-one-out"] = split.n_too_short
        facts["test targets that are repeats"] = f"{split.test.repeat_share:.2%}"
    return facts


def recommend_from(
    run: Path,
    history: Sequence[str] | None,
    histories: Path | None,
    *,
    columns: Mapping[str, str | None] | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> pl.DataFrame:
    """Recommendations of a finished run for one history, or for every user of a log.

    Only the run's models are read, not its data.

    Args:
        run: the run's directory.
        history: raw item ids, oldest first.
        histories: a log, when no single history is given; its users become ``user_id``.
        columns: ``format, user, item, time`` of that log, as :func:`read_log` takes them.
        out: a ``.csv``, ``.parquet`` or ``.jsonl`` file to write as well.
        say: told when histories are longer than the model looks back.
        options: of :meth:`Recommender.recommend`.
    """
    model: Recommender = load(run / "model")
    augmenter = load(run / "augmenter") if (run / "augmenter").is_dir() else None
    writers = {".csv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}
    if out is not None and out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    if out is not None and out.suffix not in writers:
        raise ConfigError(f"--out must end in {', '.join(writers)}, got {out.name!r}")
    max_len = model.config.model_dump().get("max_len")

    def lists(asked: list[Sequence[Any]]) -> pl.DataFrame:
        n_longer = sum(max_len is not None and len(items) > max_len for items in asked)
        if n_longer:
            say(
                f"{n_longer:,} of {len(asked):,} histories are longer than the {max_len} items "
                f"that {model.name} looks back on: only their newest {max_len} count"
            )
        return model.recommend(asked, augmenter=augmenter, **options)

    if history is not None:
        frame = lists([history]).drop("query")
    else:
        if histories is None:
            raise ConfigError("give a history or a file of histories")
        log = read_log(histories, allow_single=True, **(columns or {})).frame
        grouped = log.group_by("user_id", maintain_order=True).agg("item_id")
        frame = lists(grouped["item_id"].to_list())
        users = grouped.select("user_id").with_row_index("query").cast({"query": pl.Int64})
        frame = frame.join(users, on="query", maintain_order="left").select(
            "user_id", pl.exclude("query", "user_id")
        )
    if out is not None:
        work = out.with_name(f".{out.name}.partial")
        getattr(frame, writers[out.suffix])(work)
        work.replace(out)
    return frame


def _display_names(dataset: SequenceDataset) -> Callable[[np.ndarray], list[str]]:
    catalog = dataset.catalog
    if catalog.attributes is not None and "name" in catalog.attributes.columns:
        names = catalog.attributes["name"]
        return lambda items: names.gather(items - 1).to_list()
    return lambda items: [str(raw) for raw in catalog.decode(items)]


def _user_name(dataset: SequenceDataset, user: int) -> Any:
    ids = dataset.catalog.user_ids
    return user if ids is None else ids[user]


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


def _facts(data: str, split: Split) -> dict[str, Any]:
    filters = dataset_manifest(data)["note"].get("filters", "none")
    return {"filters": filters, "n_too_short": split.n_too_short}


def _claim(path: Path, plan: Plan, resume: bool) -> None:
    if path.exists() and any(path.iterdir()):
        document = _read_run(path)
        if not resume:
            raise ConfigError(
                f"{path} holds a run already: choose another --out, or add --resume to continue it"
            )
        if document["complete"]:
            raise ConfigError(f"{path} is finished: there is nothing to resume")
        _same_plan(path, plan)
        return
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "run.json", _document(plan, complete=False, seconds={}))


def _same_plan(path: Path, plan: Plan) -> None:
    started = _read_run(path)["plan"]
    for what, value in json.loads(json.dumps(asdict(plan))).items():
        if started[what] != value:
            raise ConfigError(
                f"{path} was started with {what} = {started[what]}, not {value}: "
                "use the same, or another --out"
            )


def _document(plan: Plan, complete: bool, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "complete": complete,
        "plan": asdict(plan),
        "seconds": dict(seconds),
    }


def _read_run(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((path / "run.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a run: 'diffuserec train' makes one") from error
    if document.get("format") != _FORMAT or document.get("version") != _VERSION:
        raise DataError(f"{path / 'run.json'} is of another format or version")
    return document


def read_curve(file: Path) -> list[Epoch]:
    """The epochs of a run, from its ``curve.json``."""
    return [Epoch(**record) for record in json.loads(file.read_text())]


def _write_json(path: Path, content: Any) -> None:
    work = path.with_name(f".{path.name}.partial")
    work.write_text(json.dumps(content, indent=2) + "\n")
    work.replace(path)


def slug(name: str) -> str:
    """The name as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-").replace("---", "-")
