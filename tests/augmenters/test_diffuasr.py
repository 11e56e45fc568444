"""DiffuASR: the items that it generates, and that every reading of the paper runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuserec.augmenters.diffuasr import DiffuASR
from diffuserec.data import Queries, SequenceDataset, Split, histories_of, leave_one_out
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.models.diffusion import NoiseSchedule, nearest_rows
from diffuserec.models.methods import load_augmenter
from diffuserec.training.checkpoint import Checkpoint

M = 4
N_CATEGORIES, N_PHASES, N_TWINS = 4, 5, 2
RUNTIME = Runtime(device="cpu", seed=3)
QUICK: dict[str, Any] = {
    "n_items": M,
    "condition": "published",
    "channels": 8,
    "epochs": 1,
    "pretrain_epochs": 1,
    "num_inference_steps": 3,
}


def structured_log(n_users: int, seed: int = 0) -> SequenceDataset:
    """Each user stays in one category; items there come in phases 0, 1, 2, 3, 4, 0, 1, …"""
    generator = np.random.default_rng(seed)
    sequences = []
    for user in range(n_users):
        phase = np.arange(generator.integers(10, 18)) % N_PHASES
        twin = generator.integers(0, N_TWINS, len(phase))
        category = user % N_CATEGORIES
        sequences.append((1 + (category * N_PHASES + phase) * N_TWINS + twin).tolist())
    return SequenceDataset.from_lists(sequences)


def prefixes(augmented: SequenceDataset, n_items: int = M) -> np.ndarray:
    return np.stack([augmented[user][:n_items] for user in range(len(augmented))])


def variant(model: DiffuASR, **settings: Any) -> DiffuASR:
    """The same parameters under other settings."""
    other = DiffuASR(**(model.config.model_dump() | settings))
    other.take(model.catalog)
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.fixture(scope="module")
def split() -> Split:
    return leave_one_out(structured_log(200))


@pytest.fixture(scope="module")
def trained(split: Split) -> DiffuASR:
    return DiffuASR(
        n_items=M,
        condition="published",
        channels=8,
        epochs=8,
        patience=8,
        batch_size=128,
        learning_rate=3e-3,
        num_inference_steps=10,
        pretrain_epochs=30,
        pretrain_batch_size=32,
        pretrain_learning_rate=3e-3,
        dropout=0.1,
    ).fit(split.train, runtime=RUNTIME)


@pytest.fixture(scope="module")
def few() -> Split:
    return leave_one_out(structured_log(30, seed=1))


def mean_log_prob(model: DiffuASR, dataset: SequenceDataset, seed: int = 0) -> float:
    """Mean log p of each user's first real item after the generated ones, by the model's own
    classifier."""
    items = torch.from_numpy(prefixes(model.augment(dataset, seed))).long()
    first = torch.from_numpy(dataset.items[dataset.offsets[:-1]]).long()
    with torch.no_grad():
        vectors = F.embedding(items, model.vectors)
        return float(model.label_log_prob(vectors, first).mean())


def test_it_learned_category_and_order(trained: DiffuASR, split: Split) -> None:
    generated = prefixes(trained.augment(split.train)) - 1
    category = generated // (N_PHASES * N_TWINS)
    phase = generated // N_TWINS % N_PHASES
    own = np.arange(len(generated))[:, None] % N_CATEGORIES
    # by chance: a quarter and a fifth
    assert (category == own).mean() > 0.9
    # the oldest of the first items comes first
    assert (phase == np.arange(M)).mean() > 0.8
    assert len(np.unique(generated)) > N_CATEGORIES * M


def test_items_are_put_in_front_and_the_rest_stays(trained: DiffuASR, split: Split) -> None:
    augmented = trained.augment(split.train, 1)
    assert np.array_equal(augmented.lengths, split.train.lengths + M)
    assert np.array_equal(augmented.real().items, split.train.items)
    assert all(augmented.synthetic[start : start + M].all() for start in augmented.offsets[:-1])
    generated = prefixes(augmented)
    assert generated.min() >= 1
    assert generated.max() <= split.train.catalog.n_items


def test_a_users_items_depend_on_seed_user_and_history_only(
    trained: DiffuASR, split: Split
) -> None:
    whole = prefixes(trained.augment(split.train, 5))
    assert np.array_equal(whole, prefixes(trained.augment(split.train, 5)))
    assert not np.array_equal(whole, prefixes(trained.augment(split.train, 6)))
    some = np.array([170, 3, 30])
    part = trained.augment(split.train.select(some), 5)
    assert np.array_equal(prefixes(part), whole[some])


@pytest.mark.parametrize(
    "settings, channels, floor",
    [
        ({"n_items": 5}, 16, 0.0),
        ({"n_items": 17}, 24, 0.0),
        ({"n_items": 10, "channels": 8}, 8, 0.2),
        ({"n_items": 16, "channels": 8}, 8, 0.5),
    ],
)
def test_the_network_has_channels_for_all_items(settings, channels: int, floor: float) -> None:
    log = structured_log(40)
    long = {"item_embedding": "scratch", "multipliers": (1, 2)}
    model = DiffuASR(**QUICK | {"channels": None} | long | settings)
    model.take(log.catalog)
    assert model.network.channels == channels
    assert model.noise_floor == pytest.approx(floor)


def test_it_says_what_error_too_few_channels_leave(capsys: pytest.CaptureFixture[str]) -> None:
    log = structured_log(40)
    wide = {"n_items": 10, "item_embedding": "scratch", "min_condition": 1}
    DiffuASR(**QUICK | wide).fit(log, runtime=RUNTIME)
    assert "8 channels for 10 items" in (said := capsys.readouterr().err)
    assert "below 0.20" in said
    DiffuASR(**QUICK | wide | {"channels": 16}).fit(log, runtime=RUNTIME)
    assert "channels" not in capsys.readouterr().err


def test_nothing_to_lengthen(trained: DiffuASR) -> None:
    log = SequenceDataset.from_lists([[], []], trained.catalog)
    assert trained.augment(log).lengths.tolist() == [0, 0]


def test_an_item_rounds_to_itself(trained: DiffuASR) -> None:
    items = torch.arange(1, trained.catalog.vocab_size)
    assert torch.equal(nearest_rows(trained.vectors[items], trained.vectors), items)


class Oracle(nn.Module):
    """Knows x_0, and so the noise (or velocity) in any x_t."""

    def __init__(self, x_0: Tensor, schedule: NoiseSchedule, prediction_type: str) -> None:
        super().__init__()
        self.x_0, self.schedule, self.type = x_0, schedule, prediction_type

    def embed_step(self, t: Tensor) -> Tensor:
        return t[:, None].float()

    def embed_condition(self, condition: Tensor) -> Tensor:
        return torch.zeros(len(condition), 1)

    def forward(self, x_t: Tensor, embedded: Tensor) -> Tensor:
        t = embedded[:, 0].long()
        signal, sigma = self.schedule.signal_and_noise(t, x_t)
        noise = (x_t - signal * self.x_0) / sigma
        return self.schedule.target(self.x_0, noise, t, self.type)  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_an_oracle_recovers_x_0(
    trained: DiffuASR, prediction_type: str, sampler: str, n_steps: int
) -> None:
    wanted = torch.randint(1, trained.catalog.vocab_size, (6, M))
    model = variant(
        trained,
        prediction_type=prediction_type,
        sampler=sampler,
        num_inference_steps=n_steps,
        guidance="none",
    )
    x_0 = F.embedding(wanted, model.vectors)
    model.network = Oracle(x_0, model.schedule, prediction_type)  # type: ignore[assignment]
    log = SequenceDataset.from_lists([[1]] * 6, trained.catalog)
    assert np.array_equal(prefixes(model.augment(log)), wanted.numpy())


def test_scale_0_is_the_conditional_model(trained: DiffuASR, split: Split) -> None:
    plain = prefixes(variant(trained, guidance="none").augment(split.train))
    for guidance in ("classifier_free", "classifier"):
        unscaled = variant(trained, guidance=guidance, guidance_scale=0)
        assert np.array_equal(prefixes(unscaled.augment(split.train)), plain)


@pytest.mark.parametrize("at", ["x_t", "x_0"])
@pytest.mark.parametrize("classifier_loss", ["softmax", "bce"])
def test_a_classifier_guides_towards_the_label(
    trained: DiffuASR, split: Split, at: str, classifier_loss: str
) -> None:
    metrics = [
        mean_log_prob(
            variant(
                trained,
                guidance="classifier",
                guidance_scale=scale,
                guidance_at=at,
                classifier_loss=classifier_loss,
            ),
            split.train,
        )
        for scale in (0.0, 2.0)
    ]
    assert metrics[1] > metrics[0]


def test_the_label_is_the_first_or_the_last_item(trained: DiffuASR) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3], [4, 5]], trained.catalog)
    histories = histories_of(log, np.arange(2))
    assert trained.labels(histories).tolist() == [1, 4]
    last = variant(trained, guidance="classifier", label="last")
    assert last.labels(histories).tolist() == [3, 5]


def test_the_condition_is_the_mean_or_the_sum(trained: DiffuASR) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3], [4]], trained.catalog)
    histories, vectors = histories_of(log, np.arange(2)), trained.vectors
    torch.testing.assert_close(
        trained.condition(histories), torch.stack([vectors[1:4].mean(0), vectors[4]])
    )
    torch.testing.assert_close(
        variant(trained, cond_pool="sum").condition(histories),
        torch.stack([vectors[1:4].sum(0), vectors[4]]),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"item_embedding": "init"},
        {"item_embedding": "scratch", "prediction_type": "epsilon"},
        {"item_embedding": "scratch", "guidance": "classifier"},
        {"cond_pool": "sum", "min_condition": 1},
        {"guidance": "none", "cond_dropout": 0.0},
        {"guidance": "classifier", "label": "last", "classifier_loss": "bce"},
        {"sampler": "dpm_solver", "prediction_type": "sample"},
        {"eta": 1.0, "beta_schedule": "cosine", "num_train_timesteps": 50},
        {"n_items": 2, "max_history": 9, "batch_size": 70},
        {"encoder": "gru", "encoder_settings": {"hidden_dim": 16}, "guidance": "classifier"},
    ],
    ids=str,
)
def test_every_reading_runs_and_survives_saving(
    few: Split, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = DiffuASR(**(QUICK | settings)).fit(few.train, few.valid, RUNTIME)
    augmented = model.augment(few.train, 2)
    assert augmented.synthetic.any()
    model.save(tmp_path / "model")
    assert np.array_equal(
        load_augmenter(tmp_path / "model").augment(few.train, 2).items, augmented.items
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": "classifier_free", "cond_dropout": 0.0},
        {"guidance": "classifier", "prediction_type": "epsilon"},
    ],
    ids=str,
)
def test_guidance_in_training_is_another_objective(few: Split, settings: dict[str, Any]) -> None:
    paper = DiffuASR(**(QUICK | settings), guidance_in_training=True).fit(
        few.train, runtime=RUNTIME
    )
    plain = DiffuASR(**(QUICK | settings | {"guidance_scale": 0.0})).fit(few.train, runtime=RUNTIME)
    tables = [model.pretrained.table.embeddings() for model in (paper, plain)]
    assert torch.equal(*tables)
    assert not torch.equal(paper.network.last[2].weight, plain.network.last[2].weight)
    assert paper.augment(few.train).synthetic.any()


def test_each_choice_of_item_vectors(few: Split) -> None:
    frozen = DiffuASR(**QUICK).fit(few.train, runtime=RUNTIME)
    trained = DiffuASR(**QUICK, item_embedding="init").fit(few.train, runtime=RUNTIME)
    table = frozen.pretrained.table.embeddings()[1:]
    centered = (table - table.mean(0)) / (table - table.mean(0)).std()
    torch.testing.assert_close(frozen.vectors[1:], centered)
    torch.testing.assert_close(frozen.vectors[1:].mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(frozen.vectors[1:].std(), torch.tensor(1.0))
    plain = DiffuASR(**QUICK, centered=False).fit(few.train, runtime=RUNTIME)
    torch.testing.assert_close(plain.vectors[1:], table / table.std())
    # the second phase moves a table of its own, and not the pretrained recommender
    assert torch.equal(trained.pretrained.table.embeddings()[1:], table)
    torch.testing.assert_close(trained.vectors[1:], centered, atol=0.5, rtol=0)
    assert not torch.allclose(trained.vectors[1:], centered, atol=1e-3)
    scratch = DiffuASR(**QUICK, item_embedding="scratch").fit(few.train, runtime=RUNTIME)
    assert [record.phase for record in scratch.curve] == ["diffusion"]
    assert float(scratch.scale) == 1
    assert not scratch.center.any()


def held_out_swapped(split: Split, log: SequenceDataset) -> Split:
    """The same log with every user's last two items changed into others."""
    items = log.items.copy()
    for end in log.offsets[1:]:
        items[end - 2 : end] = items[end - 2 : end][::-1] % log.catalog.n_items + 1
    return leave_one_out(SequenceDataset.from_offsets(items, log.offsets, log.catalog))


def test_held_out_items_change_nothing() -> None:
    log = structured_log(30, seed=1)
    split = leave_one_out(log)
    other = held_out_swapped(split, log)
    assert not np.array_equal(split.test.targets, other.test.targets)
    models = [DiffuASR(**QUICK).fit(part.train, runtime=RUNTIME) for part in (split, other)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    made = [
        model.augment(part.train).items for model, part in zip(models, (split, other), strict=True)
    ]
    assert np.array_equal(*made)


def test_train_and_valid_as_the_condition() -> None:
    log = structured_log(30, seed=1)
    split = leave_one_out(log)
    settings = QUICK | {"condition_on": "train+valid"}
    model = DiffuASR(**settings).fit(split.train, split.valid, RUNTIME)
    # a training history is completed by its validation item: what the test history shows
    shown = model.complete(histories_of(split.train, np.arange(30)))
    test = histories_of(split.test.histories, np.arange(30))
    assert torch.equal(shown.lengths, test.lengths)
    assert torch.equal(shown.items[:, : test.items.shape[1]], test.items)
    assert np.array_equal(
        prefixes(model.augment(split.train)), prefixes(model.augment(split.test.histories))
    )
    # anyone else's history is taken as it is, whatever the user's number
    other = SequenceDataset.from_lists([[1, 2], [3]], log.catalog, users=[0, 1000])
    assert model.complete(histories_of(other, np.arange(2))).lengths.tolist() == [2, 1]
    with pytest.raises(ConfigError, match="needs validation queries"):
        DiffuASR(**settings).fit(split.train, runtime=RUNTIME)


@pytest.mark.slow
def test_users_that_are_held_out_are_not_trained_on() -> None:
    def network_of(sequences: list[list[int]]) -> Tensor:
        log = SequenceDataset.from_lists(sequences, plain.catalog)
        settings = QUICK | {"n_items": 2, "min_condition": 1, "item_embedding": "scratch"}
        model = DiffuASR(**settings).fit(log, runtime=RUNTIME)
        return torch.cat([weight.detach().flatten() for weight in model.network.parameters()])

    plain = structured_log(20)
    sequences = [items.tolist() for items in plain]
    expected, changed = network_of(sequences), []
    for user in range(20):
        other = [[1] * len(items) if u == user else items for u, items in enumerate(sequences)]
        changed.append(not torch.equal(network_of(other), expected))
    # a tenth of them only decides when to stop
    assert sum(changed) == 18


def test_an_interrupted_fit_continues_to_the_same_parameters(
    few: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QUICK | {"epochs": 3}
    whole = DiffuASR(**settings).fit(few.train, few.valid, RUNTIME)
    runtime = Runtime(device="cpu", seed=3, checkpoint=tmp_path)
    save, saved = Checkpoint.save, []

    def watched(self: Checkpoint, records: list[Any], best: Any) -> None:
        save(self, records, best)
        saved.append((records[-1].phase, records[-1].epoch))
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", watched)
    with pytest.raises(KeyboardInterrupt):
        DiffuASR(**settings).fit(few.train, few.valid, runtime)
    resumed = Runtime(device="cpu", seed=3, checkpoint=tmp_path, resume=True)
    continued = DiffuASR(**settings).fit(few.train, few.valid, resumed)
    # each epoch once: nothing is trained again
    assert saved == [("pretrain", 0), *(("diffusion", epoch) for epoch in range(3))]
    assert [record.phase for record in continued.curve] == ["pretrain"] + ["diffusion"] * 3
    states = whole.state_dict(), continued.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_validation_decides_when_pretraining_stops(few: Split) -> None:
    model = DiffuASR(**QUICK).fit(few.train, few.valid, RUNTIME)
    assert [record.valid is not None for record in model.curve] == [True, True]
    model = DiffuASR(**QUICK).fit(few.train, runtime=RUNTIME)
    assert [record.valid is not None for record in model.curve] == [False, True]


def test_too_few_long_users_are_refused_with_what_would_do() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4, 5, 6]] * 12 + [[1] * 20] * 4)
    with pytest.raises(DataError, match=r"n_items \+ 3 = 13 training items, and 4 have them"):
        DiffuASR(n_items=10, condition="published").fit(log)
    with pytest.raises(DataError, match=r"n_items to 3 or less \(--augment-set n_items=3\)"):
        DiffuASR(n_items=10, condition="published").fit(log)
    # of those who are conditioned on their first item alone
    with pytest.raises(DataError, match=r"n_items \+ 1 = 11 training items, and 4 have them"):
        DiffuASR(n_items=10).fit(log)
    for settings in ({}, {"n_items": 1}):
        with pytest.raises(DataError, match="use a log with longer histories"):
            DiffuASR(**settings).fit(SequenceDataset.from_lists([[1]] * 50))


@pytest.mark.parametrize(
    "lengths, n_items",
    [
        ([20] * 12, 10),
        ([6] * 12, 3),
        ([4] * 30, 1),
        ([9] * 10 + [6] * 90, 6),  # ten are enough in a log of 100
        ([9] * 100 + [6] * 1100, 6),  # and a hundred in a large one
        pytest.param([9] * 99 + [6] * 1101, 3, marks=pytest.mark.slow),
    ],
)
def test_the_number_of_items_fits_the_histories(
    lengths, n_items, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = SequenceDataset.from_lists([[step % 7 + 1 for step in range(n)] for n in lengths])
    quick = {"condition": "published", "dim": 64, "epochs": 1, "batch_size": 4096}
    quick |= {"item_embedding": "scratch", "num_inference_steps": 1}
    model = DiffuASR(**quick).fit(log, runtime=Runtime(seed=2))
    assert model.config.n_items == n_items
    said = f"n_items {n_items} instead of 10" in capsys.readouterr().err
    assert said == (n_items < 10)
    few = log.select(np.arange(10))
    made = model.augment(few)
    assert (made.lengths - few.lengths).tolist() == [n_items] * 10
    model.save(tmp_path / "model")
    assert np.array_equal(load_augmenter(tmp_path / "model").augment(few).items, made.items)
    named = DiffuASR(**quick, n_items=n_items).fit(log, runtime=Runtime(seed=2))
    assert named.config == model.config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 32}, "square of a multiple of 8"),
        ({"num_inference_steps": 1001}, "more than the 1000 steps there are"),
        ({"num_train_timesteps": 10, "num_inference_steps": 5}, "outside"),
        ({"cond_dropout": 0.0}, "needs a trained null condition"),
        ({"n_items": 51}, "more than max_len 50"),
        ({"n_heads": 3}, "not divisible by n_heads"),
        ({"guidance_in_training": True, "guidance": "classifier"}, "prediction_type='epsilon'"),
        ({"guidance": "clasifier"}, "guidance"),
        ({"guidance_scales": 1.0}, "did you mean 'guidance_scale'"),
        ({"eta": 1.0, "sampler": "dpm_solver"}, "eta = 1.0 has no effect .* sampler = 'ddim'"),
        ({"label": "last"}, "label .* no effect .* needs guidance = 'classifier'"),
        ({"guidance_at": "x_0"}, "guidance_at .* no effect"),
        ({"classifier_loss": "bce"}, "classifier_loss .* no effect"),
        ({"guidance": "none", "guidance_scale": 2.0}, "guidance_scale .* no effect"),
        ({"guidance": "none", "guidance_in_training": True}, "guidance_in_training .* no effect"),
        ({"item_embedding": "scratch", "centered": False}, "centered .* no effect"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffuASR(**settings)


def test_use_before_fitting_and_on_another_catalog(trained: DiffuASR) -> None:
    log = SequenceDataset.from_lists([[1, 2, 3]])
    with pytest.raises(ConfigError, match="not fitted"):
        DiffuASR().augment(log)
    with pytest.raises(DataError, match="knows 40 items and the dataset has 3"):
        trained.augment(log)


def test_queries_are_augmented_as_any_histories(trained: DiffuASR, split: Split) -> None:
    longer = trained.augment(split.valid.histories, 4)
    assert np.array_equal(longer.real().items, split.valid.histories.items)
    # the same users and histories as in training: the same items
    assert np.array_equal(prefixes(longer), prefixes(trained.augment(split.train, 4)))
    assert isinstance(Queries(longer, split.valid.targets).histories, SequenceDataset)
