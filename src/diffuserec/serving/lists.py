"""Recommendation lists of a saved run, for one history or for every user of a log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from diffuserec.data import Catalog, RawId, encode_histories, read_histories
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import replacing
from diffuserec.models.methods import load, load_augmenter, run_of
from diffuserec.models.recommender import Recommender
from diffuserec.models.retrieval import ItemIndex
from diffuserec.serving.item_index import item_index_of

_WRITERS = {".csv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}


def recommend_from(
    run: Path,
    history: Sequence[RawId] | None,
    histories: Path | None,
    *,
    columns: Mapping[str, Any] | None = None,
    out: Path | None = None,
    fallback: bool = False,
    approximate: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> pl.DataFrame:
    """Recommendations of a finished run for one history, or for every user of a log.

    Only the run's models are read, not its data.

    Args:
        run: a run's directory, or that of a saved recommender.
        history: raw item ids, oldest first.
        histories: a log, if no single history is given; its users become ``user_id``.
        columns: ``format, user, item, time`` of that log, as :func:`read_histories` takes them.
        out: a ``.csv``, ``.parquet`` or ``.jsonl`` file to write as well. Raw ids are written as
            they are, so a CSV file has formulas for a spreadsheet program if ids begin with
            ``=``, ``+``, ``-`` or ``@``: import such columns as text.
        fallback: answer by popularity even if no id of any history is known.
        approximate: look only at the items that an index finds, which is made when it is missing
            and kept beside the model.
        say: called with a line that tells who answered for how many histories and how many ids are
            unknown (of a single history, only if there is something to tell); and with one if
            histories are longer than the model looks back.
        options: of :meth:`Recommender.recommend`.

    Raises:
        ConfigError: neither or both of the two histories, an ending of `out` that is not known, or
            an option that is not allowed.
        DataError: `out` exists or has no folder, the log cannot be read, ids are refused, or none
            of the ids is known.
    """
    if (history is None) == (histories is None):
        raise ConfigError("give either --history or --histories")
    if history is not None and not len(history):
        raise DataError("--history names no item: give item ids, oldest first, commas between them")
    _check_out(out)
    maker = ListMaker(run)
    users, times = None, None
    asked: Sequence[Sequence[RawId]] = [history or []]
    if histories is not None:
        users, asked, times = maker.read(histories, columns or {})
    if approximate:
        options["index"] = maker.index(say)
    frame, answered = maker.lists(users, asked, times, fallback=fallback, file=histories, **options)
    for line in answered.lines(maker.model):
        say(line)
    if out is not None:
        write_lists(frame, out)
    return frame


class ListMaker:
    """Makes lists by the models of a finished run, or a saved recommender, which are read once."""

    def __init__(self, run: Path) -> None:
        self.run = run_of(run)
        self.model = load(self.run)
        found = self.run / "augmenter"
        self.augmenter = load_augmenter(found) if found.is_dir() else None

    def index(self, say: Callable[[str], None]) -> ItemIndex:
        """The run's index of items for approximate lists, made if it is not there."""
        return item_index_of(self.run, self.model, say)

    def read(
        self, histories: Path, columns: Mapping[str, Any]
    ) -> tuple[pl.Series, list[list[RawId]], list[list[Any]] | None]:
        """The users of a log, their items and, for a model that reads them, the items' times."""
        log = read_histories(histories, **columns)
        grouped = log.group_by("user_id", maintain_order=True).agg(pl.exclude("user_id"))
        times = None
        if self.model.reads_times and "timestamp" in grouped.columns:
            times = grouped["timestamp"].to_list()
        return grouped["user_id"], grouped["item_id"].to_list(), times

    def lists(
        self,
        users: pl.Series | None,
        asked: Sequence[Sequence[RawId]],
        times: Sequence[Sequence[Any]] | None = None,
        *,
        fallback: bool = True,
        file: Path | None = None,
        **options: Any,
    ) -> tuple[pl.DataFrame, "Answered"]:
        """The lists of :func:`recommend_from`, and who answered.

        Args:
            users: become the column ``user_id``; None: there is one history alone.
            file: where the histories are from.

        Raises:
            DataError: no id is known, without `fallback`.
        """
        known, n_unknown = encode_histories(self.model.catalog, asked)
        if not known.lengths.any() and not fallback:
            raise DataError(_nothing_known(self.model.catalog, asked, file))
        if times is not None:
            options["times"] = times
        frame = self.model.recommend(asked, augmenter=self.augmenter, **options)
        max_len = self.model.max_len
        answered = Answered(
            n_ids=sum(map(len, asked)),
            n_asked=len(asked),
            n_unknown=int(n_unknown.sum()),
            n_alone=int((known.lengths == 0).sum()),
            n_without=len(asked) - frame["query"].n_unique(),
            n_longer=sum(max_len is not None and len(items) > max_len for items in asked),
            n_single=int(users is None),
            n_untimed=len(asked) if self.model.reads_times and times is None else 0,
        )
        if users is not None:
            frame = frame.select(user_id=users.gather(frame["query"])).hstack(frame)
        return frame.drop("query"), answered


@dataclass(frozen=True)
class Answered:
    """Who answered how many histories, and what was not known; those of parts can be added up.

    Attributes:
        n_ids, n_unknown: item ids, and those that the catalog does not hold.
        n_asked, n_alone, n_without: histories, those without a known item and without a list.
        n_longer: histories longer than the model looks back.
        n_single: whether it was one history, without a user.
        n_untimed: histories without times, of a model that reads them.
    """

    n_ids: int = 0
    n_asked: int = 0
    n_unknown: int = 0
    n_alone: int = 0
    n_without: int = 0
    n_longer: int = 0
    n_single: int = 0
    n_untimed: int = 0

    def __add__(self, other: "Answered") -> "Answered":
        return Answered(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def n_known(self) -> int:
        """Item ids that the catalog holds."""
        return self.n_ids - self.n_unknown

    def lines(self, model: Recommender) -> Iterator[str]:
        """What there is to tell."""
        if self.n_longer:
            yield (
                f"{self.n_longer:,} of {self.n_asked:,} histories are longer than the "
                f"{model.max_len} items that {model.name} looks back on: only their newest "
                f"{model.max_len} count"
            )
        if self.n_untimed:
            yield (
                f"{model.name} reads when items were chosen, and {self.n_untimed:,} of "
                f"{self.n_asked:,} histories came without times: lists may be worse than measured"
            )
        if not self.n_single or self.n_unknown or self.n_alone or self.n_without:
            yield _summary(self.n_ids, self.n_asked, self.n_unknown, self.n_alone, self.n_without)


def write_lists(frame: pl.DataFrame, out: Path) -> None:
    """Writes lists in the format of the file's ending, in one step."""
    with replacing(out) as work:
        getattr(frame, _WRITERS[out.suffix])(work)


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    if out.suffix not in _WRITERS:
        raise ConfigError(f"--out must end in {', '.join(_WRITERS)}, got {out.name!r}")
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")


def _nothing_known(catalog: Catalog, asked: Sequence[Sequence[RawId]], file: Path | None) -> str:
    """Message for histories without a known id."""
    first = next((str(item) for items in asked for item in items), "")
    what = f"of {file} " if file is not None else "of the history "
    example = f"{str(catalog.item_ids[0])!r}" if catalog.n_items else "none"
    return (
        f"none of the {sum(map(len, asked)):,} item ids {what}is in the catalog (the first is "
        f"{first!r}, one of the catalog is {example}): check the ids and the commas between them, "
        "or add --fallback to be answered by popularity"
    )


def _summary(n_ids: int, n_asked: int, n_unknown: int, n_alone: int, n_without: int) -> str:
    """Who answered how many histories, what was not known, and who was given nothing."""
    histories = "1 history" if n_asked == 1 else f"{n_asked:,} histories"
    parts = [
        f"{histories}: {n_asked - n_alone:,} answered by the model, {n_alone:,} by popularity",
        f"{n_unknown:,} of {n_ids:,} item ids unknown and skipped",
    ]
    if n_without:
        parts.append(f"{n_without:,} without a list: no item is left to show")
    return "; ".join(parts)
