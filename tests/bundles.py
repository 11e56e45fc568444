"""Saved models and prepared datasets, changed by hand in such a way that their checksums fit."""

import hashlib
import json
from pathlib import Path
from typing import Any


def part(directory: Path, name: str) -> Path:
    """The file of a directory that is named after its content, by the name without that."""
    stem, _, ending = name.rpartition(".")
    (found,) = directory.glob(f"{stem}-{'[0-9a-f]' * 16}.{ending}")
    return found


def sign(directory: Path, content: dict[str, Any] | None = None) -> None:
    """Makes all checksums fit: of the files as they are now, and of the manifest.

    Args:
        content: of the manifest; by default what it holds.
    """
    file = directory / "manifest.json"
    manifest = content if content is not None else json.loads(file.read_text(encoding="utf-8"))
    listed = manifest.get("files")
    for name in listed if isinstance(listed, dict) else ():
        stem, _, ending = name.rpartition(".")
        for old in directory.glob(f"{stem}-{'[0-9a-f]' * 16}.{ending}"):
            digest = hashlib.sha256(old.read_bytes()).hexdigest()
            old.rename(directory / f"{stem}-{digest[:16]}.{ending}")
            listed[name] = digest
    manifest.pop("sha256", None)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(manifest), encoding="utf-8")


def edit(directory: Path, **changes: Any) -> None:
    """Changes keys of the manifest, or removes those given as None, and signs it."""
    file = directory / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8")) | changes
    sign(directory, {key: value for key, value in manifest.items() if value is not None})
