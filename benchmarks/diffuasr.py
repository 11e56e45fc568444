"""Items that DiffuASR generates, compared with the true first items and with Random; seconds.

    python benchmarks/diffuasr.py beauty.txt --json docs/lab/results/diffuasr_beauty.json
    python benchmarks/diffuasr.py store --set n_items=5
    python benchmarks/diffuasr.py DATA --set prediction_type=epsilon --only learned

A tenth of the users with long histories is taken out of everything that is trained, pretraining
included. The model sees the items after their first M, and what it generates is compared with
those M. The log is a file, a prepared dataset's directory, or ``store``, the built-in one.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import diffuserec as dr
from diffuserec.augmenters.diffuasr import DiffuASR
from diffuserec.models.methods import with_settings
from report import show

Results = dict[str, dict[str, float]]

GUIDES: list[dict[str, Any]] = [
    {"guidance": "none"},
    *({"guidance": "classifier_free", "guidance_scale": s} for s in (0.1, 1.0, 3.0, 10.0)),
    *({"guidance": "classifier", "guidance_scale": s} for s in (0.1, 1.0, 10.0)),
    *(
        {"guidance": "classifier", "guidance_scale": s, "guidance_at": "x_0"}
        for s in (0.1, 1.0, 10.0)
    ),
]
STEPS = {"ddim": (5, 10, 20, 50, 250, 1000), "dpm_solver": (5, 10, 20, 50)}


class HeldOut:
    """Users with long histories that were not trained on: their first items, and those after."""

    def __init__(self, train: dr.SequenceDataset, index: np.ndarray, n_items: int) -> None:
        starts, ends = train.starts[index], train.ends[index]
        self.first = train.log.items[starts[:, None] + np.arange(n_items)]
        self.after = train.view(starts + n_items, ends, index)
        self.label = torch.from_numpy(self.after.items[self.after.offsets[:-1]]).long()
        self.category = None
        attributes = train.catalog.attributes
        if attributes is not None and "category" in attributes.columns:
            numbers = attributes["category"].cast(str).rank("dense").to_numpy()
            self.category = np.concatenate([[0], numbers.astype(np.int64)])
            width = self.category.max() + 1
            real = train.select(index)
            owner = np.repeat(np.arange(len(index)), real.lengths)
            self.own = np.zeros((len(index), width), dtype=bool)
            self.own[owner, self.category[real.items]] = True

    def measure(self, model: DiffuASR, made: list[np.ndarray]) -> dict[str, float]:
        """Means over users and draws.

        ``hit``: share of the generated items that are among the user's true first M;
        ``same_position``: at their own position; ``users_hit``: users with at least one hit;
        ``log_p``: of the first item after them, by the transformer; ``category``: share in a
        category that the user really took from.
        """
        hit = [(part[:, :, None] == self.first[:, None, :]).any(2) for part in made]
        result = {
            "hit": float(np.mean(hit)),
            "same_position": float(np.mean([part == self.first for part in made])),
            "users_hit": float(np.mean([part.any(1) for part in hit])),
            "distinct": float(np.mean([len(np.unique(part)) for part in made])),
            "log_p": float(np.mean([self._log_p(model, part) for part in made])),
        }
        if self.category is not None:
            user = np.arange(len(self.first))[:, None]
            result["category"] = float(np.mean([self.own[user, self.category[p]] for p in made]))
        return result

    def draw(self, augmenter: dr.Augmenter, n_draws: int) -> list[np.ndarray]:
        """(users, M) items for each seed."""
        m = self.first.shape[1]
        longer = [augmenter.augment(self.after, seed) for seed in range(n_draws)]
        return [part.items[part.offsets[:-1, None] + np.arange(m)] for part in longer]

    @torch.no_grad()
    def _log_p(self, model: DiffuASR, items: np.ndarray) -> float:
        vectors = F.embedding(torch.from_numpy(items).long(), model.vectors)
        return float(model.label_log_prob(vectors, self.label).mean())


def learned(model: DiffuASR, held: HeldOut, train: dr.SequenceDataset, n_draws: int) -> Results:
    """Every guide and scale, beside the true items, Random, and Random by popularity."""
    generator = np.random.default_rng(0)
    counts = train.item_counts()
    by_count = [
        generator.choice(train.vocab_size, held.first.shape, p=counts / counts.sum())
        for _ in range(5 * n_draws)
    ]
    uniform = dr.find_augmenter("random")(n_items=model.config.n_items).fit(train)
    own = dr.find_augmenter("random_seq")(n_items=model.config.n_items).fit(train)
    results = {
        "true first items": held.measure(model, [held.first]),
        "random": held.measure(model, held.draw(uniform, 5 * n_draws)),
        "random, by popularity": held.measure(model, by_count),
        "random_seq": held.measure(model, held.draw(own, n_draws)),
    }
    for settings in GUIDES:
        name = ", ".join(str(value) for value in settings.values())
        guided = with_settings(model, {"num_inference_steps": 50, **settings})
        results[name] = held.measure(model, held.draw(guided, n_draws))
        print(name, results[name], flush=True)
    return results


def steps(model: DiffuASR, held: HeldOut) -> Results:
    """Both samplers by number of steps; agreement with 1000 steps of DDIM from the same noise."""
    results: Results = {}
    best: np.ndarray | None = None
    for sampler, counts in STEPS.items():
        for count in sorted(counts, reverse=True):
            sampling = with_settings(model, {"sampler": sampler, "num_inference_steps": count})
            wall, cpu = time.perf_counter(), time.process_time()
            made = held.draw(sampling, 1)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best = made[0] if best is None else best
            result = held.measure(model, made)
            result["agreement"] = float((made[0] == best).mean())
            result["cpu_ms_per_user"] = 1000 * cpu / len(held.first)
            result["wall_ms_per_user"] = 1000 * wall / len(held.first)
            results[f"{sampler}, {count}"] = result
            print(f"{sampler}, {count}", result, flush=True)
    return results


def everyone(model: DiffuASR, train: dr.SequenceDataset) -> dict[str, float]:
    """Seconds to augment all histories at 50 steps."""
    sampling = with_settings(model, {"num_inference_steps": 50})
    wall, cpu = time.perf_counter(), time.process_time()
    sampling.augment(train)
    return {
        "users": len(train),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "threads": torch.get_num_threads(),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def read(log: str) -> dr.SequenceDataset:
    if log == "store":
        return dr.Store().dataset()
    return dr.load_dataset(log) if Path(log).is_dir() else dr.read_log(log).to_dataset()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parts = ["learned", "steps", "everyone"]
    parser.add_argument("--only", nargs="*", default=parts, choices=parts)
    parser.add_argument("--draws", type=int, default=3, help="seeds of the noise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = {"n_items": 10} | dict(part.split("=", 1) for part in given.set)
    model = DiffuASR(**settings)
    split = dr.leave_one_out(read(given.log))
    train, c = split.train, model.config
    long = np.flatnonzero(train.lengths >= c.n_items + c.min_condition)
    chosen = np.random.default_rng(given.seed).permutation(long)[: max(1, len(long) // 10)]
    kept = np.setdiff1d(np.arange(len(train)), chosen)
    queries = np.isin(split.valid.histories.users, train.users[kept])
    valid = dr.Queries(split.valid.histories.select(queries), split.valid.targets[queries])

    cpu = time.process_time()
    model.fit(train.select(kept), valid, dr.Runtime(device="cpu", seed=given.seed))
    result: dict[str, Any] = {
        "log": Path(given.log).name,
        "settings": c.model_dump(mode="json"),
        "long_users": len(long) - len(chosen),
        "held_out_users": len(chosen),
        "fit_cpu_s": time.process_time() - cpu,
        "curve": [[e.phase, e.epoch, e.loss, e.valid, e.seconds] for e in model.curve],
    }
    print(result["fit_cpu_s"], [epoch[:4] for epoch in result["curve"]], flush=True)
    held = HeldOut(train, chosen, c.n_items)
    if "learned" in given.only:
        result["learned"] = learned(model, held, train.select(kept), given.draws)
    if "steps" in given.only:
        result["steps"] = steps(model, held)
    if "everyone" in given.only:
        result["everyone"] = everyone(model, train)
    show(result, given.json)


if __name__ == "__main__":
    main()
