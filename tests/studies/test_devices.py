"""What tables say of where rows were trained."""

from typing import Any

import pytest

from diffuserec.studies.tables import tables

H100 = "cuda (NVIDIA H100 80GB HBM3)"


def row(name: str, *devices: str, floor: bool = False, older: bool = False) -> dict[str, Any]:
    """A row of results whose seeds were trained on these; an older one says the first's alone."""
    found: dict[str, Any] = {
        "name": name,
        "seeds": list(range(len(devices))),
        "point": {},
        "metrics": {"HR@10": {"value": 0.1, "margin": None}},
        "difference": None,
        "trials": 1,
        "floor": floor,
        "epochs": [None if floor else 3] * len(devices),
        "failed": None,
        "unranked": None,
        "environment": {"device": devices[0]},
    }
    if older:
        del found["floor"]
    return found if older else found | {"devices": sorted(set(devices))}


def said(*rows: dict[str, Any]) -> list[str]:
    """The sentences of a table that begin with 'Trained'."""
    where = {"data": "log", "split": "leave-one-out", "protocol": "full", "part": "test"}
    table = where | {"users": 9, "line": "", "random": "", "notes": [], "rows": list(rows)}
    document = {"title": "A", "metrics": ["HR@10"], "published": None, "said": None}
    document |= {"skipped": {}, "budget": "full", "tables": [table]}
    lines = tables(document, "markdown").splitlines()
    return [line for line in lines if line.startswith("Trained")]


@pytest.mark.parametrize("older", [False, True])
def test_a_table_names_what_was_trained_on_a_gpu(older: bool) -> None:
    trained = [("A", "cpu"), ("B, wide", H100), ("C", "cpu")]
    rows = [row(name, device, older=older) for name, device in trained]
    found = said(*rows, row("D", "cpu", floor=True))
    assert found == ["Trained on cpu: A; C.", f"Trained on {H100}: B, wide."]


def test_seeds_of_a_row_may_be_of_two_devices() -> None:
    found = said(row("A", H100, "cpu", "cpu"), row("B", H100))
    assert found == [f"Trained on cpu and {H100}: A.", f"Trained on {H100}: B."]


def test_one_device_is_named_once_and_a_cpu_not_at_all() -> None:
    found = said(row("A", H100), row("B", H100), row("C", "cpu", floor=True))
    assert found == [f"Trained on {H100}."]
    assert said(row("A", "cpu"), row("B", "cpu")) == []
