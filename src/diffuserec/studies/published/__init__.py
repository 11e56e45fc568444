"""Published values: the tables and figures of the papers whose systems are implemented here.

One TOML file a paper stands beside this one. Its keys are ``paper``, ``source``, ``methods`` (for
each printed name, what it is called here) and ``table1``, ``figure2`` and so on, of three kinds:

* ``statistics``: data sets and their sizes;
* ``results``: methods and their metrics, as printed. What a paper does not say, such as what
  happens to seen items, is left out;
* ``figure``: what was varied and what the text says of it. No value of these figures is printed.

A comment in a file says where a printed value cannot be right.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.evaluation.audit import TableRow
from diffuserec.studies.study_file import StudyTable

Value = int | float | str | bool


class PublishedMethod(StudyTable):
    """What a method of a paper is called here.

    Attributes:
        recommender: name of the recommender.
        augmenter: name of the augmenter that it was trained with, or None.
        settings: settings of the recommender that make this variant.
        augmenter_settings: settings of the augmenter that make this variant.
        loss: of the next item, where it is known; None where it is not.
    """

    recommender: str
    augmenter: str | None = None
    settings: Mapping[str, Value] = Field(default_factory=dict)
    augmenter_settings: Mapping[str, Value] = Field(default_factory=dict)
    loss: str | None = None


class Statistics(StudyTable):
    """Data sets of a paper.

    Attributes:
        title: what it shows.
        columns: names of the numbers.
        rows: name of a data set, and a number for each column, as printed.
        counted: by data set, columns whose printed number cannot be right, and what it stands for.
    """

    kind: Literal["statistics"]
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    counted: Mapping[str, Mapping[str, int]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        _require_rows(self.rows, 1, len(self.columns))
        return self

    def size(self, dataset: str) -> dict[str, float]:
        """Numbers of a data set by column, corrected; empty if the table does not have it."""
        found = next((row for row in self.rows if row[0] == dataset), None)
        if found is None:
            return {}
        printed = dict(zip(self.columns, map(float, found[1:]), strict=True))
        corrected = {name: float(n) for name, n in self.counted.get(dataset, {}).items()}
        return printed | corrected


class Results(StudyTable):
    """A table of results.

    Attributes:
        title: what it compares, in our words.
        candidates: items that a target is ranked among: ``full`` or ``uniform:N``.
        filter_seen: whether seen items were hidden; None where the paper does not say.
        metrics: names of the columns.
        decimals: digits after the point that values are printed with.
        rows: data set, method as printed, and a value for each metric.
        improvement: data set, and for each metric the printed gain of the last method over the
            best other one, in percent; empty where none is printed.
    """

    kind: Literal["results"]
    title: str
    candidates: str
    filter_seen: bool | None = None
    metrics: Sequence[str]
    decimals: int = 4
    rows: Sequence[Sequence[str | float]]
    improvement: Sequence[Sequence[str | float]] = ()

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        _require_rows(self.rows, 2, len(self.metrics))
        _require_rows(self.improvement, 1, len(self.metrics))
        names = [tuple(row[:2]) for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("a data set and method stand twice")
        return self

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets, in order."""
        return list(dict.fromkeys(str(row[0]) for row in self.rows))

    @property
    def methods(self) -> list[str]:
        """Names of the methods as printed, in order."""
        return list(dict.fromkeys(str(row[1]) for row in self.rows))

    def values(self, dataset: str, method: str) -> dict[str, float]:
        """Metrics of a method on a data set; empty if it has no such row."""
        for row in self.rows:
            if (row[0], row[1]) == (dataset, method):
                return dict(zip(self.metrics, map(float, row[2:]), strict=True))
        return {}


class Varied(StudyTable):
    """What one panel of a figure varies.

    Attributes:
        panel: what the axis shows.
        setting: the setting of ours that is varied (``augment.`` before one of an augmenter), or
            None where it is none.
        values: values on the axis that can be read from the text; empty where none can.
    """

    panel: str
    setting: str | None = None
    values: Sequence[Value] = ()


class Point(StudyTable):
    """A variant on the axis of a figure: its name, and the settings that make it."""

    name: str
    settings: Mapping[str, Value] = Field(default_factory=dict)


class Figure(StudyTable):
    """A figure.

    Attributes:
        title: what it shows, in our words.
        values: always ``not printed``.
        datasets: names of the data sets.
        metrics: names of the axes' metrics; empty where they cannot be read from the text.
        recommender: what was measured, by our name.
        augmenter: with which augmenter, or None.
        settings: settings that all points share and that are not our defaults.
        said: what the paper's text says of the values.
        vary: one entry a panel.
        points: variants, where the axis is no setting.
    """

    kind: Literal["figure"]
    title: str
    values: Literal["not printed"]
    datasets: Sequence[str]
    metrics: Sequence[str]
    recommender: str | None = None
    augmenter: str | None = None
    settings: Mapping[str, Value] = Field(default_factory=dict)
    said: str
    vary: Sequence[Varied] = ()
    points: Sequence[Point] = ()


_KINDS: dict[str, type[StudyTable]] = {
    "statistics": Statistics,
    "results": Results,
    "figure": Figure,
}


class PublishedTable(StudyTable):
    """A table or figure of a paper.

    Attributes:
        name: of the paper and of the table, such as ``simdiffrec-table2``.
        paper: name of the paper's system.
        source: authors, title and year.
        content: the table itself.
        methods: what its methods are called here, by printed name; empty but for results.
        statistics: the paper's table of data sets.
    """

    name: str
    paper: str
    source: str
    content: Statistics | Results | Figure
    methods: Mapping[str, PublishedMethod]
    statistics: Statistics

    def rows_to_audit(self) -> list[TableRow]:
        """The rows of results for :func:`diffuserec.evaluation.audit.audit`.

        Raises:
            ConfigError: it is no table of results.
        """
        if not isinstance(self.content, Results):
            known = ", ".join(published_names("results"))
            raise ConfigError(f"{self.name} has no results to check; there are: {known}")
        results = self.content
        found = []
        for row in results.rows:
            dataset, method = str(row[0]), str(row[1])
            size = self.statistics.size(dataset)
            found.append(
                TableRow(
                    method=method,
                    dataset=dataset,
                    metrics=results.values(dataset, method),
                    decimals=results.decimals,
                    loss=self.methods[method].loss,
                    candidates=results.candidates,
                    filter_seen=results.filter_seen,
                    n_users=int(size["users"]),
                    n_items=int(size["items"]),
                )
            )
        return found


def published_names(kind: Literal["statistics", "results", "figure"] | None = None) -> list[str]:
    """Names of all published tables and figures, or of those of one kind."""
    return [
        f"{paper}-{part}"
        for paper, document in _papers().items()
        for part in _parts(document)
        if kind is None or document[part]["kind"] == kind
    ]


def published_table(name: str) -> PublishedTable:
    """The table or figure of that name, such as ``simdiffrec-table2`` or ``diffuasr-figure6``.

    Raises:
        ConfigError: there is none; says the nearest and all others.
    """
    paper, _, part = name.partition("-")
    document = _papers().get(paper, {})
    if part not in _parts(document):
        known = published_names()
        raise ConfigError(
            f"no published table {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
        )
    try:
        content = _content(document[part])
        methods = {}
        if isinstance(content, Results):
            missing = [method for method in content.methods if method not in document["methods"]]
            if missing:
                raise ConfigError(f"{paper}.toml: {part}: no method {missing[0]!r} in methods")
            methods = {m: PublishedMethod(**document["methods"][m]) for m in content.methods}
        return PublishedTable(
            name=name,
            paper=document["paper"],
            source=document["source"],
            content=content,
            methods=methods,
            statistics=Statistics(**document["table1"]),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(place) for place in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{paper}.toml: {part}: {where}: {message}") from error


@cache
def _papers() -> dict[str, dict[str, Any]]:
    folder = files(__name__)
    return {
        file.name.removesuffix(".toml"): tomllib.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def _parts(document: Mapping[str, Any]) -> list[str]:
    return [key for key in document if re.fullmatch(r"(table|figure)\d+", key)]


def _content(table: Mapping[str, Any]) -> Statistics | Results | Figure:
    kind = table.get("kind")
    if kind not in _KINDS:
        raise ConfigError(f"no kind {kind!r}; there are: {', '.join(_KINDS)}")
    content = _KINDS[kind](**table)
    assert isinstance(content, Statistics | Results | Figure)
    return content


def _require_rows(rows: Sequence[Sequence[Any]], n_names: int, n_values: int) -> None:
    """Raises ValueError if a row is not so many names and then so many numbers."""
    for row in rows:
        names, values = row[:n_names], row[n_names:]
        if (
            len(row) != n_names + n_values
            or not all(isinstance(name, str) for name in names)
            or any(isinstance(value, str) for value in values)
        ):
            raise ValueError(f"a row has {n_names} names and {n_values} numbers, got {list(row)}")
