"""ASReP: a recommender that learned to read backwards says what came before short histories.

Source: Liu, Fan, Wang, Yu & Li, "Augmenting Sequential Recommendation with Pseudo-Prior Items via
Reversely Pre-training Transformer", SIGIR 2021 (arXiv 2105.00522), and its released code; the
reference "ASReP" of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023.

A recommender is trained on the sequences in reverse, so that its next item is the one before. A
short history is continued backwards with its best item that is not there yet, one after the other.

Departures and options:
- Any recommender can be the reverse one (``model``, ``model_settings``); the paper's is SASRec.
- It learns from the training part alone. The released code reverses whole sequences and holds out
  their first two items, so that the reverse model is trained on validation and test items, reads
  them when it generates, and passes its weights on.
- The paper then goes on training the same weights forwards. Here an augmenter makes data and the
  recommender that learns from them begins anew, as in DiffuASR's comparison.
- A tenth of the users' first items is held out from the reverse model to decide when to stop.
- 10 items for histories of at most 20; the authors' 15 to 17 are ``n_items``.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.models.base import Augmenter, PrependingSettings, Run, find, parse_settings
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset, histories_of

_AT_ONCE = 512
"""Histories continued at once."""


class ASReP(Augmenter):
    """Prepends what a reversely trained recommender thinks came before."""

    class Config(PrependingSettings):
        """Hyper-parameters of ASReP."""

        max_history: int | None = Field(20, ge=1)
        """Only users with at most so many real items are given any; None means all."""
        model: str = "sasrec"
        """Name of the recommender that is trained in reverse."""
        model_settings: Mapping[str, Any] = Field({}, validate_default=False)
        """Its settings that are not the defaults."""

        @model_validator(mode="after")
        def _known(self) -> Self:
            schema = find("recommender", self.model).Config
            parse_settings(schema, dict(self.model_settings), f"model_settings of {self.model}")
            return self

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.reverse = find("recommender", self.config.model)(**self.config.model_settings)
        self.reverse._take(catalog)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Trains the reverse recommender on the real items of `train`; `valid` is not used."""
        run = run or Run()
        self.begin(train, run)
        backwards = _reversed(train.real())
        rows = np.random.Generator(np.random.Philox(key=[run.seed, 0])).permutation(len(backwards))
        rows = rows[backwards.lengths[rows] >= 3]
        held_out = np.sort(rows[: len(rows) // 10])
        ends = backwards.offsets[1:].copy()
        ends[held_out] -= 1
        known = backwards.slice(backwards.offsets[:-1], ends)
        queries = Queries(known.select(held_out), backwards.items[ends[held_out]].astype(np.int64))
        self.reverse.fit(known, queries if len(held_out) else None, run)
        self.curve = self.reverse.curve
        return self

    @torch.no_grad()
    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same users with M earlier items in front; longer histories stay as they are."""
        self.require_fitted()
        rows = self.config.rows(dataset)
        backwards = _reversed(dataset.real())
        generated = np.zeros((len(rows), self.config.n_items), dtype=np.int32)
        order = np.argsort(backwards.lengths[rows], kind="stable")
        for first in range(0, len(order), _AT_ONCE):
            part = order[first : first + _AT_ONCE]
            histories = histories_of(backwards, rows[part]).to(self.device)
            earlier = self._continued(histories, seed)
            generated[part] = earlier.flip(1).cpu().numpy()  # the last made is the oldest
        return dataset.prepend(generated, rows)

    def _continued(self, histories: Histories, seed: int) -> Int64[Tensor, "B M"]:
        """The M items that follow reversed histories, each the best that is not there yet."""
        n, lengths = self.config.n_items, histories.lengths
        room = torch.zeros(len(lengths), n, dtype=torch.int64, device=lengths.device)
        items = torch.cat([histories.items, room], dim=1)
        made = []
        for step in range(n):
            width = int(lengths.max()) + step
            scores = self.reverse.score(
                Histories(histories.users, items[:, :width], lengths + step), seed
            ).float()
            scores[:, 0] = -torch.inf
            unseen = scores.scatter(1, items, -torch.inf)
            # a catalog that is used up begins anew
            best = torch.where(unseen.isinf().all(1), scores.argmax(1), unseen.argmax(1))
            items = items.scatter(1, (lengths + step)[:, None], best[:, None])
            made.append(best)
        return torch.stack(made, dim=1)


def _reversed(dataset: SequenceDataset) -> SequenceDataset:
    """Every sequence from its newest item to its oldest."""
    turned = np.repeat(dataset.offsets[:-1] + dataset.offsets[1:] - 1, dataset.lengths)
    places = turned - np.arange(len(dataset.items))
    return SequenceDataset(dataset.items[places], dataset.offsets, dataset.catalog, dataset.users)
