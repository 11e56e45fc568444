"""Slots beside a sequence against the sequence that ends with the slot, for every encoder."""

import pytest
import torch

from diffuserec.errors import ConfigError
from diffuserec.models.encoders import ENCODERS, SequenceEncoder
from diffuserec.models.encoders.transformer import TransformerEncoder

from .by_hand import with_a_block

D, L, W = 12, 6, 9
KINDS = ["from_oldest", "relative", "alibi", "rotary", "none"]
ENCODERS_WITH_SLOTS = [
    *(("transformer", {"n_heads": 3, "position_encoding": kind}) for kind in KINDS),
    ("transformer", {"n_heads": 2, "n_layers": 1}),
    ("bsarec_causal", {"n_heads": 3, "attention_dropout": 0.0}),
    ("bsarec_causal", {"n_layers": 3, "alpha": 1.0, "attention_dropout": 0.0}),
]


def made(name: str, own: dict, dropout: float = 0.0) -> SequenceEncoder:
    torch.manual_seed(0)
    kind = ENCODERS.find(name)
    encoder = kind(D, W, dropout, kind.Config(**own))
    encoder.reset_parameters()
    for parameter in encoder.parameters():  # large enough that attention is not uniform
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


@pytest.fixture(params=ENCODERS_WITH_SLOTS, ids=str)
def encoder(request) -> SequenceEncoder:
    return made(*request.param)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_the_end(encoder: SequenceEncoder, sequence: torch.Tensor, slot: torch.Tensor):
    """State of the slot in the plain sequence [sequence..., slot]."""
    whole = torch.cat([sequence, slot[None]])[None]
    return encoder(whole, torch.tensor([whole.shape[1]]))[0, -1]


def test_a_slot_is_the_end_of_the_positions_before_it(encoder: SequenceEncoder) -> None:
    sequences, slots = normal(2, L, D), normal(2, 2 * L, D, seed=2)
    n_before = torch.tensor([[1, 2, 3, 4, 5, 6] * 2, [6, 6, 1, 3, 3, 2, 5, 4, 1, 1, 2, 6]])
    weights = normal(2, 2 * L, D, seed=3)
    states = encoder.beside(sequences)(slots, n_before)
    ours = torch.autograd.grad((states * weights).sum(), list(encoder.parameters()))
    expected = torch.stack(
        [
            torch.stack(
                [
                    at_the_end(encoder, sequences[row, :n], slots[row, slot])
                    for slot, n in enumerate(n_before[row].tolist())
                ]
            )
            for row in range(2)
        ]
    )
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    theirs = torch.autograd.grad((expected * weights).sum(), list(encoder.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_one_row_of_places_holds_for_all_sequences(encoder: SequenceEncoder) -> None:
    sequences, slots = normal(3, L, D), normal(3, L, D, seed=2)
    n_before = torch.arange(1, L + 1)[None]
    read = encoder.beside(sequences)
    torch.testing.assert_close(read(slots, n_before), read(slots, n_before.expand(3, -1)))


@torch.no_grad()
def test_a_slot_sees_neither_other_slots_nor_later_positions(encoder: SequenceEncoder) -> None:
    sequences, slots = normal(1, L, D), normal(1, L, D, seed=2)
    n_before = torch.arange(1, L + 1)[None]
    before = encoder.beside(sequences)(slots, n_before)[0]
    for changed in range(L):
        other, others = sequences.clone(), slots.clone()
        other[0, changed] *= -1
        moved = (encoder.beside(other)(slots, n_before)[0] - before).abs().amax(1)
        assert not moved[:changed].any()  # the slot after so many has not seen this position
        assert (moved[changed:] > 1e-4).all()
        others[0, changed] *= -1
        moved = (encoder.beside(sequences)(others, n_before)[0] - before).abs().amax(1)
        assert (moved > 1e-4).nonzero().flatten().tolist() == [changed]


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_sees_itself_and_the_positions_before_it(kind: str) -> None:
    encoder = made("transformer", {"n_heads": 3, "position_encoding": kind})
    assert isinstance(encoder, TransformerEncoder)
    sequences, slots = normal(2, L, D), normal(2, L, D, seed=2)
    starts = [[1, 1, 3, 4, 4, 4], [1, 2, 2, 2, 5, 5]]  # positions before each one's block
    place = torch.arange(1, L + 1).expand(2, -1)
    weights = normal(2, L, D, seed=3)
    states = encoder.blocks_beside(sequences, slots, torch.tensor(starts), place)
    ours = torch.autograd.grad((states * weights).sum(), list(encoder.parameters()))
    rows = []
    for row, of_row in enumerate(starts):
        blocks = [
            with_a_block(encoder, sequences[row, :n], slots[row, torch.tensor(of_row) == n])
            for n in sorted(set(of_row))
        ]
        rows.append(torch.cat(blocks))
    expected = torch.stack(rows)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    theirs = torch.autograd.grad((expected * weights).sum(), list(encoder.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_sequences_are_read_once_for_all_slots() -> None:
    for name in ("transformer", "bsarec_causal"):
        encoder, entered = made(name, {}), []
        encoder.norm.register_forward_hook(lambda _, given, __, e=entered: e.append(given[0].shape))
        read = encoder.beside(normal(2, L, D))
        for n_slots in (3, 1):
            read(normal(2, n_slots, D), torch.full((2, n_slots), L))
        assert entered == [(2, L, D), (2, 3, D), (2, 1, D)]


@pytest.mark.parametrize("name", ["transformer", "bsarec_causal"])
def test_attention_is_dropped_in_training_alone(name: str) -> None:
    encoder = made(name, {"attention_dropout": 0.5})
    given = normal(2, 3, D), torch.tensor([[1, 3, 6]])
    expected = encoder.beside(normal(2, L, D))(*given)
    torch.testing.assert_close(encoder.beside(normal(2, L, D))(*given), expected)
    assert not torch.allclose(encoder.train().beside(normal(2, L, D))(*given), expected)


def test_encoders_without_slots_say_so() -> None:
    found = {name: ENCODERS.find(name) for name in ENCODERS.names()}
    ours = {name: kind for name, kind in found.items() if kind.__module__.startswith("diffuserec.")}
    taking = {name for name, kind in ours.items() if kind.takes_slots}
    assert taking == {"transformer", "bsarec_causal"}
    for name in ("gru", "bsarec"):
        with pytest.raises(ConfigError, match="does not read slots beside a sequence"):
            made(name, {}).beside(normal(1, L, D))
    with pytest.raises(ConfigError, match="'from_newest' has no slots beside a sequence"):
        made("transformer", {"position_encoding": "from_newest"}).beside(normal(1, L, D))
