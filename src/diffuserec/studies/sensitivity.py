"""A model's figures against one of its settings: what papers plot, from a file to a figure.

A curve file names a model, the settings that all points share, and what is varied:

    title = "..."
    seeds = [0]
    model = "diffrec"
    settings = { epochs = 12 }          # of every point
    setting = "num_train_timesteps"     # what is varied
    values = [10, 50, 200, 1000]
    at = "training"                     # or "inference"

or, instead of ``setting`` and ``values``, points with names:

    [[points]]
    name = "no step embedding"
    settings = { step_embedding = false }

``at = "training"`` trains a model for each point. ``at = "inference"`` trains one with the common
settings and measures it again under each point's; settings that change what is learned, or the
shape of it, make no sense there: a parameter of another shape is refused.

The directory of a curve holds a run for each point and seed (one for each seed at inference, with
``points/<settings>/`` in it), ``curve.json``, ``curve.md`` and ``curve.svg``.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
import polars as pl

from diffuserec.models.base import Recommender, Run, find, parse_settings
from diffuserec.data import load_dataset
from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation, Report, evaluate, load_evaluation
from diffuserec.studies.experiment import complete_run, read_toml, require_buildable, seeds_of, slug
from diffuserec.studies.run_directory import Plan, TrainedRun, open_run, read_curve
from diffuserec.training.loop import device_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = ("NDCG@10", "HR@10")
"""What the table and the figure show; curve.json has every metric."""

_KEYS = ("title", "seeds", "model", "settings", "setting", "values", "points", "at")
_LOG_FROM = 20  # greatest over least value from which the axis is logarithmic
_GRID, _LINE = "#d8dee4", "#0550ae"


@dataclass(frozen=True)
class Point:
    """One place on the curve.

    Attributes:
        name: in the table and on an axis of names.
        value: of the setting that is varied; None for a point that was given by name.
        settings: hyper-parameters that differ from the common ones.
    """

    name: str
    value: Any
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Its settings as the name of a directory."""
        changed = ",".join(f"{n}={v}" for n, v in sorted(self.settings.items()))
        return quote(changed or "common", safe="=,")


@dataclass(frozen=True)
class CurvePlan:
    """What a curve file asks for.

    Attributes:
        title: of table and figure.
        model: name of the recommender.
        settings: hyper-parameters of every point.
        seeds: of the runs.
        at: whether a point is trained, or only measured.
        setting: what is varied, or None where points are given by name.
        points: in the order of the file.
    """

    title: str
    model: str
    settings: Mapping[str, Any]
    seeds: list[int]
    at: Literal["training", "inference"]
    setting: str | None
    points: list[Point]


@dataclass(frozen=True, eq=False)
class _Measured:
    """A point of one seed: the run, and what it came to on the test queries."""

    run: Path
    test: Evaluation


def run_curve(
    file: Path,
    data: Path,
    out: Path,
    run: Run,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains and measures every point of a curve file that is not done yet; writes the results.

    Args:
        file: TOML, as the module describes it.
        data: the prepared dataset.
        out: directory of all runs, and of curve.json, curve.md and curve.svg.
        run: surroundings; seeds come from the file.
        say: told what is going on, a line at a time.

    Returns:
        What curve.json holds; :func:`markdown` makes the table of it.

    Raises:
        ConfigError: the file is not a valid curve; then nothing is trained.
    """
    plan = read_curve_plan(file)
    base = Plan(str(data.resolve()), plan.model, plan.settings)
    measure = _trained if plan.at == "training" else _remeasured
    by_seed = [measure(plan, replace(base, seed=seed), out, run, say) for seed in plan.seeds]
    document = _document(plan, data.resolve().name, by_seed)
    _write(out / "curve.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    _write(out / "curve.md", markdown(document))
    write_figure(out / "curve.svg", document["title"], 2, lambda axes: _plot(axes, document))
    return document


def read_curve_plan(file: Path) -> CurvePlan:
    """A curve file, with every setting of every point checked.

    Raises:
        ConfigError: not TOML, keys that are unknown or missing, no points, the same point twice,
            or a setting that the model does not have or allow.
    """
    content = read_toml(file)
    unknown = content.keys() - set(_KEYS)
    if unknown:
        raise ConfigError(
            f"{file} has unknown keys {', '.join(sorted(unknown))}; there are: {', '.join(_KEYS)}"
        )
    model, common = content.get("model"), content.get("settings", {})
    if not isinstance(model, str) or not isinstance(common, dict):
        raise ConfigError(f'{file} needs model = "name", and settings are a table')
    at = content.get("at", "training")
    if at not in ("training", "inference"):
        raise ConfigError(f'{file}: at must be "training" or "inference", got {at!r}')
    setting, points = _points(file, content)
    plan = CurvePlan(
        title=str(content.get("title", file.stem)),
        model=model,
        settings=common,
        seeds=seeds_of(file, content, [0]),
        at=at,
        setting=setting,
        points=points,
    )
    schema = find("recommender", model).Config
    parse_settings(schema, dict(common), model)
    names: dict[str, str] = {}
    configs: dict[str, Any] = {}
    for point in points:
        config = parse_settings(schema, {**common, **point.settings}, model)
        folder = _folder(plan, point)
        if folder in names:
            raise ConfigError(
                f"{file}: points {names[folder]!r} and {point.name!r} would share the directory "
                f"{folder}: give each a name of its own"
            )
        same = next((name for name, other in configs.items() if other == config), None)
        if same is not None:
            raise ConfigError(f"{file}: points {same!r} and {point.name!r} have the same settings")
        names[folder], configs[point.name] = point.name, config
    return plan


def markdown(document: Mapping[str, Any]) -> str:
    """The table of a curve: test figures of each point, means over the seeds.

    Args:
        document: what curve.json holds.
    """
    trained = document["at"] == "training"
    header = [document["setting"] or "point", *METRICS]
    header += ["best validation NDCG@10", "epochs", "training, s"] if trained else []
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for point in document["points"]:
        cells = [point["metrics"][metric] for metric in METRICS]
        row = [point["name"].replace("|", "\\|")]
        row += [f"{cell['value']:.4f} ± {cell['margin']:.4f}" for cell in cells]
        rows.append(row + (list(_training(point["runs"])) if trained else []))
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    seeds = ", ".join(str(seed) for seed in document["seeds"])
    said = [
        f"{document['model']} on {document['data']}, test; ± half of the 95 % interval over users. "
        f"Seeds: {seeds}{' (means)' if len(document['seeds']) > 1 else ''}."
    ]
    if not trained:
        valid, epochs, seconds = _training(document["points"][0]["runs"])
        said[0] += (
            f" One model was trained for each seed (best validation NDCG@10 {valid}, {epochs} "
            f"epochs, {seconds} s) and measured at every point."
        )
    said += [document["protocol"], *(f"Note: {note}." for note in document["notes"])]
    return "\n\n".join([f"# {document['title']}", table, *said]) + "\n"


def write_figure(
    path: Path, title: str, n_panels: int, draw: Callable[[Sequence["Axes"]], None]
) -> None:
    """Writes a standalone SVG on a white ground; text stays text, the same input same bytes.

    Args:
        path: of the file, which appears whole or not at all.
        title: above the panels.
        n_panels: side by side.
        draw: fills the axes.
    """
    import matplotlib as mpl  # here, since training needs no figures
    from matplotlib.figure import Figure

    work = path.with_name(f".{path.name}.partial")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "diffuserec", "text.parse_math": False}
        )
        figure = Figure(figsize=(4.6 * n_panels, 3.5), layout="constrained", facecolor="white")
        figure.suptitle(title, fontsize=12)
        axes = [figure.add_subplot(1, n_panels, place + 1) for place in range(n_panels)]
        for panel in axes:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(axis="y", color=_GRID, linewidth=0.7)
            panel.set_axisbelow(True)
        draw(axes)
        figure.savefig(work, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    work.replace(path)


def _points(file: Path, content: Mapping[str, Any]) -> tuple[str | None, list[Point]]:
    """The setting that is varied, if one is, and the points."""
    if "points" in content:
        given = content["points"]
        if "setting" in content or "values" in content:
            raise ConfigError(f"{file} has points besides setting and values: give one of the two")
        if not isinstance(given, list) or not given:
            raise ConfigError(f"{file}: points are [[points]] tables, at least one")
        points = []
        for point in given:
            if not isinstance(point, dict) or point.keys() != {"name", "settings"}:
                got = ", ".join(point) if isinstance(point, dict) else repr(point)
                raise ConfigError(f"{file}: a point needs name and settings alone; got {got}")
            if not isinstance(point["settings"], dict):
                raise ConfigError(f"{file}: settings of {point['name']!r} are not a table")
            points.append(Point(str(point["name"]), None, point["settings"]))
        return None, points
    missing = [key for key in ("setting", "values") if key not in content]
    if missing:
        raise ConfigError(f"{file} has no {missing[0]}: it needs setting and values, or [[points]]")
    setting, values = content["setting"], content["values"]
    if not isinstance(setting, str) or not isinstance(values, list) or not values:
        raise ConfigError(f"{file}: setting is a name, and values a list of at least one value")
    return setting, [Point(_shown(value), value, {setting: value}) for value in values]


def _folder(plan: CurvePlan, point: Point) -> str:
    return slug(point.name if plan.setting is None else f"{plan.setting} {point.name}")


def _trained(
    plan: CurvePlan, base: Plan, out: Path, run: Run, say: Callable[[str], None]
) -> dict[str, _Measured]:
    """By point: a run of its own."""
    plans = [replace(base, settings={**base.settings, **p.settings}) for p in plan.points]
    catalog = load_dataset(base.data).catalog
    for planned in plans:
        require_buildable(planned, catalog)
    found = {}
    for point, planned in zip(plan.points, plans, strict=True):
        path = out / f"{_folder(plan, point)}-seed{base.seed}"
        complete_run(point.name, planned, path, run, say=say)
        found[point.name] = _Measured(path, load_evaluation(path / "test"))
    return found


def _remeasured(
    plan: CurvePlan, base: Plan, out: Path, run: Run, say: Callable[[str], None]
) -> dict[str, _Measured]:
    """By point: the one run's model under the point's settings, each measured once."""
    path = out / f"{slug(plan.model)}-seed{base.seed}"
    complete_run(plan.model, base, path, run, say=say)
    trained: TrainedRun | None = None
    found = {}
    for point in plan.points:
        stored = path / "points" / point.key
        if not (stored / "metrics.json").is_file():
            trained = trained or open_run(path)
            say(f"measuring {point.name}, seed {base.seed}")
            evaluate(
                _resettled(trained, point, run),
                trained.split.test,
                seed=base.seed,
                dataset_name=Path(base.data).name,
                facts={**trained.facts, "split": f"{trained.split.protocol}, test"},
            ).save(stored)
        found[point.name] = _Measured(path, load_evaluation(stored))
    if len(found) > 1 and len({json.dumps(point.test.metrics) for point in found.values()}) == 1:
        raise ConfigError(
            f"every point measures the same: {plan.setting or 'what differs'} has no say in a "
            'trained model; use at = "training"'
        )
    return found


def _resettled(trained: TrainedRun, point: Point, run: Run) -> Recommender:
    """The model built anew with the point's settings and given the parameters it had.

    Built anew, since what follows from the settings (a schedule) would not follow a new ``config``.
    """
    settings = {**trained.model.config.model_dump(), **point.settings}
    model = type(trained.model)(**settings)
    model.begin(trained.split.train, run)
    try:
        model.load_state_dict(trained.model.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"{point.name}: these settings change what {model.name} learns and can't be changed in "
            'a trained model: use at = "training"'
        ) from error
    return model.to(device_of(run))


def _document(
    plan: CurvePlan, data: str, by_seed: Sequence[Mapping[str, _Measured]]
) -> dict[str, Any]:
    names = [point.name for point in plan.points]
    report = Report.of({name: [found[name].test for found in by_seed] for name in names})
    points = []
    for point in plan.points:
        summary = report.summary.filter(pl.col("group") == "all", method=point.name)
        points.append(
            {
                "name": point.name,
                "value": point.value,
                "settings": point.settings,
                "metrics": {
                    row["metric"]: {what: row[what] for what in ("value", "margin", "seed_std")}
                    for row in summary.iter_rows(named=True)
                },
                "runs": [_run_facts(found[point.name]) for found in by_seed],
            }
        )
    return {
        "title": plan.title,
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


def _training(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """Best validation figure, epochs and seconds of training, as means over the runs."""
    valid, epochs, seconds = (
        float(np.mean([run[what] for run in runs])) for what in ("best_valid", "epochs", "seconds")
    )
    return f"{valid:.4f}", f"{epochs:.4g}", f"{seconds:,.1f}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plot(axes: Sequence["Axes"], document: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    points = document["points"]
    numeric = all(_is_number(point["value"]) for point in points)
    if numeric:
        points = sorted(points, key=lambda point: float(point["value"]))
    x = [point["value"] if numeric else place for place, point in enumerate(points)]
    for panel, metric in zip(axes, METRICS, strict=True):
        cells = [point["metrics"][metric] for point in points]
        panel.errorbar(
            x,
            [cell["value"] for cell in cells],
            yerr=[cell["margin"] for cell in cells],
            color=_LINE,
            marker="o",
            linestyle="-" if numeric else "none",
            elinewidth=1,
            capsize=3,
        )
        panel.set_ylim(bottom=max(0.0, panel.get_ylim()[0]))
        panel.set_ylabel(f"{metric}, test")
        panel.set_xlabel(document["setting"] or "")
        names = [point["name"] for point in points]
        if not numeric:
            crowded = sum(map(len, names)) > 40
            look: dict[str, Any] = {"rotation": 20, "ha": "right"} if crowded else {}
            panel.set_xticks(x, names, **look)
            panel.set_xlim(-0.5, len(x) - 0.5)
        elif x[0] > 0 and x[-1] / x[0] > _LOG_FROM:
            panel.set_xscale("log")
            panel.set_xticks(x, names)
            panel.set_xticks([], minor=True)
        elif all(isinstance(value, int) for value in x):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _write(path: Path, text: str) -> None:
    work = path.with_name(f".{path.name}.partial")
    work.write_text(text, encoding="utf-8")
    work.replace(path)
