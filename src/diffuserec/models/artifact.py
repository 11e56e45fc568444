"""A trained method as a directory: manifest, weights, vocabulary. No pickle, ever.

    model/
      manifest.json              format, version, kind, name, config, and checksums of everything
      weights-DIGEST.safetensors the state dict
      items-DIGEST.parquet       raw item ids and attributes, in the order of the item table

At every moment the old or the new model stands under the final name, and nothing half-written
(:mod:`diffuserec.bundle`). Loading verifies every checksum before it opens a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffuserec.bundle import BundleFormat
from diffuserec.data import Catalog
from diffuserec.data.attributes import wrong_attributes
from diffuserec.data.storage import wrong_ids
from diffuserec.files import read_parquet

_WEIGHTS, _ITEMS = "weights.safetensors", "items.parquet"

FORMAT = BundleFormat(
    name="diffuserec-model",
    version=4,
    title="saved model",
    again="train it again, or copy it again from where it is whole",
    make="give the directory that save() or train wrote",
    required=(_WEIGHTS, _ITEMS),
    optional=(),
    keys=("kind", "name", "config", "n_users"),
)


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
        DataError: something that is not a model directory stands there, or more than a model; or
            nothing can be written there.
    """
    # tied weights would be refused by safetensors: write each tensor on its own
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in artifact.tensors.items()
    }
    frame = artifact.catalog.item_ids.to_frame("item_id")
    if artifact.catalog.attributes is not None:
        frame = frame.hstack(artifact.catalog.attributes.drop("item_id", strict=False))
    content = {
        "kind": artifact.kind,
        "name": artifact.name,
        "config": artifact.config,
        "n_users": artifact.catalog.n_users,
    }
    files = {_WEIGHTS: lambda work: write_tensors(tensors, work), _ITEMS: frame.write_parquet}
    FORMAT.write(Path(path), files, content, overwrite=True)


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors to a new file, which gets the rights that a new file has there.

    safetensors makes files that their owner alone can read: a service of another user, such as one
    in a container, could not load the model.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata)
    path.chmod(mode)


def read_artifact(path: Path | str) -> Artifact:
    """Reads a model directory after checking that it is complete and untouched.

    Raises:
        DataError: it is missing, foreign, of another version, or a file was changed; says which.
    """
    source = Path(path)

    def use(manifest: dict[str, Any], files: dict[str, Path]) -> Artifact:
        _require_types(source / "manifest.json", manifest)
        try:
            tensors = load_file(files[_WEIGHTS])
        except SafetensorError as error:
            raise FORMAT.damaged(files[_WEIGHTS], f"it cannot be read: {error}") from error
        counts = tensors.get("popularity")
        if counts is None or counts.ndim != 1 or not len(counts) or bool((counts < 0).any()):
            raise FORMAT.damaged(files[_WEIGHTS], "popularity holds no counts of the items")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise FORMAT.damaged(files[_WEIGHTS], f"{name} holds numbers that are not finite")
        try:
            items = read_parquet(files[_ITEMS], height=len(counts) - 1)
        except ValueError as error:
            raise FORMAT.damaged(files[_ITEMS], str(error)) from error
        wrong = wrong_ids(items, "item_id") or wrong_attributes(items)
        if wrong:
            raise FORMAT.damaged(files[_ITEMS], wrong)
        return Artifact(
            kind=manifest["kind"],
            name=manifest["name"],
            config=manifest["config"],
            tensors=tensors,
            catalog=Catalog(
                item_ids=items["item_id"],
                n_users=manifest["n_users"],
                attributes=items.drop("item_id") if items.width > 1 else None,
            ),
        )

    return FORMAT.read(source, use)


def _require_types(file: Path, manifest: Mapping[str, Any]) -> None:
    for name, kind in (("kind", str), ("name", str), ("config", dict), ("n_users", int)):
        if type(manifest[name]) is not kind:
            raise FORMAT.damaged(file, f"{name} is not of its type")
    if not 0 <= manifest["n_users"] < 2**31:
        raise FORMAT.damaged(file, "n_users is no count")
