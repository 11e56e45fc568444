"""DuoRec: views with the same next item by brute force, and its loss written out."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from diffuserec import Runtime
from diffuserec.data import Batch, SequenceDataset, training_batches
from diffuserec.models import settings
from diffuserec.models.views import SameTarget
from diffuserec.recommenders import duorec
from diffuserec.recommenders.duorec import DuoRec

from .oracles import (
    SMALL,
    assert_fits,
    assert_refused,
    assert_same,
    assert_unchanged,
    clones,
    loss_by_hand,
    ragged,
    untrained,
    with_its_loss,
)

made = partial(untrained, DuoRec, SMALL)
begun = partial(with_its_loss, DuoRec, SMALL)


def listed(items, lengths) -> list[list[int]]:
    """Sequences without their padding, which is nothing but zeros."""
    found = []
    for sequence, length in zip(items.tolist(), lengths.tolist(), strict=True):
        assert not any(sequence[length:])
        found.append(sequence[:length])
    return found


# --- the views by brute force ------------------------------------------------------------------


def training_prefixes(log: SequenceDataset, max_len: int) -> dict[int, tuple[int, list[int]]]:
    """For each position of a target: the item there and the newest max_len items before it."""
    found = {}
    synthetic = log.log.synthetic
    for start, end in zip(log.starts.tolist(), log.ends.tolist(), strict=True):
        for position in range(start + 1, end):
            if synthetic is None or not synthetic[position]:
                before = log.log.items[max(start, position - max_len) : position].tolist()
                found[position] = int(log.log.items[position]), before
    return found


def with_synthetic(log: SequenceDataset) -> SequenceDataset:
    """The log with three generated items in front of every other user's."""
    index = np.arange(0, len(log), 2)
    drawn = np.random.default_rng(0).integers(1, log.vocab_size, (len(index), 3), dtype=np.int32)
    return log.prepend(drawn, index)


def without_newest(log: SequenceDataset) -> SequenceDataset:
    """The log without the newest items of long sequences: a view with gaps."""
    return log.view(log.starts, np.where(log.lengths > 4, log.ends - 2, log.ends))


def some_log() -> SequenceDataset:
    """30 users of 1 to 20 items out of 60: some targets stand alone, some many times."""
    generator = np.random.default_rng(4)
    popular = generator.zipf(1.3, 5000)
    popular = popular[popular <= 60].tolist()
    lengths = generator.integers(1, 21, 30).tolist()
    return SequenceDataset.from_lists([[popular.pop() for _ in range(n)] for n in lengths])


@pytest.mark.parametrize(
    "changed", [lambda log: log, with_synthetic, without_newest], ids=["whole", "pseudo", "gaps"]
)
@pytest.mark.parametrize("max_len", [3, 50])
@pytest.mark.parametrize("examples", ["per_user", "prefixes", "windows"])
def test_the_second_view_is_another_training_history_with_the_same_next_item(
    monkeypatch, examples, max_len, changed
) -> None:
    log = changed(some_log())
    prefixes = training_prefixes(log, max_len)
    asked = []
    sample = SameTarget.sample

    def watched(self, positions, items):
        view, chosen = sample(self, positions, items)
        asked.append((positions.tolist(), chosen.tolist()))
        return view, chosen

    monkeypatch.setattr(SameTarget, "sample", watched)
    model = made(log, max_len=max_len, examples=examples)
    torch.manual_seed(0)
    n_alone, used = 0, Counter()
    for epoch in range(3):
        for batch in training_batches(log, 8, max_len, 0, epoch, examples):
            first, second = model.views(batch, log)
            positions, chosen = asked.pop()
            before, after = listed(first.items, first.lengths), listed(second.items, second.lengths)
            for index, position in enumerate(positions):
                # the first view is the example's items before one of its targets ...
                n = len(before[index])
                target = int(batch.targets[index, n - 1])
                assert target > 0
                assert before[index] == batch.items[index, :n].tolist()
                # ... which is in the log so many positions before the example's last one
                last = int(batch.last_target_index[index])
                assert position == last - (int(batch.lengths[index]) - n)
                assert prefixes[position][0] == target
                assert prefixes[position][1][-n:] == before[index]
                # the second is the items before the same item elsewhere
                same = [other for other in prefixes if prefixes[other][0] == target]
                assert chosen[index] in same
                assert after[index] == prefixes[chosen[index]][1]
                assert (chosen[index] == position) == (same == [position])
                n_alone += same == [position]
                used[chosen[index]] += 1
    assert n_alone > 0
    assert len(used) > 30


@pytest.mark.parametrize("examples", ["per_user", "windows"])
def test_the_first_view_ends_before_any_target_of_the_example(examples) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    model = made(log, max_len=4, examples=examples)
    (batch,) = list(training_batches(log, 64, 4, 0, 0, "per_user"))
    torch.manual_seed(1)
    many = Batch(*(tensor.repeat_interleave(2000, 0) for tensor in batch.tensors.values()))
    first, _ = model.views(many, log)
    counts = np.bincount(first.lengths.numpy(), minlength=5)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


@pytest.mark.parametrize("examples", ["per_user", "prefixes", "windows"])
def test_two_dropout_views_are_the_same_items(examples) -> None:
    log = some_log()
    model = made(log, positive="dropout", examples=examples)
    for batch in training_batches(log, 8, 8, 0, 0, examples):
        first, second = model.views(batch, log)
        assert first.name != second.name
        assert torch.equal(first.items, second.items)
        assert torch.equal(first.lengths, second.lengths)


@pytest.mark.parametrize("positive", ["same_target", "dropout"])
def test_views_leave_the_batch_unchanged(positive) -> None:
    log = some_log()
    model = made(log, positive=positive)
    for batch in training_batches(log, 8, 8, 0, 0):
        before = clones(batch)
        for view in model.views(batch, log):
            view.items.fill_(7)
        assert_unchanged(batch, before)


# --- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.4},
        {"similarity": "cosine", "temperature": 0.1},
        {"encoder": "gru", "n_layers": 2, "encoder_settings": {"hidden_dim": 5}},
    ],
    ids=str,
)
def test_the_loss_of_examples_with_one_target_written_out(monkeypatch, settings) -> None:
    # every next item is that of exactly two histories: either one's second view is the other
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 5], [6, 3], [8, 5], [7, 4], [10, 2]])
    other = {(1,): [10], (1, 2): [6], (1, 2, 3): [7], (1, 2, 3, 4): [8]}
    other |= {tuple(b): list(a) for a, b in other.items()}
    model, loss = begun(monkeypatch, log, examples="prefixes", **settings)
    (batch,) = training_batches(log, 64, 8, 0, 0, "prefixes")
    own = listed(batch.items, batch.lengths)
    assert len(own) == 8
    assert_same(model, loss(batch), loss_by_hand(model, batch, own, [other[tuple(o)] for o in own]))


@pytest.mark.parametrize("positive", ["same_target", "dropout"])
def test_the_loss_of_examples_with_many_targets_written_out(monkeypatch, positive) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4], [6, 5, 4, 3], [9, 8, 7, 11, 10], [12, 13]])
    model, loss = begun(monkeypatch, log, positive=positive)
    (batch,) = training_batches(log, 64, 8, 0, 0)
    order = [int(user) for user in batch.users]
    # the second target of each user but the last one, who has one
    first = {0: [1, 2], 1: [6, 5], 2: [9, 8], 3: [12]}
    second = {0: [6, 5, 4], 1: [1, 2, 3], 2: [9, 8], 3: [12]}  # no other user has 7 or 13
    chosen = [first[user] for user in order]
    prefix = ragged(chosen)
    following = batch.targets.gather(1, prefix[1][:, None] - 1)[:, 0]
    monkeypatch.setattr(duorec, "random_prefix", lambda items, targets: (prefix, following))
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
    model, loss = begun(monkeypatch, log, positive=positive, examples="prefixes", dropout=0.5)
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
    for sequence in range(len(one)):
        assert not torch.allclose(dropped[sequence], dropped_again[sequence])
        assert not torch.allclose(dropped[sequence], one[sequence])


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
        {"positive": "dropout", "dropout": 0.3},
        {"max_len": 1},
        {"encoder": "caser", "n_layers": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("generated", [False, True])
def test_every_loss_example_and_option_fits(random_log, settings, generated) -> None:
    log = with_synthetic(random_log) if generated else random_log
    assert_fits(DuoRec, SMALL | {"batch_size": 64} | settings, log)


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(DuoRec, SMALL, random_log, Runtime(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"positive": "both"}, "positive: .*'same_target' or 'dropout', got 'both'"),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"contrast_weight": -1}, "contrast_weight: .*greater than or equal to 0, got -1"),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be contrasted with"),
        ({"examples": "last"}, "examples: .*'newest_prefixes' or 'whole_prefixes', got 'last'"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(DuoRec, SMALL | settings, message)
