"""Blend: recommenders whose probabilities are pooled, by weights that are chosen on validation.

Each part gives a distribution over the items: the softmax of a trained model's scores; a generative
model's probabilities; a counting method's scores in proportion. With weights w_m >= 0 that sum to
1, the logarithmic pool, which is the default, and the linear one are

    p(j) ∝ Π_m p_m(j)^w_m        and        p(j) = Σ_m w_m p_m(j).

An item is first in the logarithmic pool if no part speaks against it, in the linear one if one
speaks for it. There a probability of 0 would be a veto, so half of a counting method's probability
is popularity's, and a thousandth of a generative model's. This also takes back what a trained model
has learned too well of its own training.

The weights are found one after the other: each takes the value of a grid from 0 to 1 whose blend
has the best validation NDCG@10 (seen items hidden, among the items that are likely for any part),
the others keeping their proportions, until none changes. Without validation queries they are those
given, or equal.

Sources: Genest & Zidek, "Combining Probability Distributions", Statistical Science 1986 (both
pools); Jelinek & Mercer's interpolation of language models (the linear one).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import (
    PAD,
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
from diffuserec.models.retrieval import seen_items
from diffuserec.training import fit_shared, n_measured, sample_of

_GRID = [step / 20 for step in range(21)]
_ROUNDS = 5
_AT_ONCE = 256
_LIKELY = 100
"""The likeliest items of each part are those that weights are chosen by."""
_CUTOFF = 10
_MOST_VALUES = 2**26
"""Probabilities that are held for it, 4 bytes each."""
_HIDDEN = -1e9
"""Of an item that may not be shown; nothing else is below half of it."""
_OF_COUNTS, _OF_DRAWS = 0.5, 0.001
"""Shares of popularity in the probabilities of counting methods and of generative models."""
_SEEDS_APART = 1_000_000
"""Between the seeds of parts of one kind, so that blends of neighboring seeds share none."""


class Blend(ScoreRecommender):
    """A pool of the probabilities of recommenders, trained one after the other."""

    class Config(Settings):
        """Hyper-parameters of a blend."""

        parts: tuple[str, ...] = ("bsarec", "markov", "itemgraph", "popularity")
        """Names of the recommenders; ``bsarec:2`` is another BSARec, trained from another seed."""
        settings: Mapping[str, Mapping[str, Any]] = Field({}, validate_default=False)
        """Their settings that are not the defaults, by name; those of ``bsarec`` are also those of
        ``bsarec:2``, unless it has its own."""
        weights: tuple[float, ...] | None = None
        """Weights of the parts, in their order; None chooses them on validation."""
        pool: Literal["logarithmic", "linear"] = "logarithmic"
        """Whether the logarithms of the parts' probabilities are averaged, or they themselves."""

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

        @property
        def heeds_use(self) -> bool:
            return any(
                find_recommender(_method(part)).Config(**self.settings_of(part)).heeds_use
                for part in self.parts
            )

        @property
        def scores_are_logits(self) -> bool:
            return True

        def settings_of(self, part: str) -> dict[str, Any]:
            """Settings of a part that are not the defaults."""
            return dict(self.settings.get(part, self.settings.get(_method(part), {})))

        def suited_to(self, log: SequenceDataset) -> Self:
            """The same parts, their settings suited to a log."""
            own = {p: suited_part(_method(p), self.settings_of(p), log) for p in self.parts}
            return self.model_copy(update={"settings": own})

        def identity(self) -> dict[str, Any]:
            parts = {part: find_recommender(_method(part)) for part in self.parts}
            own = {p: m.Config(**self.settings_of(p)).identity() for p, m in parts.items()}
            found = super().identity() | {"settings": own}
            later = {part: m.version for part, m in parts.items() if m.version > 1}
            if later:  # a part that gives other numbers makes the blend give others
                found["versions"] = later
            if self.weights is None:
                del found["weights"]  # as of blends before weights could be given
            return found

    config: Config
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "with_diffusion": {
            "parts": ("bsarec", "bsarec:2", "maskdiffrec"),
            "settings": {
                "bsarec": {"dropout": 0.4},
                "maskdiffrec": {"dropout": 0.4, "learning_rate": 0.002},
            },
        },
    }
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
        """Logarithm of the pool, but for a constant."""
        weights = self.weights.tolist()
        used = [number for number, weight in enumerate(weights) if weight > 0]
        pooled = sum(weights[number] * self._opinion(number, histories) for number in used)
        assert isinstance(pooled, Tensor)
        if self.config.pool == "linear":
            return pooled.clamp(min=torch.finfo(torch.float32).tiny).log()
        return pooled

    @property
    def _parts(self) -> list[Recommender]:
        return [model for model in self.models.values() if isinstance(model, Recommender)]

    def _opinion(self, number: int, histories: Histories) -> Float[Tensor, "B V"]:
        """Probabilities of a part, or their logarithms if those are pooled."""
        model = self._parts[number]
        p = distribution(model, histories)
        if self.config.pool == "linear":
            return p
        if not _is_scored(model):
            share = _OF_DRAWS if model.is_generative else _OF_COUNTS
            counts = self.popularity + 1.0
            p = (1 - share) * p + share * counts / counts[1:].sum()
        return p.clamp(min=torch.finfo(torch.float32).tiny).log()

    @torch.no_grad()
    def _chosen_weights(self, valid: Queries) -> Float[Tensor, " M"]:
        """The weights whose blend is best on validation, among those of the grid."""
        known, weights = self._likely(valid), self.weights
        best = known.ndcg(weights)
        for _ in range(_ROUNDS):
            before = weights
            for number in range(len(weights)):
                tried = [_with_weight(weights, number, value) for value in _GRID]
                found = [known.ndcg(some.to(self.device)) for some in tried]
                if max(found) > best:
                    best = max(found)
                    weights = tried[found.index(best)]
            if torch.equal(before, weights):
                break
        return weights

    def _likely(self, valid: Queries) -> "_Likely":
        """What the parts say of validation targets and of the items that are likely for any."""
        n_parts, k = len(self._parts), min(_LIKELY, self.catalog.n_items)
        valid = sample_of(valid, min(n_measured(valid), _MOST_VALUES // (n_parts**2 * k)))
        shown, found = valid.histories, []
        at_once = max(1, self.at_once(n_parts * _AT_ONCE) // n_parts)  # all of a batch are held
        for index in index_batches(shown, at_once):
            which = index[shown.lengths[index] > 0]  # popularity answers the others in any case
            if not len(which):
                continue
            read = [
                histories_of(part, which, with_times=self.reads_times).to(self.device)
                for part in shown.readings
            ]
            each = torch.stack(
                [
                    torch.stack([self._opinion(number, some) for some in read]).mean(0)
                    for number in range(n_parts)
                ]
            )
            hidden = seen_items(shown, which)
            each[:, hidden.owner.to(self.device), hidden.items.to(self.device)] = _HIDDEN
            each[:, :, PAD] = _HIDDEN
            targets = torch.from_numpy(valid.targets[which]).to(self.device)[:, None]
            items = each.topk(k, dim=2).indices.permute(1, 0, 2).flatten(1).sort(dim=1).values
            again = F.pad(items[:, 1:] == items[:, :-1], (1, 0))
            others = each.gather(2, items.expand(n_parts, -1, -1))
            others = others.masked_fill(again | (items == targets), _HIDDEN)
            found.append((each.gather(2, targets.expand(n_parts, -1, -1)), others))
        if not found:
            nothing = torch.empty(n_parts, 0, 1, device=self.device)
            return _Likely(nothing, nothing)
        own, others = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return _Likely(own, others)


class _Likely(NamedTuple):
    """What M parts say of the targets of Q queries, and of C other items that may be above them."""

    targets: Float[Tensor, "M Q 1"]
    others: Float[Tensor, "M Q C"]

    def ndcg(self, weights: Float[Tensor, " M"]) -> float:
        """Sum of NDCG@10 with these weights; ties at their mean rank."""
        target, others = (torch.einsum("m,mqc->qc", weights, values) for values in self)
        ranks = (others > target).sum(1) + 0.5 * (others == target).sum(1)
        ranks = ranks[(ranks < _CUTOFF) & (target[:, 0] > _HIDDEN / 2)]
        return float((1 / torch.log2(ranks + 2)).sum())


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
