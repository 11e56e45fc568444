"""Sensitivity studies through the command line."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from diffuserec import Store, cli, evaluate, load
from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.base import Runtime
from diffuserec.models.methods import find_recommender
from diffuserec.reports.sensitivity import draw_svg, plot_sensitivity
from diffuserec.studies.run_directory import open_run
from diffuserec.studies.sensitivity import Sensitivity, run_sensitivity, with_settings
from diffuserec.studies.study_file import read_study

HEAD = """
title = "Draws & <steps>"
model = "diffrec"
settings = { dim = 16, n_layers = 1, epochs = 1, num_train_timesteps = 20, dropout = 0.0 }
"""
STEPS = HEAD + 'setting = "num_train_timesteps"\nvalues = [20, 5]\nseeds = [1]\n'
DRAWS = HEAD + 'setting = "n_draws"\nvalues = [1, 3]\nseeds = [0, 1]\nat = "inference"\n'
NAMED = """
model = "markov"

[[points]]
name = "order 1"
settings = { decay = 0.0 }

[[points]]
name = "decayed | the default"
settings = {}
"""
SVG = "{http://www.w3.org/2000/svg}"


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    argv, sys.argv = sys.argv, ["diffuserec", *(str(word) for word in words)]
    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sensitivity") / "store"
    Store(n_users=120, n_items=40, seed=1).dataset().save(path, note={"source": "store"})
    return path


def trained(said: str) -> list[str]:
    """Runs that were trained, in order, of the messages on standard error."""
    lines = said.splitlines()
    return [before for before, line in itertools.pairwise(lines) if line.startswith("training ")]


def written(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def texts(figure: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(figure).iter(f"{SVG}text")]


def test_a_point_is_a_run_and_is_trained_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, STEPS), tmp_path / "runs"
    status, printed, said = call(capsys, "curve", file, data, "--out", out)
    assert status == 0
    assert trained(said) == ["20, seed 1", "5, seed 1"]
    runs = [f"num-train-timesteps-{n}-seed1" for n in (20, 5)]
    assert {path.name for path in out.iterdir() if path.is_dir()} == set(runs)
    assert [load(out / run / "model").config.num_train_timesteps for run in runs] == [20, 5]
    document = json.loads((out / "sensitivity.json").read_text())
    assert [point["value"] for point in document["points"]] == [20, 5]
    assert document["seeds"] == [1]
    assert "leave-one-out, test" in document["protocol"]
    for name, point in zip(runs, document["points"], strict=True):
        (run,) = point["runs"]
        assert run["run"] == name
        test, valid = (
            json.loads((out / name / part / "metrics.json").read_text())["metrics"]
            for part in ("test", "valid")
        )
        assert point["metrics"]["NDCG@10"]["value"] == test["NDCG@10"]
        assert point["metrics"]["NDCG@10"]["margin"] > 0
        assert run["best_valid"] == valid["NDCG@10"]
        (epoch,) = json.loads((out / name / "curve.json").read_text())
        assert (run["epochs"], run["seconds"]) == (1, epoch["seconds"])
    table = (out / "sensitivity.md").read_text()
    assert printed == table
    cells = [document["points"][0]["metrics"][metric] for metric in ("NDCG@10", "HR@10")]
    shown = " | ".join(f"{cell['value']:.4f} ± {cell['margin']:.4f}" for cell in cells)
    assert f"| 20 | {shown} | " in table
    assert document["protocol"] in table
    figure = (out / "sensitivity.svg").read_bytes()
    assert {"Draws & <steps>", "num_train_timesteps", "NDCG@10, test", "HR@10, test"} <= set(
        texts(out / "sensitivity.svg")
    )
    assert call(capsys, "curve", file, data, "--out", out) == (0, printed, "")
    assert (out / "sensitivity.svg").read_bytes() == figure
    file.write_text(STEPS.replace("dim = 16", "dim = 8"))
    status, _, error = call(capsys, "curve", file, data, "--out", out)
    assert status == 2
    assert "settings" in error


# on so few users two seeds may have one and the same mean, of which scipy's t-test warns
@pytest.mark.filterwarnings("ignore:Precision loss occurred")
def test_at_inference_one_model_is_measured_at_every_point(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, DRAWS), tmp_path / "runs"
    status, printed, said = call(capsys, "curve", file, data, "--out", out)
    assert status == 0
    assert trained(said) == ["diffrec, seed 0", "diffrec, seed 1"]
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        "diffrec-seed0",
        "diffrec-seed1",
    }
    points = out / "diffrec-seed0" / "points"
    assert sorted(path.name for path in points.iterdir()) == ["n_draws=1", "n_draws=3"]
    document = json.loads((out / "sensitivity.json").read_text())
    one, three = (point["metrics"]["MRR"]["value"] for point in document["points"])
    assert one != three
    by_seed = []  # the models themselves, asked for three draws
    for seed in (0, 1):
        run = open_run(out / f"diffrec-seed{seed}")
        run.model.config = run.model.config.model_copy(update={"n_draws": 3})
        by_seed.append(evaluate(run.model, run.split.test, seed=seed).metrics["MRR"])
    assert by_seed[0] != by_seed[1]
    assert three == pytest.approx(sum(by_seed) / 2, abs=1e-12)
    assert "One model was trained" in printed
    assert "epochs |" not in printed
    before = {path: path.stat().st_mtime_ns for path in points.rglob("*.json")}
    file.write_text(DRAWS.replace("[1, 3]", "[1, 3, 2]"))
    _, printed, said = call(capsys, "curve", file, data, "--out", out)
    assert said.splitlines() == ["measuring 2, seed 0", "measuring 2, seed 1"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(points.iterdir())) == 3
    assert "| 2 |" in printed


def test_what_follows_from_a_setting_follows_at_inference(data: Path, tmp_path: Path) -> None:
    text = HEAD + 'setting = "beta_schedule"\nvalues = ["sqrt", "linear"]\nat = "inference"\n'
    text = text.replace("dropout = 0.0", "num_inference_steps = 4").replace("= 20", "= 40")
    file, runtime = written(tmp_path, text), Runtime(device="cpu")
    document = run_sensitivity(file, data, tmp_path / "runs", runtime)
    sqrt, linear = (point["metrics"]["MRR"]["value"] for point in document["points"])
    assert sqrt != linear


def test_parameters_of_another_shape_are_refused_at_inference(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, STEPS + 'at = "inference"\n')
    status, _, error = call(capsys, "curve", file, data, "--out", tmp_path / "runs")
    assert status == 2
    told = error.strip().splitlines()[-1]
    assert told.startswith("diffuserec: settings {'num_train_timesteps': 5} change what diffrec")
    assert 'at = "training"' in told


def test_a_setting_without_effect_at_inference_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = HEAD + 'setting = "dropout"\nvalues = [0.1, 0.4]\nat = "inference"\n'
    text = text.replace("dropout = 0.0, ", "").replace(", dropout = 0.0", "")
    status, _, error = call(
        capsys, "curve", written(tmp_path, text), data, "--out", tmp_path / "runs"
    )
    assert status == 2
    told = error.strip().splitlines()[-1]
    assert "every point measures the same: dropout has no effect on a trained model" in told


def test_a_copy_under_other_settings_keeps_the_parameters(cycle: SequenceDataset) -> None:
    model = find_recommender("diffrec")(dim=8, n_layers=1, epochs=1, num_train_timesteps=5)
    model.fit(cycle, runtime=Runtime(device="cpu", progress=False))
    other = with_settings(model, {"n_draws": 2})
    assert (other.config.n_draws, model.config.n_draws) == (2, 10)
    assert not other.training
    own, theirs = model.state_dict(), other.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert own["table.vectors.weight"].data_ptr() != theirs["table.vectors.weight"].data_ptr()
    with pytest.raises(ConfigError, match="change what diffrec learns"):
        with_settings(model, {"dim": 16})


def test_a_point_of_the_common_settings_has_a_directory_of_its_own(
    data: Path, tmp_path: Path
) -> None:
    points = '[[points]]\nname = "as trained"\nsettings = {}\n'
    points += '[[points]]\nname = "one"\nsettings = { n_draws = 1 }\n'
    out = tmp_path / "runs"
    file = written(tmp_path, HEAD + 'at = "inference"\n' + points)
    run_sensitivity(file, data, out, Runtime(device="cpu"))
    (run,) = (path for path in out.iterdir() if path.is_dir())
    assert {path.name for path in (run / "points").iterdir()} == {"common", "n_draws=1"}


def test_points_with_names_are_drawn_on_an_axis_of_names(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, NAMED), tmp_path / "runs"
    status, printed, _ = call(capsys, "curve", file, data, "--out", out)
    assert status == 0
    assert "| decayed \\| the default |" in printed
    assert {"order 1", "decayed | the default"} <= set(texts(out / "sensitivity.svg"))
    assert (out / "order-1-seed0" / "run.json").is_file()
    assert json.loads((out / "sensitivity.json").read_text())["title"] == "study"


def points_at(values: list[Any]) -> dict[str, Any]:
    cell = {"value": 0.1, "margin": 0.01, "seed_std": None}
    metrics = {"NDCG@10": cell, "HR@10": cell}
    points = [{"name": str(v), "value": v, "metrics": metrics} for v in values]
    return {"setting": "n", "points": points}


@pytest.mark.parametrize(
    ("values", "scale", "at"),
    [
        ([20, 1, 5], "linear", [1, 5, 20]),
        ([2000, 10, 200], "log", [10, 200, 2000]),
        ([0, 100], "linear", [0, 100]),
        ([-1.0, 0.5], "linear", [-1.0, 0.5]),
        (["sqrt", "cosine"], "linear", [0, 1]),
        ([True, False], "linear", [0, 1]),
        ([1, "all"], "linear", [0, 1]),
    ],
)
def test_positions_of_points(
    values: list[Any], scale: str, at: list[float], tmp_path: Path
) -> None:
    seen = []

    def draw(axes: Any) -> None:
        plot_sensitivity(axes, points_at(values))
        seen.extend((panel.get_xscale(), list(panel.lines[0].get_xdata())) for panel in axes)

    draw_svg(tmp_path / "figure.svg", "title", 2, draw)
    assert seen == [(scale, at)] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title = ", "cannot be read as TOML"),
        (STEPS + "vales = 3", "unknown key 'vales' (did you mean 'values'?)"),
        (STEPS.replace("diffrec", "difrec"), "did you mean 'diffrec'"),
        (STEPS.replace('model = "diffrec"', ""), "model: Field required"),
        (STEPS.replace('"diffrec"', "3"), "model: Input should be a valid string, got 3"),
        (STEPS.replace("[20, 5]", "[]"), "values: List should have at least 1 item"),
        (STEPS.replace("[20, 5]", "20"), "values: Input should be a valid list, got 20"),
        (STEPS.replace("[20, 5]", "[20, 5, 20]"), "'20' and '20'"),
        (STEPS.replace("[20, 5]", '[20, "20"]'), "'20' and '20'"),
        (STEPS.replace("[20, 5]", "[20, 1]"), "num_train_timesteps"),
        (STEPS.replace('"num_train_timesteps"', '"num_steps"'), "no setting 'num_steps'"),
        (STEPS.replace("dim = 16", "dims = 16"), "no setting 'dims'"),
        (STEPS.replace('setting = "num_train_timesteps"', ""), "either setting and values or"),
        (STEPS.replace("values = [20, 5]", ""), "either setting and values or"),
        (STEPS.replace("[1]", "[]"), "seeds must be"),
        (STEPS.replace("[1]", "[1, 1]"), "seeds must be"),
        (STEPS.replace("[1]", "3"), "seeds must be"),
        (STEPS + 'at = "testing"', "at: Input should be 'training' or 'inference', got 'testing'"),
        (NAMED.replace("order 1", "decayed | the default"), "would share the directory"),
        (NAMED.replace("decay = 0.0", ""), "have the same settings"),
        (NAMED.replace("decay = 0.0", "decays = 0.0"), "no setting 'decays'"),
        (NAMED.replace("settings = {}", "setting = {}"), "unknown key 'setting' (did you mean"),
        (NAMED.replace("settings = {}", "settings = 3"), "points: 1: settings: Input should be"),
        ('model = "markov"\npoints = []', "points: List should have at least 1 item"),
        ('setting = "decay"\n' + NAMED, "either setting and values or"),
    ],
)
def test_a_bad_file_is_one_line_before_anything_is_trained(
    text: str, told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, text), tmp_path / "runs"
    status, printed, error = call(capsys, "curve", file, data, "--out", out)
    assert status == 2
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert printed == ""
    assert not out.exists()


SHIPPED = Path(__file__).parents[2].joinpath("experiments").glob("*.toml")


@pytest.mark.parametrize(
    "file", sorted(file for file in SHIPPED if "[[variants]]" not in file.read_text())
)
def test_the_files_that_are_shipped_are_valid(file: Path) -> None:
    study = read_study(file, Sensitivity)
    assert len(study.all_points) > 2
    if study.at == "training":  # the same updates at every point
        assert study.settings["epochs"] == study.settings["patience"]
