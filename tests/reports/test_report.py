"""Tables of several evaluations."""

import json

import numpy as np
import polars as pl
import pytest

from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation, Protocol, group_means, rank_metrics
from diffuserec.reports.report import Report

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
    assert (report.comparisons["p_holm"] >= report.comparisons["p_t"]).all()


def test_text_shows_all_methods_groups_and_the_protocol(report):
    text = report.text()
    for word in ("sasrec", "better", "popularity", "HR@10", "NDCG@10", "MRR", "Coverage@10"):
        assert word in text
    assert "NDCG@10 by group" in text
    assert "400" in text  # users of the short group
    assert "long" not in text  # nobody is in it
    assert "***" in text
    flat = " ".join(text.split())
    assert report.protocol in flat
    assert "against sasrec, paired t-test over users with Holm's correction" in flat
    assert max(len(line) for line in text.splitlines()) <= 100


def test_protocol_line_says_where_methods_differ(report):
    assert "max_len 50/all · seed 0/1/2/3/4/5" in report.protocol
    assert "candidates full of 1,234 items" in report.protocol


def test_json_is_one_object(report):
    document = json.loads(report.json())
    assert set(document) == {"protocol", "notes", "results", "summary", "comparisons"}
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
