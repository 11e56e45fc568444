"""Splits of a log into a part to learn from, queries to choose by, and queries to measure on.

All parts are views of the log. `fit` is given `train`, and `valid` to stop by; only evaluation is
given `test`.

A split has a name that a command line and a run can hold, read by :func:`split_dataset`:

* ``leave-one-out``;
* ``leave-last:k=5``;
* ``leave-basket``;
* ``temporal``, or with settings such as ``temporal:quantile=0.8,target=first``;
* ``new-items``, or with settings such as ``new-items:share=0.05,seed=1``;
* ``file:parts.csv``, or with settings in front: ``file:target=first,path=parts.csv``;
* ``none``, which holds nothing out: of final models, which are measured on what comes later.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64

from diffuserec.data.advice import require_sequences
from diffuserec.data.arrays import nth_smallest
from diffuserec.data.dataset import SequenceDataset, offsets_of
from diffuserec.data.split_file import read_parts
from diffuserec.errors import ConfigError, DataError, did_you_mean
from diffuserec.files import sha256
from diffuserec.tables import Record, format_facts, format_table

Target = Literal["first", "last"]

_LARGEST_BASKET = 100
"""Items at one time at most; more are no basket, but a history that was put in at once."""

NOTHING_HELD_OUT = "none"
"""Name of the split that trains on everything."""


@dataclass(frozen=True, eq=False)
class Queries:
    """Histories, and the item that came next in each.

    Attributes:
        histories: input of a recommender; a dataset, so that an augmenter applies to it.
        targets: item number that followed each history; int64, shape (Q,).
        following: the K items that followed, the target first, where a split holds out lists; of
            baskets each has its own number, and 0 stands behind it. int64, shape (Q, K). None
            otherwise.
        split: how the log was divided and which part this is; None if it was not said.
        n_too_short: users of the log without a query; None if it was not said.
        together: whether the items that followed came at one time, as a basket, without an order.
    """

    histories: SequenceDataset
    targets: Int64[np.ndarray, " Q"]
    split: str | None = None
    n_too_short: int | None = None
    following: Int64[np.ndarray, "Q K"] | None = None
    together: bool = False

    def __repr__(self) -> str:
        """Sizes as a table."""
        return format_facts(self._sizes(), title="Queries").rstrip()

    def _repr_html_(self) -> str:
        """Sizes as a table for notebooks."""
        return format_facts(self._sizes(), "html", title="Queries")

    def _sizes(self) -> dict[str, int | str]:
        sizes = self.histories.sizes()
        del sizes["sequences"]
        return {"queries": len(self)} | {
            f"{name} of histories" if name.startswith("length") else name: size
            for name, size in sizes.items()
        }

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, index: Int64[np.ndarray, " S"]) -> "Queries":
        """Some of the queries, in that order."""
        following = None if self.following is None else self.following[index]
        return replace(
            self,
            histories=self.histories.select(index),
            targets=self.targets[index],
            following=following,
        )

    @property
    def repeat_share(self) -> float:
        """Share of targets that are already in their own (real) history."""
        if not len(self):
            return 0.0
        n_repeats = at = 0
        for part in self.histories.parts():
            real = part.real()
            hit = real.items == np.repeat(self.targets[at : at + len(part)], real.lengths)
            n_repeats += int((np.diff(offsets_of(hit)[real.offsets]) > 0).sum())
            at += len(part)
        return n_repeats / len(self)


@dataclass(frozen=True, eq=False)
class Split:
    """A log divided into training and held-out parts.

    Attributes:
        train: sequences to learn from.
        valid: queries to choose and to stop by.
        test: queries to measure on.
        protocol: name and settings of the division, for the protocol line.
        n_too_short: users without a query: too short a history (leave-one-out), or no target with
            a history before it in either window.
    """

    train: SequenceDataset
    valid: Queries
    test: Queries
    protocol: str
    n_too_short: int

    def __post_init__(self) -> None:
        for part in ("valid", "test"):
            stated = {"split": f"{self.protocol}, {part}", "n_too_short": self.n_too_short}
            object.__setattr__(self, part, replace(getattr(self, part), **stated))

    def __repr__(self) -> str:
        """Sizes of the parts as a table."""
        return format_table(self._sizes(), title=self._title()).rstrip()

    def _repr_html_(self) -> str:
        """Sizes of the parts as a table for notebooks."""
        return format_table(self._sizes(), "html", title=self._title())

    def _title(self) -> str:
        return f"Split, {self.protocol}; {self.n_too_short:,} users too short"

    def _sizes(self) -> list[Record]:
        parts = {
            "train": (self.train, None),
            "valid": (self.valid.histories, len(self.valid)),
            "test": (self.test.histories, len(self.test)),
        }
        return [
            {
                "part": name,
                "sequences": len(dataset),
                "interactions": int(dataset.lengths.sum()),
                "targets": n_targets,
            }
            for name, (dataset, n_targets) in parts.items()
        ]


def leave_one_out(dataset: SequenceDataset) -> Split:
    """Each user's last item is the test target, the one before it the validation target.

    The training part is ``[:-2]``, the validation history ``[:-2]``, the test history ``[:-1]``.
    Users with fewer than three items have no queries; their items are all trained on.

    Raises:
        DataError: no user has three items.
    """
    split = _leave_last(dataset, 1, "leave-one-out")
    return replace(split, test=replace(split.test, following=None))


def leave_last(dataset: SequenceDataset, k: int = 5) -> Split:
    """Each user's last k items are a test list, and the one before them the validation target.

    The training part is ``[:-k - 1]``, as is the validation history; the test history is ``[:-k]``.
    The test target is the first item of the list, and ``following`` has all of it. With k = 1 this
    is :func:`leave_one_out`. Users with fewer than k + 2 items have no queries; their items are all
    trained on.

    Raises:
        ConfigError: k is not a whole number, or below 1.
        DataError: no user has k + 2 items.
    """
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise ConfigError(f"k must be a whole number of at least 1, got {k!r}")
    return _leave_last(dataset, int(k), f"leave-last k={k}")


def _leave_last(dataset: SequenceDataset, k: int, protocol: str) -> Split:
    _refuse_synthetic(dataset)
    lengths = dataset.lengths
    enough = lengths >= k + 2
    if not enough.any():
        raise DataError(
            f"{protocol} needs users with at least {k + 2} interactions, and none of the "
            f"{len(dataset)} has them (longest: {lengths.max(initial=0)})"
        )
    index = None if enough.all() else np.flatnonzero(enough)
    starts, ends = (
        part if index is None else part[index] for part in (dataset.starts, dataset.ends)
    )
    at_valid, at_test = ends - k - 1, ends - k
    # where no user is too short, two parts have the same bounds and share them
    kept = at_valid if index is None else np.where(enough, dataset.ends - k - 1, dataset.ends)
    train = dataset.view(dataset.starts, kept)
    valid, test = (
        Queries(dataset.view(starts, at, index), np.asarray(dataset.log.items[at], dtype=np.int64))
        for at in (at_valid, at_test)
    )
    following = dataset.log.items[ends[:, None] - np.arange(k, 0, -1)].astype(np.int64)
    return Split(train, valid, replace(test, following=following), protocol, int((~enough).sum()))


def leave_basket(dataset: SequenceDataset) -> Split:
    """What each user took last, two items or more at one time, is held out whole as a basket.

    A basket is 2 to 100 items, not all the same, with the newest timestamp of their user. Whatever
    came at the time before it, one item or more, is held out for validation: its first item is the
    target. The training part and the validation history end before that time, and the test history
    before the basket, so that nothing is asked for beside items of its own time. Users whose newest
    time has no basket, or who have fewer than two times before it, have no query; their items are
    all trained on.

    ``following`` has the different items of a basket, as the log has them, with 0 behind them where
    others have more; the test target is the first.

    Raises:
        DataError: no timestamps, or no user has a basket.
    """
    _refuse_synthetic(dataset)
    if dataset.log.timestamps is None:
        raise DataError("baskets need timestamps: prepare the log with --time COLUMN")
    starts, n_test = dataset.starts, _n_together(dataset, dataset.ends)
    at_test = dataset.ends - n_test
    at_valid = at_test - _n_together(dataset, at_test)
    index = np.flatnonzero((n_test > 1) & (n_test <= _LARGEST_BASKET) & (at_valid > starts))
    following = _different_items(dataset, at_test[index], n_test[index])
    several = (following > 0).sum(1) > 1
    if not several.any():
        raise DataError(
            f"the log has no baskets: leave-basket needs users who took 2 to {_LARGEST_BASKET} "
            "items at their newest time, not all the same, and others at two times before; none "
            f"of the {len(dataset)} has"
        )
    index, following = index[several], following[several]
    ends = dataset.ends.copy()
    ends[index] = at_valid[index]
    valid, test = (
        Queries(
            dataset.view(starts[index], at[index], index),
            np.asarray(dataset.log.items[at[index]], dtype=np.int64),
        )
        for at in (at_valid, at_test)
    )
    following = following[:, : (following > 0).sum(1).max()]
    test = replace(test, following=following, together=True)
    train = dataset.view(starts, ends)
    return Split(train, valid, test, "leave-basket", len(dataset) - len(index))


def _n_together(dataset: SequenceDataset, ends: Int64[np.ndarray, " U"]) -> Int64[np.ndarray, " U"]:
    """Number of each sequence's items before `ends` that came at the time of the last of them."""
    times, starts = np.asarray(dataset.log.timestamps), dataset.starts
    n = (ends > starts).astype(np.int64)
    growing = np.flatnonzero(n)
    while len(growing):
        before = ends[growing] - n[growing] - 1
        inside = before >= starts[growing]
        growing, before = growing[inside], before[inside]
        growing = growing[times[before] == times[ends[growing] - 1]]
        n[growing] += 1
    return n


def _different_items(
    dataset: SequenceDataset, starts: Int64[np.ndarray, " Q"], lengths: Int64[np.ndarray, " Q"]
) -> Int64[np.ndarray, "Q K"]:
    """The items of stretches of the log, each at its first place; 0 behind them."""
    inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
    items = np.zeros(inside.shape, dtype=np.int64)
    place = starts[:, None] + np.arange(inside.shape[1])
    items[inside] = dataset.log.items[place[inside]]
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    np.put_along_axis(items, order, ordered, axis=1)
    return np.take_along_axis(items, np.argsort(items == 0, axis=1, kind="stable"), axis=1)


def temporal(
    dataset: SequenceDataset,
    quantile: float = 0.9,
    valid_quantile: float = 0.9,
    target: Target = "last",
) -> Split:
    """Two moments divide the whole log, for all users alike (a global temporal split).

    What happened up to the first moment is trained on. A user's validation target is the last (or
    the first) interaction after the first moment and up to the second, and the test target the last
    (or the first) after the second. All interactions before a target are its history, so that a
    last target may have some of its window. A user without a target, or with nothing before it,
    has no query there; new users do have one if they return.

    Gusak et al. ("Time to Split", RecSys 2025) compare such splits, and recommend the last target
    and validation by time.

    Args:
        dataset: needs timestamps.
        quantile: share of the interactions up to the test window; those at the very moment, too.
        valid_quantile: share of these that is trained on; the rest is the validation window.
        target: which interaction of a window a user is asked for.

    Raises:
        DataError: no timestamps, or a window without a query.
        ConfigError: a quantile is not between 0 and 1, or no such target.
    """
    _refuse_synthetic(dataset)
    if dataset.log.timestamps is None:
        raise DataError("a temporal split needs timestamps: prepare the log with --time COLUMN")
    for name, share in (("quantile", quantile), ("valid_quantile", valid_quantile)):
        if not 0 < share < 1:
            raise ConfigError(f"{name} must be between 0 and 1, got {share}")
    n = int(dataset.lengths.sum())
    if not n:
        raise DataError("a temporal split needs interactions, and the dataset has none")

    def times() -> Iterator[np.ndarray]:
        return (np.asarray(part.timestamps) for part in dataset.parts())

    second = nth_smallest(times, int(quantile * (n - 1)))
    n_until_second = sum(int((part <= second).sum()) for part in times())
    first = nth_smallest(times, int(valid_quantile * (n_until_second - 1)))
    if not first < second < max(part.max(initial=second) for part in times()):
        raise DataError(
            "the timestamps are too coarse for these windows (one moment would fall into two): "
            "use smaller quantiles or leave-one-out"
        )
    until_first, until_second = (
        np.concatenate(
            [
                np.diff(offsets_of(np.asarray(part.timestamps) <= moment)[part.offsets])
                for part in dataset.parts()
            ]
        )
        for moment in (first, second)
    )
    protocol = f"temporal quantile={quantile:g} valid_quantile={valid_quantile:g} target={target}"
    return _windows(dataset, until_first, until_second, target, protocol)


def new_items(dataset: SequenceDataset, share: float = 0.1, seed: int = 0) -> Split:
    """Some items count as new: training holds none of them, and they are the test targets.

    A user's interactions up to the first new item are the history of the test query, and that item
    is its target. What comes later is not used. Of these histories and of the users without a new
    item the last interaction is the validation target, if two or more stand before it; the rest is
    trained on.

    It measures what a model knows of items without a single interaction. All items of the catalog
    are ranked, the new ones among the others.

    Args:
        dataset: of at least two items.
        share: of the items that occur.
        seed: of the draw of the items.

    Raises:
        DataError: no user has a new item with something before it, or none has three items.
        ConfigError: the share is not between 0 and 1.
    """
    _refuse_synthetic(dataset)
    if not 0 < share < 1:
        raise ConfigError(f"share must be between 0 and 1, got {share}")
    occurring = np.flatnonzero(dataset.item_counts())
    n_new = max(1, round(share * len(occurring)))
    is_new = np.zeros(dataset.vocab_size, dtype=bool)
    is_new[np.random.default_rng(seed).permutation(occurring)[:n_new]] = True
    protocol = f"new-items share={share:g} seed={seed}"
    starts, lengths = dataset.starts, dataset.lengths
    before = [_n_before(is_new, part) for part in dataset.parts()]
    n_before = np.concatenate([np.zeros(0, dtype=np.int64), *before])
    index = np.flatnonzero((n_before > 0) & (n_before < lengths))
    checked = np.flatnonzero(n_before >= 3)
    for found, what in ((index, "has a new item with another before it"), (checked, "has three")):
        if not len(found):
            raise DataError(f"{protocol}: no user {what}: choose another share or seed")
    n_train = n_before.copy()
    n_train[checked] -= 1
    valid, test = (
        Queries(
            dataset.view(starts[users], starts[users] + n[users], users),
            np.asarray(dataset.log.items[starts[users] + n[users]], dtype=np.int64),
        )
        for users, n in ((checked, n_train), (index, n_before))
    )
    train = dataset.view(starts, starts + n_train)
    return Split(train, valid, test, protocol, len(dataset) - len(index))


def _n_before(is_new: Bool[np.ndarray, " V"], dataset: SequenceDataset) -> Int64[np.ndarray, " U"]:
    """Items of each sequence before its first new one, all where it has none."""
    offsets, n_before = dataset.offsets, dataset.lengths
    places = np.flatnonzero(is_new[dataset.items])
    owners = np.searchsorted(offsets, places, side="right") - 1
    owners, first = np.unique(owners, return_index=True)
    n_before[owners] = places[first] - offsets[owners]
    return n_before


def split_by_file(dataset: SequenceDataset, path: Path | str, target: Target = "last") -> Split:
    """The division that a file writes down, for the splits of other projects.

    A CSV, TSV, Parquet or JSONL file has a column ``part`` of ``train``, ``valid`` and ``test``
    beside one of users (a part for every user) or those of users and items, and of times where a
    user has an item more than once (a part for every interaction). It must hold just the users or
    the interactions of the dataset.

    * Parts of interactions: a user's interactions are trained on, then for validation, then for
      test, in this order. Each window gives a user one query, as in :func:`temporal`.
    * Parts of users: all of a user's interactions are trained on, or the last one is the target of
      a query and the others are its history.

    Raises:
        DataError: the file cannot be read, does not fit the dataset, or leaves a part without a
            query.
        ConfigError: no such target.
    """
    _refuse_synthetic(dataset)
    parts = read_parts(dataset, path)
    protocol = f"file {Path(path).name} ({sha256(Path(path))[:8]}) target={target}"
    return _windows(dataset, parts.n_train, parts.n_before_test, target, protocol)


def everything(dataset: SequenceDataset) -> Split:
    """All interactions are trained on; there are no queries."""
    _refuse_synthetic(dataset)
    none = np.zeros(0, dtype=np.int64)
    queries = Queries(dataset.view(none, none, none), none)
    return Split(dataset, queries, queries, NOTHING_HELD_OUT, 0)


def split_dataset(dataset: SequenceDataset, name: str) -> Split:
    """The log divided as a split's name says.

    Raises:
        ConfigError: no such split or setting; or a file that is not the one that was meant.
        DataError: the log cannot be divided so.
    """
    kind, settings = _parse(name)
    if kind == "leave-one-out":
        return leave_one_out(dataset)
    if kind == "leave-last":
        return leave_last(dataset, **settings)
    if kind == "leave-basket":
        return leave_basket(dataset)
    if kind == "temporal":
        return temporal(dataset, **settings)
    if kind == NOTHING_HELD_OUT:
        return everything(dataset)
    if kind == "new-items":
        return new_items(dataset, **settings)
    path, wanted = settings.pop("path"), settings.pop("sha256", None)
    if wanted is not None and _checksum(path) != wanted:
        raise ConfigError(
            f"{path} has changed since this split was named: put the file back as it was, or "
            "start anew"
        )
    return split_by_file(dataset, path, **settings)


def canonical_split(name: str) -> str:
    """A split's name with every setting said; a file by its whole path and checksum.

    Raises:
        ConfigError: no such split or setting.
        DataError: there is no such file.
    """
    kind, settings = _parse(name)
    if not _SETTINGS[kind]:
        return kind
    if kind == "temporal":
        shown = {"quantile": 0.9, "valid_quantile": 0.9, "target": "last"} | settings
        return f"temporal:{','.join(f'{key}={value}' for key, value in shown.items())}"
    if kind == "leave-last":
        return f"leave-last:k={settings.get('k', 5)}"
    if kind == "new-items":
        return "new-items:share={share},seed={seed}".format(**{"share": 0.1, "seed": 0} | settings)
    path = Path(settings["path"]).resolve()
    target = settings.get("target", "last")
    checksum = settings.get("sha256") or _checksum(path)
    return f"file:target={target},sha256={checksum},path={path}"


def split_beside(name: str, folder: Path) -> str:
    """A split's name, in which the path of a file counts from a folder.

    Raises:
        ConfigError: no such split or setting.
    """
    kind, settings = _parse(name)
    if kind != "file":
        return name
    path = folder / settings.pop("path")
    return f"file:{''.join(f'{key}={value},' for key, value in settings.items())}path={path}"


def require_split(name: str) -> None:
    """Raises ConfigError if no such split holds anything out, or a setting is wrong."""
    kind, _ = _parse(name)
    if kind == NOTHING_HELD_OUT:
        raise ConfigError(
            f"the split {name!r} holds nothing out to measure on: it is what 'diffuserec train "
            "--final RUN' trains on"
        )


_SETTINGS: dict[str, tuple[str, ...]] = {
    "leave-one-out": (),
    "leave-last": ("k",),
    "leave-basket": (),
    "temporal": ("quantile", "valid_quantile", "target"),
    "new-items": ("share", "seed"),
    "file": ("target", "sha256", "path"),
    NOTHING_HELD_OUT: (),
}
"""Settings of each kind of split."""


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """Kind and settings of a split's name."""
    kind, colon, text = name.partition(":")
    if kind not in _SETTINGS:
        hint = did_you_mean(kind, _SETTINGS)
        known = ", ".join(name for name in _SETTINGS if name != NOTHING_HELD_OUT)
        raise ConfigError(f"no split {kind!r}{hint}; there are: {known}")
    settings: dict[str, Any] = {}
    if kind == "file":
        # the path is the last setting and may hold commas and equals signs
        match = re.fullmatch(r"((?:(?:target|sha256)=[^,]*,)*)path=(.+)", text, re.DOTALL)
        text, path = (match[1].rstrip(","), match[2]) if match else ("", text)
        if not path:
            raise ConfigError("a split by file names the file: file:parts.csv")
        settings["path"] = path
    for pair in text.split(",") if text or (colon and kind != "file") else ():
        setting, equals, value = pair.strip().partition("=")
        if setting not in _SETTINGS[kind]:
            hint = did_you_mean(setting, _SETTINGS[kind])
            known = ", ".join(_SETTINGS[kind]) or "none"
            raise ConfigError(f"{name}: {kind} has no setting {setting!r}{hint}; it has: {known}")
        if not equals or setting in settings:
            raise ConfigError(f"{name}: a setting is written once, as name=value, got {pair!r}")
        settings[setting] = _value(setting, value, name)
    return kind, settings


def _value(setting: str, text: str, name: str) -> float | int | str:
    if setting == "k":
        if not (text.isdecimal() and int(text) >= 1):
            raise ConfigError(f"{name}: k must be a whole number of at least 1, got {text!r}")
        return int(text)
    if setting == "seed":
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise ConfigError(f"{name}: seed must be a whole number from 0 on, got {text!r}")
        return int(text)
    if not setting.endswith("quantile") and setting != "share":
        if setting == "target":
            _require_target(text)
        return text
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ConfigError(f"{name}: {setting} must be between 0 and 1, got {text!r}")
    return share


def _require_target(target: str) -> None:
    if target not in ("first", "last"):
        hint = did_you_mean(target, ("first", "last"))
        raise ConfigError(f"no target {target!r}{hint}; there are: first, last")


def _checksum(path: Path | str) -> str:
    try:
        return sha256(Path(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _windows(
    dataset: SequenceDataset,
    n_train: Int64[np.ndarray, " U"],
    n_before_test: Int64[np.ndarray, " U"],
    target: Target,
    protocol: str,
) -> Split:
    """A split in which each user's interactions are for training, then validation, then test.

    Args:
        n_train: interactions of each user that are trained on.
        n_before_test: of each user, those and the ones of the validation window.
    """
    _require_target(target)
    starts, lengths = dataset.starts, dataset.lengths
    # users without anything to learn from keep their (empty) sequence
    train = dataset.view(starts, starts + n_train)
    windows = {}
    for name, begin, end in (
        ("validation", n_train, n_before_test),
        ("test", n_before_test, lengths),
    ):
        at = begin if target == "first" else end - 1
        index = np.flatnonzero((begin < end) & (at > 0))
        if not len(index):
            raise DataError(
                f"{protocol}: the {name} window holds no {target} target with a history before "
                "it: choose other windows, or the last target"
            )
        place = starts[index] + at[index]
        windows[name] = Queries(
            dataset.view(starts[index], place, index),
            np.asarray(dataset.log.items[place], dtype=np.int64),
        )
    valid, test = windows["validation"], windows["test"]
    queried = np.union1d(valid.histories.users, test.histories.users)
    return Split(train, valid, test, protocol, len(dataset) - len(queried))


def _refuse_synthetic(dataset: SequenceDataset) -> None:
    require_sequences("a split", dataset)
    synthetic = dataset.has_synthetic and any(part.synthetic.any() for part in dataset.parts())
    if synthetic or dataset.copies is not None or dataset.use is not None:
        raise DataError(
            "this dataset holds synthetic items or augmented copies; split the original log and "
            "augment its parts, or a generated item could become a target and a held-out one be "
            "trained on"
        )
