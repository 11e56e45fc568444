"""Comparison of runs, whatever each was trained on, on interactions that came after all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffuserec.data import (
    Catalog,
    Histories,
    Queries,
    SequenceDataset,
    append,
    dataset_manifest,
    from_dataset,
    load_dataset,
    read_more,
)
from diffuserec.data.dataset import offsets_of
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import Evaluation, evaluate
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.methods import find_recommender
from diffuserec.models.recommender import Recommender
from diffuserec.models.retrieval import Matrix, Scorer
from diffuserec.reports.html import write_html
from diffuserec.reports.report import Report
from diffuserec.studies.compare import BASELINES
from diffuserec.studies.made import made_of
from diffuserec.studies.run_directory import RunDirectory, open_run, read_curve
from diffuserec.studies.update import READ


@dataclass(frozen=True, eq=False)
class Newest:
    """What came after a moment.

    Attributes:
        before: the log until then, in the catalog of all of it.
        queries: of each user with an interaction after it, the first one, and all before it.
    """

    before: SequenceDataset
    queries: Queries


def newest_queries(dataset: SequenceDataset, moment: int) -> Newest:
    """Divides a log at a moment; what happened at it counts as before.

    Users who have nothing before it have no query.

    Raises:
        DataError: the log has no times, or nobody with a history comes after the moment.
    """
    if dataset.timestamps is None:
        raise DataError("what is newest needs times: prepare the log with --time COLUMN")
    times = np.asarray(dataset.timestamps)
    n_before = np.diff(offsets_of(times <= moment)[dataset.offsets])
    comes = n_before < dataset.lengths
    index = np.flatnonzero(comes & (n_before > 0))
    if not len(index):
        raise DataError(
            f"nobody with a history comes after {moment}, the newest time that a run has seen: "
            "give a log that goes further"
        )
    starts = dataset.starts[index]
    place = starts + n_before[index]
    targets = np.asarray(dataset.log.items[place], dtype=np.int64)
    return Newest(
        dataset.view(dataset.starts, dataset.starts + n_before),
        Queries(
            dataset.view(starts, place, index),
            targets,
            split=f"first item after {moment}",
            n_too_short=int(comes.sum()) - len(index),
        ),
    )


def compare_newest(
    paths: Sequence[Path | str],
    log: Path,
    out: Path | None = None,
    title: str | None = None,
) -> Report:
    """One report of runs of different data, on what came after everything that any of them saw.

    The log is read as that of the run whose data is newest, and put behind it. A user's first
    interaction after the newest time of any run's data is the item that is asked for. Histories
    are given to each model as raw ids, as they would be served; each ranks the items that it knows,
    and a target that it does not know is a miss.

    Args:
        paths: directories of finished runs, the first is the reference.
        log: a log, or a prepared dataset, that goes further than all of them.
        out: file of the HTML report; None writes none.

    Raises:
        ConfigError: no runs, or one twice.
        DataError: a log has no times, or nothing comes after.
    """
    if not paths:
        raise ConfigError("give at least one run to compare")
    runs = [open_run(path) for path in paths]
    places = [str(run.path.resolve()) for run in runs]
    if len(set(places)) < len(places):
        raise ConfigError("one of the runs is given twice: give it once")
    moments = [_newest_time(run) for run in runs]
    last = int(np.argmax(moments))
    dataset = _with_log(runs[last], log)
    newest = newest_queries(dataset, max(moments))
    names = [run.path.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = places
    counts = torch.from_numpy(newest.before.item_counts())
    results: dict[str, list[Evaluation]] = {}
    notes = []
    for name, run in zip(names, runs, strict=True):
        model = _Elsewhere(run, dataset.catalog, counts)
        results[name] = [_measured(model, newest, log, run.plan.seed)]
        known = model.numbers[torch.from_numpy(newest.queries.targets)] > 0
        n_unknown = int((~known).sum())
        if n_unknown:
            notes.append(
                f"{name} does not know {n_unknown:,} of {len(known):,} targets, which are misses; "
                f"it ranks {run.model.catalog.n_items:,} items"
            )
    for name in BASELINES:
        fitted = find_recommender(name)().fit(newest.before)
        shown = f"{name} (default)" if name in results else name
        results[shown] = [_measured(fitted, newest, log, 0)]
    made = {name: [made_of(run)] for name, run in zip(names, runs, strict=True)}
    report = Report.of(results, None, made)
    report = replace(report, notes=(*report.notes, *notes))
    if out is not None:
        curves = {
            n: read_curve(run.path / "curve.json") for n, run in zip(names, runs, strict=True)
        }
        write_html(out, report, title=title or f"{len(runs)} runs on {log.name}", curves=curves)
    return report


def _newest_time(run: RunDirectory) -> int:
    """The newest time of a run's data, whether it was trained on or held out."""
    times = run.split.train.log.timestamps
    if times is None:
        raise DataError(f"the data of {run.path} has no times: what is newest can't be told")
    return int(np.asarray(times).max())


def _with_log(run: RunDirectory, log: Path) -> SequenceDataset:
    """A run's data with a log, or prepared data, behind it."""
    own = load_dataset(run.plan.data)
    if (log / "manifest.json").is_file():
        newer = from_dataset(load_dataset(log))
    else:
        note = dataset_manifest(run.plan.data)["note"]
        read = {name: value for name, value in note.get("read", {}).items() if name in READ}
        newer = read_more(log, own.catalog, **read)
    return append(from_dataset(own), newer)[0].to_dataset()


def _measured(model: Recommender, newest: Newest, log: Path, seed: int) -> Evaluation:
    facts = {"filters": "none"}
    return evaluate(model, newest.queries, dataset_name=log.name, seed=seed, facts=facts)


class _Elsewhere(Recommender):
    """A run's model, asked and answering in the catalog of another log.

    Args:
        catalog: of that log.
        popularity: counts of its items, which group the targets and tell how novel lists are.
    """

    def __init__(
        self, run: RunDirectory, catalog: Catalog, popularity: Int64[Tensor, " V"]
    ) -> None:
        super().__init__()
        self.model, self.augmenter, self.seed = run.model, run.augmenter, run.plan.seed
        self.catalog = catalog
        self.register_buffer("popularity", popularity)
        numbers = np.append(0, run.model.catalog.encode(catalog.item_ids))
        self.numbers = torch.from_numpy(numbers)
        """Number in the model's catalog of each item; 0 for one that it does not know."""

    @property
    def reads_times(self) -> bool:
        return self.model.reads_times

    def build(self, catalog: Catalog) -> None:
        raise ConfigError("it is made of a fitted model")

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        raise ConfigError("it is made of a fitted model")

    def scorer(
        self,
        histories: Histories,
        seed: int = 0,
        n_draws: int | None = None,
        diversity: float = 0.0,
    ) -> Scorer:
        items = self.numbers[histories.items.cpu()]
        known = items > 0
        times = None if histories.times is None else histories.times.cpu()[known].numpy()
        asked = SequenceDataset.from_offsets(
            items[known].numpy().astype(np.int32),
            offsets_of(known.sum(1).numpy()),
            self.model.catalog,
            histories.users.cpu().numpy() + self.model.catalog.n_users,  # as unknown as when served
            timestamps=times,
        )
        if self.augmenter is not None:
            asked = self.augmenter.augment_for_inference(asked, self.seed)
        inner = self.model.scorer_of(asked, np.arange(len(asked)), seed, n_draws, diversity)
        scores = inner.block(slice(0, inner.shape[1]))[:, self.numbers.to(inner.device)]
        return _Known(scores.masked_fill(self.numbers.to(inner.device) == 0, -torch.inf))


@dataclass(frozen=True, eq=False)
class _Known(Matrix):
    """Scores of the items that a model knows; the others, minus infinity, may not be shown."""

    def rows(self, part: slice) -> "_Known":
        return _Known(self.scores[part])

    def block(self, columns: slice) -> Float[Tensor, "B C"]:
        return self.scores[:, columns].float().clone()
