"""Commands from the winner to production: final models, updates, exports."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuserec.cli import show
from diffuserec.cli.training import resumable

if TYPE_CHECKING:
    from diffuserec.studies.run_directory import Plan


def train_final(
    plan: "Plan",
    out: Path,
    device: Any,
    precision: Any,
    resume: bool,
    overwrite: bool,
    track: list[str] | None,
    as_json: bool,
) -> None:
    """Trains a final model and says whose settings it has."""
    from diffuserec.models.base import Runtime
    from diffuserec.studies.final import in_words
    from diffuserec.studies.train_run import silent, train_run

    runtime = Runtime(device, precision, progress=None if as_json else True, resume=resume)
    with resumable(out, "add --resume to the same command"):
        train_run(
            plan,
            out,
            runtime,
            overwrite=overwrite,
            track=track or (),
            say=silent if as_json else show.say,
        )
    found = plan.document()
    facts = {"out": str(out), **{k: found.get(k) for k in ("data", "settings_from", "epochs")}}
    if as_json:
        show.print_json({**facts, "start_from": found.get("start_from")})
        return
    begun = "" if plan.start_from is None else f"; started from {plan.start_from.run}"
    assert plan.settings_from is not None
    show.print_line(
        f"final model: {out}; settings of {plan.settings_from.run}; "
        f"epochs: {in_words(plan.epochs or {})}{begun}"
    )
    show.print_line("trained on everything, so there is nothing to measure it on")
