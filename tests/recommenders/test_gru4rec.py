"""GRU4Rec: its loss written out, both losses on the cycle, histories of any length."""

from functools import partial

import pytest
import torch

from diffuserec.data import Histories, SequenceDataset, histories_of
from diffuserec.recommenders.gru4rec import GRU4Rec

from .oracles import (
    BATCH,
    PSEUDO,
    assert_fits,
    assert_refused,
    assert_same,
    last_state,
    next_item_by_hand,
    ragged,
    untrained,
    with_its_loss,
)

SETTINGS = {
    "dim": 8,
    "hidden_dim": 12,
    "max_len": 8,
    "dropout": 0.0,
    "batch_size": 8,
    "epochs": 1,
}
made = partial(untrained, GRU4Rec, SETTINGS)
begun = partial(with_its_loss, GRU4Rec, SETTINGS)


@pytest.mark.parametrize("batch", [BATCH, PSEUDO])
def test_every_position_predicts_the_next_item(monkeypatch, batch) -> None:
    model, loss = begun(monkeypatch)
    assert_same(model, loss(batch), next_item_by_hand(model, batch))


@torch.no_grad()
def test_scores_are_products_with_the_newest_items_state() -> None:
    model = made()
    lists = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5, 8, 9, 7, 9]]
    data = SequenceDataset.from_lists(lists, model.catalog)
    scores = model.score(histories_of(data, torch.arange(3).numpy()))
    for row, history in enumerate(lists):
        expected = model.table.vectors.weight @ last_state(model, history[-8:])
        torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-5)
    # the units remember all that they read: the eighth item from the end counts
    shorter = last_state(model, lists[2][-7:]) @ model.table.vectors.weight.T
    assert (scores[2] - shorter).abs().max() > 1e-3


@pytest.mark.parametrize("loss", ["softmax", "bpr_max"])
def test_the_newest_items_successor_is_learned(cycle: SequenceDataset, loss) -> None:
    settings = {"dim": 16, "learning_rate": 0.02, "batch_size": 16, "epochs": 20}
    few = {"n_negatives": 10} if loss == "bpr_max" else {}
    model = GRU4Rec(**SETTINGS | settings | few, loss=loss).fit(cycle)
    items, lengths = ragged([[(item + step) % 20 + 1 for step in range(6)] for item in range(20)])
    scores = model.score(Histories(torch.arange(20), items, lengths))[:, 1:]
    assert (scores.argmax(1) + 1).tolist() == [(item + 6) % 20 + 1 for item in range(20)]
    assert model.scores_are_logits == (loss == "softmax")


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "bce"},
        {"loss": "gbce"},
        {"loss": "sampled_softmax"},
        {"loss": "bpr_max", "dropout": 0.3},
        {"examples": "windows", "max_len": 4},
        {"examples": "prefixes", "hidden_dim": 1},
        {"encoder": "transformer", "hidden_dim": 128, "encoder_settings": {"n_layers": 1}},
    ],
    ids=str,
)
def test_every_loss_and_example_fits(random_log, settings) -> None:
    assert_fits(GRU4Rec, SETTINGS | settings, random_log)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n_heads": 2}, "no setting 'n_heads'"),
        ({"hidden_dim": 0}, "hidden_dim: .*greater than or equal to 1, got 0"),
        ({"hidden": 64}, r"did you mean 'hidden_dim'\?"),
        ({"encoder": "caser", "hidden_dim": 64}, "hidden_dim = 64 has no effect with encoder"),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(GRU4Rec, settings, message)
