"""A fit that several methods begin with, made once for all of them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffuserec.data import Queries, SequenceDataset
from diffuserec.errors import DataError
from diffuserec.files import locked, replacing
from diffuserec.models.base import Epoch, Method, Runtime
from diffuserec.training import parallel
from diffuserec.training.checkpoint import digest_of
from diffuserec.training.device import device_of

_WEEK = 7 * 86_400.0


def fit_shared(
    method: Method, train: SequenceDataset, valid: Queries | None, runtime: Runtime
) -> list[Epoch]:
    """Fits a method that is part of another, or takes it from who fitted just the same before.

    The same is: method, its version and settings, data, validation queries, seed and precision.
    With ``runtime.shared`` a fit is kept there, one file each, and processes that want it at one
    time wait for the first; without, this is ``method.fit``. Of a method that is made of others,
    the parts alone are kept.

    Returns:
        The records of its epochs.

    Raises:
        ConfigError, DataError: as ``method.fit`` does.
    """
    if runtime.shared is None or parallel.n_started() > 1:
        return method.fit(train, valid, runtime).curve
    name = f"{method.name.strip('_')}-{_key(method, train, valid, runtime)}"
    path = runtime.shared / f"{name}.safetensors"
    with locked(runtime.shared / name, wait=_WEEK):
        if path.exists():
            method.config = method.given.suited_to(train.real())
            with torch.random.fork_rng():
                method.take(train.catalog)
            method.curve = _read(path, method)
            method.to(device_of(runtime))
            return method.curve
        watch = _Watch(runtime.on_epoch)
        records = method.fit(train, valid, replace(runtime, on_epoch=watch)).curve
        if watch.stopped or _is_made_of_others(method):  # no whole fit, or its parts are kept
            return records
        tensors = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
        with replacing(path) as work:
            facts = {"records": json.dumps([asdict(record) for record in records])}
            save_file(tensors, work, {**facts, "sha256": digest_of(tensors, facts)})
    return records


def _is_made_of_others(method: Method) -> bool:
    return any(isinstance(part, Method) for part in method.modules() if part is not method)


class _Watch:
    """A hook that remembers whether it has stopped a fit."""

    def __init__(self, hook: Callable[[Epoch], bool | None] | None) -> None:
        self.hook, self.stopped = hook, False

    def __call__(self, epoch: Epoch) -> bool:
        stops = self.hook is not None and self.hook(epoch) is True
        self.stopped = self.stopped or stops
        return stops


def _read(path: Path, method: Method) -> list[Epoch]:
    """Puts the state of a fit into a method; returns the records of its epochs."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts.pop("sha256") != digest_of(tensors, facts):
            raise ValueError("the checksum")
        records = [Epoch(**record) for record in json.loads(facts["records"])]
        method.restore(tensors)
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is damaged: remove it, and it is made anew") from error
    method.eval()
    return records


def _key(method: Method, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> str:
    settings = method.given.suited_to(train.real()).stated()  # however they were given
    parts = [method.kind, method.name, method.version, settings, train.fingerprint]
    if valid is not None:
        targets = hashlib.sha256(np.ascontiguousarray(valid.targets).tobytes()).hexdigest()
        parts += [valid.histories.fingerprint, targets]
    if runtime.stop_after:
        parts += [sorted(runtime.stop_after.items())]
    text = json.dumps([*parts, runtime.seed, runtime.precision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
