"""An evaluation in a few kilobytes, for copies of results: where each target ranked, to a depth.

All else that an evaluation says of a user follows from the log, which whoever continues a copy has.
A rank beyond the depth is not kept, and neither are values by user of metrics that need it, such as
MRR; their means are. ``pl.read_parquet`` reads the one column, ``rank``, from 0, a half where the
target ties, null beyond the depth; its metadata says what was measured and how.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from diffuserec.data import Queries
from diffuserec.errors import DataError
from diffuserec.evaluation.evaluate import Evaluation, Ranking, values_by_user
from diffuserec.evaluation.groups import group_means
from diffuserec.evaluation.metrics import parse_metric
from diffuserec.evaluation.protocol import Protocol
from diffuserec.files import cause_of, read_parquet, replacing

_FORMAT = "diffuserec-ranks"
_VERSION = "1"
_DEPTH = 20
_ROUNDING = 1e-9


def write_ranks(evaluation: Evaluation, file: Path) -> None:
    """Writes the ranks of an evaluation, its protocol and the means of its metrics.

    Raises:
        OSError: the file cannot be written.
    """
    rank = evaluation.per_user["target_rank"]
    kept = pl.DataFrame({"rank": pl.select(pl.when(rank < _DEPTH).then(rank)).to_series()})
    content = {
        "method": evaluation.method,
        "protocol": asdict(evaluation.protocol),
        "metrics": evaluation.metrics,
    }
    metadata = {"format": _FORMAT, "version": _VERSION, "evaluation": json.dumps(content)}
    with replacing(file) as work:
        kept.cast(pl.Float32).write_parquet(work, metadata=metadata, statistics=False)


def read_ranks(file: Path, queries: Queries, popularity: Int64[np.ndarray, " V"]) -> Evaluation:
    """The evaluation whose ranks were written, with values by user of what the depth decides.

    Args:
        queries: that were measured, in the same order.
        popularity: training counts of the items; entry 0 is padding.

    Raises:
        DataError: the file is missing, damaged, of another release or of other queries.
    """
    try:
        rank = read_parquet(file, height=len(queries))["rank"]
        metadata = pl.read_parquet_metadata(file)
        if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
            raise ValueError("it is of another release")
        content = json.loads(metadata["evaluation"])
        given, known = content["protocol"], {field.name for field in fields(Protocol)}
        if given.keys() != known:
            raise ValueError("its protocol is another release's")
        protocol = Protocol(**given)
        target_rank = rank.cast(pl.Float64).fill_null(np.inf).to_numpy()
        found = {}
        for name, mean in content["metrics"].items():
            metric = parse_metric(name)
            if metric.is_per_user and metric.k is not None and metric.k <= _DEPTH:
                found[name] = metric.per_user(target_rank)
                if abs(found[name].mean() - mean) > _ROUNDING:
                    raise ValueError(f"its ranks do not give its {name}")
    except (OSError, KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{file} is damaged or of other data ({cause_of(error)}): remove it, and its row is "
            "trained and measured once more"
        ) from error
    lists = np.empty((len(queries), 0), dtype=np.int64)
    ranking = Ranking(queries.histories.users, target_rank, lists, len(popularity))
    per_user = values_by_user(queries, ranking, popularity).drop("target_rank")
    per_user = per_user.with_columns(pl.Series(name, values) for name, values in found.items())
    return Evaluation(
        method=content["method"],
        protocol=protocol,
        metrics=content["metrics"],
        groups=group_means(per_user, list(found)),
        per_user=per_user,
    )
