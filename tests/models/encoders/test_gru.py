"""The recurrent encoder against the equations of its units."""

import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.encoders.gru import GRUEncoder

D, H = 6, 9


@torch.no_grad()
def test_states_are_those_of_the_equations_one_step_after_the_other() -> None:
    torch.manual_seed(0)
    model = GRUEncoder(D, 10, dropout=0.5, own=GRUEncoder.Config(hidden_dim=H)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    embeddings = torch.randn(2, 5, D)
    # torch has the three gates' weights below each other: reset, update, new
    w_r, w_z, w_n = model.units.weight_ih_l0.chunk(3)
    u_r, u_z, u_n = model.units.weight_hh_l0.chunk(3)
    b_r, b_z, b_n = model.units.bias_ih_l0.chunk(3)
    c_r, c_z, c_n = model.units.bias_hh_l0.chunk(3)
    found = model(embeddings, torch.tensor([5, 3]))
    for row, length in ((0, 5), (1, 3)):
        hidden = torch.zeros(H)
        for position in range(length):
            item = embeddings[row, position]
            x = F.layer_norm(item, (D,), model.norm_in.weight, model.norm_in.bias)
            reset = torch.sigmoid(w_r @ x + b_r + u_r @ hidden + c_r)
            update = torch.sigmoid(w_z @ x + b_z + u_z @ hidden + c_z)
            new = torch.tanh(w_n @ x + b_n + reset * (u_n @ hidden + c_n))
            hidden = (1 - update) * new + update * hidden
            out = model.out.weight @ hidden + model.out.bias
            state = F.layer_norm(out, (D,), model.norm_out.weight, model.norm_out.bias)
            torch.testing.assert_close(found[row, position], state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_units_run_in_single_precision_under_autocast(training) -> None:
    torch.manual_seed(0)
    model = GRUEncoder(D, 10, dropout=0.0, own=GRUEncoder.Config(hidden_dim=H)).train(training)
    seen = []
    model.units.register_forward_hook(lambda _, given, made: seen.append((given[0], made[0])))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(1, 3, D), torch.tensor([3]))
    assert [tensor.dtype for tensor in seen[0]] == [torch.float32] * 2
