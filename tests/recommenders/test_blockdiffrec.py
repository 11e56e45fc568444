"""BlockDiffRec: its blocks and masks, its loss written out, and a world it must learn."""

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from diffuserec import BlockDiffRec, Runtime, evaluate, leave_one_out
from diffuserec.data import Histories, SequenceDataset, histories_of
from diffuserec.recommenders.blockdiffrec import draw_blocks

from ..models.encoders.by_hand import with_a_block
from .oracles import BATCH, GAP, LOG, PSEUDO, D, assert_refused, assert_same, built, with_its_loss

# other items are learned in the places of some, the last one of a sequence among them
SOFT = replace(
    BATCH,
    targets=torch.tensor([[1, 7, 1, 5, 9, 8], [6, 5, 2, 0, 0, 0], [7, 0, 0, 0, 0, 0]]),
    last_item=torch.tensor([2, 3, 7]),
)
SETTINGS = {"dim": D, "max_len": 8, "n_layers": 2, "n_heads": 2, "dropout": 0.0}
begun = partial(with_its_loss, BlockDiffRec, SETTINGS)


def test_blocks_lie_one_behind_the_other_and_are_masked_as_the_bound_asks() -> None:
    items = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 1], [8, 9, 3, 4, 0, 0, 0, 0]])
    learned = (items[:, 1:] > 0) & (items[:, 1:] != 4)
    torch.manual_seed(0)
    masks: dict[int, Counter[tuple[bool, ...]]] = {n: Counter() for n in (1, 2, 3)}
    for _ in range(3000):
        found = draw_blocks(items, learned, 3)
        assert not found.masked[~learned].any()
        assert found.n_before[1].tolist()[3:] == [0] * 4
        for row, length in ((0, 7), (1, 3)):
            starts = found.n_before[row, :length].tolist()
            assert starts[0] == 1
            for at, start in enumerate(starts):
                assert start == at + 1 or start == starts[at - 1]
                inside = [n for n in range(length) if starts[n] == start]
                hidden = [n for n in inside if found.masked[row, n]]
                maskable = [n for n in inside if learned[row, n]]
                assert len(inside) <= 3
                assert bool(hidden) == bool(maskable)
        first = found.n_before[0].tolist().count(1)
        masks[first][tuple(found.masked[0, :first].tolist())] += 1
    # of n, m with chance ∝ 1/m, and every set of so many as likely; the third item is none to learn
    no, yes = False, True
    expected = {
        1: {(yes,): 1.0},
        2: {(yes, no): 1 / 3, (no, yes): 1 / 3, (yes, yes): 1 / 3},
        3: {(yes, no, no): 1 / 3, (no, yes, no): 1 / 3, (yes, yes, no): 1 / 3},
    }
    for n, chances in expected.items():
        assert abs(masks[n].total() - 1000) < 120  # sizes are as likely; 4.6 deviations
        share = {mask: count / masks[n].total() for mask, count in masks[n].items()}
        assert share == pytest.approx(chances, abs=0.07)


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("batch", [BATCH, GAP, PSEUDO, SOFT], ids=["all", "gap", "pseudo", "soft"])
def test_the_loss_written_out(monkeypatch, batch, most: int) -> None:
    model, loss_of = begun(monkeypatch, LOG, next_items=most)
    items = torch.cat([batch.items, torch.zeros(3, 1, dtype=torch.long)], dim=1)
    last = BATCH.targets[torch.arange(3), BATCH.lengths - 1]  # what came, whatever is learned
    items[torch.arange(3), batch.lengths] = last
    torch.manual_seed(3)
    blocks = draw_blocks(items, batch.targets > 0, most)
    torch.manual_seed(3)
    loss = loss_of(batch)
    vectors, encoder = model.table.vectors.weight, model.encoder
    losses = []
    for row, length in enumerate(batch.lengths.tolist()):
        whole = items[row].tolist()
        for start in set(blocks.n_before[row, :length].tolist()):
            places = [n for n in range(length) if blocks.n_before[row, n] == start]
            tokens, hidden = [], []
            for n in places:
                if blocks.masked[row, n]:
                    seen = max([m for m in places if m < n and m not in hidden], default=start - 2)
                    tokens.append(vectors[whole[seen + 1]] + model.gaps.weight[n - seen - 1])
                    hidden.append(n)
                else:
                    tokens.append(vectors[whole[n + 1]])
            history = vectors[torch.tensor(whole[:start])]
            states = with_a_block(encoder, history, torch.stack(tokens))
            for n, state in zip(places, states, strict=True):
                if n in hidden:
                    log_p = torch.log_softmax(vectors[1:] @ state, 0)
                    losses.append(-log_p[batch.targets[row, n] - 1])
    assert_same(model, loss, torch.stack(losses).mean(), allow_unused=True)


@torch.no_grad()
def test_recommending_fills_one_mask_behind_the_newest_items() -> None:
    model = built(BlockDiffRec(**SETTINGS), LOG)
    torch.nn.init.normal_(model.gaps.weight)
    long = [5, 3, 1, 4, 1, 5, 9, 2, 6]  # longer by one than what is seen
    shown = Histories(
        torch.arange(3),
        torch.tensor([long, [2, 7, *[0] * 7], [0] * 9]),
        torch.tensor([9, 2, 0]),
    )
    vectors = model.table.vectors.weight
    assert model.states(shown).isfinite().all()  # of no item, too
    for state, items in zip(model.states(shown)[:2, 0], (long[1:], [2, 7]), strict=True):
        mask = vectors[items[-1]] + model.gaps.weight[0]
        expected = with_a_block(model.encoder, vectors[torch.tensor(items)], mask[None])[0]
        torch.testing.assert_close(state, expected)


QUICK = {"dim": 16, "n_layers": 1, "dropout": 0.0, "learning_rate": 0.02, "batch_size": 16}


def test_the_next_step_of_a_walk_is_first(cycle) -> None:
    split = leave_one_out(cycle)
    model = BlockDiffRec(**QUICK, epochs=12).fit(split.train, runtime=Runtime(seed=1))
    assert evaluate(model, split.test).metrics["HR@5"] > 0.95
    found = model.recommend([list(range(1, 21)), [7], [3, 4, 5]], k=1, filter_seen=False)
    assert found["item_id"].to_list() == [1, 8, 6]


def test_probabilities_are_those_of_the_world() -> None:
    # after 1 comes 2 with chance ¾, else 3, and after either 4; after 5 comes 6 or 7, evenly
    lists = [[1, 2 + (n % 8 > 5), 4] if n % 2 else [5, 6 + (n % 4) // 2] for n in range(800)]
    log = SequenceDataset.from_lists(lists)
    settings = QUICK | {"batch_size": 32, "learning_rate": 0.01}
    model = BlockDiffRec(**settings, epochs=10).fit(log, runtime=Runtime(seed=1))
    asked = SequenceDataset.from_lists([[1], [5], [1, 3]], log.catalog)
    p = model.score(histories_of(asked, np.arange(3))).softmax(1).detach()
    share = sum(items[:2] == [1, 2] for items in lists) / sum(items[0] == 1 for items in lists)
    assert p[0, [2, 3]].tolist() == pytest.approx([share, 1 - share], abs=0.05)
    assert p[1, [6, 7]].tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert p[2, 4] > 0.95


def test_refusals() -> None:
    for encoder in ("gru", "bsarec_causal", "bsarec"):
        assert_refused(BlockDiffRec, {"encoder": encoder}, "must be 'transformer', which reads")
    assert_refused(
        BlockDiffRec, {"examples": "prefixes"}, "must be 'per_user', 'windows' or 'whole"
    )
    assert_refused(BlockDiffRec, {"first_items": True}, "first_items: must be False")
    newest = {"position_encoding": "from_newest"}
    assert_refused(BlockDiffRec, newest, "has no blocks beside a history")
