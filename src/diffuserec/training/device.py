"""The device of a fit."""

import os

import torch

from diffuserec.errors import ConfigError
from diffuserec.models.base import Runtime


def device_of(runtime: Runtime) -> torch.device:
    """Device of a runtime; ``auto`` is a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: a GPU was asked for and there is none, or several processes were started.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            "several processes were started (WORLD_SIZE is above 1), and each would train a model "
            "of its own: start one, without torchrun"
        )
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(runtime.device, True):
        raise ConfigError(
            f"device {runtime.device!r} was asked for and torch sees none: use --device cpu"
        )
    if runtime.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(runtime.device)
