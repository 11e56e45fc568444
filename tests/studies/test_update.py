"""A run brought up to date with a newer log."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import diffuserec
from diffuserec import DataError, Runtime, Store, load_dataset
from diffuserec.cli import app
from diffuserec.data import from_dataset
from diffuserec.studies.newest import compare_newest
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
    assert "leave out --set" in fails(*words, "--final", folder / "run", "--set", "dim=8")
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


# --- old against new ----------------------------------------------------------------------------


def test_old_and_new_are_compared_on_what_neither_has_seen(folder: Path) -> None:
    paths = [folder / "first", folder / "second"]
    report = compare_newest(paths, folder / "last.tsv")
    parts = [pl.read_csv(folder / f"{name}.tsv", separator="\t") for name in ("old", "day", "last")]
    log = pl.concat(parts).filter(pl.col("kind") == "buy").sort("when", maintain_order=True)
    seen, last = log.filter(pl.col("when") <= parts[1]["when"].max()), parts[2]
    models = [diffuserec.load(path) for path in paths]
    histories, targets = [], []
    for (who,), rows in last.sort("when").group_by("who", maintain_order=True):
        history = seen.filter(pl.col("who") == who)["what"].to_list()
        if history:
            histories.append(history)
            targets.append(rows["what"][0])
    ranks = []
    for model in models:
        lists = model.recommend(histories, k=50).select("query", "item_id", "rank").rows()
        found = {(query, item): rank - 1 for query, item, rank in lists}
        ranks.append([found.get(asked, np.inf) for asked in enumerate(targets)])
    results = [report.evaluations[name][0] for name in ("first", "second")]
    assert {result.protocol.n_users for result in results} == {len(ranks[0])}
    for result, expected in zip(results, ranks, strict=True):
        hits = np.mean(np.array(expected) < 10)
        assert result.metrics["HR@10"] == pytest.approx(hits)
    # items that came with the second part are unknown to the first model, and said to be
    unknown = int((models[0].catalog.encode(targets) == 0).sum())
    notes = [note for note in report.notes if note.startswith("first does not know")]
    assert len(notes) == (unknown > 0)
    assert list(report.evaluations)[2:] == ["popularity", "markov"]


def test_an_item_that_a_model_does_not_know_is_a_miss(folder: Path, tmp_path: Path) -> None:
    old = pl.read_csv(folder / "old.tsv", separator="\t")
    when = int(load_dataset(folder / "second-data").log.timestamps.max()) + 1
    users = old["who"].unique(maintain_order=True)[:3]
    pl.DataFrame(
        {
            "who": users,
            "what": ["00", "nobody's", old["what"][0]],
            "when": 3 * [when],
            "kind": "buy",
        }
    ).write_csv(tmp_path / "asked.tsv", separator="\t")
    report = compare_newest([folder / "first", folder / "second"], tmp_path / "asked.tsv")
    ranks = {
        name: dict(report.evaluations[name][0].per_user.select("target", "target_rank").iter_rows())
        for name in ("first", "second")
    }
    assert ranks["first"]["00"] == ranks["first"]["nobody's"] == np.inf
    assert ranks["second"]["00"] < ranks["second"]["nobody's"] == np.inf
    assert any("first does not know 2 of 3 targets" in note for note in report.notes)


def test_nothing_that_a_run_has_seen_is_asked_for(folder: Path, tmp_path: Path) -> None:
    runs = [folder / "first", folder / "second"]
    for log in (folder / "second-data", folder / "day.tsv"):
        with pytest.raises(DataError, match=r"adds nothing|nobody with a history comes after"):
            compare_newest(runs, log)
