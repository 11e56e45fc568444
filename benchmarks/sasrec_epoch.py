"""One SASRec softmax epoch and one full-ranking evaluation, beside arithmetic and other libraries.

    python benchmarks/sasrec_epoch.py beauty.txt --json docs/lab/results/sasrec_epoch.json

The arithmetic is the floating-point work that an epoch cannot avoid, 6·P·D·V for the loss and
72·D² for each position and layer of the encoder, divided by the throughput of a 2048² product
measured in the same process; arithmetic.py has it for other forms and precisions. Seconds are those
of the clock and, for all threads together, of the processor; --threads 1 makes the latter ones
comparable where other programs run. The peers run last, one after another, each in an environment
of its own (peer_recbole.py, peer_rectools.py, peer_warprec.py). One that cannot be installed here
is named with the reason and left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffuserec as dr
from arithmetic import epoch_flops, throughput
from diffuserec.recommenders.sasrec import SASRec
from report import show

PEERS = ("recbole", "rectools", "warprec")
NO_ENVIRONMENT = 3
"""Exit status of a peer's script that could not install it."""


def epoch_seconds(
    split: dr.Split, precision: str, epochs: int, seed: int
) -> tuple[list[float], list[float]]:
    """Seconds of each of some epochs without validation, by the clock and of the processor."""
    ends = [time.process_time()]
    runtime = dr.Runtime(
        device="cpu",
        precision=precision,
        seed=seed,
        progress=False,
        on_epoch=lambda epoch: ends.append(time.process_time()),
    )
    model = SASRec(epochs=epochs, batch_size=64).fit(split.train, runtime=runtime)
    return [epoch.seconds for epoch in model.curve], np.diff(ends).tolist()


def peer_of(name: str, log: Path, threads: int) -> dict[str, Any] | str:
    """What a peer's script measures, or why it could not be installed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peer.json"
        command = [sys.executable, str(Path(__file__).with_name(f"peer_{name}.py")), str(log)]
        command += ["--threads", str(threads), "--json", str(out)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        if done.returncode == NO_ENVIRONMENT:
            return done.stderr.strip().splitlines()[-1]
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            done.check_returncode()
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="timed a precision, after one more")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--no-peer", action="store_true", help="leave all of them out")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    split = dr.leave_one_out(dr.read_log(given.log).to_dataset())
    flops = epoch_flops(split.train, dim=64, n_layers=2, max_len=50)
    result: dict[str, Any] = {"log": given.log.name, "threads": given.threads, "flops": flops}
    peak = throughput("fp32")
    result["matmul_gflops"] = peak / 1e9
    result["arithmetic_s"] = flops / peak
    for precision in ("fp32", "bf16"):
        timed = epoch_seconds(split, precision, given.epochs + 1, seed=0)
        clock, processor = (values[1:] for values in timed)
        result[f"epoch_{precision}_s"] = statistics.median(clock)
        result[f"epoch_{precision}_cpu_s"] = statistics.median(processor)
        result[f"epoch_{precision}_all_s"] = clock
    model = SASRec(epochs=1)
    model.take(split.train.catalog)
    dr.evaluate(model, split.test)
    clock, processor = time.perf_counter(), time.process_time()
    dr.evaluate(model, split.test)
    result["evaluate_s"] = time.perf_counter() - clock
    result["evaluate_cpu_s"] = time.process_time() - processor
    result["matmul_gflops_after"] = throughput("fp32") / 1e9
    peers: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in () if given.no_peer else given.peers:
        found = peer_of(name, given.log, given.threads)
        if isinstance(found, str):
            print(f"{name} is left out: {found}", file=sys.stderr)
            left_out[name] = found
        else:
            peers[name] = found
    result |= {"peers": peers, "left_out": left_out}
    show(result, given.json)


if __name__ == "__main__":
    main()
