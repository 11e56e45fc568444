"""Comparison of runs: which of them are one method, and their names."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffuserec import ConfigError, Runtime, Store
from diffuserec.cli import app
from diffuserec.studies.compare import compare_runs
from diffuserec.studies.ledger import looks
from diffuserec.studies.run_directory import Plan, open_run
from diffuserec.studies.train_run import train_run

RUNTIME = Runtime(device="cpu", progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def data(folder: Path) -> str:
    Store(n_users=120, n_items=40, seed=1).dataset().save(folder / "store")
    return str(folder / "store")


@pytest.fixture(scope="module")
def runs(folder: Path, data: str) -> dict[str, Path]:
    """ItemKNN with two seeds, with another setting, and after an augmenter."""
    plans = {
        "first": Plan(data, "itemknn", {}),
        "second": Plan(data, "itemknn", {}, seed=1),
        "near": Plan(data, "itemknn", {"k": 5}),
        "random": Plan(data, "itemknn", {"k": 5}, "random", {"n_items": 2}),
    }
    for name, plan in plans.items():
        train_run(plan, folder / name, RUNTIME)
    return {name: folder / name for name in plans}


def test_seeds_are_one_method_and_equal_labels_name_their_directory(runs: dict[str, Path]) -> None:
    report = compare_runs(list(runs.values()))
    seeds = {cell["method"]: cell["n_seeds"] for cell in report.summary.to_dicts()}
    assert seeds == {
        "itemknn (first)": 2,
        "itemknn (near)": 1,
        "itemknn + random": 1,
        "popularity": 1,
        "markov": 1,
    }
    against = dict(report.comparisons.select("method", "reference").unique().iter_rows())
    assert against.pop("itemknn + random") == "itemknn (near)"  # of the same settings
    assert set(against.values()) == {"itemknn (first)"}


def test_runs_may_be_given_names(runs: dict[str, Path]) -> None:
    paths = [runs["near"], runs["first"], runs["second"]]
    report = compare_runs(paths, names=["narrow", "wide", "wide"])
    assert [len(found) for found in report.evaluations.values()] == [1, 2, 1, 1]
    assert list(report.evaluations)[:2] == ["narrow", "wide"]


def test_runs_of_other_data_are_refused(folder: Path, runs: dict[str, Path]) -> None:
    Store(n_users=120, n_items=40, seed=2).dataset().save(folder / "other")
    train_run(Plan(str(folder / "other"), "markov", {}), folder / "elsewhere", RUNTIME)
    with pytest.raises(ConfigError, match="different data"):
        compare_runs([runs["first"], folder / "elsewhere"])
    with pytest.raises(ConfigError, match="at least one run"):
        compare_runs([])


def test_validation_never_looks_at_the_test_part(
    runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    plan = Plan(str(folder / "store"), "sasrec", {"dim": 8, "epochs": 1}, "random", {"n_items": 2})
    train_run(plan, run, RUNTIME, report=False)
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    report = compare_runs([run, runs["near"]], out, part="valid", figures=figures)
    assert ", valid" in report.protocol
    measured = report.evaluations["sasrec + random"][0].metrics
    assert measured == open_run(run).evaluate("valid").metrics
    assert not (run / "test").exists()
    assert {event["event"] for event in looks(run)} == {"validation"}
    assert "What to do next" not in out.read_text(encoding="utf-8")  # it would measure on test
    drawn = [file.name for file in figures.iterdir()]
    assert {"differences-0.svg", "cost-0.svg"} <= set(drawn)


def test_the_command_writes_tables_of_every_format(
    runs: dict[str, Path],
) -> None:
    words = ["compare", str(runs["near"]), str(runs["random"])]
    begins = {
        "markdown": "| method",
        "latex": "\\begin{table}",
        "csv": '"method",',
        "html": "<table",
    }
    for format, begin in begins.items():
        answer = CliRunner().invoke(app, [*words, "--format", format])
        assert answer.exit_code == 0
        assert begin in answer.stdout
