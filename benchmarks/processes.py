"""Training by several processes: whether they train what one does, and what each has to do.

    python benchmarks/processes.py --json docs/lab/results/processes.json

SASRec is trained on a log of the built-in store by one process and by several that torchrun starts,
one thread each. Seconds are those of an epoch after the first; where fewer cores are idle than
there are processes, those of the processor say what each does. Losses, the validation metric and
all parameters are compared with those of one process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import diffuserec as dr
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.training import parallel
from report import save


def train(folder: Path, users: int, items: int, dim: int, batch: int, epochs: int) -> None:
    """What each process does; it writes its figures, and the first one its parameters."""
    torch.set_num_threads(1)
    share = parallel.share()
    rank = 0 if share is None else share.rank
    split = dr.leave_one_out(dr.Store(n_users=users, n_items=items, seed=0).dataset())
    ends: list[float] = []
    runtime = dr.Runtime(
        device="cpu", progress=False, on_epoch=lambda epoch: ends.append(time.process_time())
    )
    model = SASRec(dim=dim, batch_size=batch, epochs=epochs).fit(split.train, split.valid, runtime)
    figures = {
        "seconds": float(np.median([epoch.seconds for epoch in model.curve[1:]])),
        "processor": float(np.median(np.diff(ends))),
        "loss": model.curve[-1].loss,
        "metric": model.curve[-1].valid,
    }
    (folder / f"{rank}.json").write_text(json.dumps(figures), encoding="utf-8")
    if rank == 0:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model")


def run(world: int, words: list[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Figures of a training by so many processes, and its parameters."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(world), __file__, "--part", folder, *words]
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | THREADS)
        each = [
            json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8"))
            for rank in range(world)
        ]
        found = each[0] | {"world": world, "processor": [one["processor"] for one in each]}
        return found, load_file(Path(folder) / "model")


THREADS = {"OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 256], help="users a batch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        shape = (given.users, given.items, given.dim, given.batch[0], given.epochs)
        train(Path(given.part), *shape)
        return
    shape = {name: getattr(given, name) for name in ("users", "items", "dim", "epochs")}
    words = [word for name, value in shape.items() for word in (f"--{name}", str(value))]
    result: dict[str, Any] = {**shape, "cores": os.cpu_count(), "runs": []}
    for batch in given.batch:
        first: dict[str, torch.Tensor] = {}
        for world in given.worlds:
            found, state = run(world, [*words, "--batch", str(batch)])
            first = first or state
            apart = {name: float((first[name] - state[name]).abs().max()) for name in state}
            found |= {"batch": batch, "differences": apart}
            result["runs"].append(found)
            print(json.dumps(found), flush=True)
    save(result, given.json)


if __name__ == "__main__":
    main()
