"""Command line end to end on a small log: its output, its files, its refusals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import diffuserec
from diffuserec import SequenceDataset, Store, cli, find_recommender
from diffuserec.studies.run_directory import read_curve

QUICK = ["--set", "epochs=2", "--set", "dim=16", "--set", "max_len=10"]


def run_main(*words: object) -> int:
    """Exit status of one command, run in this process."""
    argv, sys.argv = sys.argv, ["diffuserec", *(str(word) for word in words)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = argv
    return 0


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    status = run_main(*words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    path = folder / "clicks.csv"
    Store(n_users=300, n_items=60, seed=1).frame().write_csv(path)
    return path


@pytest.fixture(scope="module")
def data(folder: Path, log: Path) -> Path:
    from diffuserec import read_log

    path = folder / "data"
    read_log(log).to_dataset().save(path, note={"source": log.name, "filters": "none"})
    return path


@pytest.fixture(scope="module")
def runs(folder: Path, data: Path) -> dict[str, Path]:
    """A plain and an augmented run, trained through the command line once."""
    made = {"plain": folder / "plain", "longer": folder / "longer"}
    train = ["train", data, "--model", "sasrec", *QUICK]
    assert run_main(*train, "--out", made["plain"]) == 0
    more = ["--augment", "random", "--augment-set", "n_items=3", "--out", made["longer"]]
    assert run_main(*train, *more) == 0
    return made


def test_prepare_and_describe(folder: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "prepared"
    status, printed, _ = call(capsys, "prepare", log, "--out", out, "--min-item", 3)
    assert status == 0
    assert "user_id" in printed
    status, printed, _ = call(capsys, "describe", out, "--json")
    facts = json.loads(printed)
    assert facts["filters"] == "item>=3"
    frame = pl.read_csv(log)
    assert 0 < facts["interactions"] <= frame.height
    status, _, error = call(capsys, "prepare", log, "--out", out)
    assert status == 2
    assert str(out) in error


def test_evaluate_json_has_what_was_promised(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed, _ = call(capsys, "evaluate", runs["plain"], "--json")
    assert status == 0
    result = json.loads(printed)
    assert {"protocol", "metrics", "groups"} <= result.keys()
    assert 0 <= result["metrics"]["NDCG@10"] <= result["metrics"]["HR@10"] <= 1
    stored = json.loads((runs["plain"] / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert stored["metrics"] == result["metrics"]
    _, printed, _ = call(capsys, "evaluate", runs["plain"], "--keep-seen", "--json")
    assert json.loads(printed)["protocol"]["filter_seen"] is False
    words = ("evaluate", runs["plain"], "--candidates", "uniform:20", "--split", "valid", "--json")
    _, printed, _ = call(capsys, *words)
    sampled = json.loads(printed)
    assert sampled["protocol"]["candidates"] == "uniform:20"
    assert "valid" in sampled["protocol"]["split"]
    assert sampled["metrics"]["HR@20"] >= result["metrics"]["HR@20"]


def test_a_run_is_complete_and_has_a_report(runs: dict[str, Path]) -> None:
    for path in runs.values():
        assert json.loads((path / "run.json").read_text(encoding="utf-8"))["complete"]
        assert (
            (path / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
        )
        assert not (path / "checkpoint").exists()
        assert len(json.loads((path / "curve.json").read_text(encoding="utf-8"))) == 2


def test_compare_shows_trivial_baselines_and_significance(
    folder: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "compared.html"
    words = ("compare", runs["plain"], runs["longer"], "--out", out, "--json")
    status, printed, _ = call(capsys, *words)
    assert status == 0
    methods = {row["method"] for row in json.loads(printed)["summary"]}
    assert methods == {"sasrec", "sasrec + random", "popularity", "markov"}
    assert out.exists()
    _, printed, _ = call(capsys, "compare", runs["plain"], runs["longer"])
    assert "popularity" in printed
    assert "leave-one-out" in printed


def test_beyond_prints_tables(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["beyond", runs["plain"], "--users", 20]
    status, printed, _ = call(capsys, *asked, "--format", "markdown")
    assert status == 0
    assert "| sasrec | MMR, 0.3 |" in printed
    assert "No lists: train the runs with --split leave-last:k=5." in printed
    status, _, error = call(capsys, *asked, "--into", "page.md")
    assert status == 2
    assert "--into needs --out" in error


def test_recommend_takes_and_gives_raw_ids(
    folder: Path, log: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = pl.read_csv(log)["item_id"].unique().sort().to_list()
    history = f"{ids[0]},{ids[1]},nothing-of-the-kind"
    words = ("recommend", runs["plain"], "--history", history, "-k", 4, "--json")
    status, printed, said = call(capsys, *words)
    assert status == 0
    items = json.loads(printed)["recommendations"]
    assert [item["rank"] for item in items] == [1, 2, 3, 4]
    assert {item["item_id"] for item in items} <= set(ids) - {ids[0], ids[1]}
    assert items[0]["n_unknown"] == 1
    assert "1 history: 1 answered by the model, 0 by popularity; 1 of 3 item ids unknown" in said
    status, _, error = call(
        capsys, "recommend", runs["plain"], "--history", history, "--refuse-unknown"
    )
    assert status == 2
    assert "nothing-of-the-kind" in error
    out = folder / "lists.csv"
    call(capsys, "recommend", runs["longer"], "--histories", log, "-k", 2, "--out", out)
    lists = pl.read_csv(out)
    assert lists.columns == ["user_id", "rank", "item_id", "score", "source", "n_unknown"]
    users = pl.read_csv(log).sort("user_id", maintain_order=True)["user_id"].unique().sort()
    assert lists["user_id"].to_list() == [user for user in users for _ in range(2)]
    status, printed, said = call(capsys, "recommend", runs["plain"], "--histories", log)
    assert status == 0
    assert "the first 200 of 3,000 lines; --out FILE writes them all" in said


def test_ids_are_shown_letter_by_letter_and_read_as_one_line_of_csv(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ["[/b]", "[red]x", "[bold]y[/bold]", "[link=http://e]z", "[]", "Good, the Bad", " edge"]
    odd += ['say "so"', "=1+1", "ü", "\x1b[31mRED", "two\nlines", "turned\u202e"]
    train = SequenceDataset.from_lists([[*range(1, 14)], [*range(13, 0, -1)]])
    catalog = replace(train.catalog, item_ids=pl.Series("item_id", odd))
    find_recommender("itemknn")().fit(replace(train, catalog=catalog)).save(folder / "odd")
    words = ("recommend", folder / "odd", "--history", "ü", "-k", 40, "--keep-seen")
    status, printed, _ = call(capsys, *words)
    assert status == 0
    cells = {line.split("│")[2].removeprefix(" ").rstrip() for line in printed.splitlines()[3:-1]}
    shown = {"\\x1b[31mRED", "two\\nlines", "turned\\u202e"}
    assert cells == {*odd[:-3], *shown}
    assert "\x1b" not in printed
    listed = '"Good, the Bad" , [/b],, "say ""so""", " edge",=1+1'
    for option, n in (("--deny", 8), ("--allow", 5)):
        status, printed, _ = call(capsys, *words, option, listed, "--json")
        found = {line["item_id"] for line in json.loads(printed)["recommendations"]}
        named = {"Good, the Bad", "[/b]", 'say "so"', " edge", "=1+1"}
        assert found == (named if option == "--allow" else set(odd) - named)
        assert len(found) == n
    status, _, error = call(capsys, *words, "--deny", "[/nothing]")
    assert (status, "does not hold item '[/nothing]'" in error) == (2, True)


def test_a_generative_run_shows_spreads_and_says_what_it_ignores(
    folder: Path, log: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "diffrec"
    words = ["train", data, "--model", "diffrec", *QUICK, "--set", "num_train_timesteps=20"]
    assert run_main(*words, "--out", run) == 0
    capsys.readouterr()
    ids = pl.read_csv(log)["item_id"].unique().sort().to_list()
    history = ",".join(ids[:14])  # max_len is 10
    words = ["recommend", run, "--history", history, "-k", 3]
    status, printed, said = call(capsys, *words, "--n-draws", 10, "--json")
    assert status == 0
    items = json.loads(printed)["recommendations"]
    scores = [item["score"] for item in items]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < item["spread"] < item["score"] < 1 for item in items)
    assert "1 of 1 histories are longer than the 10 items that diffrec looks back on" in said
    _, newest, said = call(
        capsys, "recommend", run, "--history", ",".join(ids[4:14]), "--json", "--keep-seen"
    )
    assert "longer" not in said
    _, all_items, _ = call(capsys, *words[:-2], "--json", "--keep-seen")
    by_item = [
        {item["item_id"] for item in json.loads(text)["recommendations"]}
        for text in (newest, all_items)
    ]
    assert len(by_item[0] & by_item[1]) >= 8  # the noise is that of another history
    for wrong, line in (
        (["--n-draws", 0], "n_draws must be at least 1, got 0"),
        (["--diversity", 2], "diversity must be between 0 and 1, got 2.0"),
    ):
        status, _, error = call(capsys, *words, *wrong)
        assert status == 2
        assert line in error
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Lists from one draw of noise" in page
    for what in ("mean of 10 draws", "one draw, seed 0", "one draw, seed 2"):
        assert page.count(f"{what}<span") == 3
    per_user = pl.read_parquet(run / "test" / "per_user.parquet")
    assert {"confidence", "entropy", "disagreement"} <= set(per_user.columns)


@pytest.mark.parametrize(
    "settings, line",
    [
        (["n_draws=0"], "n_draws"),
        (["num_train_timesteps=1"], "num_train_timesteps"),
        (["num_inference_steps=0"], "num_inference_steps"),
        (["dim=10", "n_heads=4"], "dim 10 is not divisible by n_heads 4"),
        (["beta_schedule=linear", "num_train_timesteps=10"], "outside (0, 1)"),
    ],
)
def test_wrong_diffusion_settings_are_one_line(
    folder: Path, data: Path, settings: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [word for setting in settings for word in ("--set", setting)]
    out = folder / "refused"
    words = ("train", data, "--model", "diffrec", *pairs, "--out", out)
    status, _, error = call(capsys, *words)
    assert status == 2
    assert line in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_augment_writes_the_whole_log_with_marked_additions(
    folder: Path, log: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "augmented.parquet"
    words = ("augment", data, "--method", "random", "--out", out, "--set", "n_items=2")
    status, _, _ = call(capsys, *words)
    assert status == 0
    real = pl.read_csv(log).sort(["user_id", "timestamp"], maintain_order=True)
    made = pl.read_parquet(out)
    kept = made.filter(~pl.col("synthetic"))
    assert kept["item_id"].to_list() == real["item_id"].to_list()
    added = made.filter("synthetic").group_by("user_id").len()["len"]
    assert added.to_list() == [2] * real["user_id"].n_unique()


def test_augment_writes_copies_as_users_of_their_own(
    folder: Path, log: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "copies.parquet"
    words = ["augment", data, "--method", "diff4rec", "--out", out]
    for setting in ("n_copies=2", "epochs=1", "latent_dim=4", "hidden_dim=8", "reorder=none"):
        words += ["--set", setting]
    assert call(capsys, *words)[0] == 0
    real = pl.read_csv(log).sort(["user_id", "timestamp"], maintain_order=True)
    made = pl.read_parquet(out)
    kept = made.filter(~pl.col("synthetic"))
    assert sorted(kept["item_id"].to_list()) == sorted(real["item_id"].to_list())
    lengths = {user: taken.height for (user,), taken in made.group_by("user_id")}
    own = {
        str(user): taken["item_id"]
        for (user,), taken in real.group_by("user_id", maintain_order=True)
    }
    assert len(lengths) == 3 * len(own)
    for user, items in own.items():
        for number in (1, 2):
            copy = made.filter(pl.col("user_id") == f"{user}#{number}")
            assert copy["synthetic"].all()
            # of the training part: all but the last two
            assert copy.height == len(items) - 2 if len(items) > 2 else len(items)
            same = (copy["item_id"] == items[: copy.height]).sum()
            assert 0 < copy.height - same <= max(1, 0.2 * copy.height + 0.5)


def test_copies_are_of_histories_of_all_lengths(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--method", "diff4rec", "--max-history", 5, "--out", tmp_path / "copies.csv")
    status, _, error = call(capsys, "augment", data, *words)
    assert status == 2
    assert "leave out --max-history" in error


def test_settings_that_do_not_fit_the_catalog_are_refused_before_anything_is_fitted(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--model", "mfgan", "--set", "n_candidates=100", "--augment", "random", "--out", out]
    status, _, error = call(capsys, "train", data, *words)
    assert status == 2
    assert "n_candidates 100 is more than the" in error
    assert not out.exists()


def test_a_run_on_copies_shows_them_and_is_compared(
    folder: Path, data: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "varied"
    words = ["train", data, "--model", "sasrec", *QUICK, "--augment", "diff4rec", "--out", out]
    for setting in ("n_copies=2", "epochs=1", "latent_dim=4", "hidden_dim=8"):
        words += ["--augment-set", setting]
    assert call(capsys, *words)[0] == 0
    phases = [epoch.phase for epoch in read_curve(out / "curve.json")]
    assert phases[0] == "diff4rec fit"
    assert set(phases[1:]) == {"fit"}
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "Augmented copies of training sequences" in text
    assert "copy 2, difficulty" in text
    assert "Items generated by the augmenter" not in text
    status, printed, _ = call(capsys, "compare", runs["plain"], out, "--out", folder / "v.html")
    assert status == 0
    assert "sasrec + diff4rec" in printed
    assert "copy 2, difficulty" in (folder / "v.html").read_text(encoding="utf-8")


def test_models_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed, _ = call(capsys, "models", "--json")
    names = {method["name"] for method in json.loads(printed)["methods"]}
    assert {
        "popularity",
        "markov",
        "itemknn",
        "sasrec",
        "random",
        "random_seq",
        "diffuasr",
    } <= names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "nowhere"], "nowhere"),
        (["train", "DATA", "--model", "sasrek", "--out", "x"], "did you mean 'sasrec'"),
        (["train", "DATA", "--model", "sasrec", "--set", "dims=3", "--out", "x"], "'dim'"),
        (["train", "DATA", "--model", "sasrec", "--set", "dim", "--out", "x"], "name=value"),
        (["train", "DATA", "--model", "sasrec", "--split", "random", "--out", "x"], "temporal"),
        (
            ["train", "DATA", "--model", "sasrec", "--split", "temporl", "--out", "x"],
            "no split 'temporl' (did you mean 'temporal'?)",
        ),
        (["train", "DATA", "--model", "markov", "--resume", "--out", "x"], "no run to resume"),
        (["train", "DATA", "--model", "sasrec", "--augment-set", "a=1", "--out", "x"], "--augment"),
        (
            ["train", "DATA", "--model", "markov", "--augment", "diff4rec", "--out", "x"],
            "would change nothing",
        ),
        (
            [
                "train",
                "DATA",
                "--model",
                "sasrec",
                "--set",
                "epochs=3",
                "--augment",
                "diff4rec",
                "--out",
                "x",
            ],
            "3 epochs end before all 10 copies are in use",
        ),
        (["train", "RUN", "--model", "sasrec", "--out", "x"], "not a prepared dataset"),
        (["evaluate", "DATA"], "not a run"),
        (["evaluate", "RUN", "--candidates", "uniform:9999"], "9999"),
        (["recommend", "RUN"], "--history"),
        (["recommend", "RUN", "--history", ""], "--history names no item"),
        (["recommend", "RUN", "--history", "A;B"], "none of the 1 item ids"),
        (["recommend", "RUN", "--history", 'A,"B,C'], 'the quotes of "B are not closed'),
        (["recommend", "RUN", "--history", "a", "--out", "x.doc"], ".csv"),
        (["train", "DATA", "--model", "sasrec", "--out", "RUN"], "--overwrite"),
        (["augment", "DATA", "--method", "random", "--out", "x.doc"], "parquet"),
        (["augment", "DATA", "--method", "random", "--out", "no/x.csv"], "no folder"),
        (["demo", "--out", "DATA"], "not a demo's"),
        (["recommend", "RUN", "--history", "a", "--out", "no/x.csv"], "no/"),
        (["train", "DATA", "--out", "x"], "--model"),
        (["train", "DATA", "--config", "nowhere.toml", "--out", "x"], "nowhere.toml"),
        (["train", "DATA", "--config", "c", "--model", "sasrec", "--out", "x"], "leave out"),
        (["tune", "DATA", "--model", "popularity", "--out", "x"], "no settings to search"),
        (["tune", "DATA", "--model", "bpr", "--out", "x", "--workers", "0"], "at least 1"),
        (["tune", "NOWHERE", "--model", "bpr", "--out", "x", "--split", "no"], "no split 'no'"),
        (["tune", "DATA", "--model", "bpr", "--out", "x", "--augment-set", "a=1"], "--augment N"),
        (["study", "nowhere.toml", "--data", "DATA", "--out", "x"], "nowhere.toml"),
        (["reproduce", "diffrec-tabel2", "--out", "x"], "did you mean 'diffrec-table2'"),
        (["study", "nowhere.toml", "--out", "x", "--seeds", "1,a"], "whole numbers"),
        (["results", "DATA"], "holds no results"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str],
    message: str,
    data: Path,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"DATA": str(data), "RUN": str(runs["plain"])}
    status, printed, error = call(capsys, *(places.get(word, word) for word in words))
    assert status == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


def test_a_study_prints_its_tables_and_the_same_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "study.toml", tmp_path / "runs"
    rows = [f'[[rows]]\nname = "order {n}"\nmodel = "markov"' for n in (1, 2)]
    rows[1] += "\nsettings = { decay = 0.0 }"
    file.write_text("\n".join(['title = "Orders"', 'data = ["any"]', *rows]), encoding="utf-8")
    words = ("study", file, "--data", data, "--out", out, "--workers", 1)
    status, printed, _ = call(capsys, *words)
    assert status == 0
    assert "order 2" in printed
    assert call(capsys, *words) == (0, printed, "")
    tables = printed.partition("tables and report")[0]
    assert call(capsys, "results", out)[1].strip() == tables.strip()
    status, printed, _ = call(capsys, "results", out, "--format", "latex", "--metric", "MRR")
    assert status == 0
    assert "MRR" in printed
    assert "NDCG" not in printed.partition("bottomrule")[0]


def test_a_study_with_a_failed_row_says_so_by_its_status(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "study.toml", tmp_path / "runs"
    row = '[[rows]]\nmodel = "sasrec"\nsettings = { dim = 8, epochs = 2, learning_rate = 1e30 }'
    file.write_text(f'title = "Fails"\ndata = ["any"]\n{row}\n', encoding="utf-8")
    words = ("study", file, "--data", data, "--out", out, "--workers", 1)
    status, printed, told = call(capsys, *words)
    assert status == 1
    assert "tables and report" in printed
    assert "1 of 3 rows failed" in told
    assert "became nan" in (out / "table.md").read_text(encoding="utf-8")
    # floors alone are as they should be
    assert call(capsys, *words, "--only", "Popularity")[0] == 0


def test_the_data_sets_of_a_paper_are_counted_beside_the_printed_sizes(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(log, tmp_path / "data" / f"beauty{log.suffix}")
    words = ("reproduce", "diffrec-table1", "--data", tmp_path / "data", "--out", tmp_path / "out")
    status, printed, told = call(capsys, *words, "--json")
    assert status == 0
    records = {record["data set"]: record for record in json.loads(printed)["records"]}
    assert records["Beauty"]["users published"] == 22363
    assert records["Beauty"]["users"] is not None
    assert records["Toys"]["users"] is None
    assert "Amazon Toys and Games" in told


def test_a_baseline_of_other_settings_is_a_method_of_its_own(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "order-1"
    assert run_main("train", data, "--model", "markov", "--set", "decay=0.0", "--out", out) == 0
    capsys.readouterr()
    _, printed, _ = call(capsys, "compare", out, "--json")
    values = {
        cell["method"]: cell["value"]
        for cell in json.loads(printed)["summary"]
        if cell["metric"] == "MRR" and cell["group"] == "all"
    }
    assert set(values) == {"markov", "popularity", "markov (default)"}
    assert values["markov"] != values["markov (default)"]


def test_a_temporal_split_trains(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "temporal"
    words = ("train", data, "--model", "markov", "--split", "temporal", "--out", out, "--json")
    status, printed, _ = call(capsys, *words)
    assert status == 0
    split = json.loads(printed)["protocol"]["split"]
    assert split == "temporal quantile=0.9 valid_quantile=0.9 target=last, test"
    words = (*words[:5], "temporal:quantile=0.8,target=first", "--out", folder / "first", "--json")
    status, printed, _ = call(capsys, *words)
    assert status == 0
    split = json.loads(printed)["protocol"]["split"]
    assert split == "temporal quantile=0.8 valid_quantile=0.9 target=first, test"


def test_a_preset_trains_and_yields_to_what_is_set(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "as_published"
    words = ("train", data, "--model", "simdiffrec", "--preset", "as_published", *QUICK)
    status, _, _ = call(capsys, *words, "--set", "batch_size=32", "--out", out, "--json")
    assert status == 0
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    settings = run["plan"]["settings"]
    given = {"loss": "bce", "contrast_weight": 0.4, "diffusion_weight": 0.4, "batch_size": 32}
    given |= {"average_epochs": 0.0, "position_encoding": "from_oldest", "mse_weight": 1.0}
    given |= {"dropout": 0.5, "negatives": "uniform"}  # which are not left to the log
    assert settings == {**given, "epochs": 2, "dim": 16, "max_len": 10}
    words = ("train", data, "--model", "sasrec", "--preset", "as_published", "--out", "x")
    status, _, error = call(capsys, *words)
    assert status == 2
    assert "no settings as published" in error


def test_auto_takes_a_recommender_by_the_log_and_says_why(
    data: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "auto"
    quick = "settings={bsarec={epochs=1}}"
    status, _, said = call(capsys, "train", data, "--model", "auto", "--set", quick, "--out", out)
    assert status == 0
    assert re.search(r"blend: 300 users, .* few users, so that counting is added", said)
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["plan"]["model"] == "blend"


def test_settings_show_what_was_published(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = call(capsys, "models", "diffrec", "--json")
    assert status == 0
    settings = {s["name"]: s["as_published"] for s in json.loads(printed)["settings"]}
    assert (settings["dim"], settings["damping"], settings["n_draws"]) == ("256", "none", "")
    status, printed, _ = call(capsys, "models", "diff4rec")
    assert "as published: all" in " ".join(printed.split())


def test_a_split_file_trains(
    folder: Path, data: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = pl.read_csv(log)["user_id"].unique(maintain_order=True)
    parts = pl.Series(["train", "train", "valid", "test"] * len(users)).head(len(users))
    pl.DataFrame({"user": users, "part": parts}).write_csv(folder / "parts.csv")
    out, words = folder / "by_file", ("train", data, "--model", "markov")
    by_file = ("--split-file", folder / "parts.csv", "--out", out)
    status, printed, _ = call(capsys, *words, *by_file, "--json")
    assert status == 0
    assert json.loads(printed)["protocol"]["split"].startswith("file parts.csv (")
    status, _, error = call(capsys, *words, *by_file, "--split", "temporal")
    assert status == 2
    assert "leave one out" in error
    (folder / "parts.csv").write_text("user,part\n", encoding="utf-8")
    status, _, error = call(capsys, "evaluate", out, "--split", "valid", "--keep-seen")
    assert status == 2
    assert "has changed since this split was named" in error


COMMANDS = {
    info.callback.__name__: info.callback for info in cli.app.registered_commands if info.callback
}


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_help_can_be_copied(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    examples = [
        line.strip()
        for line in (COMMANDS[command].__doc__ or "").splitlines()
        if line.strip().startswith("diffuserec ")
    ]
    assert examples
    status, printed, _ = call(capsys, command, "--help")
    assert status == 0
    assert set(examples) <= {line.strip() for line in printed.splitlines()}


def test_help_and_version_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["--version"], ["train", "--help"]):
        script = (
            "import sys\nfrom diffuserec.cli import main\n"
            f"sys.argv = ['diffuserec', *{words!r}]\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "print('torch' in sys.modules, 'polars' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8"
        )
        assert done.stdout.endswith("False False\n"), done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "diffuserec", "--version"],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.stdout == f"diffuserec {diffuserec.__version__}\n"


def test_settings_of_a_method_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = call(capsys, "models", "sasrec", "--json")
    assert status == 0
    found = {setting["name"]: setting for setting in json.loads(printed)["settings"]}
    assert list(found) == list(find_recommender("sasrec").Config.model_fields)
    assert found["dropout"] | {"meaning": ""} == {
        "name": "dropout",
        "type": "float",
        "bounds": ">= 0, < 1",
        "default": "0.5",
        "meaning": "",
        "only_if": "",
        "searched": "0.1 to 0.7",
        "as_published": "",
    }
    assert found["gbce_t"]["only_if"] == "Only with loss = gbce."
    assert found["gbce_t"]["meaning"] == "Calibration of gbce; 0, and no offset, is plain bce."
    assert found["n_negatives"]["type"] == "int | none"
    status, printed, _ = call(capsys, "models", "diffuasr")
    assert status == 0
    assert "--augment-set" in printed
    status, _, error = call(capsys, "models", "sasrek")
    assert (status, "did you mean 'sasrec'" in error) == (2, True)


@pytest.fixture(scope="module")
def contrastive(folder: Path, log: Path) -> Path:
    """A SimDiffRec run on the log and a user of three items, one of which is for training."""
    from diffuserec import read_log

    frame = pl.read_csv(log)
    short = frame.head(3).with_columns(user_id=pl.lit("short"))
    path, run = folder / "with-short.csv", folder / "simdiffrec"
    pl.concat([frame, short]).write_csv(path)
    read_log(path).to_dataset().save(folder / "with-short", note={"source": "a test"})
    settings = ["epochs=1", "dim=8", "n_layers=1", "max_len=10", "k_noise=2"]
    settings += ["num_train_timesteps=40"]
    pairs = [word for setting in settings for word in ("--set", setting)]
    words = ["train", folder / "with-short", "--model", "simdiffrec", *pairs, "--out", run]
    assert run_main(*words) == 0
    return run


def test_views_are_those_that_training_contrasts(
    log: Path, contrastive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = pl.read_csv(log).sort("user_id", "timestamp", maintain_order=True)
    by_user = dict(taken.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    users = [user for user, items in by_user.items() if len(items) >= 8][:2]
    out = tmp_path / "views.html"
    words = ["views", contrastive, "--user", users[1], "--user", users[0]]
    status, printed, _ = call(capsys, *words, "--json")
    assert status == 0
    found = json.loads(printed)
    assert [shown["user"] for shown in found["sequences"]] == users[::-1]
    for shown in found["sequences"]:
        # two items are for validation and test, the newest in training is only a target
        assert shown["items"] == by_user[shown["user"]][:-3][-10:]
        for view in shown["views"]:
            own_items, changes = shown["items"], view["changes"]
            for item, own, change in zip(view["items"], own_items, changes, strict=True):
                assert change in ("", "replaced", "kept")
                assert (item != own) == (change == "replaced")
            assert 0 < min(view["confidence"]) <= max(view["confidence"]) < 1
            n_chosen = sum(change != "" for change in changes)
            assert n_chosen == -(-len(shown["items"]) // 5)  # a fifth, rounded up
    positive, negative = found["metrics"]
    assert (positive["view"], negative["view"]) == ("positive", "hard negative")
    values = positive["values"]
    assert values["changed"] == negative["values"]["changed"] >= 1
    assert values["confidence_changed"] > values["confidence"]  # the most confident ones

    status, printed, _ = call(capsys, *words, "--out", out)
    assert status == 0
    views = [view for shown in found["sequences"] for view in shown["views"]]
    changes = [change for view in views for change in view["changes"]]
    lines = [line for line in printed.splitlines() if line.startswith("│ ")]
    page = out.read_text(encoding="utf-8")
    for sign, change in (("* ", "replaced"), ("= ", "kept")):
        assert sum(line.count(f"│ {sign}") for line in lines) == changes.count(change)
        assert page.count(f"<b>{sign[0]}&nbsp;") == changes.count(change)
    for word in ("confidence", "similarity of two random items", users[0], users[1]):
        assert word in printed
        assert word in page


def test_views_of_drawn_users_are_those_of_the_seed(
    contrastive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def users(*words: object) -> list[str]:
        status, printed, _ = call(capsys, "views", contrastive, *words, "--json")
        assert status == 0
        return [shown["user"] for shown in json.loads(printed)["sequences"]]

    assert len(users()) == 3
    assert users("--n", 2, "--seed", 1) == users("--n", 2, "--seed", 1)
    assert users("--n", 2, "--seed", 1) != users("--n", 2, "--seed", 2)
    assert "short" not in users("--n", 9999)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["VIEWS", "--user", "nobody"], "the training part holds no user 'nobody'"),
        (["VIEWS", "--user", "short"], "user 'short' has too few training items"),
        (["VIEWS", "--n", "0"], "n must be at least 1, got 0"),
        (["PLAIN"], "sasrec, which contrasts no views; these do: cadirec, cl4srec"),
        (["nowhere"], "nowhere is not a run"),
    ],
)
def test_views_refuse_in_one_line(
    words: list[str],
    message: str,
    contrastive: Path,
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"VIEWS": str(contrastive), "PLAIN": str(runs["plain"])}
    out = tmp_path / "views.html"
    run, *rest = (places.get(word, word) for word in words)
    status, printed, error = call(capsys, "views", run, *rest, "--out", out)
    assert status == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert printed == ""
    assert not out.exists()


def test_reports_of_contrastive_runs_alone_show_views(
    contrastive: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    heading = "<h2>Views that training contrasts</h2>"
    page = (contrastive / "report.html").read_text(encoding="utf-8")
    assert page.count(heading) == 1
    assert page.count("<h3>simdiffrec, user ") == 3
    assert "similarity of two random items" in page
    assert heading not in (runs["plain"] / "report.html").read_text(encoding="utf-8")
    out = tmp_path / "compared.html"
    assert run_main("compare", contrastive, "--out", out) == 0
    assert out.read_text(encoding="utf-8").count("<h3>simdiffrec, user ") == 3


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to send")
@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_an_interrupted_training_says_how_to_go_on(
    number: signal.Signals, status: int, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", data, "--model", "sasrec", "--set", "epochs=2000", "--set", "patience=2000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffuserec.cli", *words, "--set", "dim=8", "--out", out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("fit: "))
    assert re.fullmatch(r"fit: epoch 1 of 2000, loss .*, valid .*, at most .* left\n", line)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == status
    assert "interrupted; to continue from the last epoch, add --resume to the same command" in said
    left = {part.name for part in out.iterdir()} - {"epochs.jsonl"}  # killed before its first line
    assert left == {"run.json", "checkpoint"}
    command = json.loads((out / "run.json").read_text(encoding="utf-8"))["starts"][0]["command"]
    assert command.startswith("diffuserec train ")
    assert command.endswith(f"--set dim=8 --out {out}")
    assert [part.name for part in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to send")
def test_a_termination_after_a_command_has_ended_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, calls = signal.signal, []

    def set_handler(number: int, handler: Any) -> Any:
        calls.append(number)
        if len(calls) == 3:  # the first that is put back
            os.kill(os.getpid(), signal.SIGTERM)
        return own(number, handler)

    monkeypatch.setattr(signal, "signal", set_handler)
    monkeypatch.setattr(sys, "argv", ["diffuserec", "--version"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert len(calls) == 4


def test_data_that_moved_is_named(
    data: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    run, page = runs["plain"], tmp_path / "page.html"
    for words in (["evaluate", run], ["compare", run, "--out", page]):
        assert run_main(*words, "--data", moved) == 0
    capsys.readouterr()
    status, _, error = call(capsys, "compare", run, "--out", page)
    assert (status, "exists already: choose another --out, or add --overwrite" in error) == (
        2,
        True,
    )
    assert run_main("compare", run, "--out", page, "--overwrite") == 0
