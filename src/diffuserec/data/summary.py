"""What is said of a log that was read: its source and size, and the changes made to it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from diffuserec.data.columns import plain_name
from diffuserec.errors import ConfigError, DataError

_RATINGS = frozenset({"rating", "ratings", "stars", "score", "overall", "grade"})
_EVENTS = frozenset({"event", "eventtype", "eventname", "action", "actiontype", "behavior"}) | {
    "behaviortype",
    "interactiontype",
}

MARKS = ("synthetic", "context_only")
"""Columns of a log that mark items; see :class:`~diffuserec.data.dataset.FlatLog`."""

AT_FIRST = "so there is nothing to recommend"
AFTER_FILTERING = "after filtering: use smaller limits"


@dataclass(frozen=True)
class Summary:
    """Source and size of a log, and the changes made to it.

    Attributes:
        source: file name, or kind of frame.
        format: name of a log format, ``frame`` or ``dataset``.
        columns: pairs (name in the source, name here) of the columns that make the log.
        others: such pairs of the other columns.
        n_interactions: interactions.
        n_users: users.
        n_items: items.
        n_reordered: interactions that came after a later one of the same user, and were sorted.
        n_ties: interactions with the time of the same user's previous one; they keep their order.
        n_merged: repeated (user, item) pairs that a filter merged.
        n_filtered: interactions that a k-core filter removed.
        notes: one line for each further remark.
        filters: what ``where`` and :meth:`Interactions.filter` asked for, in words.
    """

    source: str
    format: str
    columns: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, str], ...] = ()
    n_interactions: int = 0
    n_users: int = 0
    n_items: int = 0
    n_reordered: int = 0
    n_ties: int = 0
    n_merged: int = 0
    n_filtered: int = 0
    notes: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.format}; {_mapping(self.columns)}"]
        if self.others:
            lines.append(f"columns that a dataset does not keep: {_mapping(self.others)}")
        lines += [
            f"interactions: {self.n_interactions:,}, users: {self.n_users:,}, "
            f"items: {self.n_items:,}",
        ]
        if self.n_reordered:
            lines.append(f"out of time order: {self.n_reordered:,} (sorted)")
        if self.n_ties:
            lines.append(
                f"at the same time as the user's previous one: {self.n_ties:,} "
                "(kept in the order of the source)"
            )
        return "\n".join([*lines, *self.notes])


def _mapping(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(a if a == b else f"{a} -> {b}" for a, b in pairs)


def note_of_positives(names: Sequence[str], first_text: Callable[[str], str | None]) -> list[str]:
    """A note on a column that says how much an interaction was liked, or of what kind it is.

    Args:
        names: of the columns beside those of users, items and times.
        first_text: of a column of text, its first value, empty if it has none; else None.
    """
    for name in names:
        quoted = name if name.isidentifier() else f'"{name}"'
        example = ""
        if plain_name(name) in _RATINGS:
            example = f"{quoted} >= 4"
        elif tells_of_events(name) and (first := first_text(name)) is not None:
            example = f"{quoted} = '{first or 'purchase'}'"
        if example:
            return [
                f"every row counts as liked, whatever its {name!r}: keep some with where= "
                f'(--where "{example}")'
            ]
    return []


def tells_of_events(name: str) -> bool:
    """Whether a column of this name usually says of what kind an interaction is."""
    return plain_name(name) in _EVENTS


def require_limits(min_user: int | None, min_item: int | None) -> None:
    """Raises ConfigError if a limit of a k-core is below 1."""
    for name, limit in (("min_user", min_user), ("min_item", min_item)):
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} must be at least 1, got {limit}")


def require_two(source: str, n_rows: int, n_users: int, n_items: int, demand: str) -> None:
    """Raises DataError if there are fewer than two users or items; `demand` ends the message."""
    for n, what in ((n_users, "user"), (n_items, "item")):
        if n < 2:
            raise DataError(f"{source}: only one {what} in {n_rows:,} interactions, {demand}")


def in_words(min_user: int | None, min_item: int | None, merge_repeats: bool) -> tuple[str, ...]:
    """What a filter was asked for."""
    words = [f"user>={min_user}"] * (min_user is not None)
    words += [f"item>={min_item}"] * (min_item is not None)
    return (*words, *["repeats merged"] * merge_repeats)


def note_of_merging(n_merged: int) -> str:
    """What merging of repeats removed."""
    return f"repeated (user, item) pairs merged into their first: {n_merged:,}"


def note_of_core(
    source: str,
    min_user: int | None,
    min_item: int | None,
    n_rows: int,
    removed: tuple[int, int, int],
    rounds: int,
) -> str:
    """What a k-core filter removed.

    Args:
        n_rows: interactions before.
        removed: interactions, users and items.

    Raises:
        DataError: it left nothing.
    """
    left = f"{min_user or 1} a user and {min_item or 1} an item"
    if removed[0] == n_rows:
        raise DataError(
            f"{source}: at least {left} leaves nothing of {n_rows:,} interactions: use smaller "
            "limits"
        )
    return (
        f"at least {left}: removed interactions: {removed[0]:,}, users: {removed[1]:,}, "
        f"items: {removed[2]:,} (rounds: {rounds})"
    )
