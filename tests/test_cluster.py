"""Ray does what one process does: two real workers, of which one is killed in the middle."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

pytest.importorskip("ray", reason="needs diffuserec[ray]")

from diffuserec import cluster
from diffuserec.data import Store, from_dataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.serving.augmented_log import augment_log
from diffuserec.serving.lists import recommend_from
from diffuserec.studies.run_directory import Plan, RunDirectory, open_run, read_curve
from diffuserec.studies.runner import run_study
from diffuserec.studies.study import read
from diffuserec.studies.train_run import train_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray leaves sockets and threads to the end of processes
]

TWO = cluster.Cluster(workers=2)
CPU = Runtime(device="cpu", progress=False)
SETTINGS = {"dim": 16, "epochs": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A log, the dataset of it and a run."""
    folder = tmp_path_factory.mktemp("ray")
    store = Store(n_users=9000, n_items=60, longest=8, seed=0)
    store.frame().write_csv(folder / "log.csv")
    Store(n_users=200, n_items=60, seed=0).dataset().save(folder / "small")
    store.dataset().save(folder / "data", note={"filters": "none"})
    plan = Plan(str(folder / "small"), "sasrec", SETTINGS)
    train_run(plan, folder / "alone", CPU, report=False)
    train_run(Plan(str(folder / "data"), "markov", {}), folder / "markov", CPU, report=False)
    return folder


@pytest.fixture(scope="module")
def ray(place) -> Iterator[cluster.Connected]:
    """Ray on this machine, with room for a worker that comes in place of another."""
    with TWO.connected() as connected:
        yield connected


def kill_a_worker_of(name: str, when) -> list[int]:
    """Kills one process of Ray with this in its name as soon as something is so; tells which."""
    killed: list[int] = []

    def wait_and_kill() -> None:
        while not when():
            time.sleep(0.02)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.encode() in title and title.startswith(b"ray::"):
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
                return

    threading.Thread(target=wait_and_kill, daemon=True).start()
    return killed


def test_lists_are_those_made_alone_and_a_killed_worker_is_replaced(place, ray, tmp_path) -> None:
    out, said = tmp_path / "lists", []
    killed = kill_a_worker_of("MapWorker", lambda: any(tmp_path.glob(".lists.*/made/part-*")))
    log = place / "log.csv"
    n = cluster.recommend(place / "markov", log, out, TWO, columns={}, say=said.append, k=5)
    assert len(killed) == 1
    told: list[str] = []
    alone = recommend_from(place / "markov", None, log, k=5, say=told.append)
    found = pl.read_parquet(out / "*.parquet")
    assert [file.name for file in sorted(out.iterdir())] == [
        f"part-{number:05d}.parquet" for number in range(3)
    ]
    assert found.equals(alone)
    assert (n, said) == (len(alone), told)


def test_a_log_of_parquet_files_is_divided_as_it_is(place, ray, tmp_path) -> None:
    log = pl.read_csv(place / "log.csv").sort("user_id", "timestamp")
    folder = tmp_path / "log"
    folder.mkdir()
    names = ("U0000", "U0001")
    for name in names:
        part = log.filter(pl.col("user_id").str.starts_with(name)).head(100)
        part.write_parquet(folder / f"{name}.parquet")
    (folder / "._U0000.parquet").write_bytes(b"of another system")
    left = tmp_path / ".lists.work.123-0123abcd.partial"  # by a killed one
    left.mkdir()
    out = tmp_path / "lists"
    cluster.recommend(place / "markov", folder, out, TWO, columns={}, say=print, k=3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lists", "log"]
    for name in names:
        alone = recommend_from(place / "markov", None, folder / f"{name}.parquet", k=3)
        assert pl.read_parquet(out / f"{name}.parquet").equals(alone)
    with pytest.raises(DataError, match="exists already"):
        cluster.recommend(place / "markov", folder, out, TWO, columns={}, say=print)
    twice = part["user_id"][0]
    part.head(1).write_parquet(folder / "more.parquet")
    with pytest.raises(DataError, match=f"user '{twice}' of .* is in U0001.parquet and in more.pa"):
        cluster.recommend(place / "markov", folder, tmp_path / "b", TWO, columns={}, say=print)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lists", "log"]


def test_a_log_without_times_is_divided_too(place, ray, tmp_path) -> None:
    log = tmp_path / "sequences.txt"
    histories = pl.read_csv(place / "log.csv").sort("timestamp").group_by("user_id").agg("item_id")
    lines = [" ".join([user, *items]) for user, items in histories.sort("user_id").iter_rows()]
    log.write_text("\n".join(lines), encoding="utf-8")
    out, columns = tmp_path / "lists", {"format": "sequences"}
    cluster.recommend(place / "markov", log, out, TWO, columns=columns, say=print, k=3)
    assert len(list(out.iterdir())) > 1
    alone = recommend_from(place / "markov", None, log, columns=columns, k=3)
    assert pl.read_parquet(out / "*.parquet").equals(alone)


def test_a_part_that_is_refused_is_told_in_its_own_words(place, ray, tmp_path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    log = pl.read_csv(place / "log.csv").head(20)
    log.write_parquet(folder / "whole.parquet")
    log.drop("item_id").write_parquet(folder / "without.parquet")
    with pytest.raises(DataError, match=r"without\.parquet: no item column"):
        cluster.recommend(place / "markov", folder, tmp_path / "lists", TWO, columns={}, say=print)
    assert not (tmp_path / "lists").exists()


def test_an_evaluation_is_that_made_alone(place, ray) -> None:
    run: RunDirectory = open_run(place / "markov")
    passes = cluster.RayPasses(place / "markov", None, "test", TWO)
    alone = run.evaluate(metrics=["HR@50"])
    found = run.evaluate(metrics=["HR@50"], passes=passes)
    assert found.metrics == alone.metrics
    assert found.per_user.equals(alone.per_user)


def test_an_augmented_log_is_that_made_alone(place, ray, tmp_path) -> None:
    out = tmp_path / "parts"
    counts = cluster.augment(place / "data", "random", out, {"n_items": 2}, CPU, None, TWO)
    alone = augment_log(place / "data", "random", {"n_items": 2}, CPU)
    from_dataset(alone).write(tmp_path / "alone.parquet")
    assert pl.read_parquet(out / "*.parquet").equals(pl.read_parquet(tmp_path / "alone.parquet"))
    assert counts == (int(alone.synthetic.sum()), int((~alone.synthetic).sum()))


def test_training_goes_on_after_a_killed_worker_and_ends_as_alone(place, ray, tmp_path) -> None:
    out, plan = tmp_path / "run", Plan(str(place / "small"), "sasrec", SETTINGS)
    epochs = out / "epochs.jsonl"
    killed = kill_a_worker_of("RayTrainWorker", epochs.exists)
    cluster.train(plan, out, CPU, TWO, overwrite=False)
    assert len(killed) == 1
    found, alone = (
        [(epoch.epoch, round(epoch.loss, 4), round(epoch.valid, 4)) for epoch in read_curve(file)]
        for file in (out / "curve.json", place / "alone" / "curve.json")
    )
    assert found == alone
    assert epochs.read_text(encoding="utf-8").count("\n") == len(alone)
    with pytest.raises(ConfigError, match="holds a finished run: choose another --out"):
        cluster.train(plan, out, CPU, TWO, overwrite=False)


def test_cells_of_a_study_are_tasks(place, ray, tmp_path) -> None:
    file = tmp_path / "study.toml"
    text = """
        title = "Small"
        data = ["small"]
        seeds = [0]
        metrics = ["NDCG@10"]
        rows = [{ model = "popularity" }, { model = "markov" }, { model = "sasrec" }]
        [settings]
        sasrec = { dim = 16, epochs = 2, batch_size = 16 }
    """
    file.write_text(text, encoding="utf-8")
    study = read(file)

    def metrics(outcome) -> dict:
        return {name: document["test"] for name, document in outcome.documents.items()}

    def fill(out: Path, data: Path, runtime: Runtime, **options):
        return run_study(study, out, data, runtime, **options)

    found = cluster.fill_study(fill, tmp_path / "by-ray", place, CPU, TWO)
    alone = fill(tmp_path / "alone", place, CPU, workers=1)
    assert len(found.documents) == 3
    assert metrics(found) == metrics(alone)
