"""Final models: the settings and epochs that a run was measured with, trained on everything.

A run holds every user's newest items out, and so its model has never seen them. A final one has:
it takes the settings and, for every phase of training, the best epoch of a run, and there is
nothing left to stop by or to measure on. It may start from a fitted model, by raw id, and then
takes a share of the epochs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from diffuserec.data.splits import NOTHING_HELD_OUT
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Epoch
from diffuserec.models.methods import load, load_augmenter
from diffuserec.models.recommender import Recommender
from diffuserec.models.users import UserTable
from diffuserec.studies.run_directory import data_of, finished_run, identity_of, read_curve
from diffuserec.studies.run_file import Plan, Source
from diffuserec.training.progress import best_epoch

WARM_SHARE = 0.2
"""Share of the chosen epochs that a model is trained for which starts from a fitted one."""


def final_plan(
    run: Path | str,
    data: Path | str,
    *,
    start: Path | str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
) -> Plan:
    """Plan of a model that is trained on all of a log, as a finished run was.

    Args:
        run: whose methods, settings and epochs it takes. Of a run that stopped early, the epochs
            until the best.
        data: the prepared log, the run's or a newer one.
        start: a run whose model it starts from. Then each phase of the recommender has a fifth of
            its epochs, or as many as `run` had if that started from another.
        epochs: at most so many in each phase of the recommender.
        seed: by default that of the run.

    Raises:
        ConfigError: `run` started from another, so that its epochs are too few for a start from
            nothing; the model can't start from another; or less than one epoch.
        DataError: no finished run, or a part of it is missing or another's.
    """
    if epochs is not None and epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    source, found = finished_run(run)
    plan, model = found.plan, load(source / "model")
    if start is None and plan.start_from is not None:
        first = plan.settings_from.run if plan.settings_from else "the run that was measured"
        raise ConfigError(
            f"{run} started from another model, its epochs are too few for a start from nothing: "
            f"name {first}, or add --start"
        )
    before = f"{plan.augment} "
    chosen = chosen_epochs(read_curve(source / "curve.json"))
    own = {name: n for name, n in chosen.items() if not (plan.augment and name.startswith(before))}
    if start is not None and plan.start_from is None:
        own = {name: math.ceil(WARM_SHARE * n) for name, n in own.items()}
    if epochs is not None:
        own = {name: min(n, epochs) for name, n in own.items()}
    from_start = None
    if start is not None:
        place, other = finished_run(start)
        if not model.can_start:
            raise ConfigError(
                f"{plan.model} is fitted anew each time and starts from no other: leave out --start"
            )
        from_start = Source(str(place.resolve()), identity_of(place, other))
    settings = None
    if plan.augment is not None:
        settings = load_augmenter(source / "augmenter").chosen_settings()
    return Plan(
        data=str(Path(data).resolve()),
        model=plan.model,
        settings=model.chosen_settings(),
        augment=plan.augment,
        augment_settings=settings,
        split=NOTHING_HELD_OUT,
        seed=plan.seed if seed is None else seed,
        settings_from=plan.settings_from
        or Source(str(source.resolve()), identity_of(source, found)),
        epochs=chosen | own,
        start_from=from_start,
    )


def chosen_epochs(curve: Sequence[Epoch]) -> dict[str, int]:
    """Epochs of each phase of a curve until the best; all of them where none was validated."""
    phases: dict[str, list[Epoch]] = {}
    for epoch in curve:
        phases.setdefault(epoch.phase, []).append(epoch)
    found = {name: best_epoch(records) + 1 for name, records in phases.items()}
    return {name: n or len(phases[name]) for name, n in found.items()}


def model_to_start(plan: Plan) -> Recommender | None:
    """The model that a plan starts from, with the raw ids of its users if it knows users.

    Raises:
        DataError: the run is gone or has changed, or its data is gone and the model knows users.
    """
    if plan.start_from is None:
        return None
    source, found = finished_run(plan.start_from.run)
    if identity_of(source, found) != plan.start_from.identity:
        raise DataError(f"{source} is not the run any more that this one was to start from")
    model = load(source / "model")
    if any(isinstance(part, UserTable) for part in model.modules()):
        users = data_of(source, found).catalog.user_ids
        model.catalog = replace(model.catalog, user_ids=users)
    return model


def in_words(epochs: Mapping[str, int]) -> str:
    """Epochs of each phase, for people."""
    return ", ".join(f"{name} {n}" for name, n in epochs.items()) or "none"
