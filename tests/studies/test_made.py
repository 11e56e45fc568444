"""Commands on a report's page do what the page says."""

import shlex
from dataclasses import replace
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from diffuserec.cli import app
from diffuserec.cli.options import parse_pairs
from diffuserec.data import Store
from diffuserec.models.base import Runtime
from diffuserec.studies.made import made_of, next_steps, train_command
from diffuserec.studies.run_directory import Plan, open_run, read_curve
from diffuserec.studies.train_run import train_run

SETTINGS = {
    "epochs": 3,
    "lr": 1e-05,
    "loss": "gbce",
    "name": "a 'b' \"c\"",
    "like_a_number": "12",
    "flag": True,
    "sizes": [1, 2],
    "names": ["x, y", "z"],
    "encoder_settings": {"n_layers": 2, "kind": "a"},
}


def test_a_command_gives_the_settings_back():
    plan = Plan("my data", "sasrec", SETTINGS, "random", {"n_items": 4}, "temporal", 7)
    words = shlex.split(train_command(plan, "runs/a b"))
    given = [value for word, value in pairwise(words) if word == "--set"]
    assert parse_pairs(given) == SETTINGS
    assert words[:5] == ["diffuserec", "train", "my data", "--model", "sasrec"]
    rest = ["--augment", "random", "--augment-set", "n_items=4", "--split", "temporal"]
    assert words[-10:] == [*rest, "--seed", "7", "--out", "runs/a b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    Store(n_users=80, n_items=40).dataset().save(folder / "data")
    return folder


@pytest.mark.slow
def test_the_commands_of_the_page_work(folder):
    plan = Plan(str(folder / "data"), "sasrec", {"epochs": 1, "dim": 8})
    run = train_run(plan, folder / "run", Runtime(device="cpu"))
    steps = next_steps(run, run.evaluate())
    page = (folder / "run" / "report.html").read_text("utf-8")
    assert "What to do next" in page
    assert "Lists of some users" in page
    commands = [line for _, command in steps for line in command.splitlines()]
    assert [shlex.split(command)[1] for command in commands] == [
        "recommend",
        "evaluate",
        "train",
        "compare",
    ]
    for command in commands:
        answer = CliRunner().invoke(app, shlex.split(command)[1:])
        assert answer.exit_code == 0, answer.output
    made = made_of(open_run(folder / "run"))
    assert made.settings == {"epochs": "1", "dim": "8", "batch_size": "16"}  # the last by the log
    assert (made.epochs, made.directory) == (1, str(folder / "run"))
    assert made.seconds > 0


def test_a_resumed_run_took_the_time_of_all_its_epochs_and_their_validation(
    folder, tmp_path, monkeypatch
):
    plan = Plan(str(folder / "data"), "sasrec", {"epochs": 2, "dim": 8})
    run = open_run(train_run(plan, tmp_path / "run", Runtime(device="cpu"), report=False).path)
    curve = read_curve(run.path / "curve.json")
    # longer than the run's last start, as where it was resumed
    longer = [replace(epoch, seconds=100.0, validation_seconds=10.0) for epoch in curve]
    monkeypatch.setattr("diffuserec.studies.made.read_curve", lambda file: longer)
    assert made_of(run).seconds == 220.0


def test_whoever_comes_back_is_told_how_to_keep_seen_items(folder):
    plan = Plan(str(folder / "data"), "popularity", {})
    run = train_run(plan, folder / "popularity", Runtime(device="cpu"))
    result = run.evaluate()
    repeats = result.protocol.__class__(**{**vars(result.protocol), "repeat_share": 0.2})
    steps = next_steps(run, result.__class__(**{**vars(result), "protocol": repeats}))
    assert [command.endswith("--keep-seen") for _, command in steps] == [False, True, True, False]
