"""Caser's encoder against windows that are cut out, and filters passed over them, one by one."""

import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.encoders.caser import CaserEncoder

D = 6


def encoder(window: int, relu_output: bool = False) -> CaserEncoder:
    torch.manual_seed(0)
    own = CaserEncoder.Config(window=window, n_horizontal=3, n_vertical=2, relu_output=relu_output)
    model = CaserEncoder(D, 10, 0.5, own).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def embedded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def state_by_hand(model: CaserEncoder, embeddings: torch.Tensor):
    """State of the newest of some embeddings (L, D)."""
    window = model.window
    rows = [torch.zeros(D, dtype=torch.float64)] * window
    for embedding in embeddings:
        normed = F.layer_norm(embedding, (D,), model.norm_in.weight, model.norm_in.bias)
        rows = [*rows[1:], normed]
    image = torch.stack(rows)
    first_item = max(0, window - len(embeddings))
    found = []
    for height, filters in enumerate(model.horizontal, 1):
        for weight, bias in zip(filters.weight, filters.bias, strict=True):
            responses = [
                (weight.T * image[top : top + height]).sum() + bias
                for top in range(window - height + 1)
                if top + height > first_item  # an item is among what it reads
            ]
            found.append(max(response.clamp(min=0) for response in responses))
    for weight, bias in zip(model.vertical.weight, model.vertical.bias, strict=True):
        found += [weight @ image[:, column] + bias for column in range(D)]
    out = model.out.weight @ torch.stack(found) + model.out.bias
    if isinstance(model.last, torch.nn.LayerNorm):
        return F.layer_norm(out, (D,), model.last.weight, model.last.bias)
    return out.clamp(min=0)


@pytest.mark.parametrize("relu_output", [False, True])
@pytest.mark.parametrize("window", [1, 2, 4, 9])
@torch.no_grad()
def test_states_are_those_of_windows_cut_out(window, relu_output) -> None:
    model = encoder(window, relu_output)
    embeddings = embedded(2, 6)
    found = model(embeddings, torch.tensor([6, 3]))
    for row, length in ((0, 6), (1, 3)):
        for position in range(length):
            expected = state_by_hand(model, embeddings[row, : position + 1])
            torch.testing.assert_close(found[row, position], expected)


@pytest.mark.parametrize("window", [1, 3])
@torch.no_grad()
def test_a_state_sees_its_window_and_no_more(window) -> None:
    model = encoder(window)
    embeddings = embedded(1, 7)
    for position in range(7):
        changed = embeddings.clone()
        changed[0, position] *= -1
        lengths = torch.tensor([7])
        seen = (model(embeddings, lengths) - model(changed, lengths))[0].abs().amax(1) > 0
        assert seen.tolist() == [position <= at < position + window for at in range(7)]
