"""Files that other programs have fetched: where Cornac, DataRec and LensKit keep theirs.

Cornac unpacks into ``~/.cornac`` and keeps no archive; DataRec keeps the owner's files under the
system's folder of caches, or ``DATAREC_CACHE_DIR``; LensKit's ``data fetch`` writes into ``data``
of the working folder.
"""

import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_DEPTH = 6
_MOST_FILES = 20_000


def places() -> dict[str, Path]:
    """Folder of each program, whether it is there or not."""
    home = Path.home()
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
        cache = local / "sisinflab" / "datarec" / "Cache"
    elif sys.platform == "darwin":
        cache = home / "Library" / "Caches" / "datarec"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "datarec"
    return {
        "Cornac": home / ".cornac",
        "DataRec": Path(os.environ.get("DATAREC_CACHE_DIR") or cache),
        "LensKit": Path("data"),
    }


def named(names: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Files of some names in those folders, with the program that keeps each."""
    for program, folder in places().items():
        for path in _below(folder):
            if path.name in names:
                yield program, path


def _below(folder: Path) -> Iterator[Path]:
    n_files = 0
    for root, folders, names in os.walk(folder):
        if len(Path(root).relative_to(folder).parts) >= _DEPTH:
            folders.clear()
        for name in names:
            n_files += 1
            if n_files > _MOST_FILES:
                return
            yield Path(root) / name
