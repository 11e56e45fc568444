"""Advice for the first mistakes: a log, a frame or a split where something else is needed."""

from typing import Any

from diffuserec.data.dataset import SequenceDataset
from diffuserec.errors import DataError


def require_sequences(what: str, given: Any) -> None:
    """Raises DataError unless a dataset is given; says how to get one from what is."""
    if isinstance(given, SequenceDataset):
        return
    kind = type(given).__name__
    advice = "make one with dr.read_log(FILE).to_dataset()"
    if kind == "Interactions":
        advice = "give log.to_dataset()"
    elif kind == "Split":
        advice = "give split.train"
    elif kind == "Queries":
        advice = "queries are for measuring; give split.train"
    elif hasattr(given, "columns"):
        advice = "give dr.from_frame(frame).to_dataset()"
    elif kind == "str" or hasattr(given, "__fspath__"):
        advice = "give dr.read_log(path).to_dataset(), or dr.load_dataset(path) of prepared data"
    raise DataError(f"{what} needs a dataset of sequences, got {_named(kind)}: {advice}")


def require_queries(what: str, given: Any) -> None:
    """Raises DataError unless queries are given; says how to get them from what is."""
    if not (hasattr(given, "histories") and hasattr(given, "targets")):
        kind = type(given).__name__
        part = "valid" if what.startswith("fit") else "test"
        advice = f"split a dataset with dr.leave_one_out(dataset) and give split.{part}"
        if kind == "Split":
            advice = f"give split.{part}"
        elif kind == "Interactions":
            advice = f"give dr.leave_one_out(log.to_dataset()).{part}"
        raise DataError(f"{what} needs queries, got {_named(kind)}: {advice}")


def _named(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
