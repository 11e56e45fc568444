"""What a training is said to cost, from some of its steps."""

import json
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from diffuserec.cli import app
from diffuserec.data import Store
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Settings
from diffuserec.models.methods import register
from diffuserec.models.recommender import ScoreRecommender
from diffuserec.studies.cells import Cell, seconds_to_the_limit
from diffuserec.studies.costs import Costs, advice, foresee, spoken
from diffuserec.studies.run_directory import Plan

N_USERS = 1500


class Clockwork(ScoreRecommender):
    """A method whose epochs take a millisecond a user, and another one a second phase of half."""

    class Config(Settings):
        epochs: int = 40

    trained = True

    def build(self, catalog):
        self.n_items = catalog.n_items

    def learn(self, train, valid, runtime):
        found = []
        for phase, share in (("first", 1.0), ("fit", 0.5)):
            for number in range(self.config.epochs):
                epoch = Epoch(phase, number, 1.0, None, share * len(train) / 1000)
                found.append(epoch)
                if number:
                    time.sleep(epoch.seconds)
                if valid is not None:
                    time.sleep(len(valid) / 4000)
                if runtime.on_epoch(epoch):
                    break
        return found

    def all_scores(self, histories):
        raise NotImplementedError


class Closing(Clockwork):
    """A method whose epochs take a hundredth of a second for each user and two seconds to close."""

    def learn(self, train, valid, runtime):
        for number in range(self.config.epochs):
            if runtime.on_epoch(Epoch("fit", number, 1.0, None, 2 + len(train) / 100)):
                break
        return []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("costs") / "data"
    Store(n_users=N_USERS, n_items=40).dataset().save(path)
    return path


def test_time_is_in_proportion_to_users_and_queries(data):
    register(Clockwork)
    found = foresee(Plan(str(data), "clockwork", {}), Runtime(device="cpu"))
    assert found.users == N_USERS
    assert found.epoch_seconds == pytest.approx({"first": N_USERS / 1000, "fit": N_USERS / 2000})
    assert found.validation_seconds == pytest.approx(N_USERS / 4000, rel=0.5)
    expected = 40 * (N_USERS / 1000 * 1.5 + found.validation_seconds)
    assert found.seconds == pytest.approx(expected)


def test_what_an_epoch_takes_whatever_the_users_is_counted_once(data):
    register(Closing)
    found = foresee(Plan(str(data), "closing", {}), Runtime(device="cpu"))
    assert found.epoch_seconds == pytest.approx({"fit": 2 + N_USERS / 100})


def test_a_study_foresees_all_users_of_its_data(data):
    register(Clockwork)
    plan = Plan(str(data), "clockwork", {}, split="leave-one-out")
    cell = Cell("it", "data", plan, "", "full", precision="fp32")
    found = seconds_to_the_limit(cell, Runtime(device="cpu"), users=100)
    assert found == pytest.approx(40 * N_USERS / 1000 * 1.5)


def test_the_command_counts_all_epochs_and_the_price(tmp_path):
    data = tmp_path / "data"
    Store(n_users=60, n_items=40).dataset().save(data)
    result = CliRunner().invoke(
        app, ["plan", str(data), "--model", "bpr", "--set", "epochs=7", "--json", "--price", "2"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["epochs"] == 7
    assert found["parameters"] > 64 * 40
    assert found["price"] == pytest.approx(found["seconds"] / 1800)
    assert found["memory"] > 2**27


def test_words():
    costs = Costs(10, 20, 100, 5, 3, {"fit": 2.0}, 0.5, None, True)
    assert costs.seconds == 7.5
    assert costs.facts()["all, at most (3 epochs)"] == "7.5 s"
    assert [spoken(s) for s in (45.0, 100.0, 7260.0)] == ["45 s", "2 min", "2 h 1 min"]
    assert "seeds" in advice(costs)[0]
    assert not advice(replace(costs, epochs=300, epoch_seconds={"fit": 10.0}))
    long = replace(costs, items=10**6, epochs=100, epoch_seconds={"fit": 1000.0})
    assert ["long" in line or "scores" in line for line in advice(long)] == [True, True]
    assert len(advice(replace(long, full_softmax=False))) == 1  # negatives are sampled already
