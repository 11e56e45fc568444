"""Prepared datasets on disk: a directory of arrays that are mapped, and frames of raw ids."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from diffuserec.bundle import BundleFormat
from diffuserec.data.arrays import TYPES, blocks, map_array, write_array
from diffuserec.data.attributes import wrong_attributes
from diffuserec.data.catalog import Catalog
from diffuserec.data.columns import require_utf8
from diffuserec.data.dataset import SequenceDataset, fingerprint_of, offsets_of
from diffuserec.errors import DataError
from diffuserec.files import read_parquet

_FORMAT = BundleFormat(
    name="diffuserec-dataset",
    version=2,
    title="prepared dataset",
    again="prepare the log again",
    make="make one with 'diffuserec prepare LOG --out DATA'",
    required=("items.npy", "offsets.npy", "users.npy", "item_ids.parquet"),
    optional=(
        "synthetic.npy",
        "context_only.npy",
        "timestamps.npy",
        "user_ids.parquet",
        "attributes.parquet",
    ),
    keys=("n_users", "n_items", "note"),
)


def save_dataset(
    dataset: SequenceDataset,
    path: Path | str,
    note: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a dataset as a directory, complete or not at all; see ``SequenceDataset.save``."""
    if dataset.copies is not None:
        raise DataError("augmented copies are not saved: save without_copies(), and the augmenter")
    if dataset.use is not None:
        raise DataError(
            "how synthetic items are used is not saved: save with_use(None), and the augmenter"
        )
    require_utf8(Path(path))
    catalog, arrays = dataset.catalog, dataset.arrays()
    wrong = _wrong_frames(_frames(catalog))
    wrong = wrong or _wrong_arrays(arrays, catalog.vocab_size, catalog.n_users)
    if wrong:
        raise DataError(f"these sequences cannot be saved: {': '.join(wrong)}")
    _write(Path(path), arrays, {}, catalog, note or {}, overwrite)


def _write(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    files: Mapping[str, Callable[[Path], object]],
    catalog: Catalog,
    note: dict[str, Any],
    overwrite: bool,
) -> None:
    writers: dict[str, Callable[[Path], object]] = {
        f"{name}.npy": partial(write_array, array=array, kind=TYPES[name])
        for name, array in arrays.items()
    }
    writers |= files
    writers |= {f"{name}.parquet": f.write_parquet for name, f in _frames(catalog).items()}
    content = {"n_users": catalog.n_users, "n_items": catalog.n_items, "note": note}
    _FORMAT.write(path, writers, content, overwrite=overwrite)


def _frames(catalog: Catalog) -> dict[str, pl.DataFrame]:
    """The frames of a prepared dataset by name."""
    frames = {
        "item_ids": catalog.item_ids.to_frame("item_id"),
        "user_ids": None if catalog.user_ids is None else catalog.user_ids.to_frame("user_id"),
        "attributes": catalog.attributes,
    }
    return {name: frame for name, frame in frames.items() if frame is not None}


def save_files(
    path: Path | str,
    files: Mapping[str, Path],
    lengths: Int64[np.ndarray, " U"],
    catalog: Catalog,
    note: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Makes a prepared dataset of arrays that are on the disk already, and takes the files.

    Args:
        files: of ``items`` and the other arrays of interactions, right in every respect, on the
            disk of `path`.
        lengths: interactions of each user 0..U-1 of the catalog.

    Raises:
        DataError: the directory exists already, or nothing can be written there.
    """
    arrays = {"offsets": offsets_of(lengths), "users": np.arange(len(lengths))}
    writers: dict[str, Callable[[Path], object]] = {
        f"{name}.npy": file.replace for name, file in files.items()
    }
    _write(Path(path), arrays, writers, catalog, note, overwrite)


def load_dataset(path: Path | str) -> SequenceDataset:
    """Maps a prepared dataset from disk, once its checksums and its numbers were verified.

    Arrays are read as they are used. Verifying reads all files once, a few megabytes at a time.

    Raises:
        DataError: the directory is missing, incomplete, changed, or no prepared dataset; names the
            file.
    """
    source = Path(path)

    def use(manifest: dict[str, Any], files: dict[str, Path]) -> SequenceDataset:
        n_users, n_items = _counts(source, manifest)
        arrays, frames = {}, {}
        for name, file in files.items():
            stem = Path(name).stem
            try:
                if name.endswith(".npy"):
                    arrays[stem] = map_array(file, TYPES[stem])
                else:
                    frames[stem] = read_parquet(file, n_users if stem == "user_ids" else n_items)
            except FileNotFoundError:
                raise
            except (OSError, ValueError) as error:
                raise _FORMAT.damaged(file, str(error)) from error
        wrong = _wrong_frames(frames) or _wrong_arrays(arrays, n_items + 1, n_users)
        if wrong:
            name, why = wrong
            raise _FORMAT.damaged(files[name], why)
        filters = manifest["note"].get("filters")
        catalog = Catalog(
            item_ids=frames["item_ids"]["item_id"],
            n_users=n_users,
            user_ids=frames["user_ids"]["user_id"] if "user_ids" in frames else None,
            attributes=frames.get("attributes"),
            log=source.resolve().name,
            filters=filters if isinstance(filters, str) else None,
        )
        dataset = SequenceDataset.from_offsets(catalog=catalog, **arrays)
        sums = {name: manifest["files"][f"{name}.npy"] for name in arrays}
        vars(dataset)["fingerprint"] = fingerprint_of(catalog, sums)  # no need to read it all again
        return dataset

    return _FORMAT.read(source, use)


def dataset_manifest(path: Path | str) -> dict[str, Any]:
    """The manifest of a prepared dataset: format, version, and the note it was saved with.

    Raises:
        DataError: the directory holds no prepared dataset of a version that this release reads, or
            its manifest was changed.
    """
    manifest = _FORMAT.manifest(Path(path))
    _counts(Path(path), manifest)
    return manifest


def _counts(source: Path, manifest: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of users and items of a manifest, whose keys have the types that they must have."""
    file = source / "manifest.json"
    for name in ("n_users", "n_items"):
        value = manifest[name]
        if type(value) is not int or not 0 <= value < 2**31:
            raise _FORMAT.damaged(file, f"{name} is no count")
    if not isinstance(manifest["note"], dict):
        raise _FORMAT.damaged(file, "note is no object")
    return manifest["n_users"], manifest["n_items"]


def _wrong_frames(frames: Mapping[str, pl.DataFrame]) -> tuple[str, str] | None:
    """The first frame that is not as it should be, and why; None if all are."""
    for name, column in (("item_ids", "item_id"), ("user_ids", "user_id")):
        frame = frames.get(name)
        why = None if frame is None else wrong_ids(frame, column)
        if why:
            return f"{name}.parquet", why
    attributes = frames.get("attributes")
    why = None if attributes is None else wrong_attributes(attributes)
    return None if why is None else ("attributes.parquet", why)


def wrong_ids(frame: pl.DataFrame, column: str) -> str | None:
    """Why a column does not hold raw ids: integers or strings, each once; None if it does."""
    if column not in frame.columns:
        return f"it has no column {column}"
    ids = frame[column]
    if not (ids.dtype.is_integer() or ids.dtype == pl.String):
        return f"{column} holds {ids.dtype}, not integers or strings"
    if ids.null_count():
        return f"{column} has gaps"
    ascending = ids.is_sorted() and not (ids == ids.shift()).any()
    if not ascending and ids.n_unique() < len(ids):
        return f"{column} has an id twice"
    return None


def _wrong_arrays(
    arrays: Mapping[str, np.ndarray], vocab_size: int, n_users: int
) -> tuple[str, str] | None:
    """The first array whose numbers cannot be, and why; None if all can."""
    items, offsets, users = (arrays[name] for name in ("items", "offsets", "users"))
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items):
        return "offsets.npy", f"it does not go from 0 to the {len(items):,} items"
    if bool((offsets[1:] < offsets[:-1]).any()):
        return "offsets.npy", "it does not ascend"
    if len(users) != len(offsets) - 1:
        return "users.npy", f"it has {len(users):,} users, not {len(offsets) - 1:,}"
    if len(users) and not (users.min() >= 0 and users.max() < n_users):
        return "users.npy", f"its numbers do not lie in 0..{n_users - 1}"
    ascending = bool((users[1:] > users[:-1]).all())
    if not ascending and len(np.unique(users)) < len(users):
        return "users.npy", "it has a user twice"
    for block in blocks(items):
        if not (block.min() >= 1 and block.max() < vocab_size):
            return "items.npy", f"its numbers do not lie in 1..{vocab_size - 1}"
    for name in ("synthetic", "context_only", "timestamps"):
        if name in arrays and len(arrays[name]) != len(items):
            return f"{name}.npy", f"it has {len(arrays[name]):,} entries, not {len(items):,}"
    for name in ("synthetic", "context_only"):
        for block in blocks(arrays.get(name, np.zeros(0, dtype=bool))):
            if block.view(np.uint8).max() > 1:
                return f"{name}.npy", "it holds others than true and false"
    return None
