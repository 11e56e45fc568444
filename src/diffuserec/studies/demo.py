"""Demo: the whole product in a few minutes, on the built-in store, whose optimum is known."""

import shutil
from pathlib import Path

from diffuserec.data import Store
from diffuserec.errors import ConfigError
from diffuserec.evaluation.oracle import Oracle
from diffuserec.files import write_json
from diffuserec.models.base import Runtime
from diffuserec.reports.html import write_html
from diffuserec.reports.report import Report
from diffuserec.studies.compare import with_baselines
from diffuserec.studies.examples import augmented_histories, drawn_lists
from diffuserec.studies.made import made_of, next_steps
from diffuserec.studies.run_directory import Plan, read_curve
from diffuserec.studies.study_file import slug
from diffuserec.studies.train_run import Say, silent, train_run


def run_demo(out: Path, runtime: Runtime, say: Say = silent) -> Report:
    """Trains SASRec with and without DiffuASR's items, and DiffRec, and compares them.

    Trivial baselines and the oracle are compared with them.

    Args:
        out: directory for the prepared log, the runs and report.html.

    Raises:
        ConfigError: `out` holds something else than an earlier demo.
    """
    mark = out / "demo.json"
    if out.exists() and not mark.is_file():
        raise ConfigError(f"{out} exists and is not a demo's: choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    write_json(mark, {"seed": runtime.seed})
    say("making the built-in store's log")
    store = Store(n_users=4000, n_items=800, seed=runtime.seed)
    data = out / "store"
    store.dataset().save(data, note={"source": "the built-in store"})
    settings = {"epochs": 15, "patience": 3}
    runs = {}
    for model, augment in (("sasrec", None), ("sasrec", "diffuasr"), ("diffrec", None)):
        plan = Plan(str(data.resolve()), model, settings, augment, seed=runtime.seed)
        runs[plan.label] = train_run(plan, out / slug(plan.label), runtime, say=say)
    plain = runs["sasrec"]
    results = with_baselines({name: [run.evaluate()] for name, run in runs.items()}, plain)
    results["oracle"] = [plain.measure(Oracle(store=store).fit(plain.split.train))]
    report = Report.of(results, made={name: [made_of(run)] for name, run in runs.items()})
    write_html(
        out / "report.html",
        report,
        title="The built-in store",
        curves={name: read_curve(run.path / "curve.json") for name, run in runs.items()},
        augmented=augmented_histories(runs["sasrec + diffuasr"]),
        drawn=drawn_lists(runs["diffrec"]),
        next_steps=next_steps(plain, plain.evaluate()),
    )
    return report
