"""HSTU's encoder against its equations, position by position."""

import math

import numpy as np
import pytest
import torch

from diffuserec.models.encoders import ENCODERS, SequenceEncoder

D, W = 6, 9


SECONDS = [100, 100, 103, 4000, 90_000]
"""When the items of the example were chosen."""


def made(time_bias: bool) -> SequenceEncoder:
    torch.manual_seed(0)
    kind = ENCODERS.find("hstu")
    model = kind(D, W, 0.0, kind.Config(n_layers=2, n_heads=2, time_bias=time_bias)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def range_of(time: float) -> int:
    return math.floor(math.log(max(time, 1)) / 0.301)


@pytest.mark.parametrize("known", [None, "times", "shares"])
@torch.no_grad()
def test_states_are_those_of_the_equations(known: str | None) -> None:
    model, n = made(known is not None), 5
    embedded, times = torch.randn(1, n, D), torch.tensor([SECONDS])
    if known is not None:
        model.train()(embedded, torch.tensor([n]), times)  # dropout is 0: it counts the times alone
        model.eval()
    given = {"times": times} if known == "times" else {}
    found = model(embedded, torch.tensor([n]), **given)[0].numpy()

    def norm(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-6)

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    x = embedded[0].double().numpy() * D**0.5 + model.positions.weight.double().numpy()[W - n :]
    for layer in model.layers:
        weights = layer.project.weight.double().numpy()
        gate, value, query, key = np.split(
            np.stack([silu(weights @ norm(row)) for row in x]), 4, axis=1
        )
        bias = layer.distances.weight.double().numpy()[:, 0]
        of_ranges = layer.times.weight.double().numpy()[:, 0] if known else None
        added = np.zeros((n, D))
        for i in range(n):
            attended = np.zeros(D)
            for head in (slice(0, 3), slice(3, 6)):
                for j in range(i + 1):
                    by_time = 0.0
                    if known == "times":
                        by_time = of_ranges[range_of(SECONDS[i] - SECONDS[j])]
                    elif known == "shares":  # in the one example, seen from its newest item
                        by_time = of_ranges[range_of(SECONDS[-1] - SECONDS[-1 - (i - j)])]
                    share = silu(query[i, head] @ key[j, head] + bias[i - j] + by_time) / W
                    attended[head] += share * value[j, head]
            gated = gate[i] * norm(attended)
            added[i] = layer.out.weight.double().numpy() @ gated + layer.out.bias.numpy()
        x = x + added
    x = np.stack([norm(row) for row in x]) * model.norm.weight.numpy() + model.norm.bias.numpy()
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_state_knows_no_later_time_and_no_padding() -> None:
    model, embedded = made(True), torch.randn(2, 5, D)
    times, lengths = torch.tensor([SECONDS, SECONDS]), torch.tensor([5, 3])
    model.train()(embedded, lengths, times)
    before = model.eval()(embedded, lengths, times)
    for changed in range(5):
        other = times.clone()
        other[:, changed] += 10**7
        after = model(embedded, lengths, other)
        moved = (after - before).abs().amax(2) > 1e-6
        assert not moved[:, :changed].any()
        assert moved[0, changed:].any() or changed == 0
        assert changed < 3 or not moved[1, :3].any()


def test_where_no_times_are_known_none_is_counted() -> None:
    model = made(True).train()
    model(torch.randn(2, 5, D), torch.tensor([5, 3]))
    assert not model.get_buffer("pairs").any()
    model(torch.randn(2, 5, D), torch.tensor([5, 3]), torch.tensor([SECONDS, SECONDS]))
    assert model.get_buffer("pairs").sum(1).tolist() == [2, 2, 2, 1, 1, 0, 0, 0, 0]
