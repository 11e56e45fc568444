"""Settings of methods as a TOML file: what ``tune`` finds, and ``train --config`` and studies take.

model = "sasrec"
augment = "diffuasr"          # if any
trials = 20                   # different settings that were validated to choose these

[settings]
learning_rate = 0.002

[augment_settings]
n_items = 6
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from diffuserec.files import write_text
from diffuserec.studies.run_directory import Plan
from diffuserec.studies.study_file import StudyTable, read_study


class MethodConfig(StudyTable):
    """Content of the file."""

    model: str
    augment: str | None = None
    trials: int = Field(1, ge=1)
    settings: dict[str, Any] = Field({})
    augment_settings: dict[str, Any] = Field({})


def read_config(file: Path) -> MethodConfig:
    """A file of settings.

    Raises:
        ConfigError: it is missing, not TOML, or has a key that is not known.
    """
    return read_study(file, MethodConfig)


def write_config(file: Path, plan: Plan, *, comment: str, trials: int) -> None:
    """Writes the methods and settings of a plan."""
    lines = [f"# {comment}", f"model = {_toml(plan.model)}"]
    lines += [f"augment = {_toml(plan.augment)}"] * (plan.augment is not None)
    lines += [f"trials = {trials}", "", "[settings]"]
    lines += [f"{name} = {_toml(value)}" for name, value in plan.settings.items()]
    if plan.augment is not None:
        lines += ["", "[augment_settings]"]
        lines += [f"{k} = {_toml(v)}" for k, v in (plan.augment_settings or {}).items()]
    write_text(file, "\n".join(lines) + "\n")


def _toml(value: Any) -> str:
    """A value in TOML, whose strings, numbers, booleans and lists of these are JSON's."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps("none" if value is None else value, allow_nan=False)
