"""Diff4Rec against sets whose taste is known, plain loops, and the arithmetic of its losses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec.training import loop as training
from diffuserec.augmenters.diff4rec import Diff4Rec, _sets
from diffuserec.models.base import Run
from diffuserec.data import Queries, SequenceDataset, histories_of
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.retrieval import hide, seen_pairs, top_k

N_TASTES, PER_TASTE = 4, 8


def padded(log: SequenceDataset) -> torch.Tensor:
    return histories_of(log, np.arange(len(log))).items


def tastes(n_users: int = 120, shortest: int = 3, longest: int = 6) -> SequenceDataset:
    """Whoever takes one of a taste's eight items takes nothing but those."""
    generator = np.random.default_rng(0)
    sequences = []
    for user in range(n_users):
        n = int(generator.integers(shortest, longest + 1))
        chosen = generator.permutation(PER_TASTE)[:n] + 1 + PER_TASTE * (user % N_TASTES)
        sequences.append(chosen.tolist())
    return SequenceDataset.from_lists(sequences)


SMALL = {
    "latent_dim": 8,
    "hidden_dim": 32,
    "learning_rate": 0.01,
    "batch_size": 16,
    "epochs": 25,
    "num_train_timesteps": 40,
}


def small(log: SequenceDataset, **settings) -> Diff4Rec:
    return Diff4Rec(**SMALL | settings).fit(log, run=Run(seed=1))


@pytest.fixture(scope="module")
def log() -> SequenceDataset:
    return tastes()


@pytest.fixture(scope="module")
def fitted(log) -> Diff4Rec:
    return small(log)


def remade(model: Diff4Rec, **settings) -> Diff4Rec:
    """The fitted model with other settings of what it makes."""
    other = Diff4Rec(**model.config.model_dump() | settings)
    with torch.random.fork_rng():
        other._take(model.catalog)
    other.load_state_dict(model.state_dict())
    return other.eval()


def taste_of(items: np.ndarray) -> np.ndarray:
    return (np.asarray(items) - 1) // PER_TASTE


@pytest.mark.parametrize("corruption", [0.0, 0.25])
@pytest.mark.parametrize("likelihood", ["multinomial", "bernoulli"])
def test_what_it_proposes_is_of_the_users_taste(log, likelihood, corruption) -> None:
    model = small(log, likelihood=likelihood, corruption=corruption)
    rows = np.arange(len(log))
    scores = hide(model.proposals(histories_of(log, rows)), seen_pairs(log, rows))
    _, best = top_k(scores, 2)
    own = taste_of(log.items[log.offsets[:-1]])[:, None]
    # one in four by chance
    assert (taste_of(best.numpy()) == own).mean() > 0.9


def test_full_corruption_leaves_nothing_of_the_user(log, fitted) -> None:
    rows = np.arange(len(log))
    own = taste_of(log.items[log.offsets[:-1]])
    model = remade(fitted, corruption=1.0, num_inference_steps=20)
    best = model.proposals(histories_of(log, rows))[:, 1:].argmax(1).numpy() + 1
    assert (taste_of(best) == own).mean() < 0.4  # one in four by chance, ± 0.04


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_latent_is_restored_from_noise(log, prediction_type) -> None:
    model = small(log, prediction_type=prediction_type)
    mean = model._encode(_sets(padded(log)))[0].detach()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    for step in (9, 19, 29):
        t = torch.full((len(mean),), step)
        z_t = model.schedule.add_noise(mean, noise, t)
        predicted = model._predict(z_t, t).detach()
        found = model.schedule.x_0_from(predicted, z_t, t, prediction_type)
        # neither the noised latent, freed of its factor, nor the mean of all is as near
        unchanged = z_t / model.schedule.alpha_bars[step].sqrt()
        error = ((found - mean) ** 2).mean()
        assert error < 0.75 * ((unchanged - mean) ** 2).mean()
        assert step > 9 or error < 0.75 * mean.var(0).mean()


@pytest.mark.parametrize(
    "decode_from, dropout, n_updates", [("z", 0.0, 0), ("z_0", 0.0, 0), ("z", 0.2, 2), ("z", 0, 9)]
)
def test_the_loss_by_hand(decode_from, dropout, n_updates) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3], [2]])
    settings = {"dropout": dropout, "kl_annealing_steps": 4, "noise_weight": 0.5}
    settings["corruption"] = 0.25
    model = Diff4Rec(**SMALL | settings | {"decode_from": decode_from})
    model.begin(log, Run())
    model.train()
    model.n_updates += n_updates

    torch.manual_seed(3)
    found = model._loss(_sets(padded(log)))
    torch.manual_seed(3)
    kept = torch.rand(4) >= dropout
    assert 0 < kept.sum() <= 4 * (1 - dropout)
    total = 0.0
    vectors = model.bag.weight.detach()[[1, 2, 3, 2]] * kept[:, None]
    sums = torch.stack([vectors[:3].sum(0), vectors[3]])
    n_kept = torch.stack([kept[:3].sum(), kept[3].sum()]).clamp(min=1)
    hidden = torch.tanh(sums / n_kept.sqrt()[:, None] + model.bag_bias)
    mean, log_variance = model.posterior(hidden).chunk(2, 1)
    z = mean + torch.randn(2, 8) * (log_variance / 2).exp()
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    total += 0.2 * min(1, (n_updates + 1) / 4) * kl.sum(1).mean()  # four updates of annealing
    t = torch.randint(40 if decode_from == "z" else 10, (2,))
    noise = torch.randn(2, 8)
    a = model.schedule.alpha_bars[t].float()[:, None]
    z_t = a.sqrt() * z + (1 - a).sqrt() * noise
    predicted = model._predict(z_t, t)
    total += 0.5 * ((predicted - noise) ** 2).sum(1).mean()
    if decode_from == "z_0":
        z = (z_t - (1 - a).sqrt() * predicted) / a.sqrt()
    logits = F.linear(torch.tanh(model.decoder(z)), model.items.weight, model.item_bias)
    log_p = torch.log_softmax(logits[:, 1:], 1)
    total -= (log_p[0, [0, 1, 2]].sum() + log_p[1, 1]) / 2
    torch.testing.assert_close(found, total)
    assert int(model.n_updates) == n_updates + 1


@pytest.mark.parametrize("moves", [True, False])
def test_the_noise_loss_reaches_the_encoder_if_it_may(moves) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3], [2]])
    model = Diff4Rec(**SMALL | {"noise_moves_encoder": moves, "corruption": 0, "dropout": 0})
    model.begin(log, Run())

    grads = []
    for weight in (0.0, 5.0):
        changed = Diff4Rec(**model.config.model_dump() | {"noise_weight": weight})
        changed._take(log.catalog)
        changed.load_state_dict(model.state_dict())
        torch.manual_seed(0)
        changed._loss(_sets(padded(log))).backward()
        grads.append(changed.posterior.weight.grad)
    assert torch.allclose(*grads) != moves


def test_what_only_the_restored_latent_teaches_must_reach_the_encoder() -> None:
    with pytest.raises(ConfigError, match="noise_moves_encoder"):
        Diff4Rec(decode_from="z_0", noise_moves_encoder=False)


# --- variants ----------------------------------------------------------------------------------


def rows_of(varied: SequenceDataset) -> list[list[list[int]]]:
    """variants[k][row]"""
    return [
        [items[a:b].tolist() for a, b in zip(varied.offsets, varied.offsets[1:], strict=False)]
        for items in varied.variants.items
    ]


@pytest.mark.parametrize("ratio", [0.01, 0.34, 1.0])
def test_so_many_items_are_replaced_by_others_of_the_pool(log, fitted, ratio) -> None:
    model = remade(fitted, ratio=ratio, reorder="none", pool_size=7)
    varied = model.augment(log, seed=2)
    x_hat = model.proposals(histories_of(log, np.arange(len(log))), seed=2)
    allowed = top_k(hide(x_hat, seen_pairs(log, np.arange(len(log)))), 7)[1].numpy()
    for variant in rows_of(varied):
        for row, found in enumerate(variant):
            own = log[row].tolist()
            new = [item for item, before in zip(found, own, strict=True) if item != before]
            assert len(new) == min(7, max(1, math.floor(ratio * len(own) + 0.5)))
            assert len(set(found)) == len(found)
            assert set(new) <= set(allowed[row].tolist()) - set(own)


@pytest.mark.parametrize("reorder", ["full", "local"])
def test_reordering_is_a_permutation(log, fitted, reorder) -> None:
    plain = remade(fitted, reorder="none", n_variants=1).augment(log, seed=2)
    mixed = remade(fitted, reorder=reorder, n_variants=1).augment(log, seed=2)
    moved, far = 0, 0
    (before,), (after,) = rows_of(plain), rows_of(mixed)
    for a, b in zip(before, after, strict=True):
        assert sorted(a) == sorted(b)
        moved += a != b
        far += any(abs(b.index(item) - place) > 2 for place, item in enumerate(a))
    assert moved > 0.5 * len(log)
    assert (far > 0) == (reorder == "full")


def test_variants_go_from_the_most_similar_to_the_least(log, fitted) -> None:
    weight = fitted.items.weight.detach()
    for order, sign in (("easy_first", 1), ("hard_first", -1)):
        varied = remade(fitted, order=order, ratio=0.5).augment(log, seed=2)
        difficulty = varied.variants.difficulty
        assert (sign * np.diff(difficulty, axis=0) >= 0).all()
        assert (np.diff(difficulty, axis=0) != 0).any()
        for number, variant in enumerate(rows_of(varied)):
            for row in range(0, len(log), 17):
                own, other = weight[log[row].tolist()].mean(0), weight[variant[row]].mean(0)
                cosine = float(own @ other / own.norm() / other.norm())
                assert difficulty[number, row] == pytest.approx(1 - cosine, abs=1e-5)


def test_the_schedule_is_that_of_the_settings(log, fitted) -> None:
    schedule = fitted.augment(log).variants.schedule
    assert (schedule.pacing, schedule.stage_epochs, schedule.each_step) == ("cumulative", 1, "one")
    assert schedule.weight == 0.1
    other = remade(fitted, curriculum="none", aug_weight=1.0, each_step="all", stage_epochs=3)
    schedule = other.augment(log).variants.schedule
    assert (schedule.pacing, schedule.stage_epochs, schedule.each_step) == ("none", 3, "all")
    assert schedule.weight == 1.0


def new_items(model: Diff4Rec, log: SequenceDataset) -> list[list[set[int]]]:
    varied = model.augment(log, seed=2)
    return [
        [set(found) - set(log[row].tolist()) for row, found in enumerate(variant)]
        for variant in rows_of(varied)
    ]


def test_pools(log, fitted) -> None:
    own = taste_of(log.items[log.offsets[:-1]])

    def share(**settings) -> float:
        made = new_items(remade(fitted, reorder="none", pool_size=25, **settings), log)
        right = [taste_of([*s]) == own[row] for v in made for row, s in enumerate(v) if s]
        return float(np.mean(np.concatenate(right)))

    # of 25 items, 2 to 5 are of the user's taste: drawn evenly, by probability, or cut off
    assert share() < 0.4
    assert share(pool="softmax") > 0.8
    assert share(pool="threshold") > 0.8


def test_a_pool_has_twenty_items_or_twice_as_many_as_the_history(log, fitted) -> None:
    histories = histories_of(
        SequenceDataset.from_lists([[1, 2, 3], [*range(1, 12)]], log.catalog), np.arange(2)
    )
    _, chances = remade(fitted, exclude_history=False)._pool(histories, seed=0, draw=0)
    assert (chances > -torch.inf).sum(1).tolist() == [20, 22]


def test_a_threshold_that_nothing_reaches_leaves_the_best(log, fitted) -> None:
    model = remade(fitted, reorder="none", pool="threshold")
    with torch.no_grad():  # all items alike, but two that are a little likelier
        model.items.weight.zero_()
        model.item_bias.zero_()
        model.item_bias[[3, 5]] = torch.tensor([0.02, 0.01])
    histories = histories_of(SequenceDataset.from_lists([[3, 5, 7]], log.catalog), np.arange(1))
    pool, chances = model._pool(histories, seed=0, draw=0)
    likely = pool[0][chances[0] > -torch.inf]
    assert len(likely) == 1
    assert int(likely) not in (3, 5, 7)
    best, chances = remade(model, pool="topk", pool_size=4)._pool(histories, seed=0, draw=0)
    inside = best[0][chances[0] > -torch.inf].tolist()
    assert len(inside) == 4
    assert inside == sorted(inside)


def test_own_items_come_in_only_if_they_may(log, fitted) -> None:
    def n_new(**settings) -> int:
        model = remade(fitted, reorder="none", pool_size=3, n_variants=1, **settings)
        return sum(len(new) for new in new_items(model, log)[0])

    assert n_new(exclude_history=False) < 0.7 * n_new()


def test_fresh_pools_differ(log, fitted) -> None:
    model = remade(fitted, fresh_pools=True, corruption=0.8, pool_size=1, reorder="none")
    one_pool = remade(model, fresh_pools=False)
    for each, differ in ((model, True), (one_pool, False)):
        made = new_items(each, log)
        assert any(a != b for a, b in zip(made[0], made[1], strict=True)) == differ


def test_synthetic_items_are_not_learned_from_and_have_no_variants(log, fitted) -> None:
    rows = np.arange(len(log))
    longer = log.prepend(np.full((len(log), 2), 1, dtype=np.int32), rows)
    again = small(longer)
    for key, value in again.state_dict().items():
        assert torch.equal(value, fitted.state_dict()[key]), key
    with pytest.raises(DataError, match="generated items in front"):
        again.augment(longer)
    with pytest.raises(DataError, match="have variants"):
        again.augment(log).prepend(np.full((len(log), 2), 1, dtype=np.int32), rows)


def test_variants_do_not_hang_on_the_others_lengths() -> None:
    generator = np.random.default_rng(0)
    lengths = [3, 5, 10, 11, 30, 60]
    log = SequenceDataset.from_lists(
        [(generator.permutation(200)[:n] + 1).tolist() for n in lengths]
    )
    model = Diff4Rec(**SMALL | {"epochs": 1}).fit(log)
    together = model.augment(log, seed=2)
    for user in range(len(log)):
        one = np.array([user])
        alone = model.augment(log.select(one), seed=2).variants.items.tolist()
        assert alone == together.select(one).variants.items.tolist()


def test_the_epoch_whose_proposals_validated_best_is_kept(log, monkeypatch) -> None:
    ends = log.offsets[1:] - 1
    known = log.slice(log.offsets[:-1], ends)
    valid = Queries(known, log.items[ends].astype(np.int64))
    script, seen = iter([1.0, 3.0, 2.0, 2.5, 0.0]), []

    def validation(method, score, queries):
        def figure() -> float:
            histories = histories_of(queries.histories, np.arange(len(queries)))
            assert torch.equal(score(histories), method.proposals(histories))
            seen.append({name: value.clone() for name, value in method.state_dict().items()})
            return next(script)

        return figure

    monkeypatch.setattr(training, "validation", validation)
    model = Diff4Rec(**SMALL | {"epochs": 9, "patience": 3}).fit(known, valid, Run(seed=1))
    assert len(seen) == 5  # three after the best, and no more
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[1][name]), name


def test_an_interrupted_fit_goes_on_to_the_same_parameters(log, cut_and_resumed) -> None:
    def fitted(**run) -> Diff4Rec:
        model = Diff4Rec(**SMALL | {"epochs": 4, "kl_weight": 5.0})
        return model.fit(log, run=Run(seed=3, **run))

    whole, resumed = fitted(), cut_and_resumed(fitted)
    assert resumed.n_updates == whole.n_updates
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"corruption": 0.02}, "fewer than num_inference_steps 5"),
        ({"corruption": 0, "fresh_pools": True}, "fresh_pools needs noise"),
        ({"noise_weight": 0}, "noise_weight 0 .*untrained.*corruption 0"),
        ({"ratio": 0}, "ratio"),
        ({"ratio": 1.5}, "ratio"),
        ({"n_variants": 0}, "n_variants"),
        ({"corruption": 1.2}, "corruption"),
    ],
    ids=str,
)
def test_bad_settings(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        Diff4Rec(**settings)
    assert "\n" not in str(refusal.value)


def test_nobody_to_learn_from() -> None:
    catalog = SequenceDataset.from_lists([[1, 2]]).catalog
    with pytest.raises(DataError, match="no user has one"):
        Diff4Rec(**SMALL).fit(SequenceDataset.from_lists([[], []], catalog))


def test_an_item_that_comes_again_is_in_the_set_once() -> None:
    sets = _sets(padded(SequenceDataset.from_lists([[3, 1, 3, 3], [], [2, 2]])))
    assert sets.items.tolist() == [1, 3, 2]
    assert sets.offsets.tolist() == [0, 2, 2]
    assert sets.owners.tolist() == [0, 0, 2]
    once, again = (
        small(SequenceDataset.from_lists(lists), likelihood="bernoulli", epochs=2)
        for lists in ([[1, 2, 3], [2, 4]], [[1, 2, 3, 1, 2], [2, 4, 4]])
    )
    for key, value in once.state_dict().items():
        if key != "popularity":
            assert torch.equal(value, again.state_dict()[key]), key
