"""What a training on a GPU takes: seconds of an epoch, memory, utilization, and waits of a step.

    python benchmarks/gpu.py --json docs/lab/results/gpu.json
    python benchmarks/gpu.py --device cpu --scale 0.01

SASRec at width 64 and 50 positions, on generated logs of the size of ML-1M and ML-20M (softmax over
all items) and on one of a million items (a thousand mixed negatives). Items follow Zipf's law. The
first epoch warms up; the second is timed.

- ``waits_a_step``: how often a step waits for what the GPU has been told to do, by torch's debug
  mode: warnings of an epoch of 40 batches without those of one of 20, over the difference.
- ``utilization``: mean of what nvidia-smi says each half second of the timed epoch: the share of
  time in which anything ran on the GPU, whatever part of it.
- ``losses``: milliseconds of the softmax cross entropy and its gradients over 3,200 states: this
  project's, in blocks; logits that are kept; and, where torch has it, its
  ``linear_cross_entropy``, in chunks and as it is.

All of it fits into eight minutes of one card: a size that would begin after ``--seconds`` is left
out, and named.
"""

import argparse
import contextlib
import statistics
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

import diffuserec as dr
from diffuserec.data import Catalog, SequenceDataset
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.recommenders.sasrec import SASRec
from report import show


@dataclass(frozen=True)
class Size:
    """A log to generate, and how it is trained on."""

    name: str
    users: int
    items: int
    interactions: int
    settings: dict[str, Any]


SIZES = (
    Size("as ML-1M", 6_040, 3_706, 1_000_209, {"batch_size": 128}),
    Size("as ML-20M", 138_493, 26_744, 20_000_263, {"batch_size": 512}),
    Size(
        "a million items",
        500_000,
        1_000_000,
        20_000_000,
        {"batch_size": 512, "loss": "sampled_softmax", "negatives": "mixed"},
    ),
)


def generated(size: Size, scale: float) -> SequenceDataset:
    """A log of this size, or of a part of it: exponential lengths, items by Zipf's law."""
    generator = np.random.default_rng(0)
    n_users, n_items = max(200, int(size.users * scale)), max(100, int(size.items * scale))
    mean = size.interactions / size.users
    lengths = 5 + generator.exponential(max(mean - 5, 1), n_users).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ranks = np.exp(generator.random(offsets[-1]) * np.log(n_items))
    items = np.clip(ranks.astype(np.int32), 1, n_items)
    catalog = Catalog(pl.Series("item_id", np.arange(n_items)), n_users=n_users)
    return SequenceDataset.from_offsets(items, offsets, catalog)


def fit(data: SequenceDataset, size: Size, given: argparse.Namespace, epochs: int) -> list[float]:
    """Seconds of each of so many epochs."""
    runtime = dr.Runtime(device=given.device, precision=given.precision, progress=False)
    model = SASRec(dim=64, max_len=50, epochs=epochs, **size.settings)
    return [epoch.seconds for epoch in model.fit(data, None, runtime).curve]


def waits(data: SequenceDataset, size: Size, given: argparse.Namespace) -> float:
    """Host synchronizations of a step."""
    counts = []
    for n_batches in (20, 40):
        few = data.select(np.arange(min(len(data), n_batches * size.settings["batch_size"])))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                fit(few, size, given, epochs=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in seen))
    return (counts[1] - counts[0]) / 20


@contextlib.contextmanager
def utilization(device: str) -> Iterator[list[float]]:
    """Percent that nvidia-smi tells each half second, for as long as the context lasts."""
    found: list[float] = []
    if device == "cpu":
        yield found
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    command += ["-lms", "500", "-i", str(torch.cuda.get_device_properties(0).uuid)]
    command[-1] = command[-1] if command[-1].startswith("GPU-") else f"GPU-{command[-1]}"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    )

    def read() -> None:
        assert process.stdout is not None
        found.extend(float(line) for line in process.stdout if line.strip().isdigit())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield found
    finally:
        process.terminate()
        process.wait()
        reader.join()


def losses(n_items: int, given: argparse.Namespace, repeats: int = 20) -> dict[str, float]:
    """Milliseconds of each form of the softmax cross entropy, gradients included."""
    torch.manual_seed(0)
    n = max(64, int(3200 * given.scale))
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    states, vectors = torch.randn(n, 64), 0.02 * torch.randn(n_items + 1, 64)
    targets = torch.randint(1, n_items + 1, (n,)).to(given.device)
    states = states.to(given.device).requires_grad_()
    vectors = vectors.to(given.device).requires_grad_()
    forms: dict[str, Callable[[], Tensor]] = {
        "diffuserec's": lambda: softmax_cross_entropy(states, vectors, targets),
        "logits that are kept": lambda: F.cross_entropy(states @ vectors[1:].T, targets - 1),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # of torch 2.13
        chunked = torch.nn.LinearCrossEntropyOptions()
        forms["torch's, chunked"] = lambda: F.linear_cross_entropy(
            states, vectors[1:], targets - 1, options=chunked
        )
        forms["torch's"] = lambda: F.linear_cross_entropy(states, vectors[1:], targets - 1)
    found: dict[str, float] = {}
    for name, form in forms.items():
        times = []
        try:
            for _ in range(repeats if given.device == "cuda" else 3):
                states.grad = vectors.grad = None
                _wait(given.device)
                start = time.perf_counter()
                with torch.autocast(given.device, dtype, enabled=dtype == torch.bfloat16):
                    value = form()
                value.backward()
                _wait(given.device)
                times.append(1000 * (time.perf_counter() - start))
        except torch.OutOfMemoryError:
            continue
        found[name] = statistics.median(times)
    return found


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measured(size: Size, given: argparse.Namespace) -> dict[str, Any]:
    """One size."""
    data = generated(size, given.scale)
    on_gpu = given.device == "cuda"
    found: dict[str, Any] = {
        "users": len(data),
        "items": data.vocab_size - 1,
        "interactions": int(data.lengths.sum()),
        "settings": size.settings,
    }
    if on_gpu:
        found["waits_a_step"] = waits(data, size, given)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with utilization(given.device) as shares:
        found["epoch_s"] = fit(data, size, given, epochs=2)[1]
    if on_gpu:
        # the newest samples: the first epoch and what came before it warmed up
        kept = shares[-max(1, int(2 * found["epoch_s"])) :]
        found["utilization"] = statistics.mean(kept) / 100 if kept else None
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if "loss" not in size.settings:
        found["losses_ms"] = losses(data.vocab_size - 1, given)
    return found


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the users and the items")
    parser.add_argument("--seconds", type=float, default=360, help="after it no size is begun")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --scale 0.01 tries the script without one")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "precision": given.precision,
        "scale": given.scale,
        "sizes": {},
        "left_out": [],
    }
    for size in SIZES:
        if time.perf_counter() - began > given.seconds:
            result["left_out"].append(size.name)
            continue
        result["sizes"][size.name] = found = measured(size, given)
        words = [f"epoch {found['epoch_s']:.1f} s"]
        if given.device == "cuda":
            words += [
                f"peak {found['peak_gib']:.1f} GiB",
                f"{found['waits_a_step']:.1f} waits a step",
            ]
        print(f"{size.name}: {', '.join(words)}", flush=True)
    result["whole_s"] = time.perf_counter() - began
    show(result, given.json)


if __name__ == "__main__":
    main()
