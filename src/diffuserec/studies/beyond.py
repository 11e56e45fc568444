"""Beyond the next item: lists, diversity and calibration of finished runs, plain answers beside.

What a generative model can do besides ranking one next item, each with what a model that cannot
does in its place:

* **Lists** of the next K items, made jointly, by the K best items, and by a greedy rollout.
* **Diversity** at equal accuracy: lists whose places take turns among draws of noise, of dropout
  that is left on, and lists reordered by maximal marginal relevance.
* **Calibration** of the probability of the item in front, before and after a temperature.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int64

from diffuserec.augmenters.maskdiff import MaskDiff
from diffuserec.data import Catalog, Queries
from diffuserec.errors import ConfigError
from diffuserec.evaluation import (
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
from diffuserec.models.retrieval import mmr_order, search, seen_items, taking_turns
from diffuserec.reports.beyond import beyond_tables, draw_pareto, draw_reliability
from diffuserec.studies.compare import open_methods
from diffuserec.studies.ledger import record
from diffuserec.studies.run_directory import RunDirectory
from diffuserec.studies.train_run import Say, silent

FORMAT = "diffuserec-beyond"
VERSION = 1

LENGTH = 10
"""Items of a list whose diversity is measured."""

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
    runs' split holds lists out (``leave-last``).

    Args:
        users: at most so many queries, drawn with seed 0.
        attribute: a column of the catalog by which items are alike; by default they are by the
            vectors of the first method that has any.
        filter_seen: hide items of a user's own history.
        data: where the runs' data is now, if it was moved.

    Returns:
        ``lists`` (None without such a split), ``diversity``, ``calibration``, ``left_out`` (methods
        by what they have not), and how it was measured: JSON values.

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
    lists = None
    if test.following is not None:
        say("lists")
        lists = _lists(methods, test, test.following, filter_seen)
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


def _lists(
    methods: Mapping[str, list[RunDirectory]],
    test: Queries,
    following: Int64[np.ndarray, "Q K"],
    filter_seen: bool,
) -> dict[str, Any]:
    """Lists of the next K items, by every way that there is, compared with the first."""
    k = following.shape[1]
    made: dict[str, list[Lists]] = {}
    for name, seeds in methods.items():
        for run in seeds:
            model, options = run.model, _options(run, filter_seen)
            best = rank(model, test, list_length=k, **options).top_items
            made.setdefault(f"{name}, {k} best", []).append(best)
            if not (model.reads_times and test.histories.log.timestamps is not None):
                rolled = rolled_out(model, test, k, **options)
                made.setdefault(f"{name}, rollout", []).append(rolled)
            if isinstance(run.augmenter, MaskDiff):
                for steps in dict.fromkeys((1, k)):
                    filling = with_settings(run.augmenter, {"num_inference_steps": steps})
                    joint = filling.insert(test.histories, test.histories.lengths, k).items
                    way = f"MaskDiff of {name}, jointly in {steps} step{'s' * (steps > 1)}"
                    made.setdefault(way, []).append(joint.astype(np.int64))
    first = next(iter(methods.values()))[0]
    for floor in ("popularity", "markov"):
        model = find_recommender(floor)().fit(first.split.train)
        top = rank(model, test, list_length=k, filter_seen=filter_seen).top_items
        made[f"{model.name}, {k} best"] = [top]
    values = {
        name: _stacked(list_quality(lists, following) for lists in every)
        for name, every in made.items()
    }
    reference = next(iter(values))
    compared = [name for name in values if name != reference]
    rows = [_row({"method": name}, found) for name, found in values.items()]
    for metric in ("Recall", "NDCG"):
        tests = [
            paired_difference(np.array(values[n][metric]), np.array(values[reference][metric]))
            for n in compared
        ]
        for row, found, p in zip(rows[1:], tests, holm([t.p for t in tests]), strict=True):
            row["metrics"][metric] |= {"difference": found.difference, "p_holm": float(p)}
    return {"k": k, "against": reference, "rows": rows}


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
            covered = [coverage.of_lists(ls, popularity) for ls in every]
            of_seeds = validated[way, setting]
            mean = {m: float(np.mean([seed[m] for seed in of_seeds])) for m in of_seeds[0]}
            points.append(row | {"coverage": float(np.mean(covered)), "valid": mean})
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
    return {"equal": EQUAL, "least": least, "points": points, "best": list(best.values())}


_NDCG = f"NDCG@{LENGTH}"


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
