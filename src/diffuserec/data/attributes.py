"""Attributes of items: out of files and frames, checked, and in the order of a catalog.

An attribute is a column, and its type says what it is:

=====================  ==========================================================================
text                   one category an item, or a name to show
list of text           several categories an item (lists of integers become text)
number, date, flag     a number
list of floats         a vector, such as a text's embedding; as many numbers for every item
=====================  ==========================================================================

Any of them may be missing. Vectors are kept as ``Array(Float32, n)``, lists as ``List(String)``.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffuserec.data.columns import Columns, Source, first_true, plain_name, usual_names
from diffuserec.data.formats import read_columns
from diffuserec.data.frames import to_polars
from diffuserec.data.ids import IdIndex, as_integer, as_text
from diffuserec.data.values import ids_of_objects, other_of_objects, parse_ids, parse_other
from diffuserec.errors import ConfigError, DataError, did_you_mean
from diffuserec.files import read_json

_NAMES = frozenset({"title", "itemname", "productname", "itemtitle", "producttitle", "movietitle"})
_CATEGORIES = frozenset({"categories", "genre", "genres"})
_KINDS = ("category", "categories")
_SEPARATOR = "|"
"""Between the categories of one text."""

_OF_JSON = "attributes"
"""Name of the one attribute of a JSON file."""


def read_items(
    path: Path,
    item_ids: pl.Series,
    item: str | None = None,
    *,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    known_only: bool = False,
    encoding: str | None = None,
    literal: bool = False,
) -> tuple[pl.DataFrame, list[str]]:
    """The attributes in a file of items, the ids in front as ``item_id``, and notes.

    Args:
        path: CSV, TSV, Parquet or JSON lines, a row an item; or a ``.json`` file with one object
            of lists of categories by item id.
        item_ids: of the log's items, ascending.
        item: name of the log's column of items: that of the file has it, too, or a usual one.
        id_column: name of the column of ids, if it is another.
        columns: names of the columns to keep, by default all; ``brand:category`` takes numbers for
            categories, and ``genres:categories`` divides a text such as ``Comedy|Drama``.
        known_only: leave out items that the log does not hold.
        encoding: of a text file, by default UTF-8.
        literal: take ids of a text file as they are.

    Raises:
        DataError: the file cannot be read, has an item twice or none of the log, or a column is
            not what an attribute may be.
        ConfigError: no such kind of column.
    """
    with _opened(path, encoding, item, id_column) as found:
        source = found.source
        frame, notes = _table(found, literal)
        frame = _chosen(frame, columns, source)
        frame, renamed = _renamed(frame, source)
        frame = _normalized(frame, source)
        whole = described(frame, item_ids, source, known_only=known_only)
    if known_only:
        at = IdIndex(item_ids).find(frame["item_id"])
        n_rows, frame = len(frame), frame.filter(pl.Series(at >= 0))
        rest = f"rows of items that the log does not hold, left out: {n_rows - len(frame):,}"
    else:
        n_further = len(whole.item_ids) - len(item_ids)
        rest = f"further items, which no interaction has: {n_further:,}"
        if whole.n_no_ids:
            rest += f"; rows whose id is no integer, as those of the log are: {whole.n_no_ids:,}"
    notes += renamed
    notes.append(
        f"{path.name}: {', '.join(frame.columns[1:])} of {whole.n_found:,} of {len(item_ids):,} "
        f"items; {rest}"
    )
    return frame, notes


def frame_of_items(items: Any) -> tuple[pl.DataFrame, Source]:
    """The attributes in a frame (pandas, Polars, pyarrow), the ids in front as ``item_id``.

    Raises:
        DataError: there is no column of ids, or one is not what an attribute may be.
    """
    table, objects, _ = to_polars(items, "attributes")
    source = Source("the attributes")
    names = [*table.columns, *objects]
    found = usual_names(names, "item_id")
    if len(found) != 1:
        raise source.fail(f"no column 'item_id' among: {', '.join(names)}: rename one to it")
    series = []
    if found[0] in objects:
        series.append(pl.Series(found[0], objects.pop(found[0]), strict=False))
    others = (other_of_objects(name, values) for name, values in objects.items())
    series += [values for values in others if values is not None]
    table = table.with_columns(series) if table.width else pl.DataFrame(series)
    table = table.select(pl.col(found[0]).alias("item_id"), pl.exclude(found[0]))
    return _normalized(table, source), source


def _normalized(table: pl.DataFrame, source: Source) -> pl.DataFrame:
    """The table with its columns as a catalog keeps them, the ids in front.

    Raises:
        DataError: one is not what an attribute may be, or there is none.
    """
    others = [
        _normal(values, source) for values in table.iter_columns() if values.name != "item_id"
    ]
    _require_attributes(pl.DataFrame(others), source)
    return pl.DataFrame([table["item_id"], *others])


@dataclass(frozen=True, eq=False)
class Described:
    """Items of a log and further ones that a table describes.

    Attributes:
        item_ids: ids of the log's items, then of further ones, each ascending.
        attributes: in that order; null where the table has no row.
        n_found: items of the log that have a row.
        n_no_ids: rows whose id cannot be one beside the log's.
    """

    item_ids: pl.Series
    attributes: pl.DataFrame
    n_found: int
    n_no_ids: int


def described(
    table: pl.DataFrame,
    item_ids: pl.Series,
    source: Source,
    left_out: pl.Series | None = None,
    known_only: bool = False,
) -> Described:
    """A log's items with their attributes, and the table's other items behind them.

    Args:
        table: ids in front, each once.
        item_ids: of the log, ascending.
        left_out: ids that are not to come in.
        known_only: leave out whatever the log does not hold.

    Raises:
        DataError: no item of the log has a row, or one has two, written in two ways.
    """
    ids = table.to_series()
    at = IdIndex(item_ids).find(ids)
    if not (at >= 0).any():
        raise source.fail("none of the items is in the log: check the ids")
    further, n_no_ids = item_ids.head(0), 0
    rest = np.flatnonzero(at < 0)
    if len(rest) and not known_only:
        read = as_integer if item_ids.dtype.is_integer() else as_text
        values = [read(value) for value in ids.gather(rest).to_list()]
        excluded = set() if left_out is None else set(left_out.to_list())
        kept = [value for value in values if value is not None and value not in excluded]
        n_no_ids = values.count(None)
        dtype = pl.Int64 if item_ids.dtype.is_integer() else pl.String
        further = pl.Series(item_ids.name, kept, dtype=dtype).unique().sort()
        item_ids = pl.concat([item_ids.cast(dtype), further])
        at = IdIndex(item_ids).find(ids)
    known = np.flatnonzero(at >= 0)
    _, first = np.unique(at[known], return_index=True)
    if len(first) < len(known):
        row = int(np.setdiff1d(known, known[first])[0])
        raise _twice(item_ids[int(at[row])], row, source)
    row_of_item = np.full(len(item_ids), -1)
    row_of_item[at[known]] = known
    rows = pl.Series(row_of_item)
    attributes = table.drop("item_id")[rows.set(rows < 0, None)]
    return Described(item_ids, attributes, len(known) - len(further), n_no_ids)


def wrong_attributes(frame: pl.DataFrame) -> str | None:
    """Why a frame does not hold attributes as a catalog keeps them; None if it does."""
    for name, dtype in frame.schema.items():
        if not is_attribute(dtype) or (name == "name" and dtype.is_nested()):
            return f"column {name!r} holds {dtype}"
        if isinstance(dtype, pl.Array):
            vectors = frame[name].drop_nulls()
            if not bool(np.isfinite(vectors.explode(empty_as_null=False).to_numpy()).all()):
                return f"column {name!r} has numbers that are not finite"
    return None


def is_attribute(dtype: Any) -> bool:
    """Whether a catalog keeps attributes of this type."""
    if isinstance(dtype, pl.Array):
        return dtype.inner == pl.Float32 and len(dtype.shape) == 1
    if isinstance(dtype, pl.List):
        return dtype.inner == pl.String
    return not (dtype.is_nested() or dtype in (pl.Binary, pl.Object))


def _twice(raw: object, row: int, source: Source) -> DataError:
    return source.fail(f"item {raw!r} has more than one row: keep one", row)


@contextmanager
def _opened(
    path: Path, encoding: str | None, item: str | None, id_column: str | None
) -> Iterator[Columns]:
    """The columns of a file of items, which is kept for messages."""
    with ExitStack() as stack:
        columns = None
        if path.suffix.lower() == ".json" and path.is_file():
            columns = _of_json(path)
        elif item is not None and id_column is None:
            with suppress(DataError):  # no such column; any other fault comes again below
                named = read_columns(path, None, {"item_id": item}, None, encoding)
                columns = stack.enter_context(named)
        if columns is None:
            named = read_columns(path, None, {"item_id": id_column}, None, encoding)
            columns = stack.enter_context(named)
        yield columns


def _of_json(path: Path) -> Columns:
    """A JSON object of categories by item id, as columns.

    Raises:
        DataError: it is none.
    """
    source = Source(path.name, "entry {}".format)
    try:
        content = read_json(path)
    except ValueError as error:
        raise source.fail(f"{error}: write it again, or give JSON lines as .jsonl") from error
    if not isinstance(content, dict) or not content:
        raise source.fail(
            'a .json file of items is one object, such as {"item": ["category", …]}; give a row '
            "an item as .jsonl"
        )
    lists = []
    for row, value in enumerate(content.values()):
        values = value if isinstance(value, list) else [value]
        texts = [as_text(one) for one in values]
        if None in texts:
            raise source.fail(f"{str(value)[:60]!r} is no list of text or integers", row)
        lists.append(texts)
    table = pl.DataFrame(
        {"item_id": list(content), _OF_JSON: lists},
        schema={"item_id": pl.String, _OF_JSON: pl.List(pl.String)},
    )
    return Columns(table, {"item_id": "item_id"}, source, "json", text=True)


def _table(columns: Columns, literal: bool) -> tuple[pl.DataFrame, list[str]]:
    """The frame of a file of items, the ids in front, and notes."""
    table, source, objects = columns.table, columns.source, dict(columns.objects)
    if set(columns.roles) != {"item_id"}:
        raise source.fail("a file of items is a table with a header, such as item_id,name,category")
    name = columns.roles["item_id"]
    notes = list(columns.notes)
    if name in objects:
        ids, note = ids_of_objects(name, objects.pop(name), source)
        ids, further = parse_ids(ids, source, text=False, literal=literal)
        note = note or further
    else:
        raw = table.drop_in_place(name)
        ids, note = parse_ids(raw, source, columns.text, literal, typed=False)
    if note:
        notes.append(f"{source.name}, {name}: {note}")
    series = [ids.alias("item_id")]
    for values in table:
        is_text = columns.text and values.dtype == pl.String
        series.append(parse_other(values) if is_text else values)
    for other, listed in objects.items():
        converted = other_of_objects(other, listed)
        if converted is None:
            notes.append(
                f"{source.name}: column {other!r} left out: its values are not of one type"
            )
        else:
            series.append(converted)
    # the column of ids that is in use may have another name than one that is called item_id
    others = [values for values in series[1:] if values.name != "item_id"]
    return pl.DataFrame([series[0], *others]), notes


def _chosen(frame: pl.DataFrame, columns: Sequence[str] | None, source: Source) -> pl.DataFrame:
    """The columns that were asked for, as the kinds that were asked for.

    Raises:
        DataError: there is no such column.
        ConfigError: no such kind.
    """
    if columns is None:
        return frame
    series = [frame["item_id"]]
    others = [name for name in frame.columns if name != "item_id"]
    for wanted in columns:
        name, colon, kind = wanted.rpartition(":")
        if wanted in others or not colon:
            name, kind = wanted, ""
        if name not in others:
            raise source.fail(
                f"no column {name!r}{did_you_mean(name, others)} for item_columns= "
                f"(--item-columns); there are: {', '.join(others)}"
            )
        values = frame[name]
        if kind and kind not in _KINDS:
            raise ConfigError(
                f"no kind of column {kind!r}{did_you_mean(kind, _KINDS)} in {wanted!r}; there are: "
                f"{', '.join(_KINDS)}"
            )
        if kind and not values.dtype.is_nested():
            values = values.cast(pl.String)
            values = values.str.split(_SEPARATOR) if kind == "categories" else values
        series.append(values)
    return pl.DataFrame(series)


def _renamed(frame: pl.DataFrame, source: Source) -> tuple[pl.DataFrame, list[str]]:
    """The frame with its name and category under these names, and notes."""
    notes = []
    for role, usual in (("name", _NAMES), ("category", _CATEGORIES)):
        found = [column for column in frame.columns if plain_name(column) in usual]
        if role not in frame.columns and len(found) == 1:
            frame = frame.rename({found[0]: role})
            notes.append(f"{source.name}: {found[0]} -> {role}")
    return frame, notes


def _normal(values: pl.Series, source: Source) -> pl.Series:
    """A column as a catalog keeps it.

    Raises:
        DataError: it holds what is no attribute, or vectors of several lengths.
    """
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        return values.cast(pl.String)
    if dtype.is_float():
        finite = values.is_finite()
        return values.set(~finite.fill_null(True), None)
    if isinstance(dtype, pl.List | pl.Array) and not (
        isinstance(dtype, pl.Array) and len(dtype.shape) > 1
    ):
        inner = dtype.inner
        lists = values.arr.to_list() if isinstance(dtype, pl.Array) else values
        if inner.is_float() or inner == pl.Decimal:
            return _vectors(lists, source)
        if inner in (pl.Categorical, pl.Enum, pl.String, pl.Null) or inner.is_integer():
            return lists.cast(pl.List(pl.String))
    return values


def _vectors(lists: pl.Series, source: Source) -> pl.Series:
    """Lists of numbers as vectors of one length.

    Raises:
        DataError: they have several lengths, or a number that is missing or not finite.
    """
    name, lists = lists.name, lists.cast(pl.List(pl.Float32))
    lengths = lists.list.len()
    known = lengths.drop_nulls()
    width = int(known[0]) if len(known) else 0
    row = first_true((lengths != width).fill_null(False))
    if row is not None:
        raise source.fail(
            f"column {name!r} has a vector of {lengths[row]} numbers beside one of {width}: all "
            "must be of one length",
            row,
        )
    if not width:
        raise source.fail(f"column {name!r} holds vectors without a number: drop the column")
    flat = lists.drop_nulls().explode()
    wrong = first_true(~flat.is_finite().fill_null(False))
    if wrong is not None:
        row = int(lists.is_not_null().arg_true()[wrong // width])
        raise source.fail(
            f"column {name!r} has a vector with a number that is missing or not finite: mend it, "
            "or leave the whole vector out",
            row,
        )
    return lists.cast(pl.Array(pl.Float32, width))


def _require_attributes(frame: pl.DataFrame, source: Source) -> None:
    """Raises DataError if there is no column beside the ids, or one that cannot be kept."""
    if not frame.width:
        raise source.fail("there is no column beside the item ids: add one such as name")
    for name, dtype in frame.schema.items():
        if not is_attribute(dtype) or (name == "name" and dtype.is_nested()):
            raise source.fail(
                f"column {name!r} holds {dtype}; attributes of items are text, numbers, dates, "
                "lists of text or vectors of floats: drop the column, or make text of it"
            )
