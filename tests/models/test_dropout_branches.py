"""Dropout of a transformer's block: on both residual branches, and nowhere else."""

import pytest
import torch
from torch import nn

from diffuserec.models.encoders.transformer import TransformerBlock, TransformerEncoder

BATCH, LENGTH, DIM = 3, 5, 8
STATES = torch.randn(BATCH, LENGTH, DIM, generator=torch.Generator().manual_seed(0))


def block(dropout: float, without: str | None = None) -> TransformerBlock:
    """A block, of which a branch may add nothing: its last layer is zero."""
    torch.manual_seed(1)
    made = TransformerBlock(DIM, 2, dropout, causal=True)
    if without is not None:
        last = {"attention": made.out, "feed-forward": made.narrow}[without]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return made


def without_branches(made: TransformerBlock) -> torch.Tensor:
    """States of a block whose branches add nothing: only the norms are left."""
    return made.norm_forward(made.norm_attention(STATES))


OTHER = {"attention": "feed-forward", "feed-forward": "attention"}
BRANCHES = pytest.mark.parametrize("branch", ["attention", "feed-forward"])


@BRANCHES
def test_a_branch_that_is_dropped_whole_adds_nothing(branch) -> None:
    made = block(dropout=1.0, without=OTHER[branch]).train()
    assert torch.equal(made(STATES), without_branches(made))
    # and it is the dropout that made it nothing
    assert not torch.allclose(made.eval()(STATES), without_branches(made), atol=0.01)


def test_a_block_whose_branches_are_both_dropped_keeps_its_norms() -> None:
    made = block(dropout=1.0).train()
    assert torch.equal(made(STATES), without_branches(made))


@BRANCHES
def test_a_branch_is_dropped_by_single_values_and_the_rest_is_scaled_up(branch) -> None:
    made = block(dropout=0.25, without=OTHER[branch])
    made.norm_attention = made.norm_forward = nn.Identity()
    added = made.eval()(STATES) - STATES
    made.train()
    seen = torch.stack([made(STATES) - STATES for _ in range(200)])
    kept = seen.abs() > 1e-7
    torch.testing.assert_close(seen[kept], (added / 0.75).expand_as(seen)[kept])
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    # neither whole sequences, positions nor channels are dropped together
    for dims in ((2, 3), (1, 3), (1, 2)):
        assert kept.float().mean(dims).std() < 0.3


@BRANCHES
def test_nothing_is_dropped_in_evaluation_or_without_dropout(branch) -> None:
    made = block(dropout=0.9, without=OTHER[branch]).eval()
    plain = block(dropout=0.0, without=OTHER[branch]).train()
    assert torch.equal(made(STATES), plain(STATES))


def test_the_input_of_the_first_block_is_dropped_too() -> None:
    encoder = TransformerEncoder(DIM, LENGTH, 1.0, TransformerEncoder.Config()).train()
    lengths = torch.full((BATCH,), LENGTH)
    # nothing of the embeddings is left: all positions are alike
    states = encoder(STATES, lengths)
    assert torch.equal(states, states[:1, :1].expand_as(states))
    encoder.eval()
    states = encoder(STATES, lengths)
    assert not torch.allclose(states, states[:1, :1].expand_as(states), atol=0.01)
