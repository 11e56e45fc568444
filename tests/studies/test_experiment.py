"""Experiments: variants, seeds, shared augmenters, kept runs, and files that are refused."""

import json
from pathlib import Path

import pytest

from diffuserec import Runtime, Store
from diffuserec.errors import ConfigError, DataError
from diffuserec.studies.experiment import read_experiment, run_experiment
from diffuserec.studies.train_run import methods_of

from ..bundles import part

EXPERIMENT = """
title = "Three variants"
seeds = [0, 1]

[[variants]]
name = "Order 1"
model = "markov"
settings = { decay = 0.0 }
seeds = [0]

[[variants]]
name = "Plain"
model = "sasrec"
settings = { epochs = 1, dim = 16 }

[[variants]]
name = "With DiffuASR"
model = "sasrec"
settings = { epochs = 1, dim = 16 }
augment = "diffuasr"
augment_settings = { n_items = 4, epochs = 1, pretrain_epochs = 1, num_inference_steps = 2 }

[[variants]]
name = "GRU4Rec with DiffuASR"
model = "gru4rec"
settings = { epochs = 1, dim = 16 }
augment = "diffuasr"
augment_settings = { n_items = 4, epochs = 1, pretrain_epochs = 1, num_inference_steps = 2 }
seeds = [1]
"""
GRU4REC = 'model = "gru4rec"\nsettings = { epochs = 1, dim = 16 }'
RUNTIME = Runtime(device="cpu", progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "store"
    Store(n_users=300, n_items=60, seed=1).dataset().save(path, note={"source": "store"})
    return path


def written(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def test_variants_are_trained_once_and_reported(data: Path, tmp_path: Path) -> None:
    file, out = written(tmp_path, EXPERIMENT), tmp_path / "runs"
    said: list[str] = []
    text = run_experiment(file, data, out, RUNTIME, said.append).text()
    trained = ["Order 1, seed 0", "Plain, seed 0", "Plain, seed 1", "With DiffuASR, seed 0"]
    trained += ["With DiffuASR, seed 1", "GRU4Rec with DiffuASR, seed 1"]
    assert [line for line in said if ", seed" in line] == trained
    assert said.count("fitting diffuasr") == 1
    assert (out / "report.txt").read_text() == text
    report = json.loads((out / "report.json").read_text())
    everyone = {r["method"]: r["n_seeds"] for r in report["summary"] if r["group"] == "all"}
    baselines = {"Order 1": 1, "popularity": 1, "markov": 1}
    augmented = {"With DiffuASR": 2, "GRU4Rec with DiffuASR": 1}
    assert everyone == {"Plain": 2, **augmented, **baselines}
    against = {test["method"]: test["reference"] for test in report["comparisons"]}
    assert against.pop("With DiffuASR") == "Plain"  # the same recommender alone
    assert set(against.values()) == {"Order 1"}
    spent = [(run["method"], run["seed"], run["epochs"]) for run in report["training"]]
    assert spent[:3] == [("Order 1", 0, 0), ("Plain", 0, 1), ("Plain", 1, 1)]
    assert all(run["seconds"] > 0 for run in report["training"])
    unfiltered = report["seen_not_filtered"]
    assert unfiltered.keys() == {"Order 1", "Plain", *augmented}
    by_seed = [
        json.loads((out / f"plain-seed{seed}/test_seen_not_filtered/metrics.json").read_text())
        for seed in (0, 1)
    ]
    assert all(stored["protocol"]["filter_seen"] is False for stored in by_seed)
    mean = sum(stored["metrics"]["HR@10"] for stored in by_seed) / 2
    assert unfiltered["Plain"]["HR@10"] == pytest.approx(mean)
    assert "With DiffuASR" in (out / "report.html").read_text()
    shared = [
        json.loads((out / run / "augmenter" / "manifest.json").read_text())["sha256"]
        for run in ("with-diffuasr-seed0", "with-diffuasr-seed1", "gru4rec-with-diffuasr-seed1")
    ]
    assert shared[0] == shared[1] == shared[2]

    weights = part(out / "plain-seed1" / "model", "weights.safetensors")
    before = weights.stat().st_mtime_ns
    said.clear()
    assert run_experiment(file, data, out, RUNTIME, said.append).text() == text
    assert said == []
    assert weights.stat().st_mtime_ns == before
    file.write_text(EXPERIMENT.replace("dim = 16", "dim = 24"))
    with pytest.raises(ConfigError, match="was started with settings"):
        run_experiment(file, data, out, RUNTIME)


def test_a_wrong_variant_is_refused_before_any_is_trained(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    for old, new, message in (
        ("n_items = 4", "n_item = 4", "n_items"),
        ('"Plain"', '"With-DiffuASR"', "differ in letters"),
        ("decay = 0.0", "decay = 2.0", "decay"),
        (GRU4REC, 'model = "mfgan"\nsettings = { n_candidates = 100 }', "n_candidates 100 is more"),
    ):
        file = written(tmp_path, EXPERIMENT.replace(old, new))
        with pytest.raises(ConfigError, match=message):
            run_experiment(file, data, out, RUNTIME)
        assert not out.exists()
    foreign = out / "gru4rec-with-diffuasr-seed1"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not a run"):
        run_experiment(written(tmp_path, EXPERIMENT), data, out, RUNTIME)
    assert list(out.iterdir()) == [foreign]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = [0]", "variants: Field required"),
        ("variants = []", "variants: List should have at least 1 item"),
        ("variants = [3]", "variants: 0: .*got 3"),
        (EXPERIMENT + "rows = 3", "unknown key 'rows'; there are: name, model, settings"),
        (EXPERIMENT.replace("title", "tilte"), r"unknown key 'tilte' \(did you mean 'title'\?\)"),
        (EXPERIMENT.replace('model = "gru4rec"', ""), "variants: 3: model: Field required"),
        (EXPERIMENT.replace('"diffuasr"', "3"), "variants: 2: augment: Input should be a valid"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_experiment(written(tmp_path, text), tmp_path)
    assert "\n" not in str(caught.value)


SEEDS = """
seeds = [0, 1]

[[variants]]
name = "Default"
model = "markov"

[[variants]]
name = "Order 1"
model = "markov"
settings = { decay = 0.0 }
seeds = [2]
"""


def test_a_variant_may_have_its_own_seeds(data: Path, tmp_path: Path) -> None:
    file, out = written(tmp_path, SEEDS), tmp_path / "runs"
    run_experiment(file, data, out, RUNTIME)
    runs = {path.name for path in out.iterdir() if path.is_dir()}
    assert runs == {"default-seed0", "default-seed1", "order-1-seed2"}
    report = json.loads((out / "report.json").read_text())
    assert {r["method"]: r["n_seeds"] for r in report["summary"]} == {
        "Default": 2,
        "Order 1": 1,
        "popularity": 1,
        "markov": 1,
    }
    assert {test["p_seeds"] for test in report["comparisons"]} == {None}
    assert "Order 1" in (out / "report.html").read_text()


@pytest.mark.parametrize("seeds", ["[]", "2", '["0"]', "[0.5]", "[0, 0]", "[true]"])
def test_seeds_are_different_whole_numbers(seeds: str, data: Path, tmp_path: Path) -> None:
    file = written(tmp_path, SEEDS.replace("[2]", seeds))
    with pytest.raises(ConfigError, match="seeds must be a list of different whole numbers"):
        read_experiment(file, data)


SHIPPED = Path(__file__).parents[2].joinpath("experiments").glob("*.toml")


@pytest.mark.parametrize(
    "file", sorted(file for file in SHIPPED if "[[variants]]" in file.read_text())
)
def test_the_files_that_are_shipped_are_valid(file: Path, tmp_path: Path) -> None:
    _, variants = read_experiment(file, tmp_path)
    for plans in variants.values():
        for plan in plans:
            methods_of(plan)  # every setting is known and has an effect
