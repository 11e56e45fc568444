"""Diff4Rec against sets whose taste is known, plain loops, and the arithmetic of its losses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec.augmenters.diff4rec import Diff4Rec
from diffuserec.data import Histories, Queries, SequenceDataset, histories_of, leave_one_out
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.models.retrieval import Products, seen_items, top_k

N_TASTES, PER_TASTE = 4, 8


def everyone(log: SequenceDataset) -> Histories:
    return histories_of(log, np.arange(len(log)))


def best_of(x_hat: Products, k: int, log: SequenceDataset | None = None) -> np.ndarray:
    """The k likeliest items of each user; of a log, those that its users do not have."""
    hidden = None if log is None else seen_items(log, np.arange(len(log)))
    return top_k(x_hat, k, hidden)[1].numpy()


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
    return Diff4Rec(**SMALL | settings).fit(log, runtime=Runtime(seed=1))


@pytest.fixture(scope="module")
def log() -> SequenceDataset:
    return tastes()


@pytest.fixture(scope="module")
def fitted(log) -> Diff4Rec:
    return small(log)


def remade(model: Diff4Rec, **settings) -> Diff4Rec:
    """The fitted model with other settings of the copies."""
    other = Diff4Rec(**model.config.model_dump() | settings)
    with torch.random.fork_rng():
        other.take(model.catalog)
    other.load_state_dict(model.state_dict())
    return other.eval()


def taste_of(items: np.ndarray) -> np.ndarray:
    return (np.asarray(items) - 1) // PER_TASTE


@pytest.mark.parametrize("corruption", [0.0, 0.25])
@pytest.mark.parametrize("likelihood", ["multinomial", "bernoulli"])
def test_proposals_are_of_the_users_taste(log, likelihood, corruption) -> None:
    model = small(log, likelihood=likelihood, corruption=corruption)
    best = best_of(model.proposals(everyone(log)), 2, log)
    own = taste_of(log.items[log.offsets[:-1]])[:, None]
    # one in four by chance
    assert (taste_of(best) == own).mean() > 0.9


def test_full_corruption_leaves_nothing_of_the_user(log, fitted) -> None:
    own = taste_of(log.items[log.offsets[:-1]])
    model = remade(fitted, corruption=1.0, num_inference_steps=20)
    best = best_of(model.proposals(everyone(log)), 1)[:, 0]
    assert (taste_of(best) == own).mean() < 0.4  # one in four by chance, ± 0.04


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_latent_is_restored_from_noise(log, prediction_type) -> None:
    model = small(log, prediction_type=prediction_type)
    mean = model.latents(everyone(log)).detach()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    for step in (9, 19, 29):
        t = torch.full((len(mean),), step)
        z_t = model.schedule.add_noise(mean, noise, t)
        predicted = model.predict(z_t, t).detach()
        found = model.schedule.x_0_from(predicted, z_t, t, prediction_type)
        # nearer than the noised latent without its factor, and than the mean of all
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
    model.take(log.catalog)
    model.train()
    model.n_updates += n_updates

    torch.manual_seed(3)
    found = model.loss(everyone(log))
    torch.manual_seed(3)
    kept = torch.rand(4) >= dropout
    assert 0 < kept.sum() <= 4 * (1 - dropout)
    total = 0.0
    vectors = model.bag.embed(torch.tensor([1, 2, 3, 2])).detach() * kept[:, None]
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
    predicted = model.predict(z_t, t)
    total += 0.5 * ((predicted - noise) ** 2).sum(1).mean()
    if decode_from == "z_0":
        z = (z_t - (1 - a).sqrt() * predicted) / a.sqrt()
    hidden = torch.tanh(model.decoder(z))
    logits = F.linear(hidden, model.items.embeddings(), model.items.bias)
    log_p = torch.log_softmax(logits[:, 1:], 1)
    total -= (log_p[0, [0, 1, 2]].sum() + log_p[1, 1]) / 2
    torch.testing.assert_close(found, total)
    assert int(model.n_updates) == n_updates + 1


@pytest.mark.parametrize("moves", [True, False])
def test_the_noise_loss_reaches_the_encoder_if_it_may(moves) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3], [2]])
    model = Diff4Rec(**SMALL | {"noise_moves_encoder": moves, "corruption": 0, "dropout": 0})
    model.take(log.catalog)

    grads = []
    for weight in (0.0, 5.0):
        changed = Diff4Rec(**model.config.model_dump() | {"noise_weight": weight})
        changed.take(log.catalog)
        changed.load_state_dict(model.state_dict())
        torch.manual_seed(0)
        changed.loss(everyone(log)).backward()
        grads.append(changed.posterior.weight.grad)
    assert torch.allclose(*grads) != moves


def test_an_encoder_that_only_the_restored_latent_teaches_must_be_moved_by_it() -> None:
    with pytest.raises(ConfigError, match="noise_moves_encoder"):
        Diff4Rec(decode_from="z_0", noise_moves_encoder=False)


# --- copies ------------------------------------------------------------------------------------


def copies_of(augmented: SequenceDataset) -> list[list[list[int]]]:
    """copies[k][user]"""
    return [
        [
            items[start:end].tolist()
            for start, end in zip(augmented.starts, augmented.ends, strict=True)
        ]
        for items in augmented.copies.items
    ]


@pytest.mark.parametrize("ratio", [0.01, 0.34, 1.0])
def test_the_share_of_replaced_items_and_the_pool_that_they_are_of(log, fitted, ratio) -> None:
    model = remade(fitted, ratio=ratio, reorder="none", pool_size=7)
    augmented = model.augment(log, seed=2)
    allowed = best_of(model.proposals(everyone(log), seed=2), 7, log)
    for copy in copies_of(augmented):
        for user, found in enumerate(copy):
            own = log[user].tolist()
            new = [item for item, before in zip(found, own, strict=True) if item != before]
            assert len(new) == min(7, max(1, math.floor(ratio * len(own) + 0.5)))
            assert len(set(found)) == len(found)
            assert set(new) <= set(allowed[user].tolist()) - set(own)


@pytest.mark.parametrize("reorder", ["full", "local"])
def test_reordering_is_a_permutation(log, fitted, reorder) -> None:
    plain = remade(fitted, reorder="none", n_copies=1).augment(log, seed=2)
    mixed = remade(fitted, reorder=reorder, n_copies=1).augment(log, seed=2)
    moved, far = 0, 0
    (before,), (after,) = copies_of(plain), copies_of(mixed)
    for a, b in zip(before, after, strict=True):
        assert sorted(a) == sorted(b)
        moved += a != b
        far += any(abs(b.index(item) - position) > 2 for position, item in enumerate(a))
    assert moved > 0.5 * len(log)
    assert (far > 0) == (reorder == "full")


def test_copies_go_from_the_most_similar_to_the_least(log, fitted) -> None:
    vectors = fitted.items.embeddings().detach()
    for order, sign in (("easy_first", 1), ("hard_first", -1)):
        augmented = remade(fitted, order=order, ratio=0.5).augment(log, seed=2)
        difficulty = augmented.copies.difficulty
        assert (sign * np.diff(difficulty, axis=0) >= 0).all()
        assert (np.diff(difficulty, axis=0) != 0).any()
        for number, copy in enumerate(copies_of(augmented)):
            for user in range(0, len(log), 17):
                own, other = vectors[log[user].tolist()].mean(0), vectors[copy[user]].mean(0)
                cosine = float(own @ other / own.norm() / other.norm())
                assert difficulty[number, user] == pytest.approx(1 - cosine, abs=1e-5)


def test_the_schedule_is_that_of_the_settings(log, fitted) -> None:
    schedule = fitted.augment(log).copies.schedule
    assert (schedule.pacing, schedule.stage_epochs) == ("cumulative", 1)
    assert (schedule.copies_per_step, schedule.weight) == ("one", 0.1)
    other = remade(
        fitted, curriculum="one_pass", aug_weight=1.0, copies_per_step="all", stage_epochs=3
    )
    schedule = other.augment(log).copies.schedule
    assert (schedule.pacing, schedule.stage_epochs) == ("one_pass", 3)
    assert (schedule.copies_per_step, schedule.weight) == ("all", 1.0)
    assert remade(fitted, curriculum="none").augment(log).copies.schedule.pacing == "none"


def test_too_few_epochs_for_all_copies_are_refused(fitted) -> None:
    # ten copies, of which each epoch takes up one more
    fitted.require_epochs(10)
    with pytest.raises(ConfigError, match="9 epochs end before all 10 copies are in use"):
        fitted.require_epochs(9)
    remade(fitted, curriculum="none").require_epochs(1)


def new_items(model: Diff4Rec, log: SequenceDataset) -> list[list[set[int]]]:
    augmented = model.augment(log, seed=2)
    return [
        [set(found) - set(log[user].tolist()) for user, found in enumerate(copy)]
        for copy in copies_of(augmented)
    ]


def test_pools(log, fitted) -> None:
    own = taste_of(log.items[log.offsets[:-1]])

    def share(**settings) -> float:
        new = new_items(remade(fitted, reorder="none", pool_size=25, **settings), log)
        right = [taste_of([*s]) == own[user] for c in new for user, s in enumerate(c) if s]
        return float(np.mean(np.concatenate(right)))

    # of 25 items, 2 to 5 are of the user's taste: drawn evenly, by probability, or cut off
    assert share() < 0.4
    assert share(pool="softmax") > 0.8
    assert share(pool="threshold") > 0.8


def test_chances_of_a_softmax_pool_are_probabilities(log, fitted) -> None:
    model = remade(fitted, pool="softmax", pool_size=32, exclude_history=False)
    items, log_p = model.pools(everyone(log))
    scorer = model.proposals(everyone(log))
    expected = torch.log_softmax((scorer.states @ scorer.vectors.T)[:, 1:], dim=1)
    assert items.tolist() == [[*range(1, 33)]] * len(log)  # the whole catalog, by number
    torch.testing.assert_close(log_p, expected, atol=1e-5, rtol=1e-5)


def test_a_pool_has_twenty_items_or_twice_as_many_as_the_history(log, fitted) -> None:
    two = SequenceDataset.from_lists([[1, 2, 3], [*range(1, 12)]], log.catalog)
    _, chances = remade(fitted, exclude_history=False).pools(everyone(two))
    assert (chances > -torch.inf).sum(1).tolist() == [20, 22]


def test_a_threshold_that_nothing_reaches_leaves_the_best(log, fitted) -> None:
    model = remade(fitted, reorder="none", pool="threshold")
    with torch.no_grad():  # all items alike, but two that are a little likelier
        model.items.vectors.weight.zero_()
        model.items.bias.zero_()
        model.items.bias[[3, 5]] = torch.tensor([0.02, 0.01])
    histories = everyone(SequenceDataset.from_lists([[3, 5, 7]], log.catalog))
    pool, chances = model.pools(histories)
    likely = pool[0][chances[0] > -torch.inf]
    assert len(likely) == 1
    assert int(likely) not in (3, 5, 7)
    best, chances = remade(model, pool="topk", pool_size=4).pools(histories)
    inside = best[0][chances[0] > -torch.inf].tolist()
    assert len(inside) == 4
    assert inside == sorted(inside)


def test_own_items_come_in_only_if_they_may(log, fitted) -> None:
    def n_new(**settings) -> int:
        model = remade(fitted, reorder="none", pool_size=3, n_copies=1, **settings)
        return sum(len(new) for new in new_items(model, log)[0])

    assert n_new(exclude_history=False) < 0.7 * n_new()


def test_resampled_pools_differ(log, fitted) -> None:
    model = remade(fitted, resample_pool=True, corruption=0.8, pool_size=1, reorder="none")
    one_pool = remade(model, resample_pool=False)
    for each, differ in ((model, True), (one_pool, False)):
        new = new_items(each, log)
        assert any(a != b for a, b in zip(new[0], new[1], strict=True)) == differ


def test_synthetic_items_are_not_learned_from_and_have_no_copies(log, fitted) -> None:
    generated, index = np.full((len(log), 2), 1, dtype=np.int32), np.arange(len(log))
    longer = log.prepend(generated, index)
    again = small(longer)
    for key, value in again.state_dict().items():
        assert torch.equal(value, fitted.state_dict()[key]), key
    with pytest.raises(DataError, match="generated items: use one augmenter or the other"):
        again.augment(longer)
    with pytest.raises(DataError, match="have augmented copies"):
        again.augment(log).prepend(generated, index)


def test_copies_depend_on_no_other_history() -> None:
    generator = np.random.default_rng(0)
    lengths = [3, 5, 10, 11, 30, 60]
    log = SequenceDataset.from_lists(
        [(generator.permutation(200)[:n] + 1).tolist() for n in lengths]
    )
    model = Diff4Rec(**SMALL | {"epochs": 1}).fit(log)
    together = copies_of(model.augment(log, seed=2))
    for user in range(len(log)):
        alone = copies_of(model.augment(log.select(np.array([user])), seed=2))
        assert [copy[0] for copy in alone] == [copy[user] for copy in together]


def test_copies_of_a_view_fit_its_own_sequences(log, fitted) -> None:
    train = leave_one_out(log).train
    assert len(train.log.items) > len(train.items)  # the held-out items are in the log too
    augmented = fitted.augment(train, seed=2)
    assert augmented.copies.items.shape == (10, len(train.items))
    assert augmented.items.tolist() == train.items.tolist()
    alone = SequenceDataset.from_lists([s.tolist() for s in train], log.catalog)
    assert copies_of(augmented) == copies_of(fitted.augment(alone, seed=2))
    # and a second call replaces the copies of the first
    again = fitted.augment(augmented, seed=3)
    assert copies_of(again) == copies_of(fitted.augment(train, seed=3)) != copies_of(augmented)


def without_last_items(log: SequenceDataset) -> tuple[SequenceDataset, Queries]:
    ends = log.ends - 1
    known = log.view(log.starts, ends)
    return known, Queries(known, log.log.items[ends].astype(np.int64))


def test_the_epoch_whose_proposals_validated_best_is_kept(log) -> None:
    known, valid = without_last_items(log)
    settings = SMALL | {"epochs": 30, "patience": 3}
    model = Diff4Rec(**settings).fit(known, valid, Runtime(seed=1))
    metrics = [record.valid for record in model.curve]
    best = int(np.argmax(metrics))
    assert best > 0
    assert len(metrics) == best + 4  # three after the best, and no more
    shorter = Diff4Rec(**settings | {"epochs": best + 1}).fit(known, None, Runtime(seed=1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, shorter.state_dict()[name]), name

    # NDCG@10 by hand, on x̂ without the items that a user has
    histories = everyone(known)
    scores = model.proposals(histories)
    logits = (scores.states @ scores.vectors.T).scatter(1, histories.items, -torch.inf)
    targets = torch.from_numpy(valid.targets)[:, None]
    rank = (logits > logits.gather(1, targets)).sum(1)
    gains = torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0.0)
    assert metrics[best] == pytest.approx(float(gains.mean()), abs=1e-6)


def test_an_interrupted_fit_goes_on_to_the_same_parameters(log, cut_and_resumed) -> None:
    def fitted(**changes) -> Diff4Rec:
        model = Diff4Rec(**SMALL | {"epochs": 4, "kl_weight": 5.0})
        return model.fit(log, runtime=Runtime(seed=3, **changes))

    whole, resumed = fitted(), cut_and_resumed(fitted)
    assert resumed.n_updates == whole.n_updates
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"corruption": 0.02}, "fewer than num_inference_steps 5"),
        ({"corruption": 0, "resample_pool": True}, "resample_pool .* needs corruption above 0"),
        ({"corruption": 0, "num_inference_steps": 3}, "num_inference_steps .* no effect"),
        ({"reorder_window": 5}, "reorder_window .* no effect .* reorder = 'local'"),
        ({"curriculum": "none", "stage_epochs": 2}, "stage_epochs .* no effect"),
        ({"noise_weight": 0}, "noise_weight 0 .*untrained.*corruption 0"),
        ({"ratio": 0}, "ratio"),
        ({"ratio": 1.5}, "ratio"),
        ({"n_copies": 0}, "n_copies"),
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


def test_an_item_that_comes_again_is_in_the_set_once(log, fitted) -> None:
    repeated, plain = (
        fitted.latents(everyone(SequenceDataset.from_lists(lists, log.catalog)))
        for lists in ([[3, 1, 3, 3], [], [2, 2]], [[1, 3], [], [2]])
    )
    torch.testing.assert_close(repeated, plain)
    nothing = fitted.posterior(torch.tanh(fitted.bag_bias))[:8]
    torch.testing.assert_close(repeated[1], nothing)
    once, again = (
        small(SequenceDataset.from_lists(lists), likelihood="bernoulli", epochs=2)
        for lists in ([[1, 2, 3], [2, 4]], [[1, 2, 3, 1, 2], [2, 4, 4]])
    )
    for key, value in once.state_dict().items():
        if key != "popularity":
            assert torch.equal(value, again.state_dict()[key]), key
