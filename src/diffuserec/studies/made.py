"""How a run came about, and what can be done with it next, for reports."""

import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuserec.evaluation import Evaluation, Leak
from diffuserec.reports.report import Made
from diffuserec.studies.epoch_log import seconds_of
from diffuserec.studies.run_directory import (
    Plan,
    RunDirectory,
    read_curve,
    read_leak,
    settings_by_log,
)
from diffuserec.studies.run_file import read_run_file

_FACTS = {
    "version": "diffuserec",
    "commit": "commit",
    "torch": "torch",
    "python": "Python",
    "platform": "machine",
    "device": "device",
    "precision": "precision",
    "threads": "threads",
}
"""Headings of what ``run.json`` says about a start."""


def made_of(run: RunDirectory) -> Made:
    """Settings, cost, place and command of a run, and what it was trained with."""
    plan, file = run.plan, read_run_file(run.path)
    last, curve = file.starts[-1], read_curve(run.path / "curve.json")
    # of a run that was resumed, the file has the seconds of its last part alone
    seconds = max(sum(file.seconds.values()), seconds_of(curve))
    fitted = run.path / "augmenter-curve.json"
    n_before = len(read_curve(fitted)) if fitted.exists() else 0
    return Made(
        settings=_settings(
            {**plan.settings, **settings_by_log(run)}, plan.augment, plan.augment_settings
        ),
        command=train_command(plan, str(run.path)),
        directory=str(run.path),
        epochs=len(curve) - n_before or None,
        seconds=seconds or None,
        facts=_facts(asdict(last)),
        leak=read_leak(run.path),
    )


def made_of_cell(document: Mapping[str, Any], out: Path) -> Made:
    """Settings, cost, place and environment of a finished cell of a study.

    Args:
        document: of the cell.
        out: directory of the study.
    """
    seconds, leak = sum(document["seconds"].values()), document.get("leak")
    run = out / document["run"]
    return Made(
        settings=_settings(
            {**document["settings"], **document["by_the_log"]},
            document["augment"],
            document["augment_settings"],
        ),
        directory=str(run) if run.is_dir() else None,  # a copy has no runs
        epochs=document["epochs"] or None,
        seconds=seconds if document["epoch_limit"] is not None else None,
        facts=_facts(document["environment"]),
        leak=None if leak is None else Leak.from_json(leak),
    )


def _settings(
    own: Mapping[str, Any], augment: str | None, theirs: Mapping[str, Any] | None
) -> dict[str, str]:
    settings = dict(own) | {f"{augment}.{name}": value for name, value in (theirs or {}).items()}
    return {name: _toml(value) for name, value in settings.items()}


def _facts(start: Mapping[str, Any]) -> dict[str, str]:
    return {
        heading: str(start[name]) for name, heading in _FACTS.items() if start[name] is not None
    }


def train_command(plan: Plan, out: str) -> str:
    """Command line that trains a plan into a directory, quoted for a shell."""
    words = ["diffuserec", "train", plan.data]
    if plan.is_final and plan.settings_from is not None:
        words += ["--final", plan.settings_from.run]
        if plan.start_from is not None:
            words += ["--start", plan.start_from.run]
        return shlex.join([*words, "--seed", str(plan.seed), "--out", out])
    words += ["--model", plan.model]
    for name, value in plan.settings.items():
        words += ["--set", f"{name}={_toml(value)}"]
    if plan.augment is not None:
        words += ["--augment", plan.augment]
    for name, value in (plan.augment_settings or {}).items():
        words += ["--augment-set", f"{name}={_toml(value)}"]
    if plan.split != "leave-one-out":
        words += ["--split", plan.split]
    if plan.seed:
        words += ["--seed", str(plan.seed)]
    return shlex.join([*words, "--out", out])


def next_steps(run: RunDirectory, result: Evaluation, n_seeds: int = 1) -> list[tuple[str, str]]:
    """What to do after a run, and the command that does it.

    Args:
        result: of the run.
        n_seeds: runs of its plan that there are.
    """
    path = str(run.path)
    steps = []
    if history := _history(run):
        asked = ["diffuserec", "recommend", path, "--history", history]
        steps.append(("Recommend with this model, here for a history of the log:", asked))
        if result.repeat_note is not None:
            steps.append(
                ("The same, if people come back to what they had:", [*asked, "--keep-seen"])
            )
    if result.repeat_note is not None:
        again = ["diffuserec", "evaluate", path, "--keep-seen"]
        steps.append(("Measure with seen items kept:", again))
    wider = ["diffuserec", "evaluate", path, "--metric", "HR@50", "--metric", "NDCG@50"]
    steps.append(("Measure longer lists:", wider))
    found = [(what, shlex.join(words)) for what, words in steps]
    if n_seeds == 1 and run.model.trained:
        other = f"{path}-seed{run.plan.seed + 1}"
        plan = replace(run.plan, seed=run.plan.seed + 1)
        compared = shlex.join(["diffuserec", "compare", path, other, "--out", f"{path}-seeds.html"])
        found.append(
            (
                "See how much another seed changes; from two on, tests count seeds:",
                f"{train_command(plan, other)}\n{compared}",
            )
        )
    return found


def _history(run: RunDirectory) -> str:
    """Raw ids of a user's newest items, as the command line takes them; empty if it cannot."""
    histories = run.split.test.histories
    for history in histories.select(np.arange(min(100, len(histories)))):
        ids = [str(raw) for raw in histories.catalog.decode(history[-3:])]
        if ids and all(raw and raw.strip() == raw and not set(raw) & set(',\n"') for raw in ids):
            return ",".join(ids)
    return ""


def _toml(value: Any) -> str:
    """A setting as the command line reads it: TOML, or plain text where that is no TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_quoted(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_quoted, value)) + "]"
    if not isinstance(value, str):
        return str(value)
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return _quoted(value)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _toml(value)
