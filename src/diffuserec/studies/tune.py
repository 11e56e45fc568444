"""Tuning: settings chosen on validation alone, in as many trials as one says beforehand.

Optuna proposes the settings (extra ``tune``). The first trial has the defaults, so that the gain is
known; a trial that falls behind the median of the others at the same epoch is ended. Trials are
compared by the validation metric of the trained run, pruned by that of single epochs. They are
kept in a journal: the same command again goes on, and several processes work at once. The test part
is never looked at. What was spent stands in ``best.toml`` and, from there, in every table.

    OUT/journal.log    Optuna's journal
    OUT/ledger.jsonl   what each trial validated; stays when the run of a pruned trial is removed
    OUT/runs/*/        a run for each trial that was not pruned
    OUT/best.toml      the best settings, for ``train --config`` and the rows of studies
    OUT/tune.json      every trial; history.svg and importance.svg show them, report.html has all
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuserec.data import SequenceDataset, load_dataset, split_dataset
from diffuserec.errors import ConfigError
from diffuserec.evaluation import load_evaluation
from diffuserec.files import locked, read_lines, write_json, write_text
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search, Settings, by_log
from diffuserec.models.methods import find_augmenter, find_recommender
from diffuserec.models.settings import TRAINING_USES
from diffuserec.reports.tuning import draw_history, draw_importance, tuning_page
from diffuserec.studies.epoch_log import FILE as EPOCHS
from diffuserec.studies.ledger import looks, record
from diffuserec.studies.method_config import write_config
from diffuserec.studies.run_directory import Plan, is_finished, is_free
from diffuserec.studies.train_run import (
    Say,
    methods_of,
    require_buildable,
    silent,
    train_run,
)
from diffuserec.studies.workers import Workers, n_cores

if TYPE_CHECKING:
    import optuna

_AUGMENT = "augment."
_FEWEST = 4
"""Finished trials from which importances are computed."""
_METRIC = "NDCG@10"
_PHASE = "fit"
"""The last phase of a recommender that is trained in epochs; trials are pruned in no other one."""


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0; that of an interrupted trial, which began anew under another, is missing.
        settings: that were searched, ``augment.`` before those of the augmenter.
        valid: validation metric of the trained run, or the best epoch's of a pruned one; None where
            it failed.
        epochs: that were validated, in all phases, the augmenter's included.
        state: ``finished``, ``pruned`` or ``failed``.
        default: whether it has the defaults.
    """

    number: int
    settings: Mapping[str, Any]
    valid: float | None
    epochs: int
    state: str
    default: bool


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        plan: with the best settings.
        trials: all that ended, in their order.
        best: number of the best trial.
        importance: share of the spread of the metric that each setting explains, by name; empty
            for fewer than four finished trials.
    """

    plan: Plan
    trials: tuple[Trial, ...]
    best: int
    importance: Mapping[str, float]

    @property
    def defaults(self) -> str:
        """What the defaults reached, as a text."""
        first = next((trial for trial in self.trials if trial.default), None)
        if first is None:
            return "not tried"
        return "failed" if first.valid is None else f"{first.valid:.4f}"


def search_space(plan: Plan) -> dict[str, Search]:
    """Settings of the plan's methods that are searched, and where; those the plan sets are not.

    Raises:
        ConfigError: a setting of the plan is wrong, or nothing is left to search.
    """
    found = {
        name: search
        for name, search in _searches(find_recommender(plan.model).Config).items()
        if name not in plan.settings
    }
    if plan.augment is not None:
        fixed = {*(plan.augment_settings or {})}
        if not find_recommender(plan.model)(**plan.settings).config.heeds_use:
            fixed |= TRAINING_USES
        for name, search in _searches(find_augmenter(plan.augment).Config).items():
            if name not in fixed:
                found[_AUGMENT + name] = search
    if not found:
        raise ConfigError(
            f"{plan.label} has no settings to search: they are set, or it declares no search"
        )
    return found


def _searches(schema: type[Settings]) -> dict[str, Search]:
    return {
        name: rule
        for name, field in schema.model_fields.items()
        for rule in field.metadata
        if isinstance(rule, Search)
    }


def tune(
    plan: Plan,
    out: Path,
    n_trials: int,
    runtime: Runtime,
    *,
    workers: int | None = None,
    say: Say = silent,
) -> Tuned:
    """Searches the settings of a plan that it does not set; continues what stands in `out`.

    Args:
        plan: data, methods, split and seed; its settings are fixed.
        n_trials: in all, those of an earlier start included.
        workers: processes of one thread each; None takes one for each core.

    Raises:
        ConfigError: Optuna is not installed, `n_trials` or `workers` is below 1, nothing is to be
            searched, or `out` holds trials of another plan.
        DataError: the data cannot be used, or another process works in `out`.
    """
    _require_optuna()
    if n_trials < 1:
        raise ConfigError(f"the number of trials must be at least 1, got {n_trials}")
    if workers is not None and workers < 1:
        raise ConfigError(f"the number of workers must be at least 1, got {workers}")
    space = search_space(plan)
    dataset = load_dataset(plan.data)
    split = split_dataset(dataset, plan.split)
    require_buildable(plan, dataset.catalog)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        study = _open(out, plan.seed)
        _require_same(study, plan, dataset.fingerprint)
        _take_up_again(study)
        if not study.trials:
            settings = {name: default_of(plan, name, split.train) for name in space}
            _enqueue(study, settings, default=True)
        _complete_ledger(study, out)
        n_begun = len(_ended(study))
        n_left = max(n_trials - n_begun, 0)
        say(f"searching {', '.join(space)}: {n_left} of {n_trials} trials to run")
        with Workers(workers or n_cores(), runtime) as pool:
            while n_begun < n_trials or pool.n_busy:
                while pool.n_busy < pool.n and n_begun < n_trials:
                    pool.submit(str(n_begun), partial(run_trial, plan, out, n_begun))
                    n_begun += 1
                for event in pool.events():
                    if event.kind == "epoch":
                        continue
                    _complete_ledger(study, out)
                    say(event.value if event.kind == "done" else f"a trial failed: {event.value}")
        tuned = _tuned(study, plan)
        _write(tuned, out)
    return tuned


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("tuning needs Optuna: pip install 'diffuserec[tune]'") from error


def _open(out: Path, seed: int) -> "optuna.Study":
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / "journal.log"))),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=5),
    )


def _require_same(study: "optuna.Study", plan: Plan, fingerprint: str) -> None:
    """Writes what is tuned into the journal, or refuses trials of something else."""
    about = json.loads(json.dumps({**plan.document(), "data": fingerprint}))
    known = study.user_attrs.get("plan")
    if known is None:
        study.set_user_attr("plan", about)
    elif known != about:
        what = next(key for key in about if known.get(key) != about[key])
        raise ConfigError(f"the trials there are of another {what}: use the same, or another --out")


def _enqueue(study: "optuna.Study", settings: Mapping[str, Any], **facts: Any) -> None:
    """Has a trial with these settings begin next; what it lacks is drawn."""
    study.enqueue_trial(dict(settings), user_attrs={"given": dict(settings), **facts})


def _take_up_again(study: "optuna.Study") -> None:
    """Trials that a kill interrupted begin anew; their runs continue from their checkpoints."""
    from optuna.trial import TrialState

    begun = _interrupted(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number not in begun:
            settings = {**trial.user_attrs.get("given", {}), **trial.params}
            default = trial.user_attrs.get("default", False)
            _enqueue(study, settings, default=default, again=trial.number)
        study.tell(trial.number, state=TrialState.FAIL)


def _interrupted(study: "optuna.Study") -> set[int]:
    """Numbers of the trials that began anew under another number."""
    again = (trial.user_attrs.get("again") for trial in study.get_trials(deepcopy=False))
    return {number for number in again if number is not None}


def _ended(study: "optuna.Study") -> tuple[Trial, ...]:
    """Trials that ended by themselves, in their order."""
    from optuna.trial import TrialState

    names = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    interrupted = _interrupted(study)
    return tuple(
        Trial(
            number=trial.number,
            settings=dict(trial.params),
            valid=trial.user_attrs.get("valid"),
            epochs=trial.user_attrs.get("epochs", 0),
            state=names[trial.state],
            default=trial.user_attrs.get("default", False),
        )
        for trial in study.get_trials(deepcopy=False, states=tuple(names))
        if trial.number not in interrupted
    )


def _complete_ledger(study: "optuna.Study", out: Path) -> None:
    """Sees to it that the ledger has a line for each trial that ended, after a kill too."""
    known = {line["trial"] for line in looks(out)}
    for trial in _ended(study):
        if trial.number not in known:
            n = trial.epochs if trial.valid is None else max(trial.epochs, 1)
            facts = {"settings": dict(trial.settings), "state": trial.state}
            record(out, "validation", epochs=n, trial=trial.number, **facts)


def default_of(plan: Plan, name: str, log: SequenceDataset) -> Any:
    """Default of a setting for a log, ``augment.`` before those of the augmenter."""
    if name.startswith(_AUGMENT):
        assert plan.augment is not None
        schema: type[Settings] = find_augmenter(plan.augment).Config
    else:
        schema = find_recommender(plan.model).Config
    setting = name.removeprefix(_AUGMENT)
    if setting in by_log(schema):
        return getattr(schema().suited_to(log), setting)
    return schema.model_fields[setting].get_default(call_default_factory=True)


def _suggest(trial: "optuna.Trial", plan: Plan, space: Mapping[str, Search]) -> dict[str, Any]:
    """Settings of a trial; one that would have no effect beside the others is left out."""
    chosen: dict[str, Any] = {}
    for name, search in space.items():
        if not _has_effect(with_settings_of(plan, chosen), name):
            continue
        if search.choices:
            chosen[name] = trial.suggest_categorical(name, search.choices)
        elif isinstance(search.low, int) and isinstance(search.high, int):
            chosen[name] = trial.suggest_int(name, search.low, search.high, log=search.log)
        else:
            assert search.low is not None
            assert search.high is not None
            chosen[name] = trial.suggest_float(name, search.low, search.high, log=search.log)
    return chosen


def _has_effect(plan: Plan, name: str) -> bool:
    model, augmenter = methods_of(plan)
    method = augmenter if name.startswith(_AUGMENT) else model
    assert method is not None
    field = type(method.config).model_fields[name.removeprefix(_AUGMENT)]
    rules = [rule for rule in field.metadata if isinstance(rule, OnlyIf)]
    return all(rule.unmet(method.config) is None for rule in rules)


def with_settings_of(plan: Plan, chosen: Mapping[str, Any]) -> Plan:
    """The plan with chosen settings, ``augment.`` before those of the augmenter."""
    own = {name: value for name, value in chosen.items() if not name.startswith(_AUGMENT)}
    others = {n.removeprefix(_AUGMENT): value for n, value in chosen.items() if n not in own}
    given = None if plan.augment is None else {**(plan.augment_settings or {}), **others}
    return replace(plan, settings={**plan.settings, **own}, augment_settings=given)


def _run_path(out: Path, settings: Mapping[str, Any]) -> Path:
    text = json.dumps(settings, sort_keys=True)
    return out / "runs" / hashlib.sha256(text.encode()).hexdigest()[:12]


def run_trial(plan: Plan, out: Path, begun: int, runtime: Runtime) -> str:
    """Runs the next trial of the journal and says in a line how it went.

    Args:
        begun: trials that were begun before, so that no two draw alike.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    study = _open(out, plan.seed + begun)
    trial = study.ask()
    pruned, path = False, None
    try:
        settings = _suggest(trial, plan, search_space(plan))
        path = _run_path(out, settings)
        try:
            _train(trial, with_settings_of(plan, settings), path, runtime)
            valid = load_evaluation(path / "valid").metrics[_METRIC]
        except TrialPruned:
            pruned, valid = True, max(metric for _, metric in _validated(path, _PHASE))
    except Exception:
        trial.set_user_attr("epochs", 0 if path is None else len(_validated(path)))
        study.tell(trial, state=TrialState.FAIL)
        raise
    n = len(_validated(path))
    epochs = f", {n} epochs" * (n > 0)
    trial.set_user_attr("epochs", n)
    trial.set_user_attr("valid", valid)
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
        shutil.rmtree(path)  # it is no finished run of its settings; what it cost is known by now
        return f"trial {trial.number}: ended early, valid {valid:.4f}{epochs}"
    study.tell(trial, valid)
    best = f"best so far {study.best_value:.4f}"
    return f"trial {trial.number}: valid {valid:.4f}{epochs}; {best}"


def _train(trial: "optuna.Trial", chosen: Plan, path: Path, runtime: Runtime) -> None:
    """Trains the run of a trial, or what is left of it.

    Raises:
        optuna.TrialPruned: it falls behind the others; its run is not finished then.
    """
    from optuna import TrialPruned

    if is_finished(path, chosen, load_dataset(chosen.data).fingerprint):
        return
    tell = runtime.on_epoch

    def watch(epoch: Epoch) -> None:
        if tell is not None:
            tell(epoch)
        if epoch.phase == _PHASE and epoch.valid is not None:
            trial.report(epoch.valid, epoch.epoch)
            if trial.should_prune() and not trial.user_attrs.get("default"):
                raise TrialPruned

    for number, metric in _validated(path, _PHASE):  # before a kill
        trial.report(metric, number)
    train_run(
        chosen, path, replace(runtime, on_epoch=watch, resume=not is_free(path)), report=False
    )


def _validated(path: Path, phase: str | None = None) -> list[tuple[int, float]]:
    """Epochs of a run, finished or not, that were validated, with the metric of each.

    Args:
        phase: only those of this phase.
    """
    return [
        (line["epoch"], line["valid"])
        for line in read_lines(path / EPOCHS)
        if line["valid"] is not None and phase in (None, line["phase"])
    ]


def _tuned(study: "optuna.Study", plan: Plan) -> Tuned:
    import optuna

    trials = _ended(study)
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        raise ConfigError("every trial failed: see the lines above for the reasons")
    best = max(finished, key=lambda trial: trial.valid or 0.0)
    importance: Mapping[str, float] = {}
    if len(finished) >= _FEWEST:
        importance = optuna.importance.get_param_importances(study)
    return Tuned(with_settings_of(plan, best.settings), trials, best.number, importance)


def _write(tuned: Tuned, out: Path) -> None:
    best = next(trial for trial in tuned.trials if trial.number == tuned.best)
    document: dict[str, Any] = {
        "format": "diffuserec-tuned",
        "version": 1,
        "plan": tuned.plan.document(),
        "best": tuned.best,
        "importance": dict(tuned.importance),
        "trials": [asdict(trial) for trial in tuned.trials],
    }
    write_json(out / "tune.json", document)
    write_config(
        out / "best.toml",
        tuned.plan,
        comment=(
            f"Chosen on validation ({_METRIC} {best.valid:.4f}, defaults {tuned.defaults}) by "
            "'diffuserec tune'; the test part was not looked at."
        ),
        trials=len(tuned.trials),
    )
    draw_history(out / "history.svg", document["trials"])
    if tuned.importance:
        draw_importance(out / "importance.svg", tuned.importance)
    write_text(out / "report.html", tuning_page(tuned.plan.label, document, out))
