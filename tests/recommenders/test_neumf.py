"""NeuMF: the network on pairs put together one by one, its loss, and that it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuserec.training import loop as training
from diffuserec.data import Pairs, SequenceDataset, histories_of, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.models.retrieval import hide, seen_pairs, target_ranks
from diffuserec.recommenders import neumf
from diffuserec.recommenders.neumf import NeuMF

D = 3
LOG = SequenceDataset.from_lists([[1, 2, 3], [4], [5, 1], [7, 8, 2], [6]])
PAIRS = Pairs(torch.tensor([0, 2, 1]), torch.tensor([2, 5, 4]))
NEGATIVES = torch.tensor([[4, 5], [2, 3], [1, 5]])


def begun(monkeypatch, **settings):
    """A model with other than tiny weights, and the loss that its fit would minimize."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_on_pairs", lambda _, loss, *__, **___: taken.append(loss))
        model = NeuMF(dim=D, **settings).fit(LOG)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    model.users.remember(LOG)
    return model, taken[0]


def logit(model: NeuMF, user: int, item: int) -> float:
    """The score of one pair, as the paper draws it: two pairs of vectors, joined at the end."""
    user_gmf, user_mlp = model.users.vectors.weight[user].split(D)
    item_gmf, item_mlp = model.items.weight[item].split(D)
    hidden = torch.cat([user_mlp, item_mlp])
    for layer in [model.first, *model.others]:
        hidden = torch.clamp(layer.weight @ hidden + layer.bias, min=0)
    joined = torch.cat([user_gmf * item_gmf, hidden])
    return (model.output.weight[0] @ joined + model.output.bias[0]).item()


@pytest.mark.parametrize("hidden", [(4,), (5, 4), (6, 2, 3)])
@pytest.mark.parametrize("block", [1, 30, 10**6])
def test_all_items_are_scored_as_each_pair_alone(monkeypatch, hidden, block: int) -> None:
    model, _ = begun(monkeypatch, hidden=hidden)
    held = []
    judged = NeuMF._judged

    def spy(self, users, items):
        held.append(len(users) * len(items) * max(hidden))
        return judged(self, users, items)

    monkeypatch.setattr(NeuMF, "_judged", spy)
    monkeypatch.setattr(neumf, "_BLOCK", block)
    monkeypatch.setattr(neumf, "_USERS", 2)
    expected = [[logit(model, user, item) for item in range(9)] for user in range(5)]
    with torch.no_grad():
        scores = model.eval().score(histories_of(LOG, np.arange(5)))
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert max(held) <= max(block, 2 * max(hidden))


def test_the_loss_is_that_of_telling_the_item_from_others(monkeypatch) -> None:
    settings = {"hidden": (4, 2), "n_negatives": 2, "l2_users": 0.3, "l2_items": 0.07}
    model, minimized = begun(monkeypatch, dropout=0.0, **settings)

    def drawn(owners, n_negatives, vocab_size, seen):
        assert (owners.tolist(), n_negatives, vocab_size) == ([0, 2, 1], 2, 9)
        assert seen.tolist() == [9 * user + i for user in range(5) for i in sorted(LOG[user])]
        return NEGATIVES

    monkeypatch.setattr(neumf, "uniform_negatives", drawn)
    terms, norms = [], []
    for user, item, others in ((0, 2, [4, 5]), (2, 5, [2, 3]), (1, 4, [1, 5])):
        terms.append(math.log(1 + math.exp(-logit(model, user, item))))
        terms += [math.log(1 + math.exp(logit(model, user, other))) for other in others]
        norms.append(0.3 * model.users.vectors.weight[user].square().sum().item())
        norms += [0.07 * model.items.weight[i].square().sum().item() / 3 for i in [item, *others]]
    assert minimized(PAIRS).item() == pytest.approx(sum(terms) / 9 + sum(norms) / 3, rel=1e-5)


def test_dropout_is_in_the_tower_and_in_training_only(monkeypatch) -> None:
    model, minimized = begun(monkeypatch, hidden=(4, 2), n_negatives=2, dropout=0.5)
    monkeypatch.setattr(neumf, "uniform_negatives", lambda *_: NEGATIVES)
    without = {minimized(PAIRS).item() for _ in range(5)}
    model.train()
    assert len(without) == 1
    assert len({minimized(PAIRS).item() for _ in range(5)}) > 1
    with torch.no_grad():  # what is left without the tower does not change
        model.output.weight[:, D:] = 0
    assert len({minimized(PAIRS).item() for _ in range(5)}) == 1


@pytest.mark.parametrize("known", [True, False])
def test_learns_what_a_user_likes(tastes: SequenceDataset, known: bool) -> None:
    split, rows = leave_one_out(tastes), np.arange(80)
    settings = {"dim": 8, "epochs": 12, "learning_rate": 0.02, "batch_size": 32}
    model = NeuMF(**settings, hidden=(16, 8)).fit(split.train)
    shown = split.test.histories
    if not known:
        shown = replace(shown, users=rows + 80)
    with torch.no_grad():
        scores = hide(model.score(histories_of(shown, rows)), seen_pairs(shown, rows))
    mean_rank = target_ranks(scores, torch.from_numpy(split.test.targets)).mean()
    # of the 17 items left to show the user's kind are 5: 2 if they come first, 8 by chance
    assert mean_rank < 4


@pytest.mark.parametrize("wrong", [{"hidden": []}, {"hidden": [4, 0]}, {"n_negatives": 0}])
def test_wrong_settings_are_named(wrong) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"NeuMF: {name}"):
        NeuMF(**wrong)
