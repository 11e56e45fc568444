"""Caser: its loss of one and of several next items written out; a window and what it can teach."""

from functools import partial

import numpy as np
import pytest
import torch

from diffuserec.data import SequenceDataset, histories_of, training_batches
from diffuserec.recommenders.caser import Caser

from .oracles import (
    BATCH,
    PSEUDO,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    last_state,
    next_item_by_hand,
    untrained,
    with_its_loss,
)

SETTINGS = {
    "dim": 8,
    "window": 3,
    "n_horizontal": 4,
    "max_len": 8,
    "dropout": 0.0,
    "batch_size": 8,
    "epochs": 1,
}
made = partial(untrained, Caser, SETTINGS)
begun = partial(with_its_loss, Caser, SETTINGS)


@pytest.mark.parametrize("batch", [BATCH, PSEUDO])
def test_every_position_predicts_the_next_item(monkeypatch, batch) -> None:
    model, loss = begun(monkeypatch)
    assert_same(model, loss(batch), next_item_by_hand(model, batch))


def loss_by_hand(model: Caser, sequences: list[list[int]], n: int):
    """Loss of the next n items, or as many as there are, after every beginning of a sequence."""
    losses = []
    for sequence in sequences:
        for end in range(1, len(sequence)):
            scores = model.table.vectors.weight[1:V] @ last_state(model, sequence[:end])
            for item in sequence[end : end + n]:
                losses.append(-torch.log_softmax(scores, 0)[item - 1])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("examples", ["per_user", "windows"])
@pytest.mark.parametrize("n_targets", [2, 3, 20])
def test_every_position_predicts_the_next_items(monkeypatch, n_targets, examples) -> None:
    model, loss = begun(monkeypatch, n_targets=n_targets, max_len=20, examples=examples)
    sequences = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [8, 7, 10]]
    log = SequenceDataset.from_lists(sequences, model.catalog)
    (batch,) = training_batches(log, 64, 20, 0, 0, examples)
    assert_same(model, loss(batch), loss_by_hand(model, sequences, n_targets))


@torch.no_grad()
def test_scores_are_products_with_the_windows_state() -> None:
    model = made()
    lists = [[3, 1, 4, 1, 5], [5], [9, 2, 6, 5, 3, 5, 8, 9, 7, 9]]
    data = SequenceDataset.from_lists(lists, model.catalog)
    scores = model.score(histories_of(data, np.arange(3)))
    for row, history in enumerate(lists):
        expected = model.table.vectors.weight @ last_state(model, history)
        torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-5)


def interleaved(n_users: int, seed: int) -> list[list[int]]:
    """Two walks in turn, around 1 to 8 and around 9 to 16: the next item is two items back, + 1."""
    starts = np.random.default_rng(seed).integers(0, 8, (n_users, 2)).tolist()
    return [
        [(own[step % 2] + step // 2) % 8 + 1 + 8 * (step % 2) for step in range(10)]
        for own in starts
    ]


@pytest.mark.parametrize("window, relu_output", [(1, False), (2, False), (2, True)])
def test_a_window_of_two_is_needed_to_know_the_item_before_the_newest(window, relu_output) -> None:
    log = SequenceDataset.from_lists(interleaved(120, 0))
    settings = {"dim": 16, "window": window, "epochs": 12, "learning_rate": 0.02}
    model = Caser(**SETTINGS | settings, relu_output=relu_output).fit(log)
    tested = SequenceDataset.from_lists(interleaved(200, 1), log.catalog)
    with torch.no_grad():
        scores = model.score(histories_of(tested, np.arange(200)))
    right = np.array([history[-2] % 8 + 1 for history in interleaved(200, 1)])
    share = float((scores[:, 1:].argmax(1).numpy() + 1 == right).mean())
    # without the item before the newest, eight items are equally likely
    assert share == 1 if window > 1 else share < 0.3


@pytest.mark.parametrize("relu_output", [False, True])
def test_a_relus_output_has_no_negative_component(relu_output) -> None:
    states = made(relu_output=relu_output).encode(BATCH.items, BATCH.lengths)[BATCH.items > 0]
    assert bool((states >= 0).all()) == relu_output


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "bce", "n_negatives": 3, "n_targets": 3, "relu_output": True},
        {"loss": "gbce", "window": 1},
        {"loss": "sampled_softmax", "window": 12},
        {"examples": "windows", "max_len": 4, "n_targets": 2},
        {"examples": "prefixes", "n_vertical": 1, "n_horizontal": 1},
    ],
    ids=str,
)
def test_every_loss_and_example_fits(random_log, settings) -> None:
    assert_fits(Caser, SETTINGS | settings, random_log)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"window": 0}, "window: .*greater than or equal to 1, got 0"),
        ({"n_targets": 0}, "n_targets: .*greater than or equal to 1, got 0"),
        ({"n_layers": 2}, "no setting 'n_layers'"),
        ({"encoder": "gru", "window": 3}, "window = 3 has no effect with encoder = 'gru'"),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(Caser, settings, message)
