"""Evaluation of one model on one set of queries under one printed protocol.

Every query is ranked and every one counts the same. Items of a user's real history may be hidden;
items that an augmenter made up never are. Sampled candidates are drawn for each user from
(seed, user), so neither they nor anything else depends on the batch.
"""

import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int64

from diffuserec.data import Queries
from diffuserec.data.advice import require_queries
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation.candidates import (
    n_candidates,
    require_enough,
    uniform_candidates,
    user_name,
)
from diffuserec.evaluation.groups import GROUPS, group_means, history_groups, popularity_groups
from diffuserec.evaluation.metrics import list_metrics, parse_metric, rank_metrics
from diffuserec.evaluation.protocol import Protocol
from diffuserec.evaluation.uncertainty import scored_batches, uncertainty
from diffuserec.files import (
    is_sealed,
    read_document,
    read_parquet,
    replacing,
    sealed,
    sha256,
    write_json,
)
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.recommender import Recommender, is_whole, require_augmenter, require_flag
from diffuserec.models.retrieval import search, seen_items
from diffuserec.tables import Cell, Estimate, format_facts

_FORMAT = "diffuserec-evaluation"
_VERSION = 3
"""1 gave a target that may not be shown the rank V, which is a hit where k is greater."""
_FACTS = ("split", "filters", "n_too_short")
_NOTABLE_REPEATS = 0.01


@dataclass(frozen=True, eq=False)
class Ranking:
    """Rank of each query's target, and the list on top: enough for every metric.

    Attributes:
        users: user number of each query, shape (Q,).
        target_rank: 0-based rank of the target among the candidates; a half where it ties;
            infinite for a target that is itself hidden. Shape (Q,).
        top_items: the K best items, best first; -1 where fewer may be shown. Shape (Q, K).
        vocab_size: V.
    """

    users: Int64[np.ndarray, " Q"]
    target_rank: Float64[np.ndarray, " Q"]
    top_items: Int64[np.ndarray, "Q K"]
    vocab_size: int

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of a model on some queries, with the protocol of the measurement.

    Attributes:
        method: name of the recommender, with its augmenter where there was one.
        protocol: how it was measured.
        metrics: means over all users, under names such as ``HR@10``.
        groups: columns ``grouping, group, n_users, metric, value``.
        per_user: one entry a query, in the order of the queries: ``user`` (number), ``user_id``
            (where the catalog knows it), ``history_length``, ``history_group``, ``target`` (raw
            id), ``target_count`` (in training), ``popularity_group``, ``target_rank`` (0-based,
            infinite where the target may not be shown), a column for each metric of the rank and,
            where asked for, ``confidence``, ``entropy`` and ``disagreement``
            (:func:`uncertainty`).
    """

    method: str
    protocol: Protocol
    metrics: dict[str, float]
    groups: pl.DataFrame
    per_user: pl.DataFrame

    @property
    def repeat_note(self) -> str | None:
        """Warning if many targets are repeats and repeats were hidden; else None."""
        share = self.protocol.repeat_share
        if not self.protocol.filter_seen or share <= _NOTABLE_REPEATS:
            return None
        return (
            f"{share:.1%} of the targets are already in their own history; hiding seen items "
            "makes each of them a miss. Measure with seen items kept (--keep-seen), too"
        )

    def __repr__(self) -> str:
        """Metrics and protocol as a table."""
        return format_facts(self._shown(), title=self.method) + "\n".join(self._notes())

    def _repr_html_(self) -> str:
        """Metrics and protocol as a table for notebooks."""
        table = format_facts(self._shown(), "html", title=self.method)
        return table + "".join(f"<p>{escape(note)}</p>" for note in self._notes())

    def _notes(self) -> list[str]:
        note = self.repeat_note
        return [str(self.protocol), *([] if note is None else [f"Note: {note}."])]

    def _shown(self) -> dict[str, Cell]:
        return {name: Estimate(value) for name, value in self.metrics.items()}

    def to_json(self) -> str:
        """One JSON object: ``method, protocol, metrics, groups, repeat_note``.

        ``protocol`` holds its fields and its ``line``; ``groups`` is
        ``{grouping: {group: {"n_users": …, metric: value, …}}}``.
        """
        return json.dumps(self._document(), indent=2, allow_nan=False)

    def save(self, directory: Path | str, of: str | None = None) -> None:
        """Writes ``metrics.json`` and ``per_user.parquet`` into a directory, made when missing.

        Each file appears whole or not at all; the first names the second's sha256, so that files
        of two different evaluations are never taken for one.

        Args:
            of: digest of what was measured, for :func:`load_evaluation` to compare.
        """
        document = {"format": _FORMAT, "version": _VERSION, "of": of, **self._document()}
        with replacing(Path(directory) / "per_user.parquet") as work:
            self.per_user.write_parquet(work)
            document["per_user_sha256"] = sha256(work)
        write_json(Path(directory) / "metrics.json", sealed(document))

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


@typing.runtime_checkable
class Passes(typing.Protocol):
    """The two passes over queries, by several processes say: see the functions of these names."""

    def rank(self, model: Recommender, queries: Queries, **options: Any) -> Ranking:
        """As :func:`rank`."""

    def uncertainty(self, model: Recommender, queries: Queries, **options: Any) -> pl.DataFrame:
        """As :func:`uncertainty`."""


def evaluate(
    model: Recommender,
    queries: Queries,
    *,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    candidates: str = "full",
    cutoffs: Sequence[int] = (5, 10, 20),
    list_length: int = 10,
    metrics: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 256,
    with_uncertainty: bool = False,
    dataset_name: str | None = None,
    facts: Mapping[str, Any] | None = None,
    passes: "Passes | None" = None,
) -> Evaluation:
    """Measures a fitted recommender on queries.

    Args:
        model: put into evaluation mode, and left there.
        queries: histories and the item that followed each; an empty history is answered by
            popularity.
        augmenter: changes the histories first, as it changed those of training.
        filter_seen: hide what is in a user's own real history; a target that is itself in there
            is then a miss at every list length, of rank infinity.
        candidates: ``full`` ranks the whole catalog; ``uniform:100`` ranks the target among 100
            items drawn for each user without replacement, none of them in the user's real
            history.
        cutoffs: list lengths of HR and NDCG.
        list_length: list length of coverage, Gini and novelty, which always come from the full
            ranking.
        metrics: further metrics by name, such as ``RBP@10`` of another package; see
            ``diffuserec.evaluation.metrics``.
        seed: of noise and of sampled candidates.
        batch_size: queries scored at once; changes no result.
        with_uncertainty: add the columns of :func:`uncertainty` to the per-user results, for
            lists of `list_length`; a second pass over the queries.
        dataset_name: for the protocol; by default the name of the log.
        facts: for the protocol, what the queries do not say themselves or say otherwise: ``split``,
            ``filters`` (text), ``n_too_short`` (users).
        passes: what passes over the queries, if not this process.

    Raises:
        ConfigError: not fitted or fitted to another catalog, an option that is not allowed, more
            candidates than there are items, or an unknown fact.
        DataError: no queries, or the model's scores are not numbers.
    """
    require_queries("evaluate", queries)
    if not isinstance(model, Recommender):
        raise ConfigError(f"evaluate needs a fitted recommender first, got {model!r}")
    stated = dict(facts or {})
    for name in stated:
        if name not in _FACTS:
            raise ConfigError(f"no protocol fact {name!r}; there are: {', '.join(_FACTS)}")
    if isinstance(cutoffs, str) or not isinstance(cutoffs, Iterable):
        raise ConfigError(f"cutoffs must be a list of list lengths, such as [10], got {cutoffs!r}")
    cutoffs = tuple(cutoffs)
    if not cutoffs or not all(is_whole(cutoff) and cutoff >= 1 for cutoff in cutoffs):
        raise ConfigError(f"cutoffs must be positive list lengths, got {cutoffs}")
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise ConfigError(f"metrics must be a list of names, such as ['HR@50'], got {metrics!r}")
    further = [parse_metric(name) for name in metrics]
    ranking = (passes.rank if passes else rank)(
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
    by_user |= {str(m): m.per_user(ranking.target_rank) for m in further if m.is_per_user}
    per_user = values_by_user(queries, ranking, popularity).with_columns(
        pl.Series(name, values) for name, values in by_user.items()
    )
    if with_uncertainty:
        certain = (passes.uncertainty if passes else uncertainty)(
            model,
            queries,
            augmenter=augmenter,
            filter_seen=filter_seen,
            list_length=list_length,
            seed=seed,
            batch_size=batch_size,
        )
        per_user = per_user.hstack(certain)
    means = {name: float(values.mean()) for name, values in by_user.items()}
    means |= list_metrics(ranking.top_items, popularity)
    means |= {
        str(m): m.of_lists(ranking.top_items, popularity) for m in further if not m.is_per_user
    }
    catalog = queries.histories.catalog
    protocol = Protocol(
        dataset=catalog.log if dataset_name is None else dataset_name,
        split=str(stated.get("split", queries.split or "not stated")),
        candidates=candidates,
        n_items=queries.histories.catalog.n_items,
        filter_seen=filter_seen,
        ties="mid-rank",
        n_users=len(queries),
        n_too_short=stated.get("n_too_short", queries.n_too_short),
        filters=str(stated.get("filters", catalog.filters or "not stated")),
        max_len=model.max_len,
        seed=seed,
        repeat_share=queries.repeat_share,
    )
    return Evaluation(
        method=model.name if augmenter is None else f"{model.name} + {augmenter.name}",
        protocol=protocol,
        metrics=means,
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
    """Ranks of the queries' targets, and the lists on top.

    Arguments and errors are those of :func:`evaluate`.

    Returns:
        Ranks among the candidates, and the top lists of the full catalog; both in the order of
        the queries.
    """
    model.require_fitted()
    require_augmenter(augmenter)
    require_flag("filter_seen", filter_seen)
    n_sampled = n_candidates(candidates)
    catalog = queries.histories.catalog
    if not len(queries):
        raise DataError("there are no queries to evaluate on")
    for number in (batch_size, list_length):
        if not is_whole(number) or number < 1:
            raise ConfigError(
                f"batch_size and list_length must be at least 1, got {batch_size!r} and "
                f"{list_length!r}"
            )
    if n_sampled is not None:
        require_enough(queries, n_sampled)
    target_rank = np.empty(len(queries))
    top_items = np.empty((len(queries), min(list_length, catalog.n_items)), dtype=np.int64)
    for index, scorer in scored_batches(model, queries, augmenter, seed, batch_size):
        drawn = None
        if n_sampled is not None:
            drawn = torch.from_numpy(uniform_candidates(queries, index, n_sampled, seed))
        found = search(
            scorer,
            targets=torch.from_numpy(queries.targets[index]),
            candidates=drawn,
            k=list_length,
            hidden=seen_items(queries.histories, index) if filter_seen else None,
        )
        if bool(found.not_numbers.any()):
            bad = int(index[int(found.not_numbers.nonzero()[0, 0])])
            raise DataError(
                f"{model.name} gives {user_name(queries.histories, bad)} scores that are not "
                "numbers (NaN): its parameters are damaged; train again, with a lower learning rate"
            )
        ranks = found.ranks if n_sampled is None else found.candidate_ranks
        target_rank[index] = ranks.cpu().numpy()
        top_items[index] = found.items.cpu().numpy()
    return Ranking(queries.histories.users, target_rank, top_items, catalog.vocab_size)


def load_evaluation(directory: Path | str, of: str | None = None) -> Evaluation:
    """Reads back what :meth:`Evaluation.save` wrote.

    Args:
        of: digest of what must have been measured; None takes any.

    Raises:
        DataError: nothing of ours is there, it is of another version or of something else, or the
            two files do not belong together.
    """
    source = Path(directory)
    try:
        document = read_document(source / "metrics.json")
    except OSError as error:
        raise DataError(
            f"{source} holds no saved evaluation: run 'diffuserec evaluate' first"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{source / 'metrics.json'} is damaged ({error}): remove it and evaluate again"
        ) from error
    if document.get("format") != _FORMAT:
        raise DataError(f"{source / 'metrics.json'} is not a saved evaluation")
    if document.get("version") != _VERSION:
        raise DataError(
            f"{source} has evaluation version {document.get('version')}, this release reads "
            f"{_VERSION}: remove it and evaluate again"
        )
    file = source / "per_user.parquet"
    if not file.is_file() or sha256(file) != document.get("per_user_sha256"):
        raise DataError(
            f"{file} is missing or does not belong to metrics.json beside it: remove both and "
            "evaluate again"
        )
    try:
        if not is_sealed(document):
            raise ValueError("it does not match its own checksum")
        if of is not None and document["of"] != of:
            raise ValueError("it is of another run")
        per_user = read_parquet(file)
        measured = [name for name in document["metrics"] if name in per_user.columns]
        protocol = {name: value for name, value in document["protocol"].items() if name != "line"}
        odd = sorted(protocol.keys() ^ {field.name for field in fields(Protocol)})
        if odd:
            raise ValueError(f"its protocol has {odd[0]!r} too much or lacks it")
        return Evaluation(
            method=document["method"],
            protocol=Protocol(**protocol),
            metrics=document["metrics"],
            groups=group_means(per_user, measured),
            per_user=per_user,
        )
    except (AttributeError, KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{source / 'metrics.json'} is damaged ({error}): remove it and evaluate again"
        ) from error


def values_by_user(
    queries: Queries, ranking: Ranking, popularity: Int64[np.ndarray, " V"]
) -> pl.DataFrame:
    """What is known of each query before any metric: the first columns of an evaluation's."""
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
