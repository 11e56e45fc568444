"""One model, one set of queries, one printed protocol: the result that everything else reads.

Every query is ranked and every one counts the same. What a user really had may be hidden; items
that an augmenter made up never are. Sampled candidates are drawn for each user from (seed, user),
so neither they nor anything else depends on the batch.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor

from diffuserec.contracts import Augmenter, Recommender
from diffuserec.data import Queries, SequenceDataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation.groups import GROUPS, group_means, history_groups, popularity_groups
from diffuserec.evaluation.metrics import list_metrics, rank_metrics
from diffuserec.evaluation.uncertainty import uncertainty
from diffuserec.ranking import (
    Ranking,
    hide,
    sampled_target_ranks,
    seen_pairs,
    target_ranks,
    top_k,
)

_FORMAT = "diffuserec-evaluation"
_VERSION = 1
_FACTS = ("split", "filters", "n_too_short")
_NOTABLE_REPEATS = 0.01


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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model achieved on some queries, and how that was measured.

    Attributes:
        method: name of the recommender, with its augmenter where there was one.
        protocol: how it was measured.
        metrics: means over all users, under names such as ``HR@10``.
        groups: rows ``grouping, group, n_users, metric, value``.
        per_user: one row a query, in the order of the queries: ``user`` (number), ``user_id``
            (where the catalog knows it), ``history_length``, ``history_group``, ``target`` (raw
            id), ``target_count`` (in training), ``popularity_group``, ``target_rank`` (0-based),
            a column for each metric of the rank and, where asked for, ``confidence``, ``entropy``
            and ``disagreement`` (:func:`uncertainty`).
    """

    method: str
    protocol: Protocol
    metrics: dict[str, float]
    groups: pl.DataFrame
    per_user: pl.DataFrame

    @property
    def repeat_note(self) -> str | None:
        """What to know when many targets are repeats and repeats were hidden; else None."""
        share = self.protocol.repeat_share
        if not self.protocol.filter_seen or share <= _NOTABLE_REPEATS:
            return None
        return (
            f"{share:.1%} of the targets are already in their own history; hiding seen items "
            "makes each of them a miss. Measure with filter_seen=False (--keep-seen) as well"
        )

    def to_json(self) -> str:
        """One JSON object: ``method, protocol, metrics, groups, repeat_note``.

        ``protocol`` holds its fields and its ``line``; ``groups`` is
        ``{grouping: {group: {"n_users": …, metric: value, …}}}``.
        """
        return json.dumps(self._document(), indent=2, allow_nan=False)

    def save(self, directory: Path | str) -> None:
        """Writes ``metrics.json`` and ``per_user.parquet`` into a directory, made when missing.

        Each file appears whole or not at all; the first names the second's sha256, so that files
        of two different evaluations are never taken for one.
        """
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        work = target / ".per_user.parquet.partial"
        self.per_user.write_parquet(work)
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            **self._document(),
            "per_user_sha256": _sha256(work),
        }
        _replace(work, target / "per_user.parquet")
        work = target / ".metrics.json.partial"
        work.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        _replace(work, target / "metrics.json")

    def _document(self) -> dict[str, Any]:
        groups: dict[str, dict[str, dict[str, float]]] = {name: {} for name in GROUPS}
        for grouping, group, n_users, metric, value in self.groups.iter_rows():
            groups[grouping].setdefault(group, {"n_users": n_users})[metric] = value
        return {
            "method": self.method,
            "protocol": {**asdict(self.protocol), "line": str(self.protocol)},
            "metrics": self.metrics,
            "groups": groups,
            "repeat_note": self.repeat_note,
        }


def evaluate(
    model: Recommender,
    queries: Queries,
    *,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    candidates: str = "full",
    cutoffs: Sequence[int] = (5, 10, 20),
    list_length: int = 10,
    seed: int = 0,
    batch_size: int = 256,
    with_uncertainty: bool = False,
    dataset_name: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measures a fitted recommender on queries.

    Args:
        model: put into evaluation mode, and left there.
        queries: histories and the item that followed each; an empty history is answered by
            popularity.
        augmenter: lengthens the histories first, as in training.
        filter_seen: hide what is in a user's own real history; a target that is itself in there
            then counts as ranked last.
        candidates: ``full`` ranks the whole catalog; ``uniform:100`` ranks the target among 100
            items drawn for each user without replacement, none of them in the user's real
            history.
        cutoffs: list lengths of HR and NDCG.
        list_length: list length of coverage, Gini and novelty, which always come from the full
            ranking.
        seed: of noise and of sampled candidates.
        batch_size: queries scored at once; changes no result.
        with_uncertainty: add the columns of :func:`uncertainty` to the per-user results, for
            lists of `list_length`; a second pass over the queries.
        dataset_name: for the protocol.
        facts: for the protocol, what the queries do not say themselves: ``split``, ``filters``
            (text), ``n_too_short`` (users).

    Raises:
        ConfigError: not fitted or fitted to another catalog, an option that is not allowed, more
            candidates than there are items, or an unknown fact.
        DataError: no queries, or the model's scores are not numbers.
    """
    stated = dict(facts or {})
    for name in stated:
        if name not in _FACTS:
            raise ConfigError(f"no protocol fact {name!r}; there are: {', '.join(_FACTS)}")
    if not cutoffs or min(cutoffs) < 1:
        raise ConfigError(f"cutoffs must be positive list lengths, got {tuple(cutoffs)}")
    ranking = rank(
        model,
        queries,
        augmenter=augmenter,
        filter_seen=filter_seen,
        candidates=candidates,
        list_length=list_length,
        seed=seed,
        batch_size=batch_size,
    )
    popularity = model.popularity.cpu().numpy()
    by_user = rank_metrics(ranking.target_rank, sorted(set(cutoffs)))
    per_user = _per_user(queries, ranking, popularity).with_columns(
        pl.Series(name, values) for name, values in by_user.items()
    )
    if with_uncertainty:
        certain = uncertainty(
            model,
            queries,
            augmenter=augmenter,
            filter_seen=filter_seen,
            list_length=list_length,
            seed=seed,
            batch_size=batch_size,
        )
        per_user = per_user.hstack(certain)
    metrics = {name: float(values.mean()) for name, values in by_user.items()}
    protocol = Protocol(
        dataset=dataset_name,
        split=str(stated.get("split", "not stated")),
        candidates=candidates,
        n_items=queries.histories.catalog.n_items,
        filter_seen=filter_seen,
        ties="mid-rank",
        n_users=len(queries),
        n_too_short=stated.get("n_too_short"),
        filters=str(stated.get("filters", "not stated")),
        max_len=model.config.model_dump().get("max_len"),
        seed=seed,
        repeat_share=queries.repeat_share,
    )
    return Evaluation(
        method=model.name if augmenter is None else f"{model.name} + {augmenter.name}",
        protocol=protocol,
        metrics=metrics | list_metrics(ranking.top_items, popularity),
        groups=group_means(per_user, list(by_user)),
        per_user=per_user,
    )


@torch.inference_mode()
def rank(
    model: Recommender,
    queries: Queries,
    *,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    candidates: str = "full",
    list_length: int = 10,
    seed: int = 0,
    batch_size: int = 256,
) -> Ranking:
    """Where a model ranks each query's target, and what it would show on top.

    Arguments and errors are those of :func:`evaluate`.

    Returns:
        Ranks among the candidates, and the top lists of the full catalog; both in the order of
        the queries.
    """
    model.require_fitted()
    n_sampled = _n_sampled(candidates)
    catalog = queries.histories.catalog
    if not len(queries):
        raise DataError("there are no queries to evaluate on")
    if batch_size < 1 or list_length < 1:
        raise ConfigError(
            f"batch_size and list_length must be at least 1, got {batch_size} and {list_length}"
        )
    if not model.catalog.item_ids.equals(catalog.item_ids):
        raise ConfigError(
            f"{model.name} was fitted to another catalog ({model.catalog.n_items} items) than "
            f"that of the queries ({catalog.n_items} items): prepare both from one dataset"
        )
    if n_sampled is not None:
        _require_enough(queries, n_sampled)
    model.eval()
    longer = queries.histories
    if augmenter is not None:
        augmenter.eval()
        longer = augmenter.lengthened(queries.histories, seed)
    target_rank = np.empty(len(queries))
    top_items = np.empty((len(queries), min(list_length, catalog.n_items)), dtype=np.int64)
    order = np.argsort(longer.lengths, kind="stable")  # equal lengths together: little padding
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        scores = model.scores(longer, rows, seed)
        seen = None
        if filter_seen:
            owner, items = seen_pairs(queries.histories, rows)
            seen = (owner.to(scores.device), items.to(scores.device))
        hide(scores, seen)
        _refuse_nan(scores, model, queries.histories, rows)
        targets = torch.from_numpy(queries.targets[rows]).to(scores.device)
        if n_sampled is None:
            ranks = target_ranks(scores, targets)
        else:
            drawn = torch.from_numpy(uniform_candidates(queries, rows, n_sampled, seed))
            ranks = sampled_target_ranks(scores, targets, drawn.to(scores.device))
        target_rank[rows] = ranks.cpu().numpy()
        top_items[rows] = top_k(scores, list_length)[1].cpu().numpy()
    return Ranking(queries.histories.users, target_rank, top_items, catalog.vocab_size)


def uniform_candidates(
    queries: Queries, rows: Int64[np.ndarray, " B"], n: int, seed: int
) -> Int64[np.ndarray, "B n"]:
    """Items for each query's target to be ranked among, all equally likely.

    Each user has an endless sequence of items that depends on (seed, user) alone; the candidates
    are the first `n` of it that are new and neither the target nor in the real history.

    Args:
        queries: histories and targets.
        rows: which of them.
        n: how many items a query; the catalog must have as many to give.
        seed: of the draws.
    """
    n_items = queries.histories.catalog.n_items
    users = queries.histories.users[rows]
    at = np.arange(len(rows))
    taken = np.zeros((len(rows), n_items + 1), dtype=bool)
    owner, items = (tensor.numpy() for tensor in seen_pairs(queries.histories, rows))
    taken[owner, items] = True
    taken[at, queries.targets[rows]] = True
    width = n + n // 4 + 16
    while True:
        drawn = 1 + (_words(seed, users, width) % np.uint64(n_items)).astype(np.int64)
        usable = ~taken[at[:, None], drawn]
        order = np.argsort(drawn, axis=1, kind="stable")
        ordered = np.take_along_axis(drawn, order, axis=1)
        again = np.zeros_like(usable)
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        usable &= ~again
        place = usable.cumsum(1)
        if (place[:, -1] >= n).all():
            return drawn[usable & (place <= n)].reshape(len(rows), n)
        width *= 2


def load_evaluation(directory: Path | str) -> Evaluation:
    """Reads back what :meth:`Evaluation.save` wrote.

    Raises:
        DataError: nothing of ours is there, it is of another version, or the two files do not
            belong together.
    """
    source = Path(directory)
    try:
        document = json.loads((source / "metrics.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{source} holds no saved evaluation: run 'diffuserec evaluate' first"
        ) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise DataError(f"{source / 'metrics.json'} is not a saved evaluation")
    if document.get("version") != _VERSION:
        raise DataError(
            f"{source} has evaluation version {document.get('version')}, this release reads "
            f"{_VERSION}: evaluate again"
        )
    file = source / "per_user.parquet"
    if not file.is_file() or _sha256(file) != document.get("per_user_sha256"):
        raise DataError(
            f"{file} is missing or does not belong to metrics.json beside it: evaluate again"
        )
    protocol = {name: value for name, value in document["protocol"].items() if name != "line"}
    per_user = pl.read_parquet(file)
    measured = [name for name in document["metrics"] if name in per_user.columns]
    return Evaluation(
        method=document["method"],
        protocol=Protocol(**protocol),
        metrics=document["metrics"],
        groups=group_means(per_user, measured),
        per_user=per_user,
    )


def _per_user(
    queries: Queries, ranking: Ranking, popularity: Int64[np.ndarray, " V"]
) -> pl.DataFrame:
    catalog = queries.histories.catalog
    lengths = queries.histories.real_lengths
    columns: dict[str, Any] = {"user": np.asarray(ranking.users)}
    if catalog.user_ids is not None:
        columns["user_id"] = catalog.user_ids.gather(columns["user"])
    columns |= {
        "history_length": lengths,
        "history_group": history_groups(lengths),
        "target": catalog.item_ids.gather(queries.targets - 1),
        "target_count": popularity[queries.targets],
        "popularity_group": popularity_groups(queries.targets, popularity),
        "target_rank": ranking.target_rank,
    }
    return pl.DataFrame(columns)


def _n_sampled(candidates: str) -> int | None:
    if candidates == "full":
        return None
    name, _, number = candidates.partition(":")
    if name != "uniform" or not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"candidates must be 'full' or 'uniform:N', got {candidates!r}")
    return int(number)


def _require_enough(queries: Queries, n: int) -> None:
    real = queries.histories.real()
    vocab_size = real.vocab_size
    owner = np.repeat(np.arange(len(queries)), real.lengths)
    own = np.concatenate(
        [owner * vocab_size + real.items, np.arange(len(queries)) * vocab_size + queries.targets]
    )
    n_own = np.bincount(np.unique(own) // vocab_size, minlength=len(queries))
    left = real.catalog.n_items - int(n_own.max())
    if left < n:
        raise ConfigError(
            f"uniform:{n} needs {n} items that a user does not have, and "
            f"{_user(real, int(n_own.argmax()))} leaves {left} of {real.catalog.n_items}: "
            "use fewer candidates, or 'full'"
        )


def _refuse_nan(
    scores: Tensor, model: Recommender, histories: SequenceDataset, rows: Int64[np.ndarray, " B"]
) -> None:
    bad = scores.amax(1).isnan()  # the greatest of a row is NaN when any of it is
    if bad.any():
        row = int(rows[int(bad.nonzero()[0, 0])])
        raise DataError(
            f"{model.name} gives {_user(histories, row)} scores that are not numbers (NaN): "
            "its parameters are damaged; train again, with a lower learning rate"
        )


def _user(histories: SequenceDataset, row: int) -> str:
    number = int(histories.users[row])
    known = histories.catalog.user_ids
    return f"user number {number}" if known is None else f"user {known[number]!r}"


def _words(seed: int, users: Int64[np.ndarray, " B"], width: int) -> UInt64[np.ndarray, "B W"]:
    """Random 64-bit words, each a hash of (seed, user, position): SplitMix64 in counter mode."""
    golden = np.uint64(0x9E3779B97F4A7C15)

    def mixed(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed_word: np.ndarray = z ^ (z >> np.uint64(31))
        return mixed_word

    # the constant keeps these draws apart from any noise that is keyed by (seed, user) too
    origin = mixed(np.array([seed & (2**64 - 1)], dtype=np.uint64) ^ np.uint64(0xCA9D1DA7E5))
    streams = mixed(origin + users.astype(np.uint64) * golden)
    steps: np.ndarray = np.arange(1, width + 1, dtype=np.uint64) * golden
    return mixed(streams[:, None] + steps)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(work: Path, target: Path) -> None:
    with work.open("rb") as file:
        os.fsync(file.fileno())
    work.replace(target)
