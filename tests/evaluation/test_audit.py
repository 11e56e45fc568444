"""Audit: real rankings are never accused, impossible ones are; what is found in the papers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation.audit import (
    Audit,
    TableRow,
    audit,
    known_floors,
    mrr_bounds,
    read_table,
)
from diffuserec.evaluation.metrics import rank_metrics
from diffuserec.studies.published import published_names, published_table


def row(method: str = "m", metrics: dict[str, float] | None = None, **facts: object) -> TableRow:
    """A row about which everything is said, so that nothing is found in it."""
    said: dict[str, object] = {"candidates": "full", "filter_seen": True, "dataset": "clicks"}
    return TableRow(method, metrics or {"HR@10": 0.1, "NDCG@10": 0.05}, **said | facts)  # type: ignore[arg-type]


def metrics_of(ranks: list[float], cutoffs: tuple[int, ...], decimals: int) -> dict[str, float]:
    """Metrics of 0-based ranks, from their definitions."""
    found = {}
    for k in cutoffs:
        found[f"HR@{k}"] = np.mean([rank < k for rank in ranks])
        found[f"NDCG@{k}"] = np.mean([(rank < k) / np.log2(rank + 2) for rank in ranks])
    found["MRR"] = np.mean([1 / (rank + 1) for rank in ranks])
    return {name: round(float(value), decimals) for name, value in found.items()}


def accused(result: Audit) -> set[str]:
    return {finding.check for finding in result.findings}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 80).map(lambda halves: halves / 2), min_size=1, max_size=30),
    st.sets(st.sampled_from([1, 3, 5, 10, 20]), min_size=1).map(lambda s: tuple(sorted(s))),
    st.sampled_from([2, 3, 4, 6]),
    st.integers(0, 10),
)
def test_real_rankings_are_never_accused(
    ranks: list[float], cutoffs: tuple[int, ...], decimals: int, hidden: int
) -> None:
    metrics = metrics_of(ranks, cutoffs, decimals)
    assert audit([row(metrics=metrics, decimals=decimals)], []).findings == ()
    # nor any part of what a table could have shown
    del metrics[list(metrics)[hidden % len(metrics)]]
    assert audit([row(metrics=metrics, decimals=decimals)], []).findings == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.floats(-0.5, 0.5))
def test_an_ndcg_outside_its_bounds_is_found(ranks: list[int], shift: float) -> None:
    """Of users at whole ranks, every other NDCG@10 that these hit rates allow is attainable."""
    metrics = metrics_of([float(r) for r in ranks], (5, 10), 6)
    hits5, hits = metrics["HR@5"], metrics["HR@10"] - metrics["HR@5"]
    least = metrics["NDCG@5"] + hits / np.log2(11.5)
    most = metrics["NDCG@5"] + hits / np.log2(7)
    changed = metrics["NDCG@10"] + shift
    found = audit([row(metrics={**metrics, "NDCG@10": changed}, decimals=6)], []).of("impossible")
    if changed < least - 1e-4 or changed > most + 1e-4:
        assert found
    # NDCG@10 alone also has to fit HR@10
    total = hits5 + hits
    if least + 1e-4 < changed < most - 1e-4 and total / np.log2(11) < changed <= total:
        assert not [finding for finding in found if "MRR" not in finding.message]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_bounds_of_mrr_hold_for_every_ranking(ranks: list[int]) -> None:
    exact = {
        name: float(values.mean())
        for name, values in rank_metrics(np.array(ranks, dtype=np.float64), (3, 10)).items()
    }
    bounds = mrr_bounds(exact, decimals=None)
    assert bounds is not None
    assert bounds[0] - 1e-6 <= exact["MRR"] <= bounds[1] + 1e-6
    # all in front of or all behind the others of their stretch attain the bounds of HR alone
    hits3, hits10 = exact["HR@3"], exact["HR@10"] - exact["HR@3"]
    loose = mrr_bounds({"HR@3": exact["HR@3"], "HR@10": exact["HR@10"]}, decimals=None)
    assert loose is not None
    low = hits3 / 3.5 + hits10 / 10.5  # ties allow half ranks
    high = hits3 + hits10 / 4 + (1 - hits3 - hits10) / 11
    assert loose == pytest.approx((low, high), abs=1e-5)


def test_bounds_of_mrr_of_nothing_and_of_the_impossible() -> None:
    assert mrr_bounds({}) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert mrr_bounds({"HR@10": 0.1, "NDCG@10": 0.2}) is None


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"HR@10": 0.1, "NDCG@10": 0.2}, "NDCG@10 - NDCG@0 is 0.2000"),
        ({"HR@10": 0.5, "NDCG@10": 0.01}, "NDCG@10 - NDCG@0 is 0.0100"),
        ({"HR@5": 0.3, "HR@10": 0.2}, "HR@10 is below HR@5"),
        ({"NDCG@5": 0.3, "NDCG@20": 0.2}, "NDCG@20 is below NDCG@5"),
        ({"HR@10": -0.1}, "HR@10 is -0.1"),
        ({"HR@10": 0.1, "MRR": 0.3}, "MRR is 0.3000, and HR and NDCG allow only 0.0095 to 0.18"),
        ({"HR@10": 0.5, "NDCG@10": 0.5, "MRR": 0.1}, "allow only 0.49"),
        # HR@1 is NDCG@1; no gain is left between the two
        ({"HR@1": 0.2, "HR@10": 0.2, "NDCG@10": 0.1}, "together are of no ranking"),
    ],
)
def test_what_no_ranking_can_have(metrics: dict[str, float], message: str) -> None:
    metrics = {"MRR": 0.05, **metrics} if "together" in message else metrics
    found = audit([row(metrics=metrics)]).findings
    assert [finding.check for finding in found] == ["impossible"]
    assert message in found[0].message


def test_one_more_rounding_is_a_doubt() -> None:
    # gains of HR and NDCG from 5 to 10; at most 0.0116 / log2(7) = 0.00413, and with the rounding
    # of four numbers 0.004268
    metrics = {"HR@5": 0.0152, "HR@10": 0.0268, "NDCG@5": 0.0094, "NDCG@10": 0.0137}
    assert accused(audit([row(metrics=metrics)])) == {"doubtful"}
    metrics["NDCG@10"] = 0.0138
    assert accused(audit([row(metrics=metrics)])) == {"impossible"}
    metrics["NDCG@10"] = 0.0136
    assert accused(audit([row(metrics=metrics)])) == set()


def impossible(name: str, check: str = "impossible") -> set[str]:
    found = audit(published_table(name).rows_to_audit()).of(check)  # type: ignore[arg-type]
    return {f"{finding.dataset} {finding.methods[0]}" for finding in found}


def test_impossible_rows_of_the_papers() -> None:
    assert impossible("diff4rec-table2") == {
        *(f"ML-1M {m}" for m in ("GRU4Rec", "BERT4Rec", "S3Rec", "STOSA", "ContraRec", "Diff4Rec")),
        *(f"Beauty {m}" for m in ("Caser", "BERT4Rec", "STOSA", "ContraRec")),
        *(f"Steam {m}" for m in ("NCF", "GRU4Rec", "SASRec", "BERT4Rec")),
        *(f"Steam {m}" for m in ("STOSA", "ContraRec", "Diff4Rec")),
        *(f"Yelp {m}" for m in ("BERT4Rec", "S3Rec", "STOSA", "ContraRec", "Diff4Rec")),
    }
    assert len(impossible("diff4rec-table2")) == 22
    # rounding alone does not explain this one either, but almost
    assert impossible("diff4rec-table2", "doubtful") == {"Beauty GRU4Rec"}
    assert impossible("diffrec-table2") == {
        *("Beauty SASRec", "Beauty MFGAN", "Beauty DuoRec"),
        *("Toys ACVAE", "Toys MFGAN", "Toys DuoRec", "ML-1M ACVAE"),
    }
    assert impossible("simdiffrec-table2") == {
        *("Toys BERT4Rec", "Sports BERT4Rec", "ML-1M BERT4Rec"),
        *("Sports SimDiffRec", "Yelp MCLRec"),
    }
    for name in ("diffrec-table2", "simdiffrec-table2"):
        assert impossible(name, "doubtful") == set()
    sizes = [len(published_table(name).rows_to_audit()) for name in published_names("results")]
    assert sizes == [40, 18, 9, 30, 54, 8, 50, 12]


def test_what_the_papers_tables_lack() -> None:
    def checks(name: str) -> set[str]:
        return accused(audit(published_table(name).rows_to_audit()))

    assert "seen items" in checks("simdiffrec-table2")
    assert checks("diffuasr-table2") == {"candidates"}
    assert {"unequal", "below floor"} <= checks("diffrec-table2")
    below = audit(published_table("diffrec-table2").rows_to_audit()).of("below floor")
    assert not [finding for finding in below if finding.methods == ("DiffRec",)]
    assert len([finding for finding in below if finding.methods == ("SASRec",)]) == 3


FLOORS = [
    row("popularity", {"HR@10": 0.02, "NDCG@10": 0.01}, n_users=10, n_items=20),
    row("chain", {"HR@10": 0.07, "NDCG@10": 0.04}, n_users=10, n_items=20),
    row("chain", {"HR@10": 0.05, "NDCG@10": 0.03}, n_users=10, n_items=20, filter_seen=False),
]


def below(metrics: dict[str, float], **facts: object) -> list[str]:
    sized = {"n_users": 10, "n_items": 20} | facts
    return [f.message for f in audit([row(metrics=metrics, **sized)], FLOORS).of("below floor")]


def test_floors_are_to_be_cleared_under_the_same_protocol() -> None:
    between = {"HR@10": 0.06, "NDCG@10": 0.035}
    assert below(between) == [
        "chain with seen items hidden: HR@10 0.0600 < 0.0700, NDCG@10 0.0350 < 0.0400"
    ]
    assert below(between, filter_seen=False) == []
    assert below(between, filter_seen=None) == []  # the lower floor, as nothing is said
    assert below({"HR@10": 0.04}, filter_seen=None) == [
        "chain with seen items kept: HR@10 0.0400 < 0.0500"
    ]
    assert below({"HR@10": 0.07, "NDCG@10": 0.04}) == []
    assert below({"HR@5": 0.001}) == []  # no floor has it


def test_floors_are_of_the_same_data() -> None:
    low = {"HR@10": 0.001}
    assert below(low, n_items=21) == []
    assert below(low, dataset="by any other name") != []
    assert below(low, n_items=None) != []  # of the same name
    assert below(low, n_items=None, dataset="other") == []
    other = audit([row(metrics=low, dataset="other")], FLOORS)
    assert other.unchecked == ("other: no floor is known for this data set",)
    sampled = audit([row(metrics=low, candidates="uniform:100")], FLOORS)
    assert not sampled.of("below floor")
    assert "sampled" in sampled.unchecked[0]


def test_known_floors_are_possible_and_in_order() -> None:
    floors = known_floors()
    assert {floor.dataset for floor in floors} == {"Beauty", "Toys", "Sports", "Yelp", "ML-1M"}
    for floor in floors:
        assert audit([floor], []).findings == ()
    by_name = {(f.dataset, f.method, f.filter_seen): f.metrics["NDCG@10"] for f in floors}
    assert by_name["Beauty", "markov", True] == 0.0456
    assert by_name["ML-1M", "markov", True] == 0.1423
    for (dataset, method, seen), value in by_name.items():
        assert method == "popularity" or value > by_name[dataset, "popularity", seen]


@pytest.mark.parametrize("fact", ["loss", "epochs", "trials"])
def test_unequal_conditions(fact: str) -> None:
    one, other = {"loss": ("bce", "softmax")}.get(fact, (3.0, 39.0))
    rows = [row("a", **{fact: one}), row("b", {"HR@10": 0.2}, **{fact: other}), row("c")]
    found = audit(rows, [])
    assert accused(found) == {"unequal"}
    assert found.findings[0].message.startswith(f"{fact}: ")
    assert "(a)" in found.findings[0].message
    elsewhere = [rows[0], row("b", dataset="other", **{fact: other})]
    assert audit(elsewhere, []).findings == ()


def test_protocols_that_differ_or_are_not_said() -> None:
    rows = [row("a"), row("b", {"HR@10": 0.3}, candidates="uniform:100")]
    found = audit(rows, [])
    assert accused(found) == {"candidates"}
    assert found.findings[0].message == ("numbers cannot be compared: full (a); uniform:100 (b)")
    assert accused(audit([row("a"), row("b", {"HR@10": 0.2}, filter_seen=False)], [])) == {
        "seen items"
    }
    unsaid = audit([row("a", filter_seen=None), row("b", {"HR@10": 0.2})], [])
    assert [f.message for f in unsaid.findings] == ["not said whether they were hidden: a"]
    # among sampled candidates nothing seen is ranked
    sampled = [row("a", filter_seen=None, candidates="uniform:100")]
    assert accused(audit(sampled, [])) == {"candidates"}


def test_copied_rows() -> None:
    three = {"HR@10": 0.2, "NDCG@10": 0.1, "MRR": 0.09}
    assert accused(audit([row("a", three), row("b", three)], [])) == {"duplicate"}
    assert audit([row("a", three), row("b", three, dataset="other")], []).findings == ()
    two = {"HR@10": 0.2, "NDCG@10": 0.1}  # could be chance
    assert audit([row("a", two), row("b", two)], []).findings == ()
    assert accused(audit([row("a"), row("a", two)], [])) == {"duplicate"}


def write(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "\ufeffmethod, dataset ,hit@10,ndcg@10,MRR,loss,epochs,trials,candidates,filter_seen,users,"
        'items,note\n"A, b",Beauty,0.0932,0.05,,bce,30,1,full,false,"22,363",12101,\n\n'
        "C,,0.09,0.0427,0.1,,,,,,,,x\n",
    )
    first, second = read_table(path)
    assert first == TableRow(
        method="A, b",
        metrics={"HR@10": 0.0932, "NDCG@10": 0.05},
        dataset="Beauty",
        decimals=4,
        loss="bce",
        epochs=30.0,
        trials=1.0,
        candidates="full",
        filter_seen=False,
        n_users=22363,
        n_items=12101,
    )
    assert second == TableRow("C", {"HR@10": 0.09, "NDCG@10": 0.0427, "MRR": 0.1}, decimals=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'method'"),
        ("method,HR@10\n", "no row"),
        ("method,loss\na,bce\n", "no column is a metric"),
        ("method,HR@10\na,12.3\n", "line 2: 12.3 in column 'HR@10' is above 1: give shares"),
        ("method,HR@10\na,nan\n", "line 2: 'nan' in column 'HR@10' is not a number"),
        ("method,HR@10\na,x\n", "line 2: 'x'"),
        ("method,HR@10\na,.1,.2\n", "line 2: 3 cells, and the header has 2"),
        ("method,HR@10\n,.1\n", "line 2: no method"),
        ("method,HR@10,Hit@10\na,.1,.2\n", "two columns are HR@10"),
        ("method,HR@10,HR@10\na,.1,.2\n", "stands twice"),
        ("method,HR@10,epochs\na,.1,-3\n", "line 2: '-3' in column 'epochs'"),
        ("method,HR@10,filter_seen\na,.1,yes\n", "neither true nor false"),
        ("method,HR@10,candidates\na,.1,sampled\n", "neither full nor uniform:N"),
        ('method,HR@10\n"a,.1\n', "not CSV"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        read_table(write(tmp_path, text))
    assert "table.csv" in str(refused.value)


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'dateset'.*did you mean 'dataset'"):
        read_table(write(tmp_path, "method,dateset,HR@10\na,x,.1\n"))
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        read_table(tmp_path / "none.csv")


def results(*tables: dict[str, object]) -> str:
    """A study's results, as far as an audit reads them."""
    return json.dumps({"format": "diffuserec-results", "version": 1, "tables": tables})


def table(rows: list[dict[str, object]], **facts: object) -> dict[str, object]:
    said = {"data": "beauty", "split": "leave-one-out", "protocol": "full", "part": "test"}
    line = (
        "dataset beauty · split leave-one-out, test · candidates full of 12,101 items · "
        "seen items hidden · ties mid-rank · users 22,360, too short 3 · filters none"
    )
    return said | {"line": line, "rows": rows} | facts


def result(name: str, hr: float, ndcg: float, **facts: object) -> dict[str, object]:
    metrics = {name: {"value": value} for name, value in (("HR@10", hr), ("NDCG@10", ndcg))}
    return {
        "name": name,
        "metrics": metrics,
        "epochs": [7, 9],
        "epoch_limit": 60,
        "trials": 1,
    } | facts


def test_results_of_a_study_are_audited(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    good = [result("A", 0.09, 0.055), result("B", 0.1, 0.06)]
    counted = result("Markov", 0.08, 0.05, epoch_limit=None)
    failed = {"name": "C", "metrics": {}, "trials": 1}
    file.write_text(results(table([*good, counted, failed])), encoding="utf-8")
    rows = read_table(file)
    assert [row.method for row in rows] == ["A", "B", "Markov"]
    assert rows[0].dataset == rows[0].table == "beauty"
    assert (rows[0].n_users, rows[0].n_items) == (22_363, 12_101)
    assert (rows[0].candidates, rows[0].filter_seen) == ("full", True)
    assert (rows[0].epochs, rows[0].trials) == (60, 1)
    assert audit(rows) == Audit(3, ())
    # what is wrong is found, in the table that it is of
    bad = [result("A", 0.05, 0.055), result("B", 0.1, 0.06, epoch_limit=30, trials=20)]
    kept = table(bad, protocol="seen kept", split="temporal:target=last")
    file.write_text(results(table(good), kept), encoding="utf-8")
    found = audit(read_table(file))
    assert {finding.dataset for finding in found.findings} == {
        "beauty, temporal:target=last, seen kept"
    }
    assert accused(found) == {"impossible", "unequal"}
    assert len(found.of("unequal")) == 2
    assert "leave-one-out" in found.unchecked[0]
    # validation is not compared with floors of the test part, a sampled table with no full one
    low = [result("A", 0.001, 0.0005)]
    tables = [table(low, part="valid"), table(low, protocol="uniform:100, seen kept")]
    file.write_text(results(*tables), encoding="utf-8")
    rows = read_table(file)
    assert (rows[1].candidates, rows[1].filter_seen) == ("uniform:100", False)
    assert accused(audit(rows)) == {"candidates"}
    file.write_text(results(table(low)), encoding="utf-8")
    assert accused(audit(read_table(file))) == {"below floor"}


def test_the_floors_of_a_study_are_its_own(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    # between the built-in floors of beauty, which are below these
    rows = [
        result("A", 0.09, 0.055),
        result("Markov", 0.08, 0.05, epoch_limit=None, floor=True),
        result("Item graph", 0.094, 0.052, epoch_limit=None, floor=True),
    ]
    anywhere = {"part": "valid", "split": "temporal:target=last", "protocol": "uniform:100"}
    file.write_text(results(table(rows), table(rows, **anywhere)), encoding="utf-8")
    found = audit(read_table(file)).of("below floor")
    assert [finding.methods for finding in found] == [("A",), ("A",)]
    assert all("Item graph" in f.message and "0.0900 < 0.0940" in f.message for f in found)
    assert not audit(read_table(file), known_floors()).of("below floor")
    file.write_text(results(table(rows[1:])), encoding="utf-8")
    assert audit(read_table(file)) == Audit(2, ())


def test_a_printed_table_of_a_study_is_audited(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text(
        '"method","data","split","protocol","part","seeds","HR@10","HR@10 ±","NDCG@10",'
        '"NDCG@10 published",'
        '"against","epochs","seconds","trials","looks","not ranked"\n'
        '"A","clicks","leave-one-out","full","test",2,0.1,0.01,0.05,0.04,"B","18/24",10,1,1,""\n'
        '"B","clicks","leave-one-out","full","test",2,0.12,0.01,0.06,,"","20",10,1,1,""\n'
        '"C","clicks","leave-one-out","full","test",2,,,,,"","",,1,0,"failed: no memory"\n'
        '"A","clicks","temporal","uniform:100, seen kept","valid",'
        '2,0.0500,,0.0600,,"","2",,1,0,""\n',
        encoding="utf-8",
    )
    rows = read_table(file)
    assert [row.table for row in rows] == ["clicks"] * 2 + [
        "clicks, temporal, valid, uniform:100, seen kept"
    ]
    assert (rows[2].candidates, rows[2].filter_seen) == ("uniform:100", False)
    found = audit(rows)
    assert accused(found) == {"impossible", "candidates"}
    assert {finding.dataset for finding in found.findings} == {rows[2].table}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"format": "diffuserec-cell"}', "holds no results of a study"),
        ('{"format": "diffuserec-results"}', "damaged or of another release"),
        ('{"format": "diffuserec-results", "tables": [1]}', "damaged or of another release"),
    ],
)
def test_other_json_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_table(file)
