"""Caser's encoder against windows that are cut out, and filters passed over them, one by one."""

import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.encoders.caser import CaserEncoder

V, D = 20, 6


def encoder(window: int, rectified: bool = False) -> CaserEncoder:
    torch.manual_seed(0)
    model = CaserEncoder(V, D, window, 3, 2, dropout=0.5, rectified=rectified).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def state_by_hand(model: CaserEncoder, items: list[int]):
    """The state of the newest item."""
    window = model.window
    rows = [torch.zeros(D, dtype=torch.float64)] * window
    for item in items:
        normed = F.layer_norm(
            model.items.weight[item], (D,), model.norm_in.weight, model.norm_in.bias
        )
        rows = [*rows[1:], normed]
    image = torch.stack(rows)
    first_item = max(0, window - len(items))
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


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("window", [1, 2, 4, 9])
@torch.no_grad()
def test_states_are_those_of_windows_cut_out(window, rectified) -> None:
    model = encoder(window, rectified)
    items = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0]])
    found = model(items, torch.tensor([6, 3]))
    for row, length in ((0, 6), (1, 3)):
        for place in range(length):
            expected = state_by_hand(model, items[row, : place + 1].tolist())
            torch.testing.assert_close(found[row, place], expected)


@pytest.mark.parametrize("window", [1, 3])
@torch.no_grad()
def test_a_state_sees_its_window_and_no_more(window) -> None:
    model = encoder(window)
    items = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    for place in range(7):
        changed = items.clone()
        changed[0, place] = 15
        difference = (model(items, torch.tensor([7])) - model(changed, torch.tensor([7])))[0]
        seen = difference.abs().amax(1) > 0
        assert seen.tolist() == [place <= at < place + window for at in range(7)]
