"""STOSA: distances of Gaussians, attention by them in both streams, and its losses written out."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from diffuserec import Runtime
from diffuserec.data import SequenceDataset, histories_of
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.recommenders import stosa
from diffuserec.recommenders.stosa import STOSA, point, positive, squared_distances

from .oracles import GAP as BATCH
from .oracles import LOG, D, V, assert_refused, assert_same, built, shaken

SETTINGS = {
    "dim": D,
    "max_len": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "batch_size": 8,
    "epochs": 1,
    "margin_weight": 0.3,
}


def made(**settings) -> STOSA:
    return shaken(built(STOSA(**SETTINGS | settings), LOG, seed=2), 0.3)


def begun(monkeypatch, **settings):
    """A model with large weights, and the loss that its fit would minimize."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(
            stosa, "train_next_item", lambda _, loss, *__, **___: taken.append(loss) or []
        )
        model = STOSA(**SETTINGS | settings).fit(LOG)
    return shaken(model), taken[0]


def gaussians(n: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator), torch.rand(n, D, generator=generator) * 3


# --- distances ---------------------------------------------------------------------------------


def w2_squared(mean, covariance, other_mean, other_covariance) -> float:
    """W2² of any two Gaussians, by matrix roots."""
    mean, a, other_mean, b = (
        np.asarray(part.detach(), dtype=np.float64)
        for part in (mean, covariance, other_mean, other_covariance)
    )
    a, b = np.diag(a), np.diag(b)
    root = sqrtm(b)
    cross = np.real(sqrtm(root @ a @ root))
    return float(np.square(mean - other_mean).sum() + np.trace(a + b - 2 * cross))


def test_distances_are_those_of_gaussians() -> None:
    these, those = gaussians(4, 0), gaussians(5, 1)
    found = squared_distances(point(*these), point(*those))
    for row in range(4):
        for column in range(5):
            expected = w2_squared(these[0][row], these[1][row], those[0][column], those[1][column])
            assert found[row, column].item() == pytest.approx(expected, rel=1e-4)


def test_a_gaussian_is_at_no_distance_of_itself_and_equal_spreads_leave_the_means() -> None:
    mean, covariance = gaussians(6, 2)
    own = squared_distances(point(mean, covariance), point(mean, covariance)).diagonal()
    torch.testing.assert_close(own, torch.zeros(6), rtol=0, atol=1e-5)
    equal = covariance[:1].expand(6, -1)
    found = squared_distances(point(mean, equal), point(mean, equal))
    torch.testing.assert_close(found, torch.cdist(mean, mean) ** 2, rtol=1e-4, atol=1e-4)


def test_covariances_of_any_parameters_are_positive_and_have_slopes() -> None:
    parameters = torch.tensor([[-200.0, -30.0, -17.2, -1.0, 0.0, 2.0]], requires_grad=True)
    covariance = positive(parameters)
    expected = [0, 0, np.exp(-17.2), np.exp(-1), 1, 3]
    np.testing.assert_allclose(covariance[0].detach(), expected, atol=1e-7)
    point(torch.zeros(1, 6), covariance).square().sum().backward()
    assert parameters.grad.isfinite().all()


# --- attention ---------------------------------------------------------------------------------


def attended_by_hand(blocks, mean, covariance):
    """One sequence, one head after the other, all positions' Gaussians one by one."""
    length, n_heads = len(mean), blocks[0].n_heads
    width = D // n_heads
    parts = []
    for block, stream in zip(blocks, (mean, covariance), strict=True):
        projected = stream @ block.query_key_value.weight.T + block.query_key_value.bias
        parts.append(projected.detach().double().numpy().reshape(length, 3, n_heads, width))
    means, raw = parts
    spreads = np.where(raw > 0, raw + 1, np.exp(raw))
    found, found_of = np.zeros((length, n_heads, width)), np.zeros((length, n_heads, width))
    for head in range(n_heads):
        weights = np.zeros((length, length))
        for own in range(length):
            logits = []
            for other in range(own + 1):
                roots = np.sqrt(spreads[own, 0, head]) - np.sqrt(spreads[other, 1, head])
                step = means[own, 0, head] - means[other, 1, head]
                logits.append(-(step @ step + roots @ roots) / np.sqrt(width))
            weights[own, : own + 1] = np.exp(logits) / np.exp(logits).sum()
        found[:, head] = weights @ means[:, 2, head]
        for column in range(width):  # of a weighted sum of independent Gaussians
            independent = np.diag(spreads[:, 2, head, column])
            found_of[:, head, column] = np.diag(weights @ independent @ weights.T)
    return (
        torch.tensor(part).float().permute(1, 0, 2)[None]  # (1, H, L, E)
        for part in (found, found_of)
    )


def raised(values):
    return torch.where(values > 0, values + 1, values.exp())


def test_states_written_out() -> None:
    model = made()
    items = torch.tensor([3, 1, 4, 1, 5])
    streams = (model.table.means, model.means), (model.table.covariances, model.covariances)
    mean, raw = (
        encoder.norm(table.vectors.weight[items] + encoder.positions.weight[:5])[None]
        for table, encoder in streams
    )
    covariance = raised(raw)
    blocks = [encoder.layers[0] for _, encoder in streams]
    seen, seen_of = attended_by_hand(blocks, mean[0], covariance[0])
    deviation = raised(blocks[1].after(covariance, seen_of)).sqrt()
    found, found_of = states(model, items.tolist())
    torch.testing.assert_close(found, blocks[0].after(mean, seen)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_of, deviation[0], rtol=1e-4, atol=1e-5)


def states(model: STOSA, items: list[int]):
    """Means and standard deviations of each position."""
    found = model.encode(torch.tensor([items]))[0]
    return found[:, :D], found[:, D:] + 1


@pytest.mark.parametrize("n_layers", [1, 2])
def test_both_streams_see_earlier_items_and_no_later_ones(n_layers) -> None:
    model = made(n_layers=n_layers)
    before = states(model, [3, 1, 4, 7])
    for mine, theirs in zip(before, states(model, [9, 1, 4, 7]), strict=True):
        assert ((mine - theirs).abs().amax(1) > 1e-3).all()
    for mine, theirs in zip(before, states(model, [3, 1, 4, 2, 0, 0]), strict=True):
        torch.testing.assert_close(mine[:3], theirs[:3])


# --- scores and losses -------------------------------------------------------------------------


def of_item(model: STOSA, item: int):
    """Mean and standard deviation."""
    deviation = raised(model.table.covariances.vectors.weight[item]).sqrt()
    return model.table.means.vectors.weight[item], deviation


def far(one, other):
    """W2² of two (mean, deviation), kept differentiable."""
    return sum((a - b).square().sum() for a, b in zip(one, other, strict=True))


@torch.no_grad()
def test_scores_are_negative_distances_of_the_newest_state_but_for_a_constant() -> None:
    model = made()
    log = SequenceDataset.from_lists([[4, 7, 2], [5], [1, 2, *range(1, 9)]], LOG.catalog)
    scores = model.score(histories_of(log, np.arange(3)))
    for row, items in enumerate(([4, 7, 2], [5], [*range(1, 9)])):  # the newest max_len
        mean, deviation = (part[-1] for part in states(model, items))
        distances = []
        for item in range(1, V):
            other, spread = of_item(model, item)
            distances.append(w2_squared(mean, deviation**2, other, spread**2))
        # the constant is the square of the state's own point, whose deviations count from 1
        constant = float(mean.square().sum() + (deviation - 1).square().sum())
        expected = torch.tensor(distances) - constant
        torch.testing.assert_close(-scores[row, 1:], expected, rtol=1e-4, atol=1e-4)


OWNERS = torch.tensor([0] * 5 + [1] * 3 + [2])


def loss_by_hand(model: STOSA, negatives: torch.Tensor, shared: list[int]):
    c, predicted, margins = model.config, [], []
    number = 0
    for row, length in enumerate(BATCH.lengths.tolist()):
        found = states(model, BATCH.items[row, :length].tolist())
        for state, target in zip(
            zip(*found, strict=True), BATCH.targets[row, :length].tolist(), strict=True
        ):
            if not target:
                continue
            near = far(state, of_item(model, target))
            if c.loss == "softmax":
                scores = torch.stack([-far(state, of_item(model, item)) for item in range(1, V)])
                predicted.append(-torch.log_softmax(scores, 0)[target - 1])
            if c.loss == "sampled_softmax":
                drawn = [(-far(state, of_item(model, i))).exp() for i in shared if i != target]
                everyone = torch.exp(-near) + (V - 1) / len(shared) * torch.stack(drawn).sum()
                predicted.append(near + torch.log(everyone))
            for other in negatives[number].tolist():
                if c.loss == "bpr":
                    pair = torch.sigmoid(far(state, of_item(model, other)) - near)
                    predicted.append(-torch.log(pair))
                margins.append((near - far(of_item(model, target), of_item(model, other))).relu())
            number += 1
    assert number == len(OWNERS)
    return torch.stack(predicted).mean() + c.margin_weight * torch.stack(margins).mean()


@pytest.mark.parametrize(
    "settings, n_pairs, n_shared",
    [
        ({}, 1, 0),
        ({"margin_weight": 0.0}, 1, 0),
        ({"loss": "bpr"}, 1, 0),
        ({"loss": "bpr", "n_negatives": 2, "n_layers": 2}, 2, 0),
        ({"loss": "sampled_softmax", "n_negatives": 6}, 1, 6),
    ],
    ids=str,
)
def test_the_loss_written_out(monkeypatch, settings, n_pairs, n_shared) -> None:
    model, loss_of = begun(monkeypatch, **settings)
    # a batch draws negatives that are none of the user's own; and then, of all items, shared ones
    torch.manual_seed(0)
    negatives = uniform_negatives(OWNERS, n_pairs, V, seen_keys(LOG))
    shared = uniform_negatives(OWNERS[:1], n_shared, V)[0].tolist() if n_shared else []
    for user, own in ((1, {1, 3}), (2, {2, 5, 6})):
        assert not own & set(negatives[user == OWNERS].flatten().tolist())
    torch.manual_seed(0)
    assert_same(
        model,
        loss_of(BATCH),
        loss_by_hand(model, negatives, shared),
        allow_unused=True,
    )


@pytest.mark.parametrize("loss, n", [("sampled_softmax", 1000), ("bpr", 1)])
def test_default_numbers_of_negatives(monkeypatch, loss, n) -> None:
    values = []
    for given in (None, n, n + 1):
        _, loss_of = begun(monkeypatch, loss=loss, n_negatives=given)
        torch.manual_seed(0)
        values.append(loss_of(BATCH).item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "sampled_softmax"},
        {"loss": "bpr", "n_negatives": 3},
        {"examples": "windows", "max_len": 4},
        {"examples": "prefixes", "margin_weight": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_loss_and_example_moves_both_streams(random_log, settings, precision) -> None:
    model = STOSA(**SETTINGS | {"batch_size": 64, "dropout": 0.3} | settings)
    built(model, random_log)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.fit(random_log, runtime=Runtime(precision=precision))
    assert np.isfinite(model.curve[0].loss)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name
    assert model.scores_are_logits == (settings.get("loss") != "bpr")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"margin_weight": -1}, "margin_weight: .*greater than or equal to 0, got -1"),
        ({"loss": "bce"}, "loss: .*'softmax', 'sampled_softmax' or 'bpr', got 'bce'"),
        ({"n_negatives": 0}, "n_negatives: .*greater than or equal to 1, got 0"),
        ({"n_negatives": 3}, "n_negatives = 3 has no effect with loss = 'softmax'"),
        ({"encoder": "gru"}, "STOSA: encoder: must be 'transformer'"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(STOSA, SETTINGS | settings, message)
