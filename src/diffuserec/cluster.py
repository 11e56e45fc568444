"""Work by Ray: training, lists, evaluations, augmented logs and studies on several machines.

Thin layers over what one process does alone: Ray starts processes, hands out the work and repeats
what is lost with a process. Without an address, Ray is started on this machine for the time of the
work; with one, it is a cluster's, where every machine has the package and sees the same files.

Sources: Ray Train V2 (``TorchTrainer``), Ray Data (``map_batches`` of a class) and Ray's tasks.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import torch

from diffuserec.data import Queries, from_dataset, load_dataset
from diffuserec.errors import ConfigError, DataError, LostProcess
from diffuserec.evaluation import rank
from diffuserec.evaluation.evaluate import Ranking
from diffuserec.evaluation.uncertainty import uncertainty
from diffuserec.files import beside, replacing, sweep, work_folder
from diffuserec.models.augmenter import ParallelAugmenter
from diffuserec.models.base import Runtime
from diffuserec.models.methods import load_augmenter
from diffuserec.models.recommender import Recommender
from diffuserec.serving.augmented_log import augmented_part, fitted_to_log
from diffuserec.serving.lists import Answered, ListMaker, write_lists
from diffuserec.studies.run_directory import Plan, is_free, kept_beside, open_run
from diffuserec.studies.runner import Outcome
from diffuserec.studies.train_run import train_along, train_run
from diffuserec.studies.workers import Event, Work, Workers, n_cores, result_of
from diffuserec.training import parallel

_STORE = 256 * 2**20
"""Bytes of memory for what processes of a Ray started here hand each other: small rows alone."""

_RETRIES = 3
"""Times that work is begun again whose process was lost."""

_AT_ONCE = 4096
"""Users of a part."""


@dataclass(frozen=True)
class Cluster:
    """Where Ray works.

    Attributes:
        workers: processes; None takes one for each core, or each GPU of a cluster that has any.
        address: of a running cluster; None starts Ray here, and ends it.
    """

    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {self.workers}")

    @contextlib.contextmanager
    def connected(self) -> Iterator["Connected"]:
        """Ray, for as long as the context lasts; one that this process has already stays.

        Raises:
            ConfigError: it is not installed, or cannot be reached.
        """
        ray = _ray()
        if ray.is_initialized():
            yield Connected(ray, self)
            return
        here: dict[str, Any] = {
            "address": "local",
            "num_cpus": 2 + (self.workers or n_cores()),  # two for what Ray itself runs
            "include_dashboard": False,
            "object_store_memory": _STORE,
        }
        try:
            with warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")  # of Ray's own
                ray.init(
                    **({"address": self.address} if self.address else here),
                    logging_level="ERROR",
                    log_to_driver=False,
                )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"the cluster at {self.address}" if self.address else "Ray on this machine"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ConfigError(
                f"{where} cannot be used ({reason}): docs/cluster.md says how to start one"
            ) from error
        try:
            yield Connected(ray, self)
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class Connected:
    """Ray at work."""

    ray: ModuleType
    cluster: Cluster

    @property
    def n_gpus(self) -> int:
        """GPUs there are."""
        return int(self.ray.cluster_resources().get("GPU", 0))

    @property
    def n_workers(self) -> int:
        """Processes to work with."""
        if self.cluster.workers is not None:
            return self.cluster.workers
        if self.n_gpus:
            return self.n_gpus
        if self.cluster.address is None:
            return n_cores()
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def each(
        self, worker: type, arguments: tuple[Any, ...], parts: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """What workers of a class find for parts of some work, in any order.

        A worker is made once in each process and called with one part at a time. A part whose
        process ends before it is done is done again.

        Args:
            worker: takes the arguments, and is called with a part and returns what it found.

        Raises:
            ConfigError, DataError: a worker refused a part.
            LostProcess: processes were lost again and again.
        """
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        made = ray.data.from_items(list(parts), override_num_blocks=len(parts)).map_batches(
            _OnePart,
            fn_constructor_args=(worker, arguments),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.n_workers, len(parts))),
        )
        with _one_line(self.ray), _quiet():
            answers = [json.loads(row["answer"]) for row in made.take_all()]
        for answer in answers:
            if "refused" in answer:
                raise _REFUSALS[answer["refused"]](answer["why"])
        return [answer["found"] for answer in answers]


class _OnePart:
    """What Ray Data makes in each process: a worker that is called with one part at a time."""

    def __init__(self, worker: type, arguments: tuple[Any, ...]) -> None:
        torch.set_num_threads(1)
        self.worker = worker(*arguments)

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        return {"answer": [json.dumps(self._answer(part)) for part in batch.to_pylist()]}

    def _answer(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """What was found, or why the part is refused, of whose error Ray Data hands on no kind."""
        try:
            return {"found": self.worker(part)}
        except (ConfigError, DataError) as error:
            return {"refused": type(error).__name__, "why": str(error)}


_REFUSALS: dict[str, type[Exception]] = {"ConfigError": ConfigError, "DataError": DataError}


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # as any process of this machine, and not behind all others, where Ray puts its workers
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Ray: pip install 'diffuserec[ray]' (for Python 3.11 to 3.13)"
        ) from error
    return ray  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what Ray says on standard error while it works; what fails is an exception."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextlib.contextmanager
def _one_line(ray: ModuleType) -> Iterator[None]:
    """Errors of a worker as errors of this process, without their way through Ray."""
    try:
        yield
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, DataError | ConfigError | LostProcess):
                raise type(cause)(str(cause)) from None
        if isinstance(error, ray.exceptions.RayError) or "ray" in type(error).__module__:
            reason = str(_causes(error)[-1]).strip().splitlines()[-1][:300]
            raise LostProcess(f"Ray gave the work up: {reason}") from error
        raise


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what it came from, as Ray hands it on."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or one in found:
            continue
        found.append(one)
        waiting += [one.__cause__, getattr(one, "cause", None)]
        waiting += list(getattr(one, "worker_failures", {}).values())
    return found


# Training


def train(plan: Plan, out: Path, runtime: Runtime, cluster: Cluster, overwrite: bool) -> None:
    """:func:`train_run` by several processes of Ray Train; one that is lost is replaced.

    The run directory is on a place that all machines see.

    Raises:
        ConfigError, DataError: as ``train_run`` does, or Ray cannot be used.
        LostProcess: processes were lost again and again.
    """
    with cluster.connected() as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        use_gpu = ray.n_gpus > 0 and runtime.device in ("auto", "cuda")
        given = {
            "plan": plan,
            "out": out.resolve(),
            "runtime": replace(runtime, progress=False),
            "overwrite": overwrite,
            "was_free": is_free(out),
            "was_kept": kept_beside(out) is not None,
        }
        notes = beside(out.resolve(), "ray")  # of Ray Train; it would go on from old ones
        shutil.rmtree(notes, ignore_errors=True)
        refused = _refusal(out.resolve())
        refused.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = TorchTrainer(
                partial(_train_here, given),
                scaling_config=ScalingConfig(num_workers=ray.n_workers, use_gpu=use_gpu),
                torch_config=TorchConfig("cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
                run_config=RunConfig(
                    storage_path=str(notes.parent) if cluster.address else scratch,
                    name=notes.name,
                    failure_config=FailureConfig(max_failures=_RETRIES),
                ),
            )
            try:
                with _one_line(ray.ray), _quiet():
                    trainer.fit()
            finally:
                shutil.rmtree(notes, ignore_errors=True)
        if refused.exists():
            kind, _, message = refused.read_text(encoding="utf-8").partition(" ")
            refused.unlink()
            raise {"DataError": DataError}.get(kind, ConfigError)(message)


def _refusal(out: Path) -> Path:
    """Where the first process says what is wrong, so that nobody tries the same again."""
    return beside(out, "refused")


def _train_here(given: dict[str, Any]) -> None:
    """What each process of a training does; begun again, it continues."""
    torch.set_num_threads(max(1, n_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))
    plan, out, runtime, overwrite = (given[k] for k in ("plan", "out", "runtime", "overwrite"))
    if _refusal(out).exists():
        return
    if not parallel.is_first():
        train_along(plan, out, runtime)
        return
    begun = given["was_free"] and not is_free(out)
    begun = begun or (not given["was_kept"] and kept_beside(out) is not None)
    runtime = replace(runtime, resume=runtime.resume or begun)
    try:
        train_run(plan, out, runtime, overwrite=overwrite and not begun)
    except (DataError, ConfigError) as error:
        _refusal(out).write_text(f"{type(error).__name__} {error}", encoding="utf-8")
        raise


# Lists


def recommend(
    run: Path,
    histories: Path,
    out: Path,
    cluster: Cluster,
    *,
    columns: Mapping[str, Any],
    fallback: bool = False,
    approximate: bool = False,
    say: Callable[[str], None],
    **options: Any,
) -> int:
    """Lists for every user of a log, a Parquet file for each part of the users.

    Args:
        histories: a log, or a directory of Parquet files, each with the whole histories of its
            users, which is then the division into parts.
        out: directory to write; a part of users is ``part-00000.parquet``, or named as its file.
        columns, fallback, approximate, say, options: as for :func:`recommend_from`.

    Returns:
        The number of lines.

    Raises:
        ConfigError, DataError: as ``recommend_from`` does; or two files hold the same user.
    """
    maker = ListMaker(run)
    if approximate:
        maker.index(say)
    with _made(out) as (scratch, made):
        files = sorted(file for file in histories.glob("*.parquet") if file.name[0] not in "._")
        if not files:
            files, columns = _divided(histories, columns, scratch)
        with cluster.connected() as ray:
            arguments = (run.resolve(), made, dict(columns), options, approximate)
            parts = [{"file": str(file.resolve())} for file in files]
            found = ray.each(_Lists, arguments, parts)
        _require_whole_histories(made, histories)
        answered = sum((Answered(**part["answered"]) for part in found), Answered())
        if not answered.n_known and not fallback:
            raise DataError(
                f"none of the {answered.n_ids:,} item ids of {histories} is in the catalog: check "
                "the ids, or add --fallback to be answered by popularity"
            )
    for line in answered.lines(maker.model):
        say(line)
    return sum(int(part["n_lines"]) for part in found)


def _require_whole_histories(lists: Path, histories: Path) -> None:
    """Refuses lists of a user whose history is in two files, for each would be of a part of it."""
    of_files = pl.scan_parquet(lists / "*.parquet", include_file_paths="file")
    users = of_files.select("user_id", "file").unique().group_by("user_id").agg("file")
    split = users.filter(pl.col("file").list.len() > 1).head(1).collect(engine="streaming")
    for user, files in split.iter_rows():
        first, second = sorted(Path(file).name for file in files)[:2]
        raise DataError(
            f"user {user!r} of {histories} is in {first} and in {second}: put all of a user's "
            "interactions into one file"
        )


class _Lists:
    """Makes the lists of parts of a log's users."""

    def __init__(
        self,
        run: Path,
        out: Path,
        columns: Mapping[str, Any],
        options: Mapping[str, Any],
        approximate: bool,
    ) -> None:
        self.maker, self.out, self.columns = ListMaker(run), out, columns
        self.options = dict(options)
        if approximate:
            self.options["index"] = self.maker.index(lambda line: None)

    def __call__(self, part: Mapping[str, Any]) -> dict[str, Any]:
        file = Path(part["file"])
        frame, answered = self.maker.lists(*self.maker.read(file, self.columns), **self.options)
        write_lists(frame, self.out / file.name)
        return {"n_lines": frame.height, "answered": asdict(answered)}


def _divided(
    histories: Path, columns: Mapping[str, Any], folder: Path
) -> tuple[list[Path], dict[str, str]]:
    """A log as files of some thousand users each, in the order in which they come in it.

    Returns:
        The files, and what reading them has to be told of their columns.
    """
    from diffuserec.data import read_histories

    log = read_histories(histories, **columns)
    users = log["user_id"].unique(maintain_order=True)
    number = pl.DataFrame({"user_id": users, "part": np.arange(len(users)) // _AT_ONCE})
    log = log.join(number, on="user_id", maintain_order="left")
    files = []
    for key, frame in log.partition_by("part", as_dict=True, maintain_order=True).items():
        files.append(folder / f"part-{key[0]:05d}.parquet")
        frame.drop("part").write_parquet(files[-1])
    return files, {} if "timestamp" in log.columns else {"time": "none"}


@contextlib.contextmanager
def _made(out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder to work in, and one in it that becomes `out` when all of its parts are made.

    Raises:
        DataError: `out` exists or has no folder, or another process writes there.
    """
    if out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    parent = out.resolve().parent
    if not parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")
    with work_folder(out) as scratch:
        made = scratch / "made"
        made.mkdir()
        yield scratch, made
        sweep(made)
        made.rename(out)


# Evaluation


@dataclass(frozen=True)
class RayPasses:
    """Passes over the queries of a run, a part in each process; see :class:`Passes`.

    Attributes:
        run: its directory.
        data: where its data is now, if it was moved.
        part: ``test`` or ``valid``.
        cluster: where they run.
    """

    run: Path
    data: Path | None
    part: str
    cluster: Cluster

    def rank(self, model: Recommender, queries: Queries, **options: Any) -> Ranking:
        """As :func:`diffuserec.evaluation.rank`."""
        found = self._each("rank", queries, options)
        width = min(options["list_length"], queries.histories.catalog.n_items)
        target_rank = np.empty(len(queries))
        top_items = np.empty((len(queries), width), dtype=np.int64)
        for index, values in found:
            target_rank[index] = values["target_rank"]
            top_items[index] = np.reshape(values["top_items"], (len(index), width))
        return Ranking(
            queries.histories.users, target_rank, top_items, queries.histories.vocab_size
        )

    def uncertainty(self, model: Recommender, queries: Queries, **options: Any) -> pl.DataFrame:
        """As :func:`diffuserec.evaluation.uncertainty.uncertainty`."""
        parts = self._each("uncertainty", queries, options)
        order = np.argsort(np.concatenate([index for index, _ in parts]))
        return pl.concat([pl.DataFrame(values) for _, values in parts])[order]

    def _each(
        self, what: str, queries: Queries, options: Mapping[str, Any]
    ) -> list[tuple[np.ndarray, dict[str, Any]]]:
        with_augmenter = options.get("augmenter") is not None
        plain = {name: value for name, value in options.items() if name != "augmenter"}
        order = np.argsort(queries.histories.lengths, kind="stable")
        # whole batches, as one process has them
        indices = [order[first : first + _AT_ONCE] for first in range(0, len(order), _AT_ONCE)]
        arguments = (self.run.resolve(), self.data, self.part, what, with_augmenter, plain)
        with self.cluster.connected() as ray:
            found = ray.each(_Pass, arguments, [{"index": index.tolist()} for index in indices])
        return [(np.array(part.pop("index")), part) for part in found]


class _Pass:
    """Ranks parts of a run's queries, or measures the certainty of them."""

    def __init__(
        self,
        run: Path,
        data: Path | None,
        part: str,
        what: str,
        with_augmenter: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.run = open_run(run, data)
        self.queries = self.run.queries(part)
        self.what, self.options = what, dict(options)
        self.options["augmenter"] = self.run.augmenter if with_augmenter else None

    def __call__(self, part: Mapping[str, Any]) -> dict[str, Any]:
        some = self.queries.select(np.array(part["index"]))
        if self.what == "rank":
            ranking = rank(self.run.model, some, **self.options)
            found = {
                "target_rank": ranking.target_rank.tolist(),
                "top_items": ranking.top_items.reshape(-1).tolist(),
            }
        else:
            found = uncertainty(self.run.model, some, **self.options).to_dict(as_series=False)
        return {"index": part["index"], **found}


# Augmented logs


def augment(
    data: Path,
    method: str,
    out: Path,
    settings: Mapping[str, Any],
    runtime: Runtime,
    max_history: int | None,
    cluster: Cluster,
) -> tuple[int, int]:
    """The log with synthetic items, a Parquet file for each part of the users.

    The augmenter is fitted here, and generates in all processes.

    Args:
        out: directory to write: ``part-00000.parquet`` and so on.
        data, method, settings, runtime, max_history: as for :func:`augment_log`.

    Returns:
        The numbers of synthetic and of real items.

    Raises:
        ConfigError, DataError: as ``augment_log`` does, or the augmenter makes whole new users.
    """
    n_users = len(load_dataset(data))
    with _made(out) as (scratch, made):
        fitted = scratch / "augmenter"
        fitted_to_log(data, method, settings, runtime, max_history).save(fitted)
        with cluster.connected() as ray:
            arguments = (data.resolve(), fitted, made, runtime.seed)
            starts = range(0, n_users, _AT_ONCE)
            parts = [
                {"number": number, "first": first, "end": min(first + _AT_ONCE, n_users)}
                for number, first in enumerate(starts)
            ]
            found = ray.each(_Augmented, arguments, parts)
    return sum(part["n_synthetic"] for part in found), sum(part["n_real"] for part in found)


class _Augmented:
    """Augments parts of a log's users."""

    def __init__(self, data: Path, fitted: Path, out: Path, seed: int) -> None:
        self.dataset, self.augmenter = load_dataset(data), load_augmenter(fitted)
        self.out, self.seed = out, seed

    def __call__(self, part: Mapping[str, Any]) -> dict[str, Any]:
        some = self.dataset.select(np.arange(part["first"], part["end"]))
        made = augmented_part(self.augmenter, some, self.seed)
        if len(made) > len(some) and not isinstance(self.augmenter, ParallelAugmenter):
            raise ConfigError(
                f"{self.augmenter.name} makes whole new users, which it can't part by part: leave "
                "out --engine"
            )
        with replacing(self.out / f"part-{part['number']:05d}.parquet") as work:
            from_dataset(made).write(work, "parquet")
        n_synthetic = int(made.synthetic.sum())
        return {"n_synthetic": n_synthetic, "n_real": len(made.items) - n_synthetic}


# Studies


def fill_study(
    fill: Callable[..., Outcome], out: Path, data: Path, runtime: Runtime, cluster: Cluster
) -> Outcome:
    """:func:`run_study` with tasks of Ray; `out` and `data` are where all machines see them.

    Args:
        fill: ``run_study`` of a study, without the other arguments.
    """
    with cluster.connected() as ray:
        pool = partial(RayWorkers, ray)
        return fill(out.resolve(), data.resolve(), runtime, workers=ray.n_workers, pool=pool)


class RayWorkers(Workers):
    """Tasks of Ray in place of processes of this machine, for :func:`run_study`.

    They tell of their end alone. A task whose process is lost is begun again, and goes on from the
    last epoch of its training.
    """

    def __init__(self, ray: Connected, n: int, runtime: Runtime) -> None:
        super().__init__(n, runtime)
        self._ray = ray.ray
        self._call = ray.ray.remote(num_cpus=1, max_retries=_RETRIES)(_task)
        self._keys: dict[Any, str] = {}

    def __exit__(self, *_: object) -> None:
        for task in self._keys:
            self._ray.cancel(task, force=True)

    @property
    def n_busy(self) -> int:
        return len(self._keys)

    def submit(self, key: str, work: Work) -> None:
        self._keys[self._call.remote(key, work, self._runtime)] = key

    def events(self) -> Iterator[Event]:
        done, _ = self._ray.wait(list(self._keys), num_returns=1)
        for task in done:
            key = self._keys.pop(task)
            try:
                yield self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                yield Event(key, "failed", str(error).strip().splitlines()[0])


def _task(key: str, work: Work, runtime: Runtime) -> Event:
    torch.set_num_threads(1)
    return result_of(key, work, runtime)
