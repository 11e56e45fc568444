"""A process that runs commands in forks of itself and kills them: torch is imported once.

Each line of standard input is a job, ``{"words": [...], "kill": seconds or null, "number": of the
signal}``; each line of standard output is its status and the seconds that it took. No thread is
started before a fork.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401
import torch

from diffuserec import cli, load

for module in (
    "recommenders.sasrec",
    "recommenders.diffrec",
    "recommenders.simdiffrec",
    "recommenders.markov",
    "recommenders.popularity",
    "augmenters.diff4rec",
    "augmenters.random",
    "studies.runner",
    "studies.tables",
    "serving.augmented_log",
    "serving.lists",
):
    importlib.import_module(f"diffuserec.{module}")


def work(words: list[str]) -> None:
    """The command line; or ``save A B``: the model A is saved at B, where another one is."""
    torch.set_num_threads(1)
    if words[0] == "save":
        load(words[1]).save(words[2])
        return
    sys.argv = ["diffuserec", *words]
    cli.main()


def run(words: list[str], kill: float | None, number: int) -> tuple[int, float]:
    """Exit status (-9: killed) and seconds of a job."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Path(os.environ["KILL_SERVER_LOG"]).open("a", encoding="utf-8") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            work(words)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    while True:
        ended, code = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - start
        if ended:
            return os.waitstatus_to_exitcode(code), seconds
        if kill is not None and seconds >= kill:
            os.kill(child, number)
            kill = None
        time.sleep(0.0005)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
