"""LiGR's encoder against its equations, position by position."""

import numpy as np
import torch

from diffuserec.models.encoders import ENCODERS

D, W = 6, 9


@torch.no_grad()
def test_states_are_those_of_the_equations() -> None:
    torch.manual_seed(0)
    kind = ENCODERS.find("ligr")
    model = kind(D, W, 0.0, kind.Config(n_layers=2, n_heads=2, widening=3)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    n = 5
    embedded = torch.randn(1, n, D)
    found = model(embedded, torch.tensor([n]))[0].numpy()

    def weight(layer: torch.nn.Module) -> np.ndarray:
        return layer.weight.double().numpy()

    def norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return scaled * weight(layer) + layer.bias.numpy()

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    x = embedded[0].double().numpy() + weight(model.positions)[W - n :]
    for layer in model.layers:
        normed = np.stack([norm(row, layer.norm_attention) for row in x])
        projected = normed @ weight(layer.query_key_value).T + layer.query_key_value.bias.numpy()
        query, key, value = np.split(projected, 3, axis=1)
        attended = np.zeros((n, D))
        for head in (slice(0, 3), slice(3, 6)):
            for i in range(n):
                logits = np.array([query[i, head] @ key[j, head] for j in range(i + 1)]) / 3**0.5
                shares = np.exp(logits) / np.exp(logits).sum()
                attended[i, head] = shares @ value[: i + 1, head]
        attended = attended @ weight(layer.out).T + layer.out.bias.numpy()
        x = x + attended * sigmoid(
            x @ weight(layer.gate_attention).T + layer.gate_attention.bias.numpy()
        )
        normed = np.stack([norm(row, layer.norm_network) for row in x])
        a, b = normed @ weight(layer.widen).T, normed @ weight(layer.scale).T
        passed = (a * sigmoid(a) * b) @ weight(layer.narrow).T
        x = x + passed * sigmoid(x @ weight(layer.gate_network).T + layer.gate_network.bias.numpy())
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
