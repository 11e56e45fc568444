"""The built-in store: a generator of realistic logs whose true next-item distribution is known.

For the demo, for tests that ask how far from the best possible a method is, and for runs of a size
that no public log has. A customer's next item is drawn from

    p(j | u, i, t) ∝ w · successor(i, j) + (1 - w) · [ (1 - e) · Σ_c taste(u, t, c) · share(c, j)
                                                       + e · popularity(j) ]

for the items j that the customer has not taken yet; items taken have probability 0. Here i is the
newest item, t the number of items taken before, and

* successor(i, ·): a few items that go with i: the next one along a ring through i's category, and
  some popular ones of the category or of a related one;
* share(c, ·): Zipf's law with an offset (Mandelbrot) within category c; popularity is the same
  with the categories' own shares;
* taste(u, t, ·): three favorite categories of the customer, the later two mostly related to the
  first; weight moves from the first to the last as t grows.

At the first item there is no i, and w is 0. History lengths follow Lomax's law (a heavy tail) from
three items on. Two items in five come minutes after the one before; with ``orders`` all that comes
in one such visit has one time, as the lines of an order have. It changes times alone: what an order
holds follows from the same formula, item by item. Everything is a function of the store's fields:
the same fields, the same log.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int32, Int64
from torch import Tensor

from diffuserec.data.batches import Histories
from diffuserec.data.catalog import Catalog
from diffuserec.data.dataset import SequenceDataset, offsets_of
from diffuserec.errors import ConfigError

_LENGTH_SHAPE, _LENGTH_SCALE, _SHORTEST = 2.2, 10.0, 3
_ZIPF_OFFSET = 3.0
_SUCCESSOR_WEIGHTS = np.array([0.5, 0.3, 0.2])
_TASTE_AT_FIRST = np.array([0.7, 0.3, 0.0])
_TASTE_AT_LAST = np.array([0.0, 0.3, 0.7])
_N_RELATED = 2
_OPENED = 1_577_836_800  # 2020-01-01 in Unix seconds
_OPEN_SECONDS = 3 * 365 * 86_400
_SAME_VISIT, _MINUTES, _DAYS = 0.4, 240.0, 12 * 86_400.0
_USERS_AT_ONCE = 1 << 15
_WORLD, _TASTES, _LENGTHS, _TIMES, _VISITS = range(5)  # independent streams of random numbers

_NOUNS = {
    "Kitchen": ["Kettle", "Skillet", "Whisk", "Teapot"],
    "Garden": ["Trowel", "Planter", "Rake", "Watering Can"],
    "Office": ["Notebook", "Stapler", "Desk Lamp", "Fountain Pen"],
    "Camping": ["Tent", "Lantern", "Sleeping Bag", "Stove"],
    "Music": ["Ukulele", "Metronome", "Harmonica", "Tambourine"],
    "Pets": ["Leash", "Cat Tree", "Chew Toy", "Food Bowl"],
    "Bath": ["Towel", "Soap Dish", "Bath Mat", "Loofah"],
    "Toys": ["Puzzle", "Kite", "Train Set", "Spinning Top"],
    "Fitness": ["Dumbbell", "Yoga Mat", "Jump Rope", "Foam Roller"],
    "Travel": ["Suitcase", "Neck Pillow", "Backpack", "Toiletry Bag"],
    "Bedding": ["Pillow", "Quilt", "Blanket", "Mattress Pad"],
    "Tools": ["Hammer", "Pliers", "Tape Measure", "Spirit Level"],
    "Cycling": ["Helmet", "Saddle", "Bike Lock", "Bottle Cage"],
    "Makeup": ["Lipstick", "Mascara", "Blush", "Concealer"],
    "Skincare": ["Moisturizer", "Face Serum", "Sunscreen", "Cleanser"],
    "Hair": ["Shampoo", "Hairbrush", "Conditioner", "Styling Wax"],
    "Baking": ["Rolling Pin", "Cake Tin", "Piping Bag", "Dough Scraper"],
    "Coffee": ["Grinder", "French Press", "Espresso Cup", "Milk Frother"],
    "Games": ["Chess Set", "Card Deck", "Dice Tower", "Domino Box"],
    "Art": ["Sketchbook", "Easel", "Watercolor Set", "Palette Knife"],
    "Lighting": ["Floor Lamp", "Night Light", "Pendant", "Candle Holder"],
    "Sewing": ["Thread Set", "Pincushion", "Thimble", "Fabric Shears"],
    "Fishing": ["Tackle Box", "Reel", "Landing Net", "Waders"],
    "Winter": ["Scarf", "Mittens", "Beanie", "Hand Warmer"],
}
# fmt: off
_ADJECTIVES = [
    "Amber", "Azure", "Bamboo", "Bold", "Bright", "Bronze", "Calm", "Cedar", "Classic", "Cobalt",
    "Copper", "Coral", "Cozy", "Crisp", "Dapper", "Dusky", "Elegant", "Fern", "Frosted", "Gentle",
    "Golden", "Handy", "Ivory", "Jade", "Lively", "Lunar", "Maple", "Mellow", "Mint", "Nimble",
    "Olive", "Pearl", "Plum", "Quiet", "Rustic", "Silver", "Sturdy", "Sunny", "Velvet", "Walnut",
]
# fmt: on


@dataclass(frozen=True)
class Store:
    """An invented shop: its items, its customers and the distribution of their next items.

    Attributes:
        n_users: customers, numbered from 0.
        n_items: items, numbered from 1.
        n_categories: categories of about equal size.
        seed: of all random draws.
        successor_weight: share of the choices that follow from the newest item, w above.
        stray_weight: share of the other choices that follow popularity alone, e above.
        zipf: exponent of popularity within a category, and among categories.
        drift: items after which half of a customer's first taste has moved to the last.
        longest: no history has more items than this.
        orders: whether the items of one visit have one time.

    Raises:
        ConfigError: a count or a share is out of range.
    """

    n_users: int = 4000
    n_items: int = 800
    n_categories: int = 16
    seed: int = 0
    successor_weight: float = 0.08
    stray_weight: float = 0.1
    zipf: float = 1.6
    drift: float = 8.0
    longest: int = 200
    orders: bool = False

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "n_users": (1, np.inf),
            "n_items": (8, np.inf),
            "n_categories": (1, self.n_items // 2),
            "seed": (0, np.inf),
            "successor_weight": (0, 0.95),
            # without strays a customer could run out of items to take
            "stray_weight": (0.01, 1),
            "zipf": (0, 10),
            "drift": (1e-3, np.inf),
            "longest": (_SHORTEST, np.inf),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"Store: {name} must lie in {least:g}..{most:g}, got {value}")

    @property
    def item_ids(self) -> pl.Series:
        """Raw ids of the items, in the order of their numbers."""
        return _raw_ids("B", np.arange(1, self.n_items + 1), 5, "item_id")

    @property
    def user_ids(self) -> pl.Series:
        """Raw ids of the customers, in the order of their numbers."""
        return _raw_ids("U", np.arange(self.n_users), 7, "user_id")

    @property
    def item_categories(self) -> Int64[np.ndarray, " V"]:
        """Category of each item, 0..n_categories-1; -1 for padding."""
        categories: np.ndarray = self._world.category
        return categories

    def tastes(
        self, users: Int64[np.ndarray, " B"], positions: Int64[np.ndarray, " B"]
    ) -> Float64[np.ndarray, "B C"]:
        """Hidden taste of each customer: the weight of each category, summing to 1.

        Args:
            users: customer numbers.
            positions: number of items that each has taken before.
        """
        tastes = np.zeros((len(users), self.n_categories))
        weights = self._taste_weights(positions)
        for slot, favorite in enumerate(self._favorites[users].T):
            tastes[np.arange(len(users)), favorite] += weights[:, slot]
        return tastes

    def next_item_probabilities(self, histories: Histories) -> Float64[Tensor, "B V"]:
        """True distribution of each customer's next item after a history.

        Args:
            histories: complete, from the first item on, with the store's own user numbers; items
                of a history are not taken again.

        Returns:
            Probabilities that sum to 1 for each customer; column 0 (padding) is 0.
        """
        world = self._world
        users, items, lengths = (
            tensor.cpu().numpy() for tensor in (histories.users, histories.items, histories.lengths)
        )
        everyone = np.arange(len(users))
        chances = self.tastes(users, lengths)[:, world.category] * world.share
        chances *= 1 - self.stray_weight
        chances += self.stray_weight * world.popularity
        begun = everyone[lengths > 0]
        newest = items[begun, lengths[begun] - 1]
        chances[begun] *= 1 - self.successor_weight
        for slot, weight in enumerate(_SUCCESSOR_WEIGHTS):
            chances[begun, world.successors[newest, slot]] += self.successor_weight * weight
        chances[everyone[:, None], items] = 0
        chances[:, 0] = 0
        chances /= chances.sum(1, keepdims=True)
        return torch.from_numpy(chances)

    def dataset(self) -> SequenceDataset:
        """The log as sequences, with item names and categories in the catalog.

        Raw ids are strings (``B00012``, ``U0000345``); timestamps are Unix seconds, increasing
        within each customer (with ``orders``, from order to order).
        """
        lengths = self._lengths
        offsets = offsets_of(lengths)
        items = np.empty(offsets[-1], dtype=np.int32)
        for part, first in enumerate(range(0, self.n_users, _USERS_AT_ONCE)):
            last = min(first + _USERS_AT_ONCE, self.n_users)
            items[offsets[first] : offsets[last]] = self._visits(part, first, last)
        catalog = Catalog(
            item_ids=self.item_ids,
            n_users=self.n_users,
            user_ids=self.user_ids,
            attributes=self._attributes(),
        )
        return SequenceDataset.from_offsets(
            items, offsets, catalog, timestamps=self._timestamps(offsets)
        )

    def frame(self) -> pl.DataFrame:
        """The log as a frame of ``user_id``, ``item_id`` and ``timestamp``, in order of time."""
        dataset = self.dataset()
        times = np.asarray(dataset.timestamps)
        order = np.argsort(times, kind="stable")
        user = np.repeat(np.arange(self.n_users), dataset.lengths)[order]
        return pl.DataFrame(
            {
                "user_id": self.user_ids.gather(user),
                "item_id": self.item_ids.gather(dataset.items[order] - 1),
                "timestamp": times[order],
            }
        )

    def item_frame(self) -> pl.DataFrame:
        """The items as a frame of ``item_id``, ``name`` and ``category``, in order of number."""
        return self._attributes().insert_column(0, self.item_ids)

    def _stream(self, name: int, part: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, name, part])

    @cached_property
    def _world(self) -> "_World":
        """Tables that hold for all customers. Items are numbered at random."""
        draw = self._stream(_WORLD)
        n, n_categories = self.n_items, self.n_categories
        category = np.arange(n) * n_categories // n  # of each item in order of (category, rank)
        begins = np.searchsorted(category, np.arange(n_categories + 1))
        rank = np.arange(n) - begins[category]
        weight = (rank + 1 + _ZIPF_OFFSET) ** -self.zipf
        share = weight / np.bincount(category, weight)[category]
        size = draw.permutation((np.arange(n_categories) + 1 + _ZIPF_OFFSET) ** -self.zipf)
        size /= size.sum()
        related = (
            np.arange(n_categories)[:, None]
            + draw.integers(1, max(2, n_categories), (n_categories, _N_RELATED))
        ) % n_categories
        # one ring through each category; then popular items of this or a related category
        ring = np.lexsort((draw.random(n), category))
        following = np.arange(n) + 1
        following[begins[1:] - 1] = begins[:-1]
        successors = np.empty((n, len(_SUCCESSOR_WEIGHTS)), dtype=np.int64)
        successors[ring, 0] = ring[following]
        stairs = np.cumsum(share)  # a category's shares sum to 1, so each has its own unit
        for slot in range(1, successors.shape[1]):
            target = np.where(draw.random(n) < 0.5, category, related[category, slot - 1])
            successors[:, slot] = _climb(stairs, begins, target, draw.random(n))
        number = draw.permutation(n) + 1

        def by_number(values: np.ndarray, padding: int = 0) -> np.ndarray:
            table = np.full((n + 1, *values.shape[1:]), padding, dtype=values.dtype)
            table[number] = values
            return table

        return _World(
            category=by_number(category, -1),
            rank=by_number(rank),
            share=by_number(share),
            popularity=by_number(share * size[category]),
            successors=by_number(number[successors]),
            number=number.astype(np.int32),
            stairs=stairs,
            begins=begins,
            size=size,
            related=related,
        )

    @cached_property
    def _favorites(self) -> Int64[np.ndarray, "U 3"]:
        """First, lasting and last favorite category of each customer."""
        draw = self._stream(_TASTES)
        favorites = draw.choice(self.n_categories, (self.n_users, 3), p=self._world.size)
        for slot in (1, 2):
            near = draw.random(self.n_users) < 0.7
            of = draw.integers(0, _N_RELATED, self.n_users)
            favorites[near, slot] = self._world.related[favorites[near, 0], of[near]]
        return favorites

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, " U"]:
        draw = self._stream(_LENGTHS)
        longest = max(_SHORTEST, min(self.longest, self.n_items // 2))
        lengths = _SHORTEST + (_LENGTH_SCALE * draw.pareto(_LENGTH_SHAPE, self.n_users))
        return np.minimum(lengths, longest).astype(np.int64)

    def _taste_weights(self, positions: Int64[np.ndarray, " B"]) -> Float64[np.ndarray, "B 3"]:
        moved = (positions / (positions + self.drift))[:, None]
        weights: np.ndarray = (1 - moved) * _TASTE_AT_FIRST + moved * _TASTE_AT_LAST
        return weights

    def _visits(self, part: int, first: int, last: int) -> Int32[np.ndarray, " N"]:
        """Items of customers [first, last), one position of all of them at a time."""
        draw = self._stream(_VISITS, part)
        lengths = self._lengths[first:last]
        order = np.argsort(-lengths, kind="stable")  # customers still choosing come first
        favorites = self._favorites[first:last][order]
        remaining = lengths[order]
        taken = np.zeros((int(remaining[0]), len(order)), dtype=np.int32)
        for position in range(len(taken)):
            waiting = np.arange(int(np.searchsorted(-remaining, -position)))
            while len(waiting):
                newest = taken[position - 1, waiting] if position else None
                chosen = self._choose(draw, favorites[waiting], position, newest)
                # an item taken before is refused and all drawn anew, which gives exactly the
                # distribution of the module's formula
                new = ~(taken[:position, waiting] == chosen).any(0)
                taken[position, waiting[new]] = chosen[new]
                waiting = waiting[~new]
        column = np.empty(len(order), dtype=np.int64)
        column[order] = np.arange(len(order))
        owner = np.repeat(np.arange(len(order)), lengths)
        position_of = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        items: np.ndarray = taken[position_of, column[owner]]
        return items

    def _choose(
        self,
        draw: np.random.Generator,
        favorites: Int64[np.ndarray, "B 3"],
        position: int,
        newest: Int32[np.ndarray, " B"] | None,
    ) -> Int32[np.ndarray, " B"]:
        """One draw for each customer from the formula, before items taken are refused."""
        world, n = self._world, len(favorites)
        stray = draw.random(n) < self.stray_weight
        until = np.cumsum(self._taste_weights(np.array([position]))[0])
        slot = np.minimum(np.searchsorted(until, draw.random(n), side="right"), 2)
        category = favorites[np.arange(n), slot]
        category[stray] = draw.choice(self.n_categories, int(stray.sum()), p=world.size)
        items: np.ndarray = world.number[
            _climb(world.stairs, world.begins, category, draw.random(n))
        ]
        if newest is not None:
            follows = np.flatnonzero(draw.random(n) < self.successor_weight)
            slot = draw.choice(len(_SUCCESSOR_WEIGHTS), len(follows), p=_SUCCESSOR_WEIGHTS)
            items[follows] = world.successors[newest[follows], slot]
        return items

    def _timestamps(self, offsets: Int64[np.ndarray, " U_plus_1"]) -> Int64[np.ndarray, " N"]:
        """Times of the items: a first day, then gaps of minutes within a visit or days between."""
        draw = self._stream(_TIMES)
        n = int(offsets[-1])
        mean = np.where(draw.random(n) < _SAME_VISIT, _MINUTES, _DAYS)
        gaps = 1 + (mean * draw.standard_exponential(n)).astype(np.int64)
        if self.orders:
            gaps[mean == _MINUTES] = 0
        gaps[offsets[1:-1]] = 0
        gaps[0] = 0
        elapsed = np.cumsum(gaps)
        # more customers come as time goes on
        begin = _OPENED + (_OPEN_SECONDS * np.sqrt(draw.random(self.n_users))).astype(np.int64)
        times: np.ndarray = elapsed + np.repeat(begin - elapsed[offsets[:-1]], np.diff(offsets))
        return times

    def _attributes(self) -> pl.DataFrame:
        """Name and category of each item; no two items share a name."""
        world = self._world
        kinds, n_kinds = list(_NOUNS), len(_NOUNS)
        n_names = len(_ADJECTIVES) * len(_NOUNS[kinds[0]])
        category, rank = world.category[1:], world.rank[1:]
        kind, copy = category % n_kinds, category // n_kinds
        # 37 shares no factor with the number of names, so this visits each of them once a round
        at = (rank * 37 + kind * 11) % n_names
        copies = -(-self.n_categories // n_kinds)
        series = rank // n_names * copies + copy + 1
        nouns = np.array([noun for kind_nouns in _NOUNS.values() for noun in kind_nouns])
        noun = kind * len(_NOUNS[kinds[0]]) + at // len(_ADJECTIVES)
        words = pl.DataFrame(
            {
                "adjective": pl.Series(_ADJECTIVES).gather(at % len(_ADJECTIVES)),
                "noun": pl.Series(nouns).gather(noun),
                "series": series,
                "kind": pl.Series(kinds).gather(kind),
                "copy": copy + 1,
            }
        )
        return words.select(
            _numbered(pl.concat_str("adjective", "noun", separator=" "), "series").alias("name"),
            _numbered(pl.col("kind"), "copy").alias("category"),
        )


@dataclass(frozen=True, eq=False)
class _World:
    """Tables by item number (V entries, 0 is padding), and by order of (category, rank)."""

    category: Int64[np.ndarray, " V"]
    rank: Int64[np.ndarray, " V"]
    share: Float64[np.ndarray, " V"]
    popularity: Float64[np.ndarray, " V"]
    successors: Int64[np.ndarray, "V 3"]
    number: Int32[np.ndarray, " I"]
    stairs: Float64[np.ndarray, " I"]
    begins: Int64[np.ndarray, " C_plus_1"]
    size: Float64[np.ndarray, " C"]
    related: Int64[np.ndarray, "C 2"]


def _climb(
    stairs: Float64[np.ndarray, " I"],
    begins: Int64[np.ndarray, " C_plus_1"],
    category: Int64[np.ndarray, " B"],
    uniform: Float64[np.ndarray, " B"],
) -> Int64[np.ndarray, " B"]:
    """Inverse of the distribution function within a category, for many categories at once.

    Args:
        stairs: cumulative shares of the items of all categories, one unit a category.
        begins: position of each category's first item.
        category: category of each draw.
        uniform: the draws, in [0, 1).

    Returns:
        Positions in the order of (category, rank).
    """
    found = np.searchsorted(stairs, category + uniform, side="right")
    positions: np.ndarray = np.clip(found, begins[category], begins[category + 1] - 1)
    return positions


def _raw_ids(letter: str, numbers: Int64[np.ndarray, " N"], width: int, name: str) -> pl.Series:
    digits = pl.col(name).cast(pl.String).str.zfill(max(width, len(str(int(numbers.max())))))
    return pl.DataFrame({name: numbers}).select(pl.lit(letter) + digits)[:, 0].rename(name)


def _numbered(text: pl.Expr, number: str) -> pl.Expr:
    """The text, followed by its number from the second on."""
    suffixed = pl.concat_str(text, pl.col(number).cast(pl.String), separator=" ")
    return pl.when(pl.col(number) == 1).then(text).otherwise(suffixed)
