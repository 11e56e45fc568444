"""Items that augmenters generate, compared with hidden beginnings of histories and with counting.

    python benchmarks/generation.py beauty.txt --json docs/lab/results/generation_beauty.json
    python benchmarks/generation.py store --json docs/lab/results/generation_store.json
    python benchmarks/generation.py beauty.txt --subset --only counts maskdiff

Users with long histories are taken out of everything that is counted or trained; their first M
items are hidden, and a method is shown the first item after them, the first three or all. Each
augmenter is fitted once, with its defaults but for ``--set``. ``--subset`` keeps the 1,000 most
frequent items and 3,000 users with at least 5 of them.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

import diffuserec as dr
from diffuserec.augmenters.asrep import ASReP
from diffuserec.augmenters.maskdiff import MaskDiff
from diffuserec.evaluation import (
    HiddenBeginnings,
    generation_quality,
    hide_beginnings,
    paired_difference,
)
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.item_matrix import pairs_within

CONDITIONS = {"first item": 1, "first 3 items": 3, "all items": None}
Made = tuple[np.ndarray, np.ndarray | None]
"""Items of each user, and their probabilities if there are any."""
Generator = Callable[[dr.SequenceDataset, np.ndarray], Made]
"""From what is shown of the users and their hidden items, which only the first row looks at."""


def subset(data: dr.SequenceDataset) -> dr.SequenceDataset:
    """The 1,000 most frequent items, and 3,000 users drawn from those with 5 of them or more."""
    frequent = np.argsort(-data.item_counts(), kind="stable")[:1000]
    number = np.zeros(data.vocab_size, dtype=np.int64)
    number[frequent] = np.arange(1, 1001)
    sequences = [kept for items in data if len(kept := number[items][number[items] > 0]) >= 5]
    order = np.random.default_rng(0).permutation(len(sequences))[:3000]
    return dr.SequenceDataset.from_lists([sequences[i].tolist() for i in order])


def best_by(scores: Callable[[np.ndarray], np.ndarray], m: int) -> Generator:
    """The M items with the highest scores of a condition that are not in it."""

    def generate(shown: dr.SequenceDataset, first: np.ndarray) -> Made:
        found = np.empty((len(shown), m), dtype=np.int64)
        for user, items in enumerate(shown):
            by_item = scores(items).astype(float)
            by_item[0] = by_item[items] = -np.inf
            found[user] = np.argsort(-by_item, kind="stable")[:m]
        return found, None

    return generate


def counting(train: dr.SequenceDataset, m: int, asrep: ASReP | None) -> dict[str, Generator]:
    """Rows that are counted or drawn."""
    size, popularity = train.vocab_size, train.item_counts()
    generator = np.random.default_rng(0)

    def counts(window: int) -> csr_array:
        _, later, earlier, weight = pairs_within(train, window)
        return csr_array((weight, (later, earlier)), shape=(size, size))

    near, next_to = counts(5), counts(1)
    both = csr_array(near + near.T)

    def falling(matrix: csr_array) -> Callable[[np.ndarray], np.ndarray]:
        return lambda items: (1 / np.arange(1, len(items) + 1)) @ matrix[items].toarray()

    rows: dict[str, Generator] = {
        "true first items": lambda shown, first: (first, None),
        "random by popularity": lambda shown, first: (
            generator.choice(size, (len(shown), m), p=popularity / popularity.sum()),
            None,
        ),
        "popularity": best_by(lambda items: popularity, m),
        "reverse Markov": best_by(lambda items: next_to[items[:1]].toarray()[0], m),
        "backward co-occurrence": best_by(falling(near), m),
        "co-occurrence, both ways": best_by(falling(both), m),
    }
    if asrep is not None:
        # the mean cosine over the tables of its folds
        tables = [model.table.embeddings().detach() for model in asrep.reverse]
        by_cosine = torch.cat([torch.nn.functional.normalize(t, dim=1) for t in tables], 1).numpy()
        rows["nearest items"] = best_by(lambda items: by_cosine @ by_cosine[items].mean(0), m)
    return rows


def augmented(augmenter: PrependingAugmenter) -> Generator:
    return lambda shown, first: (augmenter.generate(shown, seed=0), None)


def filled(augmenter: MaskDiff, m: int) -> Generator:
    def generate(shown: dr.SequenceDataset, first: np.ndarray) -> Made:
        return augmenter.insert(shown, np.zeros(len(shown), dtype=np.int64), m)

    return generate


def measured(generate: Generator, hidden: HiddenBeginnings) -> dict[str, dict[str, Any]]:
    """A method under each condition."""
    result = {}
    for name, n in CONDITIONS.items():
        shown, start = hidden.shown(n), time.process_time()
        items, probability = generate(shown, hidden.first)
        spent = time.process_time() - start
        found = generation_quality(items, hidden, probability)
        result[name] = {
            "hit": found.hit_share,
            "margin": found.margin,
            "own": found.own,
            "distinct": found.n_distinct,
            "jaccard": found.jaccard,
            "calibration_error": found.calibration_error,
            "cpu_ms_per_user": 1000 * spent / len(shown),
            "hits_by_user": found.hits.mean(1).tolist(),
        }
    return result


def read(log: str) -> dr.SequenceDataset:
    if log == "store":
        return dr.Store().dataset()
    return dr.load_dataset(log) if Path(log).is_dir() else dr.read_log(log).to_dataset()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--subset", action="store_true")
    names = ["counts", "random", "random_seq", "maskdiff", "asrep", "diffuasr"]
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.NAME=VALUE")
    parser.add_argument("--n-items", type=int, default=5)
    parser.add_argument("--users", type=int, default=1000, help="taken out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = subset(read(given.log)) if given.subset else read(given.log)
    m, split = given.n_items, dr.leave_one_out(data)
    n_long = int((split.train.lengths >= m + 3).sum())
    train, hidden = hide_beginnings(split.train, m, min(given.users, n_long // 4), seed=given.seed)
    result: dict[str, Any] = {
        "log": Path(given.log).name + (" (subset)" if given.subset else ""),
        "users": len(train),
        "items": train.catalog.n_items,
        "hidden_users": len(hidden.first),
        "n_items": m,
        "precision": given.precision,
        "settings": {},
        "fit_cpu_s": {},
        "rows": {},
    }

    def record(name: str, generate: Generator) -> None:
        result["rows"][name] = measured(generate, hidden)
        print(name, {k: v["hit"] for k, v in result["rows"][name].items()}, flush=True)
        if given.json:
            given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    asrep = None
    for name in names[1:]:
        if name not in given.only:
            continue
        words = [part.split(".", 1)[1] for part in given.set if part.startswith(name + ".")]
        settings: dict[str, Any] = dict(word.split("=", 1) for word in words)
        settings = {k: json.loads(v) if v.startswith("{") else v for k, v in settings.items()}
        result["settings"][name] = settings
        augmenter = dr.find_augmenter(name)(**{"n_items": m} | settings)
        assert isinstance(augmenter, PrependingAugmenter)
        start = time.process_time()
        runtime = dr.Runtime(
            device="cpu", seed=given.seed, precision=given.precision, progress=True
        )
        augmenter.fit(train, runtime=runtime)
        result["fit_cpu_s"][name] = time.process_time() - start
        asrep = augmenter if isinstance(augmenter, ASReP) else asrep
        is_ours = isinstance(augmenter, MaskDiff)
        record(name, filled(augmenter, m) if is_ours else augmented(augmenter))
    if "counts" in given.only:
        for name, generate in counting(train, m, asrep).items():
            record(name, generate)
    rows = result["rows"]
    if "maskdiff" in rows:
        result["against_maskdiff"] = {
            name: {
                condition: against(rows["maskdiff"][condition], row[condition])
                for condition in CONDITIONS
            }
            for name, row in rows.items()
            if name != "maskdiff"
        }
    for row in rows.values():
        for found in row.values():
            del found["hits_by_user"]
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def against(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """The difference of hit shares, paired over users."""
    found = paired_difference([np.array(ours["hits_by_user"])], [np.array(theirs["hits_by_user"])])
    return {"difference": found.difference, "p": found.p}


if __name__ == "__main__":
    main()
