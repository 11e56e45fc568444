"""A trained method as a directory: manifest, weights, vocabulary. No pickle, ever.

    model/
      manifest.json       format, version, kind, name, config, and the sha256 of the other files
      weights.safetensors the state dict
      items.parquet       raw item ids and attributes, in the order of the item table

The directory is written under another name and renamed when complete, so that nothing half-written
stands under the final name. Loading verifies every checksum before it opens a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffuserec.data import Catalog
from diffuserec.errors import DataError
from diffuserec.files import new_directory, read_document, sha256, write_json

_FORMAT = "diffuserec-model"
_VERSION = 2
_FILES = ("weights.safetensors", "items.parquet")


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a model directory holds.

    Attributes:
        kind: ``recommender`` or ``augmenter``.
        name: the method's name, its file's name.
        config: its hyper-parameters.
        tensors: its state dict.
        catalog: its items.
    """

    kind: str
    name: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    catalog: Catalog


def write_artifact(path: Path | str, artifact: Artifact) -> None:
    """Writes a model directory; an older model at that path is replaced in one step.

    Raises:
        DataError: something that is not a model directory stands there, or more than a model.
    """
    target = Path(path)
    if target.exists():
        _require_replaceable(target)
    # tied weights would be refused by safetensors: write each tensor on its own
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in artifact.tensors.items()
    }
    frame = artifact.catalog.item_ids.to_frame("item_id")
    if artifact.catalog.attributes is not None:
        frame = frame.hstack(artifact.catalog.attributes.drop("item_id", strict=False))
    with new_directory(target) as work:
        save_file(tensors, work / "weights.safetensors")
        frame.write_parquet(work / "items.parquet")
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": artifact.kind,
            "name": artifact.name,
            "config": artifact.config,
            "n_users": artifact.catalog.n_users,
            "sha256": {name: sha256(work / name) for name in _FILES},
        }
        write_json(work / "manifest.json", manifest)


def read_artifact(path: Path | str) -> Artifact:
    """Reads a model directory after checking that it is complete and untouched.

    Raises:
        DataError: it is missing, foreign, of another version, or a file was changed; says which.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source} does not exist: give the directory that save() or train wrote")
    if not source.is_dir():
        raise DataError(
            f"{source} is a file, and a saved model is a directory with manifest.json, "
            "weights.safetensors and items.parquet (pickles are never opened)"
        )
    try:
        manifest = read_document(source / "manifest.json")
    except FileNotFoundError as error:
        raise DataError(f"{source} holds no manifest.json: not a saved model") from error
    except ValueError as error:
        raise DataError(f"{source / 'manifest.json'} is not valid JSON ({error})") from error
    if manifest.get("format") != _FORMAT:
        raise DataError(f"{source} is not a saved model (its manifest names another format)")
    if manifest.get("version") != _VERSION:
        raise DataError(
            f"{source} has model version {manifest.get('version')}, this release reads {_VERSION}: "
            "train it again"
        )
    missing = {"kind", "name", "config", "n_users", "sha256"} - manifest.keys()
    if missing:
        raise DataError(f"{source / 'manifest.json'} lacks {', '.join(sorted(missing))}")
    for name in _FILES:
        if not (source / name).is_file():
            raise DataError(f"{source} lacks {name}: the copy is incomplete")
        if sha256(source / name) != manifest["sha256"].get(name):
            raise DataError(
                f"{source / name} does not match its checksum: it was changed or damaged"
            )
    try:
        tensors = load_file(source / "weights.safetensors")
        items = pl.read_parquet(source / "items.parquet")
    except (SafetensorError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    return Artifact(
        kind=str(manifest["kind"]),
        name=str(manifest["name"]),
        config=dict(manifest["config"]),
        tensors=tensors,
        catalog=Catalog(
            item_ids=items["item_id"],
            n_users=int(manifest["n_users"]),
            attributes=items.drop("item_id") if items.width > 1 else None,
        ),
    )


def _require_replaceable(target: Path) -> None:
    try:
        manifest = read_document(target / "manifest.json")
    except (OSError, ValueError):
        manifest = {}
    if manifest.get("format") != _FORMAT:
        raise DataError(f"{target} exists and is not a saved model: choose another path")
    others = {path.name for path in target.iterdir()} - {*_FILES, "manifest.json"}
    if others:
        raise DataError(
            f"{target} holds a saved model and also {', '.join(sorted(others))}, which replacing "
            "it would delete: move that, or choose another path"
        )
