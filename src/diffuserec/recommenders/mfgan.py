"""MFGAN: a generator of next items, judged by a discriminator for each factor.

Source: Ren, Liu, Li, Zhao, Wang, Ding & Wen, "Sequential Recommendation with Self-Attentive
Multi-Adversarial Network", SIGIR 2020 (arXiv 2005.10602), and its released code.

The generator, a causal transformer, is pre-trained on next items and alone makes the scores. Every
factor of an item (which item it is, how popular it is, attributes of the catalog) has a
discriminator: one bidirectional block over the factor's values along a sequence, whose newest
state says how likely the sequence is real. Discriminators learn to tell what came next from what
the generator would put there; the reward of an item is the mean of their probabilities. Then the
generator maximizes the reward that it expects of its ``n_candidates`` best items. The two take
turns for ``rounds``.

Departures and options:
- The discriminators see training histories alone. The released code gives them complete ones,
  whose newest item is the test item: its rewards have seen the answers.
- ``generator="policy"`` is the paper's policy gradient. Its policy is the softmax over the
  generator's best items, so that the expectation is a sum and nothing needs to be sampled. The
  code has no policy: it multiplies the positive term of bce, at all positions of a sequence, by the
  reward of the generator's best item at the end (``generator="reweighted"``, with ``loss="bce"``).
- The next-item loss stays beside the expected reward (``next_item_weight=0``: the reward alone).
- Each step judges a random prefix of every row and not only the row itself; a discriminator sees
  one of the generator's items, drawn anew, for each real one (code: ten).
- What the generator puts forth leaves out the items before it, which a recommender hides: where
  nothing repeats, a discriminator would learn to find repetitions and nothing else.
- Popularity has ten groups, divided by training counts. The code's knowledge graph is left out.
- One optimizer for the generator and one for the discriminators, without penalty on weights; with
  validation queries the generator is left as it was when it validated best, pre-training included.
"""

import math
from functools import partial
from typing import Literal, Self

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import Recommender, Run
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.models.encoders import TransformerEncoder, last_states
from diffuserec.models.settings import NextItemSettings
from diffuserec.models.views import random_prefix

_GROUPS = 10
"""Of items, by popularity."""

_HIDDEN = torch.finfo(torch.float32).min


class MFGAN(Recommender):
    """Causal transformer trained against discriminators of items, popularity and attributes."""

    class Config(NextItemSettings):
        """Hyper-parameters of MFGAN."""

        epochs: int = Field(100, ge=1)
        """Of pre-training the generator, which stops early as others do."""
        rounds: int = Field(2, ge=1)
        """Of discriminator_epochs and generator_epochs; the authors have 100."""
        discriminator_epochs: int = Field(1, ge=1)
        generator_epochs: int = Field(3, ge=1)
        """The authors have 80."""
        generator: Literal["policy", "reweighted"] = "policy"
        next_item_weight: float = Field(10.0, ge=0)
        """Of the next-item loss against the expected reward: at 1 the reward pulled away from the
        data, and validation fell from epoch to epoch (a part of Beauty). Not read where the
        generator is ``reweighted``, whose loss is the next item's."""
        n_candidates: int = Field(10, ge=2)
        """The generator's best items: discriminators' negatives, and what the policy is over."""
        attributes: tuple[str, ...] | None = None
        """Columns of the catalog's attributes that are factors; by default ``category`` where there
        is one."""
        discriminator_dropout: float = Field(0.25, ge=0, lt=1)

        @model_validator(mode="after")
        def _has_a_positive_term(self) -> Self:
            if self.generator == "reweighted" and self.loss != "bce":
                raise ValueError(
                    f"generator='reweighted' weighs the positive term of bce: set loss='bce', "
                    f"not {self.loss!r}"
                )
            return self

    config: Config
    factors: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        if c.n_candidates > catalog.n_items - 1:
            raise ConfigError(
                f"n_candidates {c.n_candidates} is more than the {catalog.n_items - 1} other items "
                "of this catalog: choose a smaller one"
            )
        self.encoder = c.transformer(catalog.vocab_size)
        popularity = torch.zeros(catalog.vocab_size, dtype=torch.int64)  # filled in by fit
        factors = [
            torch.arange(catalog.vocab_size),
            popularity,
            *_attributes(catalog, c.attributes),
        ]
        self.register_buffer("factors", torch.stack(factors))
        sizes = [int(values.max()) for values in factors]
        sizes[1] = _GROUPS
        self.discriminators = nn.ModuleList(_Discriminator(size + 1, c) for size in sizes)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        self.factors[1] = popularity_groups(self.popularity)
        next_item = training.next_item(c, train)
        seen = None
        if c.generator == "reweighted":
            seen = seen_keys(train).to(training.device_of(run))

        def generator_loss(batch: Batch) -> Tensor:
            self.discriminators.eval()
            states = self.encoder(batch.items, batch.lengths)
            if c.generator == "reweighted":
                return self._reweighted(batch, states, seen)
            loss = -self._expected_reward(batch, states)
            if c.next_item_weight:
                loss = loss + c.next_item_weight * next_item(batch, states, self.encoder.table)
            return loss

        generator, discriminators = (
            torch.optim.Adam(module.parameters(), c.learning_rate, fused=True)
            for module in (self.encoder, self.discriminators)
        )
        learn = partial(training.train_next_item, self, run=run, score=self.score, rows=c.rows)
        self.curve = learn(
            training.encoder_loss(self.encoder, c, train),
            data=train,
            valid=valid,
            phase="pretrain",
            epochs=c.epochs,
            optimizer=generator,
        )
        best, kept = _figure(self.curve), _copied(self.encoder)
        for number in range(1, c.rounds + 1):
            self.curve += learn(
                self._discriminator_loss,
                data=train.without_variants(),  # which are not real
                valid=None,
                phase=f"discriminators-{number}",
                epochs=c.discriminator_epochs,
                optimizer=discriminators,
            )
            records = learn(
                generator_loss,
                data=train.with_all_variants(),
                valid=valid,
                phase=f"generator-{number}",
                epochs=c.generator_epochs,
                optimizer=generator,
            )
            self.curve += records
            if _figure(records) >= best:
                best, kept = _figure(records), _copied(self.encoder)
        self.encoder.load_state_dict(kept)
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)

    def _discriminator_loss(self, batch: Batch) -> Tensor:
        """Of a random prefix of each row, followed by its target or by one of the generator's."""
        (prefix, lengths), target = random_prefix(batch.items, batch.targets)
        self.encoder.eval()
        with torch.no_grad():
            state = self.encoder.newest(prefix, lengths)
            hidden = torch.cat([prefix, target[:, None]], dim=1)
            logits, proposed = self._proposals(state, hidden)
            n = (logits > _HIDDEN).sum(1)
            drawn = (torch.rand(len(n), device=n.device) * n).long()
            both = torch.stack([target, proposed.gather(1, drawn[:, None])[:, 0]], dim=1)
        real, generated = self._judged(prefix, lengths, both).unbind(1)
        losses = (F.softplus(-real) + F.softplus(generated)).mean(1)[n > 0]
        return losses.sum() / max(1, len(losses))

    def _expected_reward(self, batch: Batch, states: Float[Tensor, "B L D"]) -> Float[Tensor, ""]:
        """Of the policy after a random prefix of each row, whose states are given."""
        (prefix, lengths), _ = random_prefix(batch.items, batch.targets)
        logits, proposed = self._proposals(last_states(states, lengths), prefix)
        rewards = self._rewards(prefix, lengths, proposed)
        return (torch.softmax(logits, dim=1) * rewards).sum(1).mean()

    def _reweighted(
        self, batch: Batch, states: Float[Tensor, "B L D"], seen: Int[Tensor, " N"] | None
    ) -> Float[Tensor, ""]:
        """bce whose positive term is multiplied by the reward of the row's best continuation."""
        newest = last_states(states, batch.lengths).detach()
        _, proposed = self._proposals(newest, batch.items)
        reward = self._rewards(batch.items, batch.lengths, proposed[:, :1])
        chosen, targets, users = training.real_positions(batch, states)
        table = self.encoder.table
        n = self.config.n_negatives or 1
        drawn = uniform_negatives(users, n, len(table), seen)
        positive = (chosen * table[targets]).sum(1)
        negative = torch.bmm(table[drawn], chosen[:, :, None])[:, :, 0]
        weights = reward.expand_as(batch.targets)[batch.targets > 0]
        return (weights * F.softplus(-positive) + F.softplus(negative).mean(1)).mean()

    def _proposals(
        self, state: Float[Tensor, "B D"], hidden: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """The generator's best items but the hidden ones, and their logits.

        Where fewer are left, hidden ones follow, with the least of logits, which pass no gradient.
        """
        logits = (state @ self.encoder.table.T).float()
        logits = logits.scatter(1, F.pad(hidden, (0, 1)), _HIDDEN)  # and padding
        return logits.topk(self.config.n_candidates, dim=1)

    @torch.no_grad()
    def _rewards(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], following: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K"]:
        """How real each of K items is after each sequence."""
        return self._judged(items, lengths, following).sigmoid().mean(2)

    def _judged(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], following: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K F"]:
        """What each discriminator says of each sequence, followed by each of its K items."""
        k = following.shape[1]
        ends = lengths.repeat_interleave(k)
        longer = F.pad(items, (0, 1)).repeat_interleave(k, 0)
        longer = longer.scatter(1, ends[:, None], following.reshape(-1, 1))
        judged = [
            discriminator(values[longer], ends + 1)
            for discriminator, values in zip(self.discriminators, self.factors, strict=True)
        ]
        return torch.stack(judged, dim=1).view(*following.shape, -1)


class _Discriminator(nn.Module):
    """A bidirectional block over one factor's values, and a logit of its newest state."""

    def __init__(self, n_values: int, c: MFGAN.Config) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(
            n_values, c.dim, 1, c.n_heads, c.max_len + 1, c.discriminator_dropout, causal=False
        )
        self.out = nn.Linear(c.dim, 1)

    def forward(
        self, values: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        logits: Tensor = self.out(self.encoder.newest(values, lengths))[:, 0]
        return logits.float()


def _figure(records: list[training.Epoch]) -> float:
    """The best validation figure; without validation what is newest counts as best."""
    figures = [record.valid for record in records if record.valid is not None]
    return max(figures, default=math.inf)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def popularity_groups(counts: Int[Tensor, " V"]) -> Int[Tensor, " V"]:
    """1 for the tenth of the items that is counted least, up to 10; equal counts share a group."""
    quantiles = np.quantile(counts[1:].numpy(), np.arange(1, _GROUPS) / _GROUPS)
    groups = 1 + np.searchsorted(quantiles, counts.numpy(), side="left")
    groups[0] = 0
    return torch.from_numpy(groups)


def _attributes(catalog: Catalog, names: tuple[str, ...] | None) -> list[Int[Tensor, " V"]]:
    """The items' values in each of these columns, numbered from 1; 0 where there is none."""
    frame = pl.DataFrame() if catalog.attributes is None else catalog.attributes
    if names is None:
        names = tuple(name for name in ("category",) if name in frame.columns)
    missing = [name for name in names if name not in frame.columns]
    if missing:
        known = ", ".join(frame.columns) or "none"
        raise ConfigError(f"the catalog has no attribute {missing[0]!r}; it has: {known}")
    numbered = [frame[name].rank("dense").fill_null(0).to_numpy() for name in names]
    return [torch.from_numpy(np.concatenate([[0], values]).astype(np.int64)) for values in numbered]
