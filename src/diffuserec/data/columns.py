"""Columns of a log: which one is the user, the item, the time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from diffuserec.errors import DataError, did_you_mean

ALIASES = {
    "user_id": "user uid query_id reviewer_id customer_id visitor_id",
    "item_id": "item iid asin parent_asin movie_id product_id article_id book_id business_id",
    "timestamp": "time datetime ts date unix_review_time unix_time event_time",
}
"""Usual column names of each role; case, underscores, hyphens and blanks do not count."""

SECOND_CHOICE = {
    "user_id": "session_id session",
    "item_id": "sku product content_id track_id song_id",
    "timestamp": "",
}
"""Names that are usual, too, and taken where no column has one of :data:`ALIASES`."""

OPTIONS = {"user_id": "user", "item_id": "item", "timestamp": "time"}
"""Name of the option that names the column of each role."""


@dataclass(frozen=True)
class Source:
    """Origin of a table's values, for messages.

    Attributes:
        name: of the file or frame.
        locate: describes the position of row i (from 0), such as ``line 7``.
    """

    name: str
    locate: Callable[[int], str] = "row {}".format

    def fail(self, message: str, row: int | None = None) -> DataError:
        """An error to raise that names the source and, if given, the row."""
        return DataError(f"{self.name}{'' if row is None else ', ' + self.locate(row)}: {message}")


@dataclass(frozen=True, eq=False)
class Columns:
    """A log as it was read, its values neither checked nor converted.

    Attributes:
        table: one interaction a row.
        roles: column name of ``user_id``, ``item_id`` and, if there are times, ``timestamp``.
        source: for messages about values.
        format: name of the log format, or ``frame``.
        text: True if every value is a string whose type is to be found out.
        objects: further columns, of Python values whose type depends on the column's role.
        notes: one line for each remark on how the source was read.
    """

    table: pl.DataFrame
    roles: dict[str, str]
    source: Source
    format: str
    text: bool = False
    objects: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scan:
    """A log that Polars reads a piece at a time, its values neither checked nor converted.

    Attributes:
        frame: one interaction a row, in the order of the source; it may lack columns of `names`
            that nobody asked for.
        names: all columns of the source.
        roles, source, format, text, notes: as of :class:`Columns`.
    """

    frame: pl.LazyFrame
    names: Sequence[str]
    roles: dict[str, str]
    source: Source
    format: str
    text: bool = False
    notes: tuple[str, ...] = ()


def find_roles(
    names: Sequence[str], named: Mapping[str, str | None], source: Source
) -> dict[str, str]:
    """Column name of the user, the item and, unless declared absent, the time.

    Args:
        named: for each role the name of its column, or None for a usual one; ``none`` declares
            that there are no times.

    Raises:
        DataError: a column is missing, named twice, or ambiguous.
    """
    listed = ", ".join(names)
    roles: dict[str, str] = {}
    for role, name in named.items():
        option = OPTIONS[role]
        if name is None or (role == "timestamp" and name == "none" and name not in names):
            continue
        if name not in names:
            raise source.fail(
                f"no column {name!r}{did_you_mean(name, names)} for {option}= (--{option}); "
                f"there are: {listed}"
            )
        if name in roles.values():
            raise source.fail(
                f"column {name!r} is named twice: give {option}= (--{option}) its own"
            )
        roles[role] = name
    for role in (role for role, name in named.items() if name is None):
        option = OPTIONS[role]
        found = [match for match in usual_names(names, role) if match not in roles.values()]
        if len(found) > 1:
            both = " and ".join(map(repr, found))
            raise source.fail(
                f"columns {both} could each be the {option}: name one with {option}= (--{option})"
            )
        if not found:
            raise source.fail(
                f"no {option} column among: {listed}; {_advice(names, role, set(named))}"
            )
        roles[role] = found[0]
    return {role: roles[role] for role in ALIASES if role in roles}


def _advice(names: Sequence[str], role: str, roles: set[str]) -> str:
    """What to do about a column that is missing."""
    if pl.Series(names).cast(pl.Float64, strict=False).count():
        return (
            "the first line looks like data: name the columns with columns= (--columns "
            "user,item,time), or add a header: user_id,item_id,timestamp"
        )
    option = OPTIONS[role]
    if roles == {"item_id"}:
        return "rename the column of item ids to item_id"
    if len(names) == 1:
        return (
            "the first line is not divided: fields are separated by a comma, tab, semicolon, bar "
            "or blank, or as a line in front says (sep=^); a file of lines without a "
            "header may be sequences or pairs: format= (--format)"
        )
    hint = f"name it with {option}= (--{option})"
    return hint + ", or say 'none' there if the rows are in time order" * (role == "timestamp")


def usual_names(names: Sequence[str], role: str) -> list[str]:
    """Members of `names` that are usual for the role: the role's own name alone, if it is one."""
    plain = [plain_name(name.partition(":")[0]) for name in names]
    for usual in (role, ALIASES[role], SECOND_CHOICE[role]):
        known = set(map(plain_name, usual.split()))
        found = [name for name, bare in zip(names, plain, strict=True) if bare in known]
        if found:
            return found
    return []


def plain_name(name: str) -> str:
    """A column's name without what does not count in it."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def n_usual_roles(names: Sequence[str]) -> int:
    """Number of roles for which one of the names is usual: evidence that a line is a header."""
    return sum(bool(usual_names(names, role)) for role in ALIASES)


def kept_name(name: str, names: Sequence[str]) -> str:
    """Name under which a log keeps another column of its source, whose names these are."""
    kept = name
    while kept in ALIASES or (kept != name and kept in names):
        kept = f"file_{kept}"
    return kept


def require_utf8(path: Path) -> None:
    """Raises DataError if the path's name is not UTF-8, for Polars opens no such file."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the path {str(path)!a} is not UTF-8: rename it, or choose another"
        ) from error


def first_true(mask: pl.Series) -> int | None:
    """Index of the first true value, or None."""
    return int(mask.arg_max() or 0) if mask.any() else None
