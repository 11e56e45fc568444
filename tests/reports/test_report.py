"""Tables of several evaluations."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from diffuserec.errors import ConfigError
from diffuserec.evaluation import (
    Evaluation,
    Protocol,
    group_means,
    paired_difference,
    rank_metrics,
)
from diffuserec.reports.report import Made, Report
from diffuserec.reports.tables import results_table

GENERATOR = np.random.default_rng(99)
RANKS = GENERATOR.integers(0, 60, 600).astype(float)
INSIDE = np.arange(600) % 3 < 2  # of the short group


def result(shift, seed=0, dataset="toy", max_len=50, repeat_share=0.0):
    ranks = np.maximum(0, RANKS + shift + np.random.default_rng(seed).integers(-1, 2, 600))
    by_user = rank_metrics(ranks)
    per_user = pl.DataFrame(
        {
            "user": np.arange(600),
            "history_group": np.where(INSIDE, "short", "medium"),
            "popularity_group": np.resize(["head", "tail"], 600),
            "target_count": np.full(600, 9),
            "target": np.ones(600, dtype=int),
            **by_user,
        }
    )
    return Evaluation(
        method="any",
        protocol=Protocol(
            dataset=dataset,
            split="leave-one-out test",
            candidates="full",
            n_items=1234,
            filter_seen=True,
            ties="mid-rank",
            n_users=600,
            n_too_short=0,
            filters="5-core",
            max_len=max_len,
            seed=seed,
            repeat_share=repeat_share,
        ),
        metrics={name: float(v.mean()) for name, v in by_user.items()} | {"Coverage@10": 0.25},
        groups=group_means(per_user, list(by_user)),
        per_user=per_user,
    )


@pytest.fixture(scope="module")
def report():
    return Report.of(
        {
            "sasrec": [result(0, seed) for seed in range(3)],
            "better": [result(-8, seed) for seed in range(3)],
            "same": [result(0, seed) for seed in (3, 4, 5)],
            "popularity": result(30, max_len=None),
        }
    )


def test_results_hold_every_number(report):
    columns = ["method", "dataset", "group", "metric", "seed", "value", "n_users"]
    assert report.results.columns == columns
    entry = report.results.filter(method="better", seed=2, group="all", metric="HR@10")
    assert entry["value"].item() == report.evaluations["better"][2].metrics["HR@10"]
    short = report.results.filter(method="popularity", group="short", metric="MRR")
    assert short["n_users"].item() == 400


def test_summary_averages_seeds_and_says_how_sure(report):
    cell = report.summary.filter(method="sasrec", group="all", metric="NDCG@10").row(0, named=True)
    runs = report.evaluations["sasrec"]
    values = [run.metrics["NDCG@10"] for run in runs]
    of_user = np.mean([run.per_user["NDCG@10"].to_numpy() for run in runs], axis=0)
    assert cell["value"] == pytest.approx(np.mean(values))
    assert cell["seed_std"] == pytest.approx(np.std(values, ddof=1))
    assert cell["margin"] == pytest.approx(1.96 * np.std(of_user, ddof=1) / np.sqrt(600))
    assert cell["n_seeds"] == 3
    short = report.summary.filter(method="sasrec", group="short", metric="MRR").row(0, named=True)
    of_user = np.mean([run.per_user["MRR"].to_numpy() for run in runs], axis=0)[INSIDE]
    assert short["value"] == pytest.approx(of_user.mean())
    assert short["margin"] == pytest.approx(1.96 * np.std(of_user, ddof=1) / np.sqrt(400))
    assert (short["n_seeds"], short["n_users"]) == (3, 400)
    coverage = report.summary.filter(method="sasrec", metric="Coverage@10").row(0, named=True)
    assert (coverage["value"], coverage["margin"]) == (0.25, None)


def test_stars_go_to_real_differences(report):
    assert report.stars("better", "toy", "NDCG@10") == "***"
    assert report.stars("popularity", "toy", "HR@10") == "***"
    assert report.stars("same", "toy", "NDCG@10") == ""
    assert report.stars("sasrec", "toy", "NDCG@10") == ""
    better = report.comparisons.filter(method="better", metric="NDCG@10", group="all")
    assert better["difference"].item() > 0
    assert better["reference"].item() == "sasrec"
    assert (report.comparisons["p_holm"] >= report.comparisons["p"]).all()


def test_corrected_intervals_leave_out_zero_exactly_where_the_corrected_p_is_small(report):
    found = report.comparisons
    significant = found["p_holm"] < 0.05
    assert 0 < significant.sum() < len(found)
    assert (((found["low"] > 0) | (found["high"] < 0)) == significant).all()
    assert set(found["n_comparisons"]) == {6}
    assert (found["alpha"] <= 0.05).all()
    assert found["alpha"].min() == pytest.approx(0.05 / 6)


def test_seeds_count_as_random_where_there_are_several(report):
    entry = {"metric": "HR@10", "group": "all"}
    better = report.comparisons.filter(method="better", **entry).row(0, named=True)
    values = [
        np.stack([run.per_user["HR@10"].to_numpy() for run in report.evaluations[method]])
        for method in ("better", "sasrec")
    ]
    theory = paired_difference(*values)
    assert (better["n_seeds"], better["n_seeds_reference"]) == (3, 3)
    assert better["p"] == theory.p
    assert (better["low"], better["high"]) == theory.interval(better["alpha"])
    assert better["detectable"] == theory.detectable(0.05 / 6)
    text = " ".join(report.text().split())
    assert (
        "users and seeds as random (of one seed, so that seeds are not counted: popularity" in text
    )


def test_a_single_user_has_no_interval():
    one = result(0)
    lengths = pl.Series(["long", *["short"] * 599])
    runs = [
        replace(run, per_user=run.per_user.with_columns(history_group=lengths))
        for run in (one, result(-5))
    ]
    runs = [replace(run, groups=group_means(run.per_user, ["HR@10", "NDCG@10"])) for run in runs]
    report = Report.of(dict(zip("ab", runs, strict=True)))
    found = report.comparisons.filter(group="long").row(0, named=True)
    assert (found["low"], found["high"], found["detectable"]) == (None, None, None)
    assert json.loads(report.json())["comparisons"]


def test_text_shows_all_methods_groups_and_the_protocol(report):
    text = report.text()
    for word in ("sasrec", "better", "popularity", "HR@10", "NDCG@10", "MRR", "Coverage@10"):
        assert word in text
    assert "NDCG@10 by group" in text
    assert "NDCG@10 by frequency" in text
    assert "400" in text  # users of the short group
    assert "long" not in text  # nobody is in it
    assert "***" in text
    flat = " ".join(text.split())
    assert report.protocol in flat
    assert "against sasrec, paired t-test, users and seeds as random" in flat
    assert "with Holm's correction for 6 comparisons: * p < .05" in flat
    assert max(len(line) for line in text.splitlines()) <= 100


def test_protocol_line_says_where_methods_differ(report):
    assert "max_len 50/all · seed 0/1/2/3/4/5" in report.protocol
    assert "candidates full of 1,234 items" in report.protocol


def test_json_is_one_object(report):
    document = json.loads(report.json())
    assert set(document) == {
        "protocol",
        "notes",
        "results",
        "summary",
        "comparisons",
        "leaks",
    }
    assert len(document["results"]) == len(report.results)


def test_several_data_sets_have_tables_of_their_own():
    report = Report.of(
        {
            "one": [result(0), result(3, dataset="other", repeat_share=0.05)],
            "two": [result(-9), result(-9, dataset="other", repeat_share=0.05)],
        }
    )
    assert len(report.protocol.splitlines()) == 2
    assert set(report.comparisons["dataset"]) == {"toy", "other"}
    assert len(report.notes) == 1
    assert "Note: 5.0% of the targets" in report.text()


def test_a_method_may_have_a_reference_of_its_own():
    runs = {"first": result(0), "other": result(-5), "better": result(-9)}
    report = Report.of(runs, {"better": "other"})
    found = {
        test["method"]: test
        for test in report.comparisons.filter(metric="HR@10", group="all").to_dicts()
    }
    assert found["other"]["reference"] == "first"
    assert found["better"]["reference"] == "other"
    difference = runs["better"].metrics["HR@10"] - runs["other"].metrics["HR@10"]
    assert difference > 0
    assert found["better"]["difference"] == pytest.approx(difference)
    flat = " ".join(report.text().split())
    assert "against first (better against other), paired t-test" in flat


def test_the_first_method_has_no_reference_even_if_it_is_given_one():
    runs = {"augmented": result(-9), "plain": result(-5)}
    report = Report.of(runs, {"augmented": "plain"})
    assert report.comparisons["method"].unique().to_list() == ["plain"]


def test_a_reference_that_is_no_method_is_refused():
    with pytest.raises(ConfigError, match="typo"):
        Report.of({"one": result(0), "two": result(-5)}, {"two": "typo"})


def test_one_method_alone_needs_no_reference():
    report = Report.of({"only": result(0)})
    assert len(report.comparisons) == 0
    assert "only" in report.text()
    assert "Holm" not in report.text()


def test_results_that_cannot_be_compared_are_refused():
    with pytest.raises(ConfigError, match="at least one evaluation"):
        Report.of({})
    with pytest.raises(ConfigError, match="not measured the same way"):
        Report.of({"one": result(0), "two": result(0, repeat_share=0.5)})


def test_results_are_a_table_in_any_format(report):
    head, *lines = csv.reader(io.StringIO(results_table(report, "csv")))
    assert head[:5] == ["method", "NDCG@10", "NDCG@10 ±", "HR@10", "HR@10 ±"]
    for line, method in zip(lines, report.evaluations, strict=True):
        cell = report.summary.filter(method=method, group="all", metric="NDCG@10")
        assert line[:3] == [method, str(cell["value"].item()), str(cell["margin"].item())]
    better = next(line for line in results_table(report, "latex").splitlines() if "better" in line)
    assert better.count("\\textbf") == 7
    assert better.count("$^{***}$") == 2
    assert better.endswith("& 3 \\\\")
    assert "**0." in results_table(report, "markdown")
    assert results_table(report, "html", ["MRR"]).count("<th") == 3 + 1  # and thead
    with pytest.raises(ConfigError, match=r"no metric 'NDCG@11' \(did you mean 'NDCG@1"):
        results_table(report, metrics=["NDCG@11"])


def test_tables_have_cost_and_data_sets_where_they_are_known():
    runs = [result(0), result(3, dataset="other")]
    report = Report.of({"one": runs}, made={"one": [Made(epochs=7, seconds=12.34)]})
    head, *lines = csv.reader(io.StringIO(results_table(report, "csv", ["MRR"])))
    assert head == ["data set", "method", "MRR", "MRR ±", "seeds", "epochs", "seconds"]
    assert [line[0] for line in lines] == ["toy", "other"]
    assert lines[0][-3:] == ["1", "7", "12.3"]
    assert results_table(report, "markdown").count("| --- | ---: |") == 2


def test_a_report_prints_as_its_tables(report):
    assert str(report) == report.text()
    assert "<td" in report._repr_html_()
