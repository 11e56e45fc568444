"""A run brought up to date: its log and a newer one, and a model that starts from its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuserec.data import append, dataset_manifest, from_dataset, read_log, read_more, with_items
from diffuserec.errors import DataError
from diffuserec.files import sha256
from diffuserec.models.methods import load
from diffuserec.studies.final import final_plan
from diffuserec.studies.run_directory import data_of, finished_run, identity_of
from diffuserec.studies.run_file import Plan
from diffuserec.studies.train_run import Say, silent

READ = ("format", "user", "item", "time", "columns", "encoding", "where", "literal_ids")
"""Arguments of :func:`read_log` that a prepared log remembers, for logs that follow it."""

_OF_ITEMS = ("items_id", "item_columns", "known_items_only")
"""Of these, those that are about a file of items."""

_FILTERS = ("min_user", "min_item", "merge_repeats")


def reading_of(**options: Any) -> dict[str, Any]:
    """How a log was read and filtered, for the note of its prepared data: what is not the usual."""
    return {name: value for name, value in options.items() if value not in (None, False)}


def updated_data(
    run: Path | str,
    log: Path,
    out: Path,
    *,
    full: bool = False,
    items: Path | None = None,
    data: Path | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Say = silent,
) -> Path:
    """Prepares a run's log with a newer one behind it; kept if it was prepared just so before.

    The newer log is read as the run's was: its format, its columns, its rows (``where``). Filters
    by counts are of whole logs and apply to a full one alone; repeats are merged if they were.

    Args:
        run: a finished run, whose data is there.
        log: the newer log.
        out: directory of the prepared data.
        full: the newer log holds the older one, too, and stands in its place.
        items: file of names and other attributes of all items; else known ones keep theirs.
        data: where the run's data is now, if it was moved.
        options: of :func:`read_log`, which hold instead of those that were remembered.
        overwrite: replace prepared data that is there.

    Raises:
        DataError: the run's data is gone or another, the log cannot be read or adds nothing, or
            something else stands at `out`.
    """
    source, found = finished_run(run)
    dataset = data_of(source, found, data)
    note = dataset_manifest(found.plan.data if data is None else data)["note"]
    read = {k: v for k, v in note.get("read", {}).items() if k in (*READ, *_OF_ITEMS, *_FILTERS)}
    read |= {name: value for name, value in (options or {}).items() if value not in (None, False)}
    own = {name: read[name] for name in READ if name in read}
    filters = {name: read[name] for name in _FILTERS if name in read}
    of_items = {name: read[name] for name in _OF_ITEMS if name in read and items is not None}
    try:
        update = {"run": identity_of(source, found), "log": sha256(log), "full": full, "read": read}
    except OSError as error:
        raise DataError(f"{log} cannot be read: {error.strerror or error}") from error
    if (out / "manifest.json").is_file() and not overwrite:
        if dataset_manifest(out)["note"].get("update") == update:
            say(f"{out} holds this log already")
            return out
        raise DataError(f"{out} holds other data: choose another --data-out, or add --overwrite")
    if full:
        whole = read_log(log, **own, items=items, **of_items)
        if filters:
            whole = whole.filter(**filters)
    else:
        more = read_more(log, dataset.catalog, **own)
        whole, n_known = append(from_dataset(dataset), more)
        if filters.get("merge_repeats"):
            whole = whole.filter(merge_repeats=True)
        if items is not None:
            options_of = own.get("encoding"), "literal_ids" in own, own.get("item")
            whole = with_items(whole, items, *options_of, **of_items)
        before = dataset.catalog
        n_new = int((before.encode(whole.frame["item_id"].unique()) == 0).sum())
        say(
            f"{log.name}: {len(more) - n_known:,} interactions more, "
            f"{whole.summary.n_users - before.n_users:,} new users, "
            f"{n_new:,} new items" + (f"; known already: {n_known:,}" if n_known else "")
        )
        if filters.keys() & {"min_user", "min_item"}:
            say(f"not filtered by counts, as the run's log was ({note.get('filters')})")
    about = {"source": log.name, "filters": ", ".join(whole.summary.filters) or "none"}
    if not full:
        about["source"] = f"{note.get('source', 'the earlier log')} and {log.name}"
        about["filters"] = note.get("filters", "none")
    note = {**about, "read": read, "update": update}
    whole.to_dataset().save(out, note=note, overwrite=overwrite)
    return out


def update_plan(run: Path | str, data: Path, epochs: int | None = None) -> Plan:
    """Plan of a run brought up to date on prepared data: started from `run` where that can be."""
    source, _ = finished_run(run)
    start = source if load(source / "model").can_start else None
    return final_plan(source, data, start=start, epochs=epochs)
