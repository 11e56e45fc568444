"""BPR: its losses written out, what is a negative, whose vector scores, and that it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuserec.training import loop as training
from diffuserec.models.base import Run
from diffuserec.data import Pairs, SequenceDataset, histories_of, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.models.retrieval import hide, seen_pairs, target_ranks
from diffuserec.recommenders import bpr
from diffuserec.recommenders.bpr import BPR

D = 3
LOG = SequenceDataset.from_lists([[1, 2, 3], [4], [5, 1]])
PAIRS = Pairs(torch.tensor([0, 2, 1]), torch.tensor([2, 5, 4]))
NEGATIVES = torch.tensor([[4, 5], [2, 3], [1, 5]])


def begun(monkeypatch, **settings):
    """A model with other than tiny weights, and the loss that its fit would minimize."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_on_pairs", lambda _, loss, *__, **___: taken.append(loss))
        model = BPR(dim=D, **settings).fit(LOG)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model, taken[0]


def parts(model: BPR):
    """Vectors of users and items and biases, as lists."""
    weights = (model.users.vectors.weight, model.items.weight, model.bias.weight[:, 0])
    return [weight.detach().double().tolist() for weight in weights]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("n_negatives", [1, 2])
@pytest.mark.parametrize("loss", ["bpr", "bce", "softmax"])
def test_the_loss_written_out(monkeypatch, loss: str, n_negatives: int) -> None:
    weights = {"l2_users": 0.3, "l2_items": 0.07, "l2_bias": 0.011}
    model, minimized = begun(monkeypatch, loss=loss, n_negatives=n_negatives, **weights)
    monkeypatch.setattr(bpr, "uniform_negatives", lambda *_: NEGATIVES[:, :n_negatives])
    users, items, biases = parts(model)
    total = 0.0
    for user, item, others in ((0, 2, [4, 5]), (2, 5, [2, 3]), (1, 4, [1, 5])):
        scores = [dot(users[user], q) + b for q, b in zip(items, biases, strict=True)]
        norms = [0.07 * dot(q, q) + 0.011 * b**2 for q, b in zip(items, biases, strict=True)]
        total += 0.3 * dot(users[user], users[user]) + norms[item]
        if loss == "softmax":
            total += math.log(sum(map(math.exp, scores[1:]))) - scores[item]
            continue
        for other in others[:n_negatives]:
            wrong = scores[other] - (scores[item] if loss == "bpr" else 0)
            total += (norms[other] + math.log(1 + math.exp(wrong))) / n_negatives
        if loss == "bce":
            total += math.log(1 + math.exp(-scores[item]))
    assert minimized(PAIRS).item() == pytest.approx(total / 3, rel=1e-5)


def test_an_item_is_scored_by_dot_product_and_bias(monkeypatch) -> None:
    model, _ = begun(monkeypatch)
    model.users.remember(LOG)
    users, items, biases = parts(model)
    scores = model.score(histories_of(LOG, np.arange(3)))
    expected = [[dot(u, q) + b for q, b in zip(items, biases, strict=True)] for u in users]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_no_item_that_the_user_has_is_a_negative(monkeypatch, random_log) -> None:
    met: dict[int, set[int]] = {}

    def spy(owners, *args):
        drawn = original(owners, *args)
        for user, items in zip(owners.tolist(), drawn.tolist(), strict=True):
            met.setdefault(user, set()).update(items)
        return drawn

    original = bpr.uniform_negatives
    monkeypatch.setattr(bpr, "uniform_negatives", spy)
    BPR(dim=2, epochs=60, batch_size=50, n_negatives=3).fit(random_log)
    everything = set(range(1, 26))
    # the first user has every item
    assert {u: met[u] for u in range(1, 40)} == {
        user: everything - set(random_log[user].tolist()) for user in range(1, 40)
    }


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("loss", ["bpr", "bce", "softmax"])
def test_learns_what_a_user_likes(tastes: SequenceDataset, loss: str, known: bool) -> None:
    split = leave_one_out(tastes)
    settings = {"dim": 8, "epochs": 20, "learning_rate": 0.02, "batch_size": 32}
    model = BPR(**settings, loss=loss).fit(split.train)
    shown, rows = split.test.histories, np.arange(80)
    if not known:
        shown = replace(shown, users=rows + 80)
    with torch.no_grad():
        scores = hide(model.score(histories_of(shown, rows)), seen_pairs(shown, rows))
    mean_rank = target_ranks(scores, torch.from_numpy(split.test.targets)).mean()
    # of the 17 items left to show the user's kind are 5: 2 if they come first, 8 by chance
    assert mean_rank < 4


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
    some = tastes.slice(tastes.offsets[:-1], tastes.offsets[1:] - 8 * (np.arange(80) >= 60))
    model = BPR(dim=4, epochs=2).fit(some, run=Run(seed=1))
    assert model.users.known.tolist() == [True] * 60 + [False] * 20
    raw = [tastes[row].tolist() for row in (70, 3)]
    shown = model.recommend(raw, k=24, filter_seen=False)
    with torch.no_grad():
        scores = model.score(histories_of(tastes, np.array([70, 3])))
    best, items = scores[:, 1:].max(1)
    first = shown.filter(rank=1)
    assert first["item_id"][0] == int(items[0]) + 1
    assert first["score"][0] == pytest.approx(float(best[0]))
    # whoever is asked about in `recommend` is nobody of the log
    assert first["score"][1] != pytest.approx(float(best[1]), rel=1e-3)


@pytest.mark.parametrize("wrong", [{"l2_users": -1}, {"n_negatives": 0}, {"loss": "gbce"}])
def test_wrong_settings_are_named(wrong) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"BPR: {name}: "):
        BPR(**wrong)
