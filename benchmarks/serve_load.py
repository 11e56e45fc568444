"""Load on the service: requests a second, latency, errors and memory, then overload and recovery.

    python benchmarks/serve_load.py --seconds 600 --json load.json

A SASRec with 100,000 items (its weights say nothing, which costs as much) is saved and served by
``diffuserec serve`` in a process of its own. This process sends requests at a fixed rate, each at
the moment that was planned for it, whatever became of those before; latency counts from that
moment. A line of the table covers a tenth of the time. Then four times as many as may wait are
sent at once, and after them one that must be answered. At last batch jobs are sent beside half of
that rate, the process is killed in the middle of them (SIGKILL) and started again; every job that
was accepted must end with all of its lists.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import diffuserec as dr
from diffuserec.data import Catalog
from diffuserec.files import write_json

_JOB = 1000
"""Histories of a job."""

_IDLE = 3.0
"""Seconds after which a connection is not used again; the service closes it after five."""


def make_model(path: Path, n_items: int, dim: int) -> None:
    """Saves a SASRec of this many items with names."""
    ids = pl.Series("item_id", [f"B{number:07}" for number in range(n_items)])
    names = pl.DataFrame(
        {"name": [f"Item number {number} of the shop" for number in range(n_items)]}
    )
    model = dr.SASRec(dim=dim)
    model.take(Catalog(ids, n_users=1, attributes=names))
    model.popularity += 1
    model.save(path)


@contextlib.contextmanager
def serving(path: Path, threads: int, *options: str) -> Iterator[tuple[int, int]]:
    """A service as a process: its port and number."""
    command = [sys.executable, "-m", "diffuserec.cli", "serve", str(path), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            while True:
                log.seek(0)
                events = [json.loads(line) for line in log.readlines() if line.endswith("\n")]
                found = [event for event in events if event["event"] == "listening"]
                if found:
                    break
                if process.poll() is not None:
                    raise SystemExit("the service did not start")
                time.sleep(0.1)
            yield int(found[0]["url"].rpartition(":")[2]), process.pid
        finally:
            process.terminate()
            process.wait(60)


def memory(pid: int) -> float:
    """Resident memory of a process, MiB; NaN where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return float("nan")
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far; NaN where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Lines:
    """Connections that are kept open; each serves one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> int:
        """Status of one request for a list."""
        return (await self.ask("POST", "/v1/recommend", body))[0]

    async def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, bytes]:
        """Status and body of an answer that tells its length."""
        since, reader, writer = self._free.pop() if self._free else (0.0, None, None)
        if reader is None or writer is None or time.monotonic() - since > _IDLE:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        self._free.append((time.monotonic(), reader, writer))
        return int(head.split(b" ", 2)[1]), answer


def request(dice: random.Random, n_items: int) -> bytes:
    """A history of 5 to 50 items, for a list of ten."""
    history = [f"B{dice.randrange(n_items):07}" for _ in range(dice.randint(5, 50))]
    return json.dumps({"history": history}).encode()


async def steady(port: int, pid: int, rate: float, seconds: float, n_items: int) -> list[Any]:
    """Requests at a rate; a record for each tenth of the time."""
    lines, dice = Lines(port), random.Random(0)
    n = int(rate * seconds)
    took, statuses = np.zeros(n), np.zeros(n, dtype=int)
    begun, worked = time.perf_counter(), processor_seconds(pid)
    resident = {}

    async def one(number: int, planned: float) -> None:
        try:
            statuses[number] = await lines.post(request(dice, n_items))
        except (OSError, EOFError):
            statuses[number] = 0
        took[number] = time.perf_counter() - planned

    tasks = []
    for number in range(n):
        planned = begun + number / rate
        await asyncio.sleep(max(0.0, planned - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, planned)))
        resident[10 * number // n] = (
            memory(pid) if number % 50 == 0 else resident.get(10 * number // n, float("nan"))
        )
    await asyncio.gather(*tasks)
    whole = time.perf_counter() - begun
    records = []
    for part, index in enumerate(np.array_split(np.arange(n), 10)):
        ms = 1000 * took[index]
        records.append(
            {
                "requests": len(index),
                "errors": int((statuses[index] != 200).sum()),
                "p50_ms": float(np.percentile(ms, 50)),
                "p99_ms": float(np.percentile(ms, 99)),
                "max_ms": float(ms.max()),
                "memory_mib": resident[part],
            }
        )
    whole_ms = 1000 * took
    records.append(
        {
            "requests": n,
            "errors": int((statuses != 200).sum()),
            "p50_ms": float(np.percentile(whole_ms, 50)),
            "p99_ms": float(np.percentile(whole_ms, 99)),
            "max_ms": float(whole_ms.max()),
            "memory_mib": memory(pid),
            "a_second": n / whole,
            "processor_ms": 1000 * (processor_seconds(pid) - worked) / n,
        }
    )
    return records


async def overload(port: int, n_items: int, n: int) -> dict[str, Any]:
    """Statuses of many requests at once, and of one after them."""
    lines, dice = Lines(port), random.Random(1)
    found = await asyncio.gather(*(lines.post(request(dice, n_items)) for _ in range(n)))
    await asyncio.sleep(1)
    return {"statuses": dict(Counter(found)), "after": await lines.post(request(dice, n_items))}


class Crash:
    """Batch jobs beside requests, and a kill in the middle.

    Args:
        n_items: of the model.
        rate: requests a second beside the jobs.
    """

    def __init__(self, n_items: int, rate: float) -> None:
        self._dice = random.Random(2)
        self._n_items, self._rate = n_items, rate
        self.accepted: list[str] = []
        self.statuses: Counter[int] = Counter()

    async def before(self, port: int, pid: int, n_jobs: int) -> None:
        """Sends jobs until so many are accepted, kills the process while others are on the way."""
        lines, beside = Lines(port), asyncio.create_task(self._requests(port))
        killed = False

        async def jobs() -> None:
            while not killed:
                try:
                    status, answer = await lines.ask(
                        "POST", "/v1/jobs", self._job(), "application/x-ndjson"
                    )
                except (OSError, EOFError):
                    return
                if status == 202:
                    self.accepted.append(json.loads(answer)["id"])

        sending = [asyncio.create_task(jobs()) for _ in range(3)]
        while len(self.accepted) < n_jobs:
            await asyncio.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        killed = True
        await asyncio.gather(*sending)
        beside.cancel()

    async def after(self, port: int) -> int:
        """Waits for all accepted jobs beside requests; how many have all of their lists."""
        lines, beside = Lines(port), asyncio.create_task(self._requests(port))
        whole = 0
        for job in self.accepted:
            state = {"state": "waiting"}
            while state["state"] in ("waiting", "running"):
                await asyncio.sleep(0.2)
                status, answer = await lines.ask("GET", f"/v1/jobs/{job}")
                state = json.loads(answer) if status == 200 else {"state": "lost"}
            whole += state["state"] == "done" and state["n_done"] == _JOB
        beside.cancel()
        return whole

    async def _requests(self, port: int) -> None:
        lines = Lines(port)

        async def one() -> None:
            try:
                self.statuses[await lines.post(request(self._dice, self._n_items))] += 1
            except (OSError, EOFError):
                self.statuses[0] += 1

        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(one())
                await asyncio.sleep(1 / self._rate)

    def _job(self) -> bytes:
        return b"".join(request(self._dice, self._n_items) + b"\n" for _ in range(_JOB))


def crash(path: Path, jobs: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Jobs that were accepted before a kill and done after it, and the requests beside."""
    found = Crash(given.items, given.rate / 2)
    with serving(path, given.threads, "--jobs", str(jobs)) as (port, pid):
        asyncio.run(found.before(port, pid, given.jobs))
    beside, found.statuses = found.statuses, Counter()
    with serving(path, given.threads, "--jobs", str(jobs)) as (port, _):
        n_done = asyncio.run(found.after(port))
    return {
        "accepted": len(found.accepted),
        "done": n_done,
        "histories": _JOB,
        "requests_before": dict(beside),
        "requests_after": dict(found.statuses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=220.0, help="requests a second")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of the model's matrix products")
    parser.add_argument("--overload", type=int, default=2048, help="requests at once")
    parser.add_argument("--jobs", type=int, default=10, help="accepted before the kill; 0: no kill")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder, "model"), given.items, given.dim)
        with serving(Path(folder, "model"), given.threads) as (port, pid):
            asyncio.run(steady(port, pid, given.rate, 3, given.items))  # warm
            load = list(os.getloadavg())
            records = asyncio.run(steady(port, pid, given.rate, given.seconds, given.items))
            flood = asyncio.run(overload(port, given.items, given.overload))
        kill = crash(Path(folder, "model"), Path(folder, "jobs"), given) if given.jobs else None
    print(f"{'requests':>10} {'errors':>7} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'MiB':>8}")
    for record in records:
        print(
            f"{record['requests']:>10,} {record['errors']:>7,} {record['p50_ms']:>8.1f} "
            f"{record['p99_ms']:>8.1f} {record['max_ms']:>8.1f} {record['memory_mib']:>8.0f}"
        )
    whole = records[-1]
    print(
        f"{whole['a_second']:.1f} requests a second, {whole['processor_ms']:.2f} ms of processor "
        "time each"
    )
    print(f"{given.overload:,} at once: {flood['statuses']}; one after them: {flood['after']}")
    if kill is not None:
        print(
            f"killed with {kill['accepted']} jobs of {_JOB:,} histories accepted: {kill['done']} "
            f"are done after a restart; requests beside: {kill['requests_before']} before, "
            f"{kill['requests_after']} after"
        )
    if given.json is not None:
        settings = {key: str(value) for key, value in vars(given).items() if key != "json"}
        write_json(
            given.json,
            {
                "settings": settings,
                "nice": os.nice(0),
                "load_before": load,
                "steady": records,
                "overload": flood,
                "kill": kill,
            },
        )


if __name__ == "__main__":
    main()
