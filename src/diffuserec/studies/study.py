"""A study: rows, data sets, splits, seeds and protocols of a TOML file, and the cells they make.

    title = "What items in front of histories do"
    data = ["beauty", "ml-1m"]
    seeds = [0, 1, 2]
    protocols = ["full", "uniform:100", "seen kept"]

    [settings]                       # of a method in whatever row it stands, or of all recommenders
    recommenders = { epochs = 60 }
    sasrec = { dim = 128 }

    [[rows]]                         # every recommender with every augmenter
    model = ["sasrec", "gru4rec"]
    augment = ["none", "random", "diffuasr"]

    [[rows]]                         # a point a value: a curve
    model = "diffrec"
    grid = { num_train_timesteps = [10, 50, 200] }

docs/studies.md explains each key with an example.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from diffuserec.data.splits import require_split, split_beside
from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.evaluation.candidates import n_candidates
from diffuserec.evaluation.metrics import parse_metric
from diffuserec.models.base import Method
from diffuserec.models.config import by_log, parse_settings
from diffuserec.models.methods import find_augmenter, find_recommender, preset_of
from diffuserec.studies.data_sets import parse_data
from diffuserec.studies.method_config import read_config
from diffuserec.studies.published import published_table
from diffuserec.studies.run_directory import Plan
from diffuserec.studies.study_file import Seeds, StudyTable, read_study, slug
from diffuserec.studies.train_run import methods_of

NO_AUGMENTER = "none"
SEEN_KEPT = "seen kept"
ALL_RECOMMENDERS = "recommenders"
"""Where settings are by method: every row's recommender that has them."""


class Row(StudyTable):
    """One row of a table, or several: one for each recommender, augmenter and point of the grid.

    Attributes:
        name: in tables; by default the names of recommender and augmenter.
        model: a recommender or several.
        augment: an augmenter or several; ``none`` is none.
        settings: of the recommender, over those of the study.
        augment_settings: of the augmenter, over those of the study.
        preset: ``as_published`` begins from the settings of the method's paper, another name from
            that preset of the recommender's.
        grid: values by setting; ``augment.n_items`` is the augmenter's ``n_items``. All
            combinations are rows.
        at: whether a point of the grid is trained, or one trained model is measured under each.
        config: file of settings that ``tune`` wrote, beside the study; what stands here holds over
            it.
        trials: different settings that were validated elsewhere to choose these.
        choose: only the point with the best validation is measured on the test part.
        against: row that this one is compared with, where it is not the study's; among several
            methods of a row, the one that is named has the study's.
        seeds: where they are not the study's.
    """

    name: str | None = None
    model: str | list[str]
    augment: str | list[str] = NO_AUGMENTER
    settings: dict[str, Any] = Field({})
    augment_settings: dict[str, Any] = Field({})
    preset: str | None = None
    config: str | None = None
    trials: int = Field(1, ge=1)
    grid: dict[str, list[Any]] = Field({})
    at: Literal["training", "inference"] = "training"
    choose: bool = False
    against: str | None = None
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name and (isinstance(self.model, list) or isinstance(self.augment, list)):
            raise ValueError("a row of several methods is named by them: leave out its name")
        for setting, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {setting} has no values")
        if not self.grid and (self.choose or self.at == "inference"):
            raise ValueError("choose and at need a grid")
        if self.at == "inference" and any(name.startswith("augment.") for name in self.grid):
            raise ValueError('an augmenter is fitted for each point: use at = "training"')
        if self.choose and self.at == "inference":
            raise ValueError("choose picks among trained points: leave out at")
        return self


class Small(StudyTable):
    """What ``--budget small`` changes: a check that all of a study runs, not a result.

    Attributes:
        seeds: instead of the study's, and of every row's.
        users: at most so many users of each log, drawn with seed 0.
        settings: over those of the study and of every row, by method.
        data: instead of the study's.
    """

    seeds: Seeds = Field([0])
    users: int | None = Field(None, ge=10)
    settings: dict[str, dict[str, Any]] = Field({})
    data: list[str] | None = None


class PublishedCurve(StudyTable):
    """Validation by epoch that another code reached, to stand beside what is measured.

    Attributes:
        name: whose it is.
        epochs: counted from 1, rising.
        values: NDCG@10, one for each of the epochs.
    """

    name: str
    epochs: list[int] = Field(min_length=1)
    values: list[float] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.epochs) != len(self.values):
            raise ValueError(f"{len(self.epochs)} epochs, but {len(self.values)} values")
        if self.epochs[0] < 1 or self.epochs != sorted(set(self.epochs)):
            raise ValueError("epochs are counted from 1 and rise")
        return self


class Study(StudyTable):
    """Content of a study file.

    Attributes:
        title: of tables and pages.
        text: what is asked, and what one must know to read the answer.
        data: names of data sets; ``store`` is the built-in one, ``beauty:1000`` a thousand users.
        splits: see ``diffuserec train --split``; a file's path counts from that of the study.
        seeds: of every row that has none of its own.
        protocols: ``full``, ``uniform:100`` and, with items of the history in the lists,
            ``seen kept`` or ``uniform:100, seen kept``.
        part: what tables show; with ``valid`` the test part is never looked at.
        metrics: columns of the table, the one that decides first.
        floors: recommenders without training that stand beside every study.
        against: row that the others are compared with; by default the first, and for an augmented
            row the same recommender alone.
        published: name of a published table to show beside what was measured.
        published_curve: of a study of the validation part: what stands in the table of validation
            by epoch, and gives its columns.
        settings: of a method, in whatever row it stands, or under ``recommenders`` of every row's
            recommender that has them; those of a method hold over these.
        rows: what is trained and measured.
        small: changes of ``--budget small``.
    """

    title: str
    text: str = ""
    data: list[str] = Field(min_length=1)
    splits: list[str] = Field(["leave-one-out"], min_length=1)
    seeds: Seeds = Field([0])
    protocols: list[str] = Field(["full"], min_length=1)
    part: Literal["test", "valid"] = "test"
    metrics: list[str] = Field(["NDCG@10", "HR@10"], min_length=1)
    floors: list[str] = Field(["popularity", "markov"])
    against: str | None = None
    published: str | None = None
    published_curve: PublishedCurve | None = None
    settings: dict[str, dict[str, Any]] = Field({})
    rows: list[Row] = Field(min_length=1)
    small: Small = Field(default_factory=lambda: Small.model_validate({}))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for protocol in self.protocols:
            parse_protocol(protocol)
        for metric in self.metrics:
            parse_metric(metric)
        for split in self.splits:
            require_split(split)
        for name in self.data:
            parse_data(name)
        if self.published is not None:
            published_table(self.published)
        if self.published_curve is not None and self.part != "valid":
            raise ValueError('published_curve stands beside validation: part = "valid"')
        if self.published_curve is not None and len(self.data) * len(self.splits) > 1:
            raise ValueError("published_curve is of one data set and split; the study has several")
        return self


@dataclass(frozen=True)
class Line:
    """A line of the table: methods and settings, not yet on any data.

    Attributes:
        name: in tables.
        plan: what is trained, its data, split and seed left open.
        seeds: of its runs.
        point: settings of the grid, of a trained point or of a measured one.
        measured_at: settings under which one trained model is measured; empty for a point that is
            trained.
        family: number of the row of the file that it comes from.
        choose: whether only the best of its family is measured on the test part.
        trials: different settings that were validated elsewhere to choose these.
    """

    name: str
    plan: Plan
    seeds: tuple[int, ...]
    family: int
    point: Mapping[str, Any] = field(default_factory=dict)
    measured_at: Mapping[str, Any] = field(default_factory=dict)
    choose: bool = False
    trials: int = 1


@dataclass(frozen=True)
class Options:
    """What the command line changes of a study.

    Attributes:
        settings: by ``method.setting``, over everything else.
        seeds: instead of the file's.
        small: whether the file's ``[small]`` holds.
        only: names of rows, others are left out; empty keeps all.
        on: names of data sets, the same.
        part: what is shown; None as the file says.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    small: bool = False
    only: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    part: Literal["test", "valid"] | None = None


def read(file: Path, options: Options | None = None) -> Study:
    """A study file; options change its data, seeds and part.

    Raises:
        ConfigError: the file is not a valid study.
    """
    options = options or Options()
    study = read_study(file, Study)
    rows = [row if row.config is None else _configured(row, file) for row in study.rows]
    splits = [split_beside(split, file.parent) for split in study.splits]
    study = study.model_copy(update={"rows": rows, "splits": splits})
    changes: dict[str, Any] = {}
    if options.small and study.small.data is not None:
        changes["data"] = study.small.data
    seeds = list(options.seeds) or (study.small.seeds if options.small else None)
    if seeds is not None:
        changes["seeds"] = seeds
        changes["rows"] = [row.model_copy(update={"seeds": None}) for row in study.rows]
    if options.part is not None:
        changes["part"] = options.part
    return study.model_copy(update=changes)


def _configured(row: Row, file: Path) -> Row:
    """The row with the settings of its file, and the trials that they took."""
    path = file.parent / str(row.config)
    config = read_config(path)
    augment = config.augment or NO_AUGMENTER
    if (row.model, row.augment) != (config.model, augment):
        raise ConfigError(
            f"{path} has settings of {config.model} with augmenter {augment}, not of this row's "
            f"{row.model} with {row.augment}"
        )
    return row.model_copy(
        update={
            "settings": config.settings | row.settings,
            "augment_settings": config.augment_settings | row.augment_settings,
            "trials": config.trials,
        }
    )


def _overrides(study: Study, options: Options) -> dict[str, dict[str, Any]]:
    """Settings by method that hold over those of the rows: of a small budget, then ``--set``."""
    found = {m: dict(settings) for m, settings in study.small.settings.items() if options.small}
    for name, value in options.settings.items():
        method, dot, setting = name.partition(".")
        if not dot:
            raise ConfigError(f"--set {name}=…: name the method too, as in --set sasrec.{name}=…")
        found.setdefault(method, {})[setting] = value
    return found


def lines(study: Study, options: Options | None = None) -> list[Line]:
    """All lines of the study's table, floors last.

    Raises:
        ConfigError: two lines have one name, a method or setting is not known, or an option names
            a row or method that is not there.
    """
    options = options or Options()
    over = _overrides(study, options)
    found = [
        line for number, row in enumerate(study.rows) for line in _lines(study, row, number, over)
    ]
    recommenders = {name for row in study.rows for name in _several(row.model)}
    used = recommenders | {name for row in study.rows for name in _several(row.augment)}
    used = (used | {*study.floors}) - {NO_AUGMENTER}
    known = {name for m in recommenders for name in find_recommender(m).Config.model_fields}
    for settings in (study.settings, over):
        for name in settings.get(ALL_RECOMMENDERS, {}):
            if name not in known:
                raise ConfigError(
                    f"no recommender of the study has {name!r}{did_you_mean(name, known)}"
                )
    for method in (*study.settings, *over):
        if method not in used and method != ALL_RECOMMENDERS:
            raise ConfigError(
                f"settings of {method!r}, which no row has{did_you_mean(method, used)}; there "
                f"are: {', '.join(sorted(used))}"
            )
    taken = {line.plan.label for line in found if not line.plan.settings}
    for number, floor in enumerate(study.floors, len(study.rows)):
        if floor not in taken:
            settings = study.settings.get(floor, {}) | over.get(floor, {})
            plan = Plan("", floor, _beyond_defaults(find_recommender(floor), settings))
            found.append(Line(_title(floor), plan, tuple(study.seeds[:1]), number))
    by_slug: dict[str, str] = {}
    for line in found:
        other = by_slug.setdefault(slug(line.name), line.name)
        if sum(slug(line.name) == slug(x.name) for x in found) > 1:
            raise ConfigError(
                f"rows need names that differ in letters or digits; got {other!r} and "
                f"{line.name!r}: give them a name"
            )
        methods_of(line.plan)
    names = [line.name for line in found]
    for against in (study.against, *(row.against for row in study.rows)):
        if against is not None and against not in names:
            raise ConfigError(
                f"against = {against!r} is no row{did_you_mean(against, names)}; there are: "
                f"{', '.join(names)}"
            )
    first = found[names.index(study.against or names[0])]
    own = study.rows[first.family].against if first.family < len(study.rows) else None
    if own not in (None, first.name):
        raise ConfigError(
            f"against = {own!r} of {first.name!r}: others are compared with that row, and it with "
            "none; name another one by the study's against, or leave the row's out"
        )
    return _only(found, options.only)


def _only(found: list[Line], only: Sequence[str]) -> list[Line]:
    names = [line.name for line in found]
    for name in only:
        if name not in names:
            raise ConfigError(
                f"no row {name!r}{did_you_mean(name, names)}; there are: {', '.join(names)}"
            )
    return [line for line in found if not only or line.name in only]


def _changed(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them; of settings within settings, such as those of a blend's
    parts, only what is named is replaced."""
    found = dict(settings)
    for name, value in over.items():
        inner = found.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            found[name] = _changed(inner, value)
        else:
            found[name] = value
    return found


def _lines(
    study: Study, row: Row, family: int, over: Mapping[str, Mapping[str, Any]]
) -> Iterator[Line]:
    seeds = tuple(row.seeds or study.seeds)
    for model, augment in itertools.product(_several(row.model), _several(row.augment)):
        with_augmenter = augment != NO_AUGMENTER
        methods = find_recommender(model), find_augmenter(augment) if with_augmenter else None
        published = preset_of(*methods, row.preset) if row.preset else ({}, {})
        settings = {**published[0], **_of_recommender(study.settings, model), **row.settings}
        settings = _changed(settings, _of_recommender(over, model))
        augment_settings = {
            **published[1],
            **study.settings.get(augment, {}),
            **row.augment_settings,
        }
        augment_settings = _changed(augment_settings, over.get(augment, {}))
        name = row.name or _title(model) + (f" + {_title(augment)}" if with_augmenter else "")
        if row.name is None and row.preset:
            name += f" ({row.preset.replace('_', ' ')})"
        for point in _points(row.grid):
            own = {k: v for k, v in point.items() if not k.startswith("augment.")}
            others = {k.removeprefix("augment."): v for k, v in point.items() if k not in own}
            trained = own if row.at == "training" else {}
            plan = Plan("", model, _beyond_defaults(methods[0], {**settings, **trained}))
            if methods[1] is not None:
                given = _beyond_defaults(methods[1], {**augment_settings, **others})
                plan = replace(plan, augment=augment, augment_settings=given)
            words = [f"{key.removeprefix('augment.')} = {_word(v)}" for key, v in point.items()]
            yield Line(
                name=", ".join([name, *words]),
                plan=plan,
                seeds=seeds,
                family=family,
                point=point,
                measured_at=own if row.at == "inference" else {},
                choose=row.choose,
                trials=row.trials,
            )


def _of_recommender(settings: Mapping[str, Mapping[str, Any]], model: str) -> dict[str, Any]:
    known = find_recommender(model).Config.model_fields
    of_all = {k: v for k, v in settings.get(ALL_RECOMMENDERS, {}).items() if k in known}
    return of_all | dict(settings.get(model, {}))


def _beyond_defaults(method: type[Method], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that are the defaults, so that equal plans are written alike.

    What is the default for some logs alone stays.
    """
    config = parse_settings(method.Config, settings, method.__name__)
    fixed = {name: f.get_default() for name, f in method.Config.model_fields.items()}
    for name in by_log(method.Config):
        del fixed[name]
    return {k: v for k, v in settings.items() if k not in fixed or getattr(config, k) != fixed[k]}


def _points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _title(method: str) -> str:
    """Name of a method in tables: that of its class."""
    try:
        return find_recommender(method).__name__
    except ConfigError:
        return find_augmenter(method).__name__


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_protocol(text: str) -> tuple[str, bool]:
    """Candidates and whether seen items are hidden, of a protocol such as ``full, seen kept``.

    Raises:
        ConfigError: it is no protocol.
    """
    parts = [part.strip() for part in text.split(",")]
    kept = SEEN_KEPT in parts
    rest = [part for part in parts if part != SEEN_KEPT] or ["full"]
    if len(rest) != 1:
        raise ConfigError(
            f"no protocol {text!r}; write full, uniform:100, seen kept, or uniform:100, seen kept"
        )
    n_candidates(rest[0])
    return rest[0], not kept
