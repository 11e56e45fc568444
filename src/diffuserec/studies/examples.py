"""Case studies: what reports and pages show of a run to people, some users at a time, by name.

What an augmenter made up for them, what a generative recommender draws for them, and what a
contrastive one is trained to tell apart. Items are called by the names that the catalog has for
them, else by their raw ids; :func:`inspection`, which looks users up in the log, keeps to raw ids.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from diffuserec.models.base import (
    ContrastiveRecommender,
    GenerativeRecommender,
    VaryingAugmenter,
    find,
    method_names,
)
from diffuserec.data import SequenceDataset
from diffuserec.data.batches import trainable_rows
from diffuserec.errors import ConfigError, DataError
from diffuserec.reports.html import DrawnLists, Example, Varied
from diffuserec.reports.inspection import (
    Inspection,
    inspected,
    sampled_rows,
    shown_sequence,
    view_figures,
)
from diffuserec.models.retrieval import hide, seen_pairs, top_k
from diffuserec.studies.run_directory import TrainedRun


def examples(run: TrainedRun, n: int = 5) -> list[Example]:
    """Some users' generated items beside their real ones and what came next; short users first."""
    if run.augmenter is None or isinstance(run.augmenter, VaryingAugmenter):
        return []
    queries = run.split.test
    rows = np.flatnonzero((queries.histories.lengths >= 3) & (queries.histories.lengths <= 8))[:n]
    if not len(rows):
        rows = np.arange(min(n, len(queries)))
    longer = run.augmenter.augment(queries.histories.select(rows), run.plan.seed)
    names = _display_names(run.split.train)
    found = []
    for place, row in enumerate(rows):
        part = slice(longer.offsets[place], longer.offsets[place + 1])
        made = longer.synthetic[part]
        items = longer.items[part]
        found.append(
            Example(
                user=str(_user_name(run.split.train, int(longer.users[place]))),
                generated=names(items[made]),
                real=names(items[~made]),
                target=names(queries.targets[row : row + 1])[0],
            )
        )
    return found


def varied_sequences(run: TrainedRun, n: int = 3) -> list[Varied]:
    """Some users' training sequences with the easiest and the hardest of their variants.

    Empty where the augmenter makes none.
    """
    if not isinstance(run.augmenter, VaryingAugmenter):
        return []
    train = run.split.train
    rows = np.flatnonzero((train.lengths >= 4) & (train.lengths <= 8))[:n]
    if not len(rows):
        rows = np.flatnonzero(train.lengths > 0)[:n]
    beside = run.augmenter.augment(train.select(rows), run.plan.seed)
    variants = beside.variants
    assert variants is not None
    names = _display_names(train)
    found = []
    for place in range(len(rows)):
        own = beside[place]
        shown = {}
        for number in dict.fromkeys((0, len(variants) - 1)):
            items = variants.items[number, beside.offsets[place] : beside.offsets[place + 1]]
            what = f"variant {number + 1}, difficulty {variants.difficulty[number, place]:.3f}"
            new = (~np.isin(items, own)).tolist()
            shown[what] = list(zip(names(items), new, strict=True))
        user = str(_user_name(train, int(beside.users[place])))
        found.append(Varied(user, names(own), shown))
    return found


def drawn_lists(run: TrainedRun, n_users: int = 3, n_items: int = 5) -> list[DrawnLists]:
    """What a generative recommender shows some users: ten draws averaged, and three seeds alone.

    Empty for other recommenders.
    """
    model, queries = run.model, run.split.test
    if not isinstance(model, GenerativeRecommender):
        return []
    model.eval()
    rows = np.flatnonzero((queries.histories.lengths >= 4) & (queries.histories.lengths <= 10))
    rows = rows[:n_users] if len(rows) else np.arange(min(n_users, len(queries)))
    histories = queries.histories.select(rows)
    longer = (
        histories if run.augmenter is None else run.augmenter.lengthened(histories, run.plan.seed)
    )
    everyone = np.arange(len(rows))
    tables = {"mean of 10 draws": model.averaged(longer, everyone, run.plan.seed, 10).mean}
    for seed in range(3):
        tables[f"one draw, seed {seed}"] = model.averaged(longer, everyone, seed, 1).first
    names = _display_names(run.split.train)
    shown = {
        what: top_k(hide(table, seen_pairs(histories, everyone)), n_items)[1].cpu().numpy()
        for what, table in tables.items()
    }
    return [
        DrawnLists(
            method=run.plan.label,
            user=str(_user_name(run.split.train, int(histories.users[place]))),
            history=names(histories.items[histories.offsets[place] : histories.offsets[place + 1]]),
            target=names(queries.targets[row : row + 1])[0],
            lists={what: names(items[place][items[place] > 0]) for what, items in shown.items()},
        )
        for place, row in enumerate(rows)
    ]


def inspection(
    run: TrainedRun, users: Sequence[str] | None = None, n: int = 3, seed: int = 0
) -> Inspection:
    """What training would contrast now: the views of some users in raw ids, and their figures.

    Args:
        run: of a contrastive recommender.
        users: raw user ids; None draws users from the seed.
        n: how many users to draw.
        seed: of what is random in the views and in who is drawn.

    Raises:
        ConfigError: the run's recommender is not contrastive, or n is below 1.
        DataError: a user is not in the training part, or has fewer than two items there.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    if not isinstance(run.model, ContrastiveRecommender):
        contrastive = [
            name
            for name in method_names("recommender")
            if issubclass(find("recommender", name), ContrastiveRecommender)
        ]
        raise ConfigError(
            f"{run.path} is of {run.plan.model}, which contrasts no views; "
            f"these do: {', '.join(contrastive)}"
        )
    train = run.training_data()
    rows = sampled_rows(train, n, seed) if users is None else _rows_of(train, users)

    def names(items: np.ndarray) -> list[str]:
        return [str(raw) for raw in train.catalog.decode(items)]

    return _inspection(run.model, run.plan.label, train, rows, seed, names)


def short_inspection(
    run: TrainedRun, train: SequenceDataset, n_users: int = 3
) -> Inspection | None:
    """What training contrasts for some users of short histories; None for other recommenders.

    Args:
        run: the run.
        train: what its model was trained on.
        n_users: how many to show.
    """
    rows = trainable_rows(train)
    if not isinstance(run.model, ContrastiveRecommender) or not len(rows):
        return None
    short = rows[(train.lengths[rows] >= 5) & (train.lengths[rows] <= 10)]
    chosen = (short if len(short) else rows)[:n_users]
    names = _display_names(train)
    return _inspection(run.model, run.plan.label, train, chosen, run.plan.seed, names)


def _inspection(
    model: ContrastiveRecommender,
    label: str,
    train: SequenceDataset,
    rows: np.ndarray,
    seed: int,
    names: Callable[[np.ndarray], list[str]],
) -> Inspection:
    max_len: int = model.config.model_dump()["max_len"]
    sample = sampled_rows(train, seed=seed)
    return Inspection(
        label,
        seed,
        [
            shown_sequence(sequence, str(_user_name(train, sequence.user)), names, train.vocab_size)
            for sequence in inspected(model, train, rows, max_len, seed)
        ],
        view_figures(inspected(model, train, sample, max_len, seed), model.encoder.table),
        len(sample),
    )


def _rows_of(train: SequenceDataset, users: Sequence[str]) -> np.ndarray:
    """The rows of raw user ids, each with two items or more."""
    ids = train.catalog.user_ids
    known = (pl.Series(np.arange(train.catalog.n_users)) if ids is None else ids).cast(pl.String)
    rows, trainable = [], trainable_rows(train)
    for user in users:
        number = known.index_of(user)
        found = np.flatnonzero(train.users == (-1 if number is None else number))
        if not len(found):
            raise DataError(f"the training part holds no user {user!r}")
        row = int(found[0])
        if not (trainable == row).any():
            raise DataError(
                f"user {user!r} has too few training items ({train.real_lengths[row]}): a sequence "
                "to contrast and the item that comes next take two"
            )
        rows.append(row)
    return np.array(rows)


def _display_names(dataset: SequenceDataset) -> Callable[[np.ndarray], list[str]]:
    catalog = dataset.catalog
    if catalog.attributes is not None and "name" in catalog.attributes.columns:
        names = catalog.attributes["name"]
        return lambda items: names.gather(items - 1).to_list()
    return lambda items: [str(raw) for raw in catalog.decode(items)]


def _user_name(dataset: SequenceDataset, user: int) -> Any:
    ids = dataset.catalog.user_ids
    return user if ids is None else ids[user]
