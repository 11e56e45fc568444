"""Final models: trained on everything, as a measured run was; and starts from fitted models."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import diffuserec
from diffuserec import BPR, Blend, ConfigError, DataError, Runtime, SASRec, SequenceDataset, Store
from diffuserec.data import from_frame
from diffuserec.files import read_document
from diffuserec.models.base import Epoch
from diffuserec.studies.compare import compare_runs
from diffuserec.studies.final import chosen_epochs, final_plan
from diffuserec.studies.run_directory import Plan, open_run, read_curve
from diffuserec.studies.train_run import train_run

RUNTIME = Runtime(device="cpu", progress=False)
SMALL = {"dim": 8, "epochs": 4, "batch_size": 32}


@pytest.fixture(scope="module")
def log() -> SequenceDataset:
    return Store(n_users=80, n_items=40, seed=1).dataset()


@pytest.fixture(scope="module")
def folder(log: SequenceDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, a measured run on it, and the final model of that run."""
    folder = tmp_path_factory.mktemp("final")
    log.save(folder / "data", note={"filters": "none"})
    plan = Plan(str(folder / "data"), "sasrec", SMALL, seed=3)
    train_run(plan, folder / "run", RUNTIME, report=False)
    train_run(final_plan(folder / "run", folder / "data"), folder / "final", RUNTIME)
    return folder


def best_of(run: Path) -> int:
    """Number of the best epoch of a run, counted from 1."""
    return 1 + int(np.argmax([epoch.valid for epoch in read_curve(run / "curve.json")]))


def test_a_final_model_is_a_fit_to_everything_until_the_best_epoch(
    log: SequenceDataset, folder: Path
) -> None:
    best = best_of(folder / "run")
    stop = replace(RUNTIME, seed=3, on_epoch=lambda epoch: epoch.epoch + 1 == best)
    run = open_run(folder / "run")
    settings = SMALL | {"max_len": run.model.max_len, "dropout": run.model.config.dropout}
    expected = SASRec(**settings).fit(log, runtime=stop).state_dict()
    found = diffuserec.load(folder / "final").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found["popularity"].sum() == len(log.items)


def test_refit_is_train_final_in_one_call(folder: Path, tmp_path: Path) -> None:
    run, data = folder / "run", folder / "data"
    model = diffuserec.refit(run, data, tmp_path / "final", runtime=RUNTIME)
    expected = diffuserec.load(folder / "final").state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    started = tmp_path / "started"
    diffuserec.refit(run, data, started, start=tmp_path / "final", seed=5, runtime=RUNTIME)
    plan = read_document(started / "run.json")["plan"]
    assert (plan["start_from"]["run"], plan["seed"]) == (str(tmp_path / "final"), 5)
    with pytest.raises(ConfigError, match="finished run"):
        diffuserec.refit(run, data, tmp_path / "final", epochs=1, runtime=RUNTIME)
    diffuserec.refit(run, data, tmp_path / "final", epochs=1, runtime=RUNTIME, overwrite=True)
    assert len(read_curve(tmp_path / "final" / "curve.json")) == 1


def test_a_final_run_says_whose_settings_it_has_and_was_not_measured(folder: Path) -> None:
    plan = read_document(folder / "final" / "run.json")["plan"]
    run = open_run(folder / "run")
    assert plan["settings_from"] == {
        "run": str((folder / "run").resolve()),
        "identity": run.identity,
    }
    assert plan["epochs"] == {"fit": best_of(folder / "run")}
    left = {path.name for path in (folder / "final").iterdir()}
    assert not left & {"test", "valid", "report.html", "ledger.jsonl", "checkpoint"}
    assert "settings_from" not in read_document(folder / "run" / "run.json")["plan"]
    final = open_run(folder / "final")
    for attempt in (
        lambda: final.evaluate(),
        lambda: final.evaluate("valid", filter_seen=False),
        lambda: compare_runs([folder / "final"]),
    ):
        with pytest.raises(ConfigError, match=r"final is a final model.* --newest LOG") as told:
            attempt()
        assert "\n" not in str(told.value)


def test_an_interrupted_final_run_ends_as_an_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    plan = final_plan(folder / "run", folder / "data")

    def stop(record: Epoch) -> None:
        if record.epoch == best_of(folder / "run") - 1:  # after the last epoch, before its end
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(plan, tmp_path / "again", replace(RUNTIME, on_epoch=stop))
    train_run(plan, tmp_path / "again", replace(RUNTIME, resume=True))
    one, other = (
        diffuserec.load(path).state_dict() for path in (tmp_path / "again", folder / "final")
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_epochs_are_those_until_the_best_of_each_phase() -> None:
    def phase(name: str, valid: list[float | None]) -> list[Epoch]:
        return [Epoch(name, number, 1.0, value, 0.1) for number, value in enumerate(valid)]

    curve = phase("before", [None, None, None]) + phase("fit", [0.1, 0.3, 0.2])
    assert chosen_epochs(curve) == {"before": 3, "fit": 2}


def test_a_blend_keeps_the_weights_that_validation_chose(folder: Path, tmp_path: Path) -> None:
    plan = Plan(str(folder / "data"), "blend", {"parts": ["markov", "popularity"]})
    chosen = train_run(plan, tmp_path / "blend", RUNTIME, report=False).model
    assert isinstance(chosen, Blend)
    assert len(set(chosen.weights.tolist())) == 2
    final = train_run(final_plan(tmp_path / "blend", folder / "data"), tmp_path / "f", RUNTIME)
    assert isinstance(final.model, Blend)
    assert torch.equal(final.model.weights, chosen.weights)


# --- starts -------------------------------------------------------------------------------------


def lengthened(log: SequenceDataset) -> SequenceDataset:
    """The log with three new items and a new user, whose ids come before all others."""
    ids, users = log.catalog.item_ids, log.catalog.user_ids
    assert users is not None
    rows = [
        (users[int(user)], ids[int(item) - 1], time)
        for user, items in zip(log.users, log, strict=True)
        for time, item in enumerate(items)
    ]
    rows += [("0", new, 100 + n) for n, new in enumerate(["0a", "0b", "0c", ids[0], ids[1]])]
    return from_frame(pl.DataFrame(rows, ["user", "item", "time"], orient="row")).to_dataset()


STILL = {"learning_rate": 1e-12, "epochs": 1}
"""Settings of a training that changes nothing."""


def test_a_start_matches_items_by_raw_id_and_takes_all_else(log: SequenceDataset) -> None:
    old = SASRec(**SMALL, max_len=8).fit(log, runtime=RUNTIME)
    more = lengthened(log)
    assert more.catalog.encode(log.catalog.item_ids).tolist() != list(range(1, 41))
    new = SASRec(**{**SMALL, **STILL}, max_len=8).fit(more, runtime=RUNTIME, start=old)
    history = [log.catalog.item_ids.to_list()[:4]]
    before, after = (
        model.recommend(history, k=43).select("item_id", "score") for model in (old, new)
    )
    both = before.join(after, on="item_id", suffix="_new")
    assert both.height == 36
    assert np.allclose(both["score"], both["score_new"], atol=1e-5)
    rows = new.table.embeddings()[torch.from_numpy(more.catalog.encode(["0a", "0b", "0c"]))]
    assert bool((rows.norm(dim=1) > 0).all())


def test_a_start_matches_users_by_raw_id(log: SequenceDataset) -> None:
    old = BPR(dim=4, epochs=2).fit(log, runtime=RUNTIME)
    more = lengthened(log)
    new = BPR(dim=4, **STILL).fit(more, runtime=RUNTIME, start=old)
    assert more.catalog.user_ids is not None
    assert log.catalog.user_ids is not None
    places = {raw: number for number, raw in enumerate(more.catalog.user_ids)}
    at = torch.tensor([places[raw] for raw in log.catalog.user_ids])
    assert torch.allclose(new.users.vectors.weight[at], old.users.vectors.weight, atol=1e-6)


def test_a_start_of_another_kind_or_size_is_refused(log: SequenceDataset) -> None:
    old = SASRec(dim=4, epochs=1, max_len=8).fit(log, runtime=RUNTIME)
    for other in (SASRec(dim=8, max_len=8), BPR(dim=4), Blend(parts=("markov", "popularity"))):
        with pytest.raises(ConfigError, match=r"can't start|differs in shape"):
            other.fit(log, runtime=RUNTIME, start=old)


def test_a_started_run_takes_a_fifth_of_the_epochs_and_tells(
    log: SequenceDataset, folder: Path, tmp_path: Path
) -> None:
    lengthened(log).save(tmp_path / "more", note={"filters": "none"})
    plan = final_plan(folder / "run", tmp_path / "more", start=folder / "final")
    assert plan.epochs == {"fit": 1}
    assert plan.start_from is not None
    assert plan.start_from.identity == open_run(folder / "final").identity
    train_run(plan, tmp_path / "warm", RUNTIME)
    with pytest.raises(ConfigError, match=r"epochs are too few .* name .*run, or add --start"):
        final_plan(tmp_path / "warm", tmp_path / "more")
    again = final_plan(tmp_path / "warm", tmp_path / "more", start=tmp_path / "warm")
    assert (again.epochs, again.settings_from) == (plan.epochs, plan.settings_from)
    gone = replace(plan, start_from=replace(plan.start_from, identity="other"))
    with pytest.raises(DataError, match="is not the run any more"):
        train_run(gone, tmp_path / "gone", RUNTIME)
    assert not (tmp_path / "gone").exists()
    shutil.rmtree(tmp_path / "warm")
