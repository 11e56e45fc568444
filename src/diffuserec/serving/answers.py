"""Answers of a served model: lists, and what its augmenter writes, as plain values for JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from diffuserec.data import RawId, SequenceDataset, encode_histories
from diffuserec.errors import ConfigError
from diffuserec.serving.diversity import CANDIDATES_PER_PLACE, mmr_order
from diffuserec.serving.served import ServedModel
from diffuserec.serving.wire import Options


class Asked(NamedTuple):
    """A history that a list is asked for, oldest item first.

    Attributes:
        history: raw item ids.
        times: of its items, if they are known; models that read none are not told.
    """

    history: Sequence[RawId]
    times: Sequence[int] | None = None


def lists_of(served: ServedModel, options: Options, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """A list for each history, as :class:`~diffuserec.serving.wire.ItemList` describes it.

    Raises:
        ConfigError: an option that this model does not have.
        DataError: an unknown id in `allow` or `deny`, or in a history when refused.
    """
    if options.mmr and not served.has_vectors:
        raise ConfigError(f"{served.model.name} has no item vectors, so leave out mmr")
    if options.mmr and options.diversity:
        raise ConfigError("diversity and mmr are two ways to reorder a list: leave one out")
    timed = [one.times is not None and served.model.reads_times for one in asked]
    found: list[dict[str, Any]] = [{} for _ in asked]
    for with_times in sorted(set(timed)):  # a call of the model has times of all or of none
        part = [number for number, is_timed in enumerate(timed) if is_timed == with_times]
        lists = _lists_of(served, options, [asked[number] for number in part], with_times)
        for number, one in zip(part, lists, strict=True):
            found[number] = one
    return found


def _lists_of(
    served: ServedModel, options: Options, asked: Sequence[Asked], with_times: bool
) -> list[dict[str, Any]]:
    """Lists of histories of which all are told with their times, or none is."""
    histories = [one.history for one in asked]
    n_asked = options.k * (CANDIDATES_PER_PLACE if options.mmr else 1)
    frame = served.model.recommend(
        histories,
        k=n_asked,
        times=[one.times for one in asked] if with_times else None,
        filter_seen=options.filter_seen,
        allow=options.allow,
        deny=options.deny,
        on_unknown=options.on_unknown,
        augmenter=served.augmenter,
        n_draws=options.n_draws,
        diversity=options.diversity,
        seed=options.seed,
        index=served.index,
    )
    bounds = np.searchsorted(frame["query"].to_numpy(), np.arange(len(histories) + 1)).tolist()
    columns = {name: frame[name].to_list() for name in frame.columns}
    fields = [name for name in ("item_id", "name", "score", "spread") if name in columns]
    lists: list[dict[str, Any]] = []
    for number, history in enumerate(histories):
        first, last = bounds[number], bounds[number + 1]
        if first == last:
            n_unknown = int((served.model.catalog.encode(list(history)) == 0).sum())
            lists.append({"source": None, "n_unknown": n_unknown, "items": []})
            continue
        order = range(first, last)
        if options.mmr:
            order = _diverse(served, columns, order, options)
        lists.append(
            {
                "source": columns["source"][first],
                "n_unknown": columns["n_unknown"][first],
                "items": [
                    {"rank": rank, **{name: columns[name][line] for name in fields}}
                    for rank, line in enumerate(order, 1)
                ],
            }
        )
    return lists


def _diverse(
    served: ServedModel, columns: dict[str, list[Any]], lines: range, options: Options
) -> Any:
    """Lines of a diverse list among those of its candidates."""
    ids = columns["item_id"][lines.start : lines.stop]
    scores = torch.tensor(columns["score"][lines.start : lines.stop])
    vectors = served.vectors(served.model.catalog.encode(ids))
    order = mmr_order(scores, vectors, options.k, options.mmr)
    return [lines.start + position for position in order]


def named(served: ServedModel, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Raw ids and names of item numbers."""
    catalog = served.model.catalog
    places = np.asarray(numbers, dtype=np.int64) - 1
    ids = catalog.item_ids.gather(places).to_list()
    if catalog.names is None:
        return [{"item_id": item_id} for item_id in ids]
    names = catalog.names.gather(places).to_list()
    return [{"item_id": i, "name": name} for i, name in zip(ids, names, strict=True)]


Sequences = list[list[tuple[int, bool]]]
"""Items of sequences by number, and whether an augmenter wrote them."""


def written(served: ServedModel, history: Sequence[RawId], seed: int) -> Sequences:
    """The sequences that the augmenter makes of a history.

    Raises:
        ConfigError: the model has no augmenter.
        DataError: the augmenter cannot work on this history.
    """
    if served.augmenter is None:
        raise ConfigError(f"the model {served.name} was trained without an augmenter")
    dataset, _ = encode_histories(served.model.catalog, [history])
    for_training = served.augmenter.training_only
    make = served.augmenter.augment if for_training else served.augmenter.augment_for_inference
    return _sequences(make(dataset, seed))


def agreement(served: ServedModel, draws: Sequence[Sequences]) -> list[list[dict[str, Any]]]:
    """The sequences of the first draw, and in what share of the draws each item was written."""
    counts = Counter(
        item
        for sequences in draws
        for item in {item for sequence in sequences for item, made in sequence if made}
    )
    return [
        [
            {**item, "generated": made, "agreement": counts[number] / len(draws) if made else None}
            for item, (number, made) in zip(
                named(served, [number for number, _ in sequence]), sequence, strict=True
            )
        ]
        for sequence in draws[0]
    ]


def _sequences(dataset: SequenceDataset) -> Sequences:
    """The sequence of an augmented history by item numbers, and which items the augmenter wrote.

    Of copies, each is one, and what differs from the original was written. Whole new users are left
    out: they are not of this history.
    """
    place = slice(dataset.starts[0], dataset.ends[0])
    items = dataset[0].tolist()
    if dataset.copies is not None:
        return [
            [(item, item != before) for item, before in zip(copy, items, strict=True)]
            for copy in dataset.copies.items[:, place].tolist()
        ]
    synthetic = dataset.log.synthetic
    marks = [False] * len(items) if synthetic is None else synthetic[place].tolist()
    return [list(zip(items, marks, strict=True))]
