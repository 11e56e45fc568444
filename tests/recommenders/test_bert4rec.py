"""BERT4Rec: its masks, the loss and the scores written out, and no item is dropped."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec import Runtime
from diffuserec.data import Batch, SequenceDataset, histories_of
from diffuserec.errors import ConfigError
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.recommenders.bert4rec import BERT4Rec

from .oracles import (
    BATCH,
    LOG,
    PSEUDO,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    states_by_hand,
    untrained,
    with_its_loss,
)

L = 6
SETTINGS = {
    "dim": 8,
    "max_len": L,
    "n_layers": 2,
    "n_heads": 2,
    "dropout": 0.0,
    "batch_size": 64,
    "epochs": 1,
}
SEQUENCES = [[3, 1, 4, 1, 5, 9, 2], [2, 6, 5, 3], [8, 7]]
made = partial(untrained, BERT4Rec, SETTINGS)
begun = partial(with_its_loss, BERT4Rec, SETTINGS)


def logits_by_hand(model: BERT4Rec, shown: list[int], position: int) -> torch.Tensor:
    """Logits of items 1 to V - 1 at a position of `shown` that has a mask."""
    state = states_by_hand(model, shown)[position]
    linear, _, norm = model.head
    h = F.gelu(linear.weight @ state + linear.bias)
    h = (h - h.mean()) / torch.sqrt(h.var(unbiased=False) + 1e-5) * norm.weight + norm.bias
    return model.table.vectors.weight[1:V] @ h + model.table.bias[1:]


def masks_by_hand(model: BERT4Rec, masked: list[list[int]]) -> list[tuple[torch.Tensor, int]]:
    """The logits at each mask of SEQUENCES, and the item that was there."""
    found = []
    for sequence, positions in zip(SEQUENCES, masked, strict=True):
        shown = [V if at in positions else item for at, item in enumerate(sequence)]
        found += [(logits_by_hand(model, shown, at), sequence[at]) for at in positions]
    return found


EVERY = {"mask_ratio": 1.0, "last_item_ratio": 0.0}
NEWEST = {"mask_ratio": 1.0, "last_item_ratio": 1.0}


@pytest.mark.parametrize(
    "settings, batch, masked",
    [
        (EVERY, BATCH, [[*range(7)], [*range(4)], [0, 1]]),
        (EVERY, PSEUDO, [[2, 3, 4, 5, 6], [1, 2, 3], [0, 1]]),
        (NEWEST, BATCH, [[6], [3], [1]]),
        (NEWEST, PSEUDO, [[6], [3], [1]]),
    ],
    ids=["all", "all real", "newest", "newest real"],
)
def test_the_loss_and_its_gradients_written_out(monkeypatch, settings, batch, masked) -> None:
    model, loss = begun(monkeypatch, **settings)
    losses = [
        -torch.log_softmax(logits, 0)[item - 1] for logits, item in masks_by_hand(model, masked)
    ]
    assert_same(model, loss(batch), torch.stack(losses).mean())


def test_another_item_is_learned_behind_a_mask(monkeypatch) -> None:
    model, loss = begun(monkeypatch, **EVERY)
    others = BATCH.targets.where(BATCH.targets == 0, V - 1)
    batch = replace(BATCH, targets=others, last_item=BATCH.newest_targets)
    found = masks_by_hand(model, [[*range(7)], [*range(4)], [0, 1]])
    losses = [  # the first item of a sequence is no target
        -torch.log_softmax(logits, 0)[(item if number in (0, 7, 11) else V - 1) - 1]
        for number, (logits, item) in enumerate(found)
    ]
    assert_same(model, loss(batch), torch.stack(losses).mean())


def test_negatives_are_of_the_user_of_each_mask(monkeypatch) -> None:
    model, loss = begun(monkeypatch, loss="bce", **EVERY)
    users = torch.tensor([0] * 7 + [1] * 4 + [2] * 2)
    # a batch draws its masks, and then the negatives, which are none of the user's own
    torch.manual_seed(0)
    assert int(model.masked_positions(BATCH).sum()) == len(users)
    negatives = uniform_negatives(users, 1, V, seen_keys(LOG))[:, 0].tolist()
    assert not {1, 3} & set(negatives[7:11])
    assert not {2, 5, 6} & set(negatives[11:])
    found = masks_by_hand(model, [[*range(7)], [*range(4)], [0, 1]])
    losses = [
        F.softplus(-logits[item - 1]) + F.softplus(logits[other - 1])
        for (logits, item), other in zip(found, negatives, strict=True)
    ]
    torch.manual_seed(0)
    assert_same(model, loss(BATCH), torch.stack(losses).mean())


@torch.no_grad()
def test_a_mask_sees_both_ways() -> None:
    model = made()
    before = logits_by_hand(model, [3, 1, V, 4, 2], 2)
    for other in ([9, 1, V, 4, 2], [3, 1, V, 9, 2], [3, 1, V, 4, 9]):
        assert (logits_by_hand(model, other, 2) - before).abs().max() > 1e-3


# --- masks ----------------------------------------------------------------------------


def masks(model: BERT4Rec, batch: Batch, n: int = 2000) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack([model.masked_positions(batch) for _ in range(n)])


def assert_share(found: torch.Tensor, expected: float) -> None:
    """The mean over draws, within four standard errors."""
    error = 4 * np.sqrt(expected * (1 - expected) / len(found))
    assert (found.double().mean(0) - expected).abs().max() < error


@pytest.mark.parametrize("ratio", [0.05, 0.5])
def test_every_real_item_has_its_chance_and_every_sequence_a_mask(ratio) -> None:
    model = made(mask_ratio=ratio, last_item_ratio=0.0)
    found = masks(model, PSEUDO)
    assert found.any(2).all()
    for row, real in enumerate([slice(2, 7), slice(1, 4), slice(0, 2)]):
        n = real.stop - real.start
        # its own chance; or no item of the sequence was drawn, and it is the one of n
        assert_share(found[:, row, real], ratio + (1 - ratio) ** n / n)
        assert found[:, row].sum() == found[:, row, real].sum()


def test_a_share_of_the_sequences_has_its_newest_item_masked_alone() -> None:
    model = made(mask_ratio=1.0, last_item_ratio=0.3)
    found = masks(model, BATCH)
    alone = found.sum(2) == 1
    assert_share(alone, 0.3)
    assert_share(alone.all(1), 0.3**3)  # each sequence by itself
    for row, newest in enumerate([6, 3, 1]):
        assert found[alone[:, row], row, newest].all()


def test_a_sequence_that_ends_with_a_generated_item_has_others_masked() -> None:
    model = made(last_item_ratio=1.0)
    batch = Batch(
        users=torch.tensor([0]),
        items=torch.tensor([[3, 1, 4]]),
        lengths=torch.tensor([3]),
        targets=torch.tensor([[1, 0, 0]]),
        last_target_index=torch.tensor([3]),
        real=torch.tensor([[True, True, False]]),
    )
    found = masks(model, batch, 50)
    assert found[:, 0, :2].any(1).all()
    assert not found[:, 0, 2:].any()


# --- scores ------------------------------------------------------------------------------------


@torch.no_grad()
def test_scores_are_those_of_an_appended_mask() -> None:
    model = made()
    histories = [[3, 1, 4], [5], [*range(1, L + 1)]]
    queries = SequenceDataset.from_lists(histories, LOG.catalog)
    scores = model.score(histories_of(queries, np.arange(3)))
    for row, history in enumerate(histories):
        expected = logits_by_hand(model, [*history, V], len(history))
        torch.testing.assert_close(scores[row, 1:], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_mask_drops_no_item_of_a_full_history() -> None:
    model = made()
    full = [*range(1, L + 1)]
    others = [full, [9, *full[1:]], [7, *full], [8, *full]]
    scores = model.score(
        histories_of(SequenceDataset.from_lists(others, LOG.catalog), np.arange(4))
    )
    assert (scores[1] - scores[0]).abs().max() > 1e-3
    torch.testing.assert_close(scores[2:], scores[:1].expand(2, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, rates", [({}, [1.0, 0.75, 0.5, 0.25]), ({"rate_decay": "none"}, [1.0] * 4)]
)
def test_the_rate_falls_in_a_straight_line(random_log, monkeypatch, settings, rates) -> None:
    found = []
    step = torch.optim.Adam.step

    def noted(self, *args, **kwargs):
        found.append(self.param_groups[0]["lr"] / 0.01)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    asked = SETTINGS | {"epochs": 4, "batch_size": 1000, "learning_rate": 0.01} | settings
    BERT4Rec(**asked).fit(random_log)
    assert found == pytest.approx(rates)


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize("examples", ["per_user", "windows", "prefixes"])
@pytest.mark.parametrize("loss", ["softmax", "bce", "gbce", "sampled_softmax"])
def test_every_loss_and_example_fits(random_log, loss, examples) -> None:
    settings = SETTINGS | {"loss": loss, "examples": examples, "n_layers": 1}
    model = assert_fits(BERT4Rec, settings, random_log, Runtime(precision="bf16"))
    assert model.table.bias[0] == 0
    assert (model.table.bias[1:] != 0).any()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask_ratio": 0}, "mask_ratio: .*greater than 0, got 0"),
        ({"mask_ratio": 1.1}, "mask_ratio: .*less than or equal to 1, got 1.1"),
        ({"last_item_ratio": -0.1}, "last_item_ratio: .*greater than or equal to 0, got -0.1"),
        ({"last_item_ratio": 2}, "last_item_ratio: .*less than or equal to 1, got 2"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(BERT4Rec, settings, message)


def test_an_encoder_that_reads_forward_only_is_refused(random_log) -> None:
    with pytest.raises(ConfigError, match="'gru' reads forward only") as refusal:
        BERT4Rec(encoder="gru").fit(random_log)
    assert "\n" not in str(refusal.value)
