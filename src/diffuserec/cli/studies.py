"""Commands about many runs: study, reproduce, results."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffuserec.cli import options, show
from diffuserec.errors import ConfigError

DataDirectory = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Directory of the study's data sets by name; or one log or dataset to use instead.",
        envvar="DIFFUSEREC_DATA",
    ),
]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Instead of the file's: 0,1,2.")]
SetOf = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of a method in all rows: sasrec.epochs=5; repeatable."),
]
Only = Annotated[list[str] | None, typer.Option(help="A row to fill, others wait; repeatable.")]
On = Annotated[list[str] | None, typer.Option(help="A data set to fill, others wait; repeatable.")]
Budget = Annotated[
    Literal["small", "full"], typer.Option(help="small: a quick check that all of it runs.")
]
ShownPart = Annotated[
    Literal["test", "valid"] | None,
    typer.Option("--split", help="valid never looks at the test part; else as the file says."),
]
WorkerCount = Annotated[
    int | None, typer.Option("--workers", help="Processes of one thread each; else all cores.")
]


@dataclass(frozen=True)
class StudyOptions:
    """Options of a command that fills a study, as its parameters."""

    out: options.Out
    data: DataDirectory = Path("data")
    seeds: Seeds = None
    settings: SetOf = None
    only: Only = None
    on: On = None
    budget: Budget = "full"
    split: ShownPart = None
    workers: WorkerCount = None
    engine: options.Engine = None
    address: options.Address = None
    device: options.Device = "auto"
    precision: options.Precision = "fp32"
    as_json: options.AsJson = False


def _with_study_options(command: Callable[[Any, StudyOptions], None]) -> Callable[..., None]:
    """A command of an argument and :class:`StudyOptions`, with each option as a parameter."""
    argument, _ = inspect.signature(command).parameters.values()
    found = [argument, *inspect.signature(StudyOptions).parameters.values()]

    @wraps(command)
    def called(**given: Any) -> None:
        command(given.pop(argument.name), StudyOptions(**given))

    keywords = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in found]
    called.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in found}
    return called


@_with_study_options
def study(
    file: Annotated[Path, typer.Argument(help="A study file (TOML).")], given: StudyOptions
) -> None:
    """Trains and measures all rows of a study file on all its data; again to continue.

    What is finished is kept, whatever stopped the study. Its directory holds a file for each cell
    (a row, a data set, a seed), the tables, and a report to look at. Status 1 says that a row
    failed.

    Examples:

        diffuserec study experiments/beauty.toml --out runs/beauty
        diffuserec study mine.toml --data data/clicks --out runs/mine
        diffuserec study mine.toml --out runs/mine --set sasrec.dim=32
        diffuserec study mine.toml --out runs/mine --only SASRec --on clicks
        diffuserec study mine.toml --out runs/quick --budget small
        diffuserec study mine.toml --out runs/mine --engine ray --workers 8
    """
    _run(file, given)


@_with_study_options
def reproduce(
    name: Annotated[str, typer.Argument(help="A table or figure, such as diffrec-table2.")],
    given: StudyOptions,
) -> None:
    """Makes a table or figure of a paper anew: measured beside published.

    A data set that is not there is left out, with a line that says where it comes from. 'small'
    is a check that ends in half an hour, not a result. Status 1 says that a row failed.

    Examples:

        diffuserec reproduce simdiffrec-table2 --data data --out runs/table2
        diffuserec reproduce diffuasr-figure6 --budget small --out runs/figure6
    """
    from diffuserec.studies.papers import data_names, data_table, paper_study

    if name in data_names():
        records, notes = data_table(name, given.data, given.out, show.say)
        for note in notes:
            show.say(note)
        show.records(records, given.as_json)
        return
    _run(paper_study(name), given)


def tune(
    data: options.Data,
    model: Annotated[str, typer.Option(help="A recommender; 'diffuserec models' lists them.")],
    out: options.Out,
    trials: Annotated[int, typer.Option(help="Settings to try in all, the defaults first.")] = 30,
    augment: Annotated[str | None, typer.Option(help="An augmenter, tuned along.")] = None,
    settings: options.Set = None,
    augment_settings: options.AugmentSet = None,
    split: options.SplitName = "leave-one-out",
    split_file: options.SplitFile = None,
    seed: options.Seed = 0,
    workers: WorkerCount = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
) -> None:
    """Searches settings on validation alone; again to continue. Needs diffuserec[tune].

    What is given by --set is fixed; 'diffuserec models NAME' says what is searched, and where.

    Examples:

        diffuserec tune data/clicks --model sasrec --trials 20 --out runs/tune
        diffuserec train data/clicks --config runs/tune/best.toml --out runs/best
    """
    from diffuserec.cli.training import resumable
    from diffuserec.models.base import Runtime
    from diffuserec.studies.run_directory import Plan
    from diffuserec.studies.tune import tune as search

    if augment_settings and not augment:
        raise ConfigError("--augment-set needs --augment NAME")
    plan = Plan(
        str(data.resolve()),
        model,
        options.parse_pairs(settings),
        augment,
        options.parse_pairs(augment_settings) if augment else None,
        options.chosen_split(split, split_file),
        seed,
    )
    runtime = Runtime(device=device, precision=precision, seed=seed)
    with resumable(out):
        found = search(plan, out, trials, runtime, workers=workers, say=show.say)
    best = next(trial for trial in found.trials if trial.number == found.best)
    show.facts(
        f"best of {len(found.trials)} trials, validation NDCG@10",
        {
            "best": f"{best.valid:.4f}",
            "defaults": found.defaults,
            **{name: str(value) for name, value in best.settings.items()},
        },
    )
    show.print_line(f"settings: {out / 'best.toml'}, report: {out / 'report.html'}")


def results(
    studies: Annotated[list[Path], typer.Argument(help="Directories of studies, or copies.")],
    format: options.TableFormat = "text",
    into: Annotated[
        Path | None,
        typer.Option(help="A Markdown page that marks where the tables go."),
    ] = None,
    copy: Annotated[
        Path | None,
        typer.Option(
            "--copy", help="Directory to copy the results to: small, and enough to continue them."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A column, else those of the study; repeatable.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Directory to write the figures to, named after each study, as SVG."),
    ] = None,
    together: Annotated[
        bool, typer.Option("--side-by-side", help="One table of all studies, a column a log.")
    ] = False,
) -> None:
    """Prints the tables of studies that were run, or puts them into a page; trains nothing.

    A page names the place of a study's tables in comments; docs/studies.md shows how.

    Examples:

        diffuserec results runs/beauty --format latex
        diffuserec results runs/beauty --copy docs/results/beauty
        diffuserec results docs/results/beauty --into docs/results.md
        diffuserec results docs/results/regimes --figures docs/figures
        diffuserec results runs/a runs/b --side-by-side
    """
    from diffuserec.studies.copies import copy_results
    from diffuserec.studies.results import fill_page, read_results
    from diffuserec.studies.tables import side_by_side, tables, write_curves

    if figures is not None:
        for path in studies:
            write_curves(read_results(path), figures, f"{path.resolve().name}-")
        show.say(f"figures: {figures}")
    elif copy is not None:
        if len(studies) != 1:
            raise ConfigError("--copy takes one study")
        copy_results(studies[0], copy)
        show.say(f"results: {copy}")
    elif together:
        text = side_by_side(
            [read_results(path) for path in studies], _format(format, into), metric or ()
        )
        if into is None:
            show.print_text(text)
        else:
            fill_page(into, "side by side", text)
            show.say(f"filled: {into}")
    elif into is not None:
        for path in studies:
            fill_page(into, path.resolve().name, tables(read_results(path), "markdown", metric))
        show.say(f"filled: {into}")
    else:
        for path in studies:
            show.print_text(tables(read_results(path), format, metric))


def _format(format: str, into: Path | None) -> str:
    return format if into is None else "markdown"


def _run(file: Path, given: StudyOptions) -> None:
    """Fills a study and shows its tables; ends with status 1 if a row failed."""
    from diffuserec.cli.training import resumable
    from diffuserec.models.base import Runtime
    from diffuserec.studies.results import results_of, write_report
    from diffuserec.studies.runner import run_study
    from diffuserec.studies.study import Options, read
    from diffuserec.studies.tables import tables, write_tables

    out, workers = given.out, given.workers
    changed = Options(
        settings=options.parse_pairs(given.settings),
        seeds=_seeds(given.seeds),
        small=given.budget == "small",
        only=tuple(given.only or ()),
        on=tuple(given.on or ()),
        part=given.split,
    )
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    found = read(file, changed)
    runtime = Runtime(device=given.device, precision=given.precision)
    fill = partial(run_study, found, options=changed, say=show.say)
    with resumable(out):
        if given.engine is None:
            options.cluster_of(None, None, given.address)
            outcome = fill(out, given.data, runtime, workers=workers)
        else:
            from diffuserec.cluster import Cluster, fill_study

            outcome = fill_study(fill, out, given.data, runtime, Cluster(workers, given.address))
        document = results_of(found, outcome, out, small=changed.small)
        write_tables(document, out)
        write_report(found, outcome, out)
    if given.as_json:
        show.print_json(document)
    else:
        show.print_text(tables(document, "text"))
        show.print_line(f"tables and report: {out}")
    rows = [row for table in document["tables"] for row in table["rows"]]
    failed = sum(row["failed"] is not None for row in rows)
    if failed:
        show.say(f"{failed} of {len(rows)} rows failed; the next start tries them again")
        raise typer.Exit(1)


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds takes whole numbers with commas, got {text!r}") from None
    if len(set(found)) < len(found) or min(found) < 0:
        raise ConfigError(f"--seeds takes different numbers from 0 up, got {text!r}")
    return found
