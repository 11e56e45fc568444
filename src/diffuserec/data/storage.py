"""Prepared datasets on disk: a directory of arrays that are mapped, and frames of raw ids."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffuserec.data.catalog import Catalog
from diffuserec.data.dataset import SequenceDataset
from diffuserec.errors import DataError
from diffuserec.files import new_directory, read_document, write_json

_FORMAT = "diffuserec-dataset"
_VERSION = 1


def save_dataset(
    dataset: SequenceDataset, path: Path | str, note: dict[str, Any] | None = None
) -> None:
    """Writes a dataset as a directory, complete or not at all; see ``SequenceDataset.save``."""
    if dataset.copies is not None:
        raise DataError("augmented copies are not saved: save without_copies(), and the augmenter")
    target = Path(path)
    if target.exists():
        raise DataError(f"{target} exists already: choose another --out or remove it")
    catalog = dataset.catalog
    arrays = {"items": dataset.items, "offsets": dataset.offsets, "users": dataset.users}
    if dataset.has_synthetic:
        arrays["synthetic"] = dataset.synthetic
    if dataset.timestamps is not None:
        arrays["timestamps"] = dataset.timestamps
    frames = {
        "item_ids": catalog.item_ids.to_frame("item_id"),
        "user_ids": None if catalog.user_ids is None else catalog.user_ids.to_frame("user_id"),
        "attributes": catalog.attributes,
    }
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "n_users": catalog.n_users,
        "note": note or {},
    }
    with new_directory(target) as work:
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array, allow_pickle=False)
        for name, frame in frames.items():
            if frame is not None:
                frame.write_parquet(work / f"{name}.parquet")
        write_json(work / "manifest.json", manifest)


def load_dataset(path: Path | str) -> SequenceDataset:
    """Maps a prepared dataset from disk; arrays are read as they are used.

    Raises:
        DataError: the directory is missing, incomplete, damaged, or no prepared dataset.
    """
    source = Path(path)
    manifest = dataset_manifest(source)
    try:
        arrays = {
            name: np.load(source / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("items", "offsets", "users", "synthetic", "timestamps")
            if name in ("items", "offsets", "users") or (source / f"{name}.npy").exists()
        }
        frames = {
            name: pl.read_parquet(source / f"{name}.parquet")
            for name in ("item_ids", "user_ids", "attributes")
            if name == "item_ids" or (source / f"{name}.parquet").exists()
        }
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source} is damaged ({error}): prepare the log again") from error
    n = len(arrays["items"])
    if (
        len(arrays["offsets"]) != len(arrays["users"]) + 1
        or arrays["offsets"][-1] != n
        or any(len(arrays[name]) != n for name in ("synthetic", "timestamps") if name in arrays)
    ):
        raise DataError(f"{source} is damaged (its arrays do not fit): prepare the log again")
    catalog = Catalog(
        item_ids=frames["item_ids"]["item_id"],
        n_users=int(manifest["n_users"]),
        user_ids=frames["user_ids"]["user_id"] if "user_ids" in frames else None,
        attributes=frames.get("attributes"),
    )
    return SequenceDataset.from_offsets(catalog=catalog, **arrays)


def dataset_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of a prepared dataset: format, version, and the note it was saved with.

    Raises:
        DataError: the directory holds no prepared dataset of a version that this release reads.
    """
    source = Path(path)
    try:
        manifest = read_document(source / "manifest.json")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source} is not a prepared dataset: make one with 'diffuserec prepare LOG --out DATA'"
        ) from error
    found = manifest.get("format")
    if found != _FORMAT:
        raise DataError(
            f"{source} holds {found or 'something else'}, not a prepared dataset: "
            "make one with 'diffuserec prepare LOG --out DATA'"
        )
    if manifest.get("version") != _VERSION:
        raise DataError(
            f"{source} has dataset version {manifest.get('version')}, this release reads "
            f"{_VERSION}: prepare the log again"
        )
    return manifest
