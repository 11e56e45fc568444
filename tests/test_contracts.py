"""What every method promises, on every file found in the folders: nothing here names a method
but the table of settings that make some of them quick."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.training import loop as training
from diffuserec.models.base import (
    Augmenter,
    ContrastiveRecommender,
    GenerativeRecommender,
    Method,
    Recommender,
    Run,
    Settings,
    VaryingAugmenter,
    find,
    load,
    method_names,
)
from diffuserec.data import (
    Catalog,
    Queries,
    SequenceDataset,
    Split,
    Store,
    histories_of,
    leave_one_out,
    load_dataset,
)
from diffuserec.errors import ConfigError, DataError

TRANSFORMER = {
    "epochs": 12,
    "dim": 16,
    "n_layers": 1,
    "dropout": 0.0,
    "learning_rate": 0.02,
    "batch_size": 16,
}
QUICK: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["sasrec", "cl4srec", "duorec", "mclrec", "ecl", "contrarec", "cadirec"], TRANSFORMER
    ),
    "simdiffrec": TRANSFORMER | {"k_noise": 2, "k_sample": 3, "num_train_timesteps": 40},
    # a mask learns from few items a row, and slowly
    "bert4rec": TRANSFORMER
    | {
        "epochs": 40,
        "dim": 32,
        "learning_rate": 0.01,
        "mask_ratio": 0.5,
        "last_item_ratio": 0.2,
    },
    "s3rec": TRANSFORMER | {"pretrain_epochs": 2},
    "stosa": TRANSFORMER,
    "gru4rec": {"epochs": 12, "dim": 16, "dropout": 0.0, "learning_rate": 0.02, "batch_size": 16},
    "caser": {"epochs": 12, "dim": 16, "dropout": 0.0, "learning_rate": 0.02, "batch_size": 16},
    "vsan": TRANSFORMER,
    "mfgan": TRANSFORMER | {"rounds": 1, "generator_epochs": 2, "n_candidates": 3},
    "acvae": {"epochs": 12, "dim": 16, "dropout": 0.0, "learning_rate": 0.02, "batch_size": 16},
    "bpr": {"dim": 8, "epochs": 5, "learning_rate": 0.02, "batch_size": 64},
    "neumf": {"dim": 8, "epochs": 5, "learning_rate": 0.02, "batch_size": 64, "hidden": (8, 4)},
    "dreamrec": {
        "dim": 16,
        "epochs": 6,
        "learning_rate": 0.02,
        "batch_size": 16,
        "num_train_timesteps": 40,
        "num_inference_steps": 5,
        "n_draws": 3,
    },
    "diffrec": {
        "epochs": 12,
        "dim": 16,
        "n_layers": 1,
        "dropout": 0.0,
        "learning_rate": 0.02,
        "batch_size": 16,
        "num_train_timesteps": 20,
        "n_draws": 3,
    },
    "asrep": {"n_items": 2, "model_settings": TRANSFORMER},
    "diff4rec": {
        "latent_dim": 8,
        "hidden_dim": 16,
        "epochs": 3,
        "num_train_timesteps": 20,
        "n_variants": 2,
    },
    "diffuasr": {
        "n_items": 2,
        "min_condition": 1,
        "epochs": 1,
        "pretrain_epochs": 1,
        "n_layers": 1,
        "num_train_timesteps": 40,
        "num_inference_steps": 4,
    },
}
WITHOUT_ORDER = {"popularity", "bpr", "neumf"}
"""Recommenders whose scores know nothing of a history's order."""

WITHOUT_NOISE = {"asrep"}
"""Augmenters that take what is likeliest."""

WITHOUT_CONTEXT = {"bpr", "neumf"}
"""Recommenders that learn which user has which item: items that are context say nothing."""

RECOMMENDERS = method_names("recommender")
GENERATIVE = [
    name for name in RECOMMENDERS if issubclass(find("recommender", name), GenerativeRecommender)
]
AUGMENTERS = method_names("augmenter")
WITH_ROWS = [
    name for name in RECOMMENDERS if "rows" in find("recommender", name).Config.model_fields
]
VARYING = [name for name in AUGMENTERS if issubclass(find("augmenter", name), VaryingAugmenter)]
PREPENDING = [name for name in AUGMENTERS if name not in VARYING]
METHODS = [("recommender", name) for name in RECOMMENDERS] + [
    ("augmenter", name) for name in AUGMENTERS
]


def made(kind: str, name: str) -> Any:
    return find(kind, name)(**QUICK.get(name, {}))


def with_ids(log: SequenceDataset, ids: str) -> SequenceDataset:
    """The log with raw ids that are not the item numbers: 1000, 997, …, or text."""
    numbers = 1000 - 3 * np.arange(log.catalog.n_items)
    raw = pl.Series("item_id", numbers if ids == "int" else [f"B{n:04d}" for n in numbers])
    return SequenceDataset(log.items, log.offsets, Catalog(raw, log.catalog.n_users))


def frozen(log: SequenceDataset) -> SequenceDataset:
    """The log in arrays that cannot be written to."""
    parts = [log.items.copy(), log.offsets.copy(), log.users.copy()]
    for part in parts:
        part.flags.writeable = False
    return SequenceDataset(parts[0], parts[1], log.catalog, parts[2])


def other_ending(log: SequenceDataset) -> SequenceDataset:
    """The log with every user's last two items permuted among all users."""
    items = log.items.copy()
    last = np.concatenate([log.offsets[1:] - 2, log.offsets[1:] - 1])
    items[last] = items[np.random.default_rng(0).permutation(last)]
    assert (items != log.items).sum() > len(log)
    return SequenceDataset(items, log.offsets, log.catalog)


def all_histories(dataset: SequenceDataset):
    return histories_of(dataset, np.flatnonzero(dataset.lengths > 0))


_FITTED: dict[tuple[str, str], Any] = {}


@pytest.fixture(scope="session")
def split(cycle: SequenceDataset) -> Split:
    return leave_one_out(with_ids(cycle, "int"))


def fitted(kind: str, name: str, split: Split) -> Any:
    """Fitted on the cycle, once for all tests; no test may change it."""
    key = (kind, name)
    if key not in _FITTED:
        _FITTED[key] = made(kind, name).fit(split.train, run=Run(seed=1))
    return _FITTED[key]


@pytest.fixture(params=RECOMMENDERS)
def recommender(request, split: Split) -> Recommender:
    return fitted("recommender", request.param, split)


@pytest.fixture(params=PREPENDING)
def augmenter(request, split: Split) -> Augmenter:
    return fitted("augmenter", request.param, split)


@pytest.fixture(params=VARYING)
def varying(request, split: Split) -> Augmenter:
    return fitted("augmenter", request.param, split)


def items_of(frame: pl.DataFrame, query: int = 0) -> list[Any]:
    rows = frame.filter(pl.col("query") == query)
    assert rows["rank"].to_list() == list(range(1, len(rows) + 1))
    return rows["item_id"].to_list()


# --- every method ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, name", METHODS)
def test_overrides_nothing_concrete(kind: str, name: str) -> None:
    method = find(kind, name)
    (base,) = method.__bases__
    recommenders = (Recommender, GenerativeRecommender, ContrastiveRecommender)
    augmenters = (Augmenter, VaryingAugmenter)
    assert base in (recommenders if kind == "recommender" else augmenters)
    inherited = {attribute for parent in base.__mro__[:-1] for attribute in vars(parent)}
    every_class = {"__module__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"}
    own = set(vars(method)) - every_class
    declared = base.__abstractmethods__ | {"Config"}
    assert own & inherited == declared
    assert not method.__abstractmethods__


@pytest.mark.parametrize("kind, name", METHODS)
def test_signatures_are_those_of_the_contract(kind: str, name: str) -> None:
    method = find(kind, name)
    (base,) = method.__bases__
    for declared in base.__abstractmethods__:
        promised = inspect.signature(getattr(base, declared)).parameters
        kept = inspect.signature(getattr(method, declared)).parameters
        assert list(kept) == list(promised), declared
        defaults = [p.default for p in promised.values()]
        assert [p.default for p in kept.values()] == defaults, declared


@pytest.mark.parametrize("kind, name", METHODS)
def test_settings_are_frozen_documented_and_have_defaults(kind: str, name: str) -> None:
    schema = find(kind, name).Config
    assert issubclass(schema, Settings)
    assert (schema.__doc__ or "").strip()
    config = schema()  # all defaults
    assert schema(**config.model_dump(mode="json")) == config
    for field in schema.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(config, field, getattr(config, field))
    with pytest.raises(ConfigError, match="has no setting 'no_such_setting'"):
        find(kind, name)(no_such_setting=1)


@pytest.mark.parametrize("kind, name", METHODS)
def test_use_before_fit_is_refused(kind: str, name: str, tmp_path: Path, split: Split) -> None:
    method = made(kind, name)
    uses = [lambda: method.save(tmp_path / "model")]
    if kind == "recommender":
        uses.append(lambda: method.recommend([[1000]]))
    else:
        uses.append(lambda: method.augment(split.train))
    for use in uses:
        with pytest.raises(ConfigError, match="not fitted"):
            use()


@pytest.mark.parametrize("kind, name", METHODS)
def test_fit_returns_the_method_ready_to_use(kind: str, name: str, split: Split) -> None:
    method = made(kind, name)
    assert method.fit(split.train, valid=split.valid, run=Run(seed=1)) is method
    assert not method.training
    assert (method.name, method.kind) == (name, kind)
    assert method.is_fitted
    assert method.catalog.n_items == 20


@pytest.mark.parametrize("kind, name", METHODS)
def test_fit_leaves_its_input_as_it_was(kind: str, name: str, random_log: SequenceDataset) -> None:
    items, offsets = random_log.items.copy(), random_log.offsets.copy()
    made(kind, name).fit(random_log)
    np.testing.assert_array_equal(random_log.offsets, offsets)
    np.testing.assert_array_equal(random_log.items, items)


@pytest.mark.parametrize("kind, name", METHODS)
def test_fit_reads_a_mapped_dataset(kind: str, name: str, split: Split, tmp_path: Path) -> None:
    split.train.save(tmp_path / "data")
    mapped = load_dataset(tmp_path / "data")
    assert not mapped.items.flags.writeable
    method = made(kind, name).fit(mapped, run=Run(seed=1))
    assert_same_state(method, fitted(kind, name, split))


def assert_same_state(a: Method, b: Method) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        assert torch.equal(left[key], right[key]), key


@pytest.mark.parametrize("kind, name", METHODS)
def test_nothing_is_learned_from_the_last_two_items(
    kind: str, name: str, random_log, monkeypatch
) -> None:
    assert_blind_to_endings(kind, name, random_log, monkeypatch)


def test_a_method_that_learns_from_validation_is_found_out(random_log, monkeypatch) -> None:
    popularity = find("recommender", "popularity")
    honest = popularity.fit

    def cheat(self, train, valid=None, run=None):
        honest(self, train, valid, run)
        self.popularity += torch.from_numpy(np.bincount(valid.targets, minlength=21))
        return self

    monkeypatch.setattr(popularity, "fit", cheat)
    with pytest.raises(AssertionError):
        assert_blind_to_endings("recommender", "popularity", random_log, monkeypatch)


def assert_blind_to_endings(kind: str, name: str, log: SequenceDataset, monkeypatch) -> None:
    """Other validation and test items change no parameter: of validation a figure is all that may
    be asked, and that is taken to rise with every epoch."""
    rising = itertools.count()
    monkeypatch.setattr(training, "validation", lambda *_: lambda: float(next(rising)))
    both = []
    for one in (log, other_ending(log)):
        part = leave_one_out(frozen(one))
        both.append((made(kind, name).fit(part.train, part.valid, Run(seed=2)), part.train))
    assert_same_state(both[0][0], both[1][0])
    if kind == "augmenter":
        assert_same_dataset(*(method.augment(part, seed=5) for method, part in both))


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_log_in_which_nothing_follows_is_refused(name: str) -> None:
    single = SequenceDataset.from_lists([[item] for item in range(1, 13)])
    with pytest.raises(DataError, match=r"to learn from|tells sequences apart") as refusal:
        made("recommender", name).fit(single)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("rows", ["users", "windows", "prefixes"])
@pytest.mark.parametrize("name", WITH_ROWS)
def test_rows_are_those_of_the_settings(name: str, rows: str, split: Split, monkeypatch) -> None:
    cut, asked = training.training_batches, []

    def watched(dataset, batch_size, max_len, seed, epoch, rows="users"):
        asked.append(rows)
        return cut(dataset, batch_size, max_len, seed, epoch, rows)

    monkeypatch.setattr(training, "training_batches", watched)
    settings = QUICK.get(name, {}) | {"rows": rows, "epochs": 1}
    find("recommender", name)(**settings).fit(split.train)
    assert asked[-1] == rows  # a pretraining may have its own


@pytest.mark.parametrize("kind, name", METHODS)
def test_the_same_seed_learns_the_same(kind: str, name: str, split: Split) -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    again = made(kind, name).fit(split.train, run=Run(seed=1))
    assert_same_state(again, fitted(kind, name, split))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind, name", METHODS)
def test_counts_are_those_of_the_training_part(kind: str, name: str, split: Split) -> None:
    expected = np.bincount(split.train.items, minlength=21)
    assert fitted(kind, name, split).popularity.tolist() == expected.tolist()


# --- recommenders ------------------------------------------------------------------------------


@torch.no_grad()
def test_scores_have_their_shape_and_are_finite(recommender, split: Split) -> None:
    histories = all_histories(split.test.histories)
    scores = recommender.score(histories)
    assert scores.shape == (len(histories.users), 21)
    assert scores.is_floating_point()
    assert torch.isfinite(scores[:, 1:]).all()
    assert torch.equal(recommender.score(histories), scores)


@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(recommender, split: Split) -> None:
    dataset = split.test.histories
    rows = np.arange(len(dataset))
    together = recommender.score(histories_of(dataset, rows))
    order = np.random.default_rng(0).permutation(rows)
    shuffled = recommender.score(histories_of(dataset, order))
    torch.testing.assert_close(shuffled, together[torch.from_numpy(order)], rtol=1e-4, atol=1e-5)
    for row in (0, 13, len(dataset) - 1):
        alone = recommender.score(histories_of(dataset, np.array([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scoring_does_not_change_the_histories_or_the_state(recommender, split: Split) -> None:
    histories = all_histories(split.test.histories)
    items = histories.items.clone()
    state = {name: tensor.clone() for name, tensor in recommender.state_dict().items()}
    recommender.score(histories).fill_(-7.0)  # the scores are the caller's
    assert torch.equal(histories.items, items)
    for name, tensor in recommender.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@torch.no_grad()
def test_a_history_of_one_item_and_one_longer_than_any_seen(recommender) -> None:
    queries = SequenceDataset.from_lists([[7], [1, 2, 3] * 60], recommender.catalog)
    assert torch.isfinite(recommender.score(all_histories(queries))[:, 1:]).all()


@pytest.mark.parametrize("name", sorted(set(RECOMMENDERS) - WITHOUT_ORDER))
def test_finds_the_next_item_of_the_cycle(name: str, split: Split) -> None:
    model = fitted("recommender", name, split)
    raw = [split.train.catalog.decode(split.test.histories[n]) for n in range(len(split.test))]
    found = model.recommend(raw, k=3)
    targets = split.train.catalog.decode(split.test.targets)
    hits = [target in items_of(found, n) for n, target in enumerate(targets)]
    # at least 10 of 20 items are left to show: three of them by chance hit in 30 % at most
    assert np.mean(hits) > 0.7


@pytest.mark.parametrize("ids", ["int", "str"])
@pytest.mark.parametrize("name", RECOMMENDERS)
def test_recommends_in_the_ids_of_the_log(name: str, ids: str, cycle, split: Split) -> None:
    train = leave_one_out(with_ids(cycle, ids)).train
    model = made("recommender", name).fit(train, run=Run(seed=1))
    raw = {"int": [1000, 997], "str": ["B1000", "B0997"]}[ids]
    frame = model.recommend([raw], k=5)
    spread = {"spread"} if isinstance(model, GenerativeRecommender) else set()
    assert set(frame.columns) == {"query", "rank", "item_id", "score", "n_unknown"} | spread
    items = items_of(frame)
    assert all(type(item) is type(raw[0]) for item in items)
    assert set(items) <= set(train.catalog.item_ids.to_list()) - set(raw)
    # numbers are learned from, names are not: the same recommendations under either
    as_numbers = fitted("recommender", name, split).recommend([[1000, 997]], k=5)
    assert (
        train.catalog.encode(items).tolist()
        == split.train.catalog.encode(items_of(as_numbers)).tolist()
    )
    scores = frame["score"].to_list()
    assert scores == sorted(scores, reverse=True)


def test_recommends_the_best_scored(recommender, split: Split) -> None:
    rows = np.arange(10)
    raw = [recommender.catalog.decode(split.test.histories[n]) for n in rows]
    with torch.no_grad():
        # the noise of a generative one belongs to the history, which has its own key there
        keyed, _ = recommender._encode(raw, "refuse")
        scores = recommender.score(histories_of(keyed, rows)).double().numpy()
    frame = recommender.recommend(raw, k=20, filter_seen=False, batch_size=10)
    for n in rows:
        order = sorted(range(1, 21), key=lambda item: (-scores[n, item], item))
        assert recommender.catalog.encode(items_of(frame, n)).tolist() == order
        mine = frame.filter(pl.col("query") == n)["score"].to_numpy()
        np.testing.assert_allclose(mine, scores[n, order], rtol=1e-5, atol=1e-6)


def test_the_batch_size_of_recommend_changes_nothing(recommender, split: Split) -> None:
    raw = [recommender.catalog.decode(split.test.histories[n]) for n in range(9)] + [[]]
    one, many = (recommender.recommend(raw, k=4, batch_size=size) for size in (3, 100))
    columns = ["query", "rank", "item_id", "n_unknown"]
    assert one.select(columns).equals(many.select(columns))


def test_unknown_ids_are_skipped_and_counted_or_refused(recommender) -> None:
    known = recommender.recommend([[1000, 997], [994]], k=4)
    frame = recommender.recommend([[5, 1000, 6, 997], [994], [7]], k=4)
    assert items_of(frame, 0) == items_of(known, 0)
    assert items_of(frame, 1) == items_of(known, 1)
    counts = frame.group_by("query").agg(pl.col("n_unknown").unique()).sort("query")
    assert counts["n_unknown"].to_list() == [[2], [0], [1]]
    with pytest.raises(DataError, match=r"history 1: .*item 5 \(2 unknown in all\)"):
        recommender.recommend([[1000], [997, 5, 6]], on_unknown="refuse")


def test_an_empty_history_is_answered_by_popularity(recommender, split: Split) -> None:
    counts = np.bincount(split.train.items, minlength=21)
    order = sorted(range(1, 21), key=lambda item: (-counts[item], item))
    frame = recommender.recommend([[], [12345]], k=20)
    for query in (0, 1):
        assert recommender.catalog.encode(items_of(frame, query)).tolist() == order
    if isinstance(recommender, GenerativeRecommender):  # which answers in probabilities
        np.testing.assert_allclose(frame["score"][:20], counts[order] / counts.sum(), rtol=1e-6)
        assert frame["spread"].to_list() == [0.0] * 40
    else:
        assert frame["score"][:20].to_list() == counts[order].tolist()


def test_seen_items_are_left_out_unless_asked_for(recommender) -> None:
    everything = set(recommender.catalog.item_ids.to_list())
    history = [1000, 997, 1000, 961]
    without = items_of(recommender.recommend([history], k=100))
    assert set(without) == everything - set(history)
    with_seen = items_of(recommender.recommend([history], k=100, filter_seen=False))
    assert set(with_seen) == everything
    assert [item for item in with_seen if item not in history] == without


def test_allow_and_deny(recommender) -> None:
    ranked = items_of(recommender.recommend([[1000]], k=100))
    allow, deny = ranked[3:8], ranked[:6]
    assert items_of(recommender.recommend([[1000]], k=9, allow=allow)) == allow
    assert items_of(recommender.recommend([[1000]], k=9, deny=deny)) == ranked[6:15]
    assert items_of(recommender.recommend([[1000]], k=9, allow=allow, deny=deny)) == ranked[6:8]
    assert recommender.recommend([[1000]], allow=[]).is_empty()
    assert recommender.recommend([[1000]], allow=[1000]).is_empty()  # seen
    assert len(recommender.recommend([[]], k=3, deny=deny)) == 3
    for listed in ({"allow": [1000, 5]}, {"deny": [5]}):
        with pytest.raises(DataError, match=f"{next(iter(listed))}: .* item 5"):
            recommender.recommend([[1000]], **listed)


def test_lists_are_no_longer_than_the_catalog(recommender) -> None:
    assert len(recommender.recommend([[1000]], k=10**6)) == 19
    assert len(recommender.recommend([[]], k=10**6)) == 20
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"k must be at least 1, got {k}"):
            recommender.recommend([[1000]], k=k)


def test_no_histories_and_histories_that_are_none(recommender) -> None:
    nothing = recommender.recommend([])
    assert nothing.is_empty()
    assert nothing.schema == recommender.recommend([[1000]]).schema
    for wrong in (["1000"], "1000"):
        with pytest.raises(DataError, match="list of lists"):
            recommender.recommend(wrong)


def test_similar_items_follow_the_item_alone(recommender) -> None:
    frame = recommender.similar_items([961, 1000], k=4)
    assert frame.columns == ["target_item_id", "rank", "item_id", "score"]
    for item in (961, 1000):
        mine = frame.filter(pl.col("target_item_id") == item)
        assert mine["item_id"].to_list() == items_of(recommender.recommend([[item]], k=4))
        assert item not in mine["item_id"].to_list()
    typed = recommender.similar_items(["961"], k=4)  # as on a command line
    assert typed.drop("score").equals(frame[:4].drop("score"))
    assert recommender.similar_items([]).is_empty()
    with pytest.raises(DataError, match="item 5"):
        recommender.similar_items([1000, 5])


def test_a_saved_recommender_scores_the_same(recommender, split: Split, tmp_path: Path) -> None:
    recommender.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is type(recommender)
    assert loaded.config == recommender.config
    assert_same_state(loaded, recommender)
    histories = all_histories(split.test.histories)
    with torch.no_grad():
        assert torch.equal(loaded.score(histories, 3), recommender.score(histories, 3))


# --- generative recommenders -------------------------------------------------------------------


@pytest.fixture(params=GENERATIVE)
def generative(request, split: Split) -> GenerativeRecommender:
    return fitted("recommender", request.param, split)


def raw_histories(split: Split, n: int) -> list[list[Any]]:
    return [split.train.catalog.decode(split.test.histories[row]) for row in range(n)]


def rankings(frame: pl.DataFrame, n: int) -> list[list[Any]]:
    return [items_of(frame, query) for query in range(n)]


def drawn(model: GenerativeRecommender, raw: list[list[Any]], seed: int, n_draws: int):
    """The draws for these histories as ``recommend`` keys their noise, shape (draws, B, V)."""
    dataset, _ = model._encode(raw, "refuse")
    with torch.no_grad():
        return torch.stack([*model.draws(all_histories(dataset), seed, n_draws)]).double().numpy()


@torch.no_grad()
def test_draws_are_distributions_over_the_items(generative, split: Split) -> None:
    histories = all_histories(split.test.histories)
    draws = torch.stack([*generative.draws(histories, 0, 5)])
    assert draws.shape == (5, len(histories.users), 21)
    assert (draws >= 0).all()
    assert not draws[:, :, 0].any()
    torch.testing.assert_close(draws.sum(2), torch.ones(5, len(histories.users)))
    assert (draws[0] != draws[1]).any()
    # a draw is the same whatever number of them is asked for
    torch.testing.assert_close(
        torch.stack([*generative.draws(histories, 0, 2)]), draws[:2], rtol=1e-4, atol=1e-6
    )


def test_shows_the_mean_of_the_draws_and_their_spread(generative, split: Split) -> None:
    raw = raw_histories(split, 8)
    frame = generative.recommend(raw, k=20, n_draws=6, filter_seen=False, seed=4)
    draws = drawn(generative, raw, 4, 6)
    for query in range(len(raw)):
        shown = frame.filter(pl.col("query") == query)
        items = generative.catalog.encode(shown["item_id"].to_list())
        mean, std = draws[:, query, items].mean(0), draws[:, query, items].std(0, ddof=1)
        np.testing.assert_allclose(shown["score"], mean, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(shown["spread"], std, rtol=1e-3, atol=1e-6)
        assert (np.diff(shown["score"]) <= 0).all()
    assert (frame["spread"] >= 0).all()
    assert (frame["spread"] > 0).any()
    alone = generative.recommend(raw, k=20, n_draws=1, filter_seen=False, seed=4)
    assert alone["spread"].to_list() == [0.0] * len(alone)


def test_the_number_of_draws_is_its_own_unless_asked_for(generative, split: Split) -> None:
    raw = raw_histories(split, 4)
    own = generative.recommend(raw, k=20)
    assert own.equals(generative.recommend(raw, k=20, n_draws=generative.config.n_draws))
    assert not own.equals(generative.recommend(raw, k=20, n_draws=generative.config.n_draws + 1))


def test_diversity_ranks_from_the_mean_to_the_first_draw(generative, split: Split) -> None:
    raw = raw_histories(split, 30)
    by_seed = []
    for seed in (1, 2):
        frame = generative.recommend(raw, k=20, filter_seen=False, seed=seed, diversity=1.0)
        n_draws = generative.config.n_draws
        draws = drawn(generative, raw, seed, n_draws)
        half = generative.recommend(raw, k=20, filter_seen=False, seed=seed, diversity=0.5)
        for query in range(len(raw)):
            for shown, value in (
                (frame, draws[0, query]),
                (half, (draws[:, query].mean(0) + draws[0, query]) / 2),
            ):
                items = generative.catalog.encode(items_of(shown, query))
                # descending but for rounding
                assert (np.diff(value[items]) <= 1e-6).all()
            items = generative.catalog.encode(items_of(frame, query))
            shown = frame.filter(pl.col("query") == query)["score"]  # still the mean
            np.testing.assert_allclose(shown, draws[:, query, items].mean(0), rtol=1e-4, atol=1e-7)
        by_seed.append(rankings(frame, len(raw)))
    assert by_seed[0] != by_seed[1]
    none = generative.recommend(raw, k=20, filter_seen=False, seed=1, diversity=0.0)
    assert rankings(none, len(raw)) != by_seed[0]
    assert none.equals(generative.recommend(raw, k=20, filter_seen=False, seed=1))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_draws": 0}, "n_draws must be at least 1, got 0"),
        ({"n_draws": -3}, "n_draws must be at least 1, got -3"),
        ({"diversity": 2.0}, "diversity must be between 0 and 1, got 2.0"),
        ({"diversity": -0.1}, "diversity must be between 0 and 1, got -0.1"),
        ({"diversity": float("nan")}, "diversity must be between 0 and 1, got nan"),
    ],
    ids=str,
)
def test_impossible_draws_are_refused(generative, wrong, message) -> None:
    with pytest.raises(ConfigError) as refusal:
        generative.recommend([[1000]], **wrong)
    assert str(refusal.value) == message


@pytest.mark.parametrize("asked", [{"n_draws": 3}, {"diversity": 0.5}], ids=str)
@pytest.mark.parametrize("name", sorted(set(RECOMMENDERS) - set(GENERATIVE)))
def test_draws_of_a_method_without_noise_are_refused(name: str, asked, split: Split) -> None:
    with pytest.raises(ConfigError) as refusal:
        fitted("recommender", name, split).recommend([[1000]], **asked)
    assert str(refusal.value) == (
        f"{name} draws no noise, its lists are always the same: leave out n_draws and diversity"
    )


def test_an_empty_history_among_others_has_no_spread(generative, split: Split) -> None:
    raw = raw_histories(split, 2)
    frame = generative.recommend([raw[0], [], raw[1]], k=20, diversity=1.0, seed=3)
    counts = np.bincount(split.train.items, minlength=21)
    order = sorted(range(1, 21), key=lambda item: (-counts[item], item))
    empty = frame.filter(pl.col("query") == 1)
    assert generative.catalog.encode(empty["item_id"].to_list()).tolist() == order
    assert empty["spread"].to_list() == [0.0] * 20
    np.testing.assert_allclose(empty["score"], counts[order] / counts.sum(), rtol=1e-6)
    # the others are answered as if it were not there
    without = generative.recommend(raw, k=20, diversity=1.0, seed=3)
    for query, other in ((0, 0), (2, 1)):
        assert items_of(frame, query) == items_of(without, other)
        assert (frame.filter(pl.col("query") == query)["spread"] > 0).any()


# --- augmenters --------------------------------------------------------------------------------


def assert_same_dataset(a: SequenceDataset, b: SequenceDataset) -> None:
    for field in ("items", "offsets", "users", "synthetic"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
    assert (a.variants is None) == (b.variants is None)
    if a.variants is not None and b.variants is not None:
        np.testing.assert_array_equal(a.variants.items, b.variants.items)
        np.testing.assert_allclose(a.variants.difficulty, b.variants.difficulty, atol=1e-6)
        assert a.variants.schedule == b.variants.schedule


@pytest.fixture(scope="session")
def mixed(split: Split) -> SequenceDataset:
    """Test histories, one of them empty, users out of order."""
    rows = np.arange(30)[::-1]
    part = split.test.histories.select(rows)
    ends = part.offsets[1:].copy()
    ends[4] = part.offsets[4]
    return frozen(part.slice(part.offsets[:-1], ends))


def test_augmenting_keeps_users_and_what_they_really_had(augmenter, mixed) -> None:
    before = mixed.items.copy()
    longer = augmenter.augment(mixed, seed=3)
    assert len(longer) == len(mixed)
    assert longer.users.tolist() == mixed.users.tolist()
    assert longer.catalog is mixed.catalog
    np.testing.assert_array_equal(mixed.items, before)
    assert not mixed.synthetic.any()
    assert longer.synthetic.any()
    for row in range(len(mixed)):
        real = mixed[row]
        flags = longer.synthetic[longer.offsets[row] : longer.offsets[row + 1]]
        n = len(longer[row]) - len(real)
        assert flags.tolist() == [True] * n + [False] * len(real)  # additions in front
        assert longer[row][n:].tobytes() == real.tobytes()
    assert longer.items.dtype == np.int32
    assert longer.items.min() >= 1
    assert longer.items.max() <= 20
    assert_same_dataset(longer.real(), mixed)


def test_augmenting_is_by_user_and_seed(augmenter, mixed) -> None:
    longer = augmenter.augment(mixed, seed=3)
    assert_same_dataset(augmenter.augment(mixed, seed=3), longer)
    other = augmenter.augment(mixed, seed=4)
    assert (other.items.tolist() == longer.items.tolist()) == (augmenter.name in WITHOUT_NOISE)
    # whoever else is in the call
    some = np.array([20, 3, 4, 11])
    assert_same_dataset(augmenter.augment(mixed.select(some), seed=3), longer.select(some))
    one = np.array([29])
    assert_same_dataset(augmenter.augment(mixed.select(one), seed=3), longer.select(one))


def test_augmenting_no_one(augmenter, mixed) -> None:
    nobody = mixed.select(np.zeros(len(mixed), dtype=bool))
    assert len(augmenter.augment(nobody)) == 0
    empty = SequenceDataset.from_lists([[], []], mixed.catalog)
    assert augmenter.augment(empty).lengths[0] in (0, augmenter.config.n_items)


def test_augmenting_leaves_the_callers_random_numbers_alone(augmenter, mixed) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augmenter.augment(mixed, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_dataset(augmenter.augment(mixed, seed=3), first)


@pytest.mark.parametrize("name", PREPENDING)
def test_only_short_histories_when_asked(name: str, split: Split) -> None:
    longest = 5
    chosen = find("augmenter", name)(**QUICK.get(name, {}), max_history=longest).fit(split.train)
    longer = chosen.augment(split.train)
    added = longer.lengths - split.train.lengths
    assert (added[split.train.lengths > longest] == 0).all()
    assert (added[split.train.lengths <= longest] == chosen.config.n_items).all()


def test_a_saved_augmenter_adds_the_same(augmenter, mixed, tmp_path: Path) -> None:
    augmenter.save(tmp_path / "augmenter")
    loaded = load(tmp_path / "augmenter")
    assert type(loaded) is type(augmenter)
    assert loaded.config == augmenter.config
    assert_same_state(loaded, augmenter)
    assert_same_dataset(loaded.augment(mixed, seed=3), augmenter.augment(mixed, seed=3))


def test_variants_stand_beside_sequences_that_stay_as_they_are(varying, mixed) -> None:
    before = mixed.items.copy()
    varied = varying.augment(mixed, seed=3)
    np.testing.assert_array_equal(mixed.items, before)
    assert mixed.variants is None
    for field in ("items", "offsets", "users", "synthetic"):
        np.testing.assert_array_equal(getattr(varied, field), getattr(mixed, field))
    assert varied.catalog is mixed.catalog
    variants = varied.variants
    assert variants.items.dtype == np.int32
    assert variants.items.shape == (len(variants), len(mixed.items))
    assert variants.difficulty.shape == (len(variants), len(mixed))
    assert variants.items.min() >= 1
    assert variants.items.max() <= 20
    assert (variants.items != mixed.items).any(1).all()
    # a history that is only scored is left alone
    assert varying.lengthened(mixed, seed=3) is mixed


def test_variants_are_by_user_and_seed(varying, mixed) -> None:
    varied = varying.augment(mixed, seed=3)
    assert_same_dataset(varying.augment(mixed, seed=3), varied)
    other = varying.augment(mixed, seed=4)
    assert other.variants.items.tolist() != varied.variants.items.tolist()
    for some in (np.array([20, 3, 4, 11]), np.array([29])):
        alone = varying.augment(mixed.select(some), seed=3)
        assert_same_dataset(alone, varied.select(some))


def test_variants_of_no_one(varying, mixed) -> None:
    nobody = mixed.select(np.zeros(len(mixed), dtype=bool))
    assert varying.augment(nobody).variants.items.shape[1] == 0
    empty = SequenceDataset.from_lists([[], []], mixed.catalog)
    assert varying.augment(empty).variants.difficulty.shape[1] == 2


def test_variants_leave_the_callers_random_numbers_alone(varying, mixed) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = varying.augment(mixed, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_dataset(varying.augment(mixed, seed=3), first)


def test_a_saved_augmenter_makes_the_same_variants(varying, mixed, tmp_path: Path) -> None:
    varying.save(tmp_path / "augmenter")
    loaded = load(tmp_path / "augmenter")
    assert_same_state(loaded, varying)
    assert_same_dataset(loaded.augment(mixed, seed=3), varying.augment(mixed, seed=3))


TRAINED = sorted(set(RECOMMENDERS) - {"popularity", "markov", "itemknn"})


def in_store(kind: str, name: str, store: Split) -> Any:
    """Fitted on the built-in store, a recommender for two epochs, once for all tests."""
    key = (f"{kind} in the store", name)
    if key not in _FITTED:
        _FITTED[key] = shortly(kind, name).fit(store.train, run=Run(seed=1))
    return _FITTED[key]


def shortly(kind: str, name: str) -> Any:
    settings = made(kind, name).config.model_dump(mode="json")
    return find(kind, name)(**settings | ({"epochs": 2} if kind == "recommender" else {}))


@pytest.mark.parametrize("kind", AUGMENTERS)
@pytest.mark.parametrize("name", TRAINED)
def test_every_recommender_trains_on_what_every_augmenter_makes(
    name: str, kind: str, built_in_store: Split
) -> None:
    augmenter = in_store("augmenter", kind, built_in_store)
    train = augmenter.augment(built_in_store.train)
    assert train.variants is not None or train.synthetic.any()
    model = shortly("recommender", name).fit(train, run=Run(seed=1))
    # what was made counts neither as popular ...
    counts = np.bincount(built_in_store.train.items, minlength=train.vocab_size)
    assert model.popularity.tolist() == counts.tolist()
    histories = all_histories(augmenter.lengthened(built_in_store.test.histories))
    with torch.no_grad():
        assert torch.isfinite(model.score(histories)[:, 1:]).all()
    # ... nor is it passed over, but by those for whom there is no context
    plain = in_store("recommender", name, built_in_store).state_dict()
    same = all(torch.equal(plain[key], value) for key, value in model.state_dict().items())
    assert same == (name in WITHOUT_CONTEXT and not isinstance(augmenter, VaryingAugmenter))


@pytest.fixture(scope="session")
def built_in_store() -> Split:
    """The built-in store, small."""
    return leave_one_out(Store(n_users=80, n_items=60, seed=0).dataset())


def test_a_recommender_accepts_what_an_augmenter_adds(augmenter, split: Split) -> None:
    train = augmenter.augment(split.train)
    model = made("recommender", "sasrec").fit(
        train, Queries(augmenter.augment(split.valid.histories), split.valid.targets)
    )
    # generated items count neither as popular nor as seen
    assert model.popularity.tolist() == np.bincount(split.train.items, minlength=21).tolist()
    shown = items_of(model.recommend([[1000, 997]], k=100, augmenter=augmenter))
    assert set(shown) == set(split.train.catalog.item_ids.to_list()) - {1000, 997}
