"""A final model in one call: what ``diffuserec train --final`` does, from Python."""

from pathlib import Path

from diffuserec.models.base import Runtime
from diffuserec.models.recommender import Recommender
from diffuserec.studies.final import final_plan
from diffuserec.studies.train_run import train_run


def refit(
    run: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    start: Path | str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    runtime: Runtime | None = None,
    overwrite: bool = False,
) -> Recommender:
    """Trains a finished run's method on all of a log, with the settings and epochs of the run.

    Args:
        run: directory of the run.
        data: directory of a prepared log, the run's or a newer one.
        out: directory that the final run is written to; after an interruption the same call with
            ``Runtime(resume=True)`` goes on.
        start: directory of a run whose model to start from, items and users matched by raw id.
            Then a fifth of the epochs are trained.
        epochs: at most so many in each phase of the recommender.
        seed: of initialization, order, dropout and noise; by default that of `run`.
        runtime: device and the like.
        overwrite: replace a run at `out`, once this one has finished.

    Returns:
        The fitted model; ``load(out)`` reads it back.

    Raises:
        ConfigError: `run` started from another model and `start` is missing, the model can't start
            from another, or `out` holds another run.
        DataError: no finished run, or the data can't be used.
    """
    plan = final_plan(run, data, start=start, epochs=epochs, seed=seed)
    return train_run(plan, out, runtime or Runtime(), overwrite=overwrite).model
