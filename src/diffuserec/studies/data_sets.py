"""The data sets of studies by name: where they are, and how to get one that is not there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffuserec.data import Store, dataset_manifest, load_dataset, read_log
from diffuserec.errors import ConfigError
from diffuserec.files import sha256
from diffuserec.studies.study_file import slug
from diffuserec.studies.train_run import Say

STORES: Mapping[str, Store] = {
    "store": Store(n_users=4000, n_items=800, seed=0),
    "store-orders": Store(n_users=4000, n_items=800, seed=0, orders=True),
}
"""The built-in store, which is always there, and the same whose visits are orders."""

_AMAZON = (
    "one line a user, 'user item item …', oldest first, as SASRec's and S3Rec's authors share it"
)
_SOURCES: Mapping[str, str] = {
    "beauty": f"Amazon Beauty 2014, 5-core, {_AMAZON}",
    "toys": f"Amazon Toys and Games 2014, 5-core, {_AMAZON}",
    "sports": f"Amazon Sports and Outdoors 2014, 5-core, {_AMAZON}",
    "video-games": f"Amazon Video Games 2014, 5-core, {_AMAZON}",
    "yelp": "Yelp 2019 and later, 5-core, from yelp.com/dataset",
    "steam": "Steam reviews, from the page of Julian McAuley's group (UCSD)",
    "ml-1m": "MovieLens-1M, ratings.dat or one line a user, from grouplens.org",
    "ml-20m": "MovieLens-20M, ratings.csv, from grouplens.org",
    "lastfm": "LastFM (HetRec 2011), from grouplens.org",
}
"""What to look for, of the data sets that the studies of this package name."""


def find_data(
    names: Sequence[str], where: Path, out: Path, users: int | None, say: Say
) -> tuple[dict[str, Path], dict[str, str]]:
    """The prepared data sets that a study names, and those that are not there.

    Args:
        names: of the study; ``beauty:1000`` are a thousand users of ``beauty``.
        where: a prepared dataset or a log, which stands for all names; or a directory that holds,
            under each name, a prepared dataset or a log with any ending.
        out: directory for what has to be prepared.
        users: at most so many users of each; None keeps all. Users are drawn with seed 0, and fewer
            are some of those.

    Returns:
        The prepared data sets by name; and, by name, what to do about the others.

    Raises:
        DataError: a log or a dataset is there and cannot be read.
    """
    found: dict[str, Path] = {}
    skipped: dict[str, str] = {}
    own = where.is_file() or (where / "manifest.json").is_file()
    for name in names:
        log, some = parse_data(name)
        log = slug(where.stem) if own else log
        source = where if own else _source(log, where)
        shown = log if some is None else f"{log}:{some}"
        if source is None and log not in STORES:
            skipped[shown] = f"{where / log} is not there; put {_wanted(log)} there, or name --data"
        elif shown not in found:
            n_users = min((n for n in (some, users) if n is not None), default=None)
            found[shown] = _prepared(log, source, out, n_users, say).resolve()
    return found, skipped


def parse_data(name: str) -> tuple[str, int | None]:
    """Name of a log and how many of its users are meant, of a name such as ``beauty:1000``.

    Raises:
        ConfigError: the number is none, or less than 10.
    """
    log, colon, number = name.partition(":")
    if not colon:
        return log, None
    if not (number.isdecimal() and int(number) >= 10):
        raise ConfigError(f"no data set {name!r}: write {log}:1000 for a thousand users of {log}")
    return log, int(number)


def _wanted(name: str) -> str:
    return f"{name}.txt ({_SOURCES[name]})" if name in _SOURCES else f"a log called {name}"


def _source(name: str, where: Path) -> Path | None:
    if not where.is_dir():
        return None
    exact = where / name
    logs = sorted(
        path for path in where.iterdir() if path.is_file() and path.name.partition(".")[0] == name
    )
    return exact if exact.exists() else next(iter(logs), None)


def _prepared(name: str, source: Path | None, out: Path, users: int | None, say: Say) -> Path:
    whole = source is not None and source.is_dir() and (source / "manifest.json").is_file()
    if whole and users is None and source is not None:
        return source
    path = out / (name if users is None else f"{name}-{users}-users")
    origin = name if source is None else _checksum(source)
    if (path / "manifest.json").is_file():
        if dataset_manifest(path)["note"].get("origin") == origin:
            return path
        say(f"{name} is not what it was: it is prepared anew")
    say(f"preparing {name}")
    note = {"source": name if source is None else source.name, "filters": "none"}
    note["origin"] = origin
    if source is None:
        dataset = STORES[name].dataset()
    elif whole:
        dataset = load_dataset(source)
    else:
        dataset = read_log(source).to_dataset()
    if users is not None and len(dataset) < users:
        say(f"{name} has {len(dataset):,} users, not {users:,}: all of them")
    if users is not None and len(dataset) > users:
        index = np.sort(np.random.default_rng(0).permutation(len(dataset))[:users])
        dataset = dataset.select(index)
        note["filters"] = f"{users} users drawn"
    dataset.save(path, note=note, overwrite=True)
    return path


def _checksum(source: Path) -> str:
    return load_dataset(source).fingerprint if source.is_dir() else sha256(source)
