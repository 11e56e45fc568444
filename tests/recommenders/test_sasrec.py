"""SASRec learns what can be learned, refuses what cannot be, and scores everyone alike."""

import copy
import inspect

import numpy as np
import pytest
import torch

from diffuserec import Runtime
from diffuserec.data import SequenceDataset, histories_of, leave_one_out
from diffuserec.models.retrieval import rank_of, seen_items
from diffuserec.recommenders.sasrec import SASRec

from .oracles import assert_refused

SMALL = {
    "dim": 16,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "learning_rate": 0.02,
    "batch_size": 16,
    "epochs": 20,
}


def hit_share(model: SASRec, split, hidden: bool = True) -> float:
    """HR@1 over all items, those of the history hidden or not."""
    index = np.arange(len(split.test))
    scorer = model.scorer(histories_of(split.test.histories, index))
    seen = seen_items(split.test.histories, index) if hidden else None
    ranks = rank_of(scorer, torch.from_numpy(split.test.targets), seen)
    return float((ranks == 0).double().mean())


# enough of each loss for a catalog of 20 items: bce and gbce learn from few negatives, slowly
ENOUGH = {
    "softmax": {"epochs": 12},
    "bce": {"epochs": 40},
    "gbce": {"epochs": 40, "n_negatives": 2},
    "sampled_softmax": {"epochs": 20, "n_negatives": 10},
}


@pytest.mark.parametrize("loss", ENOUGH)
def test_every_loss_learns_the_cycle(cycle: SequenceDataset, loss) -> None:
    split = leave_one_out(cycle)
    begin = SASRec(**SMALL | {"epochs": 1, "learning_rate": 1e-9}).fit(split.train)
    assert hit_share(begin, split) < 0.5
    model = SASRec(**SMALL | ENOUGH[loss], loss=loss).fit(split.train)
    assert hit_share(model, split) == 1.0
    # a user's own items are never negatives of bce, so that nothing pushes them down
    if loss != "bce":
        assert hit_share(model, split, hidden=False) > 0.9
    assert not model.table.embeddings()[0].any()
    assert model.curve[-1].loss < model.curve[0].loss


@pytest.mark.parametrize(
    "settings",
    [
        {"n_layers": 2, "dropout": 0.1},
        {"max_len": 2},
        {"loss": "gbce", "gbce_t": 0.0},
        {"encoder": "gru"},
        {"encoder": "caser", "encoder_settings": {"window": 3}},
    ],
    ids=str,
)
def test_variants_learn_the_cycle(cycle: SequenceDataset, settings) -> None:
    split = leave_one_out(cycle)
    enough = ENOUGH[settings.get("loss", "softmax")] | {"epochs": 40}
    chosen = SMALL | enough | settings
    if "encoder" in settings:
        chosen = {k: v for k, v in chosen.items() if k not in ("n_layers", "n_heads")}
    assert hit_share(SASRec(**chosen).fit(split.train), split) == 1.0


@pytest.mark.parametrize("loss", ENOUGH)
def test_every_loss_learns_in_bfloat16(cycle: SequenceDataset, loss) -> None:
    split = leave_one_out(cycle)
    model = SASRec(**SMALL | ENOUGH[loss], loss=loss).fit(
        split.train, runtime=Runtime(precision="bf16")
    )
    assert hit_share(model, split) == 1.0
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_default_numbers_of_negatives_are_enough_for_a_small_catalog(cycle) -> None:
    for loss in ("bce", "gbce", "sampled_softmax"):
        model = SASRec(**SMALL | {"epochs": 1}, loss=loss).fit(cycle)
        assert np.isfinite(model.curve[0].loss)


def test_every_epoch_is_validated(cycle) -> None:
    split = leave_one_out(cycle)
    model = SASRec(**SMALL | {"epochs": 3}).fit(split.train, split.valid)
    assert [record.valid is not None for record in model.curve] == [True] * 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dim": 10, "n_heads": 4}, "dim 10 is not divisible by n_heads 4"),
        (
            {"dmi": 10},
            r"SASRec has no setting 'dmi' \(did you mean 'dim'\?\); it has: .*learning_rate",
        ),
        ({"learningrate": 1}, "did you mean 'learning_rate'"),
        ({"zzz": 1}, r"no setting 'zzz'; it has"),
        ({"dim": "wide"}, "SASRec: dim: must be a whole number, got 'wide'"),
        (
            {"loss": "cross"},
            "SASRec: loss: no loss 'cross'.*; there are: bce, .*gbce, sampled_softmax, softmax",
        ),
        ({"dropout": 1.0}, "SASRec: dropout: .*less than 1, got 1.0"),
        ({"n_layers": 0}, "SASRec: n_layers: .*greater than or equal to 1"),
        ({"learning_rate": -1.0}, "SASRec: learning_rate"),
        ({"epochs": 1.5}, "SASRec: epochs: .*got 1.5"),
        ({"dim": None}, "SASRec: dim: .*got None"),
        ({"n_negatives": 3}, "n_negatives = 3 has no effect with loss = 'softmax'"),
        ({"gbce_t": 0.5, "loss": "bce"}, "gbce_t = 0.5 has no effect with loss = 'bce'"),
        ({"encoder": "gru", "n_heads": 1}, "n_heads = 1 has no effect with encoder = 'gru'"),
        ({"encoder": "lstm"}, "no encoder 'lstm'"),
        ({"encoder": "gru", "encoder_settings": {"units": 3}}, "gru has no setting 'units'"),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(SASRec, settings, message)


def test_the_documented_defaults() -> None:
    config = SASRec().config
    assert (config.dim, config.max_len, config.n_layers, config.n_heads) == (64, 50, 2, 2)
    assert (config.loss, config.dropout, config.learning_rate) == ("softmax", 0.5, 1e-3)
    assert inspect.signature(SASRec).parameters.keys() == SASRec.Config.model_fields.keys()


@pytest.fixture(scope="module")
def fitted(random_log: SequenceDataset) -> SASRec:
    return SASRec(dim=8, n_layers=2, epochs=2, max_len=6, dropout=0.3).fit(random_log)


def test_a_batch_of_one_scores_as_in_a_larger_batch(fitted, random_log) -> None:
    together = fitted.score(histories_of(random_log, np.arange(len(random_log))))
    assert together.shape == (len(random_log), random_log.vocab_size)
    for row in range(len(random_log)):
        alone = fitted.score(histories_of(random_log, np.array([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-6)


def test_a_long_history_is_its_newest_items(fitted, random_log) -> None:
    index = np.arange(len(random_log))
    assert int(random_log.lengths.max()) > 6
    whole = fitted.score(histories_of(random_log, index))
    newest = fitted.score(histories_of(random_log, index, max_len=6))
    torch.testing.assert_close(whole, newest, rtol=1e-4, atol=1e-6)
    shorter = fitted.score(histories_of(random_log, index, max_len=5))
    assert (whole - shorter).abs().max() > 1e-5  # and the sixth counts


def test_the_order_of_a_history_counts(fitted) -> None:
    two = SequenceDataset.from_lists([[1, 2, 3], [2, 1, 3]], fitted.catalog)
    model = copy.deepcopy(fitted)
    torch.nn.init.normal_(model.encoder.distances.weight)  # as large as they become in training
    scores = model.score(histories_of(two, np.arange(2)))
    assert (scores[0] - scores[1]).abs().max() > 1e-6


def test_scores_are_products_with_the_tied_table(fitted) -> None:
    one = SequenceDataset.from_lists([[4, 7]], fitted.catalog)
    vectors = fitted.table.vectors.weight.detach()
    state = fitted.encoder(vectors[[4, 7]][None], torch.tensor([2]))[0, 1]
    expected = torch.stack([state @ vector for vector in vectors])
    torch.testing.assert_close(fitted.score(histories_of(one, np.arange(1)))[0], expected)
