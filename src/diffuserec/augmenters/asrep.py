"""ASReP: a recommender trained on reversed sequences generates items before short histories.

Source: Liu, Fan, Wang, Yu & Li, "Augmenting Sequential Recommendation with Pseudo-Prior Items via
Reversely Pre-training Transformer", SIGIR 2021 (arXiv 2105.00522), and its released code; the
reference "ASReP" of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023.

A recommender is trained on the sequences in reverse, so that its next item is the one before. A
short history is continued backwards with its best item that is not in it yet, one after the other.

Departures and options:
- Any recommender can be the reverse one (``model``, ``model_settings``); the paper's is SASRec.
- It learns from the training part alone. The released code reverses whole sequences and holds out
  their first two items, so that the reverse model is trained on validation and test items, reads
  them when it generates, and passes its weights on.
- The paper then goes on training the same weights forwards. Here an augmenter makes data and the
  recommender that learns from them begins anew, as in DiffuASR's comparison.
- A tenth of the users' first items is held out from the reverse model to decide when to stop.
- 10 items for histories of at most 20; the authors' 15 to 17 are ``n_items``.
- What stands in front of a user is written by a model that learned from others (``n_folds``): one
  that learned from the user remembers which items belong to them, and so knows the targets.
- They are generated from the first items of a history, which are never targets behind them. The
  paper learns from everyone, continues whole histories backwards and leaves out their items
  (``condition="published"``): a training target is then never among them, a test target may be.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self, cast

import numpy as np
import torch
from jaxtyping import Int32, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import (
    Catalog,
    Histories,
    Queries,
    SequenceDataset,
    bounded_batches,
    histories_of,
)
from diffuserec.data.batches import padded
from diffuserec.errors import ConfigError
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, parse_settings
from diffuserec.models.diffusion import row_keys
from diffuserec.models.methods import find_recommender, suited_part
from diffuserec.models.recommender import Recommender
from diffuserec.models.retrieval import ItemSets, top_k
from diffuserec.models.settings import PrependingSettings
from diffuserec.training import fit_shared

_AT_ONCE = 512
"""Histories continued at once."""


class ASReP(PrependingAugmenter):
    """Prepends the items that a recommender of reversed sequences continues a history with."""

    class Config(PrependingSettings):
        """Hyper-parameters of ASReP."""

        max_history: Annotated[int | None, OnlyIf(use_place=("front", "middle"))] = Field(20, ge=1)
        """Only users with at most so many real items in training are given any, at inference too,
        and users that training does not know; None means all."""
        n_folds: Annotated[int, OnlyIf(condition="causal")] = Field(3, ge=1)
        """Parts of the users, by how they begin: the items of a part are written by a model that
        learned from the others; with 1, one model learns from all and writes for all."""
        model: str = "sasrec"
        """Name of the recommender that is trained in reverse."""
        model_settings: Mapping[str, Any] = Field({}, validate_default=False)
        """Its settings that are not the defaults."""

        @model_validator(mode="after")
        def _known(self) -> Self:
            schema = find_recommender(self.model).Config
            parse_settings(schema, dict(self.model_settings), f"model_settings of {self.model}")
            return self

        def suited_to(self, log: SequenceDataset) -> Self:
            """The same settings, those of the reverse recommender suited to a log."""
            own = suited_part(self.model, self.model_settings, log)
            return super().suited_to(log).model_copy(update={"model_settings": own})

        def identity(self) -> dict[str, Any]:
            own = find_recommender(self.model).Config(**self.model_settings).identity()
            return super().identity() | {"model_settings": own}

    config: Config
    version: ClassVar[int] = 3
    as_published: ClassVar[Mapping[str, Any]] = {"condition": "published"}

    def build(self, catalog: Catalog) -> None:
        c = self.config
        n = c.n_folds if c.condition == "causal" else 1
        model = find_recommender(c.model)
        self.reverse = nn.ModuleList(model(**c.model_settings) for _ in range(n))
        for reverse in self._models:
            reverse.take(catalog)

    @property
    def _models(self) -> list[Recommender]:
        return [cast(Recommender, model) for model in self.reverse]

    def learn_to_generate(
        self, train: SequenceDataset, valid: Queries | None, runtime: Runtime
    ) -> list[Epoch]:
        """Trains the reverse recommenders; `valid` is not used.

        Raises:
            ConfigError: all users of two items or more begin so that they are in one fold.
        """
        if len(self.reverse) == 1:
            return self._learn_reverse(self._models[0], train, runtime)
        folds = self._folds_of(train)
        others_of = [np.flatnonzero(folds != number) for number in range(len(self.reverse))]
        if not all((train.lengths[others] >= 2).any() for others in others_of):
            raise ConfigError(
                "too few users begin differently to write the items of some by a model of the "
                "others: set n_folds to 1"
            )
        records = []
        for number, (reverse, others) in enumerate(zip(self._models, others_of, strict=True)):
            of_fold = runtime.within(f"fold-{number + 1}", f"fold {number + 1}: ")
            curve = self._learn_reverse(reverse, train.select(others).compact(), of_fold)
            records += [replace(r, phase=f"fold {number + 1}: {r.phase}") for r in curve]
        return records

    def _folds_of(self, dataset: SequenceDataset) -> Int64[np.ndarray, " S"]:
        """Number of the part of each user, which follows from the first items alone.

        It is -1 for those who have fewer: they are given no items, and every model learns from
        them.
        """
        folds = np.zeros(len(dataset), dtype=np.int64)
        if len(self.reverse) == 1:
            return folds
        begun = dataset.lengths >= self.config.n_condition
        starts = dataset.starts[begun]
        heads = padded(dataset.log.items, starts, starts + self.config.n_condition)
        folds[begun] = row_keys(torch.from_numpy(heads)).numpy() % len(self.reverse)
        folds[~begun] = -1
        return folds

    def _learn_reverse(
        self, reverse: Recommender, train: SequenceDataset, runtime: Runtime
    ) -> list[Epoch]:
        backwards = _reversed(train)
        generator = np.random.Generator(np.random.Philox(key=[runtime.seed, 0]))
        users = generator.permutation(len(backwards))
        users = users[backwards.lengths[users] >= 3]
        held_out = np.sort(users[: len(users) // 10])
        ends = backwards.ends.copy()
        ends[held_out] -= 1
        known = backwards.view(backwards.starts, ends)
        targets = backwards.log.items[ends[held_out]].astype(np.int64)
        queries = Queries(known.select(held_out), targets) if len(held_out) else None
        return fit_shared(reverse, known, queries, runtime)

    @torch.no_grad()
    def generate(self, conditions: SequenceDataset, seed: int) -> Int32[np.ndarray, "S M"]:
        backwards = _reversed(conditions)
        generated = np.zeros((len(conditions), self.config.n_items), dtype=np.int32)
        folds = self._folds_of(conditions)
        for number, reverse in enumerate(self._models):
            mine = np.flatnonzero(folds == number)
            order = mine[np.argsort(backwards.lengths[mine], kind="stable")]
            for batch in bounded_batches(backwards.lengths[order], _AT_ONCE):
                part = order[batch]
                histories = histories_of(backwards, part).to(self.device)
                earlier = self._continued(reverse, histories, seed)
                generated[part] = earlier.flip(1).cpu().numpy()  # generated last, oldest
        return generated

    def _continued(
        self, reverse: Recommender, histories: Histories, seed: int
    ) -> Int64[Tensor, "B M"]:
        """M items that follow reversed histories, each the best one that is not there yet."""
        n, lengths = self.config.n_items, histories.lengths
        room = torch.zeros(len(lengths), n, dtype=torch.int64, device=lengths.device)
        items = torch.cat([histories.items, room], dim=1)
        generated = []
        for step in range(n):
            width = int(lengths.max()) + step
            longer = Histories(histories.users, items[:, :width], lengths + step)
            scorer = reverse.scorer(longer, seed)
            owner, position = (items > 0).nonzero(as_tuple=True)
            _, best = top_k(scorer, 1, hidden=ItemSets(owner, items[owner, position]))
            if bool((best < 0).any()):  # a history that holds the whole catalog begins anew
                best = torch.where(best < 0, top_k(scorer, 1)[1], best)
            items = items.scatter(1, (lengths + step)[:, None], best)
            generated.append(best)
        return torch.cat(generated, dim=1)


def _reversed(dataset: SequenceDataset) -> SequenceDataset:
    """Every sequence from its newest item to its oldest."""
    position = np.arange(int(dataset.lengths.sum()))
    offsets = dataset.offsets
    mirrored = np.repeat(offsets[:-1] + offsets[1:] - 1, dataset.lengths) - position
    return SequenceDataset.from_offsets(
        dataset.items[mirrored], offsets, dataset.catalog, dataset.users
    )
