"""MFGAN: factors, what the generator proposes, what discriminators judge, and the phases."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from diffuserec.training import loop as training
from diffuserec.models.base import Run
from diffuserec.data import Batch, Catalog, Schedule, SequenceDataset, Variants, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.models.losses import binary_cross_entropy
from diffuserec.recommenders import mfgan
from diffuserec.recommenders.mfgan import MFGAN, popularity_groups

V = 14
SETTINGS = {
    "dim": 8,
    "max_len": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "discriminator_dropout": 0.0,
    "batch_size": 8,
    "n_candidates": 3,
    "epochs": 2,
    "generator_epochs": 2,
}
LOG = SequenceDataset.from_lists([[*range(1, V)], [3, 1, 5], [5, 2, 6, 6]])
BATCH = Batch(
    users=torch.tensor([0, 1, 2]),
    items=torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [8, 0, 0, 0, 0, 0]]),
    lengths=torch.tensor([6, 3, 1]),
    targets=torch.tensor([[1, 4, 1, 5, 9, 2], [6, 5, 3, 0, 0, 0], [7, 0, 0, 0, 0, 0]]),
    places=torch.tensor([6, 10, 12]),
)
PREFIX = torch.tensor([[3, 1, 4, 1], [2, 6, 0, 0], [8, 0, 0, 0]]), torch.tensor([4, 2, 1])
TARGET = torch.tensor([5, 5, 7])


def made(log: SequenceDataset = LOG, **settings) -> MFGAN:
    """Begun, with weights so large that no two items or sequences are alike."""
    model = MFGAN(**SETTINGS | settings)
    model.begin(log, Run(seed=2))
    model.factors[1] = popularity_groups(model.popularity)
    return shaken(model)


def with_its_loss(monkeypatch, **settings):
    """The same, and the loss that its fit would minimize as a generator."""
    taken = {}

    def instead(model, loss, phase, **_):
        taken[phase] = loss
        return []

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_next_item", instead)
        model = MFGAN(**SETTINGS | settings).fit(LOG)
    return shaken(model), taken["generator-1"]


def shaken(model: MFGAN) -> MFGAN:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim == 1 else 0.5, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
        for table in (model.encoder, *(d.encoder for d in model.discriminators)):
            table.items.weight[0] = 0
    return model


@pytest.fixture
def at_prefix(monkeypatch) -> None:
    """The random prefix of BATCH is PREFIX."""
    monkeypatch.setattr(mfgan, "random_prefix", lambda items, targets: (PREFIX, TARGET))


def ranked(model: MFGAN, prefix: list[int], hidden: set[int]) -> list[tuple[int, float]]:
    """Items and logits, best first, one item at a time."""
    state = model.encoder(torch.tensor([prefix]), torch.tensor([len(prefix)]))[0, -1]
    logits = {item: state @ model.encoder.items.weight[item] for item in range(1, V)}
    allowed = [(item, logit) for item, logit in logits.items() if item not in hidden]
    return sorted(allowed, key=lambda pair: -pair[1].item())


def said(model: MFGAN, sequence: list[int]) -> list[torch.Tensor]:
    """The logit of each discriminator, of one sequence."""
    n = torch.tensor([len(sequence)])
    return [
        discriminator.out(discriminator.encoder(values[sequence][None], n)[0, -1])[0]
        for discriminator, values in zip(model.discriminators, model.factors, strict=True)
    ]


def rows() -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(*PREFIX, strict=True)]


# --- factors -----------------------------------------------------------------------------------


def test_popularity_has_ten_groups_and_equal_counts_share_one() -> None:
    tenth = torch.tensor([99, *range(20)])
    assert popularity_groups(tenth).tolist() == [0] + [g for g in range(1, 11) for _ in range(2)]
    tied = popularity_groups(torch.tensor([0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 80]))
    assert tied.tolist() == [0] + [1] * 9 + [10]


def test_factors_are_the_item_its_popularity_and_attributes() -> None:
    ids = pl.Series("item_id", range(1, 5))
    frame = pl.DataFrame({"category": ["b", "a", None, "b"], "brand": [7, 7, 2, 3]})
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 4]], Catalog(ids, 1, attributes=frame))
    model = made(log, n_candidates=2)
    assert model.factors[0].tolist() == [0, 1, 2, 3, 4]
    assert model.factors[1, 4] > model.factors[1, 1] == model.factors[1, 3]
    assert model.factors[2:].tolist() == [[0, 2, 1, 0, 2]]
    assert [d.encoder.vocab_size for d in model.discriminators] == [5, 11, 3]
    asked = made(log, n_candidates=2, attributes=("brand",))
    assert asked.factors[2:].tolist() == [[0, 3, 3, 1, 2]]
    assert len(made(log, n_candidates=2, attributes=()).factors) == 2
    assert len(made().factors) == 2
    with pytest.raises(ConfigError, match="no attribute 'color'; it has: category, brand"):
        made(log, n_candidates=2, attributes=("color",))


# --- proposals and judgments, one sequence at a time ---------------------------------------------


def test_proposals_are_the_best_items_that_are_not_hidden() -> None:
    model = made()
    prefix, lengths = PREFIX
    logits, proposed = model._proposals(model.encoder.newest(prefix, lengths), prefix)
    for row, items in enumerate(rows()):
        expected = ranked(model, items, set(items))[:3]
        assert proposed[row].tolist() == [item for item, _ in expected]
        torch.testing.assert_close(logits[row], torch.stack([logit for _, logit in expected]))
    _, few = model._proposals(torch.ones(1, 8), torch.arange(1, V - 1)[None])
    assert few[0, 0] == V - 1


def test_discriminators_judge_whole_sequences_of_their_factor() -> None:
    model = made()
    following = torch.tensor([[5, 2], [5, 13], [7, 1]])
    judged = model._judged(*PREFIX, following)
    rewards = model._rewards(*PREFIX, following)
    for row, items in enumerate(rows()):
        for k in range(2):
            expected = torch.stack(said(model, [*items, int(following[row, k])]))
            torch.testing.assert_close(judged[row, k], expected)
            torch.testing.assert_close(rewards[row, k], expected.sigmoid().mean())
    # bidirectional: at the newest item each says something else when the oldest is another
    other = PREFIX[0].clone()
    other[:, 0] = 11
    assert (model._judged(other, PREFIX[1], following)[:, :, 0] != judged[:, :, 0]).all()


# --- the losses ----------------------------------------------------------------------------------


def gradients(loss, model: MFGAN) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None and g.any()}


def test_the_policy_maximizes_its_expected_reward(at_prefix) -> None:
    model = made()
    states = model.encoder(BATCH.items, BATCH.lengths)
    ours = model._expected_reward(BATCH, states)
    total = torch.zeros(())
    for items in rows():
        best = ranked(model, items, set(items))[:3]
        policy = torch.softmax(torch.stack([logit for _, logit in best]), 0)
        for chance, (item, _) in zip(policy, best, strict=True):
            logits = torch.stack(said(model, [*items, item]))
            total = total + chance * logits.detach().sigmoid().mean() / len(rows())
    torch.testing.assert_close(ours, total)
    mine, theirs = gradients(ours, model), gradients(total, model)
    assert mine.keys() == theirs.keys()
    assert all(name.startswith("encoder.") for name in mine)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_generator_minimizes_next_items_less_its_expected_reward(
    at_prefix, monkeypatch, weight
) -> None:
    dropout = {"dropout": 0.3, "discriminator_dropout": 0.3}
    model, loss = with_its_loss(monkeypatch, next_item_weight=weight, **dropout)
    model.train()
    torch.manual_seed(0)
    ours = loss(BATCH)
    model.train()
    model.discriminators.eval()
    torch.manual_seed(0)
    states = model.encoder(BATCH.items, BATCH.lengths)
    real = BATCH.targets > 0
    scores = states[real] @ model.encoder.items.weight[1:V].T
    predicted = F.cross_entropy(scores, BATCH.targets[real] - 1)
    expected = weight * predicted - model._expected_reward(BATCH, states)
    torch.testing.assert_close(ours, expected)


def test_discriminators_tell_the_next_item_from_a_proposed_one(at_prefix, monkeypatch) -> None:
    model, shown = made(), []
    judged = MFGAN._judged
    monkeypatch.setattr(MFGAN, "_judged", lambda *a: shown.append(a[3]) or judged(*a))
    drawn: list[set[int]] = [set(), set(), set()]
    torch.manual_seed(0)
    for _ in range(40):
        loss = model._discriminator_loss(BATCH)
        assert shown[-1][:, 0].tolist() == TARGET.tolist()
        for fakes, fake in zip(drawn, shown[-1][:, 1].tolist(), strict=True):
            fakes.add(fake)
    for row, items in enumerate(rows()):
        hidden = {*items, int(TARGET[row])}
        assert drawn[row] == {item for item, _ in ranked(model, items, hidden)[:3]}
    expected = []
    for items, (real, fake) in zip(rows(), shown[-1].tolist(), strict=True):
        for yes, no in zip(said(model, [*items, real]), said(model, [*items, fake]), strict=True):
            expected.append(-torch.log(yes.sigmoid()) - torch.log(1 - no.sigmoid()))
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert all(name.startswith("discriminators.") for name in gradients(loss, model))


def test_the_reweighted_loss_is_bce_with_a_weighted_positive_term(monkeypatch) -> None:
    model, asked = made(loss="bce", generator="reweighted"), []
    states = model.encoder(BATCH.items, BATCH.lengths)
    drawn = torch.randint(1, V, (10, 1), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(mfgan, "uniform_negatives", lambda *_: drawn)
    rewards = torch.tensor([[0.5], [2.0], [0.0]])
    monkeypatch.setattr(model, "_rewards", lambda *a: asked.append(a[2]) or rewards)
    ours = model._reweighted(BATCH, states, None)
    best = [
        ranked(model, row[:n].tolist(), set(row.tolist()))[0][0]
        for row, n in zip(BATCH.items, BATCH.lengths, strict=True)
    ]
    assert asked[0].tolist() == [[item] for item in best]
    chosen, targets, _ = training.real_positions(BATCH, states)
    table = model.encoder.table
    positive, negative = (chosen * table[targets]).sum(1), (chosen * table[drawn[:, 0]]).sum(1)
    weights = torch.tensor([0.5] * 6 + [2.0] * 3 + [0.0])
    expected = (weights * F.softplus(-positive) + F.softplus(negative)).mean()
    torch.testing.assert_close(ours, expected)
    rewards.fill_(1)
    plain = binary_cross_entropy(positive, negative[:, None])
    torch.testing.assert_close(model._reweighted(BATCH, states, None), plain)


def test_negatives_of_the_reweighted_loss_are_none_of_the_users_own(monkeypatch) -> None:
    settings = {"loss": "bce", "generator": "reweighted", "n_negatives": 2}
    _, loss = with_its_loss(monkeypatch, **settings)
    asked = []

    def ones(users: torch.Tensor, n: int, vocab_size: int, seen: torch.Tensor) -> torch.Tensor:
        asked.append((users.tolist(), n, vocab_size, seen.tolist()))
        return torch.ones(len(users), n, dtype=torch.int64)

    monkeypatch.setattr(mfgan, "uniform_negatives", ones)
    loss(BATCH)
    own = [*range(1, V), V + 1, V + 3, V + 5, 2 * V + 2, 2 * V + 5, 2 * V + 6]  # user · V + item
    assert asked == [([0] * 6 + [1] * 3 + [2], 2, V, own)]


# --- the phases ----------------------------------------------------------------------------------

PHASES = ["pretrain", "discriminators-1", "generator-1", "discriminators-2", "generator-2"]


def test_generator_and_discriminators_take_turns(monkeypatch, random_log) -> None:
    moved: dict[str, set[str]] = {}
    train = training.train

    def watched(method, *args, **kwargs):
        before = {name: value.clone() for name, value in method.named_parameters()}
        records = train(method, *args, **kwargs)
        moved[kwargs["phase"]] = {
            name.partition(".")[0]
            for name, value in method.named_parameters()
            if not torch.equal(value, before[name])
        }
        return records

    monkeypatch.setattr(training, "train", watched)
    model = MFGAN(**SETTINGS).fit(random_log)
    turns = [{"encoder"}, {"discriminators"}, {"encoder"}, {"discriminators"}, {"encoder"}]
    assert moved == dict(zip(PHASES, turns, strict=True))
    epochs = [record.phase for record in model.curve]
    assert epochs == [
        phase for phase, n in zip(PHASES, (2, 1, 2, 1, 2), strict=True) for _ in range(n)
    ]


def test_discriminators_hold_no_variant_for_real(monkeypatch, random_log) -> None:
    shown = {}
    train = training.train

    def watched(method, *args, **kwargs):
        shown[kwargs["phase"]] = kwargs["data"].variants is not None
        return train(method, *args, **kwargs)

    monkeypatch.setattr(training, "train", watched)
    items = random_log.items[None]
    variants = Variants(items, np.zeros((1, len(random_log)), dtype=np.float32), Schedule())
    MFGAN(**SETTINGS).fit(replace(random_log, variants=variants))
    assert shown == dict(zip(PHASES, (True, False, True, False, True), strict=True))


@pytest.mark.parametrize(
    "figures, best",
    [([1, 2, 0, 1, 1, 0], 1), ([1, 2, 0, 3, 1, 2], 3), ([1, 2, 2.5, 3, 5, 4], 4)],
    ids=["pretrain", "generator-1", "generator-2"],
)
def test_the_generator_that_validated_best_is_kept(monkeypatch, random_log, figures, best) -> None:
    split, seen, script = leave_one_out(random_log), [], iter(figures)

    def validation(method, score, valid):
        def figure() -> float:
            seen.append({k: v.clone() for k, v in method.encoder.state_dict().items()})
            return float(next(script))

        return figure

    monkeypatch.setattr(training, "validation", validation)
    model = MFGAN(**SETTINGS).fit(split.train, split.valid)
    assert len(seen) == len(figures)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, seen[best][name]), name


def test_a_resumed_fit_goes_on_in_its_phase(monkeypatch, random_log, tmp_path) -> None:
    split = leave_one_out(random_log)
    whole = MFGAN(**SETTINGS).fit(split.train, split.valid, Run(seed=3))
    loss, calls = MFGAN._discriminator_loss, []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return loss(self, batch)

    run = Run(seed=3, checkpoint=tmp_path)
    monkeypatch.setattr(MFGAN, "_discriminator_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MFGAN(**SETTINGS).fit(split.train, split.valid, run)
    monkeypatch.setattr(MFGAN, "_discriminator_loss", loss)
    assert {file.stem for file in training.checkpoint_files(tmp_path)} == set(PHASES[:3])
    resumed = MFGAN(**SETTINGS).fit(
        split.train, split.valid, Run(seed=3, checkpoint=tmp_path, resume=True)
    )
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert [(r.phase, r.loss) for r in resumed.curve] == [(r.phase, r.loss) for r in whole.curve]


def test_discriminators_learn_what_comes_next(cycle) -> None:
    settings = {"dim": 16, "learning_rate": 0.003, "n_candidates": 8, "rounds": 1}
    model = MFGAN(**SETTINGS | settings | {"discriminator_epochs": 30}).fit(cycle)
    items = torch.stack([torch.arange(start, start + 3) % 20 + 1 for start in range(20)])
    everything = torch.arange(1, 21).repeat(20, 1)
    rewards = model._rewards(items, torch.full((20,), 3), everything)
    right = rewards.gather(1, items[:, -1:] % 20)
    # the share of all items with a smaller reward, one half by chance
    assert (rewards < right).float().mean() > 0.65
    assert right.mean() > rewards.mean() + 0.1


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "bce", "generator": "reweighted", "n_negatives": 2},
        {"next_item_weight": 0.0},
        {"loss": "gbce", "rows": "prefixes"},
        {"loss": "sampled_softmax", "rows": "windows", "max_len": 4},
    ],
    ids=str,
)
def test_every_option_fits_in_bfloat16(random_log, settings) -> None:
    model = MFGAN(**SETTINGS | {"epochs": 1, "rounds": 1} | settings)
    model.fit(random_log, run=Run(precision="bf16"))
    assert np.isfinite([record.loss for record in model.curve]).all()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"generator": "reweighted"}, "set loss='bce', not 'softmax'"),
        ({"n_candidates": 1}, "n_candidates: .*greater than or equal to 2, got 1"),
        ({"n_candidates": V - 1}, "n_candidates 13 is more than the 12 other items"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**settings)
