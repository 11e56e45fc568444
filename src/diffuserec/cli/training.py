"""Commands that train one run, or say what it will cost: demo, plan, train."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diffuserec.cli import options, show
from diffuserec.errors import ConfigError


def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")] = Path("demo"),
    seed: options.Seed = 0,
) -> None:
    """Trains and compares models on the built-in store, in a few minutes.

    Trains SASRec with and without DiffuASR's items, and DiffRec; compares them with popularity,
    Markov and the best possible, and writes a report to look at.

    Examples:

        diffuserec demo --out demo
    """
    from diffuserec.models.base import Runtime
    from diffuserec.studies.demo import run_demo

    show.report(run_demo(out, Runtime(seed=seed, progress=True), show.say))
    show.print_line(f"report: {out / 'report.html'}")


def train(
    data: options.Data,
    out: options.Out,
    model: Annotated[
        str | None,
        typer.Option(
            help="A recommender; 'diffuserec models' lists them, and auto takes one by the log's "
            "size and says why."
        ),
    ] = None,
    augment: Annotated[str | None, typer.Option(help="An augmenter to train on.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Methods and settings that 'diffuserec tune' found (TOML).")
    ] = None,
    final: Annotated[
        Path | None,
        typer.Option(
            help="Train on everything, with the methods, settings and best epoch of this run."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="With --final: start from this run's model, for a fifth of the epochs."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="With --final: at most so many epochs a phase.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of initialization, order, dropout and noise; else 0, or that of --final."
        ),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run.")] = False,
    overwrite: options.Overwrite = False,
    split: options.SplitName = "leave-one-out",
    split_file: options.SplitFile = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Begin from the settings of the paper (as_published), where 'diffuserec models "
            "NAME' has them, or from others that its page names."
        ),
    ] = None,
    settings: options.Set = None,
    augment_settings: options.AugmentSet = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Also tell tensorboard[:DIR], mlflow[:URI], trackio[:PROJECT] or wandb[:PROJECT]; "
            "may be repeated."
        ),
    ] = None,
    engine: options.Engine = None,
    workers: options.Workers = None,
    address: options.Address = None,
    as_json: options.AsJson = False,
) -> None:
    """Trains a recommender, compares it with trivial baselines and writes a report.

    The run's directory holds the model, its measured results and report.html. "diffuserec models
    NAME" lists the settings of a method, which --set changes.

    With --final RUN, the model to deploy: it is trained on all of DATA, those items too that RUN
    was measured on, so that there is nothing to measure it on. DATA may be newer than RUN's. With
    --start as well it starts from a fitted model, items and users matched by raw id.

    Examples:

        diffuserec train data/clicks --model sasrec --out runs/sasrec
        diffuserec train data/clicks --model auto --out runs/first
        diffuserec train data/clicks --model sasrec --set dim=128 --out runs/wide
        diffuserec train data/clicks --model sasrec --augment random --out runs/r
        diffuserec train data/clicks --model diffrec --preset as_published --out p
        diffuserec train data/clicks --config runs/tune/best.toml --out runs/best
        diffuserec train data/clicks --model bpr --split-file parts.csv --out r2
        diffuserec train data/clicks --model bpr --split temporal --out runs/t
        diffuserec train data/clicks --model bpr --track tensorboard --out runs/b
        diffuserec train data/clicks --final runs/sasrec --out runs/final
        diffuserec train data/clicks --model sasrec --out r --engine ray --workers 2
        torchrun --nproc-per-node 2 -m diffuserec train data/clicks --model sasrec --out r
    """
    from diffuserec.cli.deploy import train_final
    from diffuserec.data import load_dataset, split_dataset
    from diffuserec.models.base import Runtime
    from diffuserec.models.choice import recommender_for
    from diffuserec.models.methods import find_augmenter, find_recommender, preset_of
    from diffuserec.studies.final import final_plan
    from diffuserec.studies.method_config import read_config
    from diffuserec.studies.run_directory import Plan, open_run
    from diffuserec.studies.train_run import silent, train_along, train_run
    from diffuserec.training import parallel

    cluster = options.cluster_of(engine, workers, address)
    share = parallel.share()
    if final is not None:
        chosen_there = {
            "--model": model,
            "--augment": augment,
            "--config": config,
            "--preset": preset,
            "--set": settings,
            "--augment-set": augment_settings,
            "--split": None if split == "leave-one-out" else split,
            "--split-file": split_file,
        }
        chosen_there["--engine"] = engine
        given = [name for name, value in chosen_there.items() if value]
        if given:
            raise ConfigError(f"--final takes all settings of its run: leave out {given[0]}")
        plan = final_plan(final, data, start=start, epochs=epochs, seed=seed)
        train_final(plan, out, device, precision, resume, overwrite, track, as_json)
        return
    if start is not None or epochs is not None:
        raise ConfigError(
            "--start and --epochs need --final RUN: a model that starts from one which has seen "
            "what is held out would be measured on it (epochs of a model are --set epochs=N)"
        )

    ours, theirs = options.parse_pairs(settings), options.parse_pairs(augment_settings)
    if config is not None:
        if model or augment or preset:
            raise ConfigError("--config names the methods: leave out --model, --augment, --preset")
        chosen = read_config(config)
        model, augment = chosen.model, chosen.augment
        ours, theirs = {**chosen.settings, **ours}, {**chosen.augment_settings, **theirs}
    if model is None:
        raise ConfigError("name a recommender with --model (or auto), or a file with --config")
    if augment_settings and not augment:
        raise ConfigError("--augment-set needs --augment NAME")
    divided = options.chosen_split(split, split_file)
    if model == "auto":
        choice = recommender_for(split_dataset(load_dataset(data), divided).train)
        model = choice.name
        if parallel.is_first():
            show.say(f"{choice.name}: {choice.why} (docs/which-method.md)")
    if preset is not None:
        methods = (find_recommender(model), find_augmenter(augment) if augment else None)
        first, second = preset_of(*methods, preset)
        ours, theirs = {**first, **ours}, {**second, **theirs}
    plan = Plan(
        data=str(data.resolve()),
        model=model,
        settings=ours,
        augment=augment,
        augment_settings=theirs if augment else None,
        split=divided,
        seed=seed or 0,
    )
    runtime = Runtime(device, precision, progress=None if as_json else True, resume=resume)
    if share is not None and share.rank:
        train_along(plan, out, runtime)
        return
    if cluster is not None:
        from diffuserec.cluster import train as train_by

        if track:
            raise ConfigError("--track is not for --engine ray: leave out one of the two")
        train_by(plan, out, runtime, cluster, overwrite)
        show.evaluation(open_run(out).evaluate(), as_json)
        return
    how = f"add --resume to the same command{', without --overwrite' if overwrite else ''}"
    with resumable(out, how):
        run = train_run(
            plan,
            out,
            runtime,
            overwrite=overwrite,
            track=track or (),
            say=silent if as_json else show.say,
        )
    show.evaluation(run.evaluate(), as_json)
    if not as_json:
        show.print_line(f"report: {out / 'report.html'}")


def plan(
    data: options.Data,
    model: Annotated[str, typer.Option(help="A recommender; 'diffuserec models' lists them.")],
    settings: options.Set = None,
    split: options.SplitName = "leave-one-out",
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    price: Annotated[
        float | None, typer.Option(min=0, help="Of an hour of this machine, in any currency.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Says what a training will take in time and memory, after trying it for some seconds.

    The method is fitted to a few of the log's users, with the settings and items of the whole, on
    this machine as busy as it is. docs/scale.md says how costs grow.

    Examples:

        diffuserec plan data/clicks --model sasrec
        diffuserec plan data/clicks --model bsarec --set dim=128 --price 0.40
    """
    from diffuserec.models.base import Runtime
    from diffuserec.studies.costs import advice, foresee
    from diffuserec.studies.run_directory import Plan

    asked = Plan(
        data=str(data.resolve()),
        model=model,
        settings=options.parse_pairs(settings),
        split=options.chosen_split(split, None),
    )
    found = foresee(asked, Runtime(device, precision))
    money = None if price is None else found.seconds / 3600 * price
    if as_json:
        show.print_json(asdict(found) | {"seconds": found.seconds, "price": money})
        return
    facts = found.facts() | ({} if money is None else {"price, at most": f"{money:,.2f}"})
    show.facts(f"{model} on {data.name}", facts)
    for line in advice(found):
        show.print_line(line)


@contextlib.contextmanager
def resumable(out: Path, how: str = "run the same command again") -> Iterator[None]:
    """Says how to continue after Ctrl-C or a termination, if anything was trained."""
    try:
        yield
    except KeyboardInterrupt:
        show.say(_after_an_interruption(out, how))
        raise


def _after_an_interruption(out: Path, how: str) -> str:
    from diffuserec.studies.run_directory import is_complete

    if not out.exists():
        return "interrupted before anything was trained; nothing was written"
    if is_complete(out):
        return f"interrupted; the run in {out} is as it was"
    return f"interrupted; to continue from the last epoch, {how}"
