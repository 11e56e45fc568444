"""The SU-Net: size, shapes, and what it may and may not mix."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.step_embeddings import sinusoidal
from diffuserec.models.unet import Convolution, SUNet, image_side


def network(n_items: int = 10, dim: int = 64) -> SUNet:
    torch.manual_seed(0)
    return SUNet(n_items, dim).eval()


def test_the_published_size() -> None:
    assert sum(parameter.numel() for parameter in network().parameters()) == 141_818


@pytest.mark.parametrize(("n_items", "dim"), [(1, 64), (7, 64), (4, 256)])
def test_the_output_has_the_shape_of_the_input(n_items: int, dim: int) -> None:
    net = network(n_items, dim)
    embedded = net.embed_step(torch.tensor([3, 999])) + net.embed_condition(torch.randn(2, dim))
    assert net(torch.randn(2, n_items, dim), embedded).shape == (2, n_items, dim)


@pytest.mark.parametrize("dim", [32, 36, 100, 128])
def test_a_width_that_is_no_square_of_a_multiple_of_8_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=r"square of a multiple of 8 \(64, 256, 576, …\), got"):
        SUNet(10, dim)


def test_fewer_levels_allow_smaller_images() -> None:
    assert image_side(16, n_levels=3) == 4
    net = SUNet(3, 16, multipliers=(1, 2, 2))
    assert net(torch.randn(2, 3, 16), torch.zeros(2, 32)).shape == (2, 3, 16)


def test_channels_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="channels must be a multiple of 8, got 12"):
        SUNet(10, 64, channels=12)


def test_step_and_condition_change_the_prediction() -> None:
    net, x = network(), torch.randn(1, 10, 64)
    step, other_step = net.embed_step(torch.tensor([10, 11])).split(1)
    condition, other_condition = net.embed_condition(torch.randn(2, 64)).split(1)
    base = net(x, step + condition)
    assert not torch.allclose(base, net(x, other_step + condition))
    assert not torch.allclose(base, net(x, step + other_condition))


def test_rows_do_not_depend_on_each_other() -> None:
    net, x, embedded = network(), torch.randn(5, 10, 64), torch.randn(5, 32)
    alone = torch.cat([net(x[i : i + 1], embedded[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(net(x, embedded), alone, atol=1e-5, rtol=1e-4)


def test_the_result_is_the_same_with_and_without_gradients() -> None:
    net, x, embedded = network(), torch.randn(3, 10, 64), torch.randn(3, 32)
    kept = x.clone()
    with torch.no_grad():
        without = net(x, embedded)
    assert torch.equal(x, kept)
    torch.testing.assert_close(net(x, embedded), without)


def test_every_parameter_receives_a_gradient() -> None:
    net = network().train()
    embedded = net.embed_step(torch.arange(4)) + net.embed_condition(torch.randn(4, 64))
    net(torch.randn(4, 10, 64), embedded).square().mean().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # attention over one pixel looks at itself, whatever query and key are: only a part of that
    # layer's rows learn, which the layer as a whole does not show
    assert without == []


@pytest.mark.parametrize("side", [1, 2, 4])
def test_the_convolution_of_small_images_is_the_convolution(side: int) -> None:
    torch.manual_seed(0)
    layer, x = Convolution(8, 16), torch.randn(3, 8, side, side)
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


def test_step_embedding_by_hand() -> None:
    # four frequencies: 1, 10000^(-1/3), 10000^(-2/3), 1/10000
    rates = [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]
    expected = [math.sin(7 * rate) for rate in rates] + [math.cos(7 * rate) for rate in rates]
    torch.testing.assert_close(
        sinusoidal(torch.tensor([0, 7]), 8), torch.tensor([[0.0] * 4 + [1.0] * 4, expected])
    )


@pytest.mark.parametrize("dim", [2, 7])
def test_a_width_that_has_no_halves_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match="even width of at least 4"):
        sinusoidal(torch.tensor([0]), dim)
