"""Study files: TOML whose tables have known keys, checked before anything is trained."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from diffuserec.errors import ConfigError, did_you_mean


class StudyTable(BaseModel):
    """A table of a study file; its fields are the keys."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, table: Any) -> Any:
        known = list(cls.model_fields)
        for key in table if isinstance(table, dict) else ():
            if key not in known:
                hint = did_you_mean(key, known)
                raise ValueError(f"unknown key {key!r}{hint}; there are: {', '.join(known)}")
        return table


Table = TypeVar("Table", bound=StudyTable)


def read_study(file: Path, schema: type[Table]) -> Table:
    """Content of a study file.

    Raises:
        ConfigError: the file is missing or not TOML, or a key is unknown, missing or wrong.
    """
    try:
        return schema(**tomllib.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {file}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        explained = first["type"] in ("missing", "value_error")
        got = "" if explained else f", got {first['input']!r}"
        raise ConfigError(f"{file}: {where}{message}{got}") from error


def _different_whole_numbers(seeds: Any) -> Any:
    whole = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(
            f"seeds must be a list of different whole numbers, like [0, 1, 2], got {seeds}"
        )
    return seeds


Seeds = Annotated[list[int], BeforeValidator(_different_whole_numbers)]


def slug(name: str) -> str:
    """A name in lower case, with hyphens for all but letters and digits: part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-").replace("---", "-")
