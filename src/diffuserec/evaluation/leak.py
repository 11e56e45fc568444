"""The leak meter: whether generated items know the targets that they stand in front of.

A recommender learns to trust what stands in front of its targets. If that was made from the targets
themselves, which it never is when the model is served, it learns to trust what will be missing.
docs/leak.md tells how to read the numbers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from pydantic import TypeAdapter
from torch import Tensor

from diffuserec.data import Queries, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.recommender import Recommender

NOTABLE = 1.1
"""Ratio of two shares above which a report says so in words."""

_AT_ONCE = 2**16
"""Items whose vectors are held at once."""


@dataclass(frozen=True)
class SeenTargets:
    """Targets of one part that have synthetic items in front of them.

    Attributes:
        n_targets: how many there are.
        share: of them that are among their own synthetic items.
        cosine: mean cosine of a target's vector and the mean vector of its synthetic items, the
            mean of all items taken off; None without vectors.
    """

    n_targets: int
    share: float
    cosine: float | None


@dataclass(frozen=True)
class Leak:
    """What the leak meter found.

    Attributes:
        augmenter: its name.
        training: targets of training, behind what training puts there.
        sample: some of them that have items in front when served, too.
        served: the same ones, behind what the augmenter makes of the items before each, as it does
            when the model is served.
        validation: targets of the validation queries.
        test: targets of the test queries; None if nothing of them was looked at.
        only_training: targets of the sample that are among their synthetic items in training alone.
        only_served: those that are when served alone.
    """

    augmenter: str
    training: SeenTargets
    sample: SeenTargets
    served: SeenTargets
    validation: SeenTargets
    test: SeenTargets | None
    only_training: int
    only_served: int

    @property
    def is_leaking(self) -> bool:
        """Whether training targets are in front of themselves more often than when served."""
        more = self.only_training - self.only_served > 2 * sqrt(self._n_different)
        return more and self.sample.share > NOTABLE * self.served.share

    @property
    def is_reversed(self) -> bool:
        """Whether they are less often in front of themselves than when served."""
        fewer = self.only_served - self.only_training > 2 * sqrt(self._n_different)
        return fewer and self.served.share > NOTABLE * self.sample.share

    @property
    def _n_different(self) -> int:
        return self.only_training + self.only_served

    @property
    def rows(self) -> dict[str, SeenTargets]:
        """The parts under their headings."""
        found = {
            "training": self.training,
            "training, a sample": self.sample,
            "the same targets, served": self.served,
            "validation": self.validation,
        }
        return found if self.test is None else found | {"test": self.test}

    @property
    def verdict(self) -> str:
        """What was found, in a sentence without its full stop."""
        parts = f"{_percent(self.sample)} of the targets stand among the items generated in front"
        same = f"the same targets, served, {_percent(self.served)}"
        beyond = self.training.share > NOTABLE * self.validation.share
        after = f"validation {_percent(self.validation)}"
        if self.is_leaking:
            return f"leak: in training {parts} of them; {same}; {after}"
        if self.is_reversed:
            return f"leak, the other way round: in training {parts} of them; {same}; {after}"
        if beyond:
            return (
                f"no leak, though training ({_percent(self.training)}) exceeds validation "
                f"({_percent(self.validation)}) by more than a tenth: the same training targets "
                f"stand there as often when served ({_percent(self.sample)} and "
                f"{_percent(self.served)}); one that learned from these users may remember them"
            )
        return f"no leak: in training {parts} of them; {same}; {after}"

    def to_json(self) -> dict[str, Any]:
        """The numbers as a JSON object, with the verdict."""
        return asdict(self) | {"verdict": self.verdict}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Leak":
        """Reads back what :meth:`to_json` gave.

        Raises:
            ValueError: it is no such object.
        """
        numbers = {name: value for name, value in document.items() if name != "verdict"}
        return TypeAdapter(Leak).validate_python(numbers)


def leak_meter(
    augmenter: Augmenter,
    train: SequenceDataset,
    valid: Queries,
    test: Queries | None = None,
    *,
    model: Recommender | None = None,
    seed: int = 0,
    n_sample: int = 5000,
) -> Leak:
    """How often targets stand among their own synthetic items, in training and when served.

    Args:
        augmenter: fitted.
        train: the training part, augmented.
        valid: validation queries, not augmented.
        test: test queries, not augmented; None leaves them out.
        model: whose item vectors the cosines are of; None, or one without, leaves these out.
        seed: of the augmenter's noise, as in training, and of the sample.
        n_sample: training targets that are also looked at as served.

    Raises:
        ConfigError: not fitted, or an augmenter that puts nothing into histories.
    """
    augmenter.require_fitted()
    if augmenter.training_only:
        raise ConfigError(
            f"{augmenter.name} makes copies to train on and puts nothing in front of targets: "
            "there is nothing to measure"
        )
    vectors = _vectors(model)
    train = train.joined(None if train.use is None else train.use.rows)
    items, offsets = train.items, train.offsets
    synthetic = np.asarray(train.synthetic)
    context = train.context_only
    may_be = ~synthetic if context is None else ~(synthetic | context)
    where, seen = _seen(items, synthetic, may_be, offsets)
    training = _summary(seen, _cosines(items, synthetic, where, offsets, vectors))
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(where))[:n_sample])
    sampled = where[chosen]
    owners = np.searchsorted(offsets, sampled, side="right") - 1
    n_real = np.concatenate([[0], np.cumsum(~synthetic)])
    real = train.real()
    histories = real.view(
        real.starts[owners], real.starts[owners] + n_real[sampled] - n_real[offsets[owners]], owners
    )

    def shown(queries: Queries) -> tuple[Int64[np.ndarray, " Q"], Bool[np.ndarray, " Q"], Any]:
        longer = augmenter.as_in_training(queries.histories, seed)
        ends = longer.offsets[1:]
        all_items = np.insert(longer.items, ends, queries.targets)
        made = np.insert(np.asarray(longer.synthetic), ends, False)
        after = longer.offsets + np.arange(len(longer) + 1)
        is_target = np.zeros(len(all_items), dtype=bool)
        is_target[after[1:] - 1] = True
        found, hits = _seen(all_items, made, is_target, after)
        number = np.searchsorted(after, found, side="right") - 1
        return number, hits, _cosines(all_items, made, found, after, vectors)

    again, served, served_cosines = shown(Queries(histories, items[sampled].astype(np.int64)))
    both = seen[chosen][again]
    cosines = _cosines(items, synthetic, sampled[again], offsets, vectors)
    return Leak(
        augmenter=augmenter.name,
        training=training,
        sample=_summary(both, cosines),
        served=_summary(served, served_cosines),
        validation=_summary(*shown(valid)[1:]),
        test=None if test is None else _summary(*shown(test)[1:]),
        only_training=int((both & ~served).sum()),
        only_served=int((served & ~both).sum()),
    )


def _percent(part: SeenTargets) -> str:
    return f"{part.share:.2%}"


def _vectors(model: Recommender | None) -> Float[np.ndarray, "V D"] | None:
    """Item vectors with their mean taken off; None if the model has none."""
    table = getattr(model, "table", None)
    if table is None:
        return None
    embedded: Tensor = table.embeddings().detach().float().cpu()
    centered: np.ndarray = (embedded - embedded[1:].mean(0)).numpy()
    return centered


def _seen(
    items: Int[np.ndarray, " N"],
    synthetic: Bool[np.ndarray, " N"],
    may_be: Bool[np.ndarray, " N"],
    offsets: Int64[np.ndarray, " U_plus_1"],
) -> tuple[Int64[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Positions of targets with synthetic items before them, and whether they are among those."""
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    n_made = np.concatenate([[0], np.cumsum(synthetic)])
    behind = n_made[:-1] > n_made[offsets[owners]]
    where = np.flatnonzero(may_be & behind)
    if not len(where):
        return where, np.zeros(0, dtype=bool)
    keys = owners * (int(items.max()) + 1) + items
    made = np.flatnonzero(synthetic)
    known, index = np.unique(keys[made], return_index=True)  # the first of each
    at = np.searchsorted(known, keys[where]).clip(max=len(known) - 1)
    hits: np.ndarray = (known[at] == keys[where]) & (made[index[at]] < where)
    return where, hits


def _cosines(
    items: Int[np.ndarray, " N"],
    synthetic: Bool[np.ndarray, " N"],
    where: Int64[np.ndarray, " T"],
    offsets: Int64[np.ndarray, " U_plus_1"],
    vectors: Float[np.ndarray, "V D"] | None,
) -> Float[np.ndarray, " T"] | None:
    """Cosine of each target's vector and the mean of the synthetic items before it."""
    if vectors is None:
        return None
    starts = offsets[np.searchsorted(offsets, where, side="right") - 1]
    found = np.zeros(len(where))
    done = 0
    while done < len(where):
        first = starts[done]
        last = max(done + 1, int(np.searchsorted(where, first + _AT_ONCE)))
        stop = int(where[last - 1])
        made = vectors[items[first:stop]] * synthetic[first:stop, None]
        total = np.concatenate([np.zeros((1, made.shape[1])), np.cumsum(made, 0, dtype=np.float64)])
        part = slice(done, last)
        context = total[where[part] - first] - total[starts[part] - first]
        own = vectors[items[where[part]]]
        size = np.linalg.norm(context, axis=1) * np.linalg.norm(own, axis=1)
        found[part] = (context * own).sum(1) / np.maximum(size, 1e-12)
        done = last
    return found


def _summary(seen: Bool[np.ndarray, " T"], cosines: Float[np.ndarray, " T"] | None) -> SeenTargets:
    some = len(seen) > 0
    return SeenTargets(
        n_targets=len(seen),
        share=float(seen.mean()) if some else 0.0,
        cosine=float(cosines.mean()) if some and cosines is not None else None,
    )
