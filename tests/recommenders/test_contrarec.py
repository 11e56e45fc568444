"""ContraRec: positives by next item, two temperatures, shares from Beta(3, 3)."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from diffuserec import Runtime
from diffuserec.data import Batch, Histories, SequenceDataset, histories_of, training_batches
from diffuserec.recommenders import contrarec
from diffuserec.recommenders.contrarec import ContraRec

from .oracles import (
    LOG,
    MASK,
    SMALL,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    assert_unchanged,
    built,
    clones,
    last_state,
    ragged,
    untrained,
    with_its_loss,
)

SETTINGS = SMALL | {"temperature": 0.3}
BATCH = Batch(
    users=torch.tensor([0, 1, 2, 3]),
    items=torch.tensor(
        [[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [8, 0, 0, 0, 0, 0], [4, 10, 0, 0, 0, 0]]
    ),
    lengths=torch.tensor([6, 3, 1, 2]),
    targets=torch.tensor(
        [[1, 4, 1, 5, 9, 2], [6, 5, 3, 0, 0, 0], [5, 0, 0, 0, 0, 0], [10, 3, 0, 0, 0, 0]]
    ),
    last_target_index=torch.tensor([6, 10, 12, 15]),
)
made = partial(untrained, ContraRec, SETTINGS)
begun = partial(with_its_loss, ContraRec, SETTINGS)


# --- the loss written out ----------------------------------------------------------------------


def contrast_by_hand(views, next_items: list[int], similarity: str, temperature: float):
    """Khosla et al., equation 2: all views are anchors, those of the same next item positives."""
    if similarity == "cosine":
        views = [view / view.square().sum().sqrt() for view in views]
    losses = []
    for anchor, own in enumerate(next_items):
        others = [other for other in range(len(views)) if other != anchor]
        total = sum(torch.exp(views[anchor] @ views[other] / temperature) for other in others)
        positives = [other for other in others if next_items[other] == own]
        terms = [
            torch.log(torch.exp(views[anchor] @ views[other] / temperature) / total)
            for other in positives
        ]
        losses.append(-sum(terms) / len(terms))
    return sum(losses) / len(losses)


def loss_by_hand(model: ContraRec, batch: Batch, first, second, next_items: list[int]):
    c, table = model.config, model.table.vectors.weight[:V]
    tau_1, tau_2 = c.score_temperature, c.temperature
    predicted = []
    for sequence, length in enumerate(batch.lengths.tolist()):
        for n in range(1, length + 1):
            target = int(batch.targets[sequence, n - 1])
            if target:
                scores = table[1:] @ last_state(model, batch.items[sequence, :n].tolist())
                predicted.append(-tau_1 * torch.log_softmax(scores / tau_1, 0)[target - 1])
    views = [last_state(model, view) for view in [*first, *second]]
    contrast = tau_2 * contrast_by_hand(views, next_items * 2, c.similarity, tau_2)
    return torch.stack(predicted).mean() + c.contrast_weight * contrast


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0},
        {"similarity": "dot", "temperature": 2.0},
        {"score_temperature": 0.5},
        {"score_temperature": 3.0, "contrast_weight": 2.0},
        {"encoder": "gru", "n_layers": 2, "encoder_settings": {"hidden_dim": 5}},
        {"encoder": "caser", "n_layers": 2, "encoder_settings": {"window": 3, "n_horizontal": 2}},
    ],
    ids=str,
)
def test_the_loss_of_examples_with_many_targets_written_out(monkeypatch, settings) -> None:
    model, loss = begun(monkeypatch, **settings)
    # prefixes with the next items 5, 5, 5 and 3: three sequences are positives of each other
    prefixes = ragged([[3, 1, 4, 1], [2, 6], [8], [4, 10]])
    next_items = [5, 5, 5, 3]
    first = [[3, MASK, 4, MASK], [6, 2], [8], [MASK, 10]]
    second = [[3, 1, 1, 4], [2, MASK], [8], [10, 4]]
    asked = []

    def chosen(items, targets):
        assert torch.equal(items, BATCH.items)
        assert torch.equal(targets, BATCH.targets)
        return prefixes, torch.tensor(next_items)

    def views(items, lengths, operators, distinct):
        asked.append((items, lengths))
        return ragged(first), ragged(second)

    monkeypatch.setattr(contrarec, "random_prefix", chosen)
    monkeypatch.setattr(contrarec, "sample_two_views", views)
    assert_same(model, loss(BATCH), loss_by_hand(model, BATCH, first, second, next_items))
    assert asked == [prefixes]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_loss_of_examples_with_one_target_written_out(monkeypatch, bidirectional) -> None:
    settings = {"examples": "prefixes", "bidirectional": bidirectional, "score_temperature": 0.8}
    model, loss = begun(monkeypatch, **settings)
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 5], [6, 3], [9, 8, 5], [7, 4, 3], [10, 2]])
    (batch,) = training_batches(log, 64, 8, 0, 0, "prefixes")
    shown = [items[:n].tolist() for items, n in zip(batch.items, batch.lengths, strict=True)]
    next_items = batch.targets.gather(1, batch.lengths[:, None] - 1)[:, 0].tolist()
    assert sorted(next_items) == [2, 2, 3, 3, 3, 4, 4, 5, 5, 8]
    first = [items[::-1] for items in shown]
    second = [[MASK] * (len(items) - 1) + items[-1:] for items in shown]
    views = ragged(first), ragged(second)
    monkeypatch.setattr(contrarec, "sample_two_views", lambda *_, **__: views)
    expected = loss_by_hand(model, batch, first, second, next_items)
    assert_same(model, loss(batch), expected)


def test_similarity_is_the_cosine_unless_asked_otherwise() -> None:
    assert ContraRec().config.similarity == "cosine"


@torch.no_grad()
def test_scores_are_divided_by_their_temperature() -> None:
    model = made(score_temperature=0.4)
    lists = [[3, 1, 4], [1, 5], [9]]
    scores = model.score(Histories(torch.arange(3), *ragged(lists)))
    assert scores.shape == (3, V)
    for history, found in zip(lists, scores, strict=True):
        for item in range(1, V):
            product = float(last_state(model, history) @ model.table.vectors.weight[item])
            assert float(found[item]) == pytest.approx(product / 0.4, rel=1e-4, abs=1e-5)


# --- the views ---------------------------------------------------------------------------------


def with_last_target_only(items: torch.Tensor) -> Batch:
    """A batch of these sequences, of each of which the whole is the only prefix with a target."""
    n, length = items.shape
    targets = torch.zeros_like(items)
    targets[:, -1] = 1
    return Batch(torch.arange(n), items, torch.full((n,), length), targets, torch.arange(n))


def test_shares_are_drawn_from_beta_3_3(monkeypatch) -> None:
    drawn = {"mask": [], "reorder": []}
    for name, shares in drawn.items():
        operator = getattr(contrarec, name)

        def watched(items, lengths, ratio, *more, operator=operator, shares=shares):
            shares.append(ratio)
            return operator(items, lengths, ratio, *more)

        monkeypatch.setattr(contrarec, name, watched)
    model = made()
    n = 20_000
    torch.manual_seed(0)
    model.views(with_last_target_only(torch.ones(n, 2, dtype=torch.int64)), LOG)
    for shares in drawn["mask"] + drawn["reorder"]:
        assert shares.shape == (n,)
        assert stats.kstest(shares.numpy(), stats.beta(3, 3).cdf).pvalue > 1e-3
        assert float(shares.mean()) == pytest.approx(1 / 2, abs=4 * (1 / 28 / n) ** 0.5)
        assert float(shares.var()) == pytest.approx(1 / 28, rel=0.05)


LONG = 200
SHOWN = torch.arange(1, LONG + 1)


@pytest.fixture(scope="module")
def long_views():
    """Two views of 2000 sequences of the items 1 to 200, [mask] being 201."""
    log = SequenceDataset.from_lists([SHOWN.tolist()])
    model = built(ContraRec(**SETTINGS | {"max_len": LONG}), log)
    torch.manual_seed(1)
    views = model.views(with_last_target_only(SHOWN.repeat(2000, 1)), log)
    assert all(set(view.lengths.tolist()) == {LONG} for view in views)
    return [view.items for view in views]


def test_each_view_is_masked_or_reordered_with_even_chances(long_views) -> None:
    kinds = []
    for pair in zip(*long_views, strict=True):
        kind = []
        for view in pair:
            masked = view > LONG
            if masked.any():
                assert torch.equal(view[~masked], SHOWN[~masked])
                kind.append("mask")
            else:
                assert torch.equal(view.sort().values, SHOWN)
                assert not torch.equal(view, SHOWN)
                kind.append("reorder")
        kinds.append(tuple(kind))
    pairs = list(itertools.product(["mask", "reorder"], repeat=2))  # a pair may be twice the same
    assert stats.chisquare([kinds.count(pair) for pair in pairs]).pvalue > 1e-3


def test_shares_of_masked_views_are_spread_as_beta_3_3(long_views) -> None:
    shares = (long_views[0] > LONG).sum(1)
    shares = shares[shares > 0].double() / LONG
    # counts are rounded down, by half a position on average
    assert stats.kstest((shares + 0.5 / LONG).numpy(), stats.beta(3, 3).cdf).pvalue > 1e-3


def test_two_views_of_a_sequence_draw_their_shares_apart(long_views) -> None:
    shares = torch.stack([(view > LONG).sum(1) for view in long_views])
    shares = shares[:, (shares > 0).all(0)].double()
    assert shares.shape[1] > 400
    assert abs(float(torch.corrcoef(shares)[0, 1])) < 0.2


def test_views_are_of_random_prefixes_as_in_training() -> None:
    many = Batch(*(tensor[:1].repeat_interleave(2000, 0) for tensor in BATCH.tensors.values()))
    torch.manual_seed(2)
    first, second = made().views(many, LOG)
    assert torch.equal(first.lengths, second.lengths)
    assert stats.chisquare(np.bincount(first.lengths.numpy(), minlength=7)[1:]).pvalue > 1e-3


@pytest.mark.parametrize("examples", ["per_user", "prefixes"])
def test_views_leave_the_batch_unchanged(examples) -> None:
    model = made(examples=examples)
    before = clones(BATCH)
    for view in model.views(BATCH, LOG):
        real = torch.arange(view.items.shape[1]) < view.lengths[:, None]
        assert not view.items[~real].any()
        assert int(view.items[real].min()) >= 1
        assert int(view.items.max()) <= MASK
        view.items.fill_(7)
    assert_unchanged(BATCH, before)


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "softmax"},
        {"loss": "bce"},
        {"loss": "gbce"},
        {"loss": "sampled_softmax"},
        {"examples": "windows", "max_len": 4},
        {"examples": "prefixes"},
        {"examples": "prefixes", "bidirectional": True, "dropout": 0.3},
        {"examples": "prefixes", "encoder": "gru", "n_layers": 2},
        {"examples": "windows", "encoder": "caser", "n_layers": 2, "max_len": 4},
        {"score_temperature": 0.1, "temperature": 0.05},
    ],
    ids=str,
)
def test_every_loss_example_and_option_fits(random_log, settings) -> None:
    model = assert_fits(ContraRec, SETTINGS | {"batch_size": 64} | settings, random_log)
    with torch.no_grad():
        scores = model.score(histories_of(random_log, np.arange(5)))
    assert scores.shape == (5, random_log.vocab_size)  # none for [mask]


@torch.no_grad()
def test_a_bidirectional_encoder_sees_later_items() -> None:
    shown = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 1, 5]])
    for settings, same in (({}, True), ({"bidirectional": True}, False)):
        model = made(examples="prefixes", **settings)
        one, other = (model.encode(items, torch.tensor([3]))[0, 0] for items in shown)
        assert torch.allclose(one, other) == same


def test_the_mask_token_is_learned(random_log) -> None:
    model = built(ContraRec(**SETTINGS), random_log, seed=1)
    before = model.table.vectors.weight.detach().clone()
    assert len(before) == random_log.vocab_size + 1
    model.fit(random_log, runtime=Runtime(seed=1))
    assert not torch.equal(model.table.vectors.weight[-1], before[-1])


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(ContraRec, SETTINGS, random_log, Runtime(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bidirectional": True}, "a bidirectional encoder would see the targets of an example"),
        ({"bidirectional": True, "examples": "windows"}, "set examples to 'prefixes'"),
        (
            {"bidirectional": True, "examples": "prefixes", "encoder": "gru", "n_layers": 2},
            "bidirectional = True has no effect with encoder = 'gru': .* that can look",
        ),
        ({"encoder": "lstm"}, "encoder: no encoder 'lstm'; there are: .*gru.*, got 'lstm'"),
        (
            {"encoder": "gru", "n_layers": 2, "encoder_settings": {"window": 3}},
            "encoder_settings of gru has no setting 'window'; it has: hidden_dim",
        ),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"score_temperature": 0}, "score_temperature: .*greater than 0, got 0"),
        ({"contrast_weight": -1}, "contrast_weight: .*greater than or equal to 0, got -1"),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be contrasted with"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(ContraRec, SETTINGS | settings, message)
