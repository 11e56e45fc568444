"""ADRec: loss, reverse walk and stages written out; what a position sees; learning."""

from functools import partial

import numpy as np
import pytest
import torch

from diffuserec import Runtime, Store, evaluate, find_recommender, leave_one_out
from diffuserec.data import Histories
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.recommenders.adrec import ADRec

from .oracles import (
    BATCH,
    GAP,
    LOG,
    D,
    assert_refused,
    assert_same,
    next_item_by_hand,
    states_by_hand,
    untrained,
    with_its_phases,
)

T, DELTA = 32, 0.3
SETTINGS = {
    "dim": D,
    "max_len": 8,
    "n_layers": 1,
    "n_denoiser_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "delta": DELTA,
    "mse_weight": 0.7,
    "batch_size": 8,
}
begun = partial(with_its_phases, ADRec, SETTINGS)

BETAS = np.linspace(0.1 / T + 0.01, 20 / T + 0.01, T)
ALPHA_BARS = np.cumprod(1 - BETAS)


def step_vector(model, t: int) -> torch.Tensor:
    half = D // 2
    angles = t * 1000 / T * 10_000.0 ** (-torch.arange(half) / (half - 1))
    return model.of_step.layers(torch.cat([angles.sin(), angles.cos()]).float())


def embedding(model, item: int) -> torch.Tensor:
    table = model.table.vectors.weight
    return table[item] / table[1:].detach().std()


def restored(model, history: list[int], x_t: list[torch.Tensor], steps: list[int]) -> torch.Tensor:
    """State of the denoiser at the newest position of a history."""
    states = states_by_hand(model, history)
    tokens = [
        condition + DELTA * (x + step_vector(model, t))
        for condition, x, t in zip(states, x_t, steps, strict=True)
    ]
    return model.denoiser(torch.stack(tokens)[None], torch.tensor([len(history)]))[0, -1]


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("batch", [BATCH, GAP], ids=["all", "gap"])
def test_the_loss_written_out(monkeypatch, batch, detach: bool) -> None:
    model, phases = begun(monkeypatch, LOG, detach_target=detach)
    loss_of = phases[-1][0]
    torch.manual_seed(3)
    steps, noise = torch.randint(T, batch.targets.shape), torch.randn(*batch.targets.shape, D)
    torch.manual_seed(3)
    loss = loss_of(batch)
    entropies, errors = [], []
    for row, n in enumerate(batch.lengths.tolist()):
        targets, ts = batch.targets[row, :n].tolist(), steps[row, :n].tolist()
        following = [*batch.items[row, 1:n].tolist(), targets[-1]]  # also where none is to learn
        x_t = [
            ALPHA_BARS[t] ** 0.5 * embedding(model, item) + (1 - ALPHA_BARS[t]) ** 0.5 * own
            for item, t, own in zip(following, ts, noise[row, :n], strict=True)
        ]
        for at, target in enumerate(targets):
            if target:  # each prefix by itself: nothing of what comes after is seen
                seen = slice(0, at + 1)
                found = restored(model, batch.items[row, seen].tolist(), x_t[seen], ts[seen])
                scores = model.table.vectors.weight[1:] @ found
                entropies.append(-torch.log_softmax(scores, 0)[target - 1])
                aim = embedding(model, target)
                errors.append((found - (aim.detach() if detach else aim)).square().mean())
    expected = torch.stack(entropies).mean() + 0.7 * torch.stack(errors).mean()
    assert_same(model, loss, expected)


@torch.no_grad()
def test_the_reverse_walk_denoises_the_newest_position_alone() -> None:
    model = untrained(ADRec, SETTINGS)
    items, lengths = torch.tensor([[3, 1, 4], [1, 5, 0]]), torch.tensor([3, 2])
    found = model.states(Histories(torch.tensor([7, 8]), items, lengths), seed=5, n_draws=2)
    for row, n in enumerate(lengths.tolist()):
        history = items[row, :n].tolist()
        clean = [embedding(model, item) for item in history[1:]]
        keyed = KeyedNoise(5, torch.tensor([7 + row]))
        x = keyed.normal(2, D)[0]
        for t in reversed(range(T)):
            x_0 = torch.stack(
                [restored(model, history, [*clean, one], [0] * (n - 1) + [t]) for one in x]
            )
            before, rest = ALPHA_BARS[t - 1] if t else 1.0, 1 - ALPHA_BARS[t]
            mean = before**0.5 * BETAS[t] / rest * x_0
            mean += (1 - BETAS[t]) ** 0.5 * (1 - before) / rest * x
            deviation = ((1 - before) / rest * BETAS[t]) ** 0.5
            x = mean + deviation * keyed.normal(2, D)[0] if t else mean
        torch.testing.assert_close(found[row], x, rtol=1e-3, atol=1e-4)


def test_three_stages(monkeypatch) -> None:
    model, phases = begun(monkeypatch, LOG, pretrain_epochs=3, frozen_epochs=2)
    assert [phase[3].get("phase", "fit") for phase in phases] == ["pretrain", "frozen", "fit"]
    assert [phase[3].get("epochs") for phase in phases] == [3, 2, None]
    assert_same(model, phases[0][0](BATCH), next_item_by_hand(model, BATCH), allow_unused=True)
    (update,) = phases[1][0]
    held = {
        name for name, p in model.named_parameters() if all(p is not own for own in update.moved)
    }
    assert held == {"table.vectors.weight"}
    _, alone = begun(monkeypatch, LOG, pretrain_epochs=0, frozen_epochs=0)
    assert len(alone) == 1


def test_the_item_embeddings_are_kept_between_the_stages_and_the_encoder_is_not() -> None:
    tables, encoders = [], []

    def look(model: ADRec, epoch) -> None:
        tables.append(model.table.vectors.weight.detach().clone())
        encoders.append(model.encoder.norm.weight.detach().clone())

    settings = SETTINGS | {
        "pretrain_epochs": 1,
        "frozen_epochs": 1,
        "epochs": 1,
        "average_epochs": 0.0,
    }
    model = ADRec(**settings)
    model.fit(LOG, runtime=Runtime(progress=False, on_epoch=partial(look, model)))
    assert [epoch.phase for epoch in model.curve] == ["pretrain", "frozen", "fit"]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[1], tables[2])
    first = (encoders[0] - 1).abs().max()
    assert (encoders[1] - 1).abs().max() <= first + 1e-9  # one epoch away from its draw, not two


def test_refusals() -> None:
    assert_refused(
        ADRec, SETTINGS | {"dim": 7, "n_heads": 1}, "dim: must be a multiple of 2, got 7"
    )
    assert_refused(ADRec, SETTINGS | {"encoder": "bsarec"}, "looks ahead")
    assert_refused(ADRec, SETTINGS | {"mse_weight": 0.0, "detach_target": False}, "no effect")


def test_it_learns_more_than_popularity() -> None:
    split = leave_one_out(Store(n_users=100, n_items=40, seed=0).dataset())
    settings = {"dim": 16, "n_layers": 1, "dropout": 0.2, "learning_rate": 0.01, "batch_size": 16}
    stages = {"pretrain_epochs": 4, "frozen_epochs": 1, "n_denoiser_layers": 1, "epochs": 5}
    model = ADRec(**settings, **stages).fit(split.train, runtime=Runtime(progress=False))
    counted = find_recommender("popularity")().fit(split.train)
    learned, floor = (
        evaluate(method, split.test).metrics["NDCG@10"] for method in (model, counted)
    )
    assert learned > 1.2 * floor, (learned, floor)
