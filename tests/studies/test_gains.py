"""Gains by the number of users: which rows are compared, in tables and in the picture."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from diffuserec import Runtime, Store
from diffuserec.evaluation import load_evaluation
from diffuserec.studies.results import results_of
from diffuserec.studies.runner import run_study
from diffuserec.studies.study import read
from diffuserec.studies.tables import (
    gains_of,
    sizes_of,
    tables,
    write_curves,
    write_tables,
)


def row(name: str, reference: str | None = None, gain: float = 0.0, **other: Any) -> dict[str, Any]:
    found = {"difference": gain, "low": gain - 0.01, "high": gain + 0.01, "p_holm": 0.2}
    difference = None if reference is None else {"NDCG@10": {"reference": reference, **found}}
    return {"name": name, "floor": False, "difference": difference, "group_differences": []} | other


def made(users: int, data: str, rows: list[dict[str, Any]], protocol: str = "full") -> dict:
    where = {"data": data, "split": "leave-one-out", "protocol": protocol, "part": "test"}
    return where | {"users": users, "rows": rows}


def test_sizes_of_one_log_stand_together() -> None:
    every = [made(500, "beauty:500", []), made(40, "store", []), made(900, "beauty", [])]
    every += [made(500, "beauty:500", [], "seen kept"), made(0, "beauty:10", [])]
    assert sizes_of({"tables": every}) == [[every[0], every[2]]]


def test_rows_are_compared_with_their_reference_at_every_size() -> None:
    tail = {"group": "tail", "metric": "NDCG@10", "reference": "A", "n_users": 9}
    tail |= {"difference": -0.5, "low": None, "high": None, "p_holm": None}
    sizes = [
        made(
            users,
            f"log:{users}",
            [
                row("A"),
                row("A + x", "A", gain, group_differences=[tail]),
                row("B", "A", -0.3),  # that another one is compared with
                row("B + x", "B", 2 * gain),
                row("C", "A", 0.0),  # of another kind, beside
                row("Popularity", "A", -0.7, floor=True),
            ],
        )
        for users, gain in ((100, 0.04), (1000, -0.02))
    ]
    found = gains_of(sizes, "NDCG@10")
    assert {reference: list(rows) for reference, rows in found.items()} == {
        "A": ["A + x", "C"],
        "B": ["B + x"],
    }
    assert [(p["users"], p["difference"]) for p in found["B"]["B + x"]] == [
        (100, 0.08),
        (1000, -0.04),
    ]
    of_tail = gains_of(sizes, "NDCG@10", "tail")
    assert [p["difference"] for p in of_tail["A"]["A + x"]] == [-0.5, -0.5]
    assert list(of_tail) == ["A"]
    assert not gains_of(sizes, "Coverage@10")


STUDY = """
title = "Does it pay?"
data = ["store:60", "store"]
protocols = ["full"]

[[rows]]
model = "markov"
augment = ["none", "random"]
"""


def test_the_picture_names_what_it_shows(tmp_path: Path) -> None:
    sizes = [made(users, f"log:{users}", [row("A"), row("A + x", "A")]) for users in (40, 900)]
    for table in sizes:
        for line in table["rows"]:
            line["point"] = {}
    document = {"title": "Does it pay?", "metrics": ["NDCG@10"], "tables": sizes}
    write_curves(document, tmp_path, "pay-")
    drawing = (tmp_path / "pay-gains.svg").read_text(encoding="utf-8")
    for word in ("Does it pay?: log", "gain in NDCG@10 over A", "A + x", ">40<", ">900<"):
        assert word in drawing


@pytest.mark.slow
def test_a_study_of_two_sizes_has_a_picture_and_a_table(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    Store(n_users=200, n_items=50, seed=1).dataset().save(tmp_path / "store")
    study, out = read(tmp_path / "study.toml"), tmp_path / "out"
    runtime = Runtime(device="cpu", progress=False)
    outcome = run_study(study, out, tmp_path, runtime, workers=1)
    document = results_of(study, outcome, out)
    write_tables(document, out)
    means = {
        (cell.data, cell.line): load_evaluation(out / "measured" / f"{cell.name}-test")
        .per_user.filter(pl.col("history_group") == "medium")["NDCG@10"]
        .to_numpy()
        .mean()
        for cell in outcome.cells
    }
    expected = {
        users: means[data, "Markov + Random"] - means[data, "Markov"]
        for users, data in ((60, "store:60"), (200, "store"))
    }
    (points,) = gains_of(sizes_of(document)[0], "NDCG@10", "medium")["Markov"].values()
    assert {p["users"] for p in points} == {60, 200}
    for point in points:
        assert abs(point["difference"] - expected[point["users"]]) < 1e-12
    text = tables(document)
    assert "store: gain in NDCG@10 by the number of users" in text
    drawing = (out / "gains.svg").read_text(encoding="utf-8")
    for word in ("Does it pay?: store", "gain in NDCG@10 over Markov", "Markov + Random", ">200<"):
        assert word in drawing
    assert (out / "gains-medium.svg").exists()
    assert not (out / "curve.svg").exists()
