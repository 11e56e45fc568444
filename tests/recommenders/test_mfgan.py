"""MFGAN: factors, the generator's proposals, the discriminators' judgments, and the phases."""

from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from diffuserec import Runtime
from diffuserec.data import (
    AugmentedCopies,
    Batch,
    Catalog,
    CurriculumSchedule,
    SequenceDataset,
    leave_one_out,
)
from diffuserec.errors import ConfigError
from diffuserec.models.losses import binary_cross_entropy, seen_keys, uniform_negatives
from diffuserec.models.views import random_prefix
from diffuserec.recommenders import mfgan
from diffuserec.recommenders.mfgan import MFGAN, popularity_deciles
from diffuserec.training import checkpoint_files, next_item, real_positions, train_next_item

from .oracles import BATCH, assert_refused, built, last_state, next_item_by_hand, with_its_phases
from .oracles import wild as shaken

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
begun = partial(with_its_phases, MFGAN, SETTINGS)


def wild(model: MFGAN) -> MFGAN:
    """The model with weights so large that no two items or sequences are alike."""
    shaken(model)
    with torch.no_grad():
        for discriminator in model.discriminators:
            discriminator.values.vectors.weight[0] = 0
    return model


def made(log: SequenceDataset = LOG, **settings) -> MFGAN:
    """An untrained model that has counted the items of the log."""
    model = built(MFGAN(**SETTINGS | settings), log, seed=2)
    model.factors[1] = popularity_deciles(torch.from_numpy(log.item_counts()))
    return wild(model)


def losses(monkeypatch, **settings):
    """A wild model with counts, and the losses of its discriminators and of its generator."""
    model, phases = begun(monkeypatch, LOG, **settings)
    return wild(model), phases[1][0], phases[2][0]


def prefixes(seed: int = 0) -> tuple[list[list[int]], list[int]]:
    """The random prefixes of BATCH that are drawn first after this seed, and what follows them."""
    torch.manual_seed(seed)
    (items, lengths), targets = random_prefix(BATCH.items, BATCH.targets)
    found = [row[:n].tolist() for row, n in zip(items, lengths.tolist(), strict=True)]
    return found, targets.tolist()


def ranked(model: MFGAN, prefix: list[int], hidden: set[int]) -> list[tuple[int, torch.Tensor]]:
    """Items and logits, best first, one item at a time."""
    state = last_state(model, prefix)
    logits = {item: state @ model.table.vectors.weight[item] for item in range(1, V)}
    allowed = [(item, logit) for item, logit in logits.items() if item not in hidden]
    return sorted(allowed, key=lambda pair: -pair[1].item())


def judged(model: MFGAN, sequence: list[int]) -> torch.Tensor:
    """Logit of each discriminator, of one sequence."""
    n = torch.tensor([len(sequence)])
    logits = []
    for discriminator, values in zip(model.discriminators, model.factors, strict=True):
        embedded = discriminator.values.vectors.weight[values[sequence]][None]
        logits.append(discriminator.out(discriminator.encoder(embedded, n)[0, -1])[0])
    return torch.stack(logits)


PREFIX = torch.tensor([[3, 1, 4, 1], [2, 6, 0, 0], [8, 0, 0, 0]]), torch.tensor([4, 2, 1])
PREFIXES = [[3, 1, 4, 1], [2, 6], [8]]


# --- factors -----------------------------------------------------------------------------------


def test_popularity_has_ten_groups_and_equal_counts_share_one() -> None:
    tenth = torch.tensor([99, *range(20)])
    assert popularity_deciles(tenth).tolist() == [0] + [g for g in range(1, 11) for _ in range(2)]
    tied = popularity_deciles(torch.tensor([0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 80]))
    assert tied.tolist() == [0] + [1] * 9 + [10]


def test_factors_are_the_item_its_popularity_and_attributes() -> None:
    ids = pl.Series("item_id", range(1, 5))
    frame = pl.DataFrame({"category": ["b", "a", None, "b"], "brand": [7, 7, 2, 3]})
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 4]], Catalog(ids, 1, attributes=frame))
    model = made(log, n_candidates=2)
    assert model.factors[0].tolist() == [0, 1, 2, 3, 4]
    assert model.factors[1, 4] > model.factors[1, 1] == model.factors[1, 3]
    assert model.factors[2:].tolist() == [[0, 2, 1, 0, 2]]
    assert [d.values.vocab_size for d in model.discriminators] == [5, 11, 3]
    lists = frame.with_columns(pl.Series("category", [["a", "b"]] * len(frame)))
    several = SequenceDataset.from_lists([[1, 2, 3, 4, 4]], Catalog(ids, 1, attributes=lists))
    assert len(made(several, n_candidates=2).factors) == 2
    with pytest.raises(ConfigError, match="'category' is no single category or number of an item"):
        made(several, n_candidates=2, attributes=("category",))
    asked = made(log, n_candidates=2, attributes=("brand",))
    assert asked.factors[2:].tolist() == [[0, 3, 3, 1, 2]]
    assert len(made(log, n_candidates=2, attributes=()).factors) == 2
    assert len(made().factors) == 2
    with pytest.raises(ConfigError, match="no attribute 'color'; it has: category, brand"):
        made(log, n_candidates=2, attributes=("color",))


def test_popularity_is_counted_in_training(random_log) -> None:
    model = MFGAN(**SETTINGS | {"epochs": 1, "rounds": 1}).fit(random_log)
    counts = torch.from_numpy(random_log.item_counts())
    assert torch.equal(model.factors[1], popularity_deciles(counts))
    assert model.factors[1].unique().tolist()[0] == 0


# --- proposals and judgments, one sequence at a time ---------------------------------------------


def test_proposals_are_the_best_items_that_are_not_hidden() -> None:
    model = made()
    states = torch.stack([last_state(model, items) for items in PREFIXES])
    logits, proposed = model.propose(states, PREFIX[0])
    for row, items in enumerate(PREFIXES):
        expected = ranked(model, items, set(items))[:3]
        assert proposed[row].tolist() == [item for item, _ in expected]
        torch.testing.assert_close(logits[row], torch.stack([logit for _, logit in expected]))
    logits, few = model.propose(torch.ones(1, 8), torch.arange(1, V - 1)[None])
    assert few.tolist() == [[V - 1, 0, 0]]
    # nothing is put forth where nothing is left
    assert torch.softmax(logits, 1).tolist() == [[1, 0, 0]]


def test_discriminators_judge_whole_sequences_of_their_factor() -> None:
    model = made()
    following = torch.tensor([[5, 2], [5, 13], [7, 1]])
    logits = model.judge(*PREFIX, following)
    rewards = model.rewards(*PREFIX, following)
    for row, items in enumerate(PREFIXES):
        for k in range(2):
            expected = judged(model, [*items, int(following[row, k])])
            torch.testing.assert_close(logits[row, k], expected)
            torch.testing.assert_close(rewards[row, k], expected.sigmoid().mean())
    # bidirectional: the judgment at the newest item changes with the oldest
    other = PREFIX[0].clone()
    other[:, 0] = 11
    assert (model.judge(other, PREFIX[1], following)[:, :, 0] != logits[:, :, 0]).all()


# --- the losses ----------------------------------------------------------------------------------


def gradients(loss, model: MFGAN) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None and g.any()}


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_generator_minimizes_next_items_less_its_expected_reward(monkeypatch, weight) -> None:
    model, _, loss_of = losses(monkeypatch, next_item_weight=weight)
    expected = weight * next_item_by_hand(model, BATCH) if weight else torch.zeros(())
    for items in prefixes()[0]:
        best = ranked(model, items, set(items))[:3]
        policy = torch.softmax(torch.stack([logit for _, logit in best]), 0)
        for chance, (item, _) in zip(policy, best, strict=True):
            reward = judged(model, [*items, item]).detach().sigmoid().mean()
            expected = expected - chance * reward / 3
    torch.manual_seed(0)
    loss = loss_of(BATCH)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    mine, theirs = gradients(loss, model), gradients(expected, model)
    assert mine.keys() == theirs.keys()
    assert all(name.startswith(("table.", "encoder.")) for name in mine)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=2e-3, atol=1e-5)


def test_rewards_have_no_dropout_while_the_generator_has(monkeypatch) -> None:
    model, _, loss_of = losses(
        monkeypatch, next_item_weight=0.0, dropout=0.3, discriminator_dropout=0.3
    )

    def of_seeds() -> set[float]:
        """Losses of one random prefix, with several draws of dropout."""
        found = set()
        for seed in range(200):
            if prefixes(seed)[0] == prefixes(0)[0]:
                torch.manual_seed(seed)
                found.add(round(loss_of(BATCH).item(), 6))
        return found

    model.train()
    assert len(of_seeds()) > 1
    model.train()
    model.encoder.eval()  # then only the discriminators could make them differ
    assert len(of_seeds()) == 1


def test_discriminators_distinguish_the_next_item_from_a_proposed_one(monkeypatch) -> None:
    model, loss_of, _ = losses(monkeypatch)
    drawn: dict[tuple[int, ...], set[int]] = {}
    for seed in range(60):
        found, targets = prefixes(seed)
        turns = (torch.rand(3) * 3).long().tolist()  # a draw of three proposals each
        expected = []
        for items, real, turn in zip(found, targets, turns, strict=True):
            proposed = [item for item, _ in ranked(model, items, {*items, real})[:3]]
            drawn.setdefault((*items, real), set()).add(proposed[turn])
            yes, no = (judged(model, [*items, item]) for item in (real, proposed[turn]))
            expected.append(-torch.log(yes.sigmoid()) - torch.log(1 - no.sigmoid()))
        torch.manual_seed(seed)
        loss = loss_of(BATCH)
        torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
        assert all(name.startswith("discriminators.") for name in gradients(loss, model))
    assert max(map(len, drawn.values())) == 3


def test_a_sequence_without_proposals_teaches_discriminators_nothing(monkeypatch) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4], [1, 2]])
    settings = {"n_candidates": 2, "epochs": 1, "rounds": 1}
    model, phases = begun(monkeypatch, log, **settings)
    wild(model)
    items = torch.tensor([[1, 2, 3], [1, 0, 0]])
    batch = Batch(
        users=torch.tensor([0, 1]),
        items=items,
        lengths=torch.tensor([3, 1]),
        targets=torch.tensor([[0, 0, 4], [2, 0, 0]]),  # after the first no other item is left
        last_target_index=torch.tensor([3, 5]),
    )
    torch.manual_seed(0)
    loss = phases[1][0](batch)
    possible = []
    for fake in (3, 4):  # the items that are left after the second
        yes, no = (judged(model, [1, item]) for item in (2, fake))
        possible.append((-torch.log(yes.sigmoid()) - torch.log(1 - no.sigmoid())).mean().item())
    assert min(abs(loss.item() - expected) for expected in possible) < 1e-4


REWEIGHTED = {"loss": "bce", "generator": "reweighted"}


@pytest.mark.parametrize("n", [1, 2])
def test_the_reweighted_loss_is_bce_with_a_weighted_positive_term(monkeypatch, n) -> None:
    model, _, loss_of = losses(monkeypatch, n_negatives=n, **REWEIGHTED)
    states = model.encode(BATCH.items, BATCH.lengths)
    chosen, targets, users = real_positions(BATCH, states)
    torch.manual_seed(0)
    drawn = uniform_negatives(users, n, V, seen_keys(LOG))  # none of the user's own
    assert not {3, 1, 5} & set(drawn[users == 1].flatten().tolist())
    vectors = model.table.vectors.weight
    positive = (chosen * vectors[targets]).sum(1)
    negative = (chosen[:, None] * vectors[drawn]).sum(2)
    rewards = []
    for row, length in zip(BATCH.items, BATCH.lengths.tolist(), strict=True):
        items = row[:length].tolist()
        best = ranked(model, items, set(items))[0][0]
        rewards += [judged(model, [*items, best]).detach().sigmoid().mean()] * length
    weighted = torch.stack(rewards) * F.softplus(-positive) + F.softplus(negative).mean(1)
    expected = weighted.mean()
    torch.manual_seed(0)
    loss = loss_of(BATCH)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    mine, theirs = gradients(loss, model), gradients(expected, model)
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=2e-3, atol=1e-5)
    # it is plain bce where every reward is 1
    for discriminator in model.discriminators:
        torch.nn.init.constant_(discriminator.out.bias, 100.0)
    torch.manual_seed(0)
    plain = binary_cross_entropy(positive, negative)
    torch.testing.assert_close(loss_of(BATCH), plain, rtol=1e-4, atol=1e-5)


# --- the phases ----------------------------------------------------------------------------------

PHASES = ["pretrain", "discriminators-1", "generator-1", "discriminators-2", "generator-2"]


@pytest.fixture
def watched(monkeypatch) -> Callable[[Callable[..., None]], None]:
    """Lets a function look at the model and its data after each phase of a fit."""

    def watch(look: Callable[..., None]) -> None:
        def instead(model, loss, data, *others, **words):
            before = {name: value.clone() for name, value in model.named_parameters()}
            records = train_next_item(model, loss, data, *others, **words)
            look(model, before, data, words["phase"])
            return records

        monkeypatch.setattr(mfgan, "train_next_item", instead)

    return watch


def test_generator_and_discriminators_take_turns(watched, random_log) -> None:
    moved: dict[str, set[str]] = {}
    newest: dict[str, torch.Tensor] = {}

    def look(model, before, data, phase):
        newest.update({name: value.clone() for name, value in model.state_dict().items()})
        moved[phase] = {
            name.partition(".")[0]
            for name, value in model.named_parameters()
            if not torch.equal(value, before[name])
        }

    watched(look)
    model = MFGAN(**SETTINGS).fit(random_log)
    generator, discriminators = {"table", "encoder"}, {"discriminators"}
    turns = [generator, discriminators, generator, discriminators, generator]
    assert moved == dict(zip(PHASES, turns, strict=True))
    epochs = [record.phase for record in model.curve]
    assert epochs == [
        phase for phase, n in zip(PHASES, (2, 1, 2, 1, 2), strict=True) for _ in range(n)
    ]
    # without validation the newest generator is kept
    for name, value in model.state_dict().items():
        assert torch.equal(value, newest[name]), name


def test_discriminators_hold_no_copy_for_real(watched, random_log) -> None:
    shown: dict[str, str | None] = {}

    def look(model, before, data, phase):
        shown[phase] = None if data.copies is None else data.copies.schedule.pacing

    watched(look)
    items = np.stack([random_log.items] * 2)
    difficulty = np.zeros((2, len(random_log)), dtype=np.float32)
    copies = AugmentedCopies(items, difficulty, CurriculumSchedule(stage_epochs=1))
    MFGAN(**SETTINGS).fit(random_log.with_copies(copies))
    # the generator has all copies at hand once its curriculum is over
    pacings = ("cumulative", None, "none", None, "none")
    assert shown == dict(zip(PHASES, pacings, strict=True))


@pytest.mark.parametrize(
    "metrics, best",
    [([1, 2, 0, 1, 1, 0], 1), ([1, 2, 0, 3, 1, 2], 3), ([1, 2, 2.5, 3, 5, 4], 4)],
    ids=["pretrain", "generator-1", "generator-2"],
)
def test_the_generator_that_validated_best_is_kept(monkeypatch, random_log, metrics, best) -> None:
    split, seen, script = leave_one_out(random_log), [], iter(metrics)

    def validation(method, scorer, valid):
        def metric() -> float:
            parts = (method.table.state_dict(), method.encoder.state_dict())
            seen.append([{k: v.clone() for k, v in part.items()} for part in parts])
            return float(next(script))

        return metric

    monkeypatch.setattr(next_item, "validation", validation)
    model = MFGAN(**SETTINGS).fit(split.train, split.valid)
    assert len(seen) == len(metrics)
    for part, kept in zip((model.table, model.encoder), seen[best], strict=True):
        for name, value in part.state_dict().items():
            assert torch.equal(value, kept[name]), name


def test_a_resumed_fit_goes_on_in_its_phase(monkeypatch, random_log, tmp_path) -> None:
    split = leave_one_out(random_log)
    whole = MFGAN(**SETTINGS).fit(split.train, split.valid, Runtime(seed=3))

    def interrupted(*others, **words):
        if words["phase"] == "discriminators-2":
            raise KeyboardInterrupt
        return train_next_item(*others, **words)

    with monkeypatch.context() as patch:
        patch.setattr(mfgan, "train_next_item", interrupted)
        with pytest.raises(KeyboardInterrupt):
            MFGAN(**SETTINGS).fit(split.train, split.valid, Runtime(seed=3, checkpoint=tmp_path))
    assert {file.stem for file in checkpoint_files(tmp_path)} == set(PHASES[:3])
    resumed = MFGAN(**SETTINGS).fit(
        split.train, split.valid, Runtime(seed=3, checkpoint=tmp_path, resume=True)
    )
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert [(r.phase, r.loss) for r in resumed.curve] == [(r.phase, r.loss) for r in whole.curve]


@pytest.mark.slow
def test_discriminators_learn_what_comes_next(cycle) -> None:
    settings = {"dim": 16, "learning_rate": 0.003, "n_candidates": 8, "rounds": 1}
    model = MFGAN(**SETTINGS | settings | {"discriminator_epochs": 30}).fit(cycle)
    items = torch.stack([torch.arange(start, start + 3) % 20 + 1 for start in range(20)])
    everything = torch.arange(1, 21).repeat(20, 1)
    rewards = model.rewards(items, torch.full((20,), 3), everything)
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
        {"loss": "gbce", "examples": "prefixes"},
        {"loss": "sampled_softmax", "examples": "windows", "max_len": 4},
        {"encoder": "caser", "n_layers": 2},
    ],
    ids=str,
)
def test_every_option_fits_in_bfloat16(random_log, settings) -> None:
    model = MFGAN(**SETTINGS | {"epochs": 1, "rounds": 1} | settings)
    model.fit(random_log, runtime=Runtime(precision="bf16"))
    assert np.isfinite([record.loss for record in model.curve]).all()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"generator": "reweighted"}, "set loss='bce', not 'softmax'"),
        (
            {"generator": "reweighted", "loss": "bce", "next_item_weight": 1.0},
            "next_item_weight = 1.0 has no effect with generator = 'reweighted'",
        ),
        ({"n_candidates": 1}, "n_candidates: .*greater than or equal to 2, got 1"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(MFGAN, SETTINGS | settings, message)


def test_more_candidates_than_items_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_candidates 13 is more than the 12 other items"):
        made(n_candidates=V - 1)


def test_discriminators_have_heads_beside_any_encoder() -> None:
    assert_refused(
        MFGAN, {"encoder": "gru", "dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"
    )
