"""Study files: what lines and cells they make, and what is refused."""

from pathlib import Path

import pytest

from diffuserec.errors import ConfigError
from diffuserec.studies.papers import paper_names, paper_study
from diffuserec.studies.study import Options, lines, parse_protocol, read

STUDY = """
title = "Items in front"
data = ["store"]
seeds = [0, 1]

[settings]
sasrec = { epochs = 7, dim = 16 }
random = { n_items = 3 }

[[rows]]
model = ["sasrec", "gru4rec"]
augment = ["none", "random"]

[[rows]]
name = "wide"
model = "sasrec"
settings = { dim = 32 }
seeds = [5]

[[rows]]
model = "gru4rec"
augment = "random"
grid = { dim = [8, 24], "augment.n_items" = [2, 4] }

[[rows]]
name = "draws"
model = "diffrec"
grid = { n_draws = [1, 3] }
at = "inference"

[small]
seeds = [3]
users = 50
settings = { sasrec = { epochs = 1 } }
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_split_file_lies_beside_the_study(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.csv"
    first = f"file:target=first,path={elsewhere.as_posix()}"
    splits = f'["leave-one-out", "file:parts, new.csv", "{first}"]'
    text = STUDY.replace("seeds = [0, 1]", f"seeds = [0, 1]\nsplits = {splits}")
    assert read(written(tmp_path, text)).splits == [
        "leave-one-out",
        f"file:path={tmp_path / 'parts, new.csv'}",
        f"file:target=first,path={elsewhere}",
    ]


def test_a_row_makes_a_line_for_each_method_and_point(tmp_path: Path) -> None:
    study = read(written(tmp_path, STUDY))
    found = {line.name: line for line in lines(study)}
    assert list(found) == [
        "SASRec",
        "SASRec + Random",
        "GRU4Rec",
        "GRU4Rec + Random",
        "wide",
        "GRU4Rec + Random, dim = 8, n_items = 2",
        "GRU4Rec + Random, dim = 8, n_items = 4",
        "GRU4Rec + Random, dim = 24, n_items = 2",
        "GRU4Rec + Random, dim = 24, n_items = 4",
        "draws, n_draws = 1",
        "draws, n_draws = 3",
        "Popularity",
        "Markov",
    ]
    assert found["SASRec + Random"].plan.settings == {"epochs": 7, "dim": 16}
    assert found["SASRec + Random"].plan.augment_settings == {"n_items": 3}
    assert found["wide"].plan.settings == {"epochs": 7, "dim": 32}
    assert found["wide"].seeds == (5,)
    assert found["SASRec"].seeds == (0, 1)
    point = found["GRU4Rec + Random, dim = 24, n_items = 2"]
    assert (point.plan.settings, point.plan.augment_settings) == ({"dim": 24}, {"n_items": 2})
    draws = found["draws, n_draws = 3"]
    assert draws.plan.settings == {}  # one model is trained for all points
    assert draws.measured_at == {"n_draws": 3}


def test_options_hold_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, STUDY)
    options = Options(settings={"sasrec.dim": 24}, small=True, only=("wide", "SASRec"))
    study = read(file, options)
    found = {line.name: line for line in lines(study, options)}
    assert list(found) == ["SASRec", "wide"]
    assert found["wide"].plan.settings == {"epochs": 1, "dim": 24}
    assert {line.seeds for line in found.values()} == {(3,)}
    options = Options(seeds=(8, 9), part="valid")
    study = read(file, options)
    assert study.part == "valid"
    assert {line.seeds for line in lines(study, options)} == {(8, 9), (8,)}  # floors have one


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "tilte =", r"unknown key 'tilte' \(did you mean 'title'\?\)"),
        ('data = ["store"]', "data = []", "data: List should have at least 1 item"),
        ("dim = 32", "dmi = 32", r"SASRec has no setting 'dmi' \(did you mean 'dim'\?\)"),
        ("random = {", "radom = {", r"'radom', which no row has \(did you mean 'random'\?\)"),
        ('model = "diffrec"', 'model = "difrec"', "no recommender"),
        ("n_draws = [1, 3]", "n_draws = []", "grid: n_draws has no values"),
        ('name = "wide"', 'name = "Sasrec"', "rows need names that differ in letters"),
        ('at = "inference"', 'at = "test"', "at: Input should be 'training' or 'inference'"),
        ("seeds = [5]", "seeds = [5, 5]", "seeds must be a list of different whole numbers"),
        ("seeds = [5]", 'augment = ["none"]', "a row of several methods is named by them"),
        ("seeds = [5]", "choose = true", "choose and at need a grid"),
        ("seeds = [5]", "seeds = [-1]", "seeds must be a list of different whole numbers"),
        ("seeds = [5]", 'against = "SASrec"', r"'SASrec' is no row \(did you mean 'SASRec'"),
        ("seeds = [5]", 'preset = "as_published"', "no settings as published are known"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        lines(read(written(tmp_path, STUDY.replace(old, new))))
    assert "\n" not in str(caught.value)


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    study = read(written(tmp_path, STUDY))
    for options, message in (
        (Options(only=("widd",)), r"no row 'widd' \(did you mean 'wide'\?\)"),
        (Options(settings={"dim": 3}), "name the method too, as in --set sasrec.dim"),
        (Options(settings={"bpr.dim": 3}), "'bpr', which no row has"),
    ):
        with pytest.raises(ConfigError, match=message):
            lines(study, options)


def test_what_others_are_compared_with_names_no_row_of_its_own(tmp_path: Path) -> None:
    text = """
title = "counting"
data = ["store"]
rows = [{ model = "markov", against = "ItemGraph" }, { model = "itemgraph" }]
"""
    with pytest.raises(ConfigError, match="of 'Markov': others are compared with that row"):
        lines(read(written(tmp_path, text)))
    lines(read(written(tmp_path, text.replace("rows =", 'against = "ItemGraph"\nrows ='))))


def test_a_small_budget_changes_what_it_names_of_a_blends_parts_alone(tmp_path: Path) -> None:
    text = """
title = "blends"
data = ["store"]

[[rows]]
model = "blend"

[rows.settings]
parts = ["sasrec", "markov"]
settings.sasrec = { epochs = 60, dim = 8 }
settings.markov = { decay = 0.5 }

[small]
settings = { blend = { settings = { sasrec = { epochs = 1 } } } }
"""
    study = read(written(tmp_path, text))
    full, *_ = lines(study)
    small, *_ = lines(study, Options(small=True))
    parts = {"sasrec": {"epochs": 60, "dim": 8}, "markov": {"decay": 0.5}}
    assert full.plan.settings["settings"] == parts
    assert small.plan.settings["settings"] == {**parts, "sasrec": {"epochs": 1, "dim": 8}}


def test_settings_of_all_recommenders_give_way_to_those_of_one(tmp_path: Path) -> None:
    text = STUDY.replace("[settings]", "[settings]\nrecommenders = { epochs = 9, max_len = 20 }")
    text = text.replace("{ sasrec = { epochs = 1 } }", "{ recommenders = { epochs = 2 } }")
    study = read(written(tmp_path, text + '\n[[rows]]\nmodel = "bpr"\n'))
    plans = {line.name: line.plan for line in lines(study)}
    assert plans["SASRec"].settings == {"epochs": 7, "dim": 16, "max_len": 20}
    assert plans["GRU4Rec"].settings == {"epochs": 9, "max_len": 20}
    assert plans["BPR"].settings == {"epochs": 9}  # it has no max_len
    assert plans["Popularity"].settings == {}
    small = {line.name: line.plan for line in lines(study, Options(small=True))}
    assert [small[name].settings["epochs"] for name in ("SASRec", "GRU4Rec", "BPR")] == [2, 2, 2]
    wrong = read(written(tmp_path, text.replace("max_len = 20", "max_length = 20")))
    with pytest.raises(ConfigError, match=r"no recommender of the study has 'max_length'.*max_len"):
        lines(wrong)


def test_protocols() -> None:
    assert parse_protocol("full") == ("full", True)
    assert parse_protocol("seen kept") == ("full", False)
    assert parse_protocol("uniform:100") == ("uniform:100", True)
    assert parse_protocol("uniform:100, seen kept") == ("uniform:100", False)
    for wrong in ("sampled", "full, uniform:5", ""):
        with pytest.raises(ConfigError):
            parse_protocol(wrong)


@pytest.mark.parametrize("name", paper_names())
def test_studies_of_the_papers_are_valid(name: str) -> None:
    for options in (Options(), Options(small=True)):
        study = read(paper_study(name), options)
        assert lines(study, options)
        assert study.title


def test_studies_of_this_project_are_valid() -> None:
    files = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))
    assert files
    for file in files:
        for options in (Options(), Options(small=True)):
            assert lines(read(file, options), options)
