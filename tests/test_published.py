"""Methods reach their levels on the real logs; hours, so only with ``make slow``.

The folder that DIFFUSEREC_DATA names must hold beauty.txt and ml-1m.txt, one line a user.
"""

import os
from pathlib import Path

import pytest

import diffuserec as dr

DATA = os.environ.get("DIFFUSEREC_DATA")


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="DIFFUSEREC_DATA names no folder of logs")
@pytest.mark.parametrize(
    ("log", "name", "settings", "hit_rate", "ndcg"),
    [
        ("beauty.txt", "sasrec", {"epochs": 60, "patience": 6}, 0.087, 0.053),
        ("beauty.txt", "diffrec", {"epochs": 60, "patience": 6}, 0.0847, 0.0518),
        ("ml-1m.txt", "sasrec", {"max_len": 200, "dropout": 0.2, "patience": 8}, 0.29, 0.16),
    ],
)
def test_reaches_its_level(
    log: str, name: str, settings: dict[str, float], hit_rate: float, ndcg: float
) -> None:
    split = dr.leave_one_out(dr.read_log(Path(str(DATA)) / log).to_dataset())
    model = dr.find_recommender(name)(**settings)
    model.fit(split.train, split.valid, dr.Runtime(precision="bf16"))
    metrics = dr.evaluate(model, split.test).metrics
    assert metrics["HR@10"] >= hit_rate
    assert metrics["NDCG@10"] >= ndcg
