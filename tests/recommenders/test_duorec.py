"""DuoRec: views with the same next item by brute force, and its loss written out."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from diffuserec import settings
from diffuserec.models.base import Run
from diffuserec.data import Batch, SequenceDataset, training_batches
from diffuserec.recommenders import duorec
from diffuserec.recommenders.duorec import DuoRec
from diffuserec.models.views import SameTarget

from .oracles import (
    SMALL,
    assert_fits,
    assert_refused,
    assert_same,
    assert_unchanged,
    copies,
    loss_by_hand,
    rows_of,
    untrained,
    with_its_loss,
)

made = partial(untrained, DuoRec, SMALL)
begun = partial(with_its_loss, DuoRec, SMALL)


def listed(items, lengths) -> list[list[int]]:
    """Rows without their padding, which is nothing but zeros."""
    found = []
    for row, length in zip(items.tolist(), lengths.tolist(), strict=True):
        assert not any(row[length:])
        found.append(row[:length])
    return found


# --- the views by brute force ------------------------------------------------------------------


def training_prefixes(log: SequenceDataset, max_len: int) -> dict[int, tuple[int, list[int]]]:
    """Of each place that is a target: the item there and the newest max_len items before it."""
    found, place = {}, 0
    for row in range(len(log)):
        before: list[int] = []
        for item in log[row].tolist():
            if before and not log.synthetic[place]:
                found[place] = item, before[-max_len:]
            before.append(item)
            place += 1
    return found


def with_synthetic(log: SequenceDataset) -> SequenceDataset:
    """Three generated items in front of every other user's."""
    rows = np.arange(0, len(log), 2)
    drawn = np.random.default_rng(0).integers(1, log.vocab_size, (len(rows), 3), dtype=np.int32)
    return log.prepend(drawn, rows)


def some_log() -> SequenceDataset:
    """30 users of 1 to 20 items out of 60: some targets stand alone, some many times."""
    generator = np.random.default_rng(4)
    popular = generator.zipf(1.3, 5000)
    popular = popular[popular <= 60].tolist()
    lengths = generator.integers(1, 21, 30).tolist()
    return SequenceDataset.from_lists([[popular.pop() for _ in range(n)] for n in lengths])


@pytest.mark.parametrize("generated", [False, True])
@pytest.mark.parametrize("max_len", [3, 50])
@pytest.mark.parametrize("rows", ["users", "prefixes", "windows"])
def test_the_second_view_is_another_training_history_with_the_same_next_item(
    monkeypatch, rows, max_len, generated
) -> None:
    log = with_synthetic(some_log()) if generated else some_log()
    prefixes = training_prefixes(log, max_len)
    asked = []
    sample = SameTarget.sample

    def watched(self, places, items):
        view, chosen = sample(self, places, items)
        asked.append((places.tolist(), chosen.tolist()))
        return view, chosen

    monkeypatch.setattr(SameTarget, "sample", watched)
    model = made(log, max_len=max_len, rows=rows)
    torch.manual_seed(0)
    n_alone, used = 0, Counter()
    for epoch in range(3):
        for batch in training_batches(log, 8, max_len, 0, epoch, rows):
            first, second = model.views(batch, log)
            places, chosen = asked.pop()
            before, after = listed(first.items, first.lengths), listed(second.items, second.lengths)
            for row in range(len(places)):
                # the first view is what this row shows before one of its targets ...
                n = len(before[row])
                target = int(batch.targets[row, n - 1])
                assert target > 0
                assert before[row] == batch.items[row, :n].tolist()
                # ... which stands in the log so many places before the row's newest
                place = int(batch.places[row]) - (int(batch.lengths[row]) - n)
                assert places[row] == place
                assert prefixes[place][0] == target
                assert prefixes[place][1][-n:] == before[row]
                # the second is what comes before the same item elsewhere
                same = [other for other in prefixes if prefixes[other][0] == target]
                assert chosen[row] in same
                assert after[row] == prefixes[chosen[row]][1]
                assert (chosen[row] == place) == (same == [place])
                n_alone += same == [place]
                used[chosen[row]] += 1
    assert n_alone > 0
    assert len(used) > 30


@pytest.mark.parametrize("rows", ["users", "windows"])
def test_the_first_view_ends_before_any_target_of_the_row(rows) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    model = made(log, max_len=4, rows=rows)
    (batch,) = list(training_batches(log, 64, 4, 0, 0, "users"))
    torch.manual_seed(1)
    many = Batch(*(tensor.repeat_interleave(2000, 0) for tensor in batch.tensors.values()))
    first, _ = model.views(many, log)
    counts = np.bincount(first.lengths.numpy(), minlength=5)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


@pytest.mark.parametrize("rows", ["users", "prefixes", "windows"])
def test_two_dropout_views_are_the_same_items(rows) -> None:
    log = some_log()
    model = made(log, positive="dropout", rows=rows)
    for batch in training_batches(log, 8, 8, 0, 0, rows):
        first, second = model.views(batch, log)
        assert first.name != second.name
        assert torch.equal(first.items, second.items)
        assert torch.equal(first.lengths, second.lengths)


@pytest.mark.parametrize("positive", ["same_target", "dropout"])
def test_views_leave_the_batch_as_it_was(positive) -> None:
    log = some_log()
    model = made(log, positive=positive)
    for batch in training_batches(log, 8, 8, 0, 0):
        before = copies(batch)
        for view in model.views(batch, log):
            view.items.fill_(7)
        assert_unchanged(batch, before)


# --- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.4}, {"similarity": "cosine", "temperature": 0.1}], ids=str
)
def test_the_loss_of_rows_with_one_target_written_out(monkeypatch, settings) -> None:
    # every next item is that of exactly two histories: either one's second view is the other
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 5], [6, 3], [8, 5], [7, 4], [10, 2]])
    other = {(1,): [10], (1, 2): [6], (1, 2, 3): [7], (1, 2, 3, 4): [8]}
    other |= {tuple(b): list(a) for a, b in other.items()}
    model, loss = begun(monkeypatch, log, rows="prefixes", **settings)
    (batch,) = training_batches(log, 64, 8, 0, 0, "prefixes")
    own = listed(batch.items, batch.lengths)
    assert len(own) == 8
    assert_same(model, loss(batch), loss_by_hand(model, batch, own, [other[tuple(o)] for o in own]))


@pytest.mark.parametrize("positive", ["same_target", "dropout"])
def test_the_loss_of_rows_with_many_targets_written_out(monkeypatch, positive) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4], [6, 5, 4, 3], [9, 8, 7, 11, 10], [12, 13]])
    model, loss = begun(monkeypatch, log, positive=positive)
    (batch,) = training_batches(log, 64, 8, 0, 0)
    order = [int(user) for user in batch.users]
    # the second target of each row but the last row's, which has one
    first = {0: [1, 2], 1: [6, 5], 2: [9, 8], 3: [12]}
    second = {0: [6, 5, 4], 1: [1, 2, 3], 2: [9, 8], 3: [12]}  # 7 and 13 are nobody else's
    chosen = [first[user] for user in order]
    prefix = rows_of(chosen)
    monkeypatch.setattr(duorec, "random_prefix", lambda items, targets: (prefix, targets[:, 0]))
    views = first if positive == "dropout" else second
    expected = loss_by_hand(model, batch, chosen, [views[user] for user in order])
    assert_same(model, loss(batch), expected)


def test_similarity_is_the_product_unless_asked_otherwise() -> None:
    assert DuoRec().config.similarity == "dot"


def test_others_with_the_same_next_item_are_negatives_as_in_the_paper(monkeypatch) -> None:
    log = SequenceDataset.from_lists([[1, 5], [2, 5], [3, 5]])
    model, loss = begun(monkeypatch, log, positive="dropout")
    (batch,) = training_batches(log, 64, 8, 0, 0)
    own = listed(batch.items, batch.lengths)
    assert_same(model, loss(batch), loss_by_hand(model, batch, own, own))


@pytest.mark.parametrize("positive", ["same_target", "dropout"])
def test_dropout_differs_in_every_pass(monkeypatch, positive) -> None:
    # nobody shares a next item: both views are the history itself
    log = SequenceDataset.from_lists([[1, 2], [3, 4], [5, 6, 7]])
    model, loss = begun(monkeypatch, log, positive=positive, rows="prefixes", dropout=0.5)
    (batch,) = training_batches(log, 64, 8, 0, 0, "prefixes")
    seen = []
    monkeypatch.setattr(
        settings, "info_nce", lambda *views, **_: seen.append(views) or views[0].sum()
    )
    model.eval()
    loss(batch)
    model.train()
    loss(batch)
    (one, other), (dropped, dropped_again) = seen
    torch.testing.assert_close(one, other)
    for row in range(len(one)):
        assert not torch.allclose(dropped[row], dropped_again[row])
        assert not torch.allclose(dropped[row], one[row])


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "softmax"},
        {"loss": "bce"},
        {"loss": "gbce"},
        {"loss": "sampled_softmax"},
        {"rows": "windows", "max_len": 4},
        {"rows": "prefixes"},
        {"positive": "dropout", "dropout": 0.3},
        {"max_len": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("generated", [False, True])
def test_every_loss_row_and_option_fits(random_log, settings, generated) -> None:
    log = with_synthetic(random_log) if generated else random_log
    assert_fits(DuoRec, SMALL | {"batch_size": 64} | settings, log)


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(DuoRec, SMALL, random_log, Run(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"positive": "both"}, "positive: .*'same_target' or 'dropout', got 'both'"),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"contrast_weight": -1}, "contrast_weight: .*greater than or equal to 0, got -1"),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be told apart from"),
        ({"rows": "last"}, "rows: .*'users', 'windows' or 'prefixes', got 'last'"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(DuoRec, SMALL | settings, message)
