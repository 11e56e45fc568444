"""Blend: several recommenders whose probabilities are averaged, by weights chosen on validation.

Each part gives a distribution over the items: the softmax of a trained model's scores; a generative
model's probabilities; a counting method's scores in proportion. The blend's score is

    p(j) = Σ_m w_m p_m(j),    w_m >= 0,    Σ_m w_m = 1.

The weights are found one after the other: each takes the value of a grid from 0 to 1 whose blend
has the best validation NDCG@10 (full ranking, seen items hidden), the others keeping their
proportions, until none changes. Without validation queries they are those given, or equal.

Source: none; a linear mixture of experts (Jelinek & Mercer's interpolation of language models).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import (
    Catalog,
    Histories,
    Queries,
    SequenceDataset,
    histories_of,
    index_batches,
)
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Settings, parse_settings
from diffuserec.models.methods import find_recommender, suited_part
from diffuserec.models.recommender import Recommender, ScoreRecommender
from diffuserec.models.retrieval import Matrix
from diffuserec.training import fit_shared, summed_ndcg

_GRID = [step / 20 for step in range(21)]
_ROUNDS = 5
_AT_ONCE = 256
_SEEDS_APART = 1_000_000
"""Between the seeds of parts of one kind, so that blends of neighboring seeds share none."""


class Blend(ScoreRecommender):
    """A weighted average of the probabilities of recommenders, trained one after the other."""

    class Config(Settings):
        """Hyper-parameters of a blend."""

        parts: tuple[str, ...] = ("sasrec", "markov")
        """Names of the recommenders; ``sasrec:2`` is another SASRec, trained from another seed."""
        settings: Mapping[str, Mapping[str, Any]] = Field({}, validate_default=False)
        """Their settings that are not the defaults, by name; those of ``sasrec`` are also those of
        ``sasrec:2``, unless it has its own."""
        weights: tuple[float, ...] | None = None
        """Weights of the parts, in their order; None chooses them on validation."""

        @model_validator(mode="after")
        def _known(self) -> Self:
            if len(self.parts) < 2 or len(set(self.parts)) < len(self.parts):
                raise ValueError(
                    "parts must name two or more recommenders, each once; a second one of a kind "
                    "is name:2"
                )
            weights = self.weights
            if weights is not None and (
                len(weights) != len(self.parts)
                or min(weights) < 0
                or not math.isclose(sum(weights), 1, abs_tol=1e-5)
            ):
                raise ValueError("weights must be one for each part, none below 0, and sum to 1")
            for name in self.settings:
                if name not in (*self.parts, *map(_method, self.parts)):
                    raise ValueError(f"settings are given for {name!r}, which is no part")
            for name in self.parts:
                if _method(name) == "blend":
                    raise ValueError("a blend is no part of a blend")
                if ":" in name and not _copy(name):
                    raise ValueError(f"part {name!r} must be a name, or name:2, name:3 and so on")
                schema = find_recommender(_method(name)).Config
                parse_settings(schema, self.settings_of(name), f"settings of {name}")
            return self

        def settings_of(self, part: str) -> dict[str, Any]:
            """Settings of a part that are not the defaults."""
            return dict(self.settings.get(part, self.settings.get(_method(part), {})))

        def suited_to(self, log: SequenceDataset) -> Self:
            """The same parts, their settings suited to a log."""
            own = {p: suited_part(_method(p), self.settings_of(p), log) for p in self.parts}
            return self.model_copy(update={"settings": own})

        def identity(self) -> dict[str, Any]:
            parts = {part: find_recommender(_method(part)).Config for part in self.parts}
            own = {part: c(**self.settings_of(part)).identity() for part, c in parts.items()}
            found = super().identity() | {"settings": own}
            if self.weights is None:
                del found["weights"]  # as of blends before weights could be given
            return found

    config: Config
    weights: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.models = nn.ModuleDict(
            {part: find_recommender(_method(part))(**c.settings_of(part)) for part in c.parts}
        )
        for model in self._parts:
            model.take(catalog)
        weights = c.weights or [1 / len(c.parts)] * len(c.parts)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Trains the parts on `train` one after the other and chooses their weights on `valid`.

        Blends that share a part and ``runtime.shared``, such as those of a study, train it once.
        """
        records = []
        for part, model in zip(self.config.parts, self._parts, strict=True):
            before = f"{part}: "
            of_part = runtime.within(part.replace(":", "-"), before)
            of_part = replace(of_part, seed=runtime.seed + _SEEDS_APART * (_copy(part) - 1))
            curve = fit_shared(model, train, valid, of_part)
            records += [replace(r, phase=before + r.phase) for r in curve]
        if valid is not None and self.config.weights is None:
            self.weights = self._chosen_weights(valid)
        return records

    def chosen_settings(self) -> dict[str, Any]:
        return super().chosen_settings() | {"weights": self.weights.tolist()}

    @property
    def reads_times(self) -> bool:
        return any(model.reads_times for model in self._parts)

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Weighted mean of the parts' probabilities."""
        parts = zip(self._parts, self.weights.tolist(), strict=True)
        each = [weight * distribution(model, histories) for model, weight in parts if weight > 0]
        return torch.stack(each).sum(0)

    @property
    def _parts(self) -> list[Recommender]:
        return [model for model in self.models.values() if isinstance(model, Recommender)]

    @torch.no_grad()
    def _chosen_weights(self, valid: Queries) -> Float[Tensor, " M"]:
        """The weights whose blend is best on validation, among those of the grid."""
        weights, best = self.weights, -1.0
        for _ in range(_ROUNDS):
            before = weights
            for number in range(len(weights)):
                tried = [_with_weight(weights, number, value) for value in _GRID]
                found = self._metrics(valid, tried)
                if max(found) > best:
                    best = max(found)
                    weights = tried[found.index(best)]
            if torch.equal(before, weights):
                break
        return weights

    def _metrics(self, valid: Queries, tried: list[Tensor]) -> list[float]:
        """Sums of NDCG@10 over the validation queries for each of some weights."""
        totals = [0.0] * len(tried)
        shown = valid.histories
        for index in index_batches(shown, _AT_ONCE):
            which = index[shown.lengths[index] > 0]  # popularity answers the others in any case
            if not len(which):
                continue
            read = [
                histories_of(part, which, with_times=self.reads_times).to(self.device)
                for part in shown.readings
            ]
            each = torch.stack(
                [
                    torch.stack([distribution(model, some) for some in read]).mean(0)
                    for model in self._parts
                ]
            )
            for number, weights in enumerate(tried):
                mixed = Matrix(torch.einsum("m,mbv->bv", weights.to(each), each))
                totals[number] += summed_ndcg(mixed, valid, which)
        return totals


def _method(part: str) -> str:
    return part.partition(":")[0]


def _copy(part: str) -> int:
    """Number of a part among those of its kind, from 1; 0 if that is none."""
    _, colon, number = part.partition(":")
    if not colon:
        return 1
    return int(number) if re.fullmatch("[2-9]|[1-9][0-9]{1,3}", number) else 0


def distribution(model: Recommender, histories: Histories) -> Float[Tensor, "B V"]:
    """A recommender's probabilities of the items; 0 for padding."""
    newest = histories if model.max_len is None else histories.truncate(model.max_len)
    if not model.reads_times:
        newest = replace(newest, times=None)
    scores = model.score(newest).float()
    scores[:, 0] = -torch.inf if _is_scored(model) else 0.0
    if _is_scored(model):
        return torch.softmax(scores, dim=1)
    return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _is_scored(model: Recommender) -> bool:
    """Whether scores may have any sign and are not in proportion to probabilities."""
    return model.trained and not model.is_generative


def _with_weight(weights: Float[Tensor, " M"], number: int, value: float) -> Float[Tensor, " M"]:
    """The weights with one of them set, the others in proportion (or equal, if all are 0)."""
    others = weights.clone()
    others[number] = 0
    if not bool(others.any()):
        others = torch.ones_like(others)
        others[number] = 0
    found = others / others.sum() * (1 - value)
    found[number] = value
    return found
