"""Cheap dropout: how often, how much, and where the gradient goes."""

import pytest
import torch

from diffuserec.models.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_so_many_are_zero_and_the_others_larger(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(301, 333)
    found = dropout(x, p)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    # four standard deviations of a share of 100,233
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=4 * deviation)


def test_a_chance_next_to_one_drops_nearly_all() -> None:
    torch.manual_seed(0)
    assert (dropout(torch.ones(301, 333), 1 - 1e-7) != 0).float().mean() < 1e-3


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(40000, 4), 0.5) > 0).double()  # four elements share a draw
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02
    rows = kept.flatten()
    assert torch.corrcoef(torch.stack([rows[:-4], rows[4:]]))[0, 1].abs() < 0.02


def test_the_gradient_passes_where_an_element_is_kept() -> None:
    x = torch.randn(50, 7, requires_grad=True)
    found = dropout(x, 0.3)
    found.sum().backward()
    kept = found != 0
    assert torch.equal(x.grad != 0, kept)
    torch.testing.assert_close(x.grad[kept], torch.full_like(x.grad[kept], 1 / 0.7))


def test_it_is_drawn_from_torch_and_off_in_evaluation() -> None:
    module, x = Dropout(0.5), torch.randn(5, 6)
    torch.manual_seed(1)
    first = module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert not torch.equal(module(x), first)
    assert torch.equal(module.eval()(x), x)
    assert dropout(x, 0.0) is x
    assert dropout(x.bfloat16(), 0.5).dtype == torch.bfloat16
