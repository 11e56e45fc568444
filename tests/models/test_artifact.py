"""Models on disk: the same scores after loading, and nothing foreign, damaged or pickled opened."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffuserec.augmenters.random import Random
from diffuserec.data import Catalog, SequenceDataset, histories_of
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.methods import load, load_augmenter
from diffuserec.models.recommender import ScoreRecommender
from diffuserec.recommenders.popularity import Popularity
from diffuserec.recommenders.sasrec import SASRec

from ..bundles import edit, part, sign

PARTS = ["weights.safetensors", "items.parquet"]


def named(log: SequenceDataset) -> SequenceDataset:
    """The same log with string ids, attributes and user ids."""
    names = [f"item-{n:02d}-é" for n in range(log.catalog.n_items)]
    catalog = Catalog(
        pl.Series("item_id", names),
        log.catalog.n_users,
        user_ids=pl.Series("user_id", [f"secret-{n}" for n in range(log.catalog.n_users)]),
        attributes=pl.DataFrame({"category": [n % 3 for n in range(len(names))]}),
    )
    return SequenceDataset.from_offsets(log.items, log.offsets, catalog)


@pytest.fixture(scope="module")
def fitted(random_log: SequenceDataset) -> SASRec:
    return SASRec(dim=8, epochs=1, n_layers=1, max_len=7).fit(named(random_log))


@pytest.fixture
def saved(fitted: SASRec, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_model_scores_the_same(fitted, saved, random_log, tmp_path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(saved, moved)
    loaded = load(moved)
    assert type(loaded) is SASRec
    assert loaded.config == fitted.config
    assert not loaded.training
    histories = histories_of(random_log, np.arange(len(random_log)))
    assert torch.equal(loaded.score(histories), fitted.score(histories))
    asked = [["item-03-é", "item-20-é"], [], ["nobody knows it"]]
    assert loaded.recommend(asked, 4).equals(fitted.recommend(asked, 4))
    assert loaded.catalog.attributes.equals(fitted.catalog.attributes)


def test_a_model_directory_holds_these_files_and_no_users(saved) -> None:
    files = {saved / "manifest.json", *(part(saved, name) for name in PARTS)}
    assert set(saved.iterdir()) == files
    assert all(b"secret" not in file.read_bytes() for file in files)
    assert load(saved).catalog.user_ids is None
    manifest = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["kind"], manifest["name"]) == ("recommender", "sasrec")
    assert manifest["config"]["dim"] == 8


@pytest.mark.skipif(os.name == "nt", reason="rights of files are another matter there")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_of_a_model_have_the_rights_of_new_files(fitted, tmp_path, mask) -> None:
    before = os.umask(mask)
    try:
        fitted.save(tmp_path / "model")
    finally:
        os.umask(before)
    rights = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert rights == dict.fromkeys(rights, 0o666 & ~mask)


def test_another_process_without_the_data_scores_the_same(fitted, saved) -> None:
    asked = [["item-03-é", "item-20-é"]]
    program = (
        "import sys, json; import diffuserec; model = diffuserec.load(sys.argv[1]);"
        "print(json.dumps(model.recommend(json.loads(sys.argv[2]), 5)['item_id'].to_list()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(saved), json.dumps(asked)],
        capture_output=True,
        check=True,
        cwd=saved.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert json.loads(answer.stdout) == fitted.recommend(asked, 5)["item_id"].to_list()


def test_loading_leaves_the_callers_random_numbers_alone(saved) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unfitted_model_is_not_saved(tmp_path) -> None:
    with pytest.raises(ConfigError, match="SASRec is not fitted"):
        SASRec().save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("place", [0, 200, -1])
def test_a_changed_byte_is_noticed(saved, name, place) -> None:
    path = part(saved, name)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{path.name} is damaged \(it does not match its checksum"
    ):
        load(saved)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_file_is_named(saved, name) -> None:
    path = part(saved, name)
    path.unlink()
    with pytest.raises(DataError, match=f"it lacks {path.name}"):
        load(saved)


def test_a_missing_manifest_is_named(saved) -> None:
    (saved / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        load(saved)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "somebody-elses"}, "not a saved model"),
        ({"format": None}, "not a saved model"),
        ({"version": 3}, "model version 3, this release reads 4: train it again"),
        ({"version": 5}, "model version 5, this release reads 4: install the release that wrote"),
        ({"version": True}, "model version True, this release reads 4"),
        ({"files": None}, "lacks files"),
        ({"kind": None, "name": None}, "lacks kind, name"),
        ({"files": {}}, "files names others than there should be"),
    ],
)
def test_a_foreign_manifest_is_refused(saved, changes, message) -> None:
    edit(saved, **changes)
    with pytest.raises(DataError, match=message):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_manifest_is_refused(saved, content) -> None:
    (saved / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="not a saved model"):
        load(saved)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "sasrek"}, r"no recommender 'sasrek' \(did you mean 'sasrec'\?\)"),
        ({"name": "../sasrec"}, "no recommender"),
        ({"name": "os"}, "no recommender"),
        ({"name": "diffuserec.recommenders.sasrec"}, "no recommender"),
        ({"kind": "augmenter"}, "holds the augmenter 'sasrec': read it with load_augmenter"),
        ({"kind": "evaluator"}, "holds the evaluator 'sasrec'"),
    ],
)
def test_an_unknown_method_is_named(saved, changes, message) -> None:
    edit(saved, **changes)
    with pytest.raises(ConfigError, match=message):
        load(saved)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"dimm": 3}, "no setting 'dimm'"),
        ({"dim": 16}, "is torch.float32 of shape"),
        ({"dim": 10**12, "n_heads": 1}, "overflowed"),
        ({"max_len": 10**9}, "distances"),
        ({"max_len": 10**15}, "distances"),
        ({"max_len": 10**30}, ""),
        ({"n_layers": 2}, "is missing"),
        ({"encoder": "gru"}, ""),
        ({"dim": -8}, "dim"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_weights_are_refused_at_once(saved, setting, message) -> None:
    config = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))["config"] | setting
    edit(saved, config=config)
    with pytest.raises(DataError, match=f"manifest.json.*weights do not fit.*({message})"):
        load(saved)


def test_a_setting_changed_by_hand_is_noticed(saved) -> None:
    file = saved / "manifest.json"
    file.write_text(
        file.read_text(encoding="utf-8").replace('"n_heads": 2', '"n_heads": 4'), encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"manifest\.json is damaged \(it does not match its own"):
        load(saved)


def test_recommenders_and_augmenters_are_read_by_functions_of_their_own(
    saved, random_log, tmp_path
) -> None:
    with pytest.raises(ConfigError, match=r"holds the recommender 'sasrec': read it with load$"):
        load_augmenter(saved)
    Random().fit(random_log).save(tmp_path / "augmenter")
    assert type(load_augmenter(tmp_path / "augmenter")) is Random
    with pytest.raises(ConfigError, match="holds the augmenter 'random': read it with load_augm"):
        load(tmp_path / "augmenter")


class Constant(ScoreRecommender):
    """A method that nobody registered."""

    def build(self, catalog):
        pass

    def learn(self, train, valid, runtime):
        return []

    def all_scores(self, histories):
        return torch.zeros(len(histories.users), self.catalog.vocab_size)


def test_what_could_not_be_loaded_is_not_saved(random_log, saved) -> None:
    with pytest.raises(
        ConfigError, match=r"^Constant could not be loaded again: register it first"
    ):
        Constant().fit(random_log).save(saved)
    assert type(load(saved)) is SASRec


@pytest.mark.parametrize("extra", ["foreign", "encoder.foreign", "nowhere.weight"])
def test_weights_with_a_tensor_too_many_are_refused(saved, extra) -> None:
    tensors = load_file(part(saved, PARTS[0]))
    save_file(tensors | {extra: torch.ones(1)}, part(saved, PARTS[0]))
    sign(saved)
    with pytest.raises(DataError, match="weights do not fit"):
        load(saved)


def test_weights_with_a_tensor_too_few_are_refused(saved) -> None:
    tensors = load_file(part(saved, PARTS[0]))
    del tensors["encoder.norm.weight"]
    save_file(tensors, part(saved, PARTS[0]))
    sign(saved)
    with pytest.raises(DataError, match="weights do not fit"):
        load(saved)


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(DataError, match="not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no manifest\.json"):
        load(tmp_path)


class Opened:
    """Leaves a directory behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def payload(trace: Path, how: str) -> bytes:
    if how == "pickle":
        return pickle.dumps(Opened(trace))
    path = trace.with_name("weights.pt")
    torch.save(Opened(trace), path)
    return path.read_bytes()


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_the_pickles_here_are_live(tmp_path, how) -> None:
    path = tmp_path / "live"
    path.write_bytes(payload(tmp_path / "trace", how))
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("how", ["pickle", "torch"])
@pytest.mark.parametrize("name", PARTS)
def test_a_pickle_with_a_matching_checksum_is_refused_unopened(saved, tmp_path, how, name) -> None:
    trace = tmp_path / "trace"
    part(saved, name).write_bytes(payload(trace, how))
    sign(saved)
    with pytest.raises(DataError, match="cannot be read"):
        load(saved)
    assert not trace.exists()


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_place_of_a_directory_is_refused_unopened(tmp_path, how) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "model.pt"
    path.write_bytes(payload(trace, how))
    with pytest.raises(DataError, match=r"is a file.*pickles are never opened"):
        load(path)
    assert not trace.exists()


def test_saving_over_an_older_model_replaces_it(saved, random_log) -> None:
    Popularity().fit(random_log).save(saved)
    assert type(load(saved)) is Popularity
    assert len(list(saved.iterdir())) == 3
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("owner, name", [(pl.DataFrame, "write_parquet"), (os, "fsync")])
def test_a_failed_save_leaves_the_older_model(saved, random_log, monkeypatch, owner, name) -> None:
    def fails(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(DataError, match="cannot be written: disk full"):
            Popularity().fit(random_log).save(saved)
    assert type(load(saved)) is SASRec
    # and what it left behind is no obstacle
    Popularity().fit(random_log).save(saved)
    assert type(load(saved)) is Popularity
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_nothing_foreign_is_written_over(fitted, random_log, tmp_path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("cat", encoding="utf-8")
    file = tmp_path / "file"
    file.write_text("text", encoding="utf-8")
    random_log.save(tmp_path / "data")  # it has a manifest.json, but it is no model
    for path in (photos, file, tmp_path / "data"):
        with pytest.raises(DataError, match="exists and is not a saved model"):
            fitted.save(path)
    assert (photos / "cat.jpg").read_text(encoding="utf-8") == "cat"
    assert file.read_text(encoding="utf-8") == "text"
    assert part(tmp_path / "data", "items.npy").exists()


def test_a_model_directory_with_somebodys_notes_is_not_replaced(saved, fitted) -> None:
    (saved / "notes.txt").write_text("the good one", encoding="utf-8")
    with pytest.raises(DataError, match=r"notes\.txt"):
        fitted.save(saved)
    assert (saved / "notes.txt").read_text(encoding="utf-8") == "the good one"
    assert type(load(saved)) is SASRec
