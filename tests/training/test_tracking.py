"""Trackers are told of epochs and results; whatever happens to them, training goes on."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from diffuserec import ConfigError, Runtime, Store, leave_one_out
from diffuserec.models.base import Epoch
from diffuserec.recommenders.blend import Blend
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.training.tracking import TRACKERS, Tracking

LINE = "full ranking, seen hidden"


def tell(trackers: list[str], epochs: range, directory: Path | None) -> None:
    with Tracking(trackers, "mine", {"dim": 64, "kind": None}, directory) as tracking:
        for number in epochs:
            valid = None if number == 0 else number / 10
            tracking(Epoch("fit", number, 1.0 / (1 + number), valid, 2.0, {"cosine": 0.5}))
        tracking.results("test", {"NDCG@10": 0.25}, LINE)


def read_tensorboard(directory: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Numbers with their steps, and the last of each text, by name."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory))
    read.Reload()
    found = {
        name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]
    }
    texts = {
        name.removesuffix("/text_summary"): read.Tensors(name)[-1]
        .tensor_proto.string_val[0]
        .decode()
        for name in read.Tags()["tensors"]
    }
    return found, texts


def test_tensorboard_has_every_epoch_of_a_continued_run_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tell(["tensorboard"], range(2), tmp_path)
    tell(["tensorboard"], range(2, 3), tmp_path)
    found, texts = read_tensorboard(tmp_path / "tensorboard")
    assert found["fit/loss"] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert [step for step, _ in found["fit/valid"]] == [1, 2]
    assert found["test/NDCG@10"][-1] == (0, 0.25)
    assert {"fit/seconds", "fit/cosine"} <= found.keys()
    assert texts["test/protocol"] == LINE
    assert "dim: 64" in texts["settings"]


def test_a_run_that_begins_anew_hides_an_older_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    spec = f"tensorboard:{tmp_path}"
    tell([spec], range(3), None)
    tell([spec], range(1), None)
    assert read_tensorboard(tmp_path / "mine")[0]["fit/loss"] == [(0, 1.0)]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_continues_a_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    tell([f"mlflow:{uri}"], range(2), tmp_path)
    tell([f"mlflow:{uri}"], range(2, 3), tmp_path)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("diffuserec").experiment_id
    (run,) = client.search_runs([experiment])
    steps = client.get_metric_history(run.info.run_id, "fit/loss")
    assert [(metric.step, metric.value) for metric in steps][:2] == [(0, 1.0), (1, 0.5)]
    assert len(steps) == 3
    assert run.data.metrics["test/NDCG_10"] == 0.25
    assert run.data.params["dim"] == "64"
    assert run.data.tags["test/protocol"] == LINE
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")


@pytest.mark.filterwarnings("ignore")
def test_trackio_continues_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    tell(["trackio:shop"], range(2), tmp_path)
    tell(["trackio:shop"], range(2, 3), tmp_path)
    with closing(sqlite3.connect(tmp_path / "trackio" / "shop.db")) as stored:
        rows = stored.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == {"mine"}
    logged = [json.loads(metrics) for _, metrics in rows]
    assert sum("fit/loss" in numbers for numbers in logged) == 3
    assert {"test/protocol": LINE} in logged


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    log = leave_one_out(Store(n_users=60, n_items=40).dataset())
    epochs: list[Epoch] = []
    good = f"tensorboard:{tmp_path / 'good'}"

    def told(epoch: Epoch) -> None:
        epochs.append(epoch)
        tracking(epoch)

    tracking = Tracking([f"tensorboard:{tmp_path / 'file'}", good], "mine")
    with pytest.warns(UserWarning, match="file is not told of mine any more") as said:
        tracking.__enter__()
    SASRec(dim=8, epochs=2).fit(log.train, log.valid, Runtime(on_epoch=told))
    tracking.__exit__(None, None, None)
    assert len(said) == 1
    assert len(epochs) == 2
    assert len(read_tensorboard(tmp_path / "good" / "mine")[0]["fit/loss"]) == 2


def test_unknown_and_missing_trackers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no tracker 'tensorbord' \(did you mean 'tensorboard'"):
        Tracking(["tensorbord:x"], "mine")
    for name, kind in TRACKERS.items():
        try:
            __import__(kind.package)
        except ImportError:
            with pytest.raises(ConfigError, match=rf"pip install 'diffuserec\[{name}\]'"):
                Tracking([name], "mine")


def test_the_hook_hears_the_phases_of_the_curve() -> None:
    log = leave_one_out(Store(n_users=60, n_items=40).dataset())
    heard: list[Epoch] = []
    tiny = {"dim": 8, "epochs": 1}
    model = Blend(parts=("sasrec", "gru4rec"), settings={"sasrec": tiny, "gru4rec": tiny})
    model.fit(log.train, log.valid, Runtime(on_epoch=heard.append))
    assert heard == model.curve
    assert [epoch.phase for epoch in heard] == ["sasrec: fit", "gru4rec: fit"]
