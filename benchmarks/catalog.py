"""What a large catalog costs in training, in requests and in evaluation, and what is learned of it.

    python benchmarks/catalog.py --json docs/lab/results/catalog.json

Every number of items is measured in a process of its own, on one thread, in processor time. Items
are generated: their vectors lie in groups of about a thousand, in lengths that differ; histories
are of Zipf's law. The state of a history is the vector of its newest item and some noise, at the
cost of SASRec's encoder. Ten million items need 13 GB of memory for the training step; --items
leaves them out.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import diffuserec as dr
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.evaluation.oracle import Oracle
from diffuserec.models.retrieval import approximate_top_k, recall, seen_items, top_k
from diffuserec.recommenders.sasrec import SASRec
from report import save

LENGTH = 50
K = 10


def catalog_of(n_items: int, n_users: int) -> Catalog:
    return Catalog(pl.Series("item_id", np.arange(n_items)), n_users=n_users)


def histories(n_items: int, n_users: int, length: int) -> SequenceDataset:
    """Histories whose items follow Zipf's law."""
    generator = np.random.default_rng(0)
    log_ranks = generator.random((n_users, length)) * np.log(n_items)
    items = np.minimum(np.exp(log_ranks).astype(np.int32), n_items)
    offsets = np.arange(n_users + 1) * length
    catalog = catalog_of(n_items, n_users)
    return SequenceDataset.from_offsets(items.reshape(-1), offsets, catalog)


def step(n_items: int, n_batches: int) -> dict[str, float]:
    """Milliseconds of a step of SASRec, and seconds of what the end of an epoch adds."""
    train = histories(n_items, 64 * n_batches, LENGTH + 1)
    times: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: times.append(time.process_time()))
    model = SASRec(
        epochs=1, loss="sampled_softmax", negatives="mixed", batch_size=64, max_len=LENGTH
    )
    model.fit(train, runtime=dr.Runtime(device="cpu", progress=False))
    ended = time.process_time()
    hook.remove()
    steps = np.diff(times)
    return {
        "step_ms": 1000 * float(np.median(steps[2:])),
        "epoch_end_s": ended - times[-1],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


class Generated(SASRec):
    """Item vectors in groups; a state is the vector of the newest item and some noise."""

    def generate(self, n_items: int) -> "Generated":
        torch.manual_seed(0)
        self.take(catalog_of(n_items, 1))
        n_groups = max(1, n_items // 1000)
        with torch.no_grad():
            table = self.table.vectors.weight
            centers = torch.randn(n_groups, table.shape[1])
            for rows in table[1:].split(2**18):
                rows.normal_(std=0.7).add_(centers[torch.randint(n_groups, (len(rows),))])
                rows.mul_(torch.exp(0.3 * torch.randn(len(rows), 1)))
        self.popularity = torch.ones(n_items + 1, dtype=torch.int64)
        return self.eval()

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> torch.Tensor:
        paid = super().states(histories, seed, n_draws)
        newest = histories.items.gather(1, (histories.lengths - 1)[:, None])
        noise = torch.randn(paid.shape, generator=torch.Generator().manual_seed(1))
        return self.table.embed(newest) + 0.5 * noise + 0 * paid


def requests(n_items: int, n_requests: int) -> dict[str, float]:
    """Milliseconds of a request of one history, exact and approximate, and the recall."""
    model = Generated().generate(n_items)
    start = time.process_time()
    index = model.item_index()
    built = time.process_time() - start
    generator = np.random.default_rng(1)
    asked = [generator.integers(0, n_items, 20).tolist() for _ in range(n_requests + 2)]
    found: dict[str, list[float]] = {}
    for name, more in (("exact", {}), ("approximate", {"index": index})):
        for number, history in enumerate(asked):
            start = time.process_time()
            model.recommend([history], k=K, **more)
            if number > 1:  # the first makes the index of the raw ids
                found.setdefault(name, []).append(1000 * (time.process_time() - start))
    users = np.arange(200)
    queried = histories(n_items, 200, 20)
    scorer, hidden = model.scorer_of(queried, users), seen_items(queried, users)
    lists = [top_k(scorer, K, hidden)[1], approximate_top_k(scorer, index, K, hidden)[1]]
    return {
        **{f"{name}_ms": statistics.median(times) for name, times in found.items()},
        "recall": recall(lists[1], lists[0]),
        "index_s": built,
        "probed": index.n_probed / len(index.centers),
        "index_mb": sum(t.numel() * t.element_size() for t in index.tensors().values()) / 1e6,
    }


def evaluation(n_items: int, n_users: int) -> dict[str, float]:
    """Seconds and peak memory of a full ranking."""
    model = Generated().generate(n_items)
    log = histories(n_items, n_users, 20)
    generator = np.random.default_rng(2)
    queries = Queries(log, generator.integers(1, n_items + 1, n_users))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    dr.evaluate(model, queries)
    return {
        "users": n_users,
        "seconds": time.process_time() - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "before_gib": before,
    }


def learning(n_items: int, n_users: int, epochs: int = 6, n_measured: int = 1000) -> dict[str, Any]:
    """What SASRec learns of a log of the built-in store, with its own negatives and with others.

    Beside it stand baselines and the best possible; seconds and memory are of the first training.
    """
    store = dr.Store(n_users=n_users, n_items=n_items, seed=0)
    log = store.dataset()
    split = dr.leave_one_out(log)
    start = time.process_time()
    quiet = dr.Runtime(device="cpu", progress=False)
    model = SASRec(epochs=epochs).fit(split.train, None, quiet)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    others = {
        f"SASRec, {words}": SASRec(epochs=epochs, loss="sampled_softmax", negatives=kind).fit(
            split.train, None, quiet
        )
        for kind, words in (
            ("popularity", "negatives by popularity"),
            ("uniform", "uniform negatives"),
        )
    }
    chosen = np.random.default_rng(0).choice(len(split.test), n_measured, replace=False)
    asked = split.test.select(np.sort(chosen))
    models: dict[str, dr.Recommender] = {
        "popularity": dr.Popularity().fit(split.train),
        "Markov": dr.Markov().fit(split.train),
        "SASRec": model,
        **others,
        "the best possible": Oracle(store).fit(split.train),
    }
    return {
        "users": n_users,
        "interactions": int(log.lengths.sum()),
        "occurring": int((log.item_counts() > 0).sum()),
        "epochs": epochs,
        "seconds": seconds,
        "peak_gib": peak,
        "measured": n_measured,
        "metrics": {name: dr.evaluate(one, asked).metrics for name, one in models.items()},
    }


PARTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "step": step,
    "requests": requests,
    "evaluation": evaluation,
    "learning": learning,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=lambda t: int(float(t)), nargs="+", help="of training")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--users", type=int, default=1000, help="of the evaluation")
    parser.add_argument("--learners", type=int, default=20_000, help="users of the trained log")
    parser.add_argument("--only", choices=PARTS, nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part:
        name, n_items, size = given.part
        print(json.dumps(PARTS[name](int(n_items), int(size))))
        return
    sizes = given.items or [10**4, 10**5, 10**6, 10**7]
    plan: list[tuple[str, int, int]] = [("step", n, given.batches) for n in sizes]
    plan += [("requests", n, given.requests) for n in sizes if n <= 10**6]
    plan += [("evaluation", 10**6, given.users), ("learning", 10**6, given.learners)]
    result: dict[str, Any] = (
        json.loads(given.json.read_text(encoding="utf-8"))
        if (given.json and given.json.exists())
        else {}
    )
    for name, n_items, size in plan:
        if given.only and name not in given.only:
            continue
        command = [sys.executable, __file__, "--part", name, str(n_items), str(size)]
        made = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        found = json.loads(made.stdout.splitlines()[-1])
        result.setdefault(name, {})[str(n_items)] = found
        print(name, f"{n_items:,}", found, flush=True)
    save(result, given.json)


if __name__ == "__main__":
    main()
