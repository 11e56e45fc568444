"""BPR: its losses written out, its negatives, whose vector scores, and that it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuserec import Runtime
from diffuserec.data import Pairs, SequenceDataset, histories_of, leave_one_out
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.models.retrieval import rank_of, seen_items
from diffuserec.recommenders import bpr
from diffuserec.recommenders.bpr import BPR

from .oracles import assert_refused

D = 3
LOG = SequenceDataset.from_lists([[1, 2, 3], [4], [5, 1]])
PAIRS = Pairs(torch.tensor([0, 2, 1]), torch.tensor([2, 5, 4]))


def begun(monkeypatch, log: SequenceDataset = LOG, **settings):
    """A model with other than tiny weights, and the loss that its fit would minimize."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(bpr, "train_on_pairs", lambda _, loss, *__, **___: taken.append(loss) or [])
        model = BPR(dim=D, **settings).fit(log)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model, taken[0]


def parts(model: BPR):
    """Vectors of users and items and biases, as lists."""
    weights = (model.users.vectors.weight, model.table.vectors.weight, model.table.bias)
    return [weight.detach().double().tolist() for weight in weights]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "loss, n_negatives", [("bpr", 1), ("bpr", 2), ("bce", 1), ("bce", 2), ("softmax", 1)]
)
def test_the_loss_written_out(monkeypatch, loss: str, n_negatives: int) -> None:
    weights = {"l2_users": 0.3, "l2_items": 0.07, "l2_bias": 0.011}
    model, minimized = begun(monkeypatch, loss=loss, n_negatives=n_negatives, **weights)
    torch.manual_seed(0)
    drawn = uniform_negatives(PAIRS.users, n_negatives, 6, seen_keys(LOG))
    users, items, biases = parts(model)
    total = 0.0
    for user, item, others in zip(
        PAIRS.users.tolist(), PAIRS.items.tolist(), drawn.tolist(), strict=True
    ):
        scores = [dot(users[user], q) + b for q, b in zip(items, biases, strict=True)]
        norms = [0.07 * dot(q, q) + 0.011 * b**2 for q, b in zip(items, biases, strict=True)]
        total += 0.3 * dot(users[user], users[user]) + norms[item]
        if loss == "softmax":
            total += math.log(sum(map(math.exp, scores[1:]))) - scores[item]
            continue
        for other in others:
            wrong = scores[other] - (scores[item] if loss == "bpr" else 0)
            total += (norms[other] + math.log(1 + math.exp(wrong))) / n_negatives
        if loss == "bce":
            total += math.log(1 + math.exp(-scores[item]))
    torch.manual_seed(0)
    assert minimized(PAIRS).item() == pytest.approx(total / 3, rel=1e-5)


def test_an_item_is_scored_by_dot_product_and_bias(monkeypatch) -> None:
    model, _ = begun(monkeypatch)
    model.users.remember(LOG)
    users, items, biases = parts(model)
    scores = model.score(histories_of(LOG, np.arange(3)))
    expected = [[dot(u, q) + b for q, b in zip(items, biases, strict=True)] for u in users]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_no_item_that_the_user_has_is_a_negative(monkeypatch, random_log) -> None:
    model, minimized = begun(monkeypatch, random_log, n_negatives=3, l2_users=0.0, l2_items=0.0)
    everything = set(range(1, 26))
    for user in (1, 17, 39):  # the first user has every item
        own, met = set(random_log[user].tolist()), set()
        item = random_log[user][:1]
        for seed in range(120):
            torch.manual_seed(seed)
            loss = minimized(Pairs(torch.tensor([user]), torch.from_numpy(item).long()))
            (gradient,) = torch.autograd.grad(loss, model.table.vectors.weight)
            met |= set(gradient.any(1).nonzero()[:, 0].tolist())
        assert met - set(item.tolist()) == everything - own, user


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("loss", ["bpr", "bce", "softmax"])
def test_learns_what_a_user_likes(tastes: SequenceDataset, loss: str, known: bool) -> None:
    split = leave_one_out(tastes)
    settings = {"dim": 8, "epochs": 20, "learning_rate": 0.02, "batch_size": 32}
    model = BPR(**settings, loss=loss).fit(split.train)
    shown, index = split.test.histories, np.arange(80)
    if not known:
        shown = replace(shown, users=index + 80)
    scorer = model.scorer(histories_of(shown, index))
    ranks = rank_of(scorer, torch.from_numpy(split.test.targets), seen_items(shown, index))
    # of the 17 items left to show the user's kind are 5: 2 if they come first, 8 by chance
    assert ranks.mean() < 4
    assert model.scores_are_logits == (loss == "softmax")


def test_stopping_looks_at_the_vectors_of_strangers_as_they_are(tastes: SequenceDataset) -> None:
    split = leave_one_out(tastes)
    settings = {"dim": 8, "learning_rate": 0.02, "batch_size": 32, "patience": 3}
    model = BPR(**settings, epochs=30).fit(split.train, split.valid)
    best = max(range(len(model.curve)), key=lambda n: model.curve[n].valid)
    assert len(model.curve) == best + 4
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.users.remember(split.train)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    again = BPR(**settings, epochs=best + 1).fit(split.train)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in again.state_dict().items())


def test_users_without_training_items_are_strangers(tastes: SequenceDataset) -> None:
    some = tastes.view(tastes.starts, tastes.ends - 8 * (np.arange(80) >= 60))
    model = BPR(dim=4, epochs=2).fit(some, runtime=Runtime(seed=1))
    assert model.users.known.tolist() == [True] * 60 + [False] * 20
    raw = [tastes[user].tolist() for user in (70, 3)]
    shown = model.recommend(raw, k=24, filter_seen=False)
    scores = model.score(histories_of(tastes, np.array([70, 3])))
    best, items = scores[:, 1:].max(1)
    first = shown.filter(rank=1)
    assert first["item_id"][0] == int(items[0]) + 1
    assert first["score"][0] == pytest.approx(float(best[0]))
    # a history of `recommend` belongs to no user of the log
    assert first["score"][1] != pytest.approx(float(best[1]), rel=1e-3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"l2_users": -1}, "l2_users: .*greater than or equal to 0, got -1"),
        ({"n_negatives": 0}, "n_negatives: .*greater than or equal to 1, got 0"),
        ({"loss": "gbce"}, "loss: .*'bpr', 'softmax' or 'bce', got 'gbce'"),
        (
            {"loss": "softmax", "n_negatives": 2},
            "n_negatives = 2 has no effect with loss = 'softmax'",
        ),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(BPR, settings, message)
