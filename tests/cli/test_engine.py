"""Options of --engine, as far as they are refused before Ray is asked."""

import pytest

from diffuserec.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate runs/x --workers 2", "--workers and --address are of --engine ray: add it"),
        ("study x.toml --out o --address a:1", "--workers and --address are of --engine ray"),
        ("recommend runs/x --engine ray --history B1", "--engine ray needs --histories and --out"),
        ("augment d --method random --out o --engine ray --workers 0", "must be at least 1, got 0"),
        ("train d --out o --final runs/x --engine ray", "leave out --engine"),
    ],
)
def test_wrong_use_of_an_engine_is_one_line(monkeypatch, capsys, tmp_path, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text(
        'title = "x"\ndata = ["d"]\nseeds = [0]\nrows = [{ model = "popularity" }]\n',
        encoding="utf-8",
    )
    monkeypatch.setattr("sys.argv", ["diffuserec", *words.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
