"""One SASRec softmax epoch and one full-ranking evaluation, compared with arithmetic and RecBole.

    python benchmarks/sasrec_epoch.py beauty.txt --json docs/lab/results/sasrec_epoch.json

The arithmetic is the floating-point work that an epoch cannot avoid, 6·P·D·V for the loss and
72·D² for each position and layer of the encoder, divided by the throughput of a 2048² product
measured in the same process. RecBole runs last, in an environment of its own (peer_recbole.py).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import diffuserec as dr
from diffuserec.data import SequenceDataset, training_batches
from diffuserec.recommenders.sasrec import SASRec


def matmul_flops(repeats: int = 10) -> float:
    """Floating-point operations a second of a 2048² product in fp32."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return 2 * 2048**3 * repeats / (time.perf_counter() - start)


def epoch_flops(train: SequenceDataset, dim: int, n_layers: int, max_len: int) -> float:
    """Floating-point operations of one epoch: loss and encoder, forward and backward."""
    positions = sum(
        int((batch.targets > 0).sum()) for batch in training_batches(train, 4096, max_len, 0, 0)
    )
    return positions * (6.0 * dim * train.vocab_size + 72.0 * dim**2 * n_layers)


def epoch_seconds(split: dr.Split, precision: str, epochs: int, seed: int) -> list[float]:
    """Seconds of each of some epochs, without validation."""
    model = SASRec(epochs=epochs)
    runtime = dr.Runtime(device="cpu", precision=precision, seed=seed, progress=False)
    model.fit(split.train, runtime=runtime)
    return [epoch.seconds for epoch in model.curve]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="timed a precision, after one more")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--venv", default=".venv-recbole", help="the peer's environment")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    split = dr.leave_one_out(dr.read_log(given.log).to_dataset())
    flops = epoch_flops(split.train, dim=64, n_layers=2, max_len=50)
    result: dict[str, object] = {"log": given.log.name, "threads": given.threads, "flops": flops}
    peak = matmul_flops()
    result["matmul_gflops"] = peak / 1e9
    result["arithmetic_s"] = flops / peak
    for precision in ("fp32", "bf16"):
        timed = epoch_seconds(split, precision, given.epochs + 1, seed=0)[1:]
        result[f"epoch_{precision}_s"] = statistics.median(timed)
        result[f"epoch_{precision}_all_s"] = timed
    model = SASRec(epochs=1)
    model.take(split.train.catalog)
    dr.evaluate(model, split.test)
    start = time.perf_counter()
    dr.evaluate(model, split.test)
    result["evaluate_s"] = time.perf_counter() - start
    result["matmul_gflops_after"] = matmul_flops() / 1e9
    if not given.no_peer:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "peer.json"
            command = [sys.executable, str(Path(__file__).with_name("peer_recbole.py"))]
            command += [str(given.log), "--threads", str(given.threads), "--venv", given.venv]
            subprocess.run([*command, "--json", str(out)], check=True, stdout=subprocess.DEVNULL)
            result["recbole"] = json.loads(out.read_text(encoding="utf-8"))
    text = json.dumps(result, indent=2)
    print(text)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
