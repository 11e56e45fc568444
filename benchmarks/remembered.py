"""What a fitted augmenter remembers of the users that it learned from: hits among them and others.

    python benchmarks/remembered.py beauty.txt --json docs/lab/results/remembered.json

An augmenter is fitted on two thirds of the users, drawn at random, and writes items in front of all
of them, from the first item of each. Counted is how often a target stands among the items in front
of it: training targets by their distance from the first item, and the validation target, which
nobody has learned. What is remembered shows in training targets alone: their share among users that
were learned from is then higher than among the others by more than that of validation targets is.
ASReP with one model for all (``n_folds=1``) is there to see that this is found where it is known.
Settings are the defaults otherwise; only users of at most 20 training items are counted.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import diffuserec as dr
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.methods import find_augmenter
from report import show

SETTINGS: dict[str, dict[str, Any]] = {"asrep": {"n_folds": 1}}
DISTANCES = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 9), (10, 19))
LONGEST = 20


def share(hits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Hits by target, and half of its 95 % interval over users.

    Args:
        hits: of each user, shape (U,).
        targets: of each user, shape (U,).
    """
    value = hits.sum() / targets.sum()
    residuals = hits - value * targets
    return {
        "share": float(value),
        "margin": float(1.96 * np.sqrt((residuals**2).sum()) / targets.sum()),
        "targets": int(targets.sum()),
    }


def measured(
    augmenter: PrependingAugmenter, split: dr.Split, learned: np.ndarray
) -> dict[str, dict[str, dict[str, float]]]:
    """Shares among users that were learned from and among the others."""
    train = split.train
    valid = dict(zip(split.valid.histories.users.tolist(), split.valid.targets, strict=True))
    users = np.flatnonzero((train.lengths >= 2) & (train.lengths <= LONGEST))
    starts = train.starts[users]
    made = augmenter.generate(train.view(starts, starts + 1, users), seed=0)
    distance = np.arange(1, LONGEST)
    hits = np.zeros((len(users), len(distance)))
    there = distance < train.lengths[users, None]
    for column, step in enumerate(distance):
        at = np.flatnonzero(there[:, column])
        target = train.log.items[starts[at] + step]
        hits[at, column] = (made[at] == target[:, None]).any(1)
    last = np.array([valid.get(int(train.users[user]), 0) for user in users])
    later = (made == last[:, None]).any(1) & (last > 0)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, group in (("learned from", learned[users]), ("others", ~learned[users])):
        rows = {"training": share(hits[group].sum(1), there[group].sum(1))}
        for low, high in DISTANCES:
            some = (distance >= low) & (distance <= high)
            of_group = hits[group][:, some].sum(1), there[group][:, some].sum(1)
            rows[f"{low}" if low == high else f"{low} to {high}"] = share(*of_group)
        rows["validation"] = share(later[group].astype(float), (last[group] > 0).astype(float))
        found[name] = rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--only", nargs="+", default=["asrep", "maskdiff", "diffuasr"])
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    split = dr.leave_one_out(dr.read_log(given.log).to_dataset())
    learned = np.random.default_rng(0).integers(3, size=len(split.train)) > 0
    some = split.train.select(np.flatnonzero(learned)).compact()
    result: dict[str, Any] = {
        "log": given.log.name,
        "users": len(split.train),
        "learned_from": len(some),
        "precision": given.precision,
        "augmenters": {},
    }
    for name in given.only:
        augmenter = find_augmenter(name)(**SETTINGS.get(name, {}))
        assert isinstance(augmenter, PrependingAugmenter)
        augmenter.fit(some, None, dr.Runtime(precision=given.precision, seed=0))
        result["augmenters"][name] = {
            "settings": SETTINGS.get(name, {}),
            "found": measured(augmenter, split, learned),
        }
    show(result, given.json)


if __name__ == "__main__":
    main()
