"""MaskDiffRec in worlds whose next items, and their probabilities, are known."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import diffuserec as dr
from diffuserec.data import SequenceDataset, histories_of
from diffuserec.models.masked_items import Pieces, next_items
from diffuserec.training.loop import train

from ..augmenters.test_maskdiff import QUICK as OF_MASKDIFF

QUICK = OF_MASKDIFF | {"epochs": 12, "patience": 12}


@pytest.mark.parametrize("window", [0, 3])
def test_the_next_step_of_a_walk_is_first(window: int) -> None:
    generator = np.random.default_rng(0)
    starts, lengths = generator.integers(0, 20, 300), generator.integers(5, 10, 300)
    walks = [[int(s + i) % 20 + 1 for i in range(n)] for s, n in zip(starts, lengths, strict=True)]
    split = dr.leave_one_out(SequenceDataset.from_lists(walks))
    # without validation, which hides seen items: the newest one may still stand above the next
    model = dr.MaskDiffRec(window=window, **QUICK).fit(split.train)
    assert dr.evaluate(model, split.test, filter_seen=False).metrics["HR@5"] > 0.95
    # longer histories than the model sees, and batches of several lengths
    long = [list(range(1, 21)), [7], [3, 4, 5]]
    found = model.recommend(long, k=1, filter_seen=False)
    assert found["item_id"].to_list() == [1, 8, 6]


def test_probabilities_are_those_of_the_world() -> None:
    # after 1 comes 2 with chance 0.75, else 3; after 4 always 5 or 6, evenly
    generator = np.random.default_rng(4)
    lists = []
    for _ in range(1000):
        if generator.random() < 0.5:
            lists.append([1, 2 if generator.random() < 0.75 else 3])
        else:
            lists.append([4, int(generator.integers(5, 7))])
    log = SequenceDataset.from_lists(lists)
    model = dr.MaskDiffRec(**(QUICK | {"epochs": 8})).fit(log)
    asked = SequenceDataset.from_lists([[1], [4]], log.catalog)
    p = model.score(histories_of(asked, np.arange(2))).softmax(1).detach().numpy()
    counts = np.array([np.mean([x[1] == 2 for x in lists if x[0] == 1])])
    assert p[0, 2] == pytest.approx(counts[0], abs=0.05)
    assert p[0, 3] == pytest.approx(1 - counts[0], abs=0.05)
    assert p[1, [5, 6]] == pytest.approx([0.5, 0.5], abs=0.05)


def test_examples_end_anywhere_and_only_their_newest_items_are_masked() -> None:
    log = SequenceDataset.from_lists([list(range(1, 9)), [1, 2], list(range(1, 31))])
    generator = np.random.default_rng(1)
    newest: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for _ in range(200):
        pieces = Pieces.endings(log, 6, generator, 3)
        assert pieces.group.tolist() == [0, 0, 0, 1, *[2] * 10]  # 7, 1 and 29 next items, by three
        for number, items, region in zip(pieces.group, *pieces.cut(), strict=True):
            length = int((items > 0).sum())
            shown = items[:length]
            assert length <= 6
            assert (np.diff(shown) == 1).all()  # a piece without gaps
            places = np.flatnonzero(region)
            assert 1 <= len(places) <= min(3, length - 1)
            assert places.tolist() == list(range(length - len(places), length))
            newest[int(number)].add(int(shown[-1]))
    assert newest == {0: set(range(2, 9)), 1: {2}, 2: set(range(2, 31))}


def test_what_was_generated_is_seen_and_never_a_target() -> None:
    generated = np.array([True, True, False, False, False, True, False, False])
    log = SequenceDataset.from_offsets(
        np.arange(1, 9, dtype=np.int32),
        np.array([0, 5, 8]),
        SequenceDataset.from_lists([[8]]).catalog,
        synthetic=generated,
    )
    assert next_items(log).tolist() == [False, False, True, True, True, False, True, True]
    generator = np.random.default_rng(2)
    for _ in range(100):
        pieces = Pieces.endings(log, 8, generator, 4)
        items, region = pieces.cut()
        masked = items[region]
        assert len(masked)
        assert (pieces.n_maskable() == region.sum(1)).all()
        assert not set(masked.tolist()) & {1, 2, 6}


def test_an_answer_does_not_depend_on_what_stands_at_the_mask() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 1]])
    model = dr.MaskDiffRec(**(QUICK | {"epochs": 1})).fit(log)
    items = torch.tensor([[1, 2, 3], [1, 2, 5]])
    masked = torch.tensor([[False, False, True]] * 2)
    found = model.logits(items, torch.tensor([3, 3]), masked)
    torch.testing.assert_close(found[0], found[1])


def test_the_examples_of_an_epoch_take_memory_by_users_and_not_by_what_they_show() -> None:
    log = SequenceDataset.from_lists([np.tile(np.arange(1, 51), 4).tolist()] * 100)
    generator = np.random.default_rng(0)
    tracemalloc.start()
    pieces = Pieces.endings(log, 200, generator, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    items, _ = pieces.cut()
    assert items.nbytes > 400 * 100 * 200  # all of them at once
    assert peak < 60 * 100 * 200


def test_copies_of_a_user_are_left_out_of_the_counts_with_their_original() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3]] * 7)
    both = log.joined(log)
    pieces = Pieces.endings(both, 4, np.random.default_rng(0), 1)
    assert pieces.group.tolist() == [*range(7)] * 2


def test_an_epoch_has_a_step_for_every_batch_of_its_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []

    def told_steps(*given: Any, n_batches: int, **options: Any) -> Any:
        told.append(n_batches)
        return train(*given, n_batches=n_batches, **options)

    monkeypatch.setattr("diffuserec.training.masks.train", told_steps)
    log = SequenceDataset.from_lists([list(range(1, 23))] * 8)  # 21 next items, 7 examples each
    settings = QUICK | {"epochs": 1, "max_len": 8, "batch_size": 8}
    steps: list[object] = []
    hook = register_optimizer_step_post_hook(lambda *step: steps.append(step))
    try:
        dr.MaskDiffRec(**settings).fit(log)
    finally:
        hook.remove()
    assert (len(steps), told) == (7, [7])
