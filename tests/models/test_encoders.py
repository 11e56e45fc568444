"""What each position may see, for every encoder; the arithmetic of the transformer written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.encoders.caser import CaserEncoder
from diffuserec.models.step_embeddings import interleaved_sinusoidal
from diffuserec.models.encoders import (
    SequenceDenoiser,
    TransformerBlock,
    TransformerEncoder,
    last_states,
    mean_of_last,
)
from diffuserec.models.encoders.gru import GRUEncoder

V, D, L = 30, 12, 7


def encoder(causal=True, dropout=0.0, n_layers=2, seed=0):
    torch.manual_seed(seed)
    made = TransformerEncoder(V, D, n_layers, 3, 10, dropout, causal)
    for parameter in made.parameters():  # large enough that attention is not uniform
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        made.table[0] = 0
    return made.eval()


ITEMS = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
FULL = torch.tensor([L])


@pytest.mark.parametrize("place", range(L))
def test_a_causal_state_sees_only_what_came_before(place):
    model = encoder()
    changed = ITEMS.clone()
    changed[0, place] = 20
    before, after = model(ITEMS, FULL)[0], model(changed, FULL)[0]
    difference = (before - after).abs().amax(1)
    assert not difference[:place].any()
    assert (difference[place:] > 1e-3).all()


@pytest.mark.parametrize("place", range(L))
def test_a_bidirectional_state_sees_everything(place):
    model = encoder(causal=False)
    changed = ITEMS.clone()
    changed[0, place] = 20
    difference = (model(ITEMS, FULL) - model(changed, FULL)).abs().amax(2)
    assert (difference > 1e-3).all()


def test_a_causal_encoder_that_looks_both_ways_is_the_bidirectional_one():
    causal, both = encoder(), encoder(causal=False)
    both.load_state_dict(causal.state_dict())
    items, lengths = torch.tensor([[3, 1, 4, 1], [5, 9, 0, 0]]), torch.tensor([4, 2])
    expected = both(items, lengths)
    found = causal.encode(causal.items(items), lengths, both_ways=True)
    for row, length in enumerate([4, 2]):
        torch.testing.assert_close(found[row, :length], expected[row, :length])
        one_way = causal(items, lengths)[row, : length - 1]  # and is the same no more
        assert (one_way - expected[row, : length - 1]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_more_padding_on_the_right_changes_no_state(causal):
    model = encoder(causal)
    items = torch.tensor([[3, 1, 4], [1, 5, 0], [9, 0, 0]])
    lengths = torch.tensor([3, 2, 1])
    padded = torch.cat([items, torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    short, long = model(items, lengths), model(padded, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(long[row, :length], short[row, :length], rtol=0, atol=1e-5)
        alone = model(items[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], short[row, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_what_stands_in_the_padding_changes_no_state(causal):
    model = encoder(causal)
    lengths = torch.tensor([4])
    garbage = ITEMS.clone()
    garbage[0, 4:] = 17
    clean = ITEMS.clone()
    clean[0, 4:] = 0
    torch.testing.assert_close(
        model(garbage, lengths)[0, :4], model(clean, lengths)[0, :4], rtol=0, atol=1e-6
    )


def test_positions_tell_the_order():
    model = encoder(causal=False)
    states = model(torch.tensor([[6, 6, 6]]), torch.tensor([3]))[0]
    assert (states[0] - states[1]).abs().max() > 1e-3


def layer_norm(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def block_by_hand(block, states, causal, lengths):
    """Attention as sums over positions, head by head; then the residuals and norms."""
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
    first = layer_norm(
        states + attended @ block.out.weight.T + block.out.bias, block.norm_attention
    )
    widened = gelu(first @ block.widen.weight.T + block.widen.bias)
    return layer_norm(
        first + widened @ block.narrow.weight.T + block.narrow.bias, block.norm_forward
    )


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_block_is_post_norm_softmax_attention(causal):
    torch.manual_seed(1)
    block = TransformerBlock(D, 3, 0.5, causal).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    states = torch.randn(2, 5, D, dtype=torch.float64)
    lengths = torch.tensor([5, 3])
    seen = None if causal else (torch.arange(5) < lengths[:, None])[:, None, None, :]
    expected = block_by_hand(block, states, causal, lengths)
    torch.testing.assert_close(block(states, seen), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_without_blocks_a_state_is_the_normed_sum_of_item_and_position():
    model = encoder(n_layers=0)
    expected = layer_norm(model.items.weight[ITEMS[0]] + model.positions.weight[:L], model.norm)
    torch.testing.assert_close(model(ITEMS, FULL)[0], expected)


def test_embeddings_may_be_brought_along():
    model = encoder()
    assert torch.equal(model.encode(model.table[ITEMS], FULL), model(ITEMS, FULL))


def test_the_padding_row_stays_zero_in_training():
    model = encoder(dropout=0.2).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    items, lengths = torch.tensor([[3, 1, 4], [1, 5, 0]]), torch.tensor([3, 2])
    before = model.table.detach().clone()
    for _ in range(5):
        states = model(items, lengths)[items > 0]
        loss = softmax_cross_entropy(states, model.table, torch.tensor([1, 4, 6, 5, 7]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not model.table[0].any()
    assert (model.table[1:] != before[1:]).any(dim=1).all()


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = encoder(dropout=0.5)
    assert torch.equal(model(ITEMS, FULL), model(ITEMS, FULL))
    model.train()
    assert not torch.equal(model(ITEMS, FULL), model(ITEMS, FULL))


def test_weights_start_small():
    torch.manual_seed(0)
    model = TransformerEncoder(4000, 64, 2, 2, 50, 0.5)
    assert not model.table[0].any()
    assert model.table[1:].std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].widen.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


def test_last_states_stand_at_the_newest_item():
    states = torch.arange(24.0).view(2, 3, 4)
    picked = last_states(states, torch.tensor([2, 3]))
    assert torch.equal(picked, torch.stack([states[0, 1], states[1, 2]]))


def test_gradients_reach_every_parameter():
    model = encoder().train()
    F.mse_loss(model(ITEMS, FULL), torch.ones(1, L, D)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_the_steps_of_an_encoder_make_the_whole(causal):
    model = encoder(causal)
    items, lengths = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]), torch.tensor([5, 3])
    length = items.shape[1]
    visible = (torch.arange(length) < lengths[:, None])[:, None, None, :]
    if causal:
        visible = torch.ones(length, length, dtype=torch.bool).tril()
    states = model.enter(model.table[items] + model.positions.weight[:length])
    assert len(model.layers) == 2
    for block in model.layers:
        query, key, value = block.heads(states)
        assert query.shape == (2, 3, length, D // 3)
        logits = query @ key.transpose(2, 3) / math.sqrt(D // 3)
        shares = torch.softmax(logits.masked_fill(~visible, -torch.inf), dim=3)
        states = block.after(states, shares @ value)
    real = items > 0
    expected = model(items, lengths)
    torch.testing.assert_close(states[real], expected[real], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_state_may_ask_for_all():
    # queries and keys of different positions: what a slot beside the sequence does
    model = encoder()
    block = model.layers[0]
    states = model.enter(model.table[ITEMS] + model.positions.weight[:L])
    query, _, _ = block.heads(states[:, -1:])
    _, key, value = block.heads(states)
    attended = F.scaled_dot_product_attention(query, key, value)
    alone = block.after(states[:, -1:], attended)
    torch.testing.assert_close(alone, block(states, None)[:, -1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 5, 12])
def test_interleaved_sines_and_cosines_by_hand(dim):
    steps = [0.0, 1.0, 2.5, 1000.0]
    expected = torch.zeros(len(steps), dim)
    for row, n in enumerate(steps):
        for place in range(dim):
            angle = n / 10_000 ** (2 * (place // 2) / dim)
            expected[row, place] = math.cos(angle) if place % 2 else math.sin(angle)
    ours = interleaved_sinusoidal(torch.tensor(steps), dim)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)  # float32 angles up to 1000
    torch.testing.assert_close(ours[:3], expected[:3], rtol=0, atol=1e-6)


@torch.no_grad()
def test_extra_tokens_are_no_items():
    torch.manual_seed(0)
    model = TransformerEncoder(V, D, 1, 3, 10, 0.0, n_extra=2).eval()
    assert model.items.weight.shape == (V + 2, D)
    assert torch.equal(model.table, model.items.weight[:V])
    before = model.scores(ITEMS, FULL)
    assert before.shape == (1, V)
    masked = ITEMS.clone()
    masked[0, 2] = V
    states = model(masked, FULL)
    model.items.weight[V + 1] += 1
    assert torch.equal(model.scores(ITEMS, FULL), before)
    assert torch.equal(model(masked, FULL), states)
    model.items.weight[V, 0] += 1
    assert torch.equal(model.scores(ITEMS, FULL), before)
    assert not torch.equal(model(masked, FULL), states)


def denoiser(n_layers=2):
    torch.manual_seed(0)
    made = SequenceDenoiser(D, n_layers, 3, 10, 0.5)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def noised(*shape):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("place", range(L))
@torch.no_grad()
def test_a_restored_position_sees_all_others(place):
    model, x_t, t = denoiser(), noised(1, L), torch.tensor([3])
    changed = x_t.clone()
    changed[0, place, 0] += 2
    difference = (model(x_t, t, FULL) - model(changed, t, FULL)).abs().amax(2)
    assert (difference > 1e-4).all()


@torch.no_grad()
def test_padding_restores_nothing_else():
    model, x_t, t = denoiser(), noised(3, 5), torch.tensor([3, 0, 900])
    lengths = torch.tensor([5, 2, 1])
    restored = model(x_t, t, lengths)
    other = x_t.clone()
    other[1, 2:] = 7
    other[2, 1:] = -7
    wider = torch.cat([other, torch.full((3, 4, D), 9.0)], dim=1)
    for row, length in enumerate(lengths.tolist()):
        expected = restored[row, :length]
        for padded in (other, wider, x_t[:, :length]):
            found = model(padded[row : row + 1], t[row : row + 1], lengths[row : row + 1])
            torch.testing.assert_close(found[0, :length], expected, rtol=0, atol=1e-5)
        together = model(wider, t, lengths)[row, :length]
        torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_step_reaches_every_restored_position():
    model, x_t = denoiser(), noised(1, L)
    early, late = (model(x_t, torch.tensor([t]), FULL) for t in (1, 500))
    assert ((early - late).abs().amax(2) > 1e-3).all()


@torch.no_grad()
def test_without_blocks_the_restored_is_the_normed_sum_of_noised_step_and_position():
    model, x_t = denoiser(n_layers=0), noised(1, L)
    # sines and cosines of 3 at frequencies from 1 to 1e-4, then two layers with x·σ(x) between
    angles = [3 * 10_000 ** (-place / 5) for place in range(6)]
    sinusoid = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    first, _, second = model.of_step
    widened = first.weight @ sinusoid + first.bias
    step = second.weight @ (widened * torch.sigmoid(widened)) + second.bias
    expected = layer_norm(x_t + step + model.positions.weight[:L], model.norm)
    torch.testing.assert_close(model(x_t, torch.tensor([3]), FULL), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_lent_blocks_look_both_ways_and_stay_causal_where_they_live():
    model, owner, x_t, t = denoiser(n_layers=0), encoder(), noised(1, L), torch.tensor([3])
    before = owner(ITEMS, FULL)
    changed = x_t.clone()
    changed[0, -1, 0] += 2
    restored = model(x_t, t, FULL, owner.layers)
    difference = (restored - model(changed, t, FULL, owner.layers)).abs().amax(2)
    assert (difference > 1e-4).all()
    assert torch.equal(owner(ITEMS, FULL), before)
    later = ITEMS.clone()
    later[0, -1] = 20
    assert torch.equal(owner(later, FULL)[0, :-1], before[0, :-1])


@torch.no_grad()
def test_lent_blocks_are_used_instead_of_its_own():
    owner, x_t, t = encoder(), noised(2, L), torch.tensor([3, 8])
    lengths = torch.tensor([L, 4])
    bare = denoiser(n_layers=0)
    full = denoiser(n_layers=1)
    full.load_state_dict(bare.state_dict(), strict=False)
    expected = bare(x_t, t, lengths, owner.layers)
    assert torch.equal(full(x_t, t, lengths, owner.layers), expected)
    assert not torch.equal(full(x_t, t, lengths), expected)


@torch.no_grad()
def test_seen_keys_make_a_causal_block_bidirectional():
    causal = encoder().layers[0]
    both = TransformerBlock(D, 3, 0.0, causal=False).eval()
    both.load_state_dict(causal.state_dict())
    states = noised(2, 5)
    seen = (torch.arange(5) < torch.tensor([5, 3])[:, None])[:, None, None, :]
    assert torch.equal(causal(states, seen), both(states, seen))
    expected = block_by_hand(causal, states, False, torch.tensor([5, 3]))
    torch.testing.assert_close(causal(states, seen), expected, rtol=1e-3, atol=1e-4)
    expected = block_by_hand(causal, states, True, torch.tensor([5, 3]))
    torch.testing.assert_close(causal(states), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_parts", [1, 3, 4, 9])
@torch.no_grad()
def test_newest_states_in_parts_are_those_of_the_whole(causal, n_parts):
    model = encoder(causal)
    lengths = torch.tensor([3, 7, 1, 2, 7, 1])
    items = torch.randint(1, V, (6, 8), generator=torch.Generator().manual_seed(0))
    items[torch.arange(8) >= lengths[:, None]] = 0
    expected = last_states(model(items, lengths), lengths)
    found = model.newest(items, lengths, n_parts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_the_last_by_hand():
    states = torch.tensor([[[1.0], [2.0], [6.0]], [[3.0], [5.0], [100.0]], [[7.0], [9.0], [9.0]]])
    found = mean_of_last(states, torch.tensor([3, 2, 1]), 2)
    assert found.tolist() == [[4.0], [4.0], [7.0]]


# --- what all encoders promise -----------------------------------------------------------------


@pytest.fixture(params=["transformer", "gru", "caser"])
def any_encoder(request):
    torch.manual_seed(0)
    made = {
        "transformer": lambda: TransformerEncoder(V, D, 2, 3, 10, 0.0, n_extra=2),
        "gru": lambda: GRUEncoder(V, D, 8, 0.0, n_extra=2),
        "caser": lambda: CaserEncoder(V, D, 4, 3, 2, 0.0, n_extra=2),
    }[request.param]()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        made.table[0] = 0
    return made.eval()


def one_row(encoder, items):
    return encoder(torch.tensor([items]), torch.tensor([len(items)]))[0]


@torch.no_grad()
def test_of_any_encoder_a_state_follows_from_what_came_before(any_encoder):
    whole = any_encoder(ITEMS, FULL)[0]
    for end in range(1, L + 1):
        alone = one_row(any_encoder, ITEMS[0, :end].tolist())
        torch.testing.assert_close(alone, whole[:end], rtol=1e-4, atol=1e-5)
        if end < L:
            other = one_row(any_encoder, [20, *ITEMS[0, 1:end].tolist()])
            assert (other[0] - whole[0]).abs().max() > 1e-3


@torch.no_grad()
def test_of_any_encoder_padding_changes_nothing(any_encoder):
    items = torch.tensor([[3, 1, 4, 8, 8], [1, 5, 8, 8, 8], [9, 8, 8, 8, 8]])  # 8 is garbage
    lengths = torch.tensor([3, 2, 1])
    states = any_encoder(items, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = one_row(any_encoder, items[row, :length].tolist())
        torch.testing.assert_close(states[row, :length], alone, rtol=1e-4, atol=1e-5)
    newest = any_encoder.newest(items, lengths, n_parts=2)
    torch.testing.assert_close(newest, last_states(states, lengths), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_any_encoder_scores_items_by_products_and_no_extra_tokens(any_encoder):
    scores = any_encoder.scores(ITEMS, FULL)[0]
    state = any_encoder(ITEMS, FULL)[0, -1]
    expected = torch.stack([state @ any_encoder.items.weight[item] for item in range(V)])
    torch.testing.assert_close(scores, expected)
    masked = one_row(any_encoder, [3, V, 4])  # a token may be read
    assert (masked[1] - one_row(any_encoder, [3, V + 1, 4])[1]).abs().max() > 1e-3
    assert torch.equal(any_encoder.encode(any_encoder.items(ITEMS), FULL)[0, -1], state)


def test_gradients_reach_every_parameter_of_any_encoder_but_no_padding(any_encoder):
    items, lengths = torch.tensor([[3, 1, 4, 1, 5], [9, V, 0, 0, 0]]), torch.tensor([5, 2])
    states = any_encoder.train()(items, lengths)
    (states[items > 0] * torch.randn(7, D)).sum().backward()
    for name, parameter in any_encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert not any_encoder.items.weight.grad[0].any()


@pytest.mark.parametrize(
    "made", [lambda: GRUEncoder(4000, 64, 128, 0.5), lambda: CaserEncoder(4000, 64, 5, 16, 4, 0.5)]
)
def test_item_embeddings_of_the_others_start_small_and_dropout_is_for_training(made):
    torch.manual_seed(0)
    model = made()
    assert not model.table[0].any()
    assert model.table[1:].std().item() == pytest.approx(0.02, rel=0.02)
    assert not torch.equal(model(ITEMS, FULL), model(ITEMS, FULL))
    assert torch.equal(model.eval()(ITEMS, FULL), model(ITEMS, FULL))
