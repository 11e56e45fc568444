"""Validation by epoch: the table and the figure of a study that looks at the validation part."""

from pathlib import Path
from typing import Any

import pytest

from diffuserec.studies.study import Study
from diffuserec.studies.tables import tables, write_curves

OTHERS = {"name": "Others", "epochs": [1, 3, 9], "values": [0.01, 0.05, 0.07]}


def row(name: str, *curves: list[float] | None) -> dict[str, Any]:
    """A row of results whose seeds have these values by epoch."""
    known = [curve or [] for curve in curves]
    return {
        "name": name,
        "seeds": list(range(len(curves))),
        "point": {},
        "metrics": {},
        "difference": None,
        "trials": 1,
        "floor": False,
        "failed": None,
        "unranked": None,
        "curve": list(curves),
        "best_valid": [max(curve, default=None) for curve in known],
        "best_epoch": [1 + curve.index(max(curve)) if curve else None for curve in known],
        "seconds_to_best": [10.0 * len(curve) for curve in known],
    }


def results(*rows: dict[str, Any], part: str = "valid", **other: Any) -> dict[str, Any]:
    where = {"data": "log", "split": "leave-one-out", "protocol": "full", "part": part}
    table = where | {"users": 0, "line": "", "random": "", "notes": [], "rows": list(rows)}
    found = {"title": "Why", "metrics": ["NDCG@10"], "published": None, "said": None}
    return found | {"skipped": {}, "budget": "full", "tables": [table]} | other


def by_epoch(document: dict[str, Any]) -> dict[str, list[str]]:
    """Cells of the table of validation by epoch, by method; its columns under that word."""
    text = tables(document, "markdown")
    if "by epoch" not in text:
        return {}
    lines = text.partition("by epoch")[2].partition("|")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells if not first.startswith("-")}


def test_means_stand_as_far_as_every_seed_trained() -> None:
    found = by_epoch(results(row("A", [0.1, 0.4, 0.2], [0.3, 0.2]), row("B", [0.5])))
    assert found["method"] == ["1", "2", "best", "at epoch", "seconds to it"]
    assert found["A"] == ["0.2000", "0.3000", "0.3500", "2/1", "25"]
    assert found["B"] == ["0.5000", "", "0.5000", "1", "10"]


def test_a_published_curve_stands_first_and_gives_the_columns() -> None:
    found = by_epoch(results(row("A", [0.1, 0.4, 0.2, 0.3]), published_curve=OTHERS))
    assert found["method"][:3] == ["1", "3", "9"]
    assert found["Others"] == ["0.0100", "0.0500", "0.0700", "", "", ""]
    assert found["A"] == ["0.1000", "0.2000", "", "0.4000", "2", "40"]
    assert list(found) == ["method", "Others", "A"]


@pytest.mark.parametrize(
    "document",
    [results(row("A", [0.1]), part="test"), results(row("A", [0.1], None)), results()],
    ids=["test part", "an older copy", "nothing"],
)
def test_elsewhere_there_is_no_such_table(document: dict[str, Any], tmp_path: Path) -> None:
    assert not by_epoch(document)
    write_curves(document, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_without_a_kept_curve_are_named() -> None:
    text = tables(results(row("A", [0.1]), row("B", [0.2], [0.3]) | {"curve": [None, [0.3]]}))
    assert "Not kept by epoch: B." in text


def test_the_figure_names_every_row(tmp_path: Path) -> None:
    rows = row("A", [0.1, 0.4], [0.2]), row("B", [0.3])
    write_curves(results(*rows, published_curve=OTHERS), tmp_path, "why-")
    drawing = (tmp_path / "why-epochs.svg").read_text(encoding="utf-8")
    for word in ("Why: log", ">A<", ">B<", ">Others<", ">epoch<"):
        assert word in drawing


@pytest.mark.parametrize(
    "change, message",
    [
        ({"values": [0.1]}, "3 epochs, but 1 values"),
        ({"epochs": [0, 3, 9]}, "counted from 1 and rise"),
        ({"epochs": [1, 9, 3]}, "counted from 1 and rise"),
    ],
)
def test_a_published_curve_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(published_curve=OTHERS | change)


def test_the_figure_has_room_for_many_rows(tmp_path: Path) -> None:
    # where the keys leave the panel no room, matplotlib warns, which is an error in tests
    rows = [row(f"a row with number {n}", [0.1, 0.2]) for n in range(40)]
    write_curves(results(*rows), tmp_path)
    text = (tmp_path / "epochs.svg").read_text(encoding="utf-8")
    assert all(f"number {n}<" in text for n in range(40))


def test_a_published_curve_needs_validation_and_one_log() -> None:
    with pytest.raises(ValueError, match="stands beside validation"):
        study(part="test", published_curve=OTHERS)
    with pytest.raises(ValueError, match="of one data set and split"):
        study(data=["store", "store-orders"], published_curve=OTHERS)


def study(**content: Any) -> Study:
    given = {"title": "x", "data": ["store"], "part": "valid", "rows": [{"model": "markov"}]}
    return Study.model_validate(given | content)
