"""The command line end to end on a small log: what it prints, writes, refuses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from diffuserec import Store, cli
from diffuserec.studies.run_directory import cost, read_curve

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
    stored = json.loads((runs["plain"] / "test" / "metrics.json").read_text())
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
        assert json.loads((path / "run.json").read_text())["complete"]
        assert (path / "report.html").read_text().lower().startswith("<!doctype html>")
        assert not (path / "checkpoint").exists()
        assert len(json.loads((path / "curve.json").read_text())) == 2


def test_compare_names_floors_and_significance(
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


def test_recommend_takes_and_gives_raw_ids(
    folder: Path, log: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = pl.read_csv(log)["item_id"].unique().sort().to_list()
    history = f"{ids[0]},{ids[1]},nothing-of-the-kind"
    words = ("recommend", runs["plain"], "--history", history, "-k", 4, "--json")
    status, printed, _ = call(capsys, *words)
    assert status == 0
    rows = json.loads(printed)["recommendations"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert {row["item_id"] for row in rows} <= set(ids) - {ids[0], ids[1]}
    assert rows[0]["n_unknown"] == 1
    status, _, error = call(
        capsys, "recommend", runs["plain"], "--history", history, "--refuse-unknown"
    )
    assert status == 2
    assert "nothing-of-the-kind" in error
    out = folder / "lists.csv"
    call(capsys, "recommend", runs["longer"], "--histories", log, "-k", 2, "--out", out)
    lists = pl.read_csv(out)
    assert lists.height == 2 * pl.read_csv(log)["user_id"].n_unique()


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
    rows = json.loads(printed)["recommendations"]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(0 < row["spread"] < row["score"] < 1 for row in rows)
    assert "1 of 1 histories are longer than the 10 items that diffrec looks back on" in said
    _, newest, said = call(
        capsys, "recommend", run, "--history", ",".join(ids[4:14]), "--json", "--keep-seen"
    )
    assert "longer" not in said
    _, all_items, _ = call(capsys, *words[:-2], "--json", "--keep-seen")
    by_item = [
        {row["item_id"] for row in json.loads(text)["recommendations"]}
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
    page = (run / "report.html").read_text()
    assert "What one draw of noise shows" in page
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


def test_augment_writes_variants_as_users_of_their_own(
    folder: Path, log: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "variants.parquet"
    words = ["augment", data, "--method", "diff4rec", "--out", out]
    for setting in ("n_variants=2", "epochs=1", "latent_dim=4", "hidden_dim=8", "reorder=none"):
        words += ["--set", setting]
    assert call(capsys, *words)[0] == 0
    real = pl.read_csv(log).sort(["user_id", "timestamp"], maintain_order=True)
    made = pl.read_parquet(out)
    kept = made.filter(~pl.col("synthetic"))
    assert sorted(kept["item_id"].to_list()) == sorted(real["item_id"].to_list())
    lengths = {user: rows.height for (user,), rows in made.group_by("user_id")}
    own = {
        str(user): rows["item_id"]
        for (user,), rows in real.group_by("user_id", maintain_order=True)
    }
    assert len(lengths) == 3 * len(own)
    for user, items in own.items():
        for number in (1, 2):
            variant = made.filter(pl.col("user_id") == f"{user}#{number}")
            assert variant["synthetic"].all()
            # of the training part: all but the last two
            assert variant.height == len(items) - 2 if len(items) > 2 else len(items)
            same = (variant["item_id"] == items[: variant.height]).sum()
            assert 0 < variant.height - same <= max(1, 0.2 * variant.height + 0.5)


def test_variants_are_of_histories_of_all_lengths(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--method", "diff4rec", "--max-history", 5, "--out", tmp_path / "variants.csv")
    status, _, error = call(capsys, "augment", data, *words)
    assert status == 2
    assert "leave out --max-history" in error


def test_settings_that_do_not_fit_the_catalog_are_told_before_anything_is_fitted(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--model", "mfgan", "--set", "n_candidates=100", "--augment", "random", "--out", out]
    status, _, error = call(capsys, "train", data, *words)
    assert status == 2
    assert "n_candidates 100 is more than the" in error
    assert not out.exists()
    file = tmp_path / "two.toml"
    file.write_text(
        EXPERIMENT
        + """
[[rows]]
name = "MFGAN"
model = "mfgan"
settings = { n_candidates = 100 }
"""
    )
    status, _, error = call(capsys, "experiment", file, data, "--out", out)
    assert status == 2
    assert "n_candidates 100 is more than the" in error
    assert not out.exists()


def test_a_run_on_variants_shows_them_and_is_compared(
    folder: Path, data: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "varied"
    words = ["train", data, "--model", "sasrec", *QUICK, "--augment", "diff4rec", "--out", out]
    for setting in ("n_variants=2", "epochs=1", "latent_dim=4", "hidden_dim=8"):
        words += ["--augment-set", setting]
    assert call(capsys, *words)[0] == 0
    phases = [epoch.phase for epoch in read_curve(out / "curve.json")]
    assert phases == ["diff4rec fit", *["fit"] * cost(out)["epochs"]]
    text = (out / "report.html").read_text()
    assert "What was trained on beside the sequences" in text
    assert "variant 2, difficulty" in text
    assert "What the augmenter made up" not in text
    status, printed, _ = call(capsys, "compare", runs["plain"], out, "--out", folder / "v.html")
    assert status == 0
    assert "sasrec + diff4rec" in printed
    assert "variant 2, difficulty" in (folder / "v.html").read_text()


def test_models_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed, _ = call(capsys, "models", "--json")
    names = {row["name"] for row in json.loads(printed)["methods"]}
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
    ("words", "told"),
    [
        (["describe", "nowhere"], "nowhere"),
        (["train", "DATA", "--model", "sasrek", "--out", "x"], "did you mean 'sasrec'"),
        (["train", "DATA", "--model", "sasrec", "--set", "dims=3", "--out", "x"], "'dim'"),
        (["train", "DATA", "--model", "sasrec", "--set", "dim", "--out", "x"], "name=value"),
        (["train", "DATA", "--model", "sasrec", "--split", "random", "--out", "x"], "temporal"),
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
            "3 epochs end before all 10 variants are in use",
        ),
        (["train", "RUN", "--model", "sasrec", "--out", "x"], "not a prepared dataset"),
        (["evaluate", "DATA"], "not a run"),
        (["evaluate", "RUN", "--candidates", "uniform:9999"], "9999"),
        (["recommend", "RUN"], "--history"),
        (["recommend", "RUN", "--history", "a", "--out", "x.doc"], ".csv"),
        (["train", "DATA", "--model", "sasrec", "--out", "RUN"], "--resume"),
        (["augment", "DATA", "--method", "random", "--out", "x.doc"], "parquet"),
        (["augment", "DATA", "--method", "random", "--out", "no/x.csv"], "no folder"),
        (["demo", "--out", "DATA"], "not a demo's"),
        (["recommend", "RUN", "--history", "a", "--out", "no/x.csv"], "no/"),
        (["experiment", "nowhere.toml", "DATA", "--out", "x"], "nowhere.toml"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str],
    told: str,
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
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_resumes_to_the_same_model(data: Path, tmp_path: Path) -> None:
    settings = ["--set", "epochs=40", "--set", "dim=16", "--set", "patience=40"]
    command = [sys.executable, "-m", "diffuserec.cli", "train", str(data), "--model", "sasrec"]

    def model(path: Path) -> bytes:
        return (path / "model" / "weights.safetensors").read_bytes()

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, "--out", whole, *settings], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "--out", cut, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    state = cut / "checkpoint" / "model" / "fit.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "model").exists(), "it was to be killed in the middle"
    refused = subprocess.run([*command, "--out", cut, *settings], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = [*command, "--out", cut, *settings, "--resume"]
    subprocess.run(resumed, check=True, capture_output=True)
    assert model(cut) == model(whole)


EXPERIMENT = """
title = "Three rows"
seeds = [0, 1]

[[rows]]
name = "Order 1"
model = "markov"
settings = { decay = 0.0 }
seeds = [0]

[[rows]]
name = "Plain"
model = "sasrec"
settings = { epochs = 1, dim = 16 }

[[rows]]
name = "With DiffuASR"
model = "sasrec"
settings = { epochs = 1, dim = 16 }
augment = "diffuasr"
augment_settings = { n_items = 4, epochs = 1, pretrain_epochs = 1, num_inference_steps = 2 }

[[rows]]
name = "GRU4Rec with DiffuASR"
model = "gru4rec"
settings = { epochs = 1, dim = 16 }
augment = "diffuasr"
augment_settings = { n_items = 4, epochs = 1, pretrain_epochs = 1, num_inference_steps = 2 }
seeds = [1]
"""


def test_an_experiment_reports_its_rows_and_keeps_what_is_done(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "two.toml", tmp_path / "runs"
    file.write_text(EXPERIMENT)
    status, printed, _ = call(capsys, "experiment", file, data, "--out", out)
    assert status == 0
    report = json.loads((out / "report.json").read_text())
    everyone = {r["method"]: r["n_seeds"] for r in report["summary"] if r["group"] == "all"}
    floors = {"Order 1": 1, "popularity": 1, "markov": 1}
    augmented = {"With DiffuASR": 2, "GRU4Rec with DiffuASR": 1}
    assert everyone == {"Plain": 2, **augmented, **floors}
    against = {row["method"]: row["reference"] for row in report["comparisons"]}
    assert against.pop("With DiffuASR") == "Plain"  # what it adds to the same recommender
    assert set(against.values()) == {"Order 1"}
    spent = [(run["method"], run["seed"], run["epochs"]) for run in report["training"]]
    assert spent[1:3] == [("Plain", 0, 1), ("Plain", 1, 1)]
    assert all(run["seconds"] > 0 for run in report["training"])
    assert "With DiffuASR" in (out / "report.html").read_text()
    weights = out / "plain-seed1" / "model" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    status, again, _ = call(capsys, "experiment", file, data, "--out", out)
    assert (status, again) == (0, printed)
    assert weights.stat().st_mtime_ns == before
    file.write_text(EXPERIMENT.replace("dim = 16", "dim = 24"))
    status, _, error = call(capsys, "experiment", file, data, "--out", out)
    assert status == 2
    assert "settings" in error
    shared = [
        json.loads((out / run / "augmenter" / "manifest.json").read_text())["sha256"]
        for run in ("with-diffuasr-seed0", "with-diffuasr-seed1", "gru4rec-with-diffuasr-seed1")
    ]
    assert shared[0] == shared[1] == shared[2]


def test_an_experiment_tells_of_a_wrong_row_before_it_trains_any(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "two.toml", tmp_path / "runs"
    file.write_text(EXPERIMENT.replace("n_items = 4", "n_item = 4"))
    status, _, error = call(capsys, "experiment", file, data, "--out", out)
    assert status == 2
    assert "n_items" in error
    file.write_text(EXPERIMENT.replace('"Plain"', '"With-DiffuASR"'))
    status, _, error = call(capsys, "experiment", file, data, "--out", out)
    assert status == 2
    assert "differ in letters" in error
    assert not out.exists()
    file.write_text(EXPERIMENT)
    foreign = out / "gru4rec-with-diffuasr-seed1"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    status, _, error = call(capsys, "experiment", file, data, "--out", out)
    assert status == 2
    assert "is not a run" in error
    assert list(out.iterdir()) == [foreign]


def test_a_trained_floor_keeps_its_own_row(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "order-1"
    assert run_main("train", data, "--model", "markov", "--set", "decay=0.0", "--out", out) == 0
    capsys.readouterr()
    _, printed, _ = call(capsys, "compare", out, "--json")
    values = {
        row["method"]: row["value"]
        for row in json.loads(printed)["summary"]
        if row["metric"] == "MRR" and row["group"] == "all"
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
    assert "temporal" in json.loads(printed)["protocol"]["split"]


def test_help_shows_examples_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("prepare", "train", "evaluate", "recommend", "experiment", "curve", "views"):
        status, printed, _ = call(capsys, command, "--help")
        assert status == 0
        lines = [line.strip() for line in printed.splitlines()]
        assert any(line.startswith(f"diffuserec {command} ") for line in lines)


@pytest.fixture(scope="module")
def contrastive(folder: Path, log: Path) -> Path:
    """A SimDiffRec run on the log and a user of three items, of whom training sees one."""
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


def test_views_show_what_training_contrasts(
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
            for item, own, mark in zip(view["items"], shown["items"], view["marks"], strict=True):
                assert mark in ("", "replaced", "kept")
                assert (item != own) == (mark == "replaced")
            assert 0 < min(view["confidence"]) <= max(view["confidence"]) < 1
            n_chosen = sum(mark != "" for mark in view["marks"])
            assert n_chosen == -(-len(shown["items"]) // 5)  # a fifth, rounded up
    positive, negative = found["figures"]
    assert (positive["view"], negative["view"]) == ("positive", "hard negative")
    assert positive["changed"] == negative["changed"] >= 1
    assert positive["confidence_changed"] > positive["confidence"]  # the most confident ones

    status, printed, _ = call(capsys, *words, "--out", out)
    assert status == 0
    marks = [m for shown in found["sequences"] for view in shown["views"] for m in view["marks"]]
    signs = ("* ", "replaced"), ("= ", "kept")
    rows = [line for line in printed.splitlines() if line.startswith("│ ")]
    page = out.read_text()
    for sign, mark in signs:
        assert sum(row.count(f"│ {sign}") for row in rows) == marks.count(mark)
        assert page.count(f"<b>{sign[0]}&nbsp;") == marks.count(mark)
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
    ("words", "told"),
    [
        (["VIEWS", "--user", "nobody"], "the training part holds no user 'nobody'"),
        (["VIEWS", "--user", "short"], "user 'short' has too few training items (1)"),
        (["VIEWS", "--n", "0"], "n must be at least 1, got 0"),
        (["PLAIN"], "sasrec, which contrasts no views; these do: cadirec, cl4srec"),
        (["nowhere"], "nowhere is not a run"),
    ],
)
def test_views_refuse_in_one_line(
    words: list[str],
    told: str,
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
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert printed == ""
    assert not out.exists()


def test_reports_of_contrastive_runs_alone_show_views(
    contrastive: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    heading = "<h2>What training contrasts</h2>"
    page = (contrastive / "report.html").read_text()
    assert page.count(heading) == 1
    assert page.count("<h3>simdiffrec, user ") == 3
    assert "similarity of two random items" in page
    assert heading not in (runs["plain"] / "report.html").read_text()
    out = tmp_path / "compared.html"
    assert run_main("compare", contrastive, "--out", out) == 0
    assert out.read_text().count("<h3>simdiffrec, user ") == 3
