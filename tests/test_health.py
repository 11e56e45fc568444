"""What doctor finds, in this environment and in ones that are made wrong."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffuserec.cli import app
from diffuserec.health import examine


def test_this_environment_is_described():
    found = {finding.name: finding for finding in examine()}
    for package in ("torch", "polars", "numpy", "packaging"):
        assert found[package].value == version(package)
        assert not found[package].advice
    assert found["extra serve"].value.startswith("fastapi ")
    assert "fastapi" not in found
    assert not any("ruff" in finding.value for finding in found.values())


def test_the_command_is_one_json_object():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    wrong = [f["name"] for f in found["findings"] if f["advice"]]
    assert found["healthy"] == (not wrong)
    assert result.exit_code == (1 if wrong else 0)
    assert set(wrong) <= {"OMP_NUM_THREADS", "free disk here"}  # of a busy or full machine


@pytest.fixture
def wrong_packages(tmp_path: Path) -> Path:
    """Metadata of packages that stand before the real ones: an old rich, a part that is broken."""
    for name, number in (("rich", "1.0"), ("broken_parts", "1.0")):
        info = tmp_path / f"{name}-{number}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
    entry = "[diffuserec.recommenders]\nlost = nowhere:Lost\n[diffuserec.recomenders]\nx = y:Z\n"
    (tmp_path / "broken_parts-1.0.dist-info" / "entry_points.txt").write_text(entry, "utf-8")
    return tmp_path


def test_what_is_wrong_is_said_with_what_to_do(wrong_packages: Path):
    code = (
        f"import sys; sys.path.insert(0, {str(wrong_packages)!r}); "
        "import json; from dataclasses import asdict; from diffuserec.health import examine; "
        "print(json.dumps([asdict(f) for f in examine()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, encoding="utf-8"
    )
    found = {f["name"]: f for f in json.loads(done.stdout)}
    assert found["rich"]["value"] == "1.0"
    assert "is needed: pip install 'diffuserec'" in found["rich"]["advice"]
    assert "cannot be imported (No module named 'nowhere')" in found["recommenders: lost"]["advice"]
    assert "did you mean 'diffuserec.recommenders'" in found["recomenders: x"]["advice"]
