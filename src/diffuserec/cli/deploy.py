"""Commands from the winner to production: final models, updates, exports."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffuserec.cli import options, show
from diffuserec.cli.training import resumable
from diffuserec.errors import ConfigError

if TYPE_CHECKING:
    from diffuserec.studies.run_directory import Plan


def update(
    run: options.RunPath,
    log: Annotated[Path, typer.Argument(help="What came after the run's log.")],
    out: options.Out,
    full: Annotated[
        bool, typer.Option("--full", help="LOG is the whole log, with what the run has seen.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(help="At most so many epochs a phase; else a fifth of the run's.")
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="File of all items, as of 'diffuserec prepare'.")
    ] = None,
    data_out: Annotated[
        Path | None, typer.Option(help="Directory of the longer log; else OUT-data.")
    ] = None,
    format: options.Format = None,
    user: options.User = None,
    item: options.Item = None,
    time: options.Time = None,
    columns: options.Columns = None,
    encoding: options.Encoding = None,
    where: Annotated[str | None, typer.Option(help="Keep only rows for which it is true.")] = None,
    data: options.Moved = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Brings a run up to date with a newer log: a final model that starts from the run's.

    LOG is read as the run's log was prepared; options say what has changed. It is put behind the
    run's data as a new prepared dataset, and a model trained on all of it for a fifth of the
    epochs, started from the run's, new items and users added. RUN stays as it is. After an
    interruption the same command goes on.

    Examples:

        diffuserec update runs/monday tuesday.csv --out runs/tuesday
        diffuserec update runs/monday all.csv --full --out runs/tuesday
        diffuserec compare runs/monday runs/tuesday --newest wednesday.csv
    """
    from diffuserec.studies.run_directory import is_complete, is_free
    from diffuserec.studies.train_run import silent
    from diffuserec.studies.update import update_plan, updated_data

    given = {
        "format": format,
        "user": user,
        "item": item,
        "time": time,
        "columns": options.parse_names(columns),
        "encoding": encoding,
        "where": where,
    }
    if is_complete(out) and not overwrite:
        raise ConfigError(f"{out} holds a finished run: choose another --out, or add --overwrite")
    prepared = updated_data(
        run,
        log,
        data_out or out.with_name(f"{out.name}-data"),
        full=full,
        items=items,
        data=data,
        options=given,
        overwrite=overwrite,
        say=silent if as_json else show.say,
    )
    plan = update_plan(run, prepared, epochs)
    resume = not (overwrite or is_free(out))
    train_final(plan, out, device, precision, resume, overwrite, None, as_json)


def export(
    model: Annotated[Path, typer.Argument(help="A finished run, or a saved model.")],
    to: Annotated[
        Literal["onnx", "torch-export", "vectors"],
        typer.Option("--to", help="A graph for ONNX Runtime or torch.export, or item vectors."),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write: .onnx, .pt2 or .parquet.")],
    as_json: options.AsJson = False,
) -> None:
    """Writes a model for other runtimes, or its item vectors for other systems.

    A graph takes item numbers, right-padded, and lengths, and gives states and scores; noise is an
    input. It is held against the model at other sizes before it is kept. OUT.json says what the
    numbers mean, with the raw ids in their order. Vectors are Parquet of raw id and vector, with an
    exact index of faiss beside if that is installed. ONNX needs diffuserec[export].

    Examples:

        diffuserec export runs/final --to onnx --out sasrec.onnx
        diffuserec export runs/final --to torch-export --out sasrec.pt2
        diffuserec export runs/final --to vectors --out items.parquet
    """
    from diffuserec.serving.export import export as write

    found = write(model, to, out)
    if as_json:
        show.print_json({"files": list(map(str, found.files)), "difference": found.difference})
        return
    show.print_line(f"written: {', '.join(map(str, found.files))}")
    if found.difference is not None:
        show.print_line(f"differs from the model by {found.difference:.1e} at most, at 3 sizes")


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
    from diffuserec.studies.train_run import silent, train_along, train_run
    from diffuserec.training import parallel

    runtime = Runtime(device, precision, progress=None if as_json else True, resume=resume)
    if not parallel.is_first():
        train_along(plan, out, runtime)
        return
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
