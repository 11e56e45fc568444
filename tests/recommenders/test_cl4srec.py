"""CL4SRec: two different operators a sequence, NT-Xent written out, data that stays unchanged."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from diffuserec import Runtime, load
from diffuserec.data import SequenceDataset, histories_of
from diffuserec.recommenders import cl4srec
from diffuserec.recommenders.cl4srec import CL4SRec
from diffuserec.training import next_item

from .oracles import (
    BATCH,
    LOG,
    MASK,
    SMALL,
    V,
    assert_fits,
    assert_found_anew,
    assert_refused,
    assert_same,
    assert_unchanged,
    batch_of,
    built,
    clones,
    loss_by_hand,
    nearest_by_hand,
    ragged,
    untrained,
    with_its_loss,
)

ALL = ("crop", "mask", "reorder", "substitute", "insert")
made = partial(untrained, CL4SRec, SMALL)
begun = partial(with_its_loss, CL4SRec, SMALL)


def two_views(model: CL4SRec, items: list[int], n: int) -> list[tuple[list[int], list[int]]]:
    """n pairs of views of one sequence."""
    first, second = model.views(batch_of([items] * n), LOG)
    return [
        (
            first.items[row, : first.lengths[row]].tolist(),
            second.items[row, : second.lengths[row]].tolist(),
        )
        for row in range(n)
    ]


# --- the views ---------------------------------------------------------------------------------

SHOWN = [1, 2, 3, 4, 5]
RATIOS = {"crop": 0.6, "mask": 0.2, "reorder": 0.6, "substitute": 0.2, "insert": 0.4}


def marked(operators: tuple[str, ...]) -> CL4SRec:
    """A model each of whose operators leaves a mark of its own on SHOWN."""
    ratios = {f"{operator}_ratio": RATIOS[operator] for operator in operators}
    return made(max_len=10, operators=operators, **ratios)


def operator_of(view: list[int]) -> str:
    """The operator that made this view of SHOWN, by its mark."""
    if len(view) != 5:
        return "crop" if len(view) == 3 else "insert"
    if MASK in view:
        return "mask"
    return "reorder" if sorted(view) == SHOWN else "substitute"


@pytest.mark.parametrize(
    "operators", [("crop", "mask", "reorder"), ALL, ("reorder", "insert")], ids=str
)
def test_a_sequences_two_operators_differ_and_all_pairs_are_equally_likely(operators) -> None:
    torch.manual_seed(0)
    views = two_views(marked(operators), SHOWN, 3000)
    drawn = [(operator_of(a), operator_of(b)) for a, b in views]
    pairs = list(itertools.permutations(operators, 2))
    assert set(drawn) == set(pairs)
    assert stats.chisquare([drawn.count(pair) for pair in pairs]).pvalue > 1e-3


def test_the_default_operators_are_the_papers() -> None:
    assert CL4SRec().config.operators == ("crop", "mask", "reorder")
    torch.manual_seed(0)
    model = made(mask_ratio=0.2)
    assert {operator_of(a) for a, _ in two_views(model, SHOWN, 200)} == {"crop", "mask", "reorder"}


@pytest.mark.parametrize(
    "operator, ratio",
    [("crop", 0.7), ("mask", 0.3), ("reorder", 0.5), ("substitute", 0.2), ("insert", 0.4)],
)
def test_every_operator_has_a_ratio_of_its_own(operator, ratio) -> None:
    items = [*range(1, 11)]
    model = made(max_len=20, operators=(operator,), **{f"{operator}_ratio": ratio})
    torch.manual_seed(1)
    views = [view for pair in two_views(model, items, 300) for view in pair]
    if operator == "crop":
        assert {tuple(view) for view in views} == {tuple(items[n : n + 7]) for n in range(4)}
    elif operator == "mask":
        assert {sum(item == MASK for item in view) for view in views} == {3}
        assert {view.count(n) for n in range(1, 11) for view in views} == {0, 1}
    elif operator == "reorder":
        spans = set()
        for view in views:
            assert sorted(view) == items
            moved = [n for n in range(10) if view[n] != items[n]]
            spans.add(moved[-1] - moved[0] + 1 if moved else 0)
        assert max(spans) == 5
    elif operator == "substitute":
        assert {sum(a != b for a, b in zip(view, items, strict=True)) for view in views} == {2}
    else:
        assert {len(view) for view in views} == {14}


@pytest.mark.parametrize("operator", ["substitute", "insert"])
def test_substituted_and_inserted_items_are_of_the_ten_most_similar(operator) -> None:
    model = made(operators=(operator,), **{f"{operator}_ratio": 0.3})
    similar = set(nearest_by_hand(model.table.embeddings(), 4, 10))
    assert len(similar) == 10 < V - 2
    torch.manual_seed(2)
    drawn = [view[0] for pair in two_views(model, [4], 200) for view in pair]
    assert set(drawn) == similar


def test_similar_items_are_found_anew_before_each_epoch(monkeypatch, random_log) -> None:
    seen = []
    substitute = cl4srec.substitute

    def watched(items, lengths, ratio, similar):
        seen.append((model.table.embeddings().detach().clone(), similar.clone()))
        return substitute(items, lengths, ratio, similar)

    monkeypatch.setattr(cl4srec, "substitute", watched)
    settings = {"epochs": 3, "learning_rate": 0.05, "operators": ("substitute", "insert")}
    model = CL4SRec(**SMALL | settings)
    model.fit(random_log)
    assert_found_anew(seen, 10)


def test_a_small_catalog_has_fewer_similar_items() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3], [3, 2, 1, 2]])
    model = CL4SRec(**SMALL | {"operators": ("substitute", "insert")}).fit(log)
    assert model.similar.shape == (4, 2)
    assert [set(similar) for similar in model.similar.tolist()] == [{0}, {2, 3}, {1, 3}, {1, 2}]


def test_no_view_is_longer_than_the_encoder_sees() -> None:
    model = made(operators=("insert",), max_len=8, insert_ratio=1.0)
    torch.manual_seed(3)
    for view in itertools.chain(*two_views(model, [*range(1, 9)], 50)):
        # one before each item: the newest four pairs are left
        assert len(view) == 8
        assert view[1::2] == [5, 6, 7, 8]


def test_a_masked_item_becomes_a_token_of_its_own_or_padding() -> None:
    for mask_with, masked in (("token", MASK), ("padding", 0)):
        model = made(operators=("mask",), mask_with=mask_with, mask_ratio=0.4)
        torch.manual_seed(4)
        for pair in two_views(model, SHOWN, 50):
            for view in pair:
                assert [item for item in view if item not in SHOWN] == [masked] * 2


def test_views_leave_the_batch_unchanged() -> None:
    model = made(operators=ALL)
    before = clones(BATCH)
    first, second = model.views(BATCH, LOG)
    for view in (first, second):
        view.items.fill_(7)
    assert_unchanged(BATCH, before)


def test_no_batch_is_changed_in_training(monkeypatch, random_log) -> None:
    kept = []
    training_batches = next_item.training_batches

    def watched(*words):
        for batch in training_batches(*words):
            kept.append((batch, clones(batch)))
            yield batch

    monkeypatch.setattr(next_item, "training_batches", watched)
    items = random_log.items.copy()
    CL4SRec(**SMALL | {"epochs": 2, "operators": ALL}).fit(random_log)
    assert len(kept) > 4
    for batch, before in kept:
        assert_unchanged(batch, before)
    np.testing.assert_array_equal(random_log.items, items)


# --- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"operators": ("mask",), "mask_ratio": 0.1},
        {"operators": ("crop",), "crop_ratio": 1.0, "temperature": 0.3},
        {"operators": ("mask", "reorder"), "mask_ratio": 0.1, "reorder_ratio": 0.1},
    ],
    ids=str,
)
def test_the_loss_of_views_that_change_nothing_written_out(monkeypatch, settings) -> None:
    model, loss = begun(monkeypatch, **settings)
    same = [[3, 1, 4, 1, 5, 9], [2, 6, 5], [8]]
    assert_same(model, loss(BATCH), loss_by_hand(model, BATCH, same, same))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 2.5, "contrast_weight": 3.0},
        {"similarity": "cosine", "temperature": 0.1},
        {"encoder": "gru", "n_layers": 2, "encoder_settings": {"hidden_dim": 5}},
    ],
    ids=str,
)
def test_the_loss_of_shorter_and_longer_views_written_out(monkeypatch, settings) -> None:
    model, loss = begun(monkeypatch, **settings)
    first = [[4, 1], [2, MASK, 5], [8]]
    second = [[3, 4, 1, 1, 5, 7, 9, 2], [6, 2, 5], [11, 8]]
    views = ragged(first), ragged(second)
    monkeypatch.setattr(cl4srec, "sample_two_views", lambda items, lengths, operators: views)
    assert_same(model, loss(BATCH), loss_by_hand(model, BATCH, first, second))


def test_similarity_is_the_product_unless_asked_otherwise() -> None:
    assert CL4SRec().config.similarity == "dot"


# --- the mask token ----------------------------------------------------------------------------


@pytest.mark.parametrize("mask_with, learned", [("token", True), ("padding", False)])
def test_the_mask_token_is_learned_and_never_recommended(
    random_log, tmp_path, mask_with, learned
) -> None:
    model = built(CL4SRec(**SMALL | {"mask_with": mask_with}), random_log, seed=1)
    before = model.table.vectors.weight.detach().clone()
    assert len(before) == random_log.vocab_size + 1
    model.fit(random_log, runtime=Runtime(seed=1))
    after = model.table.vectors.weight.detach()
    assert bool((before[-1] != after[-1]).any()) == learned
    assert not torch.equal(before[:-1], after[:-1])
    assert not after[0].any()
    shown = histories_of(random_log, np.arange(5))
    with torch.no_grad():
        scores = model.score(shown)
        assert scores.shape == (5, random_log.vocab_size)
        model.save(tmp_path / "model")
        assert torch.equal(load(tmp_path / "model").score(shown), scores)


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "softmax"},
        {"loss": "bce"},
        {"loss": "gbce"},
        {"loss": "sampled_softmax"},
        {"examples": "windows", "max_len": 4},
        {"examples": "prefixes"},
        {"operators": ALL, "mask_with": "padding", "dropout": 0.3},
        {"operators": ("insert",), "insert_ratio": 1.0, "max_len": 2},
        {"operators": ("crop", "crop")},
        {"encoder": "caser", "n_layers": 2, "operators": ALL},
    ],
    ids=str,
)
def test_every_loss_example_and_option_fits(random_log, settings) -> None:
    assert_fits(CL4SRec, SMALL | {"batch_size": 64} | settings, random_log)


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(CL4SRec, SMALL | {"operators": ALL}, random_log, Runtime(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"crop_ratio": 0}, "crop_ratio: .*greater than 0, got 0"),
        ({"mask_ratio": 1.5}, "mask_ratio: .*less than or equal to 1, got 1.5"),
        ({"reorder_ratio": -0.1}, "reorder_ratio: .*greater than 0, got -0.1"),
        ({"substitute_ratio": 2}, "substitute_ratio: .*less than or equal to 1, got 2"),
        ({"insert_ratio": 0.0}, "insert_ratio: .*greater than 0, got 0.0"),
        ({"insert_ratio": 0.2}, "insert_ratio = 0.2 has no effect .*'insert' among the operators"),
        (
            {"operators": ("crop",), "mask_with": "padding"},
            "mask_with = 'padding' has no effect .*'mask' among the operators",
        ),
        ({"operators": ()}, r"operators: .*at least 1 item.*got \(\)"),
        ({"operators": ("crop", "drop")}, "operators.1: .*'substitute' or 'insert', got 'drop'"),
        ({"mask_with": "zero"}, "mask_with: .*'token' or 'padding', got 'zero'"),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"contrast_weight": -1}, "contrast_weight: .*greater than or equal to 0, got -1"),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be contrasted with"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(CL4SRec, SMALL | settings, message)
