"""Batch jobs that survive a kill: a directory of files, each of which appears whole or not at all.

    JOBS/
      ID/
        input.jsonl        the histories as they were sent, a line each
        job.json           who sent it, when, which model and options, how many histories
        lists-SHA/         lists by the model of that checksum
          00000000.jsonl   of the first histories, a line each; 00000001.jsonl of the next …
        done.json          how it ended

A job is accepted when its directory has its name, and by then all of it is on the disk. After a
restart, work goes on with the first file that is not there. If another model stands at its path by
then, the job begins anew: all lists of a job are by one model.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from diffuserec.errors import ConfigError, DataError
from diffuserec.files import (
    flush,
    locked,
    new_directory,
    read_document,
    sweep,
    write_json,
    write_lines,
)
from diffuserec.serving.answers import Asked
from diffuserec.serving.batching import ModelQueue
from diffuserec.serving.guard import RefusedError
from diffuserec.serving.observation import LOGGER, Metrics, tell
from diffuserec.serving.served import Models, ServedModel
from diffuserec.serving.settings import Limits
from diffuserec.serving.wire import LONGEST_ID, JobLine, Options, problem_of

_AT_ONCE = 256
"""Histories whose lists stand in one file."""

_KEPT_SECONDS = 7 * 86_400.0
"""Seconds for which a job that has ended is kept."""

_ID = re.compile("[0-9a-f]{32}")

_LINES_BYTES = 8
"""Times as many bytes as a job may have that its lines may have, if it is sent as Parquet."""

_PARQUET = """
import sys
import polars as pl
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
except (ImportError, ValueError, OSError):
    pass
frame = pl.scan_parquet(sys.argv[1], glob=False)
names = [name for name in ("history", "user", "times") if name in frame.collect_schema()]
assert "history" in names and not set(frame.collect_schema()) - set(names)
frame.select(names).collect().write_ndjson(sys.argv[2])
"""

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Job:
    """A job that was accepted.

    Attributes:
        path: its directory, whose name is its id.
        caller: whose it is.
        model: name of the model.
        options: of its lists.
        n: number of histories.
        created: seconds since 1970.
    """

    path: Path
    caller: str
    model: str
    options: Options
    n: int
    created: float

    @property
    def end(self) -> dict[str, Any] | None:
        """How it ended, or None."""
        file = self.path / "done.json"
        return read_document(file) if file.exists() else None

    def lists(self, sha256: str) -> Path:
        """Directory of its lists by one model."""
        return self.path / f"lists-{sha256[:16]}"

    @property
    def n_files(self) -> int:
        """Number of files of its lists."""
        return -(-self.n // _AT_ONCE)


class Jobs:
    """The jobs of a directory, of which one is worked at at a time.

    Args:
        folder: where they are; made if need be.
        limits: of jobs and histories.
        models: to answer.
        queue: to the models.
        metrics: to count in.

    Raises:
        DataError: another process works in the directory, or it cannot be used.
    """

    def __init__(
        self, folder: Path, limits: Limits, models: Models, queue: ModelQueue, metrics: Metrics
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._models = models
        self._queue = queue
        self._metrics = metrics
        self._news = asyncio.Event()
        self._running: str | None = None
        self._n_coming = 0
        self._held = ExitStack()
        self._held.enter_context(locked(folder))
        folder.mkdir(exist_ok=True)
        sweep(folder)
        self._jobs = {path.name: _read(path) for path in folder.iterdir() if _is_job(path)}
        self._count()

    def close(self) -> None:
        """Gives the directory back."""
        self._held.close()

    async def accept(
        self,
        body: AsyncIterator[bytes],
        is_parquet: bool,
        caller: str,
        options: Options,
        model: str,
    ) -> Job:
        """Writes a job to the disk; when this returns, no kill loses it.

        Args:
            body: JSON lines, ``{"history": [...]}`` each; ``"user"`` may say whose it is, and
                ``"times"`` when its items were chosen. Or a Parquet file with these columns.
            is_parquet: whether it is a Parquet file.

        Raises:
            RefusedError: a line is wrong, there are none, too many jobs are kept, or the disk takes
                no more.
        """
        self._forget_old()
        if len(self._jobs) + self._n_coming >= self._limits.max_jobs:
            raise RefusedError(
                503,
                "too many jobs are kept or being sent: fetch and delete some, or try again",
                "jobs",
                retry_after=60,
            )
        facts = {"caller": caller, "model": model, "options": options.model_dump(mode="json")}
        path = self._folder / secrets.token_hex(16)
        self._n_coming += 1  # what is being sent is on the disk already, as are those that are kept
        try:
            n, created = await self._write_job(path, body, is_parquet, facts)
        except OSError as error:
            tell("job not kept", logging.ERROR, error=str(error))
            raise RefusedError(
                503, "the job cannot be kept now: the log says why", "disk", retry_after=60
            ) from error
        finally:
            self._n_coming -= 1
        job = Job(path, caller, model, options, n, created)
        self._jobs[path.name] = job
        self._count()
        self._news.set()
        return job

    async def _write_job(
        self, path: Path, body: AsyncIterator[bytes], is_parquet: bool, facts: dict[str, Any]
    ) -> tuple[int, float]:
        """Number of histories of a job that now stands on the disk, and when it was."""
        with new_directory(path) as work:
            if is_parquet:
                body = self._lines_of_parquet(work, body)
            n = await self._write_input(work / "input.jsonl", body)
            created = time.time()
            text = json.dumps({**facts, "n": n, "created": created})
            (work / "job.json").write_text(text, encoding="utf-8")
            await asyncio.to_thread(flush, work / "input.jsonl")
            await asyncio.to_thread(flush, work / "job.json")
        return n, created

    async def _write_input(self, file: Path, body: AsyncIterator[bytes]) -> int:
        n, rest = 0, b""
        longest = self._limits.max_history * (LONGEST_ID + 32) + 1024
        with file.open("wb") as out:
            async for part in body:
                lines = (rest + part).split(b"\n")
                rest = lines.pop()
                if len(rest) > longest:
                    raise RefusedError(422, f"line {n + 1} is too long", "job")
                for line in lines:
                    n += self._write_line(out, line, n + 1)
            n += self._write_line(out, rest, n + 1)
        if not n:
            raise RefusedError(422, 'a job is JSON lines such as {"history": ["a", "b"]}', "job")
        return n

    async def _lines_of_parquet(
        self, folder: Path, body: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """JSON lines of a Parquet file, which a process of its own opens.

        A forged file can end the process that reads it, or ask for any amount of memory.
        """
        sent, lines = folder / "sent.parquet", folder / "sent.jsonl"
        with sent.open("wb") as file:
            async for part in body:
                file.write(part)
        most = str(_LINES_BYTES * self._limits.max_job_body)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-X", "utf8", "-c", _PARQUET, str(sent), str(lines), most),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "POLARS_MAX_THREADS": "1"},
        )
        try:
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        if status:
            raise RefusedError(
                422,
                "a Parquet file of a job has a column history, of lists, and may have user and "
                "times",
            )
        with lines.open("rb") as found:
            while part := found.read(2**16):
                yield part
        sent.unlink()
        lines.unlink()

    def _write_line(self, out: Any, line: bytes, number: int) -> int:
        if not line.strip():
            return 0
        try:
            found = JobLine.model_validate_json(line)
        except ValidationError as error:
            raise RefusedError(
                422, f"line {number}: {problem_of(error.errors())}", "job"
            ) from error
        if len(found.history) > self._limits.max_history:
            raise RefusedError(
                422, f"line {number}: a history has at most {self._limits.max_history} items", "job"
            )
        out.write(found.model_dump_json().encode() + b"\n")
        return 1

    def find(self, job_id: str, caller: str) -> Job:
        """A job of a caller.

        Raises:
            RefusedError: the caller has none of that id.
        """
        job = self._jobs.get(job_id)
        if job is None or job.caller != caller:
            raise RefusedError(404, "there is no such job")
        return job

    def status(self, job: Job) -> dict[str, Any]:
        """State, progress and, when it has ended, by which model or why."""
        end = job.end
        state: State = "running" if self._running == job.path.name else "waiting"
        done, error = 0, None
        if job.model not in self._models:
            error = f"the service has no model {job.model} now: the job waits until it has"
        if end is not None:
            state, error = end["state"], end.get("error")
            done = job.n if state == "done" else 0
        elif state == "running":
            done = self._n_done
        return {
            "id": job.path.name,
            "state": state,
            "model": job.model,
            "n": job.n,
            "n_done": done,
            "created": job.created,
            "sha256": None if end is None else end.get("sha256"),
            "error": error,
        }

    def result(self, job: Job) -> Iterator[bytes]:
        """The lists of a job that is done, as JSON lines in the order of the histories.

        Raises:
            RefusedError: it is not done.
        """
        end = job.end
        if end is None or end["state"] != "done":
            raise RefusedError(409, "this job has no result: ask for its state")
        folder = job.lists(end["sha256"])
        return (_part(folder, number).read_bytes() for number in range(job.n_files))

    def delete(self, job: Job) -> None:
        """Removes a job, whatever its state."""
        self._jobs.pop(job.path.name, None)
        shutil.rmtree(job.path, ignore_errors=True)
        self._count()

    async def run(self) -> None:
        """Works at jobs, the oldest first, until it is cancelled."""
        while True:
            self._forget_old()
            jobs = self._jobs.values()
            waiting = [job for job in jobs if job.end is None and job.model in self._models]
            if not waiting:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(3600):
                        await self._news.wait()
                continue
            job = min(waiting, key=lambda job: job.created)
            self._running, self._n_done = job.path.name, 0
            self._count()
            try:
                await self._work(job)
            except (DataError, ConfigError, OSError) as error:
                self._end(job, {"state": "failed", "error": str(error)})
            except Exception:  # a defect ends this job, not those after it
                LOGGER.exception("defect", extra={"facts": {"job": job.path.name}})
                self._end(job, {"state": "failed", "error": "something went wrong in the service"})
            finally:
                self._running = None
                self._count()

    async def _work(self, job: Job) -> None:
        served = self._models[job.model]
        folder = job.lists(served.sha256)
        folder.mkdir(exist_ok=True)
        sweep(folder)
        for number, lines in enumerate(_parts(job)):
            if job.path.name not in self._jobs:  # deleted meanwhile
                shutil.rmtree(job.path, ignore_errors=True)
                return
            file = _part(folder, number)
            if not file.exists():
                await asyncio.to_thread(write_lines, file, await self._answers(served, job, lines))
            self._n_done += len(lines)
        self._end(job, {"state": "done", "sha256": served.sha256})

    async def _answers(
        self, served: ServedModel, job: Job, lines: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        asked = [Asked(line["history"], line.get("times")) for line in lines]
        lists = await self._queue.lists(served, job.options, asked, patient=True)
        return [{"user": line["user"], **found} for line, found in zip(lines, lists, strict=True)]

    def _end(self, job: Job, how: dict[str, Any]) -> None:
        if job.path.name not in self._jobs:
            return
        with contextlib.suppress(DataError):  # it is worked at again after a restart
            write_json(job.path / "done.json", {**how, "ended": time.time()})
        tell("job", logging.INFO, job=job.path.name, caller=job.caller, n=job.n, state=how["state"])

    def _forget_old(self) -> None:
        oldest = time.time() - _KEPT_SECONDS
        for job in list(self._jobs.values()):
            end = job.end
            if end is not None and end["ended"] < oldest:
                self.delete(job)

    def _count(self) -> None:
        states = [self.status(job)["state"] for job in self._jobs.values()]
        for state in ("waiting", "running", "done", "failed"):
            self._metrics.jobs.labels(state).set(states.count(state))


def _is_job(path: Path) -> bool:
    return bool(_ID.fullmatch(path.name)) and (path / "job.json").is_file()


def _read(path: Path) -> Job:
    """A job as it stands on the disk.

    Raises:
        DataError: it was changed by hand.
    """
    try:
        facts = read_document(path / "job.json")
        options = Options.model_validate(facts["options"])
        return Job(path, facts["caller"], facts["model"], options, facts["n"], facts["created"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no job of a service ({error}): remove it") from error


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.jsonl"


def _parts(job: Job) -> Iterator[list[dict[str, Any]]]:
    """The lines of a job, as many at a time as stand in one file of lists."""
    lines: list[dict[str, Any]] = []
    with (job.path / "input.jsonl").open("rb") as file:
        for line in file:
            lines.append(json.loads(line))
            if len(lines) == _AT_ONCE:
                yield lines
                lines = []
    if lines:
        yield lines
