"""The command line: thin, no logic. Bad input gets one line on standard error and status 2."""

import contextlib
import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffuserec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from diffuserec.reports.inspection import Inspection, ShownView

app = typer.Typer(
    help="Diffusion models for sequential recommendation: augment, recommend, measure, deploy.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
_out = Console() if sys.stdout.isatty() else Console(width=130)  # a pipe has no 80 columns
_err = Console(stderr=True)

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Seed = Annotated[int, typer.Option(help="Of initialization, order, dropout and noise.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Precision = Annotated[
    Literal["fp32", "bf16"], typer.Option(help="bf16 runs matrix products in bfloat16.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Format = Annotated[
    str | None,
    typer.Option(help="csv, tsv, parquet, jsonl, inter, movielens, sequences or pairs."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A hyper-parameter as name=value (none for no value); may be repeated."
    ),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """The whole product in a few minutes, on the built-in store.

    Trains SASRec with and without DiffuASR's items, and DiffRec; measures them beside popularity,
    Markov and the best possible, and writes a report to look at.

    Examples:

        diffuserec demo --out demo
    """
    from diffuserec.models.base import Run
    from diffuserec.studies.demo import run_demo

    report = run_demo(out, Run(seed=seed), say=_say)
    _out.print(report.text(width=_out.width), markup=False, highlight=False)
    _out.print(f"report: {out / 'report.html'}", markup=False, highlight=False)


@app.command()
def prepare(
    log: Annotated[Path, typer.Argument(help="The interaction log.")],
    out: Out,
    min_user: Annotated[int | None, typer.Option(help="Interactions a user must have.")] = None,
    min_item: Annotated[int | None, typer.Option(help="Interactions an item must have.")] = None,
    merge_repeats: Annotated[
        bool, typer.Option(help="Keep only the oldest of a user's interactions with an item.")
    ] = False,
    format: Format = None,
    user: Annotated[str | None, typer.Option(help="The column of user ids.")] = None,
    item: Annotated[str | None, typer.Option(help="The column of item ids.")] = None,
    time: Annotated[str | None, typer.Option(help="The column of times.")] = None,
    as_json: AsJson = False,
) -> None:
    """Reads a log of any known format into a dataset that the other commands map from disk.

    diffuserec prepare clicks.csv --out data/clicks --min-user 5 --min-item 5
    diffuserec prepare ratings.dat --format movielens --out data/ml-1m
    """
    from diffuserec.data import read_log

    if out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    interactions = read_log(log, format=format, user=user, item=item, time=time)
    if min_user is not None or min_item is not None or merge_repeats:
        interactions = interactions.filter(min_user, min_item, merge_repeats)
    filters = [f"user>={min_user}"] * (min_user is not None)
    filters += [f"item>={min_item}"] * (min_item is not None)
    filters += ["repeats merged"] * merge_repeats
    note = {"source": log.name, "filters": ", ".join(filters) or "none"}
    dataset = interactions.to_dataset()
    dataset.save(out, note=note)
    if as_json:
        _print_json({"out": str(out), "summary": interactions.describe().splitlines(), **note})
    else:
        _out.print(interactions.describe(), markup=False, highlight=False)
        _out.print(f"dataset: {out}", markup=False, highlight=False)


@app.command()
def describe(
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")], as_json: AsJson = False
) -> None:
    """What a prepared dataset holds: sizes, history lengths, repeats, what the split leaves.

    diffuserec describe data/clicks
    """
    from diffuserec.data.statistics import description

    facts = description(data)
    if as_json:
        _print_json(facts)
        return
    table = Table(title=str(data), show_header=False)
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    _out.print(table)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    out: Out,
    model: Annotated[str, typer.Option(help="A recommender; 'diffuserec models' lists them.")],
    augment: Annotated[str | None, typer.Option(help="An augmenter to train on.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    split: Annotated[
        str, typer.Option(help="How to divide the log: leave-one-out or temporal.")
    ] = "leave-one-out",
    settings: Set = None,
    augment_settings: Annotated[
        list[str] | None,
        typer.Option("--augment-set", help="A hyper-parameter of the augmenter, name=value."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trains a recommender, measures it beside the floors and writes a report.

    diffuserec train data/clicks --model sasrec --out runs/sasrec
    diffuserec train data/clicks --model sasrec --augment diffuasr --out runs/diffuasr
    diffuserec train data/clicks --model sasrec --set dim=128 --set loss=gbce --out runs/gbce
    """
    from diffuserec.models.base import Run
    from diffuserec.data import load_dataset
    from diffuserec.studies.experiment import train_run
    from diffuserec.studies.run_directory import Plan, split_dataset

    split_dataset(load_dataset(data), split)
    plan = Plan(
        data=str(data.resolve()),
        model=model,
        settings=_settings(settings),
        augment=augment,
        augment_settings=_settings(augment_settings) if augment else None,
        split=split,  # type: ignore[arg-type]
        seed=seed,
    )
    if augment_settings and not augment:
        raise ConfigError("--augment-set needs --augment NAME")
    run = Run(device=device, precision=precision, seed=seed, resume=resume)
    with _resumable():
        trained = train_run(plan, out, run, say=(lambda line: None) if as_json else _say)
    _show_evaluation(trained.evaluate(), as_json)
    if not as_json:
        _out.print(f"report: {out / 'report.html'}", markup=False, highlight=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    split: Annotated[Literal["test", "valid"], typer.Option(help="Which queries.")] = "test",
    candidates: Annotated[str, typer.Option(help="full, or uniform:100 sampled.")] = "full",
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Do not hide items of a user's own history.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measures a run; says under which protocol.

    diffuserec evaluate runs/sasrec
    diffuserec evaluate runs/sasrec --candidates uniform:100 --keep-seen --json
    """
    from diffuserec.studies.run_directory import open_run

    result = open_run(run).evaluate(split, candidates, filter_seen=not keep_seen)
    _show_evaluation(result, as_json)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs of the same data.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write an HTML report here.")] = None,
    as_json: AsJson = False,
) -> None:
    """One table of several runs, floors included, with significance.

    Runs that differ only in their seed become one row. Rows are compared with the first, an
    augmented one with the same recommender alone where that is among them.

    Examples:

        diffuserec compare runs/sasrec runs/diffuasr --out report.html
    """
    from diffuserec.studies.experiment import compare_runs

    report = compare_runs(runs, out)
    if as_json:
        _out.print_json(report.json())
    else:
        _out.print(report.text(width=_out.width), markup=False, highlight=False)


@app.command()
def views(
    run: Annotated[Path, typer.Argument(help="A finished run of a contrastive recommender.")],
    user: Annotated[
        list[str] | None, typer.Option(help="A user's id in the log; may be repeated.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Users to draw where none is named.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the views and of who is drawn.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write an HTML page here.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a contrastive recommender is trained to tell apart: the views it makes of users now.

    Below some users' views stand figures over up to 2,000 training sequences: how many positions
    change, how often the item stays, and how near replacements are to what they replace.

    Examples:

        diffuserec views runs/simdiffrec --n 2
        diffuserec views runs/simdiffrec --user U0012 --user U0440 --out views.html
    """
    from diffuserec.studies.examples import inspection
    from diffuserec.reports.html import write_inspection
    from diffuserec.studies.run_directory import open_run

    opened = open_run(run)
    found = inspection(opened, user, n, seed)
    if out is not None:
        data, split = Path(opened.plan.data).name, opened.split.protocol
        write_inspection(
            out,
            found,
            title=f"Views of {found.method} on {data}",
            facts=f"{data}, training part of {split} · without dropout · seed {seed}",
        )
    if as_json:
        _print_json(asdict(found))
    else:
        _show_inspection(found)
        if out is not None:
            _out.print(f"page: {out}", markup=False, highlight=False)


@app.command()
def augment(
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    method: Annotated[str, typer.Option(help="An augmenter; 'diffuserec models' lists them.")],
    out: Out,
    format: Annotated[
        str | None, typer.Option(help="csv, parquet, sequences or inter; else by the name.")
    ] = None,
    max_history: Annotated[
        int | None,
        typer.Option(
            help="Only users with at most so many training items (where items come in front)."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "fp32",
    settings: Set = None,
) -> None:
    """Writes the log with synthetic items, for training any other system on.

    The augmenter learns from, and looks at, the training part only; validation and test items
    stand untouched at the end of each history. Items come in front of histories; an augmenter that
    makes variants of them instead adds a user for each, U#1, U#2, and so on.

    Examples:

        diffuserec augment data/clicks --method diffuasr --out clicks-augmented.csv
        diffuserec augment data/clicks --method random --max-history 5 --out augmented.parquet
        diffuserec augment data/clicks --method diff4rec --set n_variants=3 --out variants.csv
    """
    from diffuserec.models.base import Run, VaryingAugmenter, find
    from diffuserec.data import from_dataset
    from diffuserec.data.formats import writable_format
    from diffuserec.serving.batch import augment_log

    values = _settings(settings)
    if max_history is not None:
        if issubclass(find("augmenter", method), VaryingAugmenter):
            raise ConfigError(f"{method} makes variants of all sequences: leave out --max-history")
        values["max_history"] = max_history
    if out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    writable_format(out, format)
    run = Run(device=device, precision=precision, seed=seed)
    longer = augment_log(data, method, values, run)
    from_dataset(longer).write(out, format)
    made = int(longer.synthetic.sum())
    _say(f"{made:,} synthetic items beside {len(longer.items) - made:,} real ones: {out}")


@app.command()
def recommend(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, with commas between.")
    ] = None,
    histories: Annotated[
        Path | None, typer.Option(help="A log of users to recommend to, of any known format.")
    ] = None,
    format: Format = None,
    user: Annotated[str | None, typer.Option(help="Its column of user ids.")] = None,
    item: Annotated[str | None, typer.Option(help="Its column of item ids.")] = None,
    time: Annotated[str | None, typer.Option(help="Its column of times, or none.")] = None,
    k: Annotated[int, typer.Option("-k", help="List length.")] = 10,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Show seen items too.")] = False,
    allow: Annotated[str | None, typer.Option(help="Only these ids, with commas.")] = None,
    deny: Annotated[str | None, typer.Option(help="None of these ids, with commas.")] = None,
    refuse_unknown: Annotated[
        bool, typer.Option(help="Refuse ids that the catalog does not hold.")
    ] = False,
    n_draws: Annotated[
        int | None,
        typer.Option(help="Noise draws to average; shows the spread of each probability."),
    ] = None,
    diversity: Annotated[
        float, typer.Option(help="0 ranks by the mean of the draws, 1 by one draw of the seed.")
    ] = 0.0,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="A .csv, .parquet or .jsonl file to write.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The next items for one history, or for every user of a file. Raw ids in, raw ids out.

    diffuserec recommend runs/sasrec --history "B0012,B0440" -k 5
    diffuserec recommend runs/sasrec --histories clicks.csv --out lists.csv
    diffuserec recommend runs/diffrec --history "B0012,B0440" --n-draws 10
    diffuserec recommend runs/diffrec --history "B0012,B0440" --diversity 1 --seed 7
    """
    from diffuserec.serving.batch import recommend_from

    if (history is None) == (histories is None):
        raise ConfigError("give either --history or --histories")
    frame = recommend_from(
        run,
        _ids(history) if history is not None else None,
        histories,
        columns={"format": format, "user": user, "item": item, "time": time},
        k=k,
        filter_seen=not keep_seen,
        allow=_ids(allow),
        deny=_ids(deny),
        on_unknown="refuse" if refuse_unknown else "skip",
        n_draws=n_draws,
        diversity=diversity,
        seed=seed,
        out=out,
        say=_say,
    )
    if as_json:
        _print_json({"recommendations": frame.to_dicts()})
    elif out is not None:
        _say(f"{frame.height:,} rows: {out}")
    else:
        unknown = int(
            frame.unique("user_id" if "user_id" in frame.columns else "n_unknown")[
                "n_unknown"
            ].sum()
        )
        if unknown:
            _say(f"{unknown} item ids are not in the catalog and were skipped")
        shown = frame.drop("n_unknown")
        table = Table(*shown.columns)
        for row in shown.head(200).iter_rows():
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
        _out.print(table)
        if shown.height > 200:
            _say(f"the first 200 of {shown.height:,} rows; --out FILE writes them all")


@app.command()
def models(as_json: AsJson = False) -> None:
    """All recommenders and augmenters, a line each.

    diffuserec models
    """
    from diffuserec.models.base import method_summaries

    rows = method_summaries()
    if as_json:
        _print_json({"methods": rows})
        return
    table = Table("kind", "name", "what it is")
    for row in rows:
        table.add_row(row["kind"], row["name"], row["summary"])
    _out.print(table)


@app.command()
def experiment(
    file: Annotated[Path, typer.Argument(help="A TOML file of rows and seeds.")],
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    out: Out,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Trains every row and seed of a table and reports; run again to continue where it stopped.

    diffuserec experiment experiments/augmentation.toml data/beauty --out runs/table
    """
    from diffuserec.models.base import Run
    from diffuserec.studies.experiment import run_experiment

    with _resumable("run the same command again"):
        report = run_experiment(file, data, out, Run(device=device, precision=precision), say=_say)
    _out.print(report.text(width=_out.width), markup=False, highlight=False)


@app.command()
def curve(
    file: Annotated[Path, typer.Argument(help="A TOML file of a model and what is varied.")],
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    out: Out,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """A model against one of its settings, as table and figure; run again to continue.

    diffuserec curve experiments/diffrec_steps.toml data/beauty --out runs/steps
    """
    from diffuserec.models.base import Run
    from diffuserec.studies.sensitivity import markdown, run_curve

    with _resumable("run the same command again"):
        document = run_curve(file, data, out, Run(device=device, precision=precision), say=_say)
    sys.stdout.write(markdown(document))


def main() -> None:
    """The entry point: bad input is one line on standard error and status 2."""
    try:
        app()
    except (DataError, ConfigError) as error:
        _err.print(
            f"diffuserec: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except OSError as error:  # a place that cannot be read or written
        _err.print(
            f"diffuserec: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)


@contextlib.contextmanager
def _resumable(how: str = "add --resume to the same command") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _err.print(f"interrupted; to continue from the last epoch, {how}", markup=False)
        raise typer.Exit(130) from None


def _settings(pairs: list[str] | None) -> dict[str, Any]:
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


def _ids(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _say(line: str) -> None:
    _err.print(line, style="dim", markup=False, highlight=False)


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def _show_evaluation(result: Any, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
        return
    table = Table(title=result.method, show_header=False)
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4f}")
    _out.print(table)
    _out.print(str(result.protocol), markup=False, highlight=False)
    if result.repeat_note:
        _out.print(f"Note: {result.repeat_note}.", markup=False, highlight=False)


def _show_inspection(found: "Inspection") -> None:
    from diffuserec.reports.inspection import figure_rows

    for sequence in found.sequences:
        _out.print(Text(f"{found.method}, user {sequence.user}"))
        in_line = [view for view in sequence.views if view.lines_up]
        if in_line:
            table = Table()
            table.add_column("position", justify="right")
            for heading in ("original", *sequence.confidences, *(view.name for view in in_line)):
                table.add_column(Text(heading))
            for place, item in enumerate(sequence.items):
                table.add_row(
                    str(place + 1),
                    Text(item),
                    *(f"{values[place]:.3f}" for values in sequence.confidences.values()),
                    *(_marked(view, place) for view in in_line),
                )
            _out.print(table)
        else:
            _out.print(Text(f"original: {', '.join(sequence.items)}"))
        for view in sequence.views:
            if not view.lines_up:
                items = Text(", ").join(_marked(view, place) for place in range(len(view.items)))
                same = view.items == sequence.items
                _out.print(Text(f"{view.name}: ") + (Text("the same items") if same else items))
        _out.print()
    _out.print(
        "* another item than the original's, or one that it does not hold; "
        "= chosen anew, and the original's item again",
        markup=False,
        highlight=False,
    )
    _out.print(f"\nover {found.n_sequences:,} training sequences", highlight=False)
    table = Table("")
    for figures in found.figures:
        table.add_column(Text(figures.view), justify="right")
    for label, cells in figure_rows(found.figures):
        table.add_row(label, *cells)
    _out.print(table)


def _marked(view: "ShownView", place: int) -> Text:
    signs = {"replaced": ("* ", "bold"), "kept": ("= ", "dim"), "": ("", "")}
    sign, style = signs[view.marks[place]]
    return Text(sign + view.items[place], style=style)


if __name__ == "__main__":
    main()
