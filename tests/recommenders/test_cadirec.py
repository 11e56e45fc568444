"""CaDiRec: the noised positions, the items of the views, and its loss written out."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from diffuserec import Runtime
from diffuserec.data import Batch
from diffuserec.errors import ConfigError
from diffuserec.recommenders.cadirec import CaDiRec

from .oracles import (
    BATCH,
    LOG,
    PSEUDO,
    SMALL,
    D,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    batch_of,
    next_item_by_hand,
    nt_xent_by_hand,
    untrained,
    with_its_loss,
)

T = 40

SETTINGS = SMALL | {
    "denoiser_dropout": 0.0,
    "n_denoiser_layers": 1,
    "n_best": 3,
    "num_train_timesteps": T,
    "noise_ratio": 0.3,
    "diffusion_weight": 0.4,
}
made = partial(untrained, CaDiRec, SETTINGS)
begun = partial(with_its_loss, CaDiRec, SETTINGS)


class Watched(nn.Module):
    """A denoiser that keeps its inputs and outputs."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.calls = denoiser, []

    def forward(self, x_t, t, lengths):
        restored = self.denoiser(x_t, t, lengths)
        self.calls.append((x_t.detach(), t, restored.detach()))
        return restored


def watched(model: CaDiRec) -> list[tuple]:
    model.denoiser = Watched(model.denoiser)
    return model.denoiser.calls


# --- the loss written out, one sequence at a time ----------------------------------------------

NOISED = [[False, True, False, True, True, False], [False, True, False], [True]]
STEPS = [7, T - 1, 0]


def alpha_bars() -> list[float]:
    """The sqrt schedule in the form of ratios, capped at 0.999."""

    def wanted(u: float) -> float:
        return 1 - math.sqrt(u + 1e-4)

    left, out = 1.0, []
    for n in range(T):
        left *= 1 - min(1 - wanted((n + 1) / T) / wanted(n / T), 0.999)
        out.append(left)
    return out


def fixed_draws(patch, noised: list[list[bool]], noise, ranks) -> None:
    """Fixes the noised positions, the noise, the steps and the ranks of the views' items."""
    chance = torch.full((3, 6), 0.99)
    for sequence, flags in enumerate(noised):
        for position, flag in enumerate(flags):
            chance[sequence, position] = 0.29 if flag else 0.31
    chance[1:, 3:] = 0.0  # which would noise padding, were it real

    def integers(high, shape, **_):
        if tuple(shape) == (3,):
            assert high == T
            return torch.tensor(STEPS)
        assert (high, tuple(shape)) == (3, (2, len(ranks[0]), 1))
        return torch.tensor(ranks)[:, :, None]

    patch.setattr(torch, "rand", lambda *_, **__: chance)
    patch.setattr(torch, "randn_like", lambda _: noise)
    patch.setattr(torch, "randint", integers)


def deviation(model: CaDiRec) -> float:
    values = model.table.vectors.weight[1:].detach().double().flatten()
    return math.sqrt(float(((values - values.mean()) ** 2).sum()) / (len(values) - 1))


def loss_by_hand(model: CaDiRec, batch: Batch, noised: list[list[bool]], noise, ranks):
    c, table = model.config, model.table.vectors.weight
    scale = deviation(model) if c.normalize else 1.0
    entropies, errors, first, second = [], [], [], []
    n_noised = 0
    for sequence, length in enumerate(batch.lengths.tolist()):
        items = batch.items[sequence, :length].tolist()
        embedded = torch.stack([table[item] for item in items])
        left = alpha_bars()[STEPS[sequence]]
        x_t = torch.stack(
            [
                math.sqrt(left) * x_0 + math.sqrt(1 - left) * scale * noise[sequence, position]
                if noised[sequence][position]
                else x_0
                for position, x_0 in enumerate(embedded)
            ]
        )
        step, n = torch.tensor([STEPS[sequence]]), torch.tensor([length])
        restored = model.denoiser(x_t[None], step, n)[0]
        views = [list(items), list(items)]
        for position, item in enumerate(items):
            if noised[sequence][position]:
                log_p = torch.log_softmax(table[1:] @ restored[position], 0)
                entropies.append(-log_p[item - 1])
                errors.append((restored[position] - table[item]).square().mean())
                likeliest = (log_p.argsort(descending=True) + 1).tolist()
                for view in (0, 1):
                    views[view][position] = likeliest[ranks[view][n_noised]]
                n_noised += 1
        for view, states in zip(views, (first, second), strict=True):
            shown = torch.stack([table[item].detach() for item in view])[None]
            states.append(model.encoder(shown, n)[0, -1])
    denoising = 0.0
    if entropies:
        entropy, error = sum(entropies) / len(entropies), sum(errors) / len(errors)
        denoising = c.diffusion_weight * entropy + c.mse_weight * error
    return (
        next_item_by_hand(model, batch)
        + c.contrast_weight * nt_xent_by_hand(first, second, c)
        + denoising
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize": False},
        {"mse_weight": 1.5},
        {"similarity": "cosine", "temperature": 0.1},
        {"temperature": 0.4, "contrast_weight": 2.0, "diffusion_weight": 1.1},
        {"n_denoiser_layers": 2, "n_layers": 2},
        {"encoder": "gru", "n_layers": 2, "encoder_settings": {"hidden_dim": 5}},
    ],
    ids=str,
)
def test_the_loss_written_out(monkeypatch, settings) -> None:
    model, loss = begun(monkeypatch, **settings)
    noise = torch.randn(3, 6, D, generator=torch.Generator().manual_seed(1))
    ranks = [[0, 2, 1, 0, 1], [1, 2, 0, 2, 0]]
    with monkeypatch.context() as patch:
        fixed_draws(patch, NOISED, noise, ranks)
        ours = loss(BATCH)
    assert_same(model, ours, loss_by_hand(model, BATCH, NOISED, noise, ranks))


def test_generated_items_are_not_noised(monkeypatch) -> None:
    model, loss = begun(monkeypatch, mse_weight=0.5)
    noise = torch.randn(3, 6, D, generator=torch.Generator().manual_seed(1))
    kept = [[False, False, False, True, True, False], [False, True, False], [True]]
    ranks = [[0, 2, 1, 0], [1, 2, 0, 2]]
    chosen = [[True, True, False, True, True, False], [True, True, False], [True]]
    with monkeypatch.context() as patch:
        fixed_draws(patch, chosen, noise, ranks)
        ours = loss(PSEUDO)
    assert_same(model, ours, loss_by_hand(model, PSEUDO, kept, noise, ranks))


def test_similarity_is_the_product_unless_asked_otherwise() -> None:
    assert CaDiRec().config.similarity == "dot"


@pytest.mark.parametrize("mse_weight", [0.0, 1.0])
def test_a_batch_without_noise_has_a_loss(monkeypatch, mse_weight) -> None:
    model, loss = begun(monkeypatch, mse_weight=mse_weight)
    noise = torch.zeros(3, 6, D)
    nowhere = [[False] * len(flags) for flags in NOISED]
    with monkeypatch.context() as patch:
        fixed_draws(patch, nowhere, noise, [[], []])
        ours = loss(BATCH)
    assert torch.isfinite(ours)
    expected = loss_by_hand(model, BATCH, nowhere, noise, [[], []])
    assert_same(model, ours, expected, allow_unused=True)


# --- what is noised ----------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_a_random_share_of_the_positions_is_noised_and_padding_is_not(ratio) -> None:
    model = made(noise_ratio=ratio)
    batch = batch_of([[3, 1, 4, 1, 5, 9], [2, 6, 5], [8]] * 800)
    torch.manual_seed(0)
    first, second = model.views(batch, LOG)
    assert torch.equal(first.changed, second.changed)
    real = batch.items > 0
    assert not first.changed[~real].any()
    counts = first.changed.view(800, 3, 6).sum(0)[real[:3]]
    assert len(counts) == 10
    for count in counts.tolist():  # at each position alike
        assert abs(count - 800 * ratio) <= 4 * math.sqrt(800 * ratio * (1 - ratio))


def test_only_noised_positions_change() -> None:
    model = made()
    before = BATCH.items.clone()
    torch.manual_seed(1)
    for _ in range(20):
        for view in model.views(BATCH, LOG):
            assert torch.equal(view.items[~view.changed], BATCH.items[~view.changed])
            assert torch.equal(view.lengths, BATCH.lengths)
            if view.changed.any():
                assert int(view.items[view.changed].min()) >= 1
            assert int(view.items.max()) < V
            view.items.fill_(7)
        assert torch.equal(BATCH.items, before)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_others_are_shown_clean_and_noise_is_scaled(monkeypatch, normalize) -> None:
    model = made(normalize=normalize)
    calls = watched(model)
    noise = torch.randn(3, 6, D, generator=torch.Generator().manual_seed(2))
    with monkeypatch.context() as patch:
        fixed_draws(patch, NOISED, noise, [[0] * 5, [0] * 5])
        model.views(BATCH, LOG)
    ((x_t, t, _),) = calls
    assert t.tolist() == STEPS
    scale = deviation(model) if normalize else 1.0
    for sequence, flags in enumerate(NOISED):
        left = alpha_bars()[STEPS[sequence]]
        for position, flag in enumerate(flags):
            x_0 = model.table.vectors.weight[BATCH.items[sequence, position]].detach()
            added = math.sqrt(1 - left) * scale * noise[sequence, position]
            noisy = math.sqrt(left) * x_0 + added
            torch.testing.assert_close(x_t[sequence, position], noisy if flag else x_0)
    assert not x_t[BATCH.items == 0].any()


def test_noise_is_normal_and_of_any_step() -> None:
    model = made(noise_ratio=1.0, normalize=False)
    calls = watched(model)
    batch = batch_of([[3]] * 4000)
    torch.manual_seed(3)
    model.views(batch, LOG)
    ((x_t, t, _),) = calls
    assert stats.chisquare(np.bincount(t.numpy(), minlength=T)).pvalue > 1e-3
    left = torch.tensor(alpha_bars())[t][:, None]
    x_0 = model.table.vectors.weight[3].detach()
    noise = (x_t[:, 0] - left.sqrt() * x_0) / (1 - left).sqrt()
    assert stats.kstest(noise.flatten()[:8000].numpy(), "norm").pvalue > 1e-3


# --- the views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_best", [1, 3])
def test_each_view_draws_its_item_from_the_likeliest(n_best) -> None:
    model = made(noise_ratio=0.5, n_best=n_best)
    calls = watched(model)
    batch = batch_of([[3, 1, 4, 1, 5], [2, 6, 5]] * 600)
    torch.manual_seed(4)
    first, second = model.views(batch, LOG)
    ((_, _, restored),) = calls
    where = first.changed.nonzero().tolist()
    assert len(where) > 1500
    scores = (restored @ model.table.vectors.weight[1:].detach().T).tolist()
    pairs = np.zeros((n_best, n_best), dtype=int)
    for sequence, position in where:
        of_items = scores[sequence][position]
        likeliest = sorted(range(1, V), key=lambda item, s=of_items: -s[item - 1])[:n_best]
        pairs[
            likeliest.index(int(first.items[sequence, position])),
            likeliest.index(int(second.items[sequence, position])),
        ] += 1
    # all pairs equally often: neither view depends on the other's item
    assert n_best == 1 or stats.chisquare(pairs.flatten()).pvalue > 1e-3


def test_the_contrast_trains_the_encoder_and_not_the_items(monkeypatch) -> None:
    found = []
    for weight in (0.0, 1.0):
        model, loss = begun(monkeypatch, contrast_weight=weight, diffusion_weight=0.0)
        torch.manual_seed(5)
        loss(BATCH).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    without, with_it = found
    torch.testing.assert_close(with_it["table.vectors.weight"], without["table.vectors.weight"])
    for name in with_it:
        if name.startswith("encoder.blocks.") or name == "encoder.positions.weight":
            assert not torch.allclose(with_it[name], without[name], atol=1e-4), name
        if name.startswith("denoiser."):
            assert not with_it[name].any(), name


def test_the_denoiser_has_a_dropout_of_its_own() -> None:
    model = made(dropout=0.0, denoiser_dropout=0.4)
    model.train()
    passes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        x_0, t = model.table.embed(BATCH.items), torch.zeros(3, dtype=torch.int64)
        passes.append(model.denoiser(x_0, t, BATCH.lengths))
        passes.append(model.encode(BATCH.items, BATCH.lengths))
    assert not torch.equal(passes[0], passes[2])
    assert torch.equal(passes[1], passes[3])


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "softmax"},
        {"loss": "bce"},
        {"loss": "gbce"},
        {"loss": "sampled_softmax"},
        {"examples": "windows", "max_len": 4},
        {"examples": "prefixes"},
        {"normalize": False, "mse_weight": 0.5, "beta_schedule": "linear", "dropout": 0.3},
        {"noise_ratio": 1.0, "n_best": 25, "beta_schedule": "cosine"},
        {"noise_ratio": 1e-9},
        {"encoder": "caser", "n_layers": 2, "n_heads": 4},
    ],
    ids=str,
)
def test_every_loss_example_and_option_fits(random_log, settings) -> None:
    assert_fits(CaDiRec, SETTINGS | {"batch_size": 64} | settings, random_log)


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(CaDiRec, SETTINGS, random_log, Runtime(precision="bf16"))


def test_more_likeliest_items_than_there_are_items_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"n_best {V} is more than the {V - 1} items") as refusal:
        CaDiRec(**SETTINGS | {"n_best": V}).fit(LOG)
    assert "\n" not in str(refusal.value)
    model = CaDiRec(**SETTINGS | {"n_best": V - 1}).fit(LOG)
    assert np.isfinite(model.curve[0].loss)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"noise_ratio": 0}, "noise_ratio: .*greater than 0, got 0"),
        ({"noise_ratio": 1.5}, "noise_ratio: .*less than or equal to 1, got 1.5"),
        ({"n_best": 0}, "n_best: .*greater than or equal to 1, got 0"),
        ({"denoiser_dropout": 1.0}, "denoiser_dropout: .*less than 1, got 1.0"),
        ({"n_denoiser_layers": 0}, "n_denoiser_layers: .*greater than or equal to 1, got 0"),
        ({"mse_weight": -1}, "mse_weight: .*greater than or equal to 0, got -1"),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"dim": 9, "n_heads": 3}, "dim: must be a multiple of 2, got 9"),
        ({"dim": 2}, "dim: must be greater than or equal to 4, got 2"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
        # the denoiser has heads, too
        ({"encoder": "gru", "n_layers": 2, "n_heads": 3}, "dim 8 is not divisible by n_heads 3"),
        (
            {"num_train_timesteps": 10, "beta_schedule": "linear"},
            r"outside \(0, 1\): use more training steps",
        ),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be contrasted with"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(CaDiRec, SETTINGS | settings, message)


def test_pseudo_items_are_not_noised() -> None:
    model = made(noise_ratio=1.0)
    real = BATCH.real.clone()
    real[:, 0] = False
    for view in model.views(replace(BATCH, real=real), LOG):
        assert torch.equal(view.changed, real)
