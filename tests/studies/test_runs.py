"""Runs: they know their data and how they were made, and stand in nobody's way."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import diffuserec
from diffuserec import Runtime, SequenceDataset, Store, load_dataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import locked, read_lines, write_lines
from diffuserec.models.base import Epoch
from diffuserec.studies.compare import compare_runs
from diffuserec.studies.run_directory import Plan, is_finished, open_run, read_curve, read_leak
from diffuserec.studies.run_file import read_run_file
from diffuserec.studies.train_run import train_run

RUNTIME = Runtime(device="cpu", progress=False)
COPIES = {"n_copies": 2, "epochs": 2, "num_train_timesteps": 25, "hidden_dim": 8}
SMALL = {"dim": 8, "max_len": 8, "epochs": 3}
OTHER_DATA = "the data at .* is not what .* was trained on"


def interrupted(plan: Plan, out: Path, phase: str = "fit", after: int = 1) -> None:
    """Trains a plan until so many epochs of a phase are done."""

    def stop(record: Epoch) -> None:
        if (record.phase, record.epoch) == (phase, after - 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(plan, out, replace(RUNTIME, on_epoch=stop))


@pytest.fixture(scope="module")
def log() -> SequenceDataset:
    return Store(n_users=80, n_items=40, seed=1).dataset()


@pytest.fixture
def data(log: SequenceDataset, tmp_path: Path) -> Path:
    log.save(tmp_path / "data", note={"filters": "none"})
    return tmp_path / "data"


@pytest.fixture(scope="module")
def trained(log: SequenceDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that are copied by the tests that use them."""
    folder = tmp_path_factory.mktemp("trained")
    log.save(folder / "data", note={"filters": "none"})
    train_run(Plan(str(folder / "data"), "markov", {}), folder / "run", RUNTIME)
    interrupted(Plan(str(folder / "data"), "sasrec", SMALL), folder / "begun")
    return folder


def copied(what: Path, data: Path, to: Path) -> Path:
    """A copy of a run that knows where its data is."""
    shutil.copytree(what, to)
    found = read_run_file(to)
    replace(found, plan=replace(found.plan, data=str(data))).write(to)
    return to


@pytest.fixture
def run(trained: Path, data: Path, tmp_path: Path) -> Path:
    return copied(trained / "run", data, tmp_path / "run")


@pytest.fixture
def begun(trained: Path, data: Path, tmp_path: Path) -> Path:
    """A run of SASRec with SMALL settings that was interrupted after its first epoch."""
    return copied(trained / "begun", data, tmp_path / "begun")


def permuted(log: SequenceDataset) -> SequenceDataset:
    """The same numbers, of other items."""
    ids = log.catalog.item_ids
    return replace(log, catalog=replace(log.catalog, item_ids=ids.reverse()))


def newest_exchanged(log: SequenceDataset) -> SequenceDataset:
    """The last two items of every user in the other order."""
    items = log.items.copy()
    ends = log.offsets[1:]
    items[ends - 1], items[ends - 2] = log.items[ends - 2], log.items[ends - 1]
    return replace(log, log=replace(log.log, items=items))


def half(log: SequenceDataset) -> SequenceDataset:
    return log.select(np.arange(len(log) // 2))


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [permuted, newest_exchanged, half])
def test_other_data_at_the_same_place_is_refused(
    change: Callable[[SequenceDataset], SequenceDataset],
    log: SequenceDataset,
    data: Path,
    run: Path,
    begun: Path,
) -> None:
    assert (run / "test" / "metrics.json").exists()  # it is not read from there either
    plan = Plan(str(data), "sasrec", SMALL)
    shutil.rmtree(data)
    changed = change(log)
    changed.save(data)
    for attempt in (
        lambda: open_run(run),
        lambda: compare_runs([run]),
        lambda: is_finished(run, Plan(str(data), "markov", {}), changed.fingerprint),
        lambda: train_run(plan, begun, replace(RUNTIME, resume=True)),
    ):
        with pytest.raises(DataError, match=OTHER_DATA) as told:
            attempt()
        assert "\n" not in str(told.value)


def test_data_may_move(
    log: SequenceDataset, data: Path, run: Path, begun: Path, tmp_path: Path
) -> None:
    before = open_run(run).evaluate(filter_seen=False)
    moved = tmp_path / "moved"
    data.rename(moved)
    with pytest.raises(DataError, match=r"not at .*data any more: say where it is with --data"):
        open_run(run)
    after = open_run(run, moved).evaluate(filter_seen=False)
    assert after.metrics == before.metrics
    assert compare_runs([run], data=moved).evaluations["markov"][0].metrics
    half(log).save(tmp_path / "half")
    with pytest.raises(DataError, match=OTHER_DATA):
        open_run(run, tmp_path / "half")
    plan = Plan(str(moved), "sasrec", SMALL)
    train_run(plan, begun, replace(RUNTIME, resume=True))
    assert open_run(begun).plan == plan
    assert len(read_run_file(begun).starts) == 2


def test_an_augmenter_is_shared_on_its_own_data_alone(
    log: SequenceDataset, data: Path, tmp_path: Path
) -> None:
    plan = Plan(str(data), "markov", {}, "random", {"n_items": 2})
    first = train_run(plan, tmp_path / "first", RUNTIME).path
    newest_exchanged(log).save(tmp_path / "other")
    for wrong, error, message in (
        (replace(plan, data=str(tmp_path / "other")), DataError, OTHER_DATA),
        (replace(plan, augment_settings={"n_items": 3}), ConfigError, "other settings"),
    ):
        out = tmp_path / "second"
        with pytest.raises(error, match=message):
            train_run(wrong, out, RUNTIME, augmenter_from=first)
        assert not out.exists()
    train_run(replace(plan, seed=1), tmp_path / "second", RUNTIME, augmenter_from=first)


def test_a_run_tells_what_the_leak_meter_found(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    plan = Plan(str(data), "markov", {}, "random_seq", {"condition": "published"})
    leaking = train_run(plan, tmp_path / "published", RUNTIME, say=said.append).path
    causal = train_run(replace(plan, augment_settings={}), tmp_path / "causal", RUNTIME).path
    assert [line[:16] for line in said if "meter" in line] == ["leak meter: leak"]
    page = (leaking / "report.html").read_text(encoding="utf-8")
    assert "<h2>Leak meter</h2>" in page
    assert "leak meter: leak: in training" in page
    report = compare_runs([leaking, causal], names=["published", "causal"])
    assert [note[:24] for note in report.notes if "leak meter" in note] == [
        "published, leak meter: l",
        "causal, leak meter: no l",
    ]
    leaks = json.loads(report.json())["leaks"]
    assert leaks["published"][0]["training"]["share"] > leaks["causal"][0]["training"]["share"]
    assert read_leak(causal) is not None
    (causal / "leak.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"leak\.json is damaged"):
        compare_runs([causal])


# --- what a run tells ---------------------------------------------------------------------------


def test_a_run_tells_how_it_was_made(run: Path, log: SequenceDataset) -> None:
    found = read_run_file(run)
    assert found.complete
    assert found.fingerprint == log.fingerprint
    (start,) = found.starts
    assert start.command == "Python"
    assert start.version == diffuserec.__version__
    assert start.torch == torch.__version__
    assert start.python == ".".join(str(n) for n in sys.version_info[:3])
    assert (start.device, start.precision) == ("cpu", "fp32")
    assert start.threads == torch.get_num_threads()
    assert start.time.endswith("+00:00")


DAMAGED = "run.json is damaged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [], DAMAGED),
        (lambda d: None, DAMAGED),
        (lambda d: {}, DAMAGED),
        (lambda d: {**d, "format": "another"}, DAMAGED),
        (lambda d: {**d, "version": "3"}, DAMAGED),
        (lambda d: {**d, "version": d["version"] + 1}, "by a newer release .*: update"),
        (lambda d: {**d, "version": 2}, "by an older release .*: train it again"),
        (lambda d: {k: v for k, v in d.items() if k != "complete"}, f"{DAMAGED} .*complete"),
        (lambda d: {**d, "complete": 1}, f"{DAMAGED} .*complete"),
        (lambda d: {k: v for k, v in d.items() if k != "plan"}, f"{DAMAGED} .*plan"),
        (lambda d: {**d, "plan": {"data": "x", "model": "bpr", "settings": {}}}, "plan lacks"),
        (lambda d: {**d, "plan": None}, f"{DAMAGED} .*plan"),
        (lambda d: {**d, "plan": {**d["plan"], "folds": 5}}, f"{DAMAGED} .*plan.folds"),
        (lambda d: {**d, "plan": {**d["plan"], "data": 3}}, f"{DAMAGED} .*plan.data"),
        (lambda d: {**d, "plan": {**d["plan"], "settings": [1]}}, f"{DAMAGED} .*plan.settings"),
        (lambda d: {**d, "fingerprint": "0" * 32}, f"{DAMAGED} .*its own checksum"),
        (lambda d: {**d, "plan": {**d["plan"], "seed": 9}}, f"{DAMAGED} .*its own checksum"),
        (lambda d: {**d, "notes": "mine"}, f"{DAMAGED} .*notes"),
        (lambda d: {**d, "starts": [{}]}, f"{DAMAGED} .*starts.0.time"),
    ],
)
def test_a_changed_run_file_is_one_line(
    change: Callable[[dict[str, Any]], Any], message: str, run: Path
) -> None:
    file = run / "run.json"
    file.write_text(
        json.dumps(change(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8"
    )
    with pytest.raises(DataError, match=message) as told:
        open_run(run)
    assert "\n" not in str(told.value)


# --- the directory ------------------------------------------------------------------------------


def test_what_fails_at_the_start_leaves_nothing(data: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    SequenceDataset.from_lists([[1, 2, 3]] * 9).save(short)
    out = tmp_path / "run"
    for plan, runtime in (
        (Plan(str(data), "sasrec", {"n_heads": 3}), RUNTIME),
        (Plan(str(data), "sasrec", SMALL, "diffuasr", {"n_items": 4}), RUNTIME),
        (Plan(str(short), "sasrec", SMALL), RUNTIME),
        (Plan(str(data), "sasrec", {**SMALL, "learning_rate": 1e30}), RUNTIME),
        (Plan(str(data), "sasrec", SMALL, split="temporl"), RUNTIME),
        (Plan(str(tmp_path / "nowhere"), "sasrec", SMALL), RUNTIME),
        *([] if torch.cuda.is_available() else [(Plan(str(data), "bpr", {}), Runtime("cuda"))]),
    ):
        if plan.augment is not None:
            plan = replace(plan, data=str(short))
        with pytest.raises((ConfigError, DataError)):
            train_run(plan, out, runtime)
        assert not out.exists(), plan
    train_run(Plan(str(data), "markov", {}), out, RUNTIME)


def test_an_interrupted_run_names_the_ways_out(data: Path, begun: Path, tmp_path: Path) -> None:
    plan, out = Plan(str(data), "sasrec", SMALL), begun
    with pytest.raises(ConfigError, match="holds no run to resume: leave out --resume"):
        train_run(plan, tmp_path / "new", replace(RUNTIME, resume=True))
    with pytest.raises(ConfigError, match="add --resume to continue it, --overwrite to begin anew"):
        train_run(plan, out, RUNTIME)
    with pytest.raises(ConfigError, match="either resumed or overwritten"):
        train_run(plan, out, replace(RUNTIME, resume=True), overwrite=True)
    with pytest.raises(ConfigError, match="was started with seed = 0, not 1"):
        train_run(replace(plan, seed=1), out, replace(RUNTIME, resume=True))
    with pytest.raises(DataError, match=r"has not finished \(add --resume"):
        open_run(out)
    seen: list[Epoch] = []
    train_run(plan, out, replace(RUNTIME, resume=True, on_epoch=seen.append))
    assert [record.epoch for record in seen] == [1, 2]
    assert not (out / "checkpoint").exists()
    with pytest.raises(ConfigError, match="is finished: there is nothing to resume"):
        train_run(plan, out, replace(RUNTIME, resume=True))
    with pytest.raises(ConfigError, match="a finished run: choose another --out, or add --over"):
        train_run(plan, out, RUNTIME)


def test_a_run_is_overwritten_when_asked(data: Path, run: Path, tmp_path: Path) -> None:
    plan = Plan(str(data), "itemknn", {})
    (run / "notes.txt").write_text("of somebody", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds 'notes.txt', which is of no run"):
        train_run(plan, run, RUNTIME, overwrite=True)
    (run / "notes.txt").unlink()
    assert train_run(plan, run, RUNTIME, overwrite=True).plan == open_run(run).plan == plan
    assert not (run / "notes.txt").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is not a run"):
        train_run(plan, foreign, RUNTIME, overwrite=True)
    assert (foreign / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_run_of_an_older_release_can_be_overwritten(data: Path, run: Path) -> None:
    file = run / "run.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), "version": 1}), encoding="utf-8"
    )
    plan = Plan(str(data), "markov", {})
    with pytest.raises(DataError, match="--overwrite replaces it"):
        train_run(plan, run, RUNTIME)
    train_run(plan, run, RUNTIME, overwrite=True)


def test_a_run_in_which_nothing_was_trained_is_in_nobodys_way(data: Path, begun: Path) -> None:
    """A process that was killed before the first epoch ended leaves only its claim."""
    shutil.rmtree(begun / "checkpoint")
    plan = Plan(str(data), "markov", {}, seed=1)
    assert not is_finished(begun, plan, load_dataset(data).fingerprint)
    assert train_run(plan, begun, RUNTIME).plan == plan


def test_a_trained_model_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    plan, whole, cut = Plan(str(data), "sasrec", SMALL), tmp_path / "whole", tmp_path / "cut"
    train_run(plan, whole, RUNTIME)

    def stop(line: str) -> None:
        if line == "measuring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(plan, cut, RUNTIME, say=stop)
    seen: list[Epoch] = []
    train_run(plan, cut, replace(RUNTIME, resume=True, on_epoch=seen.append))
    assert seen == []
    manifests = [(p / "model" / "manifest.json").read_bytes() for p in (whole, cut)]
    assert manifests[0] == manifests[1]  # it has the checksums of the other files
    for part in ("test", "valid"):
        frames = [pl.read_parquet(p / part / "per_user.parquet") for p in (whole, cut)]
        assert frames[0].equals(frames[1])


def test_epochs_are_logged_as_they_happen_and_once(data: Path, tmp_path: Path) -> None:
    plan = Plan(str(data), "sasrec", SMALL, "diff4rec", COPIES)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_run(plan, whole, RUNTIME)
    lines = read_lines(whole / "epochs.jsonl")
    curve = read_curve(whole / "curve.json")
    assert [asdict(epoch) for epoch in curve] == [
        {name: value for name, value in line.items() if name != "time"} for line in lines
    ]
    assert all(datetime.fromisoformat(line["time"]).tzinfo is UTC for line in lines)
    interrupted(plan, cut, after=2)
    first = read_lines(cut / "epochs.jsonl")
    write_lines(cut / "epochs.jsonl", first[:-1])  # a kill came before the line was written
    train_run(plan, cut, replace(RUNTIME, resume=True))
    names = [(line["phase"], line["epoch"], line["loss"]) for line in lines]
    found = read_lines(cut / "epochs.jsonl")
    assert [(line["phase"], line["epoch"], line["loss"]) for line in found] == names
    missing = [line["epoch"] for line in found if line["time"] is None]
    assert missing == [first[-1]["epoch"]]


def test_a_tracker_is_told_of_a_run_and_of_its_continuation(data: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    plan, out = Plan(str(data), "sasrec", SMALL), tmp_path / "run"

    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(plan, out, replace(RUNTIME, on_epoch=stop), track=["tensorboard"])
    run = train_run(plan, out, replace(RUNTIME, resume=True), track=["tensorboard"])
    read = accumulator(str(out / "tensorboard"))
    read.Reload()
    losses = [(event.step, event.value) for event in read.Scalars("fit/loss")]
    curve = read_curve(out / "curve.json")
    assert losses == [(e.epoch, pytest.approx(e.loss)) for e in curve]
    for part in ("valid", "test"):
        (measured,) = read.Scalars(f"{part}/NDCG@10")
        assert measured.value == pytest.approx(run.evaluate(part).metrics["NDCG@10"])
    (settings, *_) = read.Tensors("settings/text_summary")
    told = settings.tensor_proto.string_val[0].decode()
    assert "dim: 8" in told
    assert run.fingerprint in told


def test_one_process_trains_a_run(data: Path, begun: Path, tmp_path: Path) -> None:
    plan = Plan(str(data), "sasrec", SMALL)
    with locked(begun), pytest.raises(DataError, match="by another process"):
        train_run(plan, begun, replace(RUNTIME, resume=True))


def test_one_run_is_not_two_seeds(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    for twice in ([run, run], [run, tmp_path / "copy"]):
        with pytest.raises(ConfigError, match=r"are the same run .*: give it once"):
            compare_runs(twice)


# --- a run that is overwritten ------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_failed_overwriting_leaves_the_old_run(data: Path, run: Path) -> None:
    before = contents(run)

    def stop(line: str) -> None:
        if line.startswith("training"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(Plan(str(data), "sasrec", SMALL), run, RUNTIME, overwrite=True, say=stop)
    assert contents(run) == before
    assert not (run.parent / ".run.old").exists()


def test_the_old_run_stays_until_the_new_one_has_finished(data: Path, run: Path) -> None:
    before, old, plan = contents(run), run.parent / ".run.old", Plan(str(data), "sasrec", SMALL)

    def stop(record: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(plan, run, replace(RUNTIME, on_epoch=stop), overwrite=True)
    assert contents(old) == before
    with pytest.raises(KeyboardInterrupt):
        train_run(plan, run, replace(RUNTIME, on_epoch=stop), overwrite=True)
    assert contents(old) == before
    train_run(plan, run, replace(RUNTIME, resume=True))
    assert open_run(run).plan == plan
    assert not old.exists()


def test_a_run_set_aside_by_a_killed_process_returns(data: Path, run: Path) -> None:
    before = contents(run)
    run.rename(run.parent / ".run.old")  # killed just after this
    with pytest.raises(ConfigError, match="holds a finished run"):
        train_run(Plan(str(data), "markov", {}), run, RUNTIME)
    assert contents(run) == before


# --- parts of two runs --------------------------------------------------------------------------


@pytest.fixture
def other(data: Path, tmp_path: Path) -> Path:
    """Another run of the same data."""
    train_run(Plan(str(data), "popularity", {}), tmp_path / "other", RUNTIME)
    return tmp_path / "other"


@pytest.mark.parametrize("part", ["model", "curve.json"])
def test_a_part_of_another_run_is_refused(part: str, run: Path, other: Path) -> None:
    if part == "model":
        shutil.rmtree(run / part)
        shutil.copytree(other / part, run / part)
    else:
        (run / part).write_text("[ ]\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not the one that this run made"):
        open_run(run)


def test_results_of_another_run_are_refused(run: Path, other: Path) -> None:
    shutil.rmtree(run / "test")
    shutil.copytree(other / "test", run / "test")
    with pytest.raises(DataError, match="it is of another run"):
        open_run(run).evaluate()


def test_a_plan_of_another_model_is_refused(run: Path) -> None:
    found = read_run_file(run)
    replace(found, plan=replace(found.plan, model="popularity")).write(run)
    with pytest.raises(DataError, match="plans another model"):
        open_run(run)


def test_settings_that_the_log_decided_are_those_of_the_plan(data: Path, tmp_path: Path) -> None:
    plan = Plan(str(data), "sasrec", {"dim": 8, "epochs": 1})
    train_run(plan, tmp_path / "run", Runtime(), report=False)
    config = open_run(tmp_path / "run").model.config
    assert config != diffuserec.SASRec(**plan.settings).config
    found = read_run_file(tmp_path / "run")
    given = {**plan.settings, "batch_size": config.batch_size + 1}
    replace(found, plan=replace(plan, settings=given)).write(tmp_path / "run")
    with pytest.raises(DataError, match="plans another model"):
        open_run(tmp_path / "run")


def test_damaged_results_are_not_called_missing(run: Path) -> None:
    (run / "valid" / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics.json is damaged .*: remove it and evaluate"):
        open_run(run).evaluate("valid")


@pytest.mark.parametrize("line", [b"[1]", b"5", b"{}", b"\xff", b"{"])
def test_a_damaged_line_of_an_epoch_is_told(line: bytes, data: Path, begun: Path) -> None:
    with (begun / "epochs.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=r"epochs.jsonl, line 2: damaged"):
        train_run(Plan(str(data), "sasrec", SMALL), begun, replace(RUNTIME, resume=True))


# --- settings that cannot be --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dim": 100_000_000_000}, "cannot be built for 40 items"),
        ({"max_len": 10**12}, "cannot be built for 40 items"),
        ({"learning_rate": float("inf")}, "learning_rate: must be a finite number"),
    ],
)
def test_impossible_settings_leave_nothing(
    settings: dict[str, Any], told: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        train_run(Plan(str(data), "sasrec", settings), tmp_path / "out", RUNTIME)
    assert not (tmp_path / "out").exists()
