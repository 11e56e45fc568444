"""The data sets that can be fetched: what ``sets.toml`` says of each."""

import tomllib
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict

from diffuserec.errors import ConfigError, did_you_mean


class DataSet(BaseModel):
    """A public data set.

    Attributes:
        name: under which it is fetched.
        title: what it is, in a line.
        page: of its owner.
        terms: of use, in a line.
        file: name of the file that is fetched; ``.zip``, ``.tar`` and ``.tar.gz`` are unpacked.
        urls: addresses of the file, the owner's first.
        by_hand: what to fetch from the page where the owner wants terms accepted there.
        size: bytes of the file.
        sha256, md5: checksums of the file; both are compared.
        checksum_from: where size and checksums were published.
        log: path of the log in the archive, or name of the file to prepare.
        items: path of the file of items in the archive.
        unpacked_size, unpacked_sha256, unpacked_md5: of the log, where other programs keep that
            alone.
        literals: for a file of one Python literal a line: columns to write, by key of the literal.
        prepare: options of ``diffuserec prepare`` for the log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    page: str
    terms: str
    file: str
    urls: tuple[str, ...] = ()
    by_hand: str = ""
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    checksum_from: str = ""
    log: str
    items: str | None = None
    unpacked_size: int | None = None
    unpacked_sha256: str | None = None
    unpacked_md5: str | None = None
    literals: dict[str, str] = {}
    prepare: str = ""

    @property
    def sums(self) -> dict[str, str]:
        """Checksums of the file by the name of their algorithm; empty if none is known."""
        return _known(sha256=self.sha256, md5=self.md5)

    @property
    def unpacked_sums(self) -> dict[str, str]:
        """Checksums of the log that the archive holds, as :attr:`sums`."""
        return _known(sha256=self.unpacked_sha256, md5=self.unpacked_md5)

    @property
    def archived(self) -> bool:
        """Whether the file is an archive."""
        return self.file.endswith((".zip", ".tar", ".tar.gz"))


def data_sets() -> dict[str, DataSet]:
    """All data sets by name, in the order of the file."""
    text = files(__package__).joinpath("sets.toml").read_text(encoding="utf-8")
    found = {}
    for family in tomllib.loads(text)["family"]:
        shared = {key: value for key, value in family.items() if key != "sets"}
        for name, own in family["sets"].items():
            fields = {**shared, **own}
            part = fields.pop("part", "")
            found[name] = DataSet(name=name, **{k: _filled(v, part) for k, v in fields.items()})
    return found


def data_set(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        ConfigError: there is none.
    """
    known = data_sets()
    if name not in known:
        raise ConfigError(
            f"no data set {name!r}{did_you_mean(name, [*known, 'shop'])}: 'diffuserec data list' "
            "has their names"
        )
    return known[name]


def _filled(value: Any, part: str) -> Any:
    if isinstance(value, list):
        return [_filled(each, part) for each in value]
    return value.replace("{part}", part) if isinstance(value, str) else value


def _known(**sums: str | None) -> dict[str, str]:
    return {algorithm: value for algorithm, value in sums.items() if value}
