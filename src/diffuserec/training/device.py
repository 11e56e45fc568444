"""The device of a fit."""

import os

import torch

from diffuserec.errors import ConfigError
from diffuserec.models.base import Runtime
from diffuserec.training import parallel


def device_of(runtime: Runtime) -> torch.device:
    """Device of a runtime; ``auto`` is a CUDA device if there is one, else the CPU.

    Of several processes on a machine, each has a CUDA device of its own.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(runtime.device, True):
        raise ConfigError(
            f"device {runtime.device!r} was asked for and torch sees none: use --device cpu"
        )
    name: str = runtime.device
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if name == "cuda" and parallel.n_started() > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device(name)
