"""Paired tests in the right direction, and arithmetic that published tables broke."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from diffuserec.errors import ConfigError
from diffuserec.evaluation import (
    Evaluation,
    Protocol,
    check_consistency,
    compare,
    group_means,
    history_groups,
    paired_difference,
    rank_metrics,
)


def evaluation(ranks, seed=0, method="method", users=None, **protocol):
    """A result of users with these target ranks."""
    ranks = np.asarray(ranks, dtype=float)
    by_user = rank_metrics(ranks, (5, 10))
    per_user = pl.DataFrame(
        {
            "user": np.arange(len(ranks)) if users is None else users,
            "history_group": history_groups(np.arange(len(ranks)) % 30),
            "popularity_group": np.where(np.arange(len(ranks)) % 3 == 0, "head", "tail"),
            "target_count": np.full(len(ranks), 9),
            "target": np.full(len(ranks), "B7"),
            **by_user,
        }
    )
    settings = {
        "dataset": "toy",
        "split": "leave-one-out test",
        "candidates": "full",
        "n_items": 50,
        "filter_seen": True,
        "ties": "mid-rank",
        "n_users": len(ranks),
        "n_too_short": 0,
        "filters": "none",
        "max_len": None,
        "seed": seed,
        "repeat_share": 0.0,
    }
    return Evaluation(
        method=method,
        protocol=Protocol(**(settings | protocol)),
        metrics={name: float(values.mean()) for name, values in by_user.items()},
        groups=group_means(per_user, list(by_user)),
        per_user=per_user,
    )


@pytest.fixture
def ranks():
    return np.random.default_rng(0).integers(0, 40, 400).astype(float)


def test_ours_better_is_positive_and_significant(ranks):
    better = np.maximum(0, ranks - 4)
    found = compare(evaluation(better), evaluation(ranks), "NDCG@10")
    assert found.difference == pytest.approx(found.ours - found.reference)
    assert found.difference > 0
    low, high = found.interval()
    assert 0 < low < found.difference < high
    assert max(found.p, found.p_wilcoxon) < 1e-6
    worse = compare(evaluation(ranks), evaluation(better), "NDCG@10")
    assert worse.difference == -found.difference
    assert worse.p == pytest.approx(found.p)
    assert worse.interval()[1] < 0


def test_p_values_are_scipys_on_pairs(ranks):
    other = np.random.default_rng(1).permutation(ranks)
    found = compare(evaluation(other), evaluation(ranks), "MRR")
    mine, theirs = 1 / (other + 1), 1 / (ranks + 1)
    assert found.p == pytest.approx(stats.ttest_rel(mine, theirs).pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(mine, theirs).pvalue)
    assert found == compare(evaluation(other), evaluation(ranks), "mrr")


def test_no_difference_is_no_evidence(ranks):
    found = compare(evaluation(ranks), evaluation(ranks))
    assert (found.difference, *found.interval()) == (0, 0, 0)
    assert (found.p, found.p_wilcoxon) == (1.0, 1.0)


def test_the_same_gain_for_everyone():
    found = compare(evaluation(np.zeros(30)), evaluation(np.full(30, 20.0)), "HR@10")
    assert (found.difference, found.p) == (1.0, 0.0)


def test_users_are_aligned_not_assumed(ranks):
    order = np.random.default_rng(2).permutation(400)
    one = evaluation(ranks)
    other = evaluation(ranks[order], users=order)
    assert compare(one, other).difference == 0


def test_several_seeds_are_one_method(ranks):
    generator = np.random.default_rng(3)
    mine = [evaluation(np.maximum(0, ranks - generator.integers(0, 6, 400)), s) for s in range(3)]
    theirs = [evaluation(ranks + generator.integers(0, 3, 400), s) for s in range(2)]
    found = compare(mine, theirs, "HR@10")
    means = [[run.metrics["HR@10"] for run in runs] for runs in (mine, theirs)]
    assert (found.n_seeds, found.n_seeds_reference) == (3, 2)
    assert found.difference == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    values = [
        np.stack([run.per_user["HR@10"].to_numpy() for run in runs]) for runs in (mine, theirs)
    ]
    assert found.p == paired_difference(*values).p


def test_a_group_is_its_users(ranks):
    one, other = evaluation(np.maximum(0, ranks - 4)), evaluation(ranks)
    found = compare(one, other, "HR@10", group="long")
    inside = one.per_user["history_group"] == "long"
    assert found.n_users == inside.sum()
    assert found.ours == one.per_user.filter(inside)["HR@10"].mean()
    with pytest.raises(ConfigError, match="no group 'longest'; there are: all, short"):
        compare(one, other, group="longest")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filter_seen": False}, "filter_seen: True and False"),
        ({"candidates": "uniform:100"}, "candidates: full and uniform:100"),
        ({"split": "temporal"}, "split: "),
    ],
)
def test_other_protocols_are_refused(ranks, change, message):
    with pytest.raises(ConfigError, match=message):
        compare(evaluation(ranks), evaluation(ranks, **change))


def test_max_len_is_the_models_own_affair(ranks):
    assert compare(evaluation(ranks, max_len=50), evaluation(ranks)).difference == 0


def test_other_users_are_refused(ranks):
    with pytest.raises(ConfigError, match="same users and targets"):
        compare(evaluation(ranks), evaluation(ranks, users=np.arange(400) + 1))


def test_unknown_metric_is_refused(ranks):
    with pytest.raises(ConfigError, match="has no HR@50 by user; it has: HR@5, HR@10"):
        compare(evaluation(ranks), evaluation(ranks), "HR@50")


# Published full-ranking tables, 1/10000: HR@5, HR@10, HR@20, NDCG@5, NDCG@10, NDCG@20.
DIFFREC = {  # Du et al. (2023)
    "Beauty GRU4Rec": (206, 332, 526, 139, 175, 221),
    "Beauty SASRec": (371, 592, 893, 233, 284, 361),
    "Beauty BERT4Rec": (370, 598, 935, 233, 306, 391),
    "Beauty STOSA": (460, 659, 932, 318, 382, 451),
    "Beauty ACVAE": (438, 690, 1059, 272, 354, 453),
    "Beauty VSAN": (475, 759, 1086, 298, 389, 471),
    "Beauty MFGAN": (382, 605, 916, 254, 310, 405),
    "Beauty CL4SRec": (396, 630, 965, 232, 307, 392),
    "Beauty DuoRec": (541, 825, 1102, 362, 447, 531),
    "Beauty DiffRec": (629, 847, 1125, 447, 518, 588),
    "Toys GRU4Rec": (121, 184, 290, 77, 97, 123),
    "Toys SASRec": (429, 652, 957, 248, 320, 397),
    "Toys BERT4Rec": (371, 524, 760, 259, 309, 368),
    "Toys STOSA": (563, 769, 1006, 393, 460, 519),
    "Toys ACVAE": (457, 663, 984, 291, 364, 432),
    "Toys VSAN": (481, 719, 1029, 286, 363, 441),
    "Toys MFGAN": (395, 641, 892, 257, 328, 381),
    "Toys CL4SRec": (503, 736, 990, 264, 339, 404),
    "Toys DuoRec": (539, 744, 1056, 340, 406, 472),
    "Toys DiffRec": (647, 834, 1088, 474, 534, 598),
    "ML-1M GRU4Rec": (806, 1344, 2081, 475, 649, 834),
    "ML-1M SASRec": (1078, 1810, 2745, 681, 918, 1156),
    "ML-1M BERT4Rec": (1308, 2219, 3354, 804, 1097, 1384),
    "ML-1M STOSA": (1230, 1889, 2724, 810, 1021, 1231),
    "ML-1M ACVAE": (1356, 2033, 3085, 837, 1145, 1392),
    "ML-1M VSAN": (1220, 2015, 3003, 751, 1007, 1257),
    "ML-1M MFGAN": (1275, 2086, 3166, 778, 1040, 1309),
    "ML-1M CL4SRec": (1142, 1815, 2818, 705, 920, 1170),
    "ML-1M DuoRec": (1679, 2540, 3478, 1091, 1370, 1607),
    "ML-1M DiffRec": (2022, 2900, 3923, 1374, 1657, 1916),
}
# HR@5, HR@10, NDCG@5, NDCG@10
SIMDIFFREC = {  # 2025
    "Beauty BERT4Rec": (178, 309, 109, 152),
    "Beauty SASRec": (303, 557, 163, 245),
    "Beauty CL4SRec": (456, 774, 259, 361),
    "Beauty DuoRec": (471, 799, 268, 374),
    "Beauty MCLRec": (499, 836, 286, 394),
    "Beauty ECL-SR": (489, 822, 287, 395),
    "Beauty DiffuASR": (445, 759, 252, 353),
    "Beauty DreamRec": (477, 805, 273, 378),
    "Beauty CaDiRec": (521, 867, 300, 411),
    "Beauty SimDiffRec": (572, 932, 310, 427),
    "Toys BERT4Rec": (123, 202, 75, 58),
    "Toys SASRec": (304, 526, 164, 236),
    "Toys CL4SRec": (437, 721, 236, 328),
    "Toys DuoRec": (454, 748, 245, 340),
    "Toys MCLRec": (475, 776, 257, 354),
    "Toys ECL-SR": (425, 710, 241, 333),
    "Toys DiffuASR": (428, 707, 231, 321),
    "Toys DreamRec": (456, 748, 246, 341),
    "Toys CaDiRec": (494, 804, 267, 367),
    "Toys SimDiffRec": (560, 896, 288, 396),
    "Sports BERT4Rec": (68, 122, 41, 101),
    "Sports SASRec": (187, 343, 107, 157),
    "Sports CL4SRec": (272, 453, 158, 221),
    "Sports DuoRec": (287, 476, 166, 233),
    "Sports MCLRec": (297, 484, 173, 240),
    "Sports ECL-SR": (283, 473, 172, 233),
    "Sports DiffuASR": (266, 445, 154, 217),
    "Sports DreamRec": (285, 469, 165, 231),
    "Sports CaDiRec": (309, 500, 180, 249),
    "Sports SimDiffRec": (338, 562, 191, 252),
    "Yelp BERT4Rec": (256, 414, 164, 214),
    "Yelp SASRec": (358, 508, 265, 314),
    "Yelp CL4SRec": (414, 616, 295, 353),
    "Yelp DuoRec": (425, 613, 306, 367),
    "Yelp MCLRec": (430, 647, 304, 364),
    "Yelp ECL-SR": (438, 662, 294, 366),
    "Yelp DiffuASR": (405, 583, 293, 350),
    "Yelp DreamRec": (416, 601, 299, 359),
    "Yelp CaDiRec": (431, 624, 308, 370),
    "Yelp SimDiffRec": (477, 689, 332, 401),
    "ML-1M BERT4Rec": (356, 533, 197, 158),
    "ML-1M SASRec": (770, 1399, 431, 625),
    "ML-1M CL4SRec": (1090, 1888, 620, 876),
    "ML-1M DuoRec": (1119, 1936, 636, 898),
    "ML-1M MCLRec": (1181, 2028, 674, 947),
    "ML-1M ECL-SR": (1194, 2079, 675, 961),
    "ML-1M DiffuASR": (1067, 1853, 606, 858),
    "ML-1M DreamRec": (1136, 1958, 647, 911),
    "ML-1M CaDiRec": (1227, 2098, 701, 983),
    "ML-1M SimDiffRec": (1278, 2182, 712, 996),
}


def published(table, names):
    return {
        row: {name: value / 10_000 for name, value in zip(names, values, strict=True)}
        for row, values in table.items()
    }


def test_impossible_rows_of_diffrec():
    names = ["HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20"]
    found = {violation.method for violation in check_consistency(published(DIFFREC, names))}
    assert found == {
        "Beauty SASRec",
        "Beauty MFGAN",
        "Beauty DuoRec",
        "Toys ACVAE",
        "Toys MFGAN",
        "Toys DuoRec",
        "ML-1M ACVAE",
    }


def test_impossible_rows_of_simdiffrec():
    names = ["Recall@5", "Recall@10", "NDCG@5", "NDCG@10"]
    found = check_consistency(published(SIMDIFFREC, names))
    assert {violation.method for violation in found} == {
        "Toys BERT4Rec",
        "Sports BERT4Rec",
        "ML-1M BERT4Rec",
        "Sports SimDiffRec",
        "Yelp MCLRec",
    }
    assert str(found[0]) == (
        "Toys BERT4Rec: NDCG@10 - NDCG@5 is -0.0017, and HR@5, HR@10 allow only 0.0022 to 0.0028"
    )


def test_rows_that_contradict_themselves_at_one_cutoff():
    table = {
        "ndcg above hr": {"HR@10": 0.1, "NDCG@10": 0.2},
        "ndcg too low": {"HR@10": 0.5, "NDCG@10": 0.01},
        "hr shrinks": {"HR@5": 0.3, "HR@10": 0.2, "NDCG@5": 0.15, "NDCG@10": 0.15},
        "sound": {"HR@5": 0.1, "NDCG@5": 0.05, "MRR": 0.06, "HR@10": 0.2},
    }
    found = check_consistency(table)
    assert [violation.method for violation in found] == [
        "ndcg above hr",
        "ndcg too low",
        "hr shrinks",
    ]


@pytest.mark.parametrize("decimals", [None, 4, 2])
def test_real_rankings_never_offend(decimals):
    generator = np.random.default_rng(4)
    table = {}
    for row in range(200):
        size = int(generator.integers(1, 50))
        ranks = generator.integers(0, 60, size) / 2
        means = {k: v.mean() for k, v in rank_metrics(ranks, (1, 5, 10, 20)).items()}
        if decimals is not None:
            means = {k: round(v, decimals) for k, v in means.items()}
        table[str(row)] = means
    assert check_consistency(table, decimals) == []
