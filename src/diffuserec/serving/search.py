"""Search of a catalog's items by name or raw id, quick enough for every key that is pressed.

All names and ids stand in one text, most popular item first, which is scanned by Python's own
string search: of a hundred thousand items in milliseconds, without an index to keep.
"""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from diffuserec.data import Catalog

_MOST_LOOKED_AT = 20_000
"""Items that hold the rarest word of a query and are looked at; the search ends after them."""

_BREAKS = re.compile(r"\s+")


class ItemSearch:
    """Finds items by the words of their name or by their raw id.

    Args:
        catalog: items, with names where it has them.
        popularity: how often training held each item, padding included, shape (V,).
    """

    def __init__(self, catalog: Catalog, popularity: Int64[np.ndarray, " V"]) -> None:
        order = np.argsort(-popularity[1:], kind="stable")
        self._items = order + 1
        ids = catalog.item_ids.gather(order).to_list()
        names = [None] * len(ids) if catalog.names is None else catalog.names.gather(order)
        lines = [f"\n{folded(str(i))}\t{folded(n or '')}" for i, n in zip(ids, names, strict=True)]
        self._text = "".join(lines) + "\n"
        lengths = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines))
        self._ends = np.cumsum(lengths)

    def find(self, query: str, limit: int) -> list[int]:
        """Item numbers of the best matches: those that begin with the query, then the others.

        All words of the query must be in the name or in the id. Within each of the two groups,
        popular items come first. An empty query finds the most popular items.

        Args:
            query: words; upper and lower case are the same.
            limit: most items to return.
        """
        wanted = folded(query)
        if not wanted:
            return [int(item) for item in self._items[:limit]]
        found: dict[int, None] = {}
        exact = self._lines(f"\n{wanted}\t")
        begun = (line for start in ("\n", "\t") for line in self._lines(f"{start}{wanted}"))
        words = wanted.split()
        longest = max(words, key=len)
        holding = (
            line
            for line in self._lines(longest)
            if all(word in self._text[self._start(line) : self._ends[line]] for word in words)
        )
        for lines in (exact, begun, holding):
            for line in lines:
                found[line] = None
                if len(found) == limit:
                    break
            if len(found) == limit:
                break
        return [int(self._items[line]) for line in found]

    def _start(self, line: int) -> int:
        return int(self._ends[line - 1]) if line else 0

    def _lines(self, part: str) -> Iterator[int]:
        """Lines that hold a text, in order, each once."""
        at = self._text.find(part)
        for _ in range(_MOST_LOOKED_AT):
            if at < 0:
                return
            line = int(np.searchsorted(self._ends, at, side="right"))
            yield line
            at = self._text.find(part, int(self._ends[line]))


def folded(text: str) -> str:
    """Text as it is compared: without case and accents, every run of blanks one blank."""
    if not text.isascii():
        spread = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in spread if not unicodedata.combining(c))
    return _BREAKS.sub(" ", text.casefold()).strip()
