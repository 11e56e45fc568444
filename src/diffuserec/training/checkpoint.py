"""The state of an interrupted training: one file, replaced in one step after every epoch."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import replacing
from diffuserec.models.base import Epoch, Method, Runtime
from diffuserec.training import parallel
from diffuserec.training.average import Average


class Checkpoint:
    """The state after the last complete epoch of a phase, as one safetensors file."""

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        data: SequenceDataset,
        phase: str,
        average: Average | None = None,
    ) -> None:
        self.path = runtime.checkpoint / f"{phase}.safetensors" if runtime.checkpoint else None
        self.method = method
        self.optimizer = optimizer
        self.average = average
        self.owner = {
            "method": method.name,
            "config": method.config.stated(),
            "seed": runtime.seed,
            "precision": runtime.precision,
            "data": data.fingerprint if runtime.checkpoint else "",
        }

    def save(self, records: list[Epoch], best: dict[str, Tensor] | None) -> None:
        """Writes the state after the last of these epochs, and the best parameters so far."""
        if self.path is None or not parallel.is_first():
            return
        state = self.optimizer.state_dict()
        tensors = {f"model/{k}": v for k, v in self.method.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in (best or {}).items()}
        for index, slots in state["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in slots.items()}
        if self.average is not None:
            tensors |= {f"average/{k}": v for k, v in self.average.tensors().items()}
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        metadata = {
            "owner": json.dumps(self.owner),
            "records": json.dumps([asdict(record) for record in records]),
            "groups": json.dumps(state["param_groups"]),
        }
        with replacing(self.path) as work:
            save_file(tensors, work, {**metadata, "sha256": digest_of(tensors, metadata)})

    def _is_there(self, path: Path) -> bool:
        there = path.exists()
        if parallel.agreed(there) and not there:
            raise DataError(
                f"{path} is not seen by every process: give them a directory (--out) that all see"
            )
        return there

    def load(self) -> tuple[list[Epoch], dict[str, Tensor] | None]:
        """Puts the state back; returns the epochs completed and the best parameters, if any.

        Raises:
            DataError: the file is damaged.
            ConfigError: it is the checkpoint of another run.
        """
        if self.path is None or not self._is_there(self.path):
            return [], None
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.path} is damaged ({error}): start without --resume") from error
        if metadata.pop("sha256", None) != digest_of(tensors, metadata):
            raise DataError(
                f"{self.path} is damaged (it does not match its checksum): start without --resume"
            )
        owner = json.loads(metadata["owner"])
        for what, value in self.owner.items():
            if owner.get(what) != value:
                raise ConfigError(
                    f"{self.path} is the checkpoint of another run (its {what} differs): resume "
                    "with the settings and data that it was started with, or without --resume"
                )
        model = _part(tensors, "model/")
        best = _part(tensors, "best/")
        self.method.load_state_dict(model)
        if self.average is not None:
            self.average.load(_part(tensors, "average/"))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer/").items():
            index, _, slot = name.partition("/")
            slots.setdefault(int(index), {})[slot] = tensor
        groups = json.loads(metadata["groups"])
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        device = self.method.device
        records = [Epoch(**record) for record in json.loads(metadata["records"])]
        return records, {k: v.to(device) for k, v in best.items()} or None


def digest_of(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Checksum of all that a checkpoint holds."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.reshape(-1)
        if flat.stride(0) != 1:  # of one value or none
            flat = flat.clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def checkpoint_files(directory: Path) -> list[Path]:
    """Checkpoints that training left in a directory."""
    return sorted(directory.rglob("*.safetensors"))
