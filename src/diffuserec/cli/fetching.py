"""Commands about public data sets: data list, data fetch."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from diffuserec.cli import options, show

app = typer.Typer(help="Public data sets: list them, fetch one.", no_args_is_help=True)

SHOP = "shop"
"""Name of the made-up log, which is written and not fetched."""


@app.command(name="list")
def list_sets(as_json: options.AsJson = False) -> None:
    """What can be fetched: names, sizes, how a file is checked.

    With --json, addresses, checksums and terms of use, too.

    Examples:

        diffuserec data list
    """
    from diffuserec.fetching import data_sets

    known = data_sets().values()
    if as_json:
        show.print_json({"data_sets": [entry.model_dump() for entry in known]})
        return
    lines = [[SHOP, "A made-up shop with names of items", "", "made here"]]
    for entry in known:
        size = f"{entry.size / 2**20:,.1f} MiB" if entry.size else ""
        lines.append([entry.name, entry.title, size, " ".join(entry.sums) or "none"])
    show.table(("name", "what", "size", "checked by"), lines)


@app.command(name="fetch")
def fetch_set(
    name: Annotated[str, typer.Argument(help="A data set; 'diffuserec data list' has them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for its files.")],
    as_json: options.AsJson = False,
) -> None:
    """Fetches a public data set from its owner, checks it, and says how it is prepared.

    The terms of use are shown first. A transfer that was cut goes on where it was when the same
    command is given again. What Cornac, DataRec or LensKit have fetched is taken from there.

    'shop' is a made-up log with names of items, and needs no network.

    Examples:

        diffuserec data fetch shop --out shop
        diffuserec data fetch movielens-1m --out data/movielens-1m
    """
    from diffuserec.fetching import data_set, fetch, write_shop

    if name == SHOP:
        clicks, items = write_shop(out)
        log, described, dataset = (
            shlex.quote(path.as_posix()) for path in (clicks, items, out / "dataset")
        )
        command = f"diffuserec prepare {log} --items {described} --min-user 5 --min-item 5"
        _say(clicks, items, f"{command} --out {dataset}", as_json)
        return
    entry = data_set(name)
    show.say(f"{entry.title}: {entry.page}")
    show.say(f"terms: {entry.terms}")
    try:
        with show.transfer(entry.file) as progress:
            found = fetch(entry, out, show.say, progress)
    except KeyboardInterrupt:
        show.say(f"{out}: what has come is kept, and the same command goes on")
        raise
    _say(found.log, found.items, found.command, as_json)


def _say(log: Path, items: Path | None, command: str, as_json: bool) -> None:
    if as_json:
        show.print_json({"log": str(log), "items": items and str(items), "prepare": command})
    else:
        show.print_line(f"log: {log}")
        if items:
            show.print_line(f"items: {items}")
        show.print_text(f"prepare it: {command}")
