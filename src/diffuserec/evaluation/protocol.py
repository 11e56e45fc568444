"""The protocol of a result: how it was measured, in one line beside every number."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """How a result came about; ``str()`` is the one line that stands beside every number.

    Attributes:
        dataset: name of the data, or None.
        split: how the log was divided and which part was measured.
        candidates: ``full`` or ``uniform:N``.
        n_items: size of the catalog.
        filter_seen: whether items of a user's own history were hidden.
        ties: what a target gets that ties.
        n_users: queries measured, all of them.
        n_too_short: users of the log who have no query, or None where it was not said.
        filters: k-core and minimum counts of the log.
        max_len: positions that the model looks at, or None when it looks at all.
        seed: of noise and of sampled candidates.
        repeat_share: share of the targets that are already in their own history.
    """

    dataset: str | None
    split: str
    candidates: str
    n_items: int
    filter_seen: bool
    ties: str
    n_users: int
    n_too_short: int | None
    filters: str
    max_len: int | None
    seed: int
    repeat_share: float

    def __str__(self) -> str:
        return protocol_line([self])

    def conflicts(self, other: "Protocol") -> list[str]:
        """In what the two differ that makes their numbers incomparable; empty when in nothing.

        The length that a model looks at is the model's own affair, and so is the seed.
        """
        return [
            f"{field.name}: {getattr(self, field.name)} and {getattr(other, field.name)}"
            for field in fields(self)
            if field.name not in ("max_len", "seed", "n_too_short")
            and getattr(self, field.name) != getattr(other, field.name)
        ]


def protocol_line(protocols: Sequence[Protocol]) -> str:
    """One line for results that stand in one table; where they differ, all values are said."""

    def each(name: str, show: dict[Any, str] | None = None) -> str:
        values = dict.fromkeys(getattr(protocol, name) for protocol in protocols)
        return "/".join((show or {}).get(value, _show(value)) for value in values)

    parts = [
        f"dataset {each('dataset', {None: 'not named'})}",
        f"split {each('split')}",
        f"candidates {each('candidates')} of {each('n_items')} items",
        f"seen items {each('filter_seen', {True: 'hidden', False: 'kept'})}",
        f"ties {each('ties')}",
        f"users {each('n_users')}, too short {each('n_too_short', {None: 'not stated'})}",
        f"filters {each('filters')}",
        f"max_len {each('max_len', {None: 'all'})}",
        f"seed {each('seed')}",
        f"repeats {each('repeat_share')}",
    ]
    return " · ".join(parts)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value)
