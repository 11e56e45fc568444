"""The run that a saved recommender is of, wherever it is named from."""

from pathlib import Path

import pytest

from diffuserec.models.methods import run_of


def test_a_model_is_of_its_run_from_inside_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "run" / "model"
    inside.mkdir(parents=True)
    (inside / "manifest.json").touch()
    (inside.parent / "run.json").touch()
    monkeypatch.chdir(inside)
    for path in (".", "", inside, "../model"):
        assert run_of(path) == inside.parent.resolve()
    assert run_of(tmp_path) == tmp_path
