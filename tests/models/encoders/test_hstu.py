"""HSTU's encoder against its equations, position by position."""

import numpy as np
import torch

from diffuserec.models.encoders import ENCODERS

D, W = 6, 9


@torch.no_grad()
def test_states_are_those_of_the_equations() -> None:
    torch.manual_seed(0)
    kind = ENCODERS.find("hstu")
    model = kind(D, W, 0.0, kind.Config(n_layers=2, n_heads=2)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    n = 5
    embedded = torch.randn(1, n, D)
    found = model(embedded, torch.tensor([n]))[0].numpy()

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
        added = np.zeros((n, D))
        for i in range(n):
            attended = np.zeros(D)
            for head in (slice(0, 3), slice(3, 6)):
                for j in range(i + 1):
                    share = silu(query[i, head] @ key[j, head] + bias[i - j]) / W
                    attended[head] += share * value[j, head]
            gated = gate[i] * norm(attended)
            added[i] = layer.out.weight.double().numpy() @ gated + layer.out.bias.numpy()
        x = x + added
    x = np.stack([norm(row) for row in x]) * model.norm.weight.numpy() + model.norm.bias.numpy()
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
