"""Fits methods in one of several processes, as ``torchrun`` starts them: a program for the tests.

Arguments: a folder and methods as kind/name; ``--double`` for double precision. Each process writes
NAME-RANK.safetensors there: the state, the losses and the validation metrics.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffuserec.data import Split, Store, leave_one_out
from diffuserec.models.base import Method, Runtime
from diffuserec.models.methods import find_augmenter, find_recommender
from diffuserec.models.recommender import Recommender
from diffuserec.training import parallel, validation

SETTINGS = {
    "dim": 16,
    "max_len": 12,
    "n_layers": 1,
    "dropout": 0.3,
    "learning_rate": 0.01,
    "batch_size": 10,
    "epochs": 2,
    "num_train_timesteps": 40,
    "num_inference_steps": 2,
    "n_draws": 2,
    "n_items": 2,
    "pretrain_epochs": 1,
    "generator_epochs": 1,
    "rounds": 1,
    "k_noise": 2,
    "k_sample": 3,
    "n_candidates": 3,
    "latent_dim": 8,
    "hidden_dim": 16,
    "hidden": (8, 4),
    "n_best": 3,
}
_SASREC = {"dim": 16, "epochs": 2, "batch_size": 10}
OWN = {
    "blend": {"parts": ("sasrec", "markov"), "settings": {"sasrec": _SASREC}},
    "asrep": {"model_settings": _SASREC},
    "diffuasr": {"dim": 64, "batch_size": 100, "epochs": 1},
    "bpr": {"batch_size": 100},
    "neumf": {"batch_size": 100},
    "gsasrec": {"n_negatives": 5},
}


def small_log() -> Split:
    """47 users of the built-in store, a number that neither batches nor processes divide."""
    return leave_one_out(Store(n_users=47, n_items=40, seed=0).dataset())


def fit(kind: str, name: str, split: Split) -> tuple[Method, dict[str, torch.Tensor]]:
    """A method of this kind and name, fitted quickly, and what came of it."""
    cls = find_recommender(name) if kind == "recommender" else find_augmenter(name)
    known = cls.Config.model_fields
    settings = {key: value for key, value in SETTINGS.items() if key in known} | OWN.get(name, {})
    # ranks are counted in single precision
    valid = None if torch.get_default_dtype() == torch.float64 else split.valid
    runtime = Runtime(device="cpu", progress=False)
    method = cls(**settings).fit(split.train, valid, runtime)
    found = {key: value.clone().contiguous() for key, value in method.state_dict().items()}
    curve = [[epoch.loss, epoch.valid or 0.0] for epoch in method.curve]
    found["curve"] = torch.tensor(curve, dtype=torch.float64)
    if isinstance(method, Recommender) and valid is not None:
        metric = validation(method, method.scorer, valid, batch_size=8)()
        found["metric"] = torch.tensor(metric, dtype=torch.float64)
    return method, found


def main() -> None:
    folder, *names = sys.argv[1:]
    if "--double" in names:
        names.remove("--double")
        torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    split = small_log()
    with parallel.together():
        for name in names:
            _, found = fit(*name.split("/"), split)
            file = f"{name.replace('/', '-')}-{os.environ['RANK']}.safetensors"
            save_file(found, Path(folder) / file)


if __name__ == "__main__":
    main()
