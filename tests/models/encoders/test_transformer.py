"""The arithmetic of the transformer written out, its dropout, and passes through its blocks."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.encoders import last_states
from diffuserec.models.encoders.transformer import TransformerBlock, TransformerEncoder
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import softmax_cross_entropy

D, L = 12, 7
FULL = torch.tensor([L])


def encoder(
    causal=True, dropout=0.0, n_layers=2, seed=0, position_encoding="from_oldest"
) -> TransformerEncoder:
    torch.manual_seed(seed)
    made = TransformerEncoder(
        D,
        10,
        dropout,
        TransformerEncoder.Config.model_construct(
            n_layers=n_layers, n_heads=3, position_encoding=position_encoding
        ),
        causal,
    )
    for parameter in made.parameters():  # large enough that attention is not uniform
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def embedded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1))


EMBEDDED = embedded(1, L)


@pytest.mark.parametrize("position", range(L))
@torch.no_grad()
def test_a_bidirectional_state_sees_everything(position):
    model, changed = encoder(causal=False), EMBEDDED.clone()
    changed[0, position] *= -1
    difference = (model(EMBEDDED, FULL) - model(changed, FULL)).abs().amax(2)
    assert (difference > 1e-4).all()


@torch.no_grad()
def test_a_causal_encoder_that_looks_both_ways_is_the_bidirectional_one():
    causal, both = encoder(), encoder(causal=False)
    both.load_state_dict(causal.state_dict())
    embeddings, lengths = embedded(2, 4), torch.tensor([4, 2])
    expected = both(embeddings, lengths)
    found = causal(embeddings, lengths, both_ways=True)
    for row, length in enumerate([4, 2]):
        torch.testing.assert_close(found[row, :length], expected[row, :length])
        one_way = causal(embeddings, lengths)[row, : length - 1]  # which is something else
        assert (one_way - expected[row, : length - 1]).abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_positions_tell_the_order():
    states = encoder(causal=False)(EMBEDDED[:, :1].expand(1, 3, D), torch.tensor([3]))[0]
    assert (states[0] - states[1]).abs().max() > 1e-3


# --- the arithmetic ----------------------------------------------------------------------------


def layer_norm(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def block_by_hand(block, states, causal, lengths, dropped=lambda branch: branch):
    """Attention as sums over positions, head by head; then the residuals and norms.

    Args:
        block: a transformer block.
        states: its input.
        causal: whether a position sees only itself and earlier ones.
        lengths: real positions.
        dropped: applied to each residual branch, attention first.
    """
    batch, length, dim = states.shape
    width = dim // block.n_heads
    weight, bias = block.query_key_value.weight, block.query_key_value.bias
    query, key, value = (
        states @ weight[part * dim : (part + 1) * dim].T + bias[part * dim : (part + 1) * dim]
        for part in range(3)
    )
    attended = torch.zeros_like(states)
    for b in range(batch):
        for head in range(block.n_heads):
            own = slice(head * width, (head + 1) * width)
            for i in range(length):
                end = i + 1 if causal else int(lengths[b])
                logits = torch.stack(
                    [query[b, i, own] @ key[b, j, own] / math.sqrt(width) for j in range(end)]
                )
                shares = logits.exp() / logits.exp().sum()
                attended[b, i, own] = sum(shares[j] * value[b, j, own] for j in range(end))
    branch = dropped(attended @ block.out.weight.T + block.out.bias)
    first = layer_norm(states + branch, block.norm_attention)
    widened = gelu(first @ block.widen.weight.T + block.widen.bias)
    branch = dropped(widened @ block.narrow.weight.T + block.narrow.bias)
    return layer_norm(first + branch, block.norm_forward)


def large_block(causal: bool, dropout: float = 0.5) -> TransformerBlock:
    torch.manual_seed(1)
    block = TransformerBlock(D, 3, dropout, causal).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_block_is_post_norm_softmax_attention(causal):
    block, states = large_block(causal).eval(), embedded(2, 5).double()
    lengths = torch.tensor([5, 3])
    seen = None if causal else (torch.arange(5) < lengths[:, None])[:, None, None, :]
    expected = block_by_hand(block, states, causal, lengths)
    torch.testing.assert_close(block(states, seen), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_dropout_is_on_both_residual_branches_and_nowhere_else():
    block, states = large_block(causal=True).train(), embedded(2, 5).double()
    torch.manual_seed(3)
    found = block(states)
    torch.manual_seed(3)
    masks = []

    def dropped(branch):
        masks.append(torch.empty_like(branch).bernoulli_(0.5) * 2)
        return branch * masks[-1]

    expected = block_by_hand(block, states, True, torch.tensor([5, 5]), dropped)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert len(masks) == 2
    assert all(0.2 < mask.bool().double().mean() < 0.8 for mask in masks)


@pytest.mark.parametrize("branch", ["out", "narrow"])
@torch.no_grad()
def test_each_branch_has_dropout_of_its_own(branch):
    block, states = large_block(causal=True).train(), embedded(2, 5).double()
    for parameter in getattr(block, branch).parameters():
        parameter.zero_()  # and dropout of this branch drops nothing
    torch.manual_seed(3)
    assert not torch.equal(block(states), block(states))


@torch.no_grad()
def test_dropout_is_on_the_sum_of_embeddings():
    model = encoder(n_layers=0, dropout=0.5).train()
    torch.manual_seed(3)
    found = model(EMBEDDED, FULL)
    torch.manual_seed(3)
    normed = layer_norm(EMBEDDED + model.positions.weight[:L], model.norm)
    torch.testing.assert_close(found, F.dropout(normed, 0.5))
    assert (found == 0).any()


@torch.no_grad()
def test_without_blocks_a_state_is_the_normed_sum_of_item_and_position():
    model = encoder(n_layers=0)
    expected = layer_norm(EMBEDDED[0] + model.positions.weight[:L], model.norm)
    torch.testing.assert_close(model(EMBEDDED, FULL)[0], expected)


@torch.no_grad()
def test_seen_keys_make_a_causal_block_bidirectional():
    causal = encoder().layers[0]
    both = TransformerBlock(D, 3, 0.0, causal=False).eval()
    both.load_state_dict(causal.state_dict())
    states = embedded(2, 5)
    seen = (torch.arange(5) < torch.tensor([5, 3])[:, None])[:, None, None, :]
    assert torch.equal(causal(states, seen), both(states, seen))
    expected = block_by_hand(causal, states, False, torch.tensor([5, 3]))
    torch.testing.assert_close(causal(states, seen), expected, rtol=1e-3, atol=1e-4)
    expected = block_by_hand(causal, states, True, torch.tensor([5, 3]))
    torch.testing.assert_close(causal(states), expected, rtol=1e-3, atol=1e-4)


# --- passing through the blocks in one's own way -------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_the_steps_of_an_encoder_make_the_whole(causal):
    model = encoder(causal)
    embeddings, lengths, length = embedded(2, 5), torch.tensor([5, 3]), 5
    visible = (torch.arange(length) < lengths[:, None])[:, None, None, :]
    if causal:
        visible = torch.ones(length, length, dtype=torch.bool).tril()
    states = model.enter(embeddings + model.positions.weight[:length])
    assert len(model.layers) == 2
    for block in model.layers:
        query, key, value = block.heads(states)
        assert query.shape == (2, 3, length, D // 3)
        logits = query @ key.transpose(2, 3) / math.sqrt(D // 3)
        shares = torch.softmax(logits.masked_fill(~visible, -torch.inf), dim=3)
        states = block.after(states, shares @ value)
    real = torch.arange(length) < lengths[:, None]
    expected = model(embeddings, lengths)
    torch.testing.assert_close(states[real], expected[real], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_state_may_ask_for_all():
    # queries and keys of different positions, as for a slot beside the sequence
    model = encoder()
    block = model.layers[0]
    states = model.enter(EMBEDDED + model.positions.weight[:L])
    query, _, _ = block.heads(states[:, -1:])
    _, key, value = block.heads(states)
    attended = F.scaled_dot_product_attention(query, key, value)
    alone = block.after(states[:, -1:], attended)
    torch.testing.assert_close(alone, block(states, None)[:, -1:], rtol=1e-4, atol=1e-5)


# --- weights -----------------------------------------------------------------------------------


def test_padding_stays_zero_in_training():
    torch.manual_seed(0)
    model, table = encoder(dropout=0.2).train(), ItemTable(30, D)
    table.reset_parameters()
    parameters = [*model.parameters(), *table.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    items, lengths = torch.tensor([[3, 1, 4], [1, 5, 0]]), torch.tensor([3, 2])
    before = table.embeddings().detach().clone()
    for _ in range(5):
        states = model(table.embed(items), lengths)[items > 0]
        loss = softmax_cross_entropy(states, table.weight(), torch.tensor([1, 4, 6, 5, 7]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not table.embeddings()[0].any()
    assert (table.embeddings()[1:] != before[1:]).any(dim=1).all()


def test_weights_start_small():
    torch.manual_seed(0)
    own = TransformerEncoder.Config(position_encoding="from_oldest")
    model = TransformerEncoder(64, 50, 0.5, own)
    model.reset_parameters()
    assert model.positions.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].widen.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


# --- positions, attention dropout, activations ---------------------------------------------------


def with_own(causal: bool = True, **own: object) -> TransformerEncoder:
    torch.manual_seed(0)
    settings = TransformerEncoder.Config(**{"n_heads": 3} | own)
    model = TransformerEncoder(D, 9, 0.0, settings, causal)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def heads_by_hand(block, states, kind, model):
    """Attention of one sequence (n, D), query by query, with the positions of a kind."""
    n, width = len(states), D // 3
    query, key, value = (x[0] for x in block.heads(states[None]))
    attended = torch.zeros(n, 3, width)
    for h in range(3):
        for i in range(n):
            logits = []
            for j in range(i + 1):
                q, k = query[h, i], key[h, j]
                if kind == "rotary":
                    q, k = turned(q, i), turned(k, j)
                logit = q @ k / width**0.5
                if kind == "relative":
                    logit = logit + model.distances.weight[i - j + 9 - 1, h]
                if kind == "alibi":
                    logit = logit - 2 ** (-8 * (h + 1) / 3) * (i - j)
                logits.append(logit)
            attended[i, h] = torch.softmax(torch.stack(logits), 0) @ value[h, : i + 1]
    return attended.transpose(0, 1)[None]


def turned(x, position):
    """Pairs (x_f, x_{f + half}) as complex numbers times e^{i position rate_f}."""
    half = len(x) // 2
    rates = torch.tensor([10000 ** (-2 * f / len(x)) for f in range(half)])
    z = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half), position * rates)
    return torch.cat([z.real, z.imag])


@pytest.mark.parametrize(
    "kind", ["from_oldest", "from_newest", "relative", "alibi", "rotary", "none"]
)
@torch.no_grad()
def test_every_kind_of_position_by_hand(kind):
    model = with_own(position_encoding=kind)
    embeddings, lengths = embedded(3, 7), torch.tensor([7, 4, 1])
    states, newest = model(embeddings, lengths), model.newest(embeddings, lengths)
    for row, n in enumerate(lengths.tolist()):
        x = embeddings[row, :n]
        if kind == "from_oldest":
            x = x + model.positions.weight[:n]
        if kind == "from_newest":
            x = x + model.positions.weight[9 - n :]
        x = model.norm(x)
        for block in model.layers:
            x = block.after(x[None], heads_by_hand(block, x, kind, model))[0]
        torch.testing.assert_close(states[row, :n], x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(newest[row], x[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["from_oldest", "from_newest", "relative", "alibi", "rotary"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_newest_state_is_that_of_all_and_so_are_its_gradients(kind, causal):
    model = with_own(causal, position_encoding=kind)
    lengths, pull = torch.tensor([7, 4, 1]), torch.randn(3, D)
    found = []
    for states in (model.newest, lambda e, n: last_states(model(e, n), n)):
        model.zero_grad()
        given = embedded(3, 7).requires_grad_()
        (states(given, lengths) * pull).sum().backward()
        found.append([given.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["relative", "alibi", "rotary"])
@torch.no_grad()
def test_distances_alone_count(kind):
    model = with_own(position_encoding=kind)
    model.blocks = model.blocks[:1]  # later blocks see what the first item did to all
    embeddings = embedded(1, 6)
    whole = model(embeddings, torch.tensor([6]))
    query, key, _ = model.layers[0].heads(model.enter(embeddings))
    assert query.shape == key.shape
    again = model(torch.cat([embeddings, embedded(1, 2)], dim=1), torch.tensor([6]))
    torch.testing.assert_close(whole, again[:, :6], rtol=1e-4, atol=1e-5)


def test_attention_dropout_keeps_the_mean_and_is_off_in_evaluation():
    model = with_own(attention_dropout=0.4, n_layers=1)
    embeddings, lengths = embedded(1, 5), torch.tensor([5])
    with torch.no_grad():
        exact = model(embeddings, lengths)
        plain = with_own(n_layers=1)
        assert torch.equal(exact, plain(embeddings, lengths))
        drawn = model.train()(embeddings, lengths)
        assert not torch.equal(drawn, exact)
        assert not torch.equal(drawn, model(embeddings, lengths))


@pytest.mark.parametrize(
    ("name", "function"), [("relu", F.relu), ("silu", F.silu), ("gelu", F.gelu)]
)
@torch.no_grad()
def test_activations(name, function):
    model = with_own(activation=name, n_layers=1)
    block, states = model.layers[0], embedded(1, 4)
    attended = torch.randn(1, 3, 4, D // 3)
    mixed = block.norm_attention(states + block.out(attended.transpose(1, 2).flatten(2)))
    expected = block.norm_forward(mixed + block.narrow(function(block.widen(mixed))))
    torch.testing.assert_close(block.after(states, attended), expected)


def test_rotary_needs_heads_of_an_even_width():
    own = TransformerEncoder.Config(n_heads=4, position_encoding="rotary")
    with pytest.raises(ValueError, match="rotary' needs heads of an even width"):
        TransformerEncoder.check(own, 12)
