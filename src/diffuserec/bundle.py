"""Directories of files that belong together: saved models and prepared datasets.

    manifest.json       format, version, what the format asks for, the checksum of each file, and
                        the checksum of the manifest's own content
    NAME-DIGEST.EXT     the files, named after what they hold

A new directory is filled under another name and renamed. In one that stands already, the new
files are added, the manifest is replaced in one step, and the files that it does not name are
removed: whoever reads at any moment, or after a kill at any moment, finds the old content or the
new one. A reader whose files vanish reads the manifest again.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from diffuserec.errors import DataError
from diffuserec.files import (
    PATIENCE,
    flush_directory,
    is_sealed,
    leftovers,
    locked,
    new_directory,
    partial,
    put,
    read_document,
    real,
    sealed,
    sha256,
    telling,
)

Read = TypeVar("Read")

_MANIFEST = "manifest.json"
_ATTEMPTS = 20
"""Times that a reader begins anew because the directory is replaced meanwhile."""


@dataclass(frozen=True)
class BundleFormat:
    """One kind of directory.

    Attributes:
        name: what its manifest calls the format.
        version: of the format.
        title: what messages call it, as in "not a saved model".
        again: what to do with a damaged one, or one of another version.
        make: how to come by one.
        required: names of the files that it has.
        optional: names of files that it may have.
        keys: of the manifest, beside those of every bundle.
    """

    name: str
    version: int
    title: str
    again: str
    make: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    keys: tuple[str, ...]

    def write(
        self,
        path: Path,
        files: Mapping[str, Callable[[Path], object]],
        content: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        """Writes a directory; one of the same format at that path is replaced in one step.

        Args:
            files: for each file a function that writes it at the path that it is given.
            content: of the manifest.
            overwrite: whether to replace one.

        Raises:
            DataError: something stands there that is not to be replaced, `content` is not JSON, or
                nothing can be written there.
        """
        with locked(path, PATIENCE), telling(path):
            target = real(path)
            if not target.exists():
                with new_directory(path) as work:
                    self._fill(work, files, content)
                return
            if not overwrite:
                raise DataError(f"{path} exists already: choose another --out or remove it")
            self._require_replaceable(path)
            try:
                self._fill(target, files, content)
            finally:
                self._sweep(target)

    def read(self, path: Path, use: Callable[[dict[str, Any], dict[str, Path]], Read]) -> Read:
        """What a function makes of the manifest and the files, whose checksums were verified.

        Args:
            use: called with the manifest and the path of each file by its name; once more if the
                directory was replaced meanwhile.

        Raises:
            DataError: the directory is missing, foreign, of another version, incomplete or changed;
                says which file.
        """
        for attempt in range(_ATTEMPTS):
            manifest = self.manifest(path)
            try:
                return use(manifest, self._verified(path, manifest))
            except FileNotFoundError as error:
                if attempt == _ATTEMPTS - 1 or self.manifest(path) == manifest:
                    raise self.damaged(path, f"it lacks {Path(error.filename).name}") from error
        raise AssertionError

    def manifest(self, path: Path) -> dict[str, Any]:
        """The manifest of a directory, which fits its own checksum and has all keys.

        Raises:
            DataError: there is none of this format and version.
        """
        file = path / _MANIFEST
        if not path.exists():
            raise DataError(f"{path} does not exist, so it is not a {self.title}: {self.make}")
        if not path.is_dir():
            raise DataError(
                f"{path} is a file, and a {self.title} is a directory with {_MANIFEST} (pickles "
                "are never opened)"
            )
        try:
            manifest = read_document(file)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} holds no {_MANIFEST}, so it is not a {self.title}: {self.make}"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} cannot be read ({error}), so this is not a {self.title} or a damaged one: "
                f"{self.again}"
            ) from error
        found = manifest.get("format")
        if found != self.name:
            raise DataError(
                f"{path} holds {_short(found) if found else 'something else'}, not a "
                f"{self.title}: {self.make}"
            )
        version = manifest.get("version")
        if type(version) is not int or version != self.version:
            newer = type(version) is int and version > self.version
            raise DataError(
                f"{path} has {self.name.removeprefix('diffuserec-')} version {_short(version)}, "
                f"this release reads {self.version}: "
                + ("install the release that wrote it" if newer else self.again)
            )
        missing = {"files", "sha256", *self.keys} - manifest.keys()
        if missing:
            raise self.damaged(file, f"it lacks {', '.join(sorted(missing))}")
        if not is_sealed(manifest):
            raise self.damaged(file, "it does not match its own checksum: it was changed")
        return manifest

    def damaged(self, path: Path, why: str) -> DataError:
        """The error to raise for something in a directory that is not as it was written."""
        return DataError(f"{path} is damaged ({why}): {self.again}")

    def _verified(self, path: Path, manifest: Mapping[str, Any]) -> dict[str, Path]:
        listed = manifest["files"]
        if not isinstance(listed, dict):
            raise self.damaged(path / _MANIFEST, "files must be an object")
        names = set(self.required)
        if not names <= listed.keys() <= names | set(self.optional):
            raise self.damaged(path / _MANIFEST, "files names others than there should be")
        paths = {}
        for name, digest in listed.items():
            if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
                raise self.damaged(path / _MANIFEST, f"files: {name} has no checksum")
            file = path / _stored(name, digest)
            if file.exists() and not file.is_file():
                raise self.damaged(file, "it is not a file")
            try:
                found = sha256(file)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
            if found != digest:
                raise self.damaged(file, "it does not match its checksum: it was changed")
            paths[name] = file
        return paths

    def _fill(
        self,
        directory: Path,
        files: Mapping[str, Callable[[Path], object]],
        content: Mapping[str, Any],
    ) -> None:
        sums = {}
        for name, write in files.items():
            with partial(directory / name) as work:
                write(work)
                sums[name] = sha256(work)
                put(work, directory / _stored(name, sums[name]))
        flush_directory(directory)
        manifest = {"format": self.name, "version": self.version, **content, "files": sums}
        try:
            text = json.dumps(sealed(manifest), indent=2) + "\n"
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"what is kept with a {self.title} must be JSON: {error}") from error
        with partial(directory / _MANIFEST) as work:
            work.write_text(text, encoding="utf-8", newline="\n")
            put(work, directory / _MANIFEST)
        flush_directory(directory)

    def _is_ours(self, name: str) -> bool:
        """Whether a file has a name that this or an earlier version gives to a part of it."""
        for part in (*self.required, *self.optional):
            stem, _, ending = part.rpartition(".")
            if re.fullmatch(rf"{re.escape(stem)}(-[0-9a-f]{{16}})?\.{re.escape(ending)}", name):
                return True
        return False

    def _sweep(self, directory: Path) -> None:
        """Removes what the manifest does not name, and what killed writers left."""
        with suppress(OSError, ValueError):
            sums = read_document(directory / _MANIFEST)["files"]
            named = {_stored(name, digest) for name, digest in sums.items()}
            for file in directory.iterdir():
                if self._is_ours(file.name) and file.name not in named:
                    with suppress(OSError):  # Windows keeps what a reader has mapped
                        file.unlink()
            flush_directory(directory)

    def _require_replaceable(self, path: Path) -> None:
        try:
            found = read_document(path / _MANIFEST).get("format")
        except (OSError, ValueError):
            found = None
        if found != self.name:
            raise DataError(f"{path} exists and is not a {self.title}: choose another path")
        parts = [_MANIFEST, *self.required, *self.optional]
        rest = {file.name for part in parts for file in leftovers(real(path) / part)}
        others = [
            file.name
            for file in path.iterdir()
            if file.name not in {_MANIFEST, *rest} and not self._is_ours(file.name)
        ]
        if others:
            raise DataError(
                f"{path} holds a {self.title} and also {', '.join(sorted(others))}, which would "
                "be out of place beside a new one: move that, or choose another path"
            )


def _stored(name: str, digest: str) -> str:
    stem, _, ending = name.rpartition(".")
    return f"{stem}-{digest[:16]}.{ending}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
