"""The whole product in a few minutes, on the built-in store, where the best possible is known."""

import shutil
from collections.abc import Callable
from pathlib import Path

from diffuserec.studies.examples import drawn_lists, examples
from diffuserec.models.base import Run
from diffuserec.data import Store
from diffuserec.errors import ConfigError
from diffuserec.evaluation import Evaluation, Report, evaluate
from diffuserec.reports.html import write_html
from diffuserec.evaluation.oracle import Oracle
from diffuserec.studies.experiment import floor_evaluations, slug, train_run
from diffuserec.studies.run_directory import Plan, read_curve, write_json


def run_demo(out: Path, run: Run, say: Callable[[str], None] = lambda line: None) -> Report:
    """The built-in store: floors, SASRec with and without DiffuASR's items, DiffRec, the best.

    Args:
        out: directory for the prepared log, the runs and report.html.
        run: surroundings.
    """
    mark = out / "demo.json"
    if out.exists() and not mark.is_file():
        raise ConfigError(f"{out} exists and is not a demo's: choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_json(mark, {"seed": run.seed})
    say("making the built-in store's log")
    store = Store(n_users=4000, n_items=800, seed=run.seed)
    data = out / "store"
    store.dataset().save(data, note={"source": "the built-in store"})
    settings = {"epochs": 15, "patience": 3}
    plans = {
        "sasrec": Plan(str(data.resolve()), "sasrec", settings, seed=run.seed),
        "sasrec + diffuasr": Plan(
            str(data.resolve()), "sasrec", settings, "diffuasr", {}, seed=run.seed
        ),
        "diffrec": Plan(str(data.resolve()), "diffrec", settings, seed=run.seed),
    }
    results: dict[str, Evaluation] = {}
    trained = {}
    for name, plan in plans.items():
        trained[name] = train_run(plan, out / slug(name), run, say=say)
        results[name] = trained[name].evaluate()
    one = trained["sasrec"]
    results |= floor_evaluations(one.split, one)
    facts = {**one.facts, "split": f"{one.split.protocol}, test"}
    results["oracle"] = evaluate(
        Oracle(store).fit(one.split.train), one.split.test, dataset_name="store", facts=facts
    )
    report = Report.of(results)
    write_html(
        out / "report.html",
        report,
        title="The built-in store",
        curves={name: read_curve(run.path / "curve.json") for name, run in trained.items()},
        examples=examples(trained["sasrec + diffuasr"]),
        drawn=drawn_lists(trained["diffrec"]),
    )
    return report
