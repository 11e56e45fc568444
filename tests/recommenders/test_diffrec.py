"""DiffRec: the network, its loss and its sampling, written out one sequence at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from diffuserec import Runtime, load
from diffuserec.data import Batch, Histories, SequenceDataset, histories_of, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.retrieval import rank_of, seen_items
from diffuserec.recommenders.diffrec import DiffRec

from .oracles import assert_refused, built, wild, with_its_loss, with_its_phases

N = 20  # diffusion steps
V = 26
D = 12

# every setting, so that no test hangs on a default
SETTINGS = {
    "form": "two_stream",
    "slot": "diffused",
    "init_std": 0.02,
    "item_features": False,
    "id_dropout": 0.2,
    "encoder": "transformer",
    "encoder_settings": {},
    "dim": D,
    "max_len": 8,
    "n_layers": 2,
    "n_heads": 3,
    "dropout": 0.3,
    "num_train_timesteps": N,
    "beta_schedule": "sqrt",
    "step_sampling": "uniform",
    "step_weight": "normalized",
    "pure_noise": 0.0,
    "mse_weight": 0.5,
    "mse_reduction": "mean",
    "detach_target": False,
    "prior_loss": False,
    "rounding_loss": False,
    "targets": "all",
    "noise_last": 1,
    "noised_history": "always",
    "normalize": True,
    "damping": 0.7,
    "add_last_item": True,
    "tie_head": True,
    "step_embedding": True,
    "rescale_steps": False,
    "n_train_draws": 1,
    "n_draws": 4,
    "num_inference_steps": 1,
    "n_candidates": None,
    "learning_rate": 0.02,
    "batch_size": 16,
    "epochs": 1,
    "patience": 10,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "rate_decay": "none",
    "max_norm": None,
    "average_epochs": 0.0,
    "attention_dropout": 0.0,
    "position_encoding": "from_oldest",
}
FORMS = ["two_stream", "prefixes"]
CAUSAL_BSAREC = {"encoder": "bsarec_causal", "position_encoding": "relative", "n_heads": 2}


def set_to(settings: dict) -> dict:
    """The settings with some changed; noised history is not added clean to the slot."""
    bare = {"add_last_item": False} if settings.get("noise_last", 1) > 1 else {}
    return SETTINGS | bare | settings


def made(**settings) -> DiffRec:
    """An untrained model with weights so large that attention is not uniform."""
    log = SequenceDataset.from_lists([[*range(1, V)]])
    return wild(built(DiffRec(**set_to(settings)), log, seed=3))


def test_every_setting_is_set_here():
    assert SETTINGS.keys() == DiffRec.Config.model_fields.keys()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def histories_from(*lists: list[int]) -> Histories:
    dataset = SequenceDataset.from_lists(list(lists), users=[7 * n + 2 for n in range(len(lists))])
    return histories_of(dataset, np.arange(len(lists)))


LISTS = [[3, 1, 4, 1, 5, 9], [2, 6, 5], [8]]
ITEMS = torch.tensor([items + [0] * (6 - len(items)) for items in LISTS])
LENGTHS = torch.tensor([6, 3, 1])


# --- the method written out, one sequence at a time --------------------------------------------


def alpha_bars(n_steps: int) -> list[float]:
    """The sqrt schedule in the form of ratios, capped at 0.999; index n - 1 is step n."""

    def wanted(u: float) -> float:
        return 1 - math.sqrt(u + 1e-4)

    left, out = 1.0, []
    for n in range(n_steps):
        beta = min(1 - wanted((n + 1) / n_steps) / wanted(n / n_steps), 0.999)
        left *= 1 - beta
        out.append(left)
    return out


def step_vector(n: float) -> torch.Tensor:
    """Equation 15."""
    angles = [n / 10_000 ** (2 * (column // 2) / D) for column in range(D)]
    return torch.tensor([math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)])


def by_hand(model: DiffRec, history: list[int], x_t, t: int, noise=()) -> torch.Tensor:
    """State of a slot after a history: [history..., slot] through plain attention, alone.

    Args:
        history: item numbers.
        x_t: the noised embedding in the slot, (D,).
        t: step from 0.
        noise: of the newest items, newest first, in form prefixes.
    """
    c, encoder = model.config, model.encoder
    table = model.table.vectors.weight
    # no gradient passes through the divisor of the embeddings
    real = table[1:].detach()
    scale = ((real - real.mean()).square().sum() / (real.numel() - 1)).sqrt()
    scale = scale if c.normalize else 1.0
    alpha_bar = alpha_bars(c.num_train_timesteps)[t]
    n = t + 1
    if c.rescale_steps:
        n = n * 1000 / c.num_train_timesteps
    step = step_vector(n) * scale if c.step_embedding else torch.zeros(D)
    places = torch.zeros(len(history) + 1, D)
    if c.encoder == "transformer" and c.position_encoding == "from_oldest":
        places = encoder.positions.weight[: len(places)]
    elif c.encoder == "transformer" and c.position_encoding == "from_newest":
        places = encoder.positions.weight[-len(places) :]
    tokens = []
    for position, item in enumerate(history):
        token = table[item]
        age = len(history) - 1 - position
        if age < len(noise):
            token = math.sqrt(alpha_bar) * token + math.sqrt(1 - alpha_bar) * scale * noise[age]
        token = token + places[position]
        if c.form == "prefixes":
            token = token + step
        tokens.append(token)
    slot = x_t * scale
    if c.damping is not None:
        slot = slot * max(math.sqrt(alpha_bar), c.damping)
    slot = slot + step
    slot = slot + places[-1]
    if c.add_last_item:
        slot = slot + table[history[-1]]
    if c.encoder != "transformer":
        return encoder(torch.stack([*tokens, slot])[None], torch.tensor([len(history) + 1]))[0, -1]
    states = layer_norm(torch.stack([*tokens, slot]), encoder.norm)
    for block in encoder.blocks:
        query, key, value = (
            part.view(len(states), c.n_heads, -1).transpose(0, 1)
            for part in F.linear(
                states, block.query_key_value.weight, block.query_key_value.bias
            ).split(D, dim=1)
        )
        logits = query @ key.transpose(1, 2) / math.sqrt(D / c.n_heads)
        if c.position_encoding == "relative":
            place = torch.arange(len(states))
            distance = place[:, None] - place + c.max_len  # of max_len + 1 tokens
            logits = logits + encoder.distances.weight[distance].permute(2, 0, 1)
        if c.form == "two_stream":
            later = torch.ones(len(states), len(states)).triu(1).bool()
            logits = logits.masked_fill(later, -math.inf)
        attended = (torch.softmax(logits, dim=2) @ value).transpose(0, 1).flatten(1)
        attended = F.linear(attended, block.out.weight, block.out.bias)
        states = layer_norm(states + attended, block.norm_attention)
        wide = F.gelu(F.linear(states, block.widen.weight, block.widen.bias))
        wide = F.linear(wide, block.narrow.weight, block.narrow.bias)
        states = layer_norm(states + wide, block.norm_forward)
    return states[-1]


def layer_norm(x, norm):
    return F.layer_norm(x, (D,), norm.weight, norm.bias)


VARIANTS = [
    {},
    {"damping": None},
    {"damping": 1.0},
    {"damping": 0.01},
    {"normalize": False},
    {"add_last_item": False},
    {"position_encoding": "relative"},
    {"position_encoding": "none"},
    {"step_embedding": False},
    {"rescale_steps": True},
    {"n_layers": 1, "n_heads": 2},
    {"n_layers": 3},
]


NO_NOISE = torch.zeros(3, 1, 0, D)


def predicted(model: DiffRec, items, n_history, x_t, t, noise=None) -> torch.Tensor:
    """The network's prediction in slots (B, S, D), each after its `n_history` items."""
    if noise is None:
        noise = torch.zeros(*x_t.shape[:2], 0, D)
    return model.predictor(items, n_history, noise)(x_t, t)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@torch.no_grad()
def test_the_two_streams_are_a_causal_sequence_for_every_prefix(settings):
    model = made(**settings)
    k = 3
    n_history = torch.arange(1, 7).repeat_interleave(k)[None]
    x_t = normal(3, 6 * k, D)
    t = torch.randint(N, (3, 6 * k), generator=torch.Generator().manual_seed(1))
    states = predicted(model, ITEMS, n_history, x_t, t)
    n_compared = 0
    for row, items in enumerate(LISTS):
        for slot, n in enumerate(n_history[0].tolist()):
            if n > len(items):  # a slot in the padding
                continue
            expected = by_hand(model, items[:n], x_t[row, slot], int(t[row, slot]))
            torch.testing.assert_close(states[row, slot], expected, rtol=0, atol=1e-5)
            n_compared += 1
    assert n_compared == k * (6 + 3 + 1)


@pytest.mark.parametrize("settings", [*VARIANTS, {"position_encoding": "from_newest"}], ids=str)
@torch.no_grad()
def test_the_prefix_form_is_a_bidirectional_sequence(settings):
    model = made(form="prefixes", **settings)
    x_t, t = normal(3, 1, D), torch.tensor([[0], [11], [N - 1]])
    states = predicted(model, ITEMS, LENGTHS[:, None], x_t, t)
    for row, items in enumerate(LISTS):
        expected = by_hand(model, items, x_t[row, 0], int(t[row]))
        torch.testing.assert_close(states[row, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_noised_history_is_the_newest_and_no_more(normalize):
    model = made(form="prefixes", noise_last=4, normalize=normalize)
    x_t, t, noise = normal(3, 1, D), torch.tensor([[4], [11], [N - 1]]), normal(3, 1, 3, D, seed=2)
    states = predicted(model, ITEMS, LENGTHS[:, None], x_t, t, noise)
    for row, items in enumerate(LISTS):
        expected = by_hand(model, items, x_t[row, 0], int(t[row]), noise[row, 0])
        torch.testing.assert_close(states[row, 0], expected, rtol=0, atol=1e-5)
        clean = by_hand(model, items, x_t[row, 0], int(t[row]))
        assert (clean - expected).abs().max() > 1e-2


def test_noise_reaches_as_many_items_as_there_are():
    model = made(form="prefixes", noise_last=4)
    noise = normal(3, 1, 3, D, seed=2).requires_grad_()
    t = torch.full((3, 1), 9)
    states = predicted(model, ITEMS, LENGTHS[:, None], normal(3, 1, D), t, noise)
    (grad,) = torch.autograd.grad(states.sum((0, 1))[0], noise)
    reached = grad[:, 0].abs().amax(2) > 0
    assert reached.tolist() == [[True] * 3, [True] * 3, [True, False, False]]


# --- what depends on what ----------------------------------------------------------------------


def test_a_slot_depends_on_its_own_noise_and_no_other():
    model = made()
    x_t = normal(3, 6, D).requires_grad_()
    states = predicted(model, ITEMS, torch.arange(1, 7)[None], x_t, torch.full((3, 6), 7))
    for row in range(3):
        for slot in range(6):
            weights = normal(D, seed=9)  # LayerNorm makes a plain sum constant
            (grad,) = torch.autograd.grad(states[row, slot] @ weights, x_t, retain_graph=True)
            reached = (grad.abs().amax(2) > 0).nonzero().tolist()
            assert reached == [[row, slot]]


@torch.no_grad()
def test_a_history_is_encoded_once_for_all_noise():
    model = made()
    entered = []
    model.encoder.norm.register_forward_hook(lambda _, given, __: entered.append(given[0].shape))
    predict = model.predictor(ITEMS, LENGTHS[:, None], NO_NOISE)
    assert entered == [(3, 6, D)]
    for step in (19, 3):
        predict(normal(3, 1, D), torch.full((3, 1), step))
    assert entered[1:] == [(3, 1, D)] * 2  # the slots alone


@pytest.mark.parametrize("position", range(6))
@torch.no_grad()
def test_a_slot_sees_the_history_before_it(position):
    model = made(add_last_item=False)
    changed = ITEMS[:1].clone()
    changed[0, position] = 20
    slots = torch.arange(1, 7)[None], normal(1, 6, D), torch.full((1, 6), 12)
    before, after = (predicted(model, items, *slots)[0] for items in (ITEMS[:1], changed))
    difference = (before - after).abs().amax(1)
    assert not difference[:position].any()  # the slot after so many items has not seen this one
    assert (difference[position:] > 1e-3).all()


@torch.no_grad()
def test_only_the_bidirectional_form_takes_a_history_without_positions_as_a_set():
    shuffled = ITEMS[:1, [4, 2, 5, 0, 1, 3]]
    slot = torch.tensor([[6]]), normal(1, 1, D), torch.tensor([[N - 1]])

    def difference(**settings) -> float:
        model = made(add_last_item=False, **settings)
        one, other = (predicted(model, items, *slot) for items in (ITEMS[:1], shuffled))
        return float((one - other).abs().max())

    assert difference(form="prefixes", position_encoding="none") < 1e-5
    # with positions, or with causal attention, order counts
    for position_encoding in ("from_oldest", "from_newest", "relative"):
        assert difference(form="prefixes", position_encoding=position_encoding) > 1e-2
    assert difference(position_encoding="none") > 1e-2


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_content_of_the_padding_does_not_matter(form):
    model = made(form=form)
    garbage = torch.where(ITEMS == 0, 17, ITEMS)
    wider = torch.cat([ITEMS, torch.zeros(3, 2, dtype=torch.int64)], dim=1)
    users = torch.tensor([2, 9, 16])
    expected = model.score(Histories(users, ITEMS, LENGTHS))
    for items in (garbage, wider):
        scores = model.score(Histories(users, items, LENGTHS))
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


# --- inference ---------------------------------------------------------------------------------


def draws_of(model: DiffRec, histories: Histories, seed: int, n_draws=None) -> torch.Tensor:
    """Probabilities of all items by each draw of noise, (K, B, V)."""
    scorer = model.scorer(histories, seed, n_draws)
    return torch.stack([draw.clone() for draw in scorer.draws(slice(0, V))])


def head_of(model: DiffRec) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and biases that scores are made with."""
    if model.config.tie_head:
        return model.table.vectors.weight, torch.zeros(V)
    return model.head.vectors.weight, model.head.bias


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tie_head", [True, False])
@torch.no_grad()
def test_scores_are_probabilities_averaged_over_pure_noise(form, tie_head):
    # algorithm 3 by hand: the slot holds standard normal noise at n = N
    model = made(form=form, tie_head=tie_head, n_draws=5)
    weight, bias = head_of(model)
    histories = histories_from(*LISTS)
    noise = KeyedNoise(6, histories.users).normal(5, D)
    draws = torch.zeros(5, 3, V)
    for row, items in enumerate(LISTS):
        for draw in range(5):
            h_0 = by_hand(model, items, noise[row, draw], N - 1)
            draws[draw, row, 1:] = torch.softmax(weight[1:] @ h_0 + bias[1:], dim=0)
    torch.testing.assert_close(draws_of(model, histories, 6), draws, rtol=1e-3, atol=1e-6)
    scores = model.score(histories, 6)
    torch.testing.assert_close(scores, draws.mean(0), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    assert not scores[:, 0].any()
    assert (draws[0] - draws[1]).abs().max() > 1e-2  # the draws differ


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_ten_draws_in_one_pass_are_ten_passes(form):
    model = made(form=form, noise_last=3 if form == "prefixes" else 1)
    histories = histories_from(*LISTS)
    together = model.states(histories, 4, 10)
    assert together.shape == (3, 10, D)
    noise = KeyedNoise(4, histories.users).normal(10, model.config.noise_last, D)
    t, n_history = torch.full((3, 1), N - 1), histories.lengths[:, None]
    for draw in range(10):
        x_t, rest = noise[:, draw, :1], noise[:, draw, None, 1:]
        alone = predicted(model, histories.items, n_history, x_t, t, rest)[:, 0]
        torch.testing.assert_close(together[:, draw], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_draw_does_not_see_the_other_draws():
    model = made()
    x_t = normal(3, 4, D)
    slots = LENGTHS[:, None].expand(-1, 4), x_t, torch.full((3, 4), N - 1)
    before = predicted(model, ITEMS, *slots)
    x_t[:, 2] *= -1
    after = predicted(model, ITEMS, *slots)
    others = [0, 1, 3]
    torch.testing.assert_close(before[:, others], after[:, others], rtol=0, atol=1e-6)
    assert ((before[:, 2] - after[:, 2]).abs().amax(1) > 1e-2).all()


MANY_STEPS = [
    {},
    {"num_inference_steps": 3},
    {"form": "prefixes"},
    {"form": "prefixes", "num_inference_steps": 3},
    {"form": "prefixes", "noise_last": 3},
]


@pytest.mark.parametrize("n_more", [6, 70])  # slots are decoded 32 at a time
@pytest.mark.parametrize("settings", MANY_STEPS, ids=str)
@torch.no_grad()
def test_more_draws_begin_with_the_same_ones(settings, n_more, random_log):
    model = made(**settings)
    histories = histories_of(random_log, np.arange(9))
    few, many = (draws_of(model, histories, 2, n) for n in (3, n_more))
    assert (len(few), len(many)) == (3, n_more)
    torch.testing.assert_close(many[:3], few, rtol=1e-4, atol=1e-6)
    own = draws_of(model, histories, 2)
    assert len(own) == 4
    torch.testing.assert_close(model.score(histories, 2), own.mean(0), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_many_draws_are_each_their_own():
    model = made()
    histories = histories_from(*LISTS)
    states = model.states(histories, 4, 70)
    noise = KeyedNoise(4, histories.users).normal(70, D)
    for draw in (0, 31, 32, 69):
        for row, items in enumerate(LISTS):
            expected = by_hand(model, items, noise[row, draw], N - 1)
            torch.testing.assert_close(states[row, draw], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [*MANY_STEPS, {"n_candidates": 5}], ids=str)
@torch.no_grad()
def test_a_users_scores_are_the_users_alone(settings, random_log):
    model = made(**settings)
    index = np.arange(len(random_log))
    together = model.score(histories_of(random_log, index), 1)
    order = np.random.default_rng(0).permutation(index)
    shuffled = model.score(histories_of(random_log, order), 1)
    torch.testing.assert_close(shuffled, together[torch.from_numpy(order)], rtol=1e-3, atol=1e-5)
    for row in (0, 7, 39):
        alone = model.score(histories_of(random_log, np.array([row])), 1)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-3, atol=1e-5)
    assert torch.equal(model.score(histories_of(random_log, index), 1), together)
    other = model.score(histories_of(random_log, index), 2)
    assert ((other - together)[:, 1:].abs().amax(1) > 1e-4).all()
    # two users with one history have noise of their own
    twice = Histories(torch.tensor([1, 2]), ITEMS[[0, 0]], LENGTHS[[0, 0]])
    scores = model.score(twice, 1)
    assert (scores[0] - scores[1])[1:].abs().max() > 1e-4


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_long_history_is_its_newest_items(form, random_log):
    model = made(form=form)
    index = np.arange(len(random_log))
    assert int(random_log.lengths.max()) > 8
    whole = model.score(histories_of(random_log, index))
    newest = model.score(histories_of(random_log, index, max_len=8))
    torch.testing.assert_close(whole, newest, rtol=1e-3, atol=1e-6)
    shorter = model.score(histories_of(random_log, index, max_len=7))
    assert (whole - shorter).abs().max() > 1e-4


@pytest.mark.parametrize("settings", [{}, {"n_candidates": 6}, {"tie_head": False}], ids=str)
@torch.no_grad()
def test_blocks_of_scores_change_nothing(settings, random_log):
    model = made(**settings)
    histories = histories_of(random_log, np.arange(40))
    scorer = model.scorer(histories)
    parts = [
        torch.cat([scorer.rows(rows).block(columns) for rows in (slice(0, 7), slice(7, 40))])
        for columns in (slice(0, 5), slice(5, 19), slice(19, V))
    ]
    torch.testing.assert_close(
        torch.cat(parts, 1)[:, 1:], model.score(histories)[:, 1:], rtol=1e-5, atol=1e-6
    )


# --- walking back in steps ---------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_steps", [1, 4, N - 1, N])
@torch.no_grad()
def test_an_oracle_ends_at_what_it_knows_and_is_shown_the_forward_process(
    monkeypatch, form, n_steps
):
    n_draws, n_users = 20, 30
    model = made(form=form, num_inference_steps=n_steps)
    x_0 = normal(n_users, 1, D).expand(-1, n_draws, -1)
    shown: dict[int, torch.Tensor] = {}

    def predictor(items, n_history, noise):
        def oracle(x_t, t):
            (step,) = set(t.flatten().tolist())
            shown[step] = x_t.clone()
            return x_0

        return oracle

    monkeypatch.setattr(model, "predictor", predictor)
    histories = histories_from(*[[1 + user % 20, 3] for user in range(n_users)])
    assert torch.equal(model.states(histories, 0, n_draws), x_0)
    assert list(shown) == [N * left // n_steps - 1 for left in range(n_steps, 0, -1)]
    bars = alpha_bars(N)
    for step, x_t in shown.items():
        # x_t ~ N(sqrt(alpha_bar) x_0, 1 - alpha_bar); at n = N there is next to none of x_0
        rest = (x_t - math.sqrt(bars[step]) * x_0) / math.sqrt(1 - bars[step])
        n = rest.numel()
        assert abs(float(rest.mean())) < 4.5 / math.sqrt(n), step
        assert abs(float(rest.var()) - 1) < 4.5 * math.sqrt(2 / n), step
        along = float((rest * x_0).sum() / x_0.norm())
        assert abs(along) < 4.5, step
    # the probabilities are those of what the oracle knows, and all draws agree
    expected = torch.softmax(x_0[:, 0] @ model.table.vectors.weight[1:].T, dim=1)
    for draw in draws_of(model, histories, 0, n_draws):
        torch.testing.assert_close(draw[:, 1:], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_two_steps_by_hand(form):
    # N = 20 in two steps visits t = 19 and t = 9
    model = made(form=form, num_inference_steps=2)
    histories = histories_from(*LISTS)
    keyed = KeyedNoise(1, histories.users)
    x_T, fresh = keyed.normal(2, D), keyed.normal(2, D)
    late, early = alpha_bars(N)[19], alpha_bars(N)[9]
    found = model.states(histories, 1, 2)
    for row, items in enumerate(LISTS):
        for draw in range(2):
            first = by_hand(model, items, x_T[row, draw], 19)
            # posterior of x_early given x_0 and x_late (eq. 3, without its misprints)
            alpha = late / early
            of_x_0 = math.sqrt(early) * (1 - alpha) / (1 - late)
            of_x_t = math.sqrt(alpha) * (1 - early) / (1 - late)
            variance = (1 - alpha) * (1 - early) / (1 - late)
            mean = of_x_0 * first + of_x_t * x_T[row, draw]
            x_t = mean + math.sqrt(variance) * fresh[row, draw]
            expected = by_hand(model, items, x_t, 9)
            torch.testing.assert_close(found[row, draw], expected, rtol=0, atol=1e-4)


# --- few candidates ----------------------------------------------------------------------------


@pytest.mark.parametrize("tie_head", [True, False])
@torch.no_grad()
def test_all_items_as_candidates_are_the_exact_scores(tie_head, random_log):
    histories = histories_of(random_log, np.arange(20))
    exact = made(tie_head=tie_head).score(histories, 2)
    for n in (V - 1, 10_000):
        scores = made(tie_head=tie_head, n_candidates=n).score(histories, 2)
        torch.testing.assert_close(scores[:, 1:], exact[:, 1:], rtol=1e-4, atol=1e-7)
        assert torch.equal(scores[:, 1:].argsort(1), exact[:, 1:].argsort(1))


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("n", [1, 4])
@torch.no_grad()
def test_few_candidates_are_above_the_rest(tie_head, n, random_log):
    model = made(tie_head=tie_head, n_candidates=n)
    histories = histories_of(random_log, np.arange(20))
    scores = model.score(histories, 2)[:, 1:]
    h_0 = model.states(histories, 2, 4)[..., :D]
    weight, bias = (part[1:] for part in head_of(model))
    for row in range(20):
        logits = weight @ h_0[row].mean(0) + bias
        order = logits.argsort(descending=True)
        best, others = order[:n], order[n:]
        shares = torch.softmax(h_0[row] @ weight[best].T + bias[best], dim=1).mean(0)
        torch.testing.assert_close(scores[row, best], shares, rtol=1e-3, atol=1e-6)
        assert (scores[row, best] > 0).all()
        assert (scores[row, others] <= 0).all()
        assert (scores[row, others].diff() < 0).all()  # in the mean state's order, no ties


@pytest.mark.parametrize("own, expected", [(None, 256), (3, 3)])
def test_an_epoch_is_chosen_among_a_few_hundred_candidates(monkeypatch, random_log, own, expected):
    model, ((_, _, _, words),) = with_its_phases(
        DiffRec, SETTINGS, monkeypatch, random_log, n_candidates=own
    )
    histories = histories_of(random_log, np.arange(5))
    assert words["scorer"](histories).n_candidates == expected
    assert model.scorer(histories).n_candidates == own


# --- encoders ----------------------------------------------------------------------------------

OTHER_ENCODERS = [
    {"encoder": "gru", "encoder_settings": {"hidden_dim": 10}},
    {"encoder": "caser", "encoder_settings": {"window": 3, "n_horizontal": 2}},
]


def with_encoder(settings: dict) -> dict:
    """The settings in form prefixes, without those that only a transformer has."""
    of_transformer = ("n_layers", "n_heads", "position_encoding")
    mine = {k: v for k, v in set_to(settings).items() if k not in of_transformer}
    return mine | {"form": "prefixes"}


@pytest.mark.parametrize("extra", [{}, {"step_embedding": False}, {"tie_head": False}], ids=str)
@pytest.mark.parametrize("settings", OTHER_ENCODERS, ids=str)
@torch.no_grad()
def test_any_encoder_predicts_at_the_slot(settings, extra):
    log = SequenceDataset.from_lists([[*range(1, V)]])
    model = wild(built(DiffRec(**with_encoder(settings | extra)), log))
    histories = histories_from(*LISTS)
    states = model.states(histories, 6, 5)
    noise = KeyedNoise(6, histories.users).normal(5, D)
    for row, items in enumerate(LISTS):
        for draw in range(5):
            expected = by_hand(model, items, noise[row, draw], N - 1)
            torch.testing.assert_close(states[row, draw, :D], expected, rtol=0, atol=1e-5)
            assert expected.any()
    padded = Histories(histories.users, F.pad(torch.where(ITEMS == 0, 17, ITEMS), (0, 2)), LENGTHS)
    torch.testing.assert_close(model.states(padded, 6, 5), states, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", OTHER_ENCODERS, ids=str)
def test_any_encoder_learns_and_is_loaded_again(settings, cycle, tmp_path):
    split = leave_one_out(cycle)
    chosen = with_encoder(LEARNS | settings | {"epochs": 8})
    chosen = {k: v for k, v in chosen.items() if k not in ("n_layers", "n_heads")}
    model = DiffRec(**chosen).fit(split.train)
    assert hit_share(model, split) >= 0.9
    model.save(tmp_path / "model")
    histories = histories_of(split.test.histories, np.arange(10))
    assert torch.equal(load(tmp_path / "model").score(histories), model.score(histories))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"form": "two_stream"}, "form 'two_stream' needs an encoder with slots, such as "),
        (
            {"noise_last": 2, "add_last_item": False},
            "noise_last = 2 has no effect with encoder = 'gru': it needs encoder = 'transformer'",
        ),
        ({"position_encoding": "none"}, "position_encoding = 'none' has no effect with encoder"),
        ({"n_heads": 3}, "n_heads = 3 has no effect with encoder = 'gru'"),
        ({"encoder": "gr"}, "no encoder 'gr'"),
        ({"encoder_settings": {"hidden": 3}}, "encoder_settings of gru has no setting 'hidden'"),
    ],
    ids=str,
)
def test_what_another_encoder_cannot_do_is_refused(settings, message):
    assert_refused(DiffRec, {"encoder": "gru", "form": "prefixes"} | settings, message)


@pytest.mark.parametrize("settings", [{}, {"add_last_item": False, "tie_head": False}], ids=str)
@torch.no_grad()
def test_slots_beside_causal_bsarec_are_its_sequence_for_every_prefix(settings):
    model = made(**CAUSAL_BSAREC, **settings)
    n_history = torch.arange(1, 7)[None]
    x_t, t = normal(3, 6, D), torch.randint(N, (3, 6), generator=torch.Generator().manual_seed(1))
    states = predicted(model, ITEMS, n_history, x_t, t)
    for row, items in enumerate(LISTS):
        for n in range(1, len(items) + 1):
            slot = x_t[row, n - 1], int(t[row, n - 1])
            expected = by_hand(model, items[:n], *slot)
            torch.testing.assert_close(states[row, n - 1], expected, rtol=0, atol=1e-5)


def test_two_streams_of_causal_bsarec_learn_the_cycle(cycle, tmp_path):
    split = leave_one_out(cycle)
    model = DiffRec(**SETTINGS | LEARNS | CAUSAL_BSAREC | {"form": "two_stream"}).fit(split.train)
    assert hit_share(model, split) >= 0.95
    model.save(tmp_path / "model")
    histories = histories_of(split.test.histories, np.arange(10))
    assert torch.equal(load(tmp_path / "model").score(histories), model.score(histories))


# --- without diffusion -------------------------------------------------------------------------

EMPTY = {  # the defaults of what then has no effect
    "slot": "empty",
    "step_sampling": "importance",
    "step_weight": "normalized",
    "pure_noise": 0.5,
    "damping": 0.3,
    "n_draws": 10,
}


@pytest.mark.parametrize("settings", [{}, {"form": "prefixes"}, CAUSAL_BSAREC], ids=str)
@torch.no_grad()
def test_an_empty_slot_has_neither_target_nor_noise(monkeypatch, settings):
    chosen = SETTINGS | EMPTY | settings | {"form": settings.get("form", "two_stream")}
    log = SequenceDataset.from_lists([[*range(1, V)]])
    model, loss_of = with_its_loss(DiffRec, chosen, monkeypatch, log)
    histories = histories_from(*LISTS)
    states = model.states(histories, 6)
    assert states.shape == (3, 1, D)
    assert torch.equal(model.states(histories, 7, 4), states)
    for row, items in enumerate(LISTS):
        expected = by_hand(model, items, torch.zeros(D), N - 1)
        torch.testing.assert_close(states[row, 0], expected, rtol=0, atol=1e-5)
    batch = batch_of([[3, 1, 4, 1, 5], [2, 6, 5], [8, 9]])
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(loss_of(batch))
    assert torch.equal(*losses)
    table, scale = model.table.vectors.weight, model.table.vectors.weight[1:].std()
    entropies, errors = [], []
    for items in ([3, 1, 4, 1, 5], [2, 6, 5], [8, 9]):
        lasts = range(1, len(items)) if chosen["form"] == "two_stream" else [len(items) - 1]
        for n in lasts:
            h_0 = by_hand(model, items[:n], torch.zeros(D), N - 1)
            entropies.append(-torch.log_softmax(table[1:] @ h_0, 0)[items[n] - 1])
            errors.append((h_0 - table[items[n]] / scale).square().mean())
    expected = torch.stack(entropies).mean() + 0.5 * torch.stack(errors).mean()
    assert float(losses[0]) == pytest.approx(float(expected), rel=1e-4)


def test_an_empty_slot_learns_the_cycle(cycle):
    split = leave_one_out(cycle)
    model = DiffRec(**SETTINGS | LEARNS | EMPTY).fit(split.train)
    assert hit_share(model, split) >= 0.95


@pytest.mark.parametrize("noised_history", ["always", "training"])
@torch.no_grad()
def test_noised_history_may_be_seen_when_recommending(noised_history):
    model = made(form="prefixes", noise_last=9, noised_history=noised_history)
    one, other = (
        model.states(Histories(torch.tensor([4]), torch.tensor([items]), torch.tensor([5])))
        for items in ([3, 1, 4, 1, 5], [9, 2, 6, 5, 3])
    )
    if noised_history == "always":  # next to nothing is left of any history
        torch.testing.assert_close(one, other, rtol=0, atol=0.05)
    else:
        assert (one - other).abs().max() > 0.5
        noise = KeyedNoise(0, torch.tensor([4])).normal(4, 9, D)
        expected = by_hand(model, [3, 1, 4, 1, 5], noise[0, 2, 0], N - 1)
        first = model.states(
            Histories(torch.tensor([4]), torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([5]))
        )
        torch.testing.assert_close(first[0, 2], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_rounding_is_judged_as_a_perfect_prediction_would_be(monkeypatch, normalize):
    log = SequenceDataset.from_lists([[*range(1, V)]])
    batch = batch_of([[3, 1, 4, 1, 5], [2, 6, 5]])
    found = []
    for rounding_loss in (False, True):
        chosen = SETTINGS | {"normalize": normalize, "mse_weight": 0.0, "pure_noise": 1.0}
        model, loss_of = with_its_loss(
            DiffRec, chosen | {"rounding_loss": rounding_loss}, monkeypatch, log
        )
        scale = model.table.vectors.weight[1:].std() if normalize else 1.0
        clean = model.table.embed(batch.targets) / scale
        monkeypatch.setattr(model, "predictor", lambda *_, x=clean: lambda x_t, t: x)
        found.append(float(loss_of(batch)))
    assert found[1] == pytest.approx(2 * found[0], rel=1e-5)


# --- the loss ----------------------------------------------------------------------------------


def batch_of(lists: list[list[int]], synthetic: tuple[int, ...] = ()) -> Batch:
    """Histories with the next item at each position; `synthetic` ones have no first target."""
    width = max(map(len, lists)) - 1
    items, targets = torch.zeros(2, len(lists), width, dtype=torch.int64)
    for row, one in enumerate(lists):
        items[row, : len(one) - 1] = torch.tensor(one[:-1])
        targets[row, : len(one) - 1] = torch.tensor(one[1:])
    targets[list(synthetic), 0] = 0
    lengths = torch.tensor([len(one) - 1 for one in lists])
    return Batch(torch.arange(len(lists)), items, lengths, targets, lengths)


LOSSES: list[dict] = [
    {},
    {"tie_head": False},
    {"mse_reduction": "sum"},
    {"step_sampling": "importance", "step_weight": "literal"},
    {"detach_target": True},
    {"prior_loss": True},
    {"rounding_loss": True},
    {"rounding_loss": True, "tie_head": False},
    {"position_encoding": "relative"},
    CAUSAL_BSAREC,
    {"normalize": False},
    {"n_train_draws": 3},
    {"targets": "last"},
    {"step_sampling": "importance"},
    {"form": "prefixes"},
    {"form": "prefixes", "targets": "last", "noise_last": 3},
    {"form": "prefixes", "tie_head": False, "mse_weight": 0.0},
]


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_the_loss_and_its_gradients_written_out(monkeypatch, settings):
    log = SequenceDataset.from_lists([[*range(1, V)]])
    chosen = set_to({"pure_noise": 0.3} | settings)
    model, loss_of = with_its_loss(DiffRec, chosen, monkeypatch, log)
    c = model.config
    batch = batch_of([[3, 1, 4, 1, 5], [2, 6, 5], [8, 9]], synthetic=(1,))
    k = c.n_train_draws
    each = c.form == "two_stream" and c.targets == "all"
    columns = 4 if each else 1
    every = torch.arange(N).repeat(10)
    if c.step_sampling == "importance":  # so that weights of steps differ
        model.steps.record(every, every + 1.0)
    # a batch draws its steps, and then its noise
    torch.manual_seed(11)
    t, weights = model.draw_steps(torch.zeros(3, columns, dtype=torch.int64))
    assert len(weights.unique()) > 1 or c.step_sampling == "uniform"
    noise = torch.randn(3, columns, k, c.noise_last, D)
    torch.manual_seed(11)
    loss = loss_of(batch)

    table = model.table.vectors.weight
    scale = table[1:].std().detach() if c.normalize else torch.ones(())
    weight, bias = head_of(model)
    bars = alpha_bars(N)
    entropies, errors, weighted, priors, rounding, used = [], [], [], [], [], []
    for row in range(3):
        length = int(batch.lengths[row])
        for column in range(columns):
            position = column if each else length - 1
            target = int(batch.targets[row, position]) if position < length else 0
            if target == 0:
                continue
            step = int(t[row, column])
            x_0 = table[target] / scale
            states = []
            for draw in range(k):
                own = noise[row, column, draw]
                x_t = math.sqrt(bars[step]) * x_0 + math.sqrt(1 - bars[step]) * own[0]
                history = batch.items[row, : position + 1].tolist()
                states.append(by_hand(model, history, x_t, step, own[1:]))
            h_0 = torch.stack(states)
            shares = torch.softmax(h_0 @ weight[1:].T + bias[1:], dim=1)
            entropies.append(-shares[:, target - 1].mean().log())
            aim = x_0.detach() if c.detach_target else x_0
            error = (h_0 - aim).square().mean(0)
            error = error.sum() if c.mse_reduction == "sum" else error.mean()
            errors.append(error.detach())
            weighted.append(weights[row, column] * error)
            used.append(step)
            priors.append(bars[-1] * x_0.square().sum())
            true = torch.log_softmax(weight[1:] @ x_0 + bias[1:], dim=0)
            rounding.append(-true[target - 1])
    n_real = {True: 4 + 1 + 1, False: 3}[each]
    assert len(errors) == n_real
    expected = torch.stack(entropies).mean() + c.mse_weight * torch.stack(weighted).mean()
    if c.prior_loss:
        expected = expected + torch.stack(priors).mean()
    if c.rounding_loss:
        expected = expected + torch.stack(rounding).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    for name, mine, other in zip(parameters, ours, theirs, strict=True):
        assert mine is not None, name
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)
        assert mine.any(), name
    # what is recorded is the unweighted error of each step that was drawn
    if c.step_sampling == "importance":
        for step, error in zip(used, errors, strict=True):
            assert float((model.steps.losses[step] - error).abs().min()) < 1e-4 * float(error)
        assert model.steps.counts.tolist() == (10 + np.bincount(used, minlength=N)).tolist()
    else:
        assert not model.steps.counts.any()


def with_records(**settings) -> tuple[DiffRec, np.ndarray]:
    """A model whose step n (from 1) has lost n every time, and the distribution that follows."""
    model = made(**settings)
    every = torch.arange(N).repeat(10)
    model.steps.record(every, every + 1.0)
    sizes = np.arange(1, N + 1)
    return model, 0.999 * sizes / sizes.sum() + 0.001 / N


@pytest.mark.parametrize("pure_noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("step_sampling", ["importance", "uniform"])
def test_steps_are_drawn_and_weighted_without_bias(pure_noise, step_sampling):
    model, p = with_records(pure_noise=pure_noise, step_sampling=step_sampling)
    if step_sampling == "uniform":
        p = np.full(N, 1 / N)
    last = np.arange(N) == N - 1
    p = (1 - pure_noise) * p + pure_noise * last
    wanted = (1 - pure_noise) / N + pure_noise * last
    n = 40_000
    torch.manual_seed(2)
    t, weight = (x.flatten() for x in model.draw_steps(torch.ones(n // 4, 4, dtype=torch.int64)))
    counts = np.bincount(t.numpy(), minlength=N)
    possible = p > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], n * p[possible]).pvalue > 1e-3
    # uniform steps weigh 1 each, and so does the share of pure noise, however large it is
    if step_sampling == "uniform" or pure_noise == 1:
        np.testing.assert_allclose(weight, 1, rtol=1e-4)
    np.testing.assert_allclose(weight, (wanted / np.where(possible, p, 1))[t.numpy()], rtol=1e-4)
    if pure_noise == 1:
        return
    # so that any function of the step has its mean over 1..N, and at N for the share of pure noise
    f = np.random.default_rng(0).normal(size=N) + np.arange(N)
    estimates = weight.numpy() * f[t.numpy()]
    error = estimates.std() / math.sqrt(n)
    mean = (1 - pure_noise) * f.mean() + pure_noise * f[-1]
    assert abs(estimates.mean() - mean) < 4 * error
    exact = (p * np.unique(np.c_[t, weight], axis=0)[:, 1] * f).sum()
    assert exact == pytest.approx(mean, rel=1e-4)


def test_literal_weights_are_n_times_the_normalized_ones():
    drawn = []
    for step_weight in ("normalized", "literal"):
        model, _ = with_records(step_weight=step_weight, step_sampling="importance", pure_noise=0.2)
        torch.manual_seed(3)
        drawn.append(model.draw_steps(torch.ones(500, 1, dtype=torch.int64)))
    (t, normalized), (again, literal) = drawn
    assert torch.equal(t, again)
    torch.testing.assert_close(literal, N * normalized)


def test_training_records_every_target_once_an_epoch(cycle):
    train = leave_one_out(cycle).train
    settings = SETTINGS | {"step_sampling": "importance", "n_layers": 1, "batch_size": 64}
    model = DiffRec(**settings | {"epochs": 2}).fit(train)
    # every item with a history, once an epoch
    assert int(model.steps.counts.sum()) == 2 * int((train.lengths - 1).sum())
    last = DiffRec(**settings | {"targets": "last"}).fit(train)
    assert int(last.steps.counts.sum()) == len(train)
    model = DiffRec(**settings | {"pure_noise": 1.0, "form": "prefixes"}).fit(train)
    counts = model.steps.counts
    assert int(counts[-1]) == int(counts.sum()) == int((train.lengths - 1).sum())


def test_records_of_losses_are_resumed(cycle, cut_and_resumed):
    """An interrupted run ends with the parameters and records of a whole one."""
    train = leave_one_out(cycle).train
    settings = SETTINGS | {"step_sampling": "importance", "num_train_timesteps": 5, "epochs": 4}

    def fitted(**surroundings) -> DiffRec:
        return DiffRec(**settings).fit(train, runtime=Runtime(seed=1, **surroundings))

    whole = fitted()
    assert int(whole.steps.counts.min()) >= 10  # the records have had a say
    again = cut_and_resumed(fitted)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


# --- learning, saving, refusing ----------------------------------------------------------------

LEARNS = {
    "n_layers": 1,
    "n_heads": 2,
    "dim": 16,
    "dropout": 0.0,
    "pure_noise": 0.5,
    "mse_weight": 0.1,
    "damping": 0.1,
    "epochs": 12,
}


def hit_share(model: DiffRec, split) -> float:
    """HR@1 over all items but those of the history."""
    index = np.arange(len(split.test))
    scorer = model.scorer(histories_of(split.test.histories, index))
    targets = torch.from_numpy(split.test.targets)
    ranks = rank_of(scorer, targets, seen_items(split.test.histories, index))
    return float((ranks == 0).double().mean())


@pytest.mark.parametrize(
    "settings, least",
    [
        ({}, 0.95),
        ({"tie_head": False}, 0.95),
        ({"n_train_draws": 2, "step_sampling": "importance"}, 0.95),
        ({"n_candidates": 3}, 0.95),
        ({"num_inference_steps": 5, "epochs": 24}, 0.75),
        ({"form": "prefixes", "epochs": 5}, 0.95),
        ({"form": "prefixes", "epochs": 5, "step_embedding": False}, 0.9),
        (
            {"form": "prefixes", "epochs": 24, "targets": "last", "position_encoding": "none"},
            0.75,
        ),
    ],
    ids=str,
)
def test_learns_the_cycle(cycle, settings, least):
    # at least 10 of 20 items are left to show: one of them by chance hits in 10 % at most
    split = leave_one_out(cycle)
    model = DiffRec(**SETTINGS | LEARNS | settings).fit(split.train)
    assert hit_share(model, split) >= least
    assert model.curve[-1].loss < model.curve[0].loss
    assert not model.table.embeddings()[0].any()


@pytest.mark.parametrize("form", FORMS)
def test_an_untrained_model_knows_nothing(cycle, form):
    split = leave_one_out(cycle)
    none = {"form": form, "epochs": 1, "learning_rate": 1e-9}
    assert hit_share(DiffRec(**SETTINGS | LEARNS | none).fit(split.train), split) < 0.5


def test_learns_the_cycle_in_bfloat16_and_is_validated(cycle):
    split = leave_one_out(cycle)
    model = DiffRec(**SETTINGS | LEARNS).fit(split.train, split.valid, Runtime(precision="bf16"))
    assert hit_share(model, split) >= 0.9
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert max(record.valid for record in model.curve) > 0.9


@pytest.mark.parametrize(
    "settings",
    [{}, {"form": "prefixes", "noise_last": 2}, {"tie_head": False, "n_candidates": 4}],
    ids=str,
)
def test_a_saved_model_scores_the_same(tmp_path, random_log, settings):
    model = DiffRec(**set_to({"step_sampling": "importance"} | settings)).fit(random_log)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    histories = histories_of(random_log, np.arange(10))
    with torch.no_grad():
        assert torch.equal(loaded.score(histories, 5), model.score(histories, 5))
    assert torch.equal(loaded.steps.probabilities(), model.steps.probabilities())
    assert int(loaded.steps.counts.sum()) > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_steps", [2, 1000])
def test_a_loss_that_is_no_number_is_refused(cycle, form, n_steps):
    # with 2 steps all records are full after a few batches, and then hold what is no number
    settings = {
        "form": form,
        "num_train_timesteps": n_steps,
        "step_sampling": "importance",
        "learning_rate": 1e30,
        "batch_size": 4,
        "n_layers": 1,
    }
    with pytest.raises(ConfigError) as refusal:
        DiffRec(**set_to(settings)).fit(cycle)
    assert "try a smaller learning_rate" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dim": 10, "n_heads": 4}, "dim 10 is not divisible by n_heads 4"),
        ({"num_inference_steps": 21}, "num_inference_steps 21 is more than the 20 steps there are"),
        (
            {"num_train_timesteps": 10, "beta_schedule": "linear"},
            r"beta at step \d of 10 is .*, outside \(0, 1\): use more training steps",
        ),
        ({"num_train_timesteps": 1}, "num_train_timesteps: .*greater than or equal to 2, got 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps: .*greater than or equal to 2, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps: .*greater than or equal to 1, got 0"),
        ({"n_draws": 0}, "n_draws: .*greater than or equal to 1, got 0"),
        ({"n_train_draws": 0}, "n_train_draws: .*greater than or equal to 1, got 0"),
        ({"n_candidates": 0}, "n_candidates: .*greater than or equal to 1, got 0"),
        ({"noise_last": 0}, "noise_last: .*greater than or equal to 1, got 0"),
        (
            {"noise_last": 2},
            "noise_last = 2 has no effect with form = 'two_stream': it needs form = 'prefixes'",
        ),
        (
            {"noise_last": 2, "form": "prefixes", "num_inference_steps": 2},
            "noise_last above 1 works with num_inference_steps = 1 only",
        ),
        ({"noise_last": 10, "form": "prefixes"}, "noise_last 10 is more than the 9 tokens"),
        (
            {"noise_last": 2, "form": "prefixes", "add_last_item": True},
            "noises the newest item, which add_last_item would show clean: set add_last_item to",
        ),
        (
            {"n_train_draws": 2, "form": "prefixes"},
            "n_train_draws = 2 has no effect with form = 'prefixes': it needs form = 'two_stream'",
        ),
        (
            {"position_encoding": "from_newest"},
            "position_encoding 'from_newest' needs form='prefixes'",
        ),
        ({"noised_history": "training"}, "noised_history = 'training' has no effect"),
        (EMPTY | {"damping": None}, "damping = None has no effect with slot = 'empty'"),
        (EMPTY | {"pure_noise": 1.0}, "pure_noise = 1.0 has no effect with slot = 'empty'"),
        (
            {"rescale_steps": True, "step_embedding": False},
            "rescale_steps = True has no effect with step_embedding = False",
        ),
        ({"pure_noise": 1.1}, "pure_noise: .*less than or equal to 1, got 1.1"),
        ({"pure_noise": -0.1}, "pure_noise: .*greater than or equal to 0, got -0.1"),
        ({"damping": 0.0}, "damping: .*greater than 0, got 0.0"),
        ({"damping": 1.5}, "damping: .*less than or equal to 1, got 1.5"),
        ({"beta_schedule": "sqr"}, "beta_schedule: .*'sqrt', 'cosine' or 'linear', got 'sqr'"),
        ({"form": "both"}, "form: .*'two_stream' or 'prefixes', got 'both'"),
        ({"n_draw": 3}, r"DiffRec has no setting 'n_draw' \(did you mean 'n_draws'\?\)"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message):
    assert_refused(DiffRec, set_to(settings), message)


@pytest.mark.parametrize("schedule", ["sqrt", "cosine", "linear"])
def test_as_many_tokens_and_steps_as_there_are_may_be_used(schedule, random_log):
    settings = {"beta_schedule": schedule, "num_train_timesteps": 30, "num_inference_steps": 30}
    model = DiffRec(**set_to(settings)).fit(random_log)
    every = {"form": "prefixes", "noise_last": 9, "beta_schedule": schedule}
    whole = DiffRec(**set_to(every) | {"num_train_timesteps": 30}).fit(random_log)
    histories = histories_of(random_log, np.arange(5))
    with torch.no_grad():
        for one in (model, whole):
            torch.testing.assert_close(one.score(histories).sum(1), torch.ones(5))
