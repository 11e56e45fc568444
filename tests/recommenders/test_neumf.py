"""NeuMF: the network on pairs put together one by one, its loss, and that it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuserec.data import Pairs, SequenceDataset, histories_of, leave_one_out
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.models.retrieval import rank_of, seen_items
from diffuserec.recommenders import neumf
from diffuserec.recommenders.neumf import NeuMF

from .oracles import assert_refused

D = 3
LOG = SequenceDataset.from_lists([[1, 2, 3], [4], [5, 1], [7, 8, 2], [6]])
PAIRS = Pairs(torch.tensor([0, 2, 1]), torch.tensor([2, 5, 4]))


def begun(monkeypatch, log: SequenceDataset = LOG, **settings):
    """A model with other than tiny weights, and the loss that its fit would minimize."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(neumf, "train_on_pairs", lambda _, loss, *__, **___: taken.append(loss) or [])
        model = NeuMF(dim=D, **settings).fit(log)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    model.users.remember(log)
    return model, taken[0]


def logit(model: NeuMF, user: int, item: int) -> float:
    """The score of one pair, as the paper draws it: two pairs of vectors, joined at the end."""
    user_gmf, user_mlp = model.users.vectors.weight[user].split(D)
    item_gmf, item_mlp = model.table.vectors.weight[item].split(D)
    hidden = torch.cat([user_mlp, item_mlp])
    for layer in [model.first, *model.others]:
        hidden = torch.clamp(layer.weight @ hidden + layer.bias, min=0)
    joined = torch.cat([user_gmf * item_gmf, hidden])
    return (model.output.weight[0] @ joined + model.output.bias[0]).item()


@pytest.mark.parametrize("hidden", [(4,), (5, 4), (6, 2, 3)])
@torch.no_grad()
def test_all_items_are_scored_as_each_pair_alone(monkeypatch, hidden) -> None:
    model, _ = begun(monkeypatch, hidden=hidden)
    expected = [[logit(model, user, item) for item in range(9)] for user in range(5)]
    scores = model.score(histories_of(LOG, np.arange(5)))
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widest", [700, 300_000])
@torch.no_grad()
def test_scores_are_made_in_blocks_that_stay_in_the_cache(monkeypatch, widest) -> None:
    log = SequenceDataset.from_lists([[user % 8 + 1] for user in range(130)])
    model, _ = begun(monkeypatch, log, hidden=(2, widest, 2))
    held = []
    model.others[0].register_forward_hook(lambda _, __, made: held.append(made.shape))
    users = np.array([0, 63, 64, 127, 128, 129, *range(1, 20)])
    scores = model.score(histories_of(log, users))
    assert len(held) > 1
    for users_at_once, items_at_once, width in held:
        assert items_at_once == 1 or users_at_once * items_at_once * width <= 250_000
    for row in (0, 2, 5):
        expected = torch.tensor([logit(model, int(users[row]), item) for item in range(9)])
        torch.testing.assert_close(scores[row], expected, rtol=1e-3, atol=1e-2)


def test_the_loss_is_that_of_telling_the_item_from_others(monkeypatch) -> None:
    settings = {"hidden": (4, 2), "n_negatives": 2, "l2_users": 0.3, "l2_items": 0.07}
    model, minimized = begun(monkeypatch, dropout=0.0, **settings)
    torch.manual_seed(0)
    drawn = uniform_negatives(PAIRS.users, 2, 9, seen_keys(LOG))
    terms, norms = [], []
    for user, item, others in zip(
        PAIRS.users.tolist(), PAIRS.items.tolist(), drawn.tolist(), strict=True
    ):
        assert not set(others) & set(LOG[user].tolist())
        terms.append(math.log(1 + math.exp(-logit(model, user, item))))
        terms += [math.log(1 + math.exp(logit(model, user, other))) for other in others]
        norms.append(0.3 * model.users.vectors.weight[user].square().sum().item())
        vectors = model.table.vectors.weight
        norms += [0.07 * vectors[i].square().sum().item() / 3 for i in [item, *others]]
    torch.manual_seed(0)
    assert minimized(PAIRS).item() == pytest.approx(sum(terms) / 9 + sum(norms) / 3, rel=1e-5)


def test_dropout_is_in_the_tower_and_in_training_only(monkeypatch) -> None:
    # each user lacks one item alone, so that the negatives are certain
    log = SequenceDataset.from_lists([[1, 2, 3], [1, 2, 4]])
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([2, 4]))
    model, minimized = begun(monkeypatch, log, hidden=(4, 2), n_negatives=2, dropout=0.5)
    assert len({minimized(pairs).item() for _ in range(5)}) == 1
    model.train()
    assert len({minimized(pairs).item() for _ in range(5)}) > 1
    with torch.no_grad():  # what is left without the tower does not change
        model.output.weight[:, D:] = 0
    assert len({minimized(pairs).item() for _ in range(5)}) == 1


@pytest.mark.parametrize("known", [True, False])
def test_learns_what_a_user_likes(tastes: SequenceDataset, known: bool) -> None:
    split, index = leave_one_out(tastes), np.arange(80)
    settings = {"dim": 8, "epochs": 12, "learning_rate": 0.02, "batch_size": 32}
    model = NeuMF(**settings, hidden=(16, 8)).fit(split.train)
    shown = split.test.histories
    if not known:
        shown = replace(shown, users=index + 80)
    scorer = model.scorer(histories_of(shown, index))
    ranks = rank_of(scorer, torch.from_numpy(split.test.targets), seen_items(shown, index))
    # of the 17 items left to show the user's kind are 5: 2 if they come first, 8 by chance
    assert ranks.mean() < 4


@pytest.mark.parametrize("wrong", [{"hidden": []}, {"hidden": [4, 0]}, {"n_negatives": 0}])
def test_wrong_settings_are_named(wrong) -> None:
    (name,) = wrong
    assert_refused(NeuMF, wrong, f"NeuMF: {name}")
