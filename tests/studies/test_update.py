"""A run brought up to date with a newer log."""

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import diffuserec
from diffuserec import Runtime, Store, load_dataset
from diffuserec.cli import app
from diffuserec.data import from_dataset
from diffuserec.studies.run_directory import Plan, open_run
from diffuserec.studies.run_file import read_run_file
from diffuserec.studies.train_run import train_run

RUNTIME = Runtime(device="cpu", progress=False)


def run_cli(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def fails(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code != 0
    return str(done.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log cut in time under unusual names, a run on the first part, and its final model."""
    folder = tmp_path_factory.mktemp("update")
    store = Store(n_users=90, n_items=40, seed=2)
    log = store.frame().rename({"user_id": "who", "item_id": "what", "timestamp": "when"})
    log = log.with_columns(kind=pl.lit("buy")).sort("when")
    second, third = (int(log["when"].quantile(share) or 0) for share in (0.6, 0.9))
    old, new = log.filter(pl.col("when") <= second), log.filter(pl.col("when") > second)
    day, last = new.filter(pl.col("when") <= third), new.filter(pl.col("when") > third)
    extra = pl.DataFrame({"who": ["00", "00"], "what": ["00", day["what"][0]], "when": 2 * [third]})
    views = day.with_columns(kind=pl.lit("view"))
    day = pl.concat([day, extra.with_columns(kind=pl.lit("buy")).select(day.columns), views])
    for name, part in (("old", old), ("day", day), ("last", last)):
        part.write_csv(folder / f"{name}.tsv", separator="\t")
    named = ["--user", "who", "--item", "what", "--time", "when", "--where", "kind = 'buy'"]
    run_cli("prepare", folder / "old.tsv", *named, "--out", folder / "data")
    plan = Plan(str(folder / "data"), "sasrec", {"dim": 8, "epochs": 6, "batch_size": 32})
    train_run(plan, folder / "run", RUNTIME, report=False)
    run_cli("train", folder / "data", "--final", folder / "run", "--out", folder / "first")
    words = ["update", folder / "first", folder / "day.tsv", "--out", folder / "second"]
    (folder / "told.json").write_text(run_cli(*words, "--json"), encoding="utf-8")
    return folder


def test_the_newer_log_is_read_as_the_first_and_put_behind_it(folder: Path) -> None:
    rows = [
        pl.read_csv(folder / f"{name}.tsv", separator="\t").filter(pl.col("kind") == "buy")
        for name in ("old", "day")
    ]
    expected = pl.concat(rows).select("who", "what", "when").rows()
    found = from_dataset(load_dataset(folder / "second-data")).frame
    assert sorted(found.select("user_id", "item_id", "timestamp").rows()) == sorted(expected)


def test_the_new_run_starts_from_the_old_one_and_both_stand(folder: Path) -> None:
    first, second = (read_run_file(folder / name).plan for name in ("first", "second"))
    assert first.epochs is not None
    assert second.epochs == {"fit": -(-first.epochs["fit"] // 5)}
    assert second.settings_from == first.settings_from
    assert second.start_from is not None
    assert second.start_from.identity == open_run(folder / "first").identity
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    assert told["start_from"]["run"] == str((folder / "first").resolve())
    assert told["epochs"] == second.epochs
    model = diffuserec.load(folder / "second")
    assert model.recommend([["00"]], k=3)["source"].to_list() == ["model"] * 3
    assert open_run(folder / "second").split.train.catalog.n_items == model.catalog.n_items


def test_updates_that_cannot_be_are_refused(folder: Path, tmp_path: Path) -> None:
    again = ["update", folder / "second", folder / "day.tsv"]
    assert "adds nothing" in fails(*again, "--out", tmp_path / "third")
    assert not list(tmp_path.iterdir())
    assert "holds a finished run" in fails(*again, "--out", folder / "first")
    taken = ["--data-out", folder / "data", "--out", tmp_path / "third"]
    assert "holds other data" in fails("update", folder / "second", folder / "last.tsv", *taken)
    words = ["train", folder / "data", "--out", tmp_path / "x"]
    assert "need --final" in fails(*words, "--model", "sasrec", "--start", folder / "run")
    assert "leave out --set" in fails(*words, "--final", folder / "run", *SMALL)
    assert "holds nothing out" in fails(*words, "--model", "sasrec", "--split", "none")


def test_a_counting_method_is_fitted_anew_to_a_full_log(folder: Path, tmp_path: Path) -> None:
    train_run(Plan(str(folder / "data"), "markov", {}), tmp_path / "m", RUNTIME, report=False)
    parts = [pl.read_csv(folder / f"{name}.tsv", separator="\t") for name in ("old", "day")]
    pl.concat(parts).write_csv(tmp_path / "all.tsv", separator="\t")
    run_cli("update", tmp_path / "m", tmp_path / "all.tsv", "--full", "--out", tmp_path / "n")
    assert read_run_file(tmp_path / "n").plan.start_from is None
    one, other = (
        from_dataset(load_dataset(path)).frame
        for path in (folder / "second-data", tmp_path / "n-data")
    )
    assert sorted(one.rows()) == sorted(other.rows())
