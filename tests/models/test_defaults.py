"""Defaults that follow from the log: the documented rule, and that what was given holds."""

from pathlib import Path

import polars as pl
import pytest

import diffuserec as dr
from diffuserec.data import Catalog
from diffuserec.models.config import by_log
from diffuserec.models.methods import preset_of
from diffuserec.studies.study import Study, lines
from diffuserec.studies.study_file import read_study

SMALL = {"dim": 8, "n_layers": 1, "epochs": 1}


def log(n_users: int, length: int, n_items: int) -> dr.SequenceDataset:
    lists = [[1 + (u + p) % n_items for p in range(length)] for u in range(n_users)]
    return dr.SequenceDataset.from_lists(lists)


@pytest.mark.parametrize(
    ("n_users", "length", "n_items", "expected"),
    [
        (20, 10, 30, {"max_len": 50, "dropout": 0.5, "examples": "per_user"}),
        (20, 51, 30, {"max_len": 100, "dropout": 0.5, "examples": "per_user"}),
        (20, 150, 30, {"max_len": 150, "dropout": 0.2, "examples": "per_user"}),
        (20, 210, 3000, {"max_len": 200, "dropout": 0.5, "examples": "per_user"}),
        (20, 240, 3000, {"max_len": 200, "dropout": 0.5, "examples": "windows"}),
    ],
)
def test_the_documented_rule(n_users: int, length: int, n_items: int, expected: dict) -> None:
    found = dr.SASRec().given.suited_to(log(n_users, length, n_items))
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(("n_users", "expected"), [(20, 16), (9700, 32), (19300, 64)])
def test_an_epoch_has_batches_enough(n_users: int, expected: int) -> None:
    few = log(n_users, 3, 30)
    assert dr.SASRec().given.suited_to(few).batch_size == expected
    assert dr.DiffRec().given.suited_to(few).batch_size == expected


@pytest.mark.parametrize("name", ["cl4srec", "cadirec", "simdiffrec", "bert4rec", "s3rec"])
def test_who_contrasts_or_masks_keeps_batches_and_examples(name: str) -> None:
    method = dr.find_recommender(name)
    assert not {"batch_size", "examples"} & {*by_log(method.Config)}
    assert method().given.suited_to(log(20, 240, 3000)).max_len == 200


@pytest.mark.parametrize("n_items", [100_000, 100_001])
def test_many_items_are_learned_by_negatives(n_items: int) -> None:
    lists = [[1, 2, 3], [2, 3, 1]]
    catalog = Catalog(pl.Series("item_id", range(n_items)), 2)
    few = dr.SequenceDataset.from_lists(lists, catalog)
    many = n_items > 100_000
    found = dr.SASRec().given.suited_to(few)
    assert found.loss == ("sampled_softmax" if many else "softmax")
    assert found.negatives == ("mixed" if many else "uniform")
    assert dr.SASRec(loss="softmax").given.suited_to(few).loss == "softmax"
    kept = dr.SASRec(loss="sampled_softmax", negatives="popularity").given.suited_to(few)
    assert kept.negatives == "popularity"
    esasrec, gsasrec = (dr.find_recommender(name)().given for name in ("esasrec", "gsasrec"))
    assert esasrec.suited_to(few).negatives == ("mixed" if many else "uniform")
    assert gsasrec.suited_to(few).loss == "gbce"


def test_items_of_an_augmenter_are_not_counted() -> None:
    real = log(20, 46, 60)
    longer = dr.find_augmenter("random")(n_items=10).fit(real).augment(real)
    assert dr.SASRec(**SMALL).fit(longer).config.max_len == 50
    assert longer.lengths.max() > 50


def test_parts_of_a_method_follow_the_log_and_are_loaded_as_they_were(tmp_path: Path) -> None:
    long = log(6, 60, 70)
    blend = dr.Blend(parts=("sasrec", "markov"), settings={"sasrec": SMALL}).fit(long)
    blend.save(tmp_path / "blend")
    again = dr.load(tmp_path / "blend")
    assert again.config == blend.config
    assert again.config.settings["sasrec"]["max_len"] == 100
    assert again.config.comes_of(
        dr.Blend(parts=("sasrec", "markov"), settings={"sasrec": SMALL}).given
    )
    assert not again.config.comes_of(
        dr.Blend(parts=("sasrec", "markov"), settings={"sasrec": SMALL | {"dim": 16}}).given
    )
    reverse = dr.find_augmenter("asrep")(model_settings=SMALL).fit(long)
    reverse.save(tmp_path / "asrep")
    assert dr.load_augmenter(tmp_path / "asrep").config.model_settings["max_len"] == 100


def test_settings_as_published_leave_nothing_to_the_log() -> None:
    for name in ("bsarec", "simdiffrec", "fmlprec"):
        method = dr.find_recommender(name)
        assert {*by_log(method.Config)} <= {*preset_of(method, None)[0]}
    given = dr.BSARec(**preset_of(dr.BSARec, None)[0]).given
    assert given.suited_to(log(20, 240, 30)) == given


def test_what_was_given_holds_and_the_rest_follows_from_it() -> None:
    long = log(20, 240, 20)
    given = dr.SASRec(max_len=50, dropout=0.5, examples="per_user", batch_size=64).given
    assert given.suited_to(long) == given
    shorter = dr.SASRec(max_len=200, dropout=0.5).given.suited_to(log(20, 240, 3000))
    assert (shorter.max_len, shorter.examples) == (200, "windows")


def test_a_default_of_the_method_itself_is_no_rule_of_the_log() -> None:
    assert "dropout" not in by_log(dr.ESASRec.Config)
    assert dr.ESASRec().given.suited_to(log(20, 10, 30)).dropout == 0.2


def test_a_fit_takes_them_and_a_saved_model_keeps_them(tmp_path: Path) -> None:
    model = dr.SASRec(**SMALL).fit(log(6, 60, 70))
    assert model.config.max_len == 100
    assert dr.SASRec(**SMALL).config.max_len == 50
    model.save(tmp_path / "model")
    assert dr.load(tmp_path / "model").config == model.config
    assert model.fit(log(6, 10, 70)).config.max_len == 50  # another log, its own defaults


def test_a_study_tells_a_given_default_from_one_that_was_left(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        'title = "t"\ndata = ["store"]\nfloors = []\n[[rows]]\nname = "a"\nmodel = "sasrec"\n'
        '[[rows]]\nname = "b"\nmodel = "sasrec"\nsettings = { max_len = 50, dim = 64 }\n',
        encoding="utf-8",
    )
    left, given = lines(read_study(file, Study))
    assert (left.plan.settings, given.plan.settings) == ({}, {"max_len": 50})
    identities = [dr.SASRec(**line.plan.settings).config.identity() for line in (left, given)]
    assert [identity["max_len"] for identity in identities] == ["by the log, rule 1", 50]
