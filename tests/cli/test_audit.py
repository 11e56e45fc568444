"""The command that checks tables: its statuses and what it prints."""

import json
import sys
from pathlib import Path

import pytest

from diffuserec import cli


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``diffuserec audit``."""
    argv, sys.argv = sys.argv, ["diffuserec", "audit", *(str(word) for word in words)]
    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_clean_table_has_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "own.csv"
    table.write_text("method,HR@10,NDCG@10,filter_seen\na,0.1,0.05,true\n", encoding="utf-8")
    status, printed, _ = call(capsys, table)
    assert status == 0
    assert "1 rows, no finding" in printed
    assert "not checked: the table: no floor is known" in printed


def test_findings_have_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, floors = tmp_path / "own.csv", tmp_path / "floors.csv"
    table.write_text("method,HR@10,filter_seen\n[red]a,0.100,true\n", encoding="utf-8")
    floors.write_text("method,HR@10,filter_seen\npopularity,0.200,true\n", encoding="utf-8")
    status, printed, _ = call(capsys, table, "--floors", floors)
    assert status == 1
    assert "[red]a" in printed
    assert "below floor 1" in printed
    status, printed, _ = call(capsys, table, "--floors", floors, "--json")
    assert status == 1
    (found,) = json.loads(printed)["tables"].values()
    assert [finding["check"] for finding in found["findings"]] == ["below floor"]


def test_published_tables(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, _ = call(capsys, "--all-published")
    assert status == 1
    for line in (
        "diff4rec-table2: of 40 rows: impossible 22, doubtful 1",
        "diffrec-table2: of 30 rows: impossible 7",
        "simdiffrec-table2: of 50 rows: impossible 5",
    ):
        assert line in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to check"),
        (["nowhere.csv"], "nowhere.csv cannot be read"),
        (["diffrec-tabel2"], "did you mean 'diffrec-table2'"),
        (["diffrec-figure3"], "has no results to check"),
    ],
)
def test_mistakes_have_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = call(capsys, *words)
    assert status == 2
    assert message in error
