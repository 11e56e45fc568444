"""The catalog: raw item ids by number, and the index that leads back."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Int, Int64

from diffuserec.data.ids import IdIndex, RawId, RawIds, as_list
from diffuserec.errors import DataError
from diffuserec.tables import format_facts

PAD = 0

_SHOWN = 3
_LONGEST = 24  # characters of an id in print


@dataclass(frozen=True, eq=False)
class Catalog:
    """Items of a log: raw id and attributes of each number.

    Attributes:
        item_ids: raw ids of the items 1..V-1 in that order (integers or strings), so that item
            ``i`` is ``item_ids[i - 1]``.
        n_users: users of the log; user numbers are 0..n_users-1.
        user_ids: raw ids of the users by number, or None where they are not kept (a saved model
            does not carry them).
        attributes: optional frame with one row an item in the order of `item_ids` (``name``,
            ``category``, …), or None.
        log: name of the log, for protocols; None if it has none.
        filters: what was filtered from the log, for protocols; None if that is not known.
    """

    item_ids: pl.Series
    n_users: int
    user_ids: pl.Series | None = None
    attributes: pl.DataFrame | None = None
    log: str | None = None
    filters: str | None = None

    def __repr__(self) -> str:
        """Sizes and the first ids as a table."""
        return format_facts(self._sizes(), title="Catalog").rstrip()

    def _repr_html_(self) -> str:
        """Sizes and the first ids as a table for notebooks."""
        return format_facts(self._sizes(), "html", title="Catalog")

    def _sizes(self) -> dict[str, int | str]:
        kind = "integers" if self.item_ids.dtype.is_integer() else "strings"
        ids = map(str, self.item_ids.head(_SHOWN))
        first = ", ".join(i if len(i) <= _LONGEST else f"{i[: _LONGEST - 1]}…" for i in ids)
        more = ", …" if self.n_items > _SHOWN else ""
        attributes = [] if self.attributes is None else self.attributes.columns
        return {
            "items": self.n_items,
            "users": self.n_users,
            "item ids": f"{kind}: {first}{more}",
            "user ids": "not kept" if self.user_ids is None else "kept",
            "attributes": ", ".join(attributes) or "none",
        }

    @property
    def n_items(self) -> int:
        """Number of items, V - 1."""
        return len(self.item_ids)

    @property
    def vocab_size(self) -> int:
        """V: items and the padding number 0."""
        return len(self.item_ids) + 1

    @property
    def names(self) -> pl.Series | None:
        """The attribute ``name`` of each item as text, None where unknown; or None."""
        if self.attributes is None or "name" not in self.attributes.columns:
            return None
        return self.attributes["name"].cast(pl.String)

    def with_new_users(self, n: int) -> "Catalog":
        """The catalog with n further users, numbered from `n_users`.

        Where raw ids of the users are known, new ones are made that occur nowhere else: integers
        above all others, or ``new-`` and the user's number.
        """
        ids = self.user_ids
        if ids is not None and ids.dtype.is_integer():
            ids = ids.cast(pl.Int64)
            first = int(ids.to_numpy().max(initial=-1)) + 1
            ids = pl.concat([ids, pl.Series(ids.name, np.arange(first, first + n))])
        elif ids is not None:
            ids, prefix = ids.cast(pl.String), "new-"
            while (names := _names(prefix, self.n_users, n)).is_in(ids.to_list()).any():
                prefix = f"new-{prefix}"
            ids = pl.concat([ids, names.alias(ids.name)])
        return replace(self, n_users=self.n_users + n, user_ids=ids)

    def encode(self, raw: RawIds) -> Int64[np.ndarray, " N"]:
        """Item numbers of raw ids; 0 for an unknown id, and for a value that is no id.

        Integer catalogs take integers or their decimal strings; string catalogs take strings or
        integers, so that ids typed on a command line work for both. :mod:`diffuserec.data.ids`
        has the rule; a value's number does not depend on the others. A few ids cost O(log V) each.

        Raises:
            DataError: a string, or something else that is no list.
        """
        if not isinstance(raw, pl.Series) and getattr(raw, "ndim", 0) != 1:
            raw = as_list("raw", raw)
        return self._index.find(raw) + 1

    def decode(self, items: Int[np.ndarray, "..."]) -> list[RawId]:
        """Raw ids of item numbers (flat), in the type that the log had.

        Raises:
            DataError: an item is outside 1..V-1.
        """
        flat = np.asarray(items).reshape(-1)
        if flat.size and (flat.min() < 1 or flat.max() > self.n_items):
            raise DataError(
                f"item numbers must lie in 1..{self.n_items}, got {flat.min()}..{flat.max()}"
            )
        return self.item_ids.gather(flat - 1).to_list()

    @cached_property
    def _index(self) -> IdIndex:
        return IdIndex(self.item_ids)


def _names(prefix: str, first: int, n: int) -> pl.Series:
    names = [f"{prefix}{number}" for number in range(first, first + n)]
    return pl.Series(names, dtype=pl.String)
