"""Flow: the path and its ends, loss and walk written out, one step and several, learning."""

from functools import partial

import pytest
import torch

from diffuserec import Runtime, Store, evaluate, find_recommender, leave_one_out
from diffuserec.data import Histories
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.recommenders.flow import Flow

from .oracles import (
    BATCH,
    GAP,
    LOG,
    D,
    assert_refused,
    assert_same,
    last_state,
    untrained,
    with_its_loss,
)

SETTINGS = {
    "dim": D,
    "max_len": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "bridge_noise": 0.8,
}
begun = partial(with_its_loss, Flow, SETTINGS)
made = partial(untrained, Flow, SETTINGS)
SHOWN = Histories(torch.tensor([7, 8]), torch.tensor([[3, 1, 4], [1, 5, 0]]), torch.tensor([3, 2]))


def covariance(s: float, t: float) -> float:
    """Of a Brownian bridge from 0 to 0 at two times."""
    return min(s, t) - s * t


def embedding(model, item: int) -> torch.Tensor:
    table = model.table.vectors.weight
    return table[item] / table[1:].detach().std()


def arrived(model, x, h, s: float) -> torch.Tensor:
    """State at one place x of the path."""
    half = D // 2
    angles = torch.tensor(1000 * s) * 10_000.0 ** (-torch.arange(half) / (half - 1))
    step = model.of_step.layers(torch.cat([angles.sin(), angles.cos()]))
    return h + model.network(torch.cat([x, h, step]))


def log_p(model, state) -> torch.Tensor:
    return torch.log_softmax(model.table.vectors.weight[1:] @ state, 0)


@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_the_path_begins_at_the_state_and_ends_at_the_item(noise: float) -> None:
    model = made(bridge_noise=noise)
    h, e, normal = torch.randn(3, 1, 2, D).unbind(0)
    for s in (0.0, 0.3, 1.0):
        place = model.bridge(h, e, torch.full((1, 2), s), normal)
        expected = h + s * (e - h) + noise * covariance(s, s) ** 0.5 * normal
        torch.testing.assert_close(place, expected)
    assert torch.equal(model.bridge(h, e, torch.zeros(1, 2), normal), h)
    assert torch.equal(model.bridge(h, e, torch.ones(1, 2), normal), e)


@pytest.mark.parametrize("batch", [BATCH, GAP], ids=["all", "gap"])
def test_the_loss_written_out(monkeypatch, batch) -> None:
    model, loss_of = begun(monkeypatch, LOG, start_share=0.4)
    shape = batch.targets.shape
    torch.manual_seed(3)
    places, starts, noise = torch.rand(shape), torch.rand(shape), torch.randn(*shape, D)
    torch.manual_seed(3)
    loss = loss_of(batch)
    losses, n_starts = [], 0
    for row, n in enumerate(batch.lengths.tolist()):
        for at in range(n):
            target = int(batch.targets[row, at])
            if not target:
                continue
            h = last_state(model, batch.items[row, : at + 1].tolist())
            s = 0.0 if starts[row, at] < 0.4 else float(places[row, at])
            n_starts += s == 0
            x = (1 - s) * h + s * embedding(model, target).detach()
            x = x + 0.8 * (s * (1 - s)) ** 0.5 * noise[row, at]
            losses.append(-log_p(model, arrived(model, x, h, s))[target - 1])
    assert 0 < n_starts < len(losses)
    assert_same(model, loss, torch.stack(losses).mean())


@pytest.mark.parametrize("noise, steps", [(0.8, 4), (0.0, 4), (0.8, 2), (0.8, 1)])
@torch.no_grad()
def test_the_walk_is_the_bridge_held_at_the_mean_item(noise: float, steps: int) -> None:
    model = made(bridge_noise=noise, num_inference_steps=steps)
    found = model.states(SHOWN, 5, None if steps == 1 else 2)
    random = noise > 0 and steps > 1
    assert found.shape[1] == (2 if random else 1)
    for row, n in enumerate(SHOWN.lengths.tolist()):
        h = last_state(model, SHOWN.items[row, :n].tolist())
        keyed = KeyedNoise(5, SHOWN.users[row : row + 1])
        normals = [keyed.normal(2, D)[0] for _ in range(steps - 1)]
        for draw in range(found.shape[1]):
            x, state = h, arrived(model, h, h, 0.0)
            for number in range(1, steps):
                s, t = (number - 1) / steps, number / steps
                chances = log_p(model, state).exp()
                e = sum(chances[item - 1] * embedding(model, item) for item in range(1, 14))
                # what a bridge at time t is expected to be, given its place at s and its end
                line = h + torch.tensor([s, t])[:, None] * (e - h)
                slope = covariance(s, t) / covariance(s, s) if s else 0.0
                x = line[1] + slope * (x - line[0]) if s else line[1]
                rest = covariance(t, t) - slope * covariance(s, t)
                x = x + noise * rest**0.5 * normals[number - 1][draw]
                state = arrived(model, x, h, t)
            torch.testing.assert_close(found[row, draw], state, rtol=1e-3, atol=1e-4)


def test_refusals() -> None:
    assert_refused(Flow, SETTINGS | {"dim": 7, "n_heads": 1}, "dim: must be a multiple of 2, got 7")
    assert_refused(Flow, SETTINGS | {"num_inference_steps": 1, "n_draws": 2}, "n_draws")


def test_it_learns_more_than_popularity() -> None:
    split = leave_one_out(Store(n_users=100, n_items=40, seed=0).dataset())
    settings = {"dim": 16, "n_layers": 1, "dropout": 0.2, "learning_rate": 0.01, "batch_size": 16}
    model = Flow(**settings, epochs=6).fit(split.train, runtime=Runtime(progress=False))
    counted = find_recommender("popularity")().fit(split.train)
    learned, floor = (
        evaluate(method, split.test).metrics["NDCG@10"] for method in (model, counted)
    )
    assert learned > 1.2 * floor, (learned, floor)
