"""Options that several commands have, and the reading of their text."""

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffuserec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from diffuserec.cluster import Cluster

Data = Annotated[Path, typer.Argument(help="A prepared dataset.")]
RunPath = Annotated[Path, typer.Argument(help="A finished run.")]
Out = Annotated[Path, typer.Option("--out", help="File or directory to write.")]
Page = Annotated[Path | None, typer.Option("--out", help="HTML file to write.")]
Seed = Annotated[int, typer.Option(help="Of initialization, order, dropout and noise.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    typer.Option(help="Where to compute; auto is cuda if there is one, else cpu."),
]
Precision = Annotated[
    Literal["fp32", "bf16"], typer.Option(help="bf16 runs matrix products in bfloat16.")
]
Moved = Annotated[
    Path | None, typer.Option("--data", help="Where the run's data is now, if it was moved.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")]
TableFormat = Annotated[
    Literal["text", "markdown", "latex", "csv", "html"], typer.Option("--format", help="Of tables.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Format = Annotated[
    str | None, typer.Option(help="csv, tsv, parquet, jsonl, inter, movielens, sequences or pairs.")
]
User = Annotated[str | None, typer.Option(help="Name of the column of user ids.")]
Item = Annotated[str | None, typer.Option(help="Name of the column of item ids.")]
Time = Annotated[str | None, typer.Option(help="Name of the column of times.")]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Names of the columns by position, for a file without a header: user,item,rating,time."
    ),
]
Encoding = Annotated[str | None, typer.Option(help="Of a text file, such as latin-1; else UTF-8.")]
LiteralIds = Annotated[
    bool,
    typer.Option(
        "--literal-ids", help="Take ids as they are: with blanks around them, null, 7.0 not as 7."
    ),
]
KeepSeen = Annotated[bool, typer.Option("--keep-seen", help="Do not filter seen items.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A hyper-parameter as name=value (none for no value); may be repeated."
    ),
]

Engine = Annotated[
    Literal["ray"] | None,
    typer.Option("--engine", help="ray: several processes, here or on a cluster."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes of --engine ray; else all cores or GPUs.")
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster's; else --engine ray starts its own here.")
]

SplitName = Annotated[
    str,
    typer.Option(
        "--split",
        help="How to divide the log: leave-one-out, leave-last:k=5, leave-basket, temporal, "
        "new-items, or with settings as in temporal:quantile=0.9,valid_quantile=0.9,target=last.",
    ),
]
SplitFile = Annotated[
    Path | None,
    typer.Option(help="A file of users, or of users, items and times, and the part of each."),
]


def chosen_split(split: str, split_file: Path | None) -> str:
    """The canonical name of the split that --split or --split-file chooses.

    Raises:
        ConfigError: both are given, or there is no such split.
        DataError: there is no such file.
    """
    from diffuserec.data import canonical_split, require_split

    if split_file is None:
        require_split(split)
        return canonical_split(split)
    if split != "leave-one-out":
        raise ConfigError("--split and --split-file are two splits: leave one out")
    return canonical_split(f"file:path={split_file}")


def require_free(out: Path | None, overwrite: bool) -> None:
    """Refuses an --out that exists, unless it may be overwritten."""
    if out is not None and out.exists() and not overwrite:
        raise DataError(f"{out} exists already: choose another --out, or add --overwrite")


AugmentSet = Annotated[
    list[str] | None,
    typer.Option(
        "--augment-set",
        help="A hyper-parameter of the augmenter, or of how its items are used (use_weight=0.3).",
    ),
]


def cluster_of(engine: str | None, workers: int | None, address: str | None) -> "Cluster | None":
    """Where --engine ray works; None without it.

    Raises:
        ConfigError: options of an engine without one.
    """
    if engine is None:
        if workers is not None or address is not None:
            raise ConfigError("--workers and --address are of --engine ray: add it")
        return None
    from diffuserec.cluster import Cluster

    return Cluster(workers, address)


def parse_pairs(pairs: list[str] | None) -> dict[str, Any]:
    """Hyper-parameters from their text: values are TOML, or else plain text."""
    settings = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"a setting is written name=value, got {pair!r}")
        try:
            settings[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = text
    return settings


def parse_names(text: str | None) -> list[str] | None:
    """Names of columns from text with commas between them; an empty one has no name."""
    return None if text is None else [part.strip() for part in text.split(",")]


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str, option: str) -> int:
    """Bytes from text such as ``4GiB``, ``512M`` or ``1e9``; units are powers of 1024.

    Raises:
        ConfigError: it is no such size.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    try:
        size = float(found[1]) * _UNITS[found[2]] if found else 0.0
    except ValueError:
        size = 0.0
    if not 1 <= size < 2**63:
        raise ConfigError(f"{option}: a size is written as 4GiB or 512MiB, got {text!r}")
    return int(size)


_FIELD = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,]*?))\s*(,|\Z)')


def parse_ids(text: str | None, option: str) -> list[str] | None:
    """Raw ids from one line of CSV: commas between them, quotes around an id that has one itself.

    Blanks around an id are left out, but not those inside of quotes; so are empty fields.

    Raises:
        ConfigError: quotes that do not end, or go on after their end.
    """
    if text is None:
        return None
    found, at, comma = [], 0, ","
    while comma:
        field = _FIELD.match(text, at)
        assert field is not None  # text without a comma matches in any case
        quoted, plain, comma = field.groups()
        if quoted is None and plain.startswith('"'):
            raise ConfigError(
                f"{option}: the quotes of {plain} are not closed: write an id with a comma as "
                '"Good, the Bad", and a quote inside of quotes twice'
            )
        found.append(plain if quoted is None else quoted.replace('""', '"'))
        at = field.end()
    return [raw for raw in found if raw]
