"""Promises of every augmenter: who is augmented, by what, and what is left as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuserec.data import (
    Catalog,
    Queries,
    SequenceDataset,
    Split,
    encode_histories,
    leave_one_out,
)
from diffuserec.evaluation import evaluate
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.methods import load_augmenter, with_settings

from .suite import (
    AUGMENTERS,
    CHANGING,
    INSIDE,
    PARALLEL,
    PREPENDING,
    PROBABLE,
    TRAINED,
    WITHOUT_CONTEXT,
    WITHOUT_NOISE,
    all_histories,
    assert_same_dataset,
    assert_same_state,
    class_of,
    few_epochs,
    fitted,
    items_of,
    made,
    with_ids,
)


def test_augmenting_keeps_users_and_their_real_items(augmenter, mixed) -> None:
    before = mixed.items.copy()
    longer = augmenter.augment(mixed, seed=3)
    # new users may follow
    assert longer.users[: len(mixed)].tolist() == mixed.users.tolist()
    assert longer.catalog.item_ids is mixed.catalog.item_ids
    np.testing.assert_array_equal(mixed.items, before)
    assert not mixed.synthetic.any()
    for index in range(len(mixed)):
        flags = longer.synthetic[longer.offsets[index] : longer.offsets[index + 1]]
        kept, real = longer[index][~flags].tolist(), iter(mixed[index].tolist())
        assert all(item in real for item in kept)  # in their order, some perhaps deleted
    assert longer.items.dtype == np.int32
    assert longer.items.min() >= 1
    assert longer.items.max() <= 20
    # a history that is only scored keeps its place among the others
    shown = augmenter.augment_for_inference(mixed, seed=3)
    assert shown.users.tolist() == mixed.users.tolist()


@pytest.mark.parametrize("name", PREPENDING)
def test_items_in_front_leave_the_history_whole(name: str, split: Split, mixed) -> None:
    longer = fitted("augmenter", name, split).augment(mixed, seed=3)
    for index in range(len(mixed)):
        real = mixed[index]
        flags = longer.synthetic[longer.offsets[index] : longer.offsets[index + 1]]
        n = len(longer[index]) - len(real)
        assert n > 0 or not len(real)
        assert flags.tolist() == [True] * n + [False] * len(real)
        assert longer[index][n:].tobytes() == real.tobytes()
    assert_same_dataset(longer.real(), mixed)


def test_augmenting_is_by_user_and_seed(augmenter, mixed) -> None:
    longer = augmenter.augment(mixed, seed=3)
    assert_same_dataset(augmenter.augment(mixed, seed=3), longer)
    other = augmenter.augment(mixed, seed=4)
    if longer.synthetic.any():
        same = other.items.tolist() == longer.items.tolist()
        assert same == (augmenter.name in WITHOUT_NOISE)
    # whoever else is in the call
    some = np.array([20, 3, 4, 11])
    assert_same_dataset(augmenter.augment(mixed.select(some), seed=3), longer.select(some))
    one = np.array([29])
    assert_same_dataset(augmenter.augment(mixed.select(one), seed=3), longer.select(one))


class Doubles(Augmenter):
    """Adds a copy of every user as a new one."""

    trained = False

    def build(self, catalog: Catalog) -> None:
        pass

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        return dataset.with_new_users(dataset.items, dataset.lengths)


class Halves(Doubles):
    """Deletes the older half of every history."""

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        starts = dataset.starts + dataset.lengths // 2
        return dataset.view(starts, dataset.ends).compact()


@pytest.mark.parametrize("kind", [Doubles, Halves])
@pytest.mark.parametrize("name", ["sasrec", "bpr", "markov"])
def test_new_users_and_deleted_items_are_learned_from_and_measured(
    kind, name, split: Split
) -> None:
    augmenter = kind().fit(split.train)
    train = augmenter.augment(split.train)
    valid = Queries(augmenter.augment_for_inference(split.valid.histories), split.valid.targets)
    assert len(valid.histories) == len(split.valid)
    model = made("recommender", name, **({} if name == "markov" else {"epochs": 2}))
    model.fit(train, valid)
    result = evaluate(model, split.test, augmenter=augmenter)
    assert result.protocol.n_users == len(split.test)
    shown = items_of(model.recommend([[1000, 997]], k=100, augmenter=augmenter))
    assert set(shown) == set(split.train.catalog.item_ids.to_list()) - {1000, 997}


def test_augmenting_no_one(augmenter, mixed) -> None:
    nobody = mixed.select(np.zeros(len(mixed), dtype=bool))
    assert len(augmenter.augment(nobody)) == 0
    empty = SequenceDataset.from_lists([[], []], mixed.catalog)
    longer = augmenter.augment(empty)
    assert longer.lengths[0] == 0 or longer.synthetic.all()


def test_augmenting_leaves_the_callers_random_numbers_alone(augmenter, mixed) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augmenter.augment(mixed, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_dataset(augmenter.augment(mixed, seed=3), first)


def changed_from(dataset: SequenceDataset, first: int | np.ndarray) -> SequenceDataset:
    """The dataset with other items from a number of each history's on, counted from 0."""
    first = np.repeat(np.broadcast_to(first, len(dataset)), dataset.lengths)
    number = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], dataset.lengths)
    n_items = dataset.vocab_size - 1
    others = (dataset.items + n_items // 2 - 1) % n_items + 1
    items = np.where(number >= first, others, dataset.items).astype(np.int32)
    return dataset.with_items(items, dataset.lengths, None)


def in_front_of_targets(longer: SequenceDataset, first: int) -> list[list[int] | None]:
    """All that stands in front of the real item of that number of each sequence, from 0.

    None where there is no such item, or where it is never a target.
    """
    found: list[list[int] | None] = []
    for index in range(len(longer)):
        where = slice(longer.offsets[index], longer.offsets[index + 1])
        real = np.flatnonzero(~longer.synthetic[where])
        context = longer.context_only
        is_target = len(real) > first and (context is None or not context[where][real[first]])
        found.append(longer[index][: real[first]].tolist() if is_target else None)
    return found


def n_moved(augmenter: Augmenter, dataset: SequenceDataset, first: int) -> int:
    """How many targets have something else in front of them once they and all later items change.

    Fails if there are no targets of that number.
    """
    before = in_front_of_targets(augmenter.augment(dataset, seed=3), first)
    after = in_front_of_targets(augmenter.augment(changed_from(dataset, first), seed=3), first)
    assert any(before)
    return sum(a != b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("first", [1, 2, 5])
def test_nothing_in_front_of_a_target_has_seen_it(
    name: str, first: int, split: Split, mixed
) -> None:
    assert n_moved(fitted("augmenter", name, split), mixed, first) == 0


def test_the_published_form_of_diffuasr_has_seen_its_targets(split: Split, mixed) -> None:
    settings = {"condition": "published", "min_condition": 1, "guidance_scale": 10}
    published = made("augmenter", "diffuasr", **settings)
    assert n_moved(published.fit(split.train, runtime=Runtime(seed=1)), mixed, 2) > 0


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("first", [1, 4, 5])
def test_nothing_inside_a_history_has_seen_the_targets_behind_it(
    name: str, first: int, split: Split, mixed
) -> None:
    settings = {"use_place": "middle", "n_condition": 4}
    assert n_moved(with_settings(fitted("augmenter", name, split), settings), mixed, first) == 0
    for dataset in (mixed, mixed.view(mixed.starts, np.maximum(mixed.starts, mixed.ends - 2))):
        longer = with_settings(fitted("augmenter", name, split), settings).augment(dataset, seed=3)
        for index in range(len(dataset)):
            where = slice(longer.offsets[index], longer.offsets[index + 1])
            n = int(longer.synthetic[where].sum())
            places = np.flatnonzero(longer.synthetic[where])
            assert places.tolist() == list(range(2, 2 + n))
            behind = longer.context_only[where].nonzero()[0].tolist()
            assert behind == ([2 + n, 3 + n] if n else [])


@pytest.mark.parametrize("name", PREPENDING)
@pytest.mark.parametrize("first", [1, 3])
def test_short_copies_are_the_newest_items_behind_what_has_not_seen_their_targets(
    name: str, first: int, split: Split, mixed
) -> None:
    n, plain = 4, fitted("augmenter", name, split)
    for use in ({}, {"use_place": "nowhere"}):
        augmenter = with_settings(plain, {"use_weight": 0.5, "use_short": n, **use})
        longer = augmenter.augment(mixed, seed=3)
        assert longer.use is not None
        rows = longer.use.rows
        assert rows is not None
        assert rows.users.tolist() == mixed.users[mixed.lengths > n].tolist()
        by_user = dict(zip(mixed.users.tolist(), mixed, strict=True))
        for user, real in zip(rows.users.tolist(), rows.real(), strict=True):
            assert real.tolist() == by_user[user][-n:].tolist()
        others = changed_from(mixed, mixed.lengths - n + first)
        again = augmenter.augment(others, seed=3).use
        assert again is not None
        assert again.rows is not None
        shown = in_front_of_targets(rows, first)
        assert any(shown)
        assert in_front_of_targets(again.rows, first) == shown
        # a model is asked as it was without them
        asked = plain.augment_for_inference(mixed, seed=3) if not use else mixed
        assert_same_dataset(augmenter.augment_for_inference(mixed, seed=3), asked)


@pytest.mark.parametrize("name", PREPENDING)
def test_held_out_items_reach_no_use(name: str, split: Split, cycle) -> None:
    settings: dict[str, Any] = {"use_weight": 0.5, "use_short": 4}
    settings |= {"use_soft": 0.2} if name in PROBABLE else {}
    augmenter = with_settings(fitted("augmenter", name, split), settings)
    log = with_ids(cycle, "int")
    both = []
    for whole in (log, changed_from(log, log.lengths - 2)):
        longer = augmenter.augment(leave_one_out(whole).train, seed=3)
        use = longer.use
        assert use is not None
        assert use.rows is not None
        soft = [] if use.soft is None else [use.soft.items[:, 0], use.soft.probability]
        both.append([longer.items, use.rows.items, use.rows.users, *soft])
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", PROBABLE)
def test_soft_targets_follow_from_the_items_before_them(name: str, split: Split, mixed) -> None:
    soft, first = {"use_soft": 0.3}, 3
    for settings in (soft, {**soft, "use_place": "nowhere"}):
        augmenter = with_settings(fitted("augmenter", name, split), settings)
        found = []
        for dataset in (mixed, changed_from(mixed, first)):
            longer = augmenter.augment(dataset, seed=3)
            assert longer.use is not None
            assert longer.use.soft is not None
            real = longer.use.soft.take(~longer.synthetic)
            number = np.arange(len(mixed.items)) - np.repeat(mixed.offsets[:-1], mixed.lengths)
            at = number <= first
            assert not real.probability[number == 0].any()
            assert (real.probability[number > 0].sum(1) > 0).all()
            assert real.items.max() <= 20
            assert not longer.use.soft.probability[longer.synthetic].any()
            found.append((real.items[at], real.probability[at]))
        np.testing.assert_array_equal(found[0][0][:, 0], found[1][0][:, 0])
        np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.parametrize("name", PREPENDING)
@pytest.mark.parametrize("settings", [{}, {"max_history": 9}, {"n_condition": 3}])
def test_a_user_has_the_same_items_in_front_wherever_they_are_shown(
    name: str, settings: dict[str, int], built_in_store: Split
) -> None:
    split = built_in_store
    augmenter = briefly("augmenter", name, **settings).fit(split.train, runtime=Runtime(seed=1))
    clicked = SequenceDataset.from_lists(
        [
            [*h.tolist(), int(t), 7]
            for h, t in zip(split.test.histories, split.test.targets, strict=True)
        ],
        split.train.catalog,
    )
    shown = [augmenter.augment(split.train, seed=3)]
    shown += [
        augmenter.augment_for_inference(histories, seed=3)
        for histories in (split.valid.histories, split.test.histories, clicked)
    ]
    raw = [split.train.catalog.decode(history) for history in clicked]
    served, _ = encode_histories(split.train.catalog, raw)
    shown.append(augmenter.augment_for_inference(served, seed=3))
    in_front = [
        [d[i][d.synthetic[d.offsets[i] : d.offsets[i + 1]]].tolist() for i in range(len(d))]
        for d in shown
    ]
    for user, number in enumerate(split.test.histories.users.tolist()):
        others = [in_front[0][number], *(part[user] for part in in_front[1:])]
        if split.train.lengths[number] >= settings.get("n_condition", 1):
            assert others == others[:1] * 5
    assert any(in_front[0])


@pytest.mark.parametrize("name", PREPENDING)
@pytest.mark.parametrize("condition", ["causal", "published"])
def test_only_short_histories_when_asked(name: str, condition: str, built_in_store: Split) -> None:
    split, longest = built_in_store, 9
    settings = {"max_history": longest, "condition": condition}
    chosen = briefly("augmenter", name, **settings).fit(split.train)
    longer = chosen.augment(split.train)
    added = longer.lengths - split.train.lengths
    assert (added[split.train.lengths > longest] == 0).all()
    assert (added[split.train.lengths <= longest] == chosen.config.n_items).all()
    # at inference too it is the length in training that counts
    shown = chosen.augment_for_inference(split.test.histories)
    added = shown.lengths - split.test.histories.lengths
    was_long = split.train.lengths[split.test.histories.users] > longest
    assert ((added == 0) == was_long).all()
    grown = ~was_long & (split.test.histories.lengths > longest)
    assert grown.any()


@pytest.mark.parametrize("name", PREPENDING)
def test_what_items_are_generated_from_is_no_target_behind_them(name: str, split: Split) -> None:
    require_context(fitted("augmenter", name, split), split, 1)


@pytest.mark.parametrize(
    ("settings", "n_context"), [({"n_condition": 3}, 3), ({"condition": "published"}, 0)]
)
def test_as_many_as_asked_are_no_targets(
    settings: dict[str, Any], n_context: int, split: Split
) -> None:
    require_context(made("augmenter", "random", **settings).fit(split.train), split, n_context)


def require_context(augmenter: Augmenter, split: Split, n_context: int) -> None:
    longer = augmenter.augment(split.train)
    context = longer.context_only
    assert (context is None) == (n_context == 0)
    for index in range(len(longer) if n_context else 0):
        where = slice(longer.offsets[index], longer.offsets[index + 1])
        n = int(longer.synthetic[where].sum())
        assert n > 0
        assert np.flatnonzero(context[where]).tolist() == list(range(n, n + n_context))


def test_a_saved_augmenter_adds_the_same(augmenter, mixed, tmp_path: Path) -> None:
    augmenter.save(tmp_path / "augmenter")
    loaded = load_augmenter(tmp_path / "augmenter")
    assert type(loaded) is type(augmenter)
    assert loaded.config == augmenter.config
    assert_same_state(loaded, augmenter)
    assert_same_dataset(loaded.augment(mixed, seed=3), augmenter.augment(mixed, seed=3))


def test_copies_stand_beside_sequences_that_stay_as_they_are(parallel, mixed) -> None:
    before = mixed.items.copy()
    copied = parallel.augment(mixed, seed=3)
    np.testing.assert_array_equal(mixed.items, before)
    assert mixed.copies is None
    for field in ("items", "offsets", "users", "synthetic"):
        np.testing.assert_array_equal(getattr(copied, field), getattr(mixed, field))
    assert copied.catalog is mixed.catalog
    copies = copied.copies
    assert copies.items.dtype == np.int32
    assert copies.items.shape == (len(copies), len(mixed.items))
    assert copies.difficulty.shape == (len(copies), len(mixed))
    assert copies.items.min() >= 1
    assert copies.items.max() <= 20
    assert (copies.items != mixed.items).any(1).all()
    # a history that is only scored is left alone
    assert parallel.augment_for_inference(mixed, seed=3) is mixed


def test_copies_are_by_user_and_seed(parallel, mixed) -> None:
    copied = parallel.augment(mixed, seed=3)
    assert_same_dataset(parallel.augment(mixed, seed=3), copied)
    other = parallel.augment(mixed, seed=4)
    assert other.copies.items.tolist() != copied.copies.items.tolist()
    for some in (np.array([20, 3, 4, 11]), np.array([29])):
        alone = parallel.augment(mixed.select(some), seed=3)
        assert_same_dataset(alone, copied.select(some))


def test_copies_of_no_one(parallel, mixed) -> None:
    nobody = mixed.select(np.zeros(len(mixed), dtype=bool))
    assert parallel.augment(nobody).copies.items.shape[1] == 0
    empty = SequenceDataset.from_lists([[], []], mixed.catalog)
    assert parallel.augment(empty).copies.difficulty.shape[1] == 2


def test_copies_leave_the_callers_random_numbers_alone(parallel, mixed) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = parallel.augment(mixed, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_dataset(parallel.augment(mixed, seed=3), first)


def test_a_saved_augmenter_makes_the_same_copies(parallel, mixed, tmp_path: Path) -> None:
    parallel.save(tmp_path / "augmenter")
    loaded = load_augmenter(tmp_path / "augmenter")
    assert_same_state(loaded, parallel)
    assert_same_dataset(loaded.augment(mixed, seed=3), parallel.augment(mixed, seed=3))


_FITTED: dict[tuple[str, str], Any] = {}


def in_store(kind: str, name: str, store: Split) -> Any:
    """Fitted on the built-in store, each stage for two epochs, once for all tests."""
    key = (f"{kind} in the store", name)
    if key not in _FITTED:
        _FITTED[key] = briefly(kind, name).fit(store.train, runtime=Runtime(seed=1))
    return _FITTED[key]


def briefly(kind: str, name: str, **settings: Any) -> Any:
    return made(kind, name, **few_epochs(kind, name, 2) | settings)


@pytest.mark.parametrize(
    "kind",
    # one that puts items in front and the one that makes copies: the others hand over the same
    [
        pytest.param(kind, marks=() if kind in ("maskdiff", "diff4rec") else pytest.mark.slow)
        for kind in AUGMENTERS
    ],
)
@pytest.mark.parametrize("name", TRAINED)
def test_every_recommender_trains_on_what_every_augmenter_makes(
    name: str, kind: str, built_in_store: Split
) -> None:
    augmenter = in_store("augmenter", kind, built_in_store)
    train = augmenter.augment(built_in_store.train)
    assert train.copies is not None or train.synthetic.any()
    model = briefly("recommender", name).fit(train, runtime=Runtime(seed=1))
    # what was made counts neither as popular ...
    counts = np.bincount(built_in_store.train.items, minlength=train.vocab_size)
    assert model.popularity.tolist() == counts.tolist()
    histories = all_histories(augmenter.augment_for_inference(built_in_store.test.histories))
    with torch.no_grad():
        assert torch.isfinite(model.score(histories)[:, 1:]).all()
    # ... nor is it passed over, but by those for whom there is no context
    plain = in_store("recommender", name, built_in_store).state_dict()
    same = all(torch.equal(plain[key], value) for key, value in model.state_dict().items())
    assert same == (name in WITHOUT_CONTEXT and augmenter.name not in PARALLEL)


@pytest.mark.parametrize("name", TRAINED)
def test_targets_behind_nothing_but_context_are_learned(name: str, split: Split) -> None:
    lists = [[1 + i, 2 + i, 3 + i] for i in range(5)]
    log = SequenceDataset.from_lists(lists, split.train.catalog)
    train = log.prepend(np.full((5, 2), 4, dtype=np.int32), np.arange(5), n_context=2)
    batches = "batch_size" in class_of("recommender", name).Config.model_fields
    settings = {"batch_size": 2} if batches else {}
    model = briefly("recommender", name, **settings).fit(train, runtime=Runtime(seed=1))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_recommender_accepts_what_an_augmenter_adds(augmenter, split: Split) -> None:
    train = augmenter.augment(split.train)
    model = made("recommender", "sasrec").fit(
        train, Queries(augmenter.augment(split.valid.histories), split.valid.targets)
    )
    # generated items count neither as popular nor as seen
    assert model.popularity.tolist() == np.bincount(split.train.items, minlength=21).tolist()
    shown = items_of(model.recommend([[1000, 997]], k=100, augmenter=augmenter))
    assert set(shown) == set(split.train.catalog.item_ids.to_list()) - {1000, 997}
