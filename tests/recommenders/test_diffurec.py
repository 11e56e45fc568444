"""DiffuRec: mixing, loss and reverse walk written out; what a position is shown; learning."""

from functools import partial

import numpy as np
import pytest
import torch

from diffuserec import Runtime, Store, evaluate, find_recommender, leave_one_out
from diffuserec.data import Histories, SequenceDataset
from diffuserec.models.diffusion import KeyedNoise, row_keys
from diffuserec.recommenders.diffurec import DiffuRec

from .oracles import BATCH, LOG, D, assert_refused, assert_same, untrained, with_its_loss

T, DELTA = 32, 0.3
SETTINGS = {
    "dim": D,
    "max_len": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "delta": DELTA,
    "batch_size": 8,
    "num_inference_steps": T,
}
begun = partial(with_its_loss, DiffuRec, SETTINGS)
made = partial(untrained, DiffuRec, SETTINGS)

# the schedule of the paper's code: a straight line, raised by .01 at both ends
BETAS = np.linspace(0.1 / T + 0.01, 20 / T + 0.01, T)
ALPHA_BARS = np.cumprod(1 - BETAS)


def step_vector(model, t: int) -> torch.Tensor:
    half = D // 2
    angles = t * 1000 / T * 10_000.0 ** (-torch.arange(half) / (half - 1))
    sinusoid = torch.cat([angles.sin(), angles.cos()]).float()
    first, _, second = model.of_step.layers
    hidden = first.weight @ sinusoid + first.bias
    return second.weight @ (hidden * torch.sigmoid(hidden)) + second.bias


def noised(model, item: int, t: int, noise) -> torch.Tensor:
    x_0 = model.table.vectors.weight[item] / model.table.vectors.weight[1:].detach().std()
    return ALPHA_BARS[t] ** 0.5 * x_0 + (1 - ALPHA_BARS[t]) ** 0.5 * noise


def state(model, items, x_t, t: int, share) -> torch.Tensor:
    """State of the newest of items, each mixed with a noised embedding by its share of noise."""
    table = model.table.vectors.weight
    scale = table[1:].detach().std()
    mixed = [
        table[item] + scale * (DELTA + DELTA * own) * (x + step_vector(model, t))
        for item, x, own in zip(items, x_t, share, strict=True)
    ]
    return model.encoder(torch.stack(mixed)[None], torch.tensor([len(items)]))[0, -1]


def cross_entropy(model, state, target: int) -> torch.Tensor:
    return -torch.log_softmax(model.table.vectors.weight[1:] @ state, 0)[target - 1]


def test_one_target_is_mixed_with_the_whole_history(monkeypatch) -> None:
    model, loss_of = begun(monkeypatch, LOG, examples="prefixes")
    torch.manual_seed(3)
    steps = torch.randint(T, (3,))
    noise, share = torch.randn(3, 1, D), torch.randn(*BATCH.items.shape, D)
    torch.manual_seed(3)
    loss = loss_of(BATCH)
    losses = []
    for row, n in enumerate(BATCH.lengths.tolist()):
        target, t = int(BATCH.targets[row, n - 1]), int(steps[row])
        x_t = noised(model, target, t, noise[row, 0])
        found = state(model, BATCH.items[row, :n].tolist(), [x_t] * n, t, share[row, :n])
        losses.append(cross_entropy(model, found, target))
    assert_same(model, loss, torch.stack(losses).mean(), allow_unused=True)


def test_each_position_is_mixed_with_its_own_next_item_and_sees_no_later_one(monkeypatch) -> None:
    model, loss_of = begun(monkeypatch, LOG)
    torch.manual_seed(3)
    steps = torch.randint(T, (3,))
    noise, share = torch.randn(*BATCH.items.shape, D), torch.randn(*BATCH.items.shape, D)
    torch.manual_seed(3)
    loss = loss_of(BATCH)
    losses = []
    for row, n in enumerate(BATCH.lengths.tolist()):
        items, t = BATCH.items[row, :n].tolist(), int(steps[row])
        following = [*items[1:], int(BATCH.targets[row, n - 1])]
        x_t = [noised(model, item, t, noise[row, at]) for at, item in enumerate(following)]
        for at in range(n):  # each prefix by itself
            seen = slice(0, at + 1)
            found = state(model, items[seen], x_t[seen], t, share[row, seen])
            losses.append(cross_entropy(model, found, following[at]))
    assert_same(model, loss, torch.stack(losses).mean(), allow_unused=True)


@pytest.mark.parametrize("examples", ["per_user", "prefixes"])
@torch.no_grad()
def test_the_reverse_walk_samples_the_posterior(examples) -> None:
    model = made(examples=examples)
    items = torch.tensor([[3, 1, 4], [1, 5, 0]])
    lengths, users = torch.tensor([3, 2]), torch.tensor([7, 8])
    found = model.states(Histories(users, items, lengths), seed=5, n_draws=2)
    for row, n in enumerate(lengths.tolist()):
        history = items[row, :n].tolist()
        for draw in range(2):
            keyed = KeyedNoise(5, row_keys(torch.tensor([[int(users[row]), draw]])))
            x = keyed.normal(D)[0]
            for t in reversed(range(T)):
                x_t = [x] * n
                if examples == "per_user":
                    noise = keyed.normal(n, D)[0]
                    x_t = [noised(model, v, t, noise[at]) for at, v in enumerate(history[1:])]
                    x_t.append(x)
                x_0 = state(model, history, x_t, t, keyed.normal(n, D)[0])
                before = ALPHA_BARS[t - 1] if t else 1.0
                rest = 1 - ALPHA_BARS[t]
                mean = before**0.5 * BETAS[t] / rest * x_0
                mean += (1 - BETAS[t]) ** 0.5 * (1 - before) / rest * x
                deviation = ((1 - before) / rest * BETAS[t]) ** 0.5
                x = mean + deviation * keyed.normal(D)[0] if t else mean
            torch.testing.assert_close(found[row, draw], x, rtol=1e-3, atol=1e-4)


def test_refusals() -> None:
    assert_refused(
        DiffuRec, SETTINGS | {"dim": 7, "n_heads": 1}, "dim: must be a multiple of 2, got 7"
    )
    assert_refused(DiffuRec, SETTINGS | {"encoder": "bsarec"}, "looks ahead")
    assert DiffuRec(**SETTINGS, encoder="bsarec", examples="prefixes").has_one_target


def test_it_learns_more_than_popularity() -> None:
    split = leave_one_out(Store(n_users=100, n_items=40, seed=0).dataset())
    settings = {"dim": 16, "n_layers": 1, "dropout": 0.2, "learning_rate": 0.01, "batch_size": 16}
    model = DiffuRec(**settings, epochs=6).fit(split.train, runtime=Runtime(progress=False))
    counted = find_recommender("popularity")().fit(split.train)
    learned, floor = (
        evaluate(method, split.test).metrics["NDCG@10"] for method in (model, counted)
    )
    assert learned > 1.2 * floor, (learned, floor)


def test_a_long_history_is_cut_to_its_newest_items() -> None:
    model = made(n_draws=1)
    log = SequenceDataset.from_lists([[*range(1, 13)]])
    whole = Histories(
        torch.tensor([4]), torch.from_numpy(log.items.copy())[None].long(), torch.tensor([12])
    )
    with torch.no_grad():
        cut = Histories(whole.users, whole.items[:, -8:], torch.tensor([8]))
        torch.testing.assert_close(model.states(whole), model.states(cut))
