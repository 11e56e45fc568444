"""Commands about logs: prepare, describe, augment."""

from pathlib import Path
from typing import Annotated, Any

import typer

from diffuserec.cli import options, show
from diffuserec.errors import ConfigError


def prepare(
    log: Annotated[
        list[Path],
        typer.Argument(help="The interaction log: files, folders or patterns in quotes."),
    ],
    out: options.Out,
    min_user: Annotated[int | None, typer.Option(help="Interactions a user must have.")] = None,
    min_item: Annotated[int | None, typer.Option(help="Interactions an item must have.")] = None,
    merge_repeats: Annotated[
        bool, typer.Option(help="Keep only the oldest of a user's interactions with an item.")
    ] = False,
    format: options.Format = None,
    user: options.User = None,
    item: options.Item = None,
    time: options.Time = None,
    columns: options.Columns = None,
    encoding: options.Encoding = None,
    where: Annotated[
        str | None,
        typer.Option(help="Keep only rows for which this SQL expression is true."),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            help="File of items: id, name, categories, numbers, vectors; for lists and models."
        ),
    ] = None,
    items_id: Annotated[
        str | None, typer.Option(help="Name of the column of ids in the file of items.")
    ] = None,
    item_columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of the file of items to keep, with commas between them; brand:category "
            "takes numbers for categories, genres:categories divides at |. By default all."
        ),
    ] = None,
    known_items_only: Annotated[
        bool,
        typer.Option(
            "--known-items-only", help="Leave out items of that file which no interaction has."
        ),
    ] = False,
    literal_ids: options.LiteralIds = False,
    memory: Annotated[
        str, typer.Option(help="What interactions may take, such as 512MiB; ids come on top.")
    ] = "4GiB",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Reads a log of any known format into a dataset that the other commands map from disk.

    A log has a column of users, one of items and usually one of times. Columns under usual names
    are found; others are named with --user, --item and --time, or all of them with --columns.

    A file of items (CSV, TSV, Parquet, JSON lines, or a .json object of lists by item) says what
    the items are. Text is a category, a list of text several, a list of floats a vector. Its items
    that no interaction has become items of the catalog, too.

    Several files are one log, in the order given. They, and a log that would not fit into --memory,
    are read a piece at a time, if they are Parquet, CSV, TSV or inter; the result is the same.

    Examples:

        diffuserec prepare clicks.csv --out data/clicks --min-user 5
        diffuserec prepare 'logs/2024-*.parquet' --memory 2GiB --out data/year
        diffuserec prepare ratings.dat --format movielens --out data/ml-1m
        diffuserec prepare u.data --columns user,item,rating,time --out data/u
        diffuserec prepare e.csv --where "event_type = 'purchase'" --out data/e
        diffuserec prepare sales.parquet --items products.csv --out data/sales
        diffuserec prepare s.csv --items p.csv --item-columns brand --out data/s
    """
    from diffuserec.data import prepare_log
    from diffuserec.studies.update import reading_of

    options.require_free(out, overwrite)
    how: dict[str, Any] = {
        "format": format,
        "user": user,
        "item": item,
        "time": time,
        "columns": options.parse_names(columns),
        "encoding": encoding,
        "where": where,
        "literal_ids": literal_ids,
        "items_id": items_id,
        "item_columns": options.parse_names(item_columns),
        "known_items_only": known_items_only,
        "min_user": min_user,
        "min_item": min_item,
        "merge_repeats": merge_repeats,
    }
    summary = prepare_log(
        log,
        out,
        items=items,
        **how,
        memory=options.parse_size(memory, "--memory"),
        note={"read": reading_of(**how)},
        overwrite=overwrite,
    )
    if as_json:
        said = {"source": summary.source, "filters": ", ".join(summary.filters) or "none"}
        show.print_json({"out": str(out), "summary": str(summary).splitlines(), **said})
    else:
        show.print_line(str(summary))
        show.print_line(f"dataset: {out}")


def describe(data: options.Data, as_json: options.AsJson = False) -> None:
    """Statistics of a prepared dataset: sizes, history lengths, repeats, users without queries.

    Examples:

        diffuserec describe data/clicks
    """
    from diffuserec.data.statistics import description

    facts = description(data)
    if as_json:
        show.print_json(facts)
    else:
        show.facts(str(data), facts)


def augment(
    data: options.Data,
    method: Annotated[str, typer.Option(help="An augmenter; 'diffuserec models' lists them.")],
    out: options.Out,
    format: Annotated[
        str | None, typer.Option(help="csv, parquet, sequences or inter; else by the name.")
    ] = None,
    max_history: Annotated[
        int | None,
        typer.Option(
            help="Only users with at most so many training items (where items come in front)."
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    settings: options.Set = None,
    engine: options.Engine = None,
    workers: options.Workers = None,
    address: options.Address = None,
) -> None:
    """Writes the log with synthetic items, for training any other system on.

    The augmenter learns from, and looks at, the training part only; validation and test items
    stay untouched at the end of each history. An augmenter that makes copies of histories adds a
    user for each copy, U#1, U#2, and so on.

    Examples:

        diffuserec augment data/clicks --method diffuasr --out augmented.csv
        diffuserec augment data/clicks --method random --out augmented.parquet
        diffuserec augment data/clicks --method diff4rec --out copies.csv
        diffuserec augment data/clicks --method random --out parts --engine ray
    """
    from diffuserec.data import from_dataset
    from diffuserec.data.formats import writable_format
    from diffuserec.models.base import Runtime
    from diffuserec.serving.augmented_log import augment_log

    runtime = Runtime(device=device, precision=precision, seed=seed)
    cluster = options.cluster_of(engine, workers, address)
    if cluster is not None:
        from diffuserec.cluster import augment as augment_by

        if format not in (None, "parquet"):
            raise ConfigError("--engine ray writes Parquet files: leave out --format")
        given = options.parse_pairs(settings)
        n_synthetic, n_real = augment_by(data, method, out, given, runtime, max_history, cluster)
        show.say(f"{n_synthetic:,} synthetic and {n_real:,} real items: {out}")
        return
    writable_format(out, format)
    augmented = augment_log(data, method, options.parse_pairs(settings), runtime, max_history)
    from_dataset(augmented).write(out, format)
    n_synthetic = int(augmented.synthetic.sum())
    n_real = len(augmented.items) - n_synthetic
    show.say(f"{n_synthetic:,} synthetic and {n_real:,} real items: {out}")
