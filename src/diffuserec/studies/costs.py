"""What a training will cost on this machine, foreseen from some of its own steps.

Time is measured, not computed: the method is fitted to a few of the log's users with the settings
and the catalog of the whole, so that a step and its memory are those of the real training. Two such
fits, to fewer and to more users, tell what an epoch takes for each user and what it takes whatever
their number, as the end of one does where the catalog is large. What is foreseen is therefore right
for this machine, its load and its number of threads.
"""

import sys
import time
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from diffuserec.data import Queries, SequenceDataset, load_dataset, split_dataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.studies.run_file import Plan
from diffuserec.studies.train_run import methods_of, require_buildable
from diffuserec.training.validation import n_measured

_TRIED = 3.0
"""Seconds that a trial epoch should take, where the log has enough users."""

_LONGEST = 6.0
"""Seconds of a trial epoch after which no longer one is tried."""

_QUERIES = 512

_SHORT, _LONG = 600.0, 6 * 3600.0
"""Seconds of a training that could be made often, and of one that is in the way."""

_MANY_ITEMS = 50_000


@dataclass(frozen=True)
class Costs:
    """What training a recommender takes.

    Attributes:
        users, items, interactions: of the training part.
        parameters: numbers that are learned.
        epochs: most epochs of the last phase; None for a method that is not trained in epochs.
        epoch_seconds: of each phase's epochs, validation left out; of the whole fit for a method
            without epochs.
        validation_seconds: after each epoch.
        memory: most bytes that this process has had in memory, the model and a batch of its
            training among them; None where the system does not say. Data is mapped, and not
            counted until it is read.
        full_softmax: whether each step scores all items.
    """

    users: int
    items: int
    interactions: int
    parameters: int
    epochs: int | None
    epoch_seconds: dict[str, float]
    validation_seconds: float
    memory: int | None
    full_softmax: bool

    @property
    def seconds(self) -> float:
        """At most, with all epochs of the last phase and as many of those before; patience ends
        most trainings sooner."""
        each = sum(self.epoch_seconds.values())
        return (each + self.validation_seconds) * (self.epochs or 1)

    def facts(self) -> dict[str, str | int]:
        """The costs in words, by name."""
        found: dict[str, str | int] = {
            "users": self.users,
            "items": self.items,
            "interactions": self.interactions,
            "numbers to learn": self.parameters,
        }
        for phase, seconds in self.epoch_seconds.items():
            of = "" if len(self.epoch_seconds) == 1 else f" of {phase}"
            found["training" if self.epochs is None else f"an epoch{of}"] = spoken(seconds)
        if self.epochs is not None:
            found["a validation"] = spoken(self.validation_seconds)
            found[f"all, at most ({self.epochs} epochs)"] = spoken(self.seconds)
        if self.memory is not None:
            found["memory"] = f"{self.memory / 2**30:.1f} GiB"
        return found


def advice(costs: Costs) -> list[str]:
    """What to choose instead where a training is long or large; nothing where it is neither."""
    found = []
    if costs.seconds > _LONG:
        found.append(
            "long: a GPU (--device cuda) or several processes (docs/cluster.md) shorten it in "
            "proportion; so do fewer epochs, which validation often leaves unused"
        )
        if costs.full_softmax and costs.items > _MANY_ITEMS:
            found.append(
                f"most of it goes into scores of {costs.items:,} items: a loss that samples some "
                "of them (docs/large-catalogs.md) costs a fraction"
            )
    elif costs.seconds < _SHORT:
        found.append(
            "short: there is time for several seeds (diffuserec study) or a search for settings "
            "(diffuserec tune)"
        )
    return found


def foresee(plan: Plan, runtime: Runtime) -> Costs:
    """The costs of training a plan's recommender on its data; it is tried for some seconds.

    Raises:
        ConfigError: settings that are wrong or do not fit the catalog or device.
        DataError: the data cannot be used.
    """
    split = split_dataset(load_dataset(plan.data), plan.split)
    require_buildable(plan, split.train.catalog)
    first = tried = Trial(plan, split.train, split.valid, runtime)
    while (
        tried.seconds - first.seconds < _TRIED / 2
        and tried.seconds < _LONGEST
        and tried.n_users < len(split.train)
    ):
        growth = min(16.0, max(4.0, _TRIED / max(tried.seconds, 1e-3)))
        tried = Trial(plan, split.train, split.valid, runtime, round(tried.n_users * growth))
    return Costs(
        users=len(split.train),
        items=split.train.catalog.n_items,
        interactions=int(split.train.lengths.sum()),
        parameters=sum(parameter.numel() for parameter in tried.model.parameters()),
        epochs=getattr(tried.model.config, "epochs", None),
        epoch_seconds={
            phase: _of_all(len(split.train), first, tried, phase) for phase in tried.epoch_seconds
        },
        validation_seconds=tried.validation_seconds,
        memory=peak_memory(),
        full_softmax=bool(getattr(tried.model.config, "full_softmaxes", 0)),
    )


def _of_all(n_users: int, first: "Trial", last: "Trial", phase: str) -> float:
    """Seconds of a phase's epoch on so many users, on the line through those of two trials."""
    seconds = last.epoch_seconds[phase]
    each = seconds / last.n_users
    if first.n_users < last.n_users and phase in first.epoch_seconds:
        more = seconds - first.epoch_seconds[phase]
        each = min(each, max(0.0, more) / (last.n_users - first.n_users))
    return seconds + each * (n_users - last.n_users)


class Trial:
    """A fit of two epochs a phase to some users of a log; the first of them warms up.

    Args:
        valid: queries, some of which are validated; None validates nothing.
        n_users: how many users.

    Attributes:
        model: what was fitted.
        n_users: how many there were.
        seconds: of the second epochs.
        epoch_seconds: of these by phase; of a method without epochs the fit's.
        validation_seconds: of all queries, after the last phase's epochs.
    """

    def __init__(
        self,
        plan: Plan,
        log: SequenceDataset,
        valid: Queries | None,
        runtime: Runtime,
        n_users: int = 128,
    ) -> None:
        self.model, _ = methods_of(plan)
        self.model.given = self.model.given.suited_to(log)  # not to the few
        few = log if n_users >= len(log) else log.select(_some(len(log), n_users))
        self.n_users = len(few)
        queries = None
        if valid is not None and len(valid) and hasattr(self.model.config, "epochs"):
            some = _some(len(valid), _QUERIES)
            queries = Queries(valid.histories.select(some), valid.targets[some])
        epochs: list[Epoch] = []
        ends: list[float] = []

        def told(epoch: Epoch) -> bool:
            epochs.append(epoch)
            ends.append(time.perf_counter())
            return epoch.epoch >= 1

        begin = time.perf_counter()
        self.model.fit(few, queries, replace(runtime, shared=None, progress=False, on_epoch=told))
        tried = {epoch.phase: epoch.seconds for epoch in epochs}
        self.epoch_seconds = tried or {"fit": time.perf_counter() - begin}
        self.seconds = sum(self.epoch_seconds.values())
        self.validation_seconds = 0.0
        if valid is not None and queries is not None and len(ends) > 1:
            between = max(0.0, ends[-1] - ends[-2] - epochs[-1].seconds)
            self.validation_seconds = between * n_measured(valid) / len(queries)


def _some(n: int, wanted: int) -> Int64[np.ndarray, " S"]:
    """That many of n numbers at most, in order, drawn alike each time."""
    found: np.ndarray = np.sort(np.random.default_rng(0).permutation(n)[:wanted])
    return found


def spoken(seconds: float) -> str:
    """A time in words: ``0.2 s``, ``45 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def peak_memory() -> int | None:
    """Most bytes that this process has had in memory; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
