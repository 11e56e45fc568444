"""Beyond the next item: lists, diversity and calibration of finished runs, plain answers beside.

What a generative model can do besides ranking one next item, each with what a model that cannot
does in its place:

* **Lists** of the next K items, or of the items of one basket, made jointly, by the best items, and
  by a greedy rollout.
* **Diversity** at equal accuracy: lists whose places take turns among draws of noise, of dropout
  that is left on, and lists reordered by maximal marginal relevance.
* **Calibration** of the probability of the item in front, before and after a temperature.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float64, Int64

from diffuserec.augmenters.maskdiff import MaskDiff
from diffuserec.data import Catalog, Queries, leave_basket, load_dataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import (
    BASKET_QUALITY,
    LIST_QUALITY,
    TopChances,
    best_of_draws,
    calibration,
    drawing_of,
    expected_calibration_error,
    fitted_temperature,
    holm,
    intra_list_diversity,
    item_vectors,
    list_quality,
    paired_difference,
    parse_metric,
    rank,
    rank_metrics,
    ranks_in,
    rolled_out,
    top_chances,
)
from diffuserec.evaluation.uncertainty import scored_batches
from diffuserec.files import write_json, write_text
from diffuserec.models.methods import find_recommender, with_settings
from diffuserec.models.recommender import Recommender
from diffuserec.models.retrieval import mmr_order, search, seen_items, taking_turns
from diffuserec.reports.beyond import beyond_tables, draw_pareto, draw_reliability
from diffuserec.studies.compare import open_methods
from diffuserec.studies.ledger import record
from diffuserec.studies.run_directory import RunDirectory
from diffuserec.studies.train_run import Say, silent

FORMAT = "diffuserec-beyond"
VERSION = 2
"""1 knew no baskets."""

LENGTH = 10
"""Items of a list whose diversity is measured, and of the longer list of a basket."""

CANDIDATES = 50
"""Items that are reordered into one."""

DRAWS = (1, 2, 5, 10)
"""Numbers of draws that take turns in a list."""

WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Of diversity in MMR."""

EQUAL = 0.95
"""Accuracy is equal from this share of the first method's on."""

_AT_ONCE = 2**24
"""Numbers of item vectors held at once."""

_ENDINGS = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}

Lists = Int64[np.ndarray, "Q N"]
Make = Callable[[Queries, int], Lists]
"""Makes a list of so many items for each query."""

Values = dict[str, list[Float64[np.ndarray, " Q"]]]
"""By metric, the values of each seed by query."""


def beyond(
    paths: Sequence[Path | str],
    *,
    users: int = 5000,
    attribute: str | None = None,
    filter_seen: bool = True,
    data: Path | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """Measures what runs can do beyond the next item, on the test part.

    Runs of one plan that differ only in their seed are one method. Lists are measured where the
    runs' split holds lists out (``leave-last``), baskets where it holds out those
    (``leave-basket``).

    Args:
        users: at most so many queries, drawn with seed 0.
        attribute: a column of the catalog by which items are alike; by default they are by the
            vectors of the first method that has any.
        filter_seen: hide items of a user's own history.
        data: where the runs' data is now, if it was moved.

    Returns:
        ``lists`` and ``baskets`` (None without such a split), ``n_baskets`` (users of the log who
        end with one), ``diversity``, ``calibration``, ``left_out`` (methods by what
        they have not), and how it was measured: JSON values.

    Raises:
        ConfigError: no runs, runs of different data or splits, fewer than 1 user, or no such
            attribute.
    """
    methods = open_methods(paths, data=data)
    first = next(iter(methods.values()))[0]
    runs = [run for seeds in methods.values() for run in seeds]
    if len({run.plan.split for run in runs}) > 1:
        raise ConfigError("these runs are of different splits and can't be compared")
    if users < 1:
        raise ConfigError(f"users must be at least 1, got {users}")
    test, valid = _some(first.split.test, users), _some(first.split.valid, users)
    left_out: dict[str, list[str]] = {}
    vectors, by = _vectors(methods, attribute)
    for run in runs:
        record(run.path, "test", what="beyond", filter_seen=filter_seen)
    lists = baskets = None
    if test.following is not None and test.together:
        say("baskets")
        sizes = (test.following > 0).sum(1)
        tables = [
            _lists(methods, test, test.following, lengths, filter_seen, left_out)
            for lengths in (sizes, np.full_like(sizes, LENGTH))
        ]
        baskets = {"mean_size": float(sizes.mean()), "as_long": tables[0], "longer": tables[1]}
    elif test.following is not None:
        say("lists")
        k = test.following.shape[1]
        lengths = np.full(len(test), k)
        found = _lists(methods, test, test.following, lengths, filter_seen, left_out)
        lists = {"k": k} | found
    say("diversity")
    points = _diversity(methods, valid, test, vectors, filter_seen)
    say("calibration")
    chances = {}
    for name, seeds in methods.items():
        if seeds[0].model.has_distribution:
            chances[name] = [_calibrated(run, valid, test, filter_seen) for run in seeds]
        else:
            left_out.setdefault("probabilities", []).append(name)
        if drawing_of(seeds[0].model) is None:
            left_out.setdefault("draws", []).append(name)
    return {
        "format": FORMAT,
        "version": VERSION,
        "line": _line(first, test, filter_seen),
        "methods": {name: [run.plan.seed for run in seeds] for name, seeds in methods.items()},
        "length": LENGTH,
        "lists": lists,
        "baskets": baskets,
        "n_baskets": _n_baskets(first),
        "alike_by": by,
        "diversity": points,
        "calibration": [_calibration_row(name, found) for name, found in chances.items()],
        "left_out": left_out,
    }


def _some(queries: Queries, users: int) -> Queries:
    index = np.random.default_rng(0).permutation(len(queries))[:users]
    return queries.select(np.sort(index))


def _line(run: RunDirectory, queries: Queries, filter_seen: bool) -> str:
    seen = "hidden" if filter_seen else "kept"
    return (
        f"dataset {Path(run.plan.data).name} · split {queries.split} · candidates full of "
        f"{queries.histories.catalog.n_items:,} items · seen items {seen} · users "
        f"{len(queries):,} of {len(run.split.test):,}"
    )


def _vectors(
    methods: Mapping[str, list[RunDirectory]], attribute: str | None
) -> tuple[Float64[np.ndarray, "V D"], str]:
    """Vectors by which items are alike, and what they are in words."""
    if attribute is not None:
        catalog = next(iter(methods.values()))[0].split.train.catalog
        return attribute_vectors(catalog, attribute), attribute
    for name, seeds in methods.items():
        try:
            return item_vectors(seeds[0].model), f"the item vectors of {name}"
        except ConfigError:
            continue
    raise ConfigError(
        "none of these methods has item vectors, by which diversity could be told: name an "
        "attribute of the items"
    )


def attribute_vectors(catalog: Catalog, attribute: str) -> Float64[np.ndarray, "V C"]:
    """A column for each value of an attribute, 1 where an item has it; or its vectors, centered.

    Rows of items of which it is not known have 0.

    Raises:
        ConfigError: the catalog has no such attribute, or it holds numbers with fractions.
    """
    known = [] if catalog.attributes is None else catalog.attributes.columns
    if catalog.attributes is None or attribute not in known:
        there = ", ".join(known) or "none"
        raise ConfigError(f"the items have no attribute {attribute!r}; there are: {there}")
    column = catalog.attributes[attribute]
    if column.dtype.is_float():
        raise ConfigError(f"{attribute} is a number with fractions, not a kind of item")
    if isinstance(column.dtype, pl.Array):
        found = column.to_numpy().astype(np.float64)
        centered = np.nan_to_num(found - np.nanmean(found, axis=0))
        return np.vstack([np.zeros((1, found.shape[1])), centered])
    frame = pl.DataFrame({"item": np.arange(1, catalog.vocab_size), "value": column})
    if isinstance(column.dtype, pl.List):
        frame = frame.explode("value")
    frame = frame.drop_nulls().with_columns(pl.col("value").rank("dense") - 1)
    items, values = (frame[name].to_numpy().astype(np.int64) for name in ("item", "value"))
    vectors = np.zeros((catalog.vocab_size, int(values.max(initial=-1)) + 1))
    vectors[items, values] = 1
    return vectors


def _options(run: RunDirectory, filter_seen: bool) -> dict[str, Any]:
    return {"augmenter": run.augmenter, "filter_seen": filter_seen, "seed": run.plan.seed}


def _n_baskets(run: RunDirectory) -> int:
    try:
        return len(leave_basket(load_dataset(run.plan.data)).test)
    except DataError:  # which says why there are none
        return 0


def _lists(
    methods: Mapping[str, list[RunDirectory]],
    test: Queries,
    following: Int64[np.ndarray, "Q K"],
    lengths: Int64[np.ndarray, " Q"],
    filter_seen: bool,
    left_out: dict[str, list[str]],
) -> dict[str, Any]:
    """Lists of what followed, by every way that there is, compared with the first.

    Args:
        lengths: of the list of each query.
        left_out: methods by what they have not, added to.
    """
    made: dict[str, list[Lists]] = {}
    most = int(lengths.max())
    for name, seeds in methods.items():
        for run in seeds:
            for way, make in _makers(name, run, test, most, filter_seen).items():
                made.setdefault(way, []).append(_of_lengths(make, test, lengths))
        lacking = [] if f"{name}, rollout" in made else ["a rollout"]
        filling = seeds[0].augmenter
        if isinstance(filling, MaskDiff) and most > _room(filling):
            lacking.append(f"room for more than {_room(filling)} joint places")
        for what in lacking:
            if name not in left_out.setdefault(what, []):
                left_out[what].append(name)
    first = next(iter(methods.values()))[0]
    for floor in ("popularity", "markov"):
        model = find_recommender(floor)().fit(first.split.train)
        make = _best_items(model, {"filter_seen": filter_seen})
        made.setdefault(f"{model.name}, best items", [_of_lengths(make, test, lengths)])
    of_all = ((way, [list_quality(ls, following) for ls in every]) for way, every in made.items())
    names, tested = (
        (BASKET_QUALITY, ("Recall", "Jaccard"))
        if test.together
        else (LIST_QUALITY, ("Recall", "NDCG"))
    )
    values = {
        way: {name: [found[name] for found in every] for name in names} for way, every in of_all
    }
    rows = [_row({"method": name}, found) for name, found in values.items()]
    against, *every = values.values()
    _compare(rows[1:], every, against, tested)
    return {"against": rows[0]["method"], "rows": rows}


def _compare(
    rows: Sequence[dict[str, Any]],
    values: Sequence[Values],
    against: Values,
    metrics: Sequence[str],
) -> None:
    """Adds to the rows how far they are from others, with Holm's correction for their number."""
    for metric in metrics:
        other = np.array(against[metric])
        tests = [paired_difference(np.array(own[metric]), other) for own in values]
        for row, found, p in zip(rows, tests, holm([t.p for t in tests]), strict=True):
            tested = {"difference": found.difference, "p_holm": float(p)}
            row["metrics"][metric] = row["metrics"][metric] | tested


def _best_items(model: Recommender, options: Mapping[str, Any]) -> Make:
    def make(queries: Queries, length: int) -> Lists:
        return rank(model, queries, list_length=length, **options).top_items

    return make


def _room(filling: MaskDiff) -> int:
    """Places that can be filled in at once: at least one shows an item of the history."""
    return filling.config.max_len - 1


def _makers(
    name: str, run: RunDirectory, test: Queries, most: int, filter_seen: bool
) -> dict[str, Make]:
    """The ways in which a run makes lists of at most so many items."""
    model, augmenter, options = run.model, run.augmenter, _options(run, filter_seen)

    def rollout(queries: Queries, length: int) -> Lists:
        return rolled_out(model, queries, length, distinct=test.together, **options)

    def joint(filling: MaskDiff) -> Make:
        def make(queries: Queries, length: int) -> Lists:
            n, histories = min(length, _room(filling)), queries.histories
            made = filling.insert(histories, histories.lengths, n, distinct=test.together)
            return made.items.astype(np.int64)

        return make

    found = {f"{name}, best items": _best_items(model, options)}
    if not (model.reads_times and test.histories.log.timestamps is not None):
        found[f"{name}, rollout"] = rollout
    if isinstance(augmenter, MaskDiff):
        for way, steps in (("1 step", 1), ("a step an item", most)):
            settings = {"num_inference_steps": steps, "exclude_seen": filter_seen}
            found[f"MaskDiff of {name}, jointly, {way}"] = joint(with_settings(augmenter, settings))
    return found


def _of_lengths(make: Make, queries: Queries, lengths: Int64[np.ndarray, " Q"]) -> Lists:
    """A list of its own length for each query; -1 behind it."""
    made = np.full((len(queries), int(lengths.max())), -1, dtype=np.int64)
    for length in np.unique(lengths).tolist():
        index = np.flatnonzero(lengths == length)
        lists = make(queries.select(index), length)
        made[index, : lists.shape[1]] = lists
    return made


def _stacked(found: Any) -> Values:
    """By metric, the values of each seed."""
    every = list(found)
    return {metric: [values[metric] for values in every] for metric in every[0]}


def _row(facts: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Means over seeds and queries, with half of the 95 % interval over queries."""
    metrics = {}
    for metric, seeds in values.items():
        mean = np.mean(seeds, axis=0)
        margin = 1.96 * float(mean.std(ddof=1)) / len(mean) ** 0.5 if len(mean) > 1 else None
        metrics[metric] = {"value": float(mean.mean()), "margin": margin}
    return {**facts, "metrics": metrics}


def _diversity(
    methods: Mapping[str, list[RunDirectory]],
    valid: Queries,
    test: Queries,
    vectors: Float64[np.ndarray, "V D"],
    filter_seen: bool,
) -> dict[str, Any]:
    """Accuracy and diversity of each way to make a list; and of each method and way, the setting
    that is the most diverse of equal accuracy on validation, where the first method's list is the
    measure."""
    points, coverage = [], parse_metric(f"Coverage@{LENGTH}")
    of_points: dict[tuple[str, str, float], Values] = {}
    for name, seeds in methods.items():
        by_way: dict[tuple[str, float], list[Lists]] = {}
        validated: dict[tuple[str, float], list[dict[str, float]]] = {}
        for run in seeds:
            for made, lists in _ways(run, test, vectors, filter_seen).items():
                by_way.setdefault(made, []).append(lists)
            record(run.path, "validation", what="diversity", filter_seen=filter_seen)
            for made, lists in _ways(run, valid, vectors, filter_seen).items():
                found = _accuracy_and_diversity(lists, valid, vectors)
                means = {metric: float(values.mean()) for metric, values in found.items()}
                validated.setdefault(made, []).append(means)
        popularity = seeds[0].model.popularity.cpu().numpy()
        for (way, setting), every in by_way.items():
            values = _stacked(_accuracy_and_diversity(ls, test, vectors) for ls in every)
            row = _row({"method": name, "way": way, "setting": setting}, values)
            of_points[name, way, setting] = values
            covered = [coverage.of_lists(ls, popularity) for ls in every]
            of_seeds = validated[way, setting]
            mean = {m: float(np.mean([seed[m] for seed in of_seeds])) for m in of_seeds[0]}
            points.append(row | {"coverage": float(np.mean(covered)), "valid": mean})
    measures = [[p["metrics"][m]["value"] for m in (_NDCG, "Diversity")] for p in points]
    for point, front in zip(points, undominated(np.array(measures)), strict=True):
        point["front"] = bool(front)
    enough = EQUAL * points[0]["valid"][_NDCG]
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for point in points:
        own, measured = (point["method"], point["way"]), point["valid"]
        far = best.get(own)
        if measured[_NDCG] >= enough and (
            far is None or measured["Diversity"] > far["valid"]["Diversity"]
        ):
            best[own] = point
    least = EQUAL * points[0]["metrics"][_NDCG]["value"]
    chosen = [point | {"metrics": dict(point["metrics"])} for point in best.values()]
    reference = next((point for point in chosen if point["way"] == "MMR"), None)
    if reference is not None:
        compared = [point for point in chosen if point is not reference]
        against, *theirs = (
            of_points[point["method"], point["way"], point["setting"]]
            for point in (reference, *compared)
        )
        _compare(compared, theirs, against, (_NDCG, "Diversity"))
    return {
        "equal": EQUAL,
        "least": least,
        "points": points,
        "best": chosen,
        "against": None if reference is None else reference["method"],
    }


_NDCG = f"NDCG@{LENGTH}"


def undominated(values: Float64[np.ndarray, "N M"]) -> Bool[np.ndarray, " N"]:
    """Whether no other point is as high in all measures and higher in one: the Pareto front."""
    own, others = values[:, None], values[None]
    n_as_high, n_higher = (others >= own).sum(2), (others > own).sum(2)
    free: np.ndarray = ((n_as_high == values.shape[1]) & (n_higher > 0)).sum(1) == 0
    return free


def _accuracy_and_diversity(
    lists: Lists, test: Queries, vectors: Float64[np.ndarray, "V D"]
) -> dict[str, Float64[np.ndarray, " Q"]]:
    found = rank_metrics(ranks_in(lists, test.targets), (LENGTH,))
    kept = {name: found[name] for name in (_NDCG, f"HR@{LENGTH}")}
    return kept | {"Diversity": intra_list_diversity(lists, vectors)}


def _ways(
    run: RunDirectory, test: Queries, vectors: Float64[np.ndarray, "V D"], filter_seen: bool
) -> dict[tuple[str, float], Lists]:
    """Lists of a run by the way they are made, and its setting."""
    options = _options(run, filter_seen)
    candidates, scores = _candidates(run, test, filter_seen)
    found: dict[tuple[str, float], Lists] = {("list", 0.0): candidates[:, :LENGTH]}
    table = torch.from_numpy(vectors).float()
    size = max(1, _AT_ONCE // (candidates.shape[1] * table.shape[1]))
    for weight in WEIGHTS:
        order = np.concatenate(
            [
                mmr_order(
                    torch.from_numpy(scores[part]),
                    table[torch.from_numpy(candidates[part]).clamp(min=0)],
                    LENGTH,
                    weight,
                )
                for part in (slice(at, at + size) for at in range(0, len(test), size))
            ]
        )
        chosen = np.take_along_axis(candidates, np.maximum(order, 0), axis=1)
        found["MMR", weight] = np.where(order < 0, -1, chosen)
    kind = drawing_of(run.model)
    if kind is not None:
        draws = best_of_draws(run.model, test, max(DRAWS), LENGTH, **options)
        for n in DRAWS:
            found[f"draws of {kind}", n] = taking_turns(torch.from_numpy(draws[:, :n])).numpy()
    return found


def _candidates(
    run: RunDirectory, test: Queries, filter_seen: bool
) -> tuple[Lists, Float64[np.ndarray, "Q N"]]:
    """The best items of each query with their scores; -1 and minus infinity where there is none."""
    n = min(CANDIDATES, test.histories.catalog.n_items)
    items, scores = np.empty((len(test), n), dtype=np.int64), np.empty((len(test), n))
    with torch.inference_mode():
        for index, scorer in scored_batches(run.model, test, run.augmenter, run.plan.seed, 256):
            hidden = seen_items(test.histories, index) if filter_seen else None
            found = search(scorer, k=n, hidden=hidden)
            items[index], scores[index] = found.items.cpu().numpy(), found.scores.cpu().numpy()
    return items, scores


def _calibrated(
    run: RunDirectory, valid: Queries, test: Queries, filter_seen: bool
) -> tuple[float, TopChances, TopChances]:
    """Temperature found on validation; probabilities of the test part without it and with it."""
    options = _options(run, filter_seen)
    record(run.path, "validation", what="temperature", filter_seen=filter_seen)
    temperature = fitted_temperature(run.model, valid, **options)
    before = top_chances(run.model, test, **options)
    return temperature, before, top_chances(run.model, test, temperature=temperature, **options)


def _calibration_row(
    name: str, found: Sequence[tuple[float, TopChances, TopChances]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name, "temperature": float(np.mean([t for t, _, _ in found]))}
    parts = {"before": [c for _, c, _ in found], "after": [c for _, _, c in found]}
    for when, chances in parts.items():
        bins = [calibration(c.probability, c.hit) for c in chances]
        row[when] = {
            "error": float(np.mean([expected_calibration_error(b) for b in bins])),
            "log_loss": float(np.mean([c.log_loss for c in chances])),
            "probability": float(np.mean([c.probability.mean() for c in chances])),
            "hits": float(np.mean([c.hit.mean() for c in chances])),
            "bins": bins[0].to_dicts(),
        }
    return row


def write_beyond(document: Mapping[str, Any], out: Path) -> None:
    """Writes ``beyond.json``, tables in every format, ``pareto.svg`` and ``reliability.svg``."""
    write_json(out / "beyond.json", document)
    for format, ending in _ENDINGS.items():
        write_text(out / f"table.{ending}", beyond_tables(document, format))
    draw_pareto(out / "pareto.svg", document["diversity"], f"NDCG@{LENGTH}")
    if document["calibration"]:
        draw_reliability(out / "reliability.svg", document["calibration"])
