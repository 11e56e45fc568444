"""Sensitivity study: test metrics of a model at several values of one of its settings.

    title = "..."
    seeds = [0]
    model = "diffrec"
    settings = { epochs = 12 }          # of every point
    setting = "num_train_timesteps"     # the setting that is varied
    values = [10, 50, 200, 1000]
    at = "training"                     # or "inference"

or, instead of ``setting`` and ``values``, points with names:

    [[points]]
    name = "no step embedding"
    settings = { step_embedding = false }

``at = "training"`` trains a model for each point. ``at = "inference"`` trains one with the common
settings and measures it again under each point's; settings that change what is learned, or the
shape of it, make no sense there: a parameter of another shape is refused.

The directory of a study holds a run for each point and seed (one for each seed at inference, with
``points/<settings>/`` in it), ``sensitivity.json``, ``sensitivity.md`` and ``sensitivity.svg``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import polars as pl
import torch
from pydantic import Field, model_validator

from diffuserec.data import load_dataset
from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation, load_evaluation
from diffuserec.files import locked, sweep, write_json, write_text
from diffuserec.models.base import Method, Runtime
from diffuserec.models.config import parse_settings
from diffuserec.models.methods import find_recommender
from diffuserec.reports.report import Report
from diffuserec.reports.sensitivity import METRICS, draw_svg, plot_sensitivity, sensitivity_table
from diffuserec.studies.run_directory import Plan, RunDirectory, open_run, read_curve
from diffuserec.studies.study_file import Seeds, StudyTable, read_study, slug
from diffuserec.studies.train_run import Say, complete_run, require_buildable, silent
from diffuserec.training.device import device_of

AnyMethod = TypeVar("AnyMethod", bound=Method)


class Point(StudyTable):
    """A point of the study: settings under which the model is measured, and their name.

    Attributes:
        name: in the table and on an axis of names.
        settings: hyper-parameters that differ from the common ones.
    """

    name: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Its settings as the name of a directory."""
        changed = ",".join(f"{n}={v}" for n, v in sorted(self.settings.items()))
        return quote(changed or "common", safe="=,")


class Sensitivity(StudyTable):
    """Content of a study file.

    Attributes:
        title: of table and figure; by default the name of the file.
        model: name of the recommender.
        settings: hyper-parameters of every point.
        seeds: of the runs.
        at: whether a point is trained, or only measured.
        setting: name of the setting that is varied; None if points are given by name.
        values: of that setting.
        points: given by name.
    """

    title: str | None = None
    model: str
    settings: dict[str, Any] = Field({})
    seeds: Seeds = Field([0])
    at: Literal["training", "inference"] = "training"
    setting: str | None = None
    values: list[Any] | None = Field(None, min_length=1)
    points: list[Point] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [x is not None for x in (self.setting, self.values, self.points)]
        if given not in ([True, True, False], [False, False, True]):
            raise ValueError("it needs either setting and values or [[points]]")
        schema = find_recommender(self.model).Config
        parse_settings(schema, self.settings, self.model)
        names: dict[str, str] = {}
        configs: dict[str, Any] = {}
        for point in self.all_points:
            config = parse_settings(schema, {**self.settings, **point.settings}, self.model)
            folder = self.folder(point)
            if folder in names:
                raise ValueError(
                    f"points {names[folder]!r} and {point.name!r} would share the directory "
                    f"{folder}: give each a name of its own"
                )
            same = next((name for name, other in configs.items() if other == config), None)
            if same is not None:
                raise ValueError(f"points {same!r} and {point.name!r} have the same settings")
            names[folder], configs[point.name] = point.name, config
        return self

    @property
    def all_points(self) -> list[Point]:
        """Points in the order of the file, those of the values if they are given."""
        if self.setting is None or self.values is None:
            return self.points or []
        words = [str(v).lower() if isinstance(v, bool) else str(v) for v in self.values]
        return [
            Point(name=word, settings={self.setting: value})
            for word, value in zip(words, self.values, strict=True)
        ]

    def folder(self, point: Point) -> str:
        """Name of a point's directory, without its seed."""
        return slug(point.name if self.setting is None else f"{self.setting} {point.name}")

    def value(self, point: Point) -> Any:
        """Value of the varied setting at a point; None for a point that was given by name."""
        return None if self.setting is None else point.settings[self.setting]


@dataclass(frozen=True, eq=False)
class _Measured:
    """A point with one seed: directory of the run, and test evaluation."""

    run: Path
    test: Evaluation


def run_sensitivity(
    file: Path, data: Path, out: Path, runtime: Runtime, say: Say = silent
) -> dict[str, Any]:
    """Trains and measures every point that is not done yet; writes the results.

    Args:
        out: directory of all runs and of the results.
        runtime: device and the like; seeds come from the file.

    Returns:
        The content of sensitivity.json.

    Raises:
        ConfigError: the file is not a valid study; then nothing is trained.
        DataError: another process runs it, or runs that are there are of other data.
    """
    plan = read_study(file, Sensitivity)
    base = Plan(str(data.resolve()), plan.model, plan.settings)
    measure = _trained if plan.at == "training" else _remeasured
    title = plan.title or file.stem
    with locked(out):
        by_seed = [
            measure(plan, replace(base, seed=seed), out, runtime, say) for seed in plan.seeds
        ]
        document = _document(plan, title, data.resolve().name, by_seed)
        write_json(out / "sensitivity.json", document)
        write_text(out / "sensitivity.md", sensitivity_table(document))
        svg = out / "sensitivity.svg"
        draw_svg(svg, title, len(METRICS), lambda axes: plot_sensitivity(axes, document))
        sweep(out)
    return document


def _trained(
    plan: Sensitivity, base: Plan, out: Path, runtime: Runtime, say: Say
) -> dict[str, _Measured]:
    """Results by point, each of a run of its own."""
    plans = [replace(base, settings={**base.settings, **p.settings}) for p in plan.all_points]
    dataset = load_dataset(base.data)
    for planned in plans:
        require_buildable(planned, dataset.catalog)
    found = {}
    for point, planned in zip(plan.all_points, plans, strict=True):
        path = out / f"{plan.folder(point)}-seed{base.seed}"
        complete_run(point.name, planned, path, dataset.fingerprint, runtime, say=say)
        found[point.name] = _Measured(path, load_evaluation(path / "test"))
    return found


def _remeasured(
    plan: Sensitivity, base: Plan, out: Path, runtime: Runtime, say: Say
) -> dict[str, _Measured]:
    """Results by point, all of one run's model under the point's settings."""
    path = out / f"{slug(plan.model)}-seed{base.seed}"
    complete_run(plan.model, base, path, load_dataset(base.data).fingerprint, runtime, say=say)
    run: RunDirectory | None = None
    found = {}
    for point in plan.all_points:
        stored = path / "points" / point.key
        if not (stored / "metrics.json").is_file():
            run = run or open_run(path, base.data)
            say(f"measuring {point.name}, seed {base.seed}")
            model = with_settings(run.model, point.settings).to(device_of(runtime))
            run.measure(model, seed=base.seed).save(stored)
        found[point.name] = _Measured(path, load_evaluation(stored))
    if len(found) > 1 and len({json.dumps(point.test.metrics) for point in found.values()}) == 1:
        raise ConfigError(
            f"every point measures the same: {plan.setting or 'what differs'} has no effect on a "
            'trained model; use at = "training"'
        )
    return found


def with_settings(method: AnyMethod, settings: Mapping[str, Any]) -> AnyMethod:
    """A copy of a fitted method under other settings, with the parameters that it learned.

    Built anew, since what follows from the settings (a schedule) would not follow a new ``config``.

    Raises:
        ConfigError: settings that are wrong, or that change what is learned.
    """
    other = type(method)(**{**method.config.model_dump(), **settings})
    with torch.random.fork_rng():
        other.take(method.catalog)
    try:
        other.load_state_dict(method.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"settings {dict(settings)} change what {method.name} learns and can't be changed in a "
            'trained model: use at = "training"'
        ) from error
    return other.to(method.device).eval()


def _document(
    plan: Sensitivity, title: str, data: str, by_seed: Sequence[Mapping[str, _Measured]]
) -> dict[str, Any]:
    names = [point.name for point in plan.all_points]
    report = Report.of({name: [found[name].test for found in by_seed] for name in names})
    points = []
    for point in plan.all_points:
        summary = report.summary.filter(pl.col("group") == "all", method=point.name)
        points.append(
            {
                "name": point.name,
                "value": plan.value(point),
                "settings": point.settings,
                "metrics": {
                    cell["metric"]: {what: cell[what] for what in ("value", "margin", "seed_std")}
                    for cell in summary.iter_rows(named=True)
                },
                "runs": [_run_facts(found[point.name]) for found in by_seed],
            }
        )
    return {
        "title": title,
        "model": plan.model,
        "data": data,
        "at": plan.at,
        "setting": plan.setting,
        "settings": plan.settings,
        "seeds": plan.seeds,
        "protocol": report.protocol,
        "notes": list(report.notes),
        "points": points,
        "comparisons": report.comparisons.filter(pl.col("group") == "all").to_dicts(),
    }


def _run_facts(measured: _Measured) -> dict[str, Any]:
    epochs = read_curve(measured.run / "curve.json")
    return {
        "run": measured.run.name,
        "seed": measured.test.protocol.seed,
        "metrics": measured.test.metrics,
        "best_valid": load_evaluation(measured.run / "valid").metrics["NDCG@10"],
        "epochs": len(epochs),
        "seconds": sum(epoch.seconds for epoch in epochs),
    }
