"""Commands about finished runs: evaluate, compare, views, recommend; and the list of models."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffuserec.cli import options, show
from diffuserec.errors import ConfigError


def evaluate(
    run: options.RunPath,
    split: Annotated[Literal["test", "valid"], typer.Option(help="Which queries.")] = "test",
    candidates: Annotated[str, typer.Option(help="full, or uniform:100 sampled.")] = "full",
    keep_seen: options.KeepSeen = False,
    metric: Annotated[
        list[str] | None, typer.Option(help="A further metric, such as HR@50; may be repeated.")
    ] = None,
    data: options.Moved = None,
    engine: options.Engine = None,
    workers: options.Workers = None,
    address: options.Address = None,
    as_json: options.AsJson = False,
) -> None:
    """Measures a finished run and prints the protocol.

    Without options, what training measured is shown; with some, the run is measured anew.

    Examples:

        diffuserec evaluate runs/sasrec
        diffuserec evaluate runs/sasrec --metric HR@50 --metric NDCG@50
        diffuserec evaluate runs/sasrec --candidates uniform:100 --json
        diffuserec evaluate runs/sasrec --data /elsewhere/clicks
        diffuserec evaluate runs/sasrec --metric HR@50 --engine ray --workers 4
    """
    from diffuserec.studies.run_directory import open_run

    cluster = options.cluster_of(engine, workers, address)
    passes = None
    if cluster is not None:
        from diffuserec.cluster import RayPasses

        passes = RayPasses(run, data, split, cluster)
    opened = open_run(run, data)
    result = opened.evaluate(split, candidates, not keep_seen, metric or (), passes)
    show.evaluation(result, as_json)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs of the same data, or of any with --newest.")
    ],
    newest: Annotated[
        Path | None,
        typer.Option(
            help="A log that goes further than all runs' data: compare on what came after."
        ),
    ] = None,
    split: Annotated[
        Literal["test", "valid"],
        typer.Option(help="Which queries; valid never looks at the test part."),
    ] = "test",
    format: options.TableFormat = "text",
    figures: Annotated[
        Path | None, typer.Option(help="Directory to write every figure to, as SVG.")
    ] = None,
    out: options.Page = None,
    overwrite: options.Overwrite = False,
    data: options.Moved = None,
    as_json: options.AsJson = False,
) -> None:
    """Compares several runs and trivial baselines in one table, with significance.

    Runs that differ only in their seed are one method. Methods are compared with the first, an
    augmented one with the same recommender alone if that is among them.

    With --newest, runs may be of different data, and final: each user's first item after all that
    any of them has seen is asked for, histories are given as raw ids, and an item that a model does
    not know is a miss.

    Examples:

        diffuserec compare runs/sasrec runs/diffuasr --out report.html
        diffuserec compare runs/monday runs/tuesday --newest wednesday.csv
        diffuserec compare runs/narrow runs/wide --split valid
        diffuserec compare runs/sasrec runs/diffuasr --format latex --figures svg
    """
    from diffuserec.reports.tables import results_table
    from diffuserec.studies.compare import compare_runs
    from diffuserec.studies.newest import compare_newest

    options.require_free(out, overwrite)
    if newest is not None:
        if split != "test" or data is not None or figures is not None:
            raise ConfigError("--newest goes with neither --split, --data nor --figures")
        report = compare_newest(runs, newest, out)
    else:
        report = compare_runs(runs, out, data=data, part=split, figures=figures)
    if as_json:
        show.print_text(report.json())
    elif format != "text":
        show.print_text(results_table(report, format))
        for line in [*report.protocol.splitlines(), *report.notes]:
            show.say(line)
    else:
        show.report(report)


def beyond(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs of the same data and split.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory for tables, figures and beyond.json.")
    ] = None,
    users: Annotated[int, typer.Option(help="At most so many users, drawn with seed 0.")] = 5000,
    attribute: Annotated[
        str | None,
        typer.Option(help="Column of the items by which they are alike; else learned vectors."),
    ] = None,
    keep_seen: options.KeepSeen = False,
    format: options.TableFormat = "text",
    into: Annotated[
        Path | None,
        typer.Option(help="A Markdown page that marks, by the name of --out, where tables go."),
    ] = None,
    overwrite: options.Overwrite = False,
    data: options.Moved = None,
    as_json: options.AsJson = False,
) -> None:
    """Measures lists of the next items or baskets, diversity at equal accuracy, and calibration.

    Each has the plain answer beside it: the best items and the greedy rollout of one model, MMR and
    dropout that is left on, and a temperature for every model. Lists need runs that were trained
    with --split leave-last:k=5, baskets (several items at one time) --split leave-basket; items put
    in jointly are those of an augmenter maskdiff.

    Examples:

        diffuserec beyond runs/sasrec runs/diffrec --out runs/beyond
        diffuserec beyond runs/sasrec runs/maskdiff --attribute category
    """
    from diffuserec.reports.beyond import beyond_tables
    from diffuserec.studies.beyond import beyond as measure
    from diffuserec.studies.beyond import write_beyond
    from diffuserec.studies.results import fill_page

    if into is not None and out is None:
        raise ConfigError("--into needs --out, whose name the page marks")
    options.require_free(out, overwrite)
    document = measure(
        runs, users=users, attribute=attribute, filter_seen=not keep_seen, data=data, say=show.say
    )
    if out is not None:
        write_beyond(document, out)
    if out is not None and into is not None:
        fill_page(into, out.resolve().name, beyond_tables(document, "markdown"))
        show.say(f"filled: {into}")
    if as_json:
        show.print_json(document)
    else:
        show.print_text(beyond_tables(document, format))
    if out is not None:
        show.say(f"tables and figures: {out}")


def views(
    run: Annotated[Path, typer.Argument(help="A finished run of a contrastive recommender.")],
    user: Annotated[
        list[str] | None, typer.Option(help="A user's id in the log; may be repeated.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Users to draw if none is named.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the views and of who is drawn.")] = 0,
    out: options.Page = None,
    overwrite: options.Overwrite = False,
    data: options.Moved = None,
    as_json: options.AsJson = False,
) -> None:
    """Shows the views of users' histories that a contrastive recommender learns to tell apart.

    Metrics over up to 2,000 training sequences follow: how many positions change, how often the
    item stays, and how similar replacements are to the items that they replace.

    Examples:

        diffuserec views runs/simdiffrec --n 2
        diffuserec views runs/simdiffrec --user U0012 --user U0440 --out views.html
    """
    from dataclasses import asdict

    from diffuserec.reports.html import write_inspection
    from diffuserec.studies.examples import inspection
    from diffuserec.studies.run_directory import open_run

    options.require_free(out, overwrite)
    opened = open_run(run, data)
    found = inspection(opened, user, n, seed)
    if out is not None:
        name = Path(opened.plan.data).name
        write_inspection(
            out,
            found,
            title=f"Views of {found.method} on {name}",
            facts=f"{name}, training part of {opened.split.protocol} · no dropout · seed {seed}",
        )
    if as_json:
        show.print_json(asdict(found))
    else:
        show.inspection(found)
        if out is not None:
            show.print_line(f"page: {out}")


def recommend(
    run: options.RunPath,
    history: Annotated[
        str | None,
        typer.Option(
            help="Item ids, oldest first, with commas between; quotes around an id with a comma."
        ),
    ] = None,
    histories: Annotated[
        Path | None, typer.Option(help="A log of users to recommend to, of any known format.")
    ] = None,
    format: options.Format = None,
    user: options.User = None,
    item: options.Item = None,
    time: options.Time = None,
    columns: options.Columns = None,
    encoding: options.Encoding = None,
    literal_ids: options.LiteralIds = False,
    k: Annotated[int, typer.Option("-k", help="List length.")] = 10,
    keep_seen: options.KeepSeen = False,
    allow: Annotated[str | None, typer.Option(help="Only these ids, with commas.")] = None,
    deny: Annotated[str | None, typer.Option(help="None of these ids, with commas.")] = None,
    refuse_unknown: Annotated[
        bool, typer.Option(help="Refuse ids that the catalog does not hold.")
    ] = False,
    fallback: Annotated[
        bool,
        typer.Option("--fallback", help="Answer by popularity even if no id at all is known."),
    ] = False,
    n_draws: Annotated[
        int | None,
        typer.Option(help="Noise draws to average; shows the spread of each probability."),
    ] = None,
    diversity: Annotated[
        float,
        typer.Option(help="0 ranks by the mean of the draws, 1 by one draw; scores stay the mean."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Find lists by an index of the items, for large catalogs. Needs diffuserec[ann].",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A .csv, .parquet or .jsonl file to write; with --engine, a directory of Parquet.",
        ),
    ] = None,
    engine: options.Engine = None,
    workers: options.Workers = None,
    address: options.Address = None,
    as_json: options.AsJson = False,
) -> None:
    """Recommends next items for one history, or for every user of a file. Raw ids in and out.

    RUN may also be a saved model. A history without a known item is answered by popularity; the
    column "source" says who answered, and a line on standard error how many. Scores of popularity
    are counts, and compare with no score of the model's.

    Where people choose the same items again, add --keep-seen: items of the history itself are left
    out otherwise.

    With --approximate, an index of the items is kept beside the model, and made the first time: of
    a million items it finds a list in milliseconds. It is for models that score by the product of a
    state and item vectors; a line says how much of the exact lists it finds.

    Ids are written as they are: import a .csv into a spreadsheet program as text, for it takes ids
    that begin with =, +, - or @ for formulas.

    Examples:

        diffuserec recommend runs/sasrec --history "B0012,B0440" -k 5
        diffuserec recommend runs/sasrec --histories clicks.csv --out lists.csv
        diffuserec recommend runs/diffrec --history B0012 --n-draws 10
        diffuserec recommend runs/diffrec --history B0012 --diversity 1 --seed 7
        diffuserec recommend runs/sasrec --histories log --out lists --engine ray
    """
    from diffuserec.serving.lists import recommend_from

    cluster = options.cluster_of(engine, workers, address)
    given = {
        "format": format,
        "user": user,
        "item": item,
        "time": time,
        "columns": options.parse_names(columns),
        "encoding": encoding,
        "literal_ids": literal_ids,
    }
    chosen: dict[str, Any] = {
        "k": k,
        "filter_seen": not keep_seen,
        "allow": options.parse_ids(allow, "--allow"),
        "deny": options.parse_ids(deny, "--deny"),
        "on_unknown": "refuse" if refuse_unknown else "skip",
        "n_draws": n_draws,
        "diversity": diversity,
        "seed": seed,
        "fallback": fallback,
        "approximate": approximate,
        "say": show.say,
    }
    if cluster is not None:
        from diffuserec.cluster import recommend as recommend_by

        if histories is None or out is None or history is not None:
            raise ConfigError("--engine ray needs --histories and --out")
        n = recommend_by(run, histories, out, cluster, columns=given, **chosen)
        show.say(f"{n:,} lines: {out}")
        return
    asked = options.parse_ids(history, "--history")
    lists = recommend_from(run, asked, histories, columns=given, out=out, **chosen)
    if as_json:
        show.print_json({"recommendations": lists.to_dicts()})
    elif out is not None:
        show.say(f"{lists.height:,} lines: {out}")
    else:
        show.lists(lists)


def models(
    name: Annotated[
        str | None, typer.Argument(help="A method, to show its settings; else all are listed.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Lists all recommenders and augmenters, or the settings of one: types, defaults, meaning.

    In the list, a line tells what each method does; its page is in docs/methods.

    Examples:

        diffuserec models
        diffuserec models sasrec
    """
    from diffuserec.models.methods import method_settings, method_summaries

    if name is not None:
        kind, summary, settings = method_settings(name)
        if as_json:
            found = {"kind": kind, "name": name, "summary": summary, "settings": settings}
            show.print_json(found)
            return
        show.print_line(f"{name}, {'an' if kind == 'augmenter' else 'a'} {kind}: {summary}")
        show.settings(settings)
        option = "--augment-set" if kind == "augmenter" else "--set"
        show.print_line(f"diffuserec train takes them as {option} NAME=VALUE")
        return
    methods = method_summaries()
    if as_json:
        show.print_json({"methods": methods})
    else:
        show.table(("kind", "name", "summary"), [list(method.values()) for method in methods])
