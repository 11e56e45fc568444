"""Prepared datasets on disk: a directory of arrays that are mapped, and frames of raw ids."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffuserec.data.catalog import Catalog
from diffuserec.data.dataset import SequenceDataset
from diffuserec.errors import DataError

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
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    np.save(work / "items.npy", dataset.items, allow_pickle=False)
    np.save(work / "offsets.npy", dataset.offsets, allow_pickle=False)
    np.save(work / "users.npy", dataset.users, allow_pickle=False)
    if dataset.has_synthetic:
        np.save(work / "synthetic.npy", dataset.synthetic, allow_pickle=False)
    if dataset.timestamps is not None:
        np.save(work / "timestamps.npy", dataset.timestamps, allow_pickle=False)
    dataset.catalog.item_ids.rename("item_id").to_frame().write_parquet(work / "item_ids.parquet")
    if dataset.catalog.user_ids is not None:
        dataset.catalog.user_ids.rename("user_id").to_frame().write_parquet(
            work / "user_ids.parquet"
        )
    if dataset.catalog.attributes is not None:
        dataset.catalog.attributes.write_parquet(work / "attributes.parquet")
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "n_users": dataset.catalog.n_users,
        "note": note or {},
    }
    (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    work.rename(target)


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
        text = (source / "manifest.json").read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{source} is not a prepared dataset: make one with 'diffuserec prepare LOG --out DATA'"
        ) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
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
