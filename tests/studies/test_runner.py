"""The runner: every cell once, whatever stops it; failures in the table; looks in the ledger."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffuserec import Runtime, Store
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import locked
from diffuserec.studies.copies import copy_results
from diffuserec.studies.ledger import looks
from diffuserec.studies.results import (
    fill_page,
    read_results,
    results_of,
    write_report,
)
from diffuserec.studies.run_file import read_run_file
from diffuserec.studies.runner import Outcome, run_study
from diffuserec.studies.study import Options, Study, read
from diffuserec.studies.tables import side_by_side, tables, write_tables
from diffuserec.studies.workers import Workers

STUDY = """
title = "Small"
data = ["store"]
seeds = [0, 1]
protocols = ["full", "seen kept"]
floors = ["popularity"]

[settings]
sasrec = { epochs = 1, dim = 8 }
random = { n_items = 4 }

[[rows]]
model = "sasrec"
augment = ["none", "random"]

[[rows]]
name = "width"
model = "gru4rec"
settings = { epochs = 1 }
grid = { dim = [8, 12] }
choose = true

[[rows]]
name = "draws"
model = "diffrec"
settings = { epochs = 1, dim = 8 }
grid = { n_draws = [1, 2] }
at = "inference"
seeds = [0]
"""
RUNTIME = Runtime(device="cpu", progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "store"
    Store(n_users=120, n_items=40, seed=1).dataset().save(path, note={"source": "store"})
    return path


def written(folder: Path, text: str = STUDY) -> Path:
    file = folder / "study.toml"
    file.write_text(text, encoding="utf-8")
    return file


def filled(
    study: Study, out: Path, data: Path, options: Options | None = None
) -> tuple[Outcome, dict[str, Any], list[str]]:
    said: list[str] = []
    outcome = run_study(study, out, data, RUNTIME, options=options, workers=1, say=said.append)
    return outcome, results_of(study, outcome, out), said


def cells_of(out: Path, line: str, protocol: str = "full") -> list[dict[str, Any]]:
    """The cells of a line, by seed."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "cells").iterdir()]
    chosen = [cell for cell in found if (cell["line"], cell["protocol"]) == (line, protocol)]
    return sorted(chosen, key=lambda cell: cell["seed"])


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished study: its file and its directory."""
    folder = tmp_path_factory.mktemp("done")
    file = written(folder)
    filled(read(file), folder / "out", data)
    return file, folder / "out"


@pytest.mark.parametrize("against", ['against = "Markov"', ""])  # which is the first in any case
def test_a_row_may_be_compared_with_another_than_the_others_are(
    data: Path, tmp_path: Path, against: str
) -> None:
    text = f"""
title = "counting"
data = ["store"]
{against}
rows = [
    {{ model = "markov" }},
    {{ model = "itemgraph" }},
    {{ name = "fading", model = "markov", settings = {{ decay = 0.5 }}, against = "ItemGraph" }},
]
"""
    _, results, _ = filled(read(written(tmp_path, text)), tmp_path / "out", data)
    rows = {row["name"]: row for row in results["tables"][0]["rows"]}
    references = {
        name: row["difference"]["NDCG@10"]["reference"]
        for name, row in rows.items()
        if row["difference"]
    }
    others = {"ItemGraph": "Markov", "Popularity": "Markov"}
    assert references == {**others, "fading": "ItemGraph"}
    difference = rows["fading"]["difference"]["NDCG@10"]["difference"]
    fading, graph = (rows[name]["metrics"]["NDCG@10"]["value"] for name in ("fading", "ItemGraph"))
    assert difference == pytest.approx(fading - graph)


def test_a_row_that_others_name_and_that_is_not_there_is_told(data: Path, tmp_path: Path) -> None:
    text = """
title = "counting"
data = ["store"]
rows = [
    { model = "markov" },
    { model = "itemgraph" },
    { name = "fading", model = "markov", settings = { decay = 0.5 }, against = "ItemGraph" },
]
"""
    file, out = written(tmp_path, text), tmp_path / "out"
    _, results, _ = filled(read(file), out, data, Options(only=("Markov", "fading")))
    (table,) = results["tables"]
    assert table["notes"] == ["ItemGraph is not there: compared with Markov"]
    rows = {row["name"]: row["difference"] for row in table["rows"]}
    assert rows["fading"]["NDCG@10"]["reference"] == "Markov"
    assert rows["Markov"] is None
    _, results, _ = filled(read(file), out, data)
    (table,) = results["tables"]
    assert not table["notes"]


def test_what_an_augmented_row_is_compared_with_instead_is_told(data: Path, tmp_path: Path) -> None:
    text = """
title = "counting"
data = ["store"]
rows = [
    { model = "itemgraph" },
    { model = "markov" },
    { name = "fading", model = "markov", settings = { decay = 0.5 } },
    { name = "with items", model = "markov", augment = "random", against = "fading" },
]
"""
    file, only = written(tmp_path, text), ("ItemGraph", "Markov", "with items")
    _, results, _ = filled(read(file), tmp_path / "out", data, Options(only=only))
    (table,) = results["tables"]
    assert "fading is not there: compared with Markov" in table["notes"]
    rows = {row["name"]: row["difference"] for row in table["rows"]}
    assert rows["with items"]["NDCG@10"]["reference"] == "Markov"


@pytest.mark.parametrize("limit, own", [(3, 2), (1, 2)])
def test_a_stage_of_a_length_of_its_own_is_named(
    data: Path, tmp_path: Path, limit: int, own: int
) -> None:
    text = f"""
title = "stages"
data = ["store"]
[[rows]]
model = "mfgan"
settings = {{ epochs = {limit}, patience = 1, dim = 8, rounds = 1, generator_epochs = {own} }}
"""
    file, out = written(tmp_path, text), tmp_path / "out"

    def reason() -> str:
        _, results, _ = filled(read(file), out, data)
        (row,) = (row for row in results["tables"][0]["rows"] if row["model"] == "mfgan")
        return str(row["unranked"])

    assert reason() == f"not stopped by validation within the {own} epochs of generator-1"
    (cell,) = (out / "cells").glob("mfgan*.json")
    document = json.loads(cell.read_text(encoding="utf-8"))
    del document["stage"]  # as of a release before stages were named
    cell.write_text(json.dumps(document), encoding="utf-8")
    of_old = f"the {own} epochs of its last stage" if own < limit else f"{limit} epochs"
    assert reason() == f"not stopped by validation within {of_old}"


def test_a_blend_of_fewer_seeds_is_not_ranked(data: Path, tmp_path: Path) -> None:
    text = """
title = "pools"
data = ["store"]
seeds = [0, 1]
settings.blend = { parts = ["markov", "itemgraph"] }
rows = [
    { name = "two", model = "blend" },
    { name = "one", model = "blend", seeds = [0] },
    { model = "markov", seeds = [0] },
]
"""
    _, results, _ = filled(read(written(tmp_path, text)), tmp_path / "out", data)
    found = {row["name"]: row.get("unranked") for row in results["tables"][0]["rows"]}
    assert found == {"two": None, "one": "1 of 2 seeds", "Markov": None, "Popularity": None}


def test_a_study_fills_every_cell_once(done: tuple[Path, Path], data: Path) -> None:
    file, out = done
    results = read_results(out)
    assert [table["protocol"] for table in results["tables"]] == ["full", "seen kept"]
    (full, kept) = results["tables"]
    assert full["users"] == 120
    (longer,) = (row for row in full["rows"] if row["name"] == "SASRec + Random")
    by_group = {d["group"]: d for d in longer["group_differences"] if d["metric"] == "NDCG@10"}
    parts = [by_group[group] for group in ("head", "tail")]
    assert sum(d["difference"] * d["n_users"] for d in parts) / 120 == pytest.approx(
        longer["difference"]["NDCG@10"]["difference"]
    )
    rows = {row["name"]: row for row in full["rows"]}
    (width,) = (name for name in rows if name.startswith("width"))
    others = ["SASRec", "SASRec + Random", "draws, n_draws = 1", "draws, n_draws = 2"]
    assert set(rows) == {*others, width, "Popularity"}
    assert [len(rows[name]["seeds"]) for name in [*others, width, "Popularity"]] == [
        2,
        2,
        1,
        1,
        2,
        1,
    ]
    assert rows["SASRec + Random"]["difference"]["HR@10"]["reference"] == "SASRec"
    assert rows[width]["trials"] == 2
    assert rows["SASRec"]["unranked"] == "not stopped by validation within 1 epochs"
    assert rows["draws, n_draws = 1"]["keys"] != rows["draws, n_draws = 2"]["keys"]
    # the augmented row has the leak meter, for each seed
    assert [leak["augmenter"] for leak in rows["SASRec + Random"]["leak"]] == ["random", "random"]
    assert rows["SASRec"]["leak"] == [None, None]
    assert "Leak meter" in tables(results)
    # the number is that of the run's own evaluation
    for table, seen in ((full, True), (kept, False)):
        from diffuserec.studies.run_directory import open_run

        (row,) = (row for row in table["rows"] if row["name"] == "SASRec")
        cells = cells_of(out, "SASRec", table["protocol"])
        document = cells[0]
        run = open_run(out / document["run"], data)
        found = run.measure(run.model, "test", filter_seen=seen, seed=0).metrics
        assert cells[0]["test"] == found
        mean = sum(cell["test"]["NDCG@10"] for cell in cells) / 2
        assert row["metrics"]["NDCG@10"]["value"] == pytest.approx(mean)
    # one fitted augmenter for both seeds, one trained model for both points
    assert len(list((out / "augmenters").iterdir())) == 1
    assert len([path for path in (out / "runs").iterdir() if path.name.startswith("diffrec")]) == 1
    # again: nothing is done, and the same comes out
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    _, again, said = filled(read(file), out, data)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before
    assert json.loads(json.dumps(again)) == results


def test_the_test_part_is_looked_at_for_the_chosen_point_alone(done: tuple[Path, Path]) -> None:
    _, out = done
    every = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "cells").iterdir()]
    cells = [cell for cell in every if cell["line"].startswith("width")]
    best = {name: [] for name in {cell["line"] for cell in cells}}
    for cell in cells:
        if cell["protocol"] == "full":
            best[cell["line"]].append(cell["best_valid"])
    chosen = max(best, key=lambda line: sum(best[line]))
    for cell in cells:
        events = [look["event"] for look in looks(out / cell["run"])]
        assert (cell["test"] is not None) == (cell["line"] == chosen) == ("test" in events)
        assert "validation" in events


def test_validation_alone_never_looks_at_the_test_part(data: Path, tmp_path: Path) -> None:
    options = Options(part="valid", only=("SASRec",), seeds=(0,))
    file = written(tmp_path)
    out = tmp_path / "out"
    _, results, _ = filled(read(file, options), out, data, options)
    runs = list((out / "runs").iterdir())
    assert len(runs) == 1
    assert {look["event"] for run in runs for look in looks(run)} == {"validation"}
    assert results["tables"][0]["part"] == "valid"
    assert "split leave-one-out, valid" in results["tables"][0]["line"]
    # the test part later, without training again
    options = Options(only=("SASRec",), seeds=(0,))
    weights = next(runs[0].rglob("weights*"))
    trained = weights.stat().st_mtime_ns
    filled(read(file, options), out, data, options)
    assert weights.stat().st_mtime_ns == trained
    assert sum(look["event"] == "test" for look in looks(runs[0])) == 2  # a protocol each


def test_what_training_measured_last_is_not_measured_again(data: Path, tmp_path: Path) -> None:
    options = Options(part="valid", only=("SASRec",), seeds=(0,))
    out = tmp_path / "out"
    _, results, _ = filled(read(written(tmp_path), options), out, data, options)
    (run,) = (out / "runs").iterdir()
    kept = [look["filter_seen"] for look in looks(run) if "epochs" not in look]
    assert kept == [True, False]  # once a protocol
    stored = json.loads((run / "valid" / "metrics.json").read_text(encoding="utf-8"))
    (table, _) = results["tables"]
    assert table["rows"][0]["metrics"]["HR@10"]["value"] == stored["metrics"]["HR@10"]


def test_a_failure_stands_in_the_table_and_is_tried_again(data: Path, tmp_path: Path) -> None:
    text = STUDY.replace("sasrec = { epochs = 1", "sasrec = { learning_rate = 1e30, epochs = 2")
    options = Options(only=("SASRec", "SASRec + Random", "Popularity"), seeds=(0,))
    out = tmp_path / "out"
    _, results, said = filled(read(written(tmp_path, text), options), out, data, options)
    rows = {row["name"]: row for row in results["tables"][0]["rows"]}
    assert "the loss of phase 'fit' became" in rows["SASRec"]["failed"]
    assert rows["Popularity"]["failed"] is None
    assert "the loss of phase" in tables(results)
    assert sum("failed" in line for line in said) == 2
    _, results, said = filled(read(written(tmp_path, text), options), out, data, options)
    assert sum("failed" in line for line in said) == 2
    _, results, _ = filled(read(written(tmp_path, STUDY), options), out, data, options)
    assert all(row["failed"] is None for row in results["tables"][0]["rows"])


def test_one_more_seed_trains_one_more_run(done: tuple[Path, Path], data: Path) -> None:
    file, out = done
    options = Options(only=("SASRec",), seeds=(0, 1, 2))
    _, results, said = filled(read(file, options), out, data, options)
    assert [line for line in said if "SASRec, store" in line and "measured" not in line] == [
        line for line in said if "SASRec, store, seed 2:" in line
    ]
    assert results["tables"][0]["rows"][0]["seeds"] == [0, 1, 2]
    results_of(read(file), run_study(read(file), out, data, RUNTIME, workers=1), out)


def test_what_only_counts_hides_no_time_that_is_left(data: Path, tmp_path: Path) -> None:
    options = Options(only=("SASRec", "Popularity"), seeds=(0,))
    _, _, said = filled(read(written(tmp_path), options), tmp_path / "out", data, options)
    (plan,) = (line for line in said if "to train" in line)
    assert plan.startswith("2 to train")
    assert "about" in plan
    assert "not known" not in plan


def test_some_data_sets_are_filled_and_others_wait(data: Path, tmp_path: Path) -> None:
    file = written(tmp_path, STUDY.replace('["store"]', '["store:60", "store"]'))
    out, only = tmp_path / "out", Options(only=("Popularity",))
    for name, expected in (("store", {"store"}), ("store:60", {"store", "store:60"})):
        options = replace(only, on=(name,))
        outcome, results, said = filled(read(file, options), out, data, options)
        assert {cell.data for cell in outcome.cells} == expected
        assert {table["data"] for table in results["tables"]} == expected
        assert [line for line in said if "Popularity" in line and f"{name}," in line]
        assert not [line for line in said if any(f"{x}," in line for x in expected - {name})]
    options = replace(only, on=("store:20",))
    with pytest.raises(ConfigError, match=r"no data set 'store:20'.*there are: store:60, store"):
        run_study(read(file, options), out, data, RUNTIME, options=options)


def test_a_study_has_a_report_with_costs(done: tuple[Path, Path], data: Path) -> None:
    file, out = done
    study = read(file)
    outcome = run_study(study, out, data, RUNTIME, workers=1)
    write_report(study, outcome, out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "SASRec + Random" in page
    assert "Accuracy and cost" in page
    assert "epochs = 1, dim = 8" in page
    assert {"cost-0.svg", "differences-0.svg"} <= {
        file.name for file in (out / "figures").iterdir()
    }
    (cell, *_) = (c for c in outcome.cells if (c.line, c.plan.seed) == ("SASRec + Random", 1))
    augmenter = cell.augmenter_path(out)
    assert augmenter is not None
    fitted = read_run_file(augmenter).seconds["fit_augmenter"]
    assert outcome.documents[cell.name]["seconds"]["fit_augmenter"] >= fitted
    assert (cell.run_path(out) / "epochs.jsonl").exists()


def test_data_that_is_not_there_is_left_out_and_said(data: Path, tmp_path: Path) -> None:
    text = STUDY.replace('["store"]', '["toys", "store"]')
    options = Options(only=("Popularity",))
    study = read(written(tmp_path, text), options)
    (tmp_path / "data").mkdir()
    said: list[str] = []
    outcome = run_study(
        study,
        tmp_path / "out",
        tmp_path / "data",
        RUNTIME,
        options=options,
        workers=1,
        say=said.append,
    )
    assert "Amazon Toys and Games" in outcome.skipped["toys"]
    assert any("toys is left out" in line for line in said)
    assert {cell.data for cell in outcome.cells} == {"store"}
    text = STUDY.replace('["store"]', '["toys"]')
    with pytest.raises(ConfigError, match="no data set of the study is there"):
        run_study(read(written(tmp_path, text)), tmp_path / "o", tmp_path / "data", RUNTIME)


def test_two_runners_in_one_directory_are_one_too_many(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with locked(out), pytest.raises((DataError, ConfigError)):
        run_study(read(written(tmp_path)), out, data, RUNTIME, workers=1)


def test_tables_pages_and_copies(done: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = done
    results = read_results(out)
    write_tables(results, out)
    for ending in ("txt", "md", "tex", "csv", "html"):
        assert "SASRec" in (out / f"table.{ending}").read_text(encoding="utf-8")
    for part in (
        "<!doctype html>",
        'name="viewport"',
        'content="light dark"',
        f"<title>{results['title']}</title>",
    ):
        assert part in (out / "table.html").read_text(encoding="utf-8")
    assert "<svg" in (out / "curve-1.svg").read_text(encoding="utf-8")
    copy_results(out, tmp_path / "copy")
    assert read_results(tmp_path / "copy") == results
    assert len(list((tmp_path / "copy" / "cells").iterdir())) == len(
        list((out / "cells").iterdir())
    )
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- results copy -->\nold\n<!-- /results copy -->\nb\n", encoding="utf-8")
    fill_page(page, "copy", tables(results, "markdown"))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("a\n<!-- results copy -->\n")
    assert text.endswith("<!-- /results copy -->\nb\n")
    assert "old" not in text
    assert "| SASRec " in text
    with pytest.raises(ConfigError, match="no marks"):
        fill_page(page, "other", "x")


def test_a_copy_names_no_place_of_this_machine(done: tuple[Path, Path], tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(done[1] / "cells", own / "cells")
    command = "diffuserec study /home/me/s.toml --data=/srv/a b --out 'C:\\runs\\x' 31/35 -k 1"
    for file in (own / "cells").iterdir():
        cell = json.loads(file.read_text(encoding="utf-8"))
        cell["environment"]["command"] = command
        cell["error"] = f"{tmp_path}/run.json plans another"
        file.write_text(json.dumps(cell), encoding="utf-8")
    shutil.copy(done[1] / "results.json", own)
    copy_results(own, tmp_path / "copy")
    copied = [json.loads(f.read_text("utf-8")) for f in (tmp_path / "copy" / "cells").iterdir()]
    expected = "diffuserec study s.toml --data=a b --out 'x' 31/35 -k 1"
    assert {cell["environment"]["command"] for cell in copied} == {expected}
    assert {cell["error"] for cell in copied} == {"run.json plans another"}


def test_a_study_continues_from_a_copy_of_its_results(
    done: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    file, out = done
    copy, shown = tmp_path / "copy", read_results(out)
    copy_results(out, copy)
    outcome, results, said = filled(read(file), copy, data)
    assert not any("to train" in line for line in said)
    assert not list((copy / "runs").glob("*"))
    assert tables(results, "markdown") == tables(shown, "markdown")
    write_report(read(file), outcome, copy)
    assert "SASRec" in (copy / "report.html").read_text(encoding="utf-8")
    # one row alone: the others stay, with what was spent on them
    _, results, _ = filled(read(file), copy, data, Options(only=("SASRec",)))
    assert tables(results, "markdown") == tables(shown, "markdown")
    # what a copy lacks is trained, and that alone
    lost, *_ = cells_of(out, "SASRec")
    for cell in cells_of(out, "SASRec") + cells_of(out, "SASRec", "seen kept"):
        for ranks in (copy / "ranks").glob(f"*{cell['key'][:8]}-test.parquet"):
            if cell["run"] == lost["run"]:
                ranks.unlink()
    _, _, said = filled(read(file), copy, data, Options(only=("Popularity",)))
    (told,) = (line for line in said if "left out of the tables" in line)
    assert "values by user are not here: SASRec (store, seed 0); ask" in told
    _, again, said = filled(read(file), copy, data)
    assert any(line.startswith("once more, because of what was measured before") for line in said)
    assert [path.name for path in (copy / "runs").glob("*/")] == [Path(lost["run"]).name]
    for table, before in zip(again["tables"], shown["tables"], strict=True):
        for row, old in zip(table["rows"], before["rows"], strict=True):
            assert row["metrics"]["NDCG@10"]["value"] == old["metrics"]["NDCG@10"]["value"]
            assert row["difference"] == old["difference"]
            # to look again is a further look
            looks = 2 * old["looks_at_test"][0] if row["name"] == "SASRec" else None
            assert row["looks_at_test"][0] == (looks or old["looks_at_test"][0])


def test_a_further_seed_of_a_copy_stands_beside_the_others(data: Path, tmp_path: Path) -> None:
    text = """
title = "further"
data = ["store"]
floors = ["popularity"]
rows = [{ model = "sasrec", settings = { epochs = 1, dim = 8 } }]
seeds = SEEDS
"""
    file = written(tmp_path, text.replace("SEEDS", "[0]"))
    filled(read(file), tmp_path / "out", data)
    copy_results(tmp_path / "out", tmp_path / "copy")
    file = written(tmp_path, text.replace("SEEDS", "[0, 1]"))
    outcome, found, _ = filled(read(file), tmp_path / "copy", data)
    write_report(read(file), outcome, tmp_path / "copy")
    _, whole, _ = filled(read(file), tmp_path / "out", data)
    for row, other in zip(found["tables"][0]["rows"], whole["tables"][0]["rows"], strict=True):
        assert row["metrics"]["HR@10"] == other["metrics"]["HR@10"]
        assert row["difference"] == other["difference"]
        assert row["metrics"]["MRR"]["value"] == pytest.approx(other["metrics"]["MRR"]["value"])
    assert found["tables"][0]["rows"][0]["seeds"] == [0, 1]


def test_a_copy_of_a_copy_is_the_same_copy(done: tuple[Path, Path], tmp_path: Path) -> None:
    copy_results(done[1], tmp_path / "once")
    copy_results(tmp_path / "once", tmp_path / "twice")
    once, twice = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "once", tmp_path / "twice")
    )
    assert once == twice
    assert sum(path.parts[0] == "ranks" for path in once) > 5


def test_a_file_that_is_no_cell_stops_neither_a_copy_nor_a_study(
    done: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy_results(done[1], copy)
    for name, text in {"cut": '{"format": "diff', "other": '{"format": "none of ours"}'}.items():
        (copy / "cells" / f"{name}.json").write_text(text, encoding="utf-8")
    _, results, _ = filled(read(done[0]), copy, data)
    assert tables(results) == tables(read_results(done[1]))
    copy_results(copy, tmp_path / "again")
    names = {path.stem for path in (tmp_path / "again" / "cells").iterdir()}
    assert names == {path.stem for path in (copy / "cells").iterdir()} - {"cut", "other"}


def test_a_study_of_two_logs_stands_side_by_side_with_both(done: tuple[Path, Path]) -> None:
    results = read_results(done[1])
    other = [table | {"data": "other"} for table in results["tables"]]
    text = side_by_side([results | {"tables": [*results["tables"], *other]}], "csv")
    (line,) = (line for line in csv.DictReader(io.StringIO(text)) if line[""] == "SASRec")
    assert line["store NDCG@10"] == line["other NDCG@10"] != ""


def _die(runtime: Runtime) -> None:
    os._exit(3)


def _answer(runtime: Runtime) -> int:
    return 42


def _refuse(runtime: Runtime) -> int:
    raise DataError("no such thing\nat all")


def test_a_worker_that_dies_is_told_and_replaced() -> None:
    with Workers(2, RUNTIME) as pool:
        found: dict[str, tuple[str, Any]] = {}
        pool.submit("dies", _die)
        pool.submit("works", _answer)
        while pool.n_busy:
            found |= {event.key: (event.kind, event.value) for event in pool.events()}
        pool.submit("refuses", _refuse)
        pool.submit("works again", _answer)
        while pool.n_busy:
            found |= {event.key: (event.kind, event.value) for event in pool.events()}
    assert found == {
        "dies": ("failed", "its process ended with status 3"),
        "works": ("done", 42),
        "refuses": ("failed", "no such thing"),
        "works again": ("done", 42),
    }


SMALL = {"sasrec": "epochs = 1, dim = 8", "gru4rec": "epochs = 1, dim = 8"}
GRU4REC = '[[rows]]\nmodel = "gru4rec"\n'


def of(rows: str) -> str:
    """A study of these rows, with small settings of the methods that they name."""
    head = 'title = "Rows"\ndata = ["store"]\nfloors = []\n[settings]\n'
    small = [f"{name} = {{ {text} }}\n" for name, text in SMALL.items() if f'"{name}"' in rows]
    return head + "".join(small) + rows


def test_other_settings_have_other_files(data: Path, tmp_path: Path) -> None:
    file, out = written(tmp_path, of(GRU4REC)), tmp_path / "out"
    values: dict[int, float] = {}
    for dim in (8, 12, 8):
        options = Options(settings={"gru4rec.dim": dim})
        _, results, said = filled(read(file), out, data, options)
        value = results["tables"][0]["rows"][0]["metrics"]["NDCG@10"]["value"]
        assert values.setdefault(dim, value) == value
    assert said == []  # what was filled before is kept beside what came between
    assert len(list((out / "cells").iterdir())) == 2
    assert results["tables"][0]["rows"][0]["trials"] == 2
    (cell,) = (c for c in cells_of(out, "GRU4Rec") if c["settings"]["dim"] == 8)
    assert cell["test"]["NDCG@10"] == values[8]


def test_a_log_that_was_replaced_is_prepared_anew(tmp_path: Path) -> None:
    file = written(tmp_path, of('[[rows]]\nmodel = "popularity"\n'))
    logs, out = tmp_path / "logs", tmp_path / "out"
    logs.mkdir()
    values = set()
    for seed in (1, 2):
        Store(n_users=80, n_items=40, seed=seed).frame().write_csv(logs / "store.csv")
        _, results, said = filled(read(file), out, logs)
        values.add(results["tables"][0]["rows"][0]["metrics"]["NDCG@10"]["value"])
    assert len(values) == 2
    assert any("is prepared anew" in line for line in said)


def test_a_default_that_is_written_is_the_default(data: Path, tmp_path: Path) -> None:
    text = '[[rows]]\nname = "A"\nmodel = "markov"\n'
    text += '[[rows]]\nname = "B"\nmodel = "markov"\ngrid = { decay = [0.7, 0.0] }\n'
    file, only = written(tmp_path, of(text)), Options(only=("A",))
    filled(read(file, only), tmp_path / "out", data, only)
    _, results, _ = filled(read(file), tmp_path / "out", data)
    rows = {row["name"]: row for row in results["tables"][0]["rows"]}
    assert all(row["failed"] is None for row in rows.values())
    assert rows["A"]["keys"] == rows["B, decay = 0.7"]["keys"] != rows["B, decay = 0.0"]["keys"]
    # asking for one row keeps the others in the table
    _, results, _ = filled(read(file, only), tmp_path / "out", data, only)
    assert {row["name"] for row in results["tables"][0]["rows"]} == set(rows)


def test_each_method_of_a_row_chooses_its_own_point(data: Path, tmp_path: Path) -> None:
    text = '[[rows]]\nmodel = ["gru4rec", "sasrec"]\ngrid = { dim = [8, 12] }\nchoose = true\n'
    text += '[[rows]]\nmodel = "markov"\ngrid = { decay = [0.0, 0.7] }\nchoose = true\n'
    _, results, _ = filled(read(written(tmp_path, of(text))), tmp_path / "out", data)
    names = [row["name"] for row in results["tables"][0]["rows"]]
    assert sorted(name.partition(",")[0] for name in names) == ["GRU4Rec", "Markov", "SASRec"]
    lines = list(csv.DictReader(io.StringIO(tables(results, "csv"))))
    assert {line["method"] for line in lines} == set(names)
    assert {line["protocol"] for line in lines} == {"full"}


def test_a_chosen_point_that_fails_on_test_is_told(data: Path, tmp_path: Path) -> None:
    text = '[[rows]]\nmodel = "gru4rec"\ngrid = { dim = [8, 12] }\nchoose = true\n'
    text += '[[rows]]\nmodel = "popularity"\n'
    file, out, valid = written(tmp_path, of(text)), tmp_path / "out", Options(part="valid")
    filled(read(file, valid), out, data, valid)
    for run in (out / "runs").glob("gru4rec*"):
        next(run.glob("model/weights*")).write_bytes(b"damaged")
    _, results, _ = filled(read(file), out, data)
    rows = {row["name"].partition(",")[0]: row for row in results["tables"][0]["rows"]}
    assert rows["GRU4Rec"]["failed"] is not None
    assert rows["Popularity"]["metrics"]


def test_a_point_that_two_rows_share_is_chosen_by_each_for_itself(
    data: Path, tmp_path: Path
) -> None:
    rows = [("early", [0.0, 0.7]), ("late", [0.7, 0.99])]
    text = "".join(
        f'[[rows]]\nname = "{name}"\nmodel = "markov"\nchoose = true\ngrid = {{ decay = {grid} }}\n'
        for name, grid in rows
    )
    file, out = written(tmp_path, of(text)), tmp_path / "out"
    only = Options(only=("late, decay = 0.7", "late, decay = 0.99", "early, decay = 0.7"))
    _, results, said = filled(read(file, only), out, data, only)
    assert [row["name"] for row in results["tables"][0]["rows"]] == ["late, decay = 0.7"]
    assert any(line.startswith("early, decay = 0.7 (store) is shown once") for line in said)
    _, results, _ = filled(read(file), out, data)
    assert sorted(row["name"].partition(",")[0] for row in results["tables"][0]["rows"]) == [
        "early",
        "late",
    ]


def test_a_point_that_fails_is_not_chosen_and_leaves_the_others_to_choose_among(
    data: Path, tmp_path: Path
) -> None:
    text = 'name = "rate"\nmodel = "sasrec"\nsettings = { epochs = 2 }\nchoose = true\n'
    text += "grid = { learning_rate = [1e30, 0.001] }\n"
    _, results, _ = filled(read(written(tmp_path, of(f"[[rows]]\n{text}"))), tmp_path / "out", data)
    (row,) = results["tables"][0]["rows"]
    assert (row["name"], row["failed"]) == ("rate, learning_rate = 0.001", None)
    assert row["devices"] == ["cpu"]
    (failed,) = cells_of(tmp_path / "out", "rate, learning_rate = 1e+30")
    assert failed["status"] == "failed"


def test_a_worker_that_dies_while_it_is_idle_is_replaced() -> None:
    import multiprocessing

    with Workers(2, RUNTIME) as pool:
        pool.submit("first", _answer)
        while pool.n_busy:
            list(pool.events())
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        pool.submit("second", _answer)
        found = []
        while pool.n_busy:
            found += [event.value for event in pool.events()]
    assert found == [42]


def test_a_row_that_chooses_waits_for_all_of_its_points(data: Path, tmp_path: Path) -> None:
    plain = '[[rows]]\nname = "narrow"\nmodel = "gru4rec"\nsettings = { dim = 8 }\n'
    text = plain + '[[rows]]\nname = "width"\nmodel = "gru4rec"\n'
    text += "grid = { dim = [8, 12] }\nchoose = true\n"
    file, out = written(tmp_path, of(text)), tmp_path / "out"
    # a point alone, which is another row, too: neither is measured on the test part
    only = Options(only=("width, dim = 8",))
    _, results, said = filled(read(file, only), tmp_path / "alone", data, only)
    assert results["tables"] == []
    assert (
        "width, dim = 8 (store) is shown once all points of its row are there to choose among"
        in said
    )
    # a point is there, measured on the test part as another row; what it would win against is not
    only = Options(only=("narrow",))
    _, results, _ = filled(read(file, only), out, data, only)
    assert [row["name"] for row in results["tables"][0]["rows"]] == ["narrow"]
    # asked for the other one: the better of both is measured, whichever was asked for
    only = Options(only=("width, dim = 12",))
    _, results, _ = filled(read(file, only), out, data, only)
    every = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "cells").iterdir()]
    valid = {cell["settings"]["dim"]: cell["valid"]["NDCG@10"] for cell in every}
    best = max(valid, key=lambda dim: valid[dim])
    rows = [row["name"] for row in results["tables"][0]["rows"]]
    assert sorted(rows) == ["narrow", f"width, dim = {best}"]
    looked_at = {cell["settings"]["dim"] for cell in every if cell["test"] is not None}
    assert looked_at == {8, best}
    for dim in (8, 12):  # also for the one that loses
        only = Options(only=(f"width, dim = {dim}",))
        _, results, _ = filled(read(file, only), out, data, only)
        assert [row["name"] for row in results["tables"][0]["rows"]] == rows


def test_a_run_is_measured_before_the_next_is_trained(data: Path, tmp_path: Path) -> None:
    text = '[[rows]]\nmodel = "gru4rec"\ngrid = { dim = [8, 12] }\n'
    _, _, said = filled(read(written(tmp_path, of(text))), tmp_path / "out", data)
    steps = [line.partition("] ")[2].partition(":")[0] for line in said if line.startswith("[")]
    trained = [step for step in steps if not step.endswith(", measured")]
    assert len(trained) == 2
    assert steps == [step for run in trained for step in (run, f"{run}, measured")]


def test_validation_by_epoch_stays_in_a_copy(data: Path, tmp_path: Path) -> None:
    text = 'part = "valid"\n' + of('[[rows]]\nmodel = "gru4rec"\n')
    file, out, copy = written(tmp_path, text), tmp_path / "out", tmp_path / "copy"
    _, results, _ = filled(read(file), out, data)
    copy_results(out, copy)
    shown = tables(results, "markdown")
    assert "on validation by epoch" in shown
    assert tables(read_results(copy), "markdown") == shown
    _, again, said = filled(read(file), copy, data)
    assert (tables(again, "markdown"), said) == (shown, [])


def test_seeds_that_are_asked_for_one_by_one_share_their_augmenter(
    data: Path, tmp_path: Path
) -> None:
    text = "seeds = [0, 1]\n" + of('[[rows]]\nmodel = "gru4rec"\naugment = "random"\n')
    file, out = written(tmp_path, text), tmp_path / "out"
    for seed in (1, 0):
        options = Options(seeds=(seed,))
        filled(read(file, options), out, data, options)
    assert len(list((out / "augmenters").iterdir())) == 1
    _, results, said = filled(read(file), out, data)
    assert (results["tables"][0]["rows"][0]["seeds"], said) == ([0, 1], [])


def test_a_validation_study_of_a_copy_leaves_out_points_without_values(
    data: Path, tmp_path: Path
) -> None:
    text = of('[[rows]]\nmodel = "gru4rec"\ngrid = { dim = [8, 12] }\nchoose = true\n')
    text += '[[rows]]\nmodel = "popularity"\n'
    file, out, copy = written(tmp_path, text), tmp_path / "out", tmp_path / "copy"
    filled(read(file), out, data)
    copy_results(out, copy)
    # the copy has ranks of the test part alone: points without those of validation are left out
    options = Options(part="valid", only=("Popularity",))
    _, results, said = filled(read(file, options), copy, data, options)
    assert [row["name"] for row in results["tables"][0]["rows"]] == ["Popularity"]
    assert any("left out of the tables" in line for line in said)
