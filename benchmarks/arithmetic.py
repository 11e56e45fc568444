"""Seconds of each form of work, compared with the arithmetic that it cannot avoid.

    python benchmarks/arithmetic.py beauty.txt --json docs/lab/results/arithmetic.json

Training by SASRec on all positions, by SASRec on one prefix an example, and by DiffRec; a full
ranking of all users by both; and MaskDiff's items in front of all histories. All at width 64, 50
positions, 2 layers and 2 heads.

The arithmetic counts the matrix products alone, 2 floating-point operations for each multiplied
pair, forward, and twice as many again backward:

- a position of a layer multiplies 12·D² weights; in the last layer only the keys and values (2·D²)
  of the positions that nobody asks for, and 10·D² of each that is asked for;
- a score multiplies D numbers, of V items for each state.

Attention's own products, embeddings, norms and the optimizer are left out, so nothing can reach a
ratio of 1. Operations are divided by the throughput of 2048² products of the same precision, in the
same process. Where the ratio is above 2 (fp32) or 1.5 (bf16), torch's profiler tells which
operators the time went to (``profile``: shares of the time of all, without what they call).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import diffuserec as dr
from diffuserec.augmenters.maskdiff import MaskDiff
from diffuserec.data import SequenceDataset, training_batches
from diffuserec.recommenders.diffrec import DiffRec
from diffuserec.recommenders.sasrec import SASRec
from report import show

DIM, MAX_LEN, N_LAYERS, N_HEADS = 64, 50, 2, 2
COMMON: dict[str, Any] = {
    "dim": DIM,
    "max_len": MAX_LEN,
    "n_layers": N_LAYERS,
    "n_heads": N_HEADS,
    "batch_size": 64,
}
Precision = Literal["fp32", "bf16"]
TYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
GOALS = {"fp32": 2.0, "bf16": 1.5}
TRAINING, FORWARD = 3, 1
"""Passes of the same cost: forward alone, or backward for both factors too."""


def clock() -> float:
    """Seconds of the processor where one thread works, which other programs hardly change; else
    those of the clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def throughput(precision: Precision, repeats: int = 10) -> float:
    """Floating-point operations a second of a 2048² product."""
    a, b = (torch.randn(2048, 2048).to(TYPES[precision]) for _ in range(2))
    a @ b
    start = clock()
    for _ in range(repeats):
        a @ b
    return 2 * 2048**3 * repeats / (clock() - start)


def encoder_flops(
    positions: int, asked: int, passes: int, dim: int = DIM, n_layers: int = N_LAYERS
) -> float:
    """Of a transformer over so many positions, of which so many are asked for.

    Args:
        passes: TRAINING or FORWARD.
    """
    weights = 12 * (n_layers - 1) * positions + 2 * positions + 10 * asked
    return passes * 2.0 * dim**2 * weights


def score_flops(states: int, vocab_size: int, passes: int, dim: int = DIM) -> float:
    """Of the scores of all items by so many states."""
    return passes * 2.0 * dim * vocab_size * states


def counted(train: SequenceDataset, max_len: int, examples: Any) -> tuple[int, int]:
    """Input positions and targets of an epoch."""
    inputs = targets = 0
    for batch in training_batches(train, 4096, max_len, 0, 0, examples):
        inputs += int(batch.lengths.sum())
        targets += int((batch.targets > 0).sum())
    return inputs, targets


def epoch_flops(train: SequenceDataset, dim: int, n_layers: int, max_len: int) -> float:
    """Of one epoch of SASRec on all positions: loss and encoder, forward and backward."""
    _, positions = counted(train, max_len, "per_user")
    return encoder_flops(positions, positions, TRAINING, dim, n_layers) + score_flops(
        positions, train.vocab_size, TRAINING, dim
    )


class Form:
    """Something that is measured.

    Attributes:
        flops: arithmetic that it cannot avoid.
        run: does it once in a precision; its seconds.
        sample: does a part of it, for the profile.
        precisions: in which it can be done.
    """

    def __init__(
        self,
        flops: float,
        run: Callable[[Precision], float],
        sample: Callable[[Precision], Any],
        precisions: tuple[Precision, ...] = ("fp32",),
    ) -> None:
        self.flops, self.run, self.sample, self.precisions = flops, run, sample, precisions


def training(make: Callable[[], dr.Recommender], train: SequenceDataset, flops: float) -> Form:
    """A fit of one epoch, without validation."""
    few = train.select(np.arange(min(len(train), 2000)))

    def fit(data: SequenceDataset, precision: Precision) -> float:
        runtime = dr.Runtime(device="cpu", precision=precision, progress=False)
        start = clock()
        make().fit(data, None, runtime)
        return clock() - start

    return Form(flops, lambda p: fit(train, p), lambda p: fit(few, p), ("fp32", "bf16"))


def working(flops: float, work: Callable[[], Any]) -> Form:
    """What is not trained, and runs in fp32."""

    def run(_: Precision) -> float:
        start = clock()
        work()
        return clock() - start

    return Form(flops, run, run)


def forms_of(split: dr.Split, only: list[str]) -> dict[str, Form]:
    """The forms by name, made when they are asked for."""
    train, size = split.train, split.train.vocab_size
    kept = np.minimum(split.test.histories.lengths, MAX_LEN)
    users, history = len(split.test), int(kept.sum())

    def prefixes() -> Form:
        inputs, targets = counted(train, MAX_LEN, "newest_prefixes")
        settings = COMMON | {"examples": "newest_prefixes", "batch_size": 256, "epochs": 1}
        flops = encoder_flops(inputs, targets, TRAINING) + score_flops(targets, size, TRAINING)
        return training(lambda: SASRec(**settings), train, flops)

    def diffrec() -> Form:
        inputs, targets = counted(train, MAX_LEN, "windows")
        flops = encoder_flops(inputs, 0, TRAINING) + encoder_flops(targets, targets, TRAINING)
        flops += score_flops(targets, size, TRAINING)
        return training(lambda: DiffRec(**COMMON, epochs=1), train, flops)

    def sasrec() -> Form:
        flops = epoch_flops(train, DIM, N_LAYERS, MAX_LEN)
        settings = COMMON | {"examples": "per_user", "epochs": 1}
        return training(lambda: SASRec(**settings), train, flops)

    def untrained(model: dr.Recommender) -> dr.Recommender:
        quick = dr.Runtime(device="cpu", progress=False)
        return model.fit(train.select(np.arange(min(len(train), 200))), None, quick)

    def sasrec_ranking() -> Form:
        model = untrained(SASRec(**COMMON, epochs=1))
        flops = encoder_flops(history, users, FORWARD) + score_flops(users, size, FORWARD)
        return working(flops, lambda: dr.evaluate(model, split.test))

    def diffrec_ranking() -> Form:
        model = untrained(DiffRec(**COMMON, epochs=1))
        draws = users * 10
        flops = encoder_flops(history, 0, FORWARD) + encoder_flops(draws, draws, FORWARD)
        flops += score_flops(draws, size, FORWARD)
        return working(flops, lambda: dr.evaluate(model, split.test))

    def generation() -> Form:
        n_items = 10
        augmenter = MaskDiff(**COMMON, n_items=n_items, epochs=1)
        augmenter.fit(
            train.select(np.arange(min(len(train), 400))),
            runtime=dr.Runtime(device="cpu", progress=False),
        )
        kept = np.minimum(train.lengths, MAX_LEN - n_items)
        masks = len(train) * n_items
        flops = encoder_flops(int(kept.sum()) + masks, masks, FORWARD)
        flops += score_flops(masks, size, FORWARD, DIM + 1)
        return working(flops, lambda: augmenter.generate(train, seed=0))

    made = {
        "SASRec, an epoch": sasrec,
        "SASRec on prefixes, an epoch": prefixes,
        "DiffRec, an epoch": diffrec,
        "SASRec, ranking all users": sasrec_ranking,
        "DiffRec, ranking all users by ten draws": diffrec_ranking,
        "MaskDiff, ten items for all users": generation,
    }
    return {name: make() for name, make in made.items() if not only or name in only}


def profile(form: Form, precision: Precision, n: int = 8) -> list[tuple[str, float]]:
    """The operators that take the most time of their own, and their shares of all of it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        form.sample(precision)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    top = sorted(events, key=lambda event: -event.self_cpu_time_total)[:n]
    return [(event.key, event.self_cpu_time_total / total) for event in top]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="timed, after one more")
    parser.add_argument("--only", nargs="+", default=[], help="names of forms, as they are printed")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    split = dr.leave_one_out(dr.read_log(given.log).to_dataset())
    result: dict[str, Any] = {"log": given.log.name, "threads": given.threads, "forms": {}}
    for name, form in forms_of(split, given.only).items():
        for precision in form.precisions:
            speed = throughput(precision)
            seconds = [form.run(precision) for _ in range(given.repeats + 1)][1:]
            speed = statistics.mean([speed, throughput(precision)])
            found: dict[str, Any] = {
                "flops": form.flops,
                "gflops_a_second": speed / 1e9,
                "arithmetic_s": form.flops / speed,
                "seconds": statistics.median(seconds),
                "all_s": seconds,
            }
            found["ratio"] = found["seconds"] / found["arithmetic_s"]
            if found["ratio"] > GOALS[precision]:
                found["profile"] = profile(form, precision)
            result["forms"].setdefault(name, {})[precision] = found
            print(f"{name}, {precision}: {found['ratio']:.2f} times the arithmetic", flush=True)
    show(result, given.json)


if __name__ == "__main__":
    main()
