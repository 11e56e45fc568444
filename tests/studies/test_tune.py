"""Tuning: what is searched, defaults first, on validation alone, resumed, written and read back."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffuserec import Runtime, Store, evaluate, leave_one_out
from diffuserec.data import SequenceDataset, load_dataset
from diffuserec.errors import ConfigError
from diffuserec.evaluation import load_evaluation
from diffuserec.models.config import OnlyIf, Search, parse_settings
from diffuserec.models.methods import find_augmenter, find_recommender, method_names
from diffuserec.studies.ledger import looks
from diffuserec.studies.method_config import read_config
from diffuserec.studies.run_directory import Plan, read_curve
from diffuserec.studies.study import lines, read
from diffuserec.studies.train_run import methods_of
from diffuserec.studies.tune import default_of, run_trial, search_space, tune, with_settings_of

pytest.importorskip("optuna")

RUNTIME = Runtime(device="cpu", progress=False)
METHODS = [("recommender", name) for name in method_names("recommender")]
METHODS += [("augmenter", name) for name in method_names("augmenter")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune") / "store"
    Store(n_users=100, n_items=40, seed=1).dataset().save(path, note={})
    return path


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_search_spaces_hold_the_default_and_what_they_propose_is_valid(
    kind: str, name: str
) -> None:
    schema = (find_recommender if kind == "recommender" else find_augmenter)(name).Config
    draw = np.random.default_rng(0)
    for setting, field in schema.model_fields.items():
        for rule in field.metadata:
            if not isinstance(rule, Search):
                continue
            default = field.get_default(call_default_factory=True)
            if rule.choices:
                assert default in rule.choices or default is None, setting
                proposed = list(rule.choices)
            else:
                assert rule.low is not None
                assert rule.high is not None
                assert rule.low < rule.high
                assert not rule.log or rule.low > 0
                assert default is None or rule.low <= default <= rule.high, setting
                middle = draw.uniform(rule.low, rule.high)
                whole = isinstance(rule.low, int) and isinstance(rule.high, int)
                proposed = [rule.low, rule.high, round(middle) if whole else middle]
            conditional = any(isinstance(other, OnlyIf) for other in field.metadata)
            for value in proposed:
                if not conditional:
                    parse_settings(schema, {setting: value}, name)


def test_given_settings_are_not_searched() -> None:
    plan = Plan("x", "sasrec", {"dim": 8}, "random", {})
    space = search_space(plan)
    assert "dim" not in space
    assert {"learning_rate", "dropout", "augment.n_items"} <= space.keys()
    log = SequenceDataset.from_lists([[1 + i % 9 for i in range(60)]] * 20)
    assert default_of(plan, "augment.n_items", log) == find_augmenter("random")().config.n_items
    assert [default_of(plan, name, log) for name in ("dropout", "batch_size")] == [0.2, 16]
    chosen = with_settings_of(plan, {"dropout": 0.2, "augment.n_items": 3})
    assert chosen.settings == {"dim": 8, "dropout": 0.2}
    assert chosen.augment_settings == {"n_items": 3}
    with pytest.raises(ConfigError, match="no settings to search"):
        search_space(Plan("x", "popularity", {}))


def test_tuning_begins_with_the_defaults_and_goes_on(data: Path, tmp_path: Path) -> None:
    fixed = {"dim": 8, "epochs": 2, "batch_size": 64, "n_layers": 1}
    plan, out = Plan(str(data), "sasrec", fixed), tmp_path / "tune"
    said: list[str] = []
    first = tune(plan, out, 2, RUNTIME, workers=1, say=said.append)
    assert [trial.number for trial in first.trials] == [0, 1]
    defaults = find_recommender("sasrec")().config
    assert first.trials[0].settings == {
        "learning_rate": defaults.learning_rate,
        "dropout": defaults.dropout,
    }
    again = tune(plan, out, 5, RUNTIME, workers=1, say=said.append)
    assert again.trials[:2] == first.trials
    assert len(again.trials) == 5
    assert len({json.dumps(dict(trial.settings)) for trial in again.trials}) == 5
    finished = [trial for trial in again.trials if trial.state == "finished"]
    assert again.trials[again.best].valid == max(trial.valid or 0.0 for trial in finished)
    # the test part was never looked at
    assert sum(look["epochs"] for look in looks(out)) == sum(t.epochs for t in again.trials)
    events = [look["event"] for run in (out / "runs").iterdir() for look in looks(run)]
    assert set(events) == {"validation"}
    # the settings are read back, by people, by train and by studies
    config = read_config(out / "best.toml")
    assert config.settings == dict(again.plan.settings)
    assert config.trials == 5
    assert "not looked at" in (out / "best.toml").read_text(encoding="utf-8")
    text = 'title = "t"\ndata = ["store"]\n[[rows]]\nmodel = "sasrec"\nconfig = "best.toml"\n'
    (out / "study.toml").write_text(text, encoding="utf-8")
    (line, *_) = lines(read(out / "study.toml"))
    assert methods_of(line.plan)[0].config == methods_of(again.plan)[0].config
    assert line.trials == 5
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "0 (defaults)" in page
    assert page.count("<svg") == 1 + bool(again.importance)
    with pytest.raises(ConfigError, match="the trials there are of another model"):
        tune(Plan(str(data), "gru4rec", {}), out, 6, RUNTIME, workers=1)
    with pytest.raises(ConfigError, match="at least 1"):
        tune(plan, out, 0, RUNTIME)
    with pytest.raises(ConfigError, match="at least 1"):
        tune(plan, out, 6, RUNTIME, workers=0)


def test_a_trial_that_was_killed_begins_again(data: Path, tmp_path: Path) -> None:
    fixed = {"dim": 8, "epochs": 1, "batch_size": 64, "n_layers": 1, "dropout": 0.1}
    plan, out = Plan(str(data), "sasrec", fixed), tmp_path / "tune"

    def stop(line: str) -> None:
        if line.startswith("trial 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(plan, out, 4, RUNTIME, workers=1, say=stop)
    # a process that was killed leaves a trial that runs for ever
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(out / "journal.log")))
    study = optuna.load_study(study_name="tune", storage=storage)
    killed = study.ask(
        {"learning_rate": optuna.distributions.FloatDistribution(2e-4, 5e-3, log=True)}
    )
    found = tune(plan, out, 4, RUNTIME, workers=1)
    assert [trial.state for trial in found.trials] == ["finished"] * 4
    assert killed.params in [trial.settings for trial in found.trials]
    assert killed.number not in [trial.number for trial in found.trials]
    assert read_config(out / "best.toml").trials == 4


@pytest.mark.parametrize("drawn", [False, True])
def test_the_defaults_are_tried_though_a_kill_interrupted_them(
    data: Path, tmp_path: Path, drawn: bool
) -> None:
    fixed = {"dim": 8, "epochs": 1, "batch_size": 64, "n_layers": 1, "dropout": 0.1}
    plan, out = Plan(str(data), "sasrec", fixed), tmp_path / "tune"

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before the first trial, which waits by then
        tune(plan, out, 1, RUNTIME, workers=1, say=stop)
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(out / "journal.log")))
    for _ in range(2):  # the trial that takes it up again is killed, too
        trial = optuna.load_study(study_name="tune", storage=storage).ask()
        if drawn:
            trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True)
        with pytest.raises(KeyboardInterrupt):
            tune(plan, out, 1, RUNTIME, workers=1, say=stop)
    found = tune(plan, out, 2, RUNTIME, workers=1)
    defaults = find_recommender("sasrec")().config
    assert [trial.default for trial in found.trials] == [True, False]
    assert found.trials[0].settings == {"learning_rate": defaults.learning_rate}
    assert [trial.state for trial in found.trials] == ["finished", "finished"]
    text = (out / "best.toml").read_text(encoding="utf-8")
    assert f"defaults {found.trials[0].valid:.4f}" in text
    assert "(defaults)" in (out / "report.html").read_text(encoding="utf-8")


def test_trials_are_compared_by_the_trained_recommender(data: Path, tmp_path: Path) -> None:
    """The augmenter's epochs, and pretraining, are validated in other measures."""
    fixed = {"dim": 8, "epochs": 1, "batch_size": 64, "n_layers": 1, "learning_rate": 0.001}
    theirs = {"model_settings": {"dim": 16, "epochs": 6, "batch_size": 16, "learning_rate": 0.005}}
    plan = Plan(str(data), "sasrec", fixed, "asrep", theirs)
    out = tmp_path / "tune"
    found = tune(plan, out, 1, RUNTIME, workers=1)
    (run,) = (out / "runs").iterdir()
    epochs = read_curve(run / "curve.json")
    own = [epoch.valid for epoch in epochs if epoch.phase == "fit"]
    others = [epoch.valid for epoch in epochs if epoch.phase != "fit" and epoch.valid is not None]
    assert len(own) == 1
    assert others
    assert own[0] is not None
    assert max(others) > own[0]
    assert found.trials[0].valid == pytest.approx(own[0])
    assert found.trials[0].valid == load_evaluation(run / "valid").metrics["NDCG@10"]
    assert found.trials[0].epochs == len(own) + len(others)


def test_methods_without_epochs_are_tuned(data: Path, tmp_path: Path) -> None:
    found = tune(Plan(str(data), "markov", {}), tmp_path / "tune", 3, RUNTIME, workers=1)
    for trial in found.trials:
        model = find_recommender("markov")(**trial.settings)
        split = leave_one_out(load_dataset(data))
        metrics = evaluate(model.fit(split.train), split.valid).metrics
        assert trial.valid == pytest.approx(metrics["NDCG@10"])
        assert trial.epochs == 0
    assert found.trials[0].default
    assert [line["epochs"] for line in looks(tmp_path / "tune")] == [1, 1, 1]


def test_a_config_file_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    for text, message in (
        ('model = "sasrec"\nsetings = {}', "did you mean 'settings'"),
        ("settings = {}", "model: Field required"),
        ("model = ", "cannot be read as TOML"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            read_config(file)


def test_pruning_spares_the_defaults_and_keeps_what_was_spent(data: Path, tmp_path: Path) -> None:
    fixed = {"dim": 8, "epochs": 7, "batch_size": 100, "n_layers": 1, "dropout": 0.0}
    plan, out = Plan(str(data), "sasrec", fixed), tmp_path / "tune"

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(plan, out, 1, RUNTIME, workers=1, say=stop)
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(out / "journal.log")))
    study = optuna.load_study(study_name="tune", storage=storage)
    study.ask()  # the defaults, killed while others went on that are far better
    for number in range(4):
        study.enqueue_trial({"learning_rate": 0.0049 - number / 10_000})
        run_trial(plan, out, number, RUNTIME)
    study.enqueue_trial({"learning_rate": 0.001001})
    found = tune(plan, out, 6, RUNTIME, workers=1)
    states = {trial.settings["learning_rate"]: trial.state for trial in found.trials}
    assert states[0.001001] == "pruned"
    assert states[0.001] == "finished"
    assert [trial.settings["learning_rate"] for trial in found.trials if trial.default] == [0.001]
    # the run of the pruned trial is gone, its line is not
    lines = looks(out)
    assert [line["state"] for line in lines] == [trial.state for trial in found.trials]
    assert [line["epochs"] for line in lines] == [trial.epochs for trial in found.trials]
    assert {line["settings"]["learning_rate"] for line in lines} == states.keys()
    assert len(list((out / "runs").iterdir())) == 5
    tune(plan, out, 6, RUNTIME, workers=1)
    assert looks(out) == lines
