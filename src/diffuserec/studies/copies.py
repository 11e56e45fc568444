"""A copy of a study's results: small, for others to read, and enough to continue the study.

It has ``results.json``, the cells and the ranks of their targets, and no models. ``diffuserec
study`` with the copy as its directory trains what is missing and makes all tables anew.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuserec.evaluation import load_evaluation, write_ranks
from diffuserec.files import replacing, write_json
from diffuserec.studies.cells import PARTS, Part, all_documents, by_user, looks_of
from diffuserec.studies.results import read_results

_PLACE = re.compile(r"""(?<![^\s'"=(])(?:[A-Za-z]:)?[/\\](?:[^\s'"/\\]+[/\\])*([^\s'"/\\]+)""")
"""An absolute path at the beginning of a word or behind ``=``; its last name."""


def copy_results(source: Path, target: Path) -> None:
    """Copies ``results.json``, the cells of a study and the ranks of the targets in its tables.

    Of every absolute path, in commands and messages, only the last name stays.

    Raises:
        DataError: there are no results, or values by user are damaged.
    """
    results = read_results(source)
    write_json(target / "results.json", _without_places(results))
    shown = {
        (key, table["part"])
        for table in results["tables"]
        for row in table["rows"]
        for key in row.get("keys", ())
    }
    for name, document in all_documents(source).items():
        if document["status"] == "finished":
            document["validations"] = looks_of(document, source, "validation")
            document["looks_at_test"] = looks_of(document, source, "test")
        write_json(target / "cells" / f"{name}.json", _without_places(document))
        for part in PARTS:
            if (document["key"], part) in shown:
                _copy_ranks(name, source, target, part)


def _copy_ranks(name: str, source: Path, target: Path, part: Part) -> None:
    evaluation, ranks = by_user(name, source, part)
    copied = by_user(name, target, part)[1]
    if evaluation.exists():
        write_ranks(load_evaluation(evaluation), copied)
    elif ranks.exists():  # an older copy has none
        with replacing(copied) as work:
            shutil.copyfile(ranks, work)


def _without_places(value: Any) -> Any:
    """A JSON value with the absolute paths in its texts cut to their last names."""
    if isinstance(value, str):
        return _PLACE.sub(r"\1", value)
    if isinstance(value, Mapping):
        return {name: _without_places(part) for name, part in value.items()}
    return [_without_places(part) for part in value] if isinstance(value, list) else value
