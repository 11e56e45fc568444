"""What a copy keeps of an evaluation: ranks to a depth, and what follows from them by user."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from diffuserec import Markov, Popularity, Store, leave_one_out
from diffuserec.data import Split
from diffuserec.errors import DataError
from diffuserec.evaluation import Evaluation, compare, evaluate, read_ranks, write_ranks


@pytest.fixture(scope="module")
def split() -> Split:
    return leave_one_out(Store(n_users=300, n_items=120, seed=2).dataset())


@pytest.fixture(scope="module")
def measured(split: Split) -> dict[str, Evaluation]:
    models = {"markov": Markov(), "popularity": Popularity()}
    return {
        name: evaluate(model.fit(split.train), split.test, metrics=["HR@50"])
        for name, model in models.items()
    }


def kept(evaluation: Evaluation, split: Split, file: Path) -> Evaluation:
    write_ranks(evaluation, file)
    return read_ranks(file, split.test, split.train.item_counts())


def test_values_by_user_and_groups_are_those_of_the_evaluation(
    split: Split, measured: dict[str, Evaluation], tmp_path: Path
) -> None:
    whole = measured["markov"]
    found = kept(whole, split, tmp_path / "ranks.parquet")
    assert (found.method, found.protocol, found.metrics) == (
        whole.method,
        whole.protocol,
        whole.metrics,
    )
    beyond = ["MRR", "HR@50", "target_rank"]
    assert found.per_user.columns == whole.per_user.drop(beyond).columns
    assert found.per_user.equals(whole.per_user.drop(beyond))
    of_depth = whole.groups.filter(~pl.col("metric").is_in(beyond))
    assert found.groups.equals(of_depth)


def test_a_comparison_is_the_same(
    split: Split, measured: dict[str, Evaluation], tmp_path: Path
) -> None:
    files = {name: tmp_path / f"{name}.parquet" for name in measured}
    again = {name: kept(measured[name], split, file) for name, file in files.items()}
    before = compare([measured["markov"]], [measured["popularity"]], "NDCG@10")
    assert compare([again["markov"]], [again["popularity"]], "NDCG@10") == before


def test_a_rank_beyond_the_depth_is_not_kept(
    split: Split, measured: dict[str, Evaluation], tmp_path: Path
) -> None:
    file = tmp_path / "ranks.parquet"
    write_ranks(measured["markov"], file)
    rank = pl.read_parquet(file)["rank"]
    whole = measured["markov"].per_user["target_rank"]
    assert rank.is_null().to_list() == (whole >= 20).to_list()
    assert rank.drop_nulls().to_list() == whole.filter(whole < 20).to_list()


def test_other_queries_and_changed_ranks_are_refused(
    split: Split, measured: dict[str, Evaluation], tmp_path: Path
) -> None:
    file, counts = tmp_path / "ranks.parquet", split.train.item_counts()
    with pytest.raises(DataError, match="damaged"):
        read_ranks(file, split.test, counts)
    write_ranks(measured["markov"], file)
    fewer = split.test.select(np.arange(len(split.test) - 1))
    with pytest.raises(DataError, match="rows"):
        read_ranks(file, fewer, counts)
    changed = pl.read_parquet(file).with_columns(pl.lit(0, pl.Float32).alias("rank"))
    changed.write_parquet(file, metadata=pl.read_parquet_metadata(file))
    with pytest.raises(DataError, match="do not give its HR@5"):
        read_ranks(file, split.test, counts)
    pl.DataFrame({"rank": changed["rank"]}).write_parquet(file)
    with pytest.raises(DataError, match="another release"):
        read_ranks(file, split.test, counts)
