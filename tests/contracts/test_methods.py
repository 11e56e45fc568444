"""Promises of every method, on every file found in the folders.

Nothing in these tests names a method but the tables of ``suite.py``.
"""

import inspect
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import (
    Catalog,
    Histories,
    Queries,
    SequenceDataset,
    Split,
    leave_one_out,
    load_dataset,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Settings
from diffuserec.models.encoders import ENCODERS
from diffuserec.models.methods import load, load_augmenter
from diffuserec.models.recommender import Recommender, ScoreRecommender

from .suite import (
    EXAMPLES,
    METHODS,
    WITH_EXAMPLES,
    assert_same_dataset,
    assert_same_state,
    class_of,
    few_epochs,
    fitted,
    frozen,
    made,
)

HOOKS = {"item_weight", "learn_to_generate", "n_candidates", "reads_times", "states"}
HOOKS |= {"chosen_settings", "expected", "likely"}
"""Concrete parts of the contract that say of themselves that they may be overridden."""

DECLARED = {"Config", "config", "combine", "trained", "training_only", "table", "encoder"}
DECLARED |= {"as_published", "presets", "version"}


@pytest.mark.parametrize("kind, name", METHODS)
def test_overrides_nothing_concrete(kind: str, name: str) -> None:
    method = class_of(kind, name)
    assert not method.__abstractmethods__
    bases = method.__mro__[1:]
    promised = {n for base in bases for n in getattr(base, "__abstractmethods__", ())}
    inherited = {
        attribute
        for base in bases
        if base.__module__.startswith("diffuserec.")
        for attribute in vars(base)
        if not attribute.startswith("__")
    }
    overridden = {n for n in vars(method) if n in inherited and n != "_abc_impl"}
    # what a base has filled in already is concrete, whoever promised it first
    filled = {n for base in bases for n in vars(base) if n in promised and not _abstract(base, n)}
    assert overridden - DECLARED - HOOKS <= promised - filled


def _abstract(base: type, name: str) -> bool:
    return getattr(vars(base)[name], "__isabstractmethod__", False)


@pytest.mark.parametrize("kind, name", METHODS)
def test_signatures_are_those_of_the_contract(kind: str, name: str) -> None:
    method = class_of(kind, name)
    for base in method.__mro__[1:]:
        for declared in getattr(base, "__abstractmethods__", ()):
            promised = inspect.signature(getattr(base, declared)).parameters
            kept = inspect.signature(getattr(method, declared)).parameters
            assert list(kept) == list(promised), declared
            defaults = [p.default for p in promised.values()]
            assert [p.default for p in kept.values()] == defaults, declared


@pytest.mark.parametrize("kind, name", METHODS)
def test_settings_are_frozen_documented_and_have_defaults(kind: str, name: str) -> None:
    schema = class_of(kind, name).Config
    assert issubclass(schema, Settings)
    assert (schema.__doc__ or "").strip()
    config = schema()  # all defaults
    assert schema(**config.model_dump(mode="json")) == config
    for field in schema.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(config, field, getattr(config, field))
    with pytest.raises(ConfigError, match="has no setting 'no_such_setting'"):
        class_of(kind, name)(no_such_setting=1)


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
def test_a_second_fit_from_a_file_that_is_not_written_to_learns_the_same(
    kind: str, name: str, split: Split, tmp_path: Path
) -> None:
    split.train.save(tmp_path / "data")
    mapped = load_dataset(tmp_path / "data")
    assert not mapped.log.items.flags.writeable
    torch.manual_seed(77)
    before = torch.get_rng_state()
    method = made(kind, name)
    assert method.fit(mapped, runtime=Runtime(seed=1)) is method
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(method, fitted(kind, name, split))


@pytest.mark.parametrize("kind, name", METHODS)
def test_what_is_fitted_is_ready_to_use(kind: str, name: str, split: Split) -> None:
    method = fitted(kind, name, split)
    assert not method.training
    assert (method.name, method.kind) == (name, kind)
    assert method.is_fitted
    assert method.catalog.n_items == 20
    assert all(isinstance(record, Epoch) for record in method.curve)
    assert bool(method.curve) == type(method).trained


@pytest.mark.parametrize("kind, name", METHODS)
def test_nothing_is_learned_from_the_last_two_items(
    kind: str, name: str, random_log: SequenceDataset
) -> None:
    assert_blind_to_endings(lambda: made(kind, name, **few_epochs(kind, name, 2)), random_log)


class Cheat(ScoreRecommender):
    """Counts the validation items, too."""

    def build(self, catalog: Catalog) -> None:
        pass

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        assert valid is not None
        self.popularity += torch.from_numpy(np.bincount(valid.targets, minlength=train.vocab_size))
        return []

    def all_scores(self, histories: Histories) -> torch.Tensor:
        return self.popularity.float().repeat(len(histories.users), 1)


def test_a_method_that_learns_from_validation_is_found_out(random_log: SequenceDataset) -> None:
    with pytest.raises(AssertionError):
        assert_blind_to_endings(Cheat, random_log)


class LooksBeyond(Cheat):
    """Counts everything that stands in the flat log, held out or not."""

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        # weighted by position: the test's two logs hold the same items, in other places
        weights = np.arange(len(train.log.items))
        counts = np.bincount(train.log.items, weights, minlength=train.vocab_size)
        self.popularity += torch.from_numpy(counts.astype(np.int64))
        return []


def test_a_method_that_looks_beyond_its_view_is_found_out(random_log: SequenceDataset) -> None:
    with pytest.raises(AssertionError):
        assert_blind_to_endings(LooksBeyond, random_log)


def assert_blind_to_endings(make, log: SequenceDataset) -> None:
    """Other validation and test items change no parameter and nothing that is augmented.

    All validation targets stand in their own history, where they are hidden: whatever the model
    and whichever the targets, the validation metric is 0. It is all that may be asked of them.
    """
    both = []
    for which, one in enumerate((log, other_ending(log))):
        part = leave_one_out(frozen(one))
        seen = np.array([history[which % len(history)] for history in part.valid.histories])
        valid = Queries(part.valid.histories, seen.astype(np.int64))
        method = make().fit(part.train, valid, Runtime(seed=2))
        if isinstance(method, Recommender):
            assert all(record.valid in (None, 0.0) for record in method.curve)
        both.append((method, part.train))
    assert_same_state(both[0][0], both[1][0])
    if not isinstance(both[0][0], Recommender):
        assert_same_dataset(*(method.augment(part, seed=5) for method, part in both))


def other_ending(log: SequenceDataset) -> SequenceDataset:
    """The log with every user's last two items permuted among all users."""
    items = log.items.copy()
    last = np.concatenate([log.offsets[1:] - 2, log.offsets[1:] - 1])
    items[last] = items[np.random.default_rng(0).permutation(last)]
    assert (items != log.items).sum() > len(log)
    return SequenceDataset.from_offsets(items, log.offsets, log.catalog)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_a_log_in_which_nothing_follows_is_refused(name: str) -> None:
    single = SequenceDataset.from_lists([[item] for item in range(1, 13)])
    with pytest.raises(DataError, match=r"to learn from|contrasts sequences") as refusal:
        made("recommender", name).fit(single)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_those_of_the_settings(name: str, split: Split) -> None:
    """Each kind of training example leads to other parameters after an epoch."""
    learned = []
    encoder = getattr(made("recommender", name).config, "encoder", "transformer")
    if ENCODERS.find(encoder).sees == "both":
        with pytest.raises(ConfigError, match="looks ahead"):
            made("recommender", name, examples="per_user")
        return
    for examples in EXAMPLES.get(name, ("per_user", "windows", "prefixes")):
        method = made("recommender", name, examples=examples, epochs=1, max_len=3)
        method.fit(split.train)
        state = method.state_dict()
        learned.append(torch.cat([v.flatten().double() for v in state.values()]))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(learned[first], learned[second])


@pytest.mark.parametrize("kind, name", METHODS)
def test_counts_are_those_of_the_training_part(kind: str, name: str, split: Split) -> None:
    expected = np.bincount(split.train.items, minlength=21)
    assert fitted(kind, name, split).popularity.tolist() == expected.tolist()


WITH_TABLES = [
    (kind, name)
    for kind, name in METHODS
    if "item_features" in class_of(kind, name).Config.model_fields
]


@pytest.fixture(scope="module")
def described(cycle: SequenceDataset) -> SequenceDataset:
    """The cycle with two items that no interaction has, and two attributes of every item."""
    ids = pl.Series("item_id", np.arange(1, 23))
    parity = ["odd", "even"] * 11
    text = np.stack([np.cos(np.arange(22)), np.sin(np.arange(22))], axis=1).tolist()
    frame = pl.DataFrame(
        {"category": parity, "text": pl.Series(text, dtype=pl.Array(pl.Float32, 2))}
    )
    catalog = Catalog(ids, cycle.catalog.n_users, attributes=frame)
    return SequenceDataset.from_offsets(cycle.items, cycle.offsets, catalog)


@pytest.mark.parametrize("kind, name", WITH_TABLES)
def test_an_item_that_training_does_not_hold_is_its_attributes(
    kind: str, name: str, described: SequenceDataset, tmp_path: Path
) -> None:
    """The vectors that unseen items were drawn with change nothing, and all is saved."""
    method = made(kind, name, item_features=True, **few_epochs(kind, name, 1))
    method.fit(described.select(np.arange(16)), runtime=Runtime(seed=1))
    method.save(tmp_path / "model")
    read = load if kind == "recommender" else load_augmenter
    again = read(tmp_path / "model")
    n_drawn = 0
    with torch.no_grad():
        for part, parameter in again.named_parameters():
            if part.endswith("vectors.weight") and parameter.shape[0] >= 23:
                parameter[21:23] = 3.0
                n_drawn += 1
    assert n_drawn
    histories = [[1, 2, 3], [21, 5], [22]]
    if kind == "recommender":
        first, second = (m.recommend(histories, k=22, filter_seen=False) for m in (method, again))
        assert first.equals(second)
        assert set(first["item_id"]) >= {21, 22}
    else:
        data = described.select(np.arange(20))
        assert_same_dataset(method.augment(data, seed=2), again.augment(data, seed=2))
