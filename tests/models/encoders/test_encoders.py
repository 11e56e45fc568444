"""What each position may see, for every encoder; the states that are picked from a sequence."""

import pytest
import torch

from diffuserec.errors import ConfigError
from diffuserec.models.encoders import (
    ENCODERS,
    SequenceEncoder,
    align_left,
    align_right,
    last_states,
    mean_of_last,
    newest_states,
)
from diffuserec.models.encoders.transformer import TransformerEncoder

D, L = 12, 7
FULL = torch.tensor([L])
OWN = {
    "transformer": {"n_heads": 3},
    "gru": {"hidden_dim": 8},
    "caser": {"window": 4, "n_horizontal": 3, "n_vertical": 2},
    "ligr": {"n_heads": 3},
    "hstu": {"n_heads": 3},
}
FROM_NEWEST = ("ligr", "hstu")
"""Encoders whose positions count from the newest item."""


def made(name: str, dropout: float = 0.0, causal: bool = True) -> SequenceEncoder:
    torch.manual_seed(0)
    kind = ENCODERS.find(name)
    encoder = kind(D, 10, dropout, kind.Config(**OWN[name]), causal)
    for parameter in encoder.parameters():  # large enough that attention is not uniform
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


@pytest.fixture(params=[*OWN, "bidirectional transformer"])
def any_encoder(request) -> SequenceEncoder:
    *both_ways, name = request.param.split()
    return made(name, causal=not both_ways)


@pytest.fixture(params=OWN)
def causal_encoder(request) -> SequenceEncoder:
    return made(request.param)


def embedded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1))


EMBEDDED = embedded(1, L)


# --- the encoders ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OWN if name not in FROM_NEWEST])
@torch.no_grad()
def test_a_causal_state_follows_from_what_came_before(name):
    causal_encoder = made(name)
    whole = causal_encoder(EMBEDDED, FULL)
    for end in range(1, L + 1):
        alone = causal_encoder(EMBEDDED[:, :end], torch.tensor([end]))
        torch.testing.assert_close(alone, whole[:, :end], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", range(L))
@torch.no_grad()
def test_a_causal_state_sees_itself_and_earlier_positions_only(causal_encoder, position):
    changed = EMBEDDED.clone()
    changed[0, position] *= -1
    before, after = causal_encoder(EMBEDDED, FULL)[0], causal_encoder(changed, FULL)[0]
    difference = (before - after).abs().amax(1)
    assert not difference[:position].any()
    reach = position + getattr(causal_encoder, "window", L)
    assert (difference[position:reach] > 1e-3).all()
    assert not difference[reach:].any()


@torch.no_grad()
def test_padding_changes_nothing(any_encoder):
    lengths = torch.tensor([3, 2, 1])
    embeddings = embedded(3, 3)
    states = any_encoder(embeddings, lengths)
    garbage = torch.where((torch.arange(3) < lengths[:, None])[:, :, None], embeddings, 17.0)
    wider = torch.cat([embeddings, torch.full((3, 4, D), 9.0)], dim=1)
    for row, length in enumerate(lengths.tolist()):
        expected = states[row, :length]
        alone = any_encoder(embeddings[row : row + 1, :length], lengths[row : row + 1])[0]
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
        for padded in (garbage, wider):
            found = any_encoder(padded, lengths)[row, :length]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_and_no_padding(any_encoder):
    embeddings, lengths = embedded(2, 5).requires_grad_(), torch.tensor([5, 2])
    real = torch.arange(5) < lengths[:, None]
    states = any_encoder.train()(embeddings, lengths)
    (states[real] * torch.randn(7, D)).sum().backward()
    for name, parameter in any_encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert embeddings.grad[real].any(1).all()
    assert not embeddings.grad[~real].any()


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_dropout_is_off_in_evaluation_and_on_in_training(name):
    model = made(name, dropout=0.5)
    assert torch.equal(model(EMBEDDED, FULL), model(EMBEDDED, FULL))
    model.train()
    assert not torch.equal(model(EMBEDDED, FULL), model(EMBEDDED, FULL))


def test_an_encoder_is_found_by_name_and_takes_its_own_settings():
    assert set(OWN) <= set(ENCODERS.names())
    assert isinstance(made("transformer"), TransformerEncoder)
    with pytest.raises(ConfigError, match=r"no encoder 'transfomer' \(did you mean 'transformer'"):
        ENCODERS.find("transfomer")


def test_alignment_is_undone():
    lengths = torch.tensor([1, 3, 4])
    padded = torch.arange(12.0).view(3, 4, 1)
    padded = padded.masked_fill((torch.arange(4) >= lengths[:, None])[:, :, None], 0)
    right = align_right(padded, lengths, 5)
    assert right[1, :, 0].tolist() == [0, 0, 4, 5, 6]
    assert torch.equal(align_left(right, lengths, 4), padded)


# --- picking states ----------------------------------------------------------------------------


def test_last_states_are_at_the_newest_item():
    states = torch.arange(24.0).view(2, 3, 4)
    picked = last_states(states, torch.tensor([2, 3]))
    assert torch.equal(picked, torch.stack([states[0, 1], states[1, 2]]))


@pytest.mark.parametrize("n_parts", [1, 3, 4, 9])
@torch.no_grad()
def test_newest_states_in_parts_are_those_of_the_whole(any_encoder, n_parts):
    table = embedded(30)
    lengths = torch.tensor([3, 7, 1, 2, 7, 1])
    items = torch.randint(1, 30, (6, 8), generator=torch.Generator().manual_seed(0))
    widths = []

    def encode(items, lengths):
        widths.append(items.shape[1])
        return any_encoder(table[items], lengths)

    expected = last_states(encode(items, lengths), lengths)
    found = newest_states(encode, items, lengths, n_parts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert widths[1:] == {1: [7], 3: [1, 3, 7], 4: [1, 3, 7], 9: [1, 1, 2, 3, 7, 7]}[n_parts]


def test_the_mean_of_the_last_by_hand():
    states = torch.tensor([[[1.0], [2.0], [6.0]], [[3.0], [5.0], [100.0]], [[7.0], [9.0], [9.0]]])
    found = mean_of_last(states, torch.tensor([3, 2, 1]), 2)
    assert found.tolist() == [[4.0], [4.0], [7.0]]
