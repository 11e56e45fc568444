"""SimDiffRec: forward process, noise, views and loss against the same mathematics in loops."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from scipy import stats
from torch import Tensor, nn

from diffuserec import Runtime
from diffuserec.data import Batch
from diffuserec.errors import ConfigError
from diffuserec.models.diffusion import NoiseSchedule
from diffuserec.recommenders import simdiffrec
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.recommenders.simdiffrec import SimDiffRec, forward_weights

from .oracles import (
    BATCH,
    LOG,
    PSEUDO,
    SMALL,
    D,
    V,
    assert_fits,
    assert_found_anew,
    assert_refused,
    assert_same,
    batch_of,
    last_state,
    nearest_by_hand,
    next_item_by_hand,
    one_way_by_hand,
    ragged,
    untrained,
    with_its_loss,
)

T = 40

SETTINGS = SMALL | {
    "k_noise": 2,
    "k_sample": 3,
    "num_train_timesteps": T,
    "diffusion_weight": 0.4,
    "mse_weight": 1.0,
}


GAUSSIAN = {"forward_process": "gaussian", "k_noise": 25}  # which has no similar items
GRU = {"encoder": "gru", "n_layers": 2, "encoder_settings": {"hidden_dim": 5}}


def made(**settings) -> SimDiffRec:
    return untrained(SimDiffRec, SETTINGS, **settings)


def begun(monkeypatch, **settings):
    """A model, not trained, that knows the similar items, and the loss of its fit."""
    model, loss = with_its_loss(SimDiffRec, SETTINGS, monkeypatch, **settings)
    model.views(BATCH, LOG)
    return model, loss


class FakeDenoiser(nn.Module):
    """A denoiser that keeps the embeddings and the steps that it is given.

    Args:
        restore: from those to the restored embeddings; None returns the embeddings.
    """

    def __init__(self, restore: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.restore, self.calls = restore, []

    def forward(self, x_t: Tensor, t: Tensor, lengths: Tensor, blocks=None) -> Tensor:
        self.calls.append((x_t, t))
        return x_t if self.restore is None else self.restore(x_t, t)


def noise_of(model: SimDiffRec, batch: Batch) -> Tensor:
    """The noise of these items: all that a sequence's last step has, where it has no signal."""
    assert model.config.forward_process != "convex"
    model.denoiser = FakeDenoiser()
    model.views(batch, LOG)
    return model.denoiser.calls[0][0]


def restored_of(model: SimDiffRec, batch: Batch) -> Tensor:
    """The embeddings that the denoiser restores for the views."""
    found = []
    hook = model.denoiser.register_forward_hook(lambda *call: found.append(call[-1]))
    model.views(batch, LOG)
    hook.remove()
    return found[-1]


def views_of(model: SimDiffRec, lists: list[list[int]]):
    """The views of these sequences, and the batch they are of."""
    batch = batch_of(lists)
    return model.views(batch, LOG), batch


def some_lists(n: int, longest: int = 8, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [
        generator.integers(1, V, length).tolist()
        for length in generator.integers(1, longest + 1, n)
    ]


# --- the method written out, one sequence at a time --------------------------------------------


def weights_by_hand(model: SimDiffRec) -> tuple[list[float], list[float]]:
    """Weights of item and noise after each step; the betas are the schedule's."""
    c = model.config
    left, products = 1.0, []
    for beta in NoiseSchedule.named(c.beta_schedule, T).betas.tolist():
        left *= 1 - beta
        products.append(left)
    if c.forward_process == "convex":
        return products, [1 - a for a in products]
    roots = [math.sqrt(a) for a in products]
    roots = [(r - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for r in roots]
    return roots, [math.sqrt(1 - r * r) for r in roots]


def noise_by_hand(model: SimDiffRec, items: list[int]):
    table = model.table.vectors.weight
    found = []
    for item in items:
        near = nearest_by_hand(table, item, model.config.k_noise)
        found.append(sum(table[other] for other in near) / len(near))
    return torch.stack(found)


def denoise_by_hand(model: SimDiffRec, z_t, t: int):
    blocks = model.encoder.blocks if model.config.share_encoder else model.denoiser.blocks
    return model.denoiser(z_t[None], torch.tensor([t]), torch.tensor([len(z_t)]), blocks)[0]


@torch.no_grad()
def restored_by_hand(model: SimDiffRec, items: list[int]):
    """From the fully noised sequence back: each step replaces noise by restored embeddings."""
    n = model.config.num_inference_steps
    signal, weight = weights_by_hand(model)
    z_0, noise = model.table.vectors.weight[torch.tensor(items)], noise_by_hand(model, items)
    visited = [T * left // n - 1 for left in range(n, 0, -1)]
    deviation = model.table.vectors.weight[1:].std()
    z_t = signal[-1] * z_0 + weight[-1] * noise
    for now, after in itertools.pairwise(visited):
        z_0 = deviation * denoise_by_hand(model, z_t, now)
        z_t = z_t + (signal[after] - signal[now]) * z_0 + (weight[after] - weight[now]) * noise
    return denoise_by_hand(model, z_t, visited[-1])


def ranked_by_hand(model: SimDiffRec, restored, items: list[int]) -> tuple[list, list[list[int]]]:
    """Greatest probability of each position, and its items from the likeliest on."""
    probabilities = torch.softmax(
        restored.detach() @ model.table.vectors.weight[1:].detach().T, dim=1
    )
    ranked = [
        sorted(range(1, V), key=lambda item, p=p: -p[item - 1]) for p in probabilities.tolist()
    ]
    if model.config.exclude_original:
        ranked = [
            [item for item in order if item != own]
            for order, own in zip(ranked, items, strict=True)
        ]
    return [max(p.tolist()) for p in probabilities], ranked


def count_by_hand(model: SimDiffRec, length: int) -> int:
    ratio = Fraction(str(model.config.augment_ratio))
    if model.config.augment_count == "max_len":
        return min(length, max(1, math.floor(ratio * model.config.max_len)))
    return math.ceil(ratio * length)


def views_by_hand(model: SimDiffRec, restored, items: list[int]) -> list[list[int]]:
    confidence, ranked = ranked_by_hand(model, restored, items)
    chosen = sorted(range(len(items)), key=lambda position: -confidence[position])
    chosen = chosen[: count_by_hand(model, len(items))]
    ranks = [0] + ([model.config.k_sample - 1] if model.config.k_sample else [])
    return [
        [ranked[p][rank] if p in chosen else item for p, item in enumerate(items)] for rank in ranks
    ]


def loss_by_hand(model: SimDiffRec, batch: Batch, t: list[int]):
    c, table = model.config, model.table.vectors.weight
    signal, weight = weights_by_hand(model)
    entropies, errors = [], []
    anchors, positives, negatives = [], [], []
    for sequence, length in enumerate(batch.lengths.tolist()):
        items = batch.items[sequence, :length].tolist()
        z_0, step = table[torch.tensor(items)], t[sequence]
        z_t = signal[step] * z_0 + weight[step] * noise_by_hand(model, items)
        restored = denoise_by_hand(model, z_t, step)
        for position, item in enumerate(items):
            if not batch.real[sequence, position]:
                continue
            scores = torch.log_softmax(table[1:] @ restored[position], 0)
            entropies.append(-scores[item - 1])
            aim = z_0[position] / table[1:].std().detach()
            errors.append((restored[position] - aim).square().mean())
        if c.augment_step == "last":
            restored = restored_by_hand(model, items)
        positive, *negative = views_by_hand(model, restored, items)
        anchors.append(last_state(model, items))
        positives.append(last_state(model, positive))
        negatives += [last_state(model, view) for view in negative]
    denoising = torch.stack(entropies).mean() + c.mse_weight * torch.stack(errors).mean()
    return (
        next_item_by_hand(model, batch)
        + c.contrast_weight * one_way_by_hand(anchors, positives + negatives, c)
        + c.diffusion_weight * denoising
    )


# --- the forward process -----------------------------------------------------------------------


@pytest.mark.parametrize("name, n", [("linear", 1000), ("cosine", 50), ("sqrt", 50)])
def test_convex_weights_are_those_of_the_recursion(name, n) -> None:
    schedule = NoiseSchedule.named(name, n)
    signal, weight = forward_weights("convex", schedule)
    generator = torch.Generator().manual_seed(0)
    z_0, noise = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    z_t = z_0
    for t, beta in enumerate(schedule.betas.tolist()):
        z_t = (1 - beta) * z_t + beta * noise
        torch.testing.assert_close(signal[t] * z_0 + weight[t] * noise, z_t, rtol=0, atol=1e-12)
    torch.testing.assert_close(signal + weight, torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize(
    "step, of_item, of_noise",
    [
        (1, (0.9999, 5e-5), (0.0001, 5e-5)),
        (100, (0.897, 5e-4), (0.103, 5e-4)),
        (500, (0.0786, 5e-5), (0.921, 5e-4)),
        (1000, (4e-5, 5e-6), (1.000, 5e-4)),
    ],
)
def test_convex_weights_of_a_thousand_linear_betas(step, of_item, of_noise) -> None:
    signal, weight = forward_weights("convex", NoiseSchedule.named("linear", 1000))
    assert float(signal[step - 1]) == pytest.approx(of_item[0], abs=of_item[1])
    assert float(weight[step - 1]) == pytest.approx(of_noise[0], abs=of_noise[1])


@pytest.mark.parametrize("process", ["vp", "gaussian"])
@pytest.mark.parametrize("name, n", [("linear", 1000), ("cosine", 50), ("sqrt", 50)])
def test_the_last_step_has_no_signal(process, name, n) -> None:
    schedule = NoiseSchedule.named(name, n)
    signal, weight = forward_weights(process, schedule)
    assert float(signal[0]) == pytest.approx(math.sqrt(1 - float(schedule.betas[0])), rel=1e-12)
    assert (float(signal[-1]), float(weight[-1])) == (0.0, 1.0)
    torch.testing.assert_close(signal**2 + weight**2, torch.ones(n, dtype=torch.float64))
    assert bool((signal.diff() < 0).all())
    rescaled = 1 - rescale_zero_terminal_snr(schedule.betas)
    torch.testing.assert_close(signal**2, rescaled.cumprod(0), rtol=1e-9, atol=1e-12)


# --- noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, V - 2])
def test_noise_is_the_mean_of_the_most_similar_items(k) -> None:
    model = made(forward_process="vp", k_noise=k)
    noise = noise_of(model, BATCH)
    for n, length in enumerate(BATCH.lengths.tolist()):
        expected = noise_by_hand(model, BATCH.items[n, :length].tolist())
        torch.testing.assert_close(noise[n, :length], expected)
    assert not noise[BATCH.items == 0].any()


def test_neither_padding_nor_the_item_itself_is_similar_to_it() -> None:
    model = made(forward_process="vp", k_noise=3)
    with torch.no_grad():
        # item 13 is most like itself, then like padding; all others are on the other side
        model.table.vectors.weight[1:] = torch.arange(1.0, V)[:, None]
        model.table.vectors.weight[V - 1] *= -1
    noise = noise_of(model, batch_of([[V - 1, V - 2]]))
    assert noise[0, 0].tolist() == [2.0] * D  # items 1, 2 and 3
    assert noise[0, 1].tolist() == [10.0] * D  # items 11, 10 and 9


def last_noised(monkeypatch, **settings) -> tuple[SimDiffRec, Tensor]:
    """A model, and the embeddings of item 4 in training at the last step, with their graph."""
    model, loss = begun(monkeypatch, **settings)
    item = torch.tensor([[4]])
    model.denoiser = FakeDenoiser()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda high, shape, **_: torch.full(shape, high - 1))
        loss(Batch(item[0], item, torch.tensor([1]), item, item[0]))
    return model, model.denoiser.calls[0][0]


def test_noise_teaches_the_similar_items_and_nobody_else(monkeypatch) -> None:
    model, noise = last_noised(monkeypatch, forward_process="vp", k_noise=3)
    (gradient,) = torch.autograd.grad(noise.sum(), model.table.vectors.weight)
    expected = torch.zeros(V, D)
    expected[nearest_by_hand(model.table.vectors.weight, 4, 3)] = 1 / 3
    torch.testing.assert_close(gradient, expected)


def test_padding_has_no_influence(monkeypatch) -> None:
    model, loss = begun(monkeypatch)
    wider = Batch(
        BATCH.users,
        F.pad(BATCH.items, (0, 2)),
        BATCH.lengths,
        F.pad(BATCH.targets, (0, 2)),
        BATCH.last_target_index,
    )
    torch.manual_seed(3)
    narrow = loss(BATCH)
    torch.manual_seed(3)
    assert_same(model, loss(wider), narrow)
    (gradient,) = torch.autograd.grad(loss(BATCH), [model.table.vectors.weight])
    assert not gradient[0].any()


def test_gaussian_noise_has_the_deviation_of_the_table(monkeypatch) -> None:
    model = made(**GAUSSIAN)
    values = model.table.vectors.weight[1:].detach().double().flatten()
    deviation = math.sqrt(float(((values - values.mean()) ** 2).sum()) / (len(values) - 1))
    torch.manual_seed(0)
    noise = noise_of(model, batch_of([[1] * 6] * 4000))
    assert float(noise.std()) == pytest.approx(deviation, rel=0.01)
    assert abs(float(noise.mean())) < 0.01 * deviation
    drawn = noise.flatten()[:2000].double().numpy() / deviation
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    model, noise = last_noised(monkeypatch, **GAUSSIAN)
    (gradient,) = torch.autograd.grad(noise.sum(), model.table.vectors.weight)
    assert not gradient.any()


def test_similar_items_are_found_anew_before_each_epoch(monkeypatch, random_log) -> None:
    seen = []
    cross_entropy = simdiffrec.softmax_cross_entropy

    def watched(states, vectors, targets):
        seen.append((vectors.detach().clone(), model.neighbors.clone()))
        return cross_entropy(states, vectors, targets)

    monkeypatch.setattr(simdiffrec, "softmax_cross_entropy", watched)
    model = SimDiffRec(**SETTINGS | {"epochs": 3, "learning_rate": 0.05})
    model.fit(random_log)
    assert_found_anew(seen, 2)


# --- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"k_sample": 0},
        {"k_sample": 2},
        {"mse_weight": 0.0},
        {"similarity": "dot", "temperature": 2.0},
        {"share_encoder": True, "n_layers": 2},
        {"share_encoder": True, "augment_step": "random"},
        {"augment_step": "random"},
        {"exclude_original": True},
        {"forward_process": "vp"},
        {"forward_process": "vp", "num_inference_steps": 3, "beta_schedule": "cosine"},
        {"num_inference_steps": 4},
        {"augment_count": "max_len", "augment_ratio": 0.3},
        {"augment_ratio": 1.0, "k_sample": V - 1},
        {"n_denoiser_layers": 2, "k_noise": V - 2},
        GRU,
        {"contrast_weight": 0.2, "diffusion_weight": 1.5, "mse_weight": 3.0, "temperature": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [BATCH, PSEUDO], ids=["all real", "some generated"])
def test_the_loss_written_out(monkeypatch, settings, batch) -> None:
    model, loss = begun(monkeypatch, **settings)
    asked = []

    def steps(high, shape, **_):
        asked.append((high, tuple(shape)))
        return torch.tensor([17, T - 1, 0])

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", steps)
        ours = loss(batch)
    assert asked == [(T, (3,))]  # a step for each sequence
    assert_same(model, ours, loss_by_hand(model, batch, [17, T - 1, 0]))


def watched_passes(model: SimDiffRec) -> dict[str, list[int]]:
    """Sequences that the encoder and the denoiser are given from now on, a number for each pass."""
    passes: dict[str, list[int]] = {"encoder": [], "denoiser": []}
    for name, found in passes.items():
        getattr(model, name).register_forward_pre_hook(
            lambda _, given, found=found: found.append(len(given[0]))
        )
    return passes


NO_VIEWS = {"augment_ratio": 0.0, "k_sample": 0}


@pytest.mark.parametrize(
    "settings, encoded, denoised",
    [
        ({}, 9, 2),  # the sequences and two views; in training, and for the views
        ({"k_sample": 0}, 6, 2),
        ({"augment_step": "random"}, 9, 1),
        ({"contrast_weight": 0.0}, 3, 1),
        (NO_VIEWS, 6, 1),
        (NO_VIEWS | {"diffusion_weight": 0.0}, 6, 0),
        ({"contrast_weight": 0.0, "diffusion_weight": 0.0}, 3, 0),
    ],
    ids=str,
)
def test_what_has_no_weight_costs_nothing(monkeypatch, settings, encoded, denoised) -> None:
    model, loss = begun(monkeypatch, **settings)
    passes = watched_passes(model)
    torch.manual_seed(0)
    value = loss(BATCH)
    assert passes == {"encoder": [encoded], "denoiser": [3] * denoised}
    assert float(value.detach()) > 0


def test_confidences_are_asked_for_only_where_positions_follow_from_them(monkeypatch) -> None:
    asked: list[int] = []
    original = simdiffrec.max_prob
    monkeypatch.setattr(simdiffrec, "max_prob", lambda *given: asked.append(1) or original(*given))
    for positions, n in (("confident", 1), ("random", 0)):
        model, loss = begun(monkeypatch, positions=positions)
        asked.clear()
        loss(BATCH)
        assert len(asked) == n
        view, _ = model.views(BATCH, LOG)  # and for people
        assert (view.confidence[BATCH.items > 0] > 0).all()


def test_without_both_weights_it_is_sasrec(random_log) -> None:
    shared = {name: SMALL[name] for name in SMALL if name != "contrast_weight"}
    shared |= {"epochs": 2, "examples": "per_user"}
    plain = SASRec(**shared).fit(random_log)
    without = {"contrast_weight": 0.0, "diffusion_weight": 0.0}
    model = SimDiffRec(**SETTINGS | shared | without).fit(random_log)
    assert [epoch.loss for epoch in model.curve] == [epoch.loss for epoch in plain.curve]
    assert torch.equal(model.table.vectors.weight, plain.table.vectors.weight)


@pytest.mark.parametrize("diffusion_weight", [0.0, 0.4])
def test_without_replaced_items_dropout_is_what_is_contrasted(
    monkeypatch, diffusion_weight
) -> None:
    model, loss = begun(monkeypatch, **NO_VIEWS, diffusion_weight=diffusion_weight)
    (view,) = model.views(BATCH, LOG)
    assert torch.equal(view.items, BATCH.items)
    assert not view.changed.any()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_, **__: torch.tensor([17, T - 1, 0]))
        ours = loss(BATCH)
    sequences = [BATCH.items[n, :length].tolist() for n, length in enumerate(BATCH.lengths)]
    states = [last_state(model, items) for items in sequences]
    expected = next_item_by_hand(model, BATCH)
    expected = expected + 0.7 * one_way_by_hand(states, states, model.config)
    if diffusion_weight:
        signal, weight = weights_by_hand(model)
        table = model.table.vectors.weight
        entropies, errors = [], []
        for items, t in zip(sequences, [17, T - 1, 0], strict=True):
            z_0 = table[torch.tensor(items)]
            noised = signal[t] * z_0 + weight[t] * noise_by_hand(model, items)
            restored = denoise_by_hand(model, noised, t)
            chances = torch.log_softmax(restored @ table[1:].T, 1)
            entropies += [-row[item - 1] for row, item in zip(chances, items, strict=True)]
            errors += list((restored - z_0 / table[1:].std()).square().mean(1))
        denoising = torch.stack(entropies).mean() + torch.stack(errors).mean()
        expected = expected + diffusion_weight * denoising
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


def test_similarity_is_the_cosine_unless_asked_otherwise() -> None:
    assert SimDiffRec().config.similarity == "cosine"


def test_every_step_is_equally_likely() -> None:
    model = made(num_train_timesteps=25, augment_step="random")
    model.denoiser = FakeDenoiser()
    torch.manual_seed(1)
    model.views(batch_of([[1]] * 5000), LOG)
    counts = np.bincount(model.denoiser.calls[0][1].numpy(), minlength=25)
    assert stats.chisquare(counts).pvalue > 1e-3


# --- the views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.28, 1 / 3, 0.7, 1.0])
def test_a_share_of_the_length_is_replaced_rounded_up(ratio) -> None:
    model = made(augment_ratio=ratio, max_len=25)
    views, batch = views_of(model, [[1 + n % (V - 1) for n in range(n)] for n in range(1, 26)])
    share = Fraction(1, 3) if ratio == 1 / 3 else Fraction(str(ratio))
    for view in views:
        assert view.changed.sum(1).tolist() == [math.ceil(share * n) for n in range(1, 26)]
        assert not (view.changed & (batch.items == 0)).any()


@pytest.mark.parametrize("ratio, n", [(0.2, 2), (0.01, 1), (0.3, 3), (1.0, 10)])
def test_or_a_share_of_the_longest_length_rounded_down(ratio, n) -> None:
    model = made(augment_ratio=ratio, augment_count="max_len", max_len=10)
    views, batch = views_of(model, [[*range(1, length + 1)] for length in (1, 2, 3, 5, 10)])
    for view in views:
        assert view.changed.sum(1).tolist() == [min(length, n) for length in (1, 2, 3, 5, 10)]
        assert not (view.changed & (batch.items == 0)).any()


@pytest.mark.parametrize("exclude_original", [False, True])
@pytest.mark.parametrize("k_sample", [2, 5, V - 2])
def test_views_are_the_likeliest_items_where_they_are_surest(exclude_original, k_sample) -> None:
    model = made(exclude_original=exclude_original, k_sample=k_sample, augment_ratio=0.4)
    lists = some_lists(30)
    (positive, negative), batch = views_of(model, lists)
    assert [positive.name, negative.name] == ["positive", "hard negative"]
    before = batch.items.clone()
    for n, items in enumerate(lists):
        restored = restored_by_hand(model, items)
        confidence, _ = ranked_by_hand(model, restored, items)
        np.testing.assert_allclose(positive.confidence[n, : len(items)], confidence, rtol=1e-4)
        best, worse = views_by_hand(model, restored, items)
        assert positive.items[n, : len(items)].tolist() == best
        assert negative.items[n, : len(items)].tolist() == worse
    assert torch.equal(batch.items, before)
    for view in (positive, negative):
        assert not view.items[batch.items == 0].any()
        assert torch.equal(view.lengths, batch.lengths)
        assert torch.equal(view.items[~view.changed], batch.items[~view.changed])
        assert int(view.items[batch.items > 0].min()) >= 1
        assert int(view.items.max()) < V
    changed = positive.changed
    assert torch.equal(negative.changed, changed)
    assert bool((positive.items != negative.items)[changed].all())
    if exclude_original:
        assert bool((positive.items != batch.items)[changed].all())
        assert bool((negative.items != batch.items)[changed].all())


def test_rank_zero_is_no_view() -> None:
    (positive, _), _ = views_of(made(k_sample=2, augment_ratio=0.5), some_lists(20))
    (alone,), _ = views_of(made(k_sample=0, augment_ratio=0.5), some_lists(20))
    assert alone.name == "positive"
    assert torch.equal(alone.items, positive.items)


@pytest.mark.parametrize("exclude", [False, True])
def test_a_restored_item_may_be_the_original_unless_excluded(exclude) -> None:
    model = made(exclude_original=exclude, augment_ratio=1.0, num_inference_steps=1)
    with torch.no_grad():  # so that every embedding is nearest to itself
        model.table.vectors.weight.copy_(F.normalize(model.table.vectors.weight))
    lists = some_lists(10)
    known = model.table.vectors.weight[ragged(lists)[0]].detach()
    model.denoiser = FakeDenoiser(lambda z_t, t: known)
    (positive, _), batch = views_of(model, lists)
    real = batch.items > 0
    assert bool((positive.items == batch.items)[real].all()) != exclude
    assert bool((positive.items != batch.items)[real].all()) == exclude


def test_random_positions_are_equally_likely() -> None:
    model = made(positions="random", augment_ratio=0.2)
    torch.manual_seed(4)
    (positive, negative), _ = views_of(model, [[3, 1, 4, 1, 5]] * 3000 + [[*range(1, 9)]])
    assert torch.equal(positive.changed, negative.changed)
    where = positive.changed[:-1]
    assert set(where.sum(1).tolist()) == {1}
    counts = where.sum(0).tolist()
    assert counts[5:] == [0, 0, 0]
    assert stats.chisquare(counts[:5]).pvalue > 1e-3
    # confident positions are the same for all of these
    (confident, _), _ = views_of(made(augment_ratio=0.2), [[3, 1, 4, 1, 5]] * 10)
    assert sorted(confident.changed.sum(0).tolist()) == [0, 0, 0, 0, 10]


@pytest.mark.parametrize("process", ["convex", "vp"])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, T])
def test_a_denoiser_that_knows_the_items_restores_them_in_any_number_of_steps(
    process, n_steps
) -> None:
    model = made(forward_process=process, num_inference_steps=n_steps)
    signal, weight = weights_by_hand(model)
    z_0 = model.table.vectors.weight[BATCH.items].detach()
    restored = z_0 / model.table.vectors.weight[1:].std().detach()
    noise = torch.zeros_like(z_0)
    for n, length in enumerate(BATCH.lengths.tolist()):
        noise[n, :length] = noise_by_hand(model, BATCH.items[n, :length].tolist()).detach()

    def knows(z_t: Tensor, t: Tensor) -> Tensor:
        # and the way back is the way there
        (step,) = set(t.tolist())
        torch.testing.assert_close(z_t, signal[step] * z_0 + weight[step] * noise)
        return restored

    model.denoiser = FakeDenoiser(knows)
    positive, _ = model.views(BATCH, LOG)
    real = BATCH.items > 0
    chances = torch.softmax(restored[real] @ model.table.vectors.weight[1:].detach().T, 1)
    torch.testing.assert_close(positive.confidence[real], chances.amax(1))
    visited = [int(t[0]) for _, t in model.denoiser.calls]
    assert len(visited) == n_steps
    assert visited[0] == T - 1
    assert visited == sorted(set(visited), reverse=True)


def test_later_steps_see_what_earlier_ones_restored() -> None:
    found = []
    for n_steps in (1, 4):
        model = made(num_inference_steps=n_steps)
        found.append(restored_of(model, BATCH))
        for n, length in enumerate(BATCH.lengths.tolist()):
            expected = restored_by_hand(model, BATCH.items[n, :length].tolist())
            torch.testing.assert_close(found[-1][n, :length], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*found)


def test_dropout_acts_in_training_and_not_where_views_are_made() -> None:
    model = made(dropout=0.5)
    model.eval()
    without = restored_of(model, BATCH)
    assert not any(module.training for module in model.modules())
    model.train()
    assert torch.equal(restored_of(model, BATCH), without)
    assert all(module.training for module in model.modules())  # as before
    passes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        z_0, t = model.table.embed(BATCH.items), torch.zeros(3, dtype=torch.int64)
        passes.append(model.denoiser(z_0, t, BATCH.lengths))
    assert not torch.equal(*passes)


@pytest.mark.parametrize("augment_step", ["last", "random"])
def test_confidences_of_a_random_step_are_those_of_the_training_pass(
    monkeypatch, augment_step
) -> None:
    model, loss = begun(monkeypatch, dropout=0.5, augment_step=augment_step)
    asked = []
    model.denoiser.register_forward_pre_hook(
        lambda module, inputs: asked.append((inputs[1].tolist(), module.training))
    )
    model.train()
    torch.manual_seed(0)
    loss(BATCH)
    random_step = asked[0][0]
    assert asked[0][1]
    assert random_step != [T - 1] * 3
    assert asked[1:] == ([([T - 1] * 3, False)] if augment_step == "last" else [])
    # and views() makes the views of training
    asked.clear()
    torch.manual_seed(0)
    model.eval()
    model.views(BATCH, LOG)
    assert asked == [([T - 1] * 3 if augment_step == "last" else random_step, False)]


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
        GAUSSIAN | {"positions": "random", "dropout": 0.3},
        {"share_encoder": True, "augment_step": "random", "augment_count": "max_len"},
        NO_VIEWS | {"dropout": 0.3},
        NO_VIEWS | {"dropout": 0.3, "diffusion_weight": 0.0},
        {"n_heads": 1, "dim": 6, "k_sample": 0, "num_inference_steps": T},
        {"encoder": "caser", "n_layers": 2, "n_heads": 4},
    ],
    ids=str,
)
def test_every_loss_example_and_option_fits(random_log, settings) -> None:
    assert_fits(SimDiffRec, SETTINGS | {"batch_size": 64} | settings, random_log)


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(SimDiffRec, SETTINGS, random_log, Runtime(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"augment_ratio": -0.1}, "augment_ratio: .*greater than or equal to 0, got -0.1"),
        ({"augment_ratio": 1.5}, "augment_ratio: .*less than or equal to 1, got 1.5"),
        ({"k_noise": 0}, "k_noise: .*greater than or equal to 1, got 0"),
        ({"k_sample": -1}, "k_sample: .*greater than or equal to 0, got -1"),
        ({"k_sample": 1}, "k_sample 1 is the positive itself as its own hard negative"),
        ({"augment_ratio": 0}, "augment_ratio 0 makes a hard negative of the sequence itself"),
        ({"diffusion_weight": 0}, "diffusion_weight 0 leaves the denoiser as it was drawn"),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"contrast_weight": -1}, "contrast_weight: .*greater than or equal to 0, got -1"),
        ({"num_inference_steps": 0}, "num_inference_steps: .*greater than or equal to 1, got 0"),
        (
            {"num_inference_steps": T + 1},
            f"num_inference_steps {T + 1} is more than the {T} steps there are",
        ),
        ({"num_train_timesteps": 10}, r"outside \(0, 1\): use more training steps"),
        ({"dim": 9, "n_heads": 3}, "dim: must be a multiple of 2, got 9"),
        ({"dim": 2}, "dim: must be greater than or equal to 4, got 2"),
        (
            {"num_inference_steps": 2, "augment_step": "random"},
            "num_inference_steps = 2 has no effect with augment_step = 'random'",
        ),
        (
            {"forward_process": "gaussian", "k_noise": 3},
            "k_noise = 3 has no effect .*forward_process = 'convex' or forward_process = 'vp'",
        ),
        (
            {"share_encoder": True, "n_denoiser_layers": 2},
            "n_denoiser_layers = 2 has no effect with share_encoder = True",
        ),
        (GRU | {"share_encoder": True}, "share_encoder = True .* needs encoder = 'transformer'"),
        # the denoiser has heads, too
        (GRU | {"n_heads": 3}, "dim 8 is not divisible by n_heads 3"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be contrasted with"),
        ({"forward_process": "ve"}, "forward_process: .*'convex', 'vp' or 'gaussian', got 've'"),
        ({"augment_step": "first"}, "augment_step: .*'last' or 'random', got 'first'"),
        ({"k_samples": 2}, r"SimDiffRec has no setting 'k_samples' \(did you mean 'k_sample'\?\)"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(SimDiffRec, SETTINGS | settings, message)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"k_noise": V - 1}, f"k_noise {V - 1} is more than the {V - 2} other items"),
        ({"k_sample": V}, f"k_sample {V} is more than the {V - 1} ranks"),
        (
            {"k_sample": V - 1, "exclude_original": True},
            f"k_sample {V - 1} is more than the {V - 2} ranks",
        ),
    ],
    ids=str,
)
def test_ranks_beyond_the_catalog_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        SimDiffRec(**SETTINGS | settings).fit(LOG)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"k_noise": V - 2},
        GAUSSIAN,
        {"k_sample": V - 1},
        {"k_sample": V - 2, "exclude_original": True},
    ],
    ids=str,
)
def test_all_of_the_catalog_may_be_used(settings) -> None:
    model = SimDiffRec(**SETTINGS | settings).fit(LOG)
    assert np.isfinite(model.curve[0].loss)
