"""The example package as diffuserec finds it: by the names of its entry points."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import diffuserec as dr
from diffuserec.cli import app
from diffuserec.data import Store
from diffuserec.models.encoders import ENCODERS

SMALL = {"dim": 16, "max_len": 8, "epochs": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def split() -> dr.Split:
    return dr.leave_one_out(Store(n_users=120, n_items=60, seed=0).dataset())


def test_the_parts_are_found_by_name() -> None:
    assert {"fadingrec"} <= set(dr.method_names("recommender"))
    assert {"insertbetween"} <= set(dr.method_names("augmenter"))
    assert dr.FadingRec.__module__ == "diffuserec_example.fadingrec"
    assert "FadingRec" in dir(dr)


@torch.no_grad()
def test_a_memory_fades() -> None:
    """The recursion of the encoder, step by step, and what it makes of a sequence's beginning."""
    kind = ENCODERS.find("fading")
    encoder = kind(4, 6, 0.0, kind.Config(widening=2))
    encoder.reset_parameters()
    x = torch.randn(1, 6, 4)
    memory, states = torch.zeros(4), encoder(x, torch.tensor([6]))[0]
    for t in range(6):
        memory = encoder.logits.sigmoid() * memory + x[0, t]
        normed = encoder.norm_memory(memory)
        passed = encoder.narrow(F.gelu(encoder.widen(normed)))
        torch.testing.assert_close(states[t], encoder.norm(normed + passed))
    torch.testing.assert_close(encoder(x[:, :3], torch.tensor([3]))[0], states[:3])


def test_fadingrec_learns_is_saved_and_loaded(split: dr.Split, tmp_path: Path) -> None:
    model = dr.FadingRec(**SMALL | {"epochs": 15, "learning_rate": 0.01}).fit(split.train)
    assert model.curve[-1].loss < model.curve[0].loss - 0.1
    model.save(tmp_path / "model")
    again = dr.load(tmp_path / "model")
    history = [split.train.catalog.decode(split.test.histories[0])]
    assert again.recommend(history).equals(model.recommend(history))


def test_other_methods_take_the_encoder(split: dr.Split) -> None:
    settings = {"dim": 8, "max_len": 8, "epochs": 1, "encoder_settings": {"widening": 1}}
    for name in ("sasrec", "cl4srec"):
        dr.find_recommender(name)(encoder="fading", **settings).fit(split.train)


def test_an_item_is_followed_by_what_most_often_followed_it() -> None:
    train = dr.SequenceDataset.from_lists([[1, 2, 3], [1, 2, 3], [1, 4, 3], [5, 1]])
    augmenter = dr.InsertBetween(chance=1.0).fit(train)
    asked = dr.SequenceDataset.from_lists([[5, 1, 3, 2], [3, 1], []], train.catalog)
    longer = augmenter.augment(asked)
    assert [sequence.tolist() for sequence in longer] == [[5, 1, 1, 2, 3, 2], [3, 1], []]
    assert longer.synthetic.tolist() == [False, True, False, True, False, False, False, False]
    for mine, theirs in zip(longer.real(), asked, strict=True):
        assert mine.tolist() == theirs.tolist()


def test_what_is_inserted_depends_on_earlier_items_alone(split: dr.Split) -> None:
    augmenter = dr.InsertBetween(chance=0.5).fit(split.train)
    whole = split.test.histories.compact()
    shorter = whole.view(whole.starts, whole.ends - 1)
    for mine, theirs in zip(augmenter.augment(shorter), augmenter.augment(whole), strict=True):
        assert mine.tolist() == theirs[: len(mine)].tolist()


def test_the_loss_of_bpr_by_hand(split: dr.Split) -> None:
    model = dr.SASRec(**SMALL, loss="bpr").fit(split.train)
    assert model.curve[0].loss == pytest.approx(math.log(2), abs=0.2)
    with pytest.raises(dr.ConfigError, match=r"gbce_t = 0\.5 has no effect"):
        dr.SASRec(loss="bpr", gbce_t=0.5)


def test_rank_biased_precision(split: dr.Split) -> None:
    model = dr.find_recommender("popularity")().fit(split.train)
    result = dr.evaluate(model, split.test, metrics=["RBP@10"])
    ranks = result.per_user["target_rank"].to_numpy()
    expected = np.where(ranks < 10, 0.2 * 0.8**ranks, 0.0)
    assert result.metrics["RBP@10"] == pytest.approx(expected.mean())


def test_a_log_of_baskets(tmp_path: Path) -> None:
    file = tmp_path / "log.baskets"
    file.write_text("ann: B1, B2, B3\nbob: B2\n", encoding="utf-8")
    dataset = dr.read_log(file).to_dataset()
    ids = [dataset.catalog.decode(sequence) for sequence in dataset]
    assert ids == [["B1", "B2", "B3"], ["B2"]]


def test_on_the_command_line(split: dr.Split, tmp_path: Path) -> None:
    Store(n_users=60, n_items=40, seed=1).dataset().save(tmp_path / "data")
    run = tmp_path / "run"
    settings = [f"--set={name}={value}" for name, value in SMALL.items()]
    methods = ["--model", "fadingrec", "--augment", "insertbetween"]
    trained = CliRunner().invoke(
        app,
        ["train", str(tmp_path / "data"), "--out", str(run), *methods, *settings],
    )
    assert trained.exit_code == 0, trained.output
    measured = CliRunner().invoke(app, ["evaluate", str(run), "--metric", "RBP@10"])
    assert measured.exit_code == 0, measured.output
    assert "RBP@10" in measured.output
    item = split.train.catalog.item_ids[0]
    asked = CliRunner().invoke(app, ["recommend", str(run), "--history", str(item), "-k", "3"])
    assert asked.exit_code == 0, asked.output
