"""MFGAN: a generator of next items, judged by a discriminator for each factor.

Source: Ren, Liu, Li, Zhao, Wang, Ding & Wen, "Sequential Recommendation with Self-Attentive
Multi-Adversarial Network", SIGIR 2020 (arXiv 2005.10602), and its released code.

The generator, a causal transformer, is pre-trained on next items and alone makes the scores. Every
factor of an item (its number, its popularity, attributes of the catalog) has a discriminator: one
bidirectional block over the factor's values along a sequence, whose newest state says how likely
the sequence is real. Discriminators learn to distinguish the item that came next from an item that
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
- The next-item loss is kept beside the expected reward (``next_item_weight=0``: the reward alone).
- Each step judges a random prefix of every sequence and not only the sequence itself; a
  discriminator sees one of the generator's items, drawn anew, for each real one (code: ten).
- The generator's items leave out the items before them, which a recommender hides: where
  nothing repeats, a discriminator would learn to find repetitions and nothing else.
- Popularity has ten groups, divided by training counts. The code's knowledge graph is left out.
- One optimizer for the generator and one for the discriminators, without penalty on weights; with
  validation queries the generator is left as it was when it validated best, pre-training included.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, Self

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Queries, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf
from diffuserec.models.encoders import last_states, newest_states
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import unseen_negatives
from diffuserec.models.parts import by_rows
from diffuserec.models.retrieval import ItemSets, Products, top_k
from diffuserec.models.settings import HeadsSettings
from diffuserec.models.views import random_prefix
from diffuserec.training import (
    EncoderRecommender,
    adam,
    encoder_loss,
    next_item_loss,
    real_positions,
    train_next_item,
)

_GROUPS = 10
"""Groups of items, by popularity."""

_HIDDEN = torch.finfo(torch.float32).min


class MFGAN(EncoderRecommender):
    """Causal transformer trained against discriminators of items, popularity and attributes."""

    class Config(HeadsSettings):
        """Hyper-parameters of MFGAN."""

        epochs: int = Field(100, ge=1)
        """Epochs of pre-training the generator, which stops early as others do."""
        rounds: int = Field(2, ge=1)
        """Of discriminator_epochs and generator_epochs; the authors have 100."""
        discriminator_epochs: int = Field(1, ge=1)
        generator_epochs: int = Field(3, ge=1)
        """The authors have 80."""
        generator: Literal["policy", "reweighted"] = "policy"
        next_item_weight: Annotated[float, OnlyIf(generator="policy")] = Field(10.0, ge=0)
        """Weight of the next-item loss against the expected reward: at 1 the reward pulled away
        from the data, and validation fell from epoch to epoch (a part of Beauty)."""
        n_candidates: int = Field(10, ge=2)
        """The generator's best items: discriminators' negatives, and the actions of the policy."""
        attributes: tuple[str, ...] | None = None
        """Columns of the catalog's attributes that are factors; by default ``category`` if there is
        one."""
        discriminator_dropout: float = Field(0.25, ge=0, lt=1)

        @model_validator(mode="after")
        def _fits(self) -> Self:
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
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        with torch.device("cpu"):  # their values decide sizes, wherever the rest is being built
            popularity = torch.zeros(catalog.vocab_size, dtype=torch.int64)  # filled in by learn
            factors = [
                torch.arange(catalog.vocab_size),
                popularity,
                *attribute_values(catalog, c.attributes),
            ]
            self.register_buffer("factors", torch.stack(factors))
        sizes = [int(values.max()) for values in factors]
        sizes[1] = _GROUPS
        self.discriminators = nn.ModuleList(Discriminator(size + 1, c) for size in sizes)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        self.factors[1] = popularity_deciles(self.popularity)
        next_item = next_item_loss(c, train)
        draw = unseen_negatives(train)

        def generator_loss(batch: Batch) -> Tensor:
            self.discriminators.eval()
            states = self.encode(batch.items, batch.lengths)
            if c.generator == "reweighted":
                return self._reweighted(batch, states, draw)
            loss = -self._expected_reward(batch, states)
            if c.next_item_weight:
                loss = loss + c.next_item_weight * next_item(batch, states, self.head_table)
            return loss

        generator = nn.ModuleList([self.table, self.encoder])
        of_generator, of_discriminators = (
            adam(c, module.parameters()) for module in (generator, self.discriminators)
        )
        train_phase = partial(train_next_item, self)
        records = train_phase(
            encoder_loss(self, c, train),
            train,
            valid,
            runtime,
            phase="pretrain",
            epochs=c.epochs,
            optimizer=of_generator,
        )
        best, kept = _best_metric(records), _copied(generator)
        for number in range(1, c.rounds + 1):
            records += train_phase(
                self._discriminator_loss,
                train.without_copies(),  # copies are not real
                None,
                runtime,
                phase=f"discriminators-{number}",
                epochs=c.discriminator_epochs,
                optimizer=of_discriminators,
            )
            found = train_phase(
                generator_loss,
                train.with_all_copies(),
                valid,
                runtime,
                phase=f"generator-{number}",
                epochs=c.generator_epochs,
                optimizer=of_generator,
            )
            records += found
            if _best_metric(found) >= best:
                best, kept = _best_metric(found), _copied(generator)
        generator.load_state_dict(kept)
        return records

    def _discriminator_loss(self, batch: Batch) -> Tensor:
        """Loss of a random prefix of each sequence, followed by its target or a generated item."""
        (prefix, lengths), target = random_prefix(batch.items, batch.targets)
        self.encoder.eval()
        with torch.no_grad():
            state = newest_states(self.encode, prefix, lengths)
            hidden = torch.cat([prefix, target[:, None]], dim=1)
            logits, proposed = self.propose(state, hidden)
            n = (logits > _HIDDEN).sum(1)
            drawn = (torch.rand(len(n), device=n.device) * n).long()
            both = torch.stack([target, proposed.gather(1, drawn[:, None])[:, 0]], dim=1)
        real, generated = self.judge(prefix, lengths, both).unbind(1)
        losses = (F.softplus(-real) + F.softplus(generated)).mean(1)[n > 0]
        return losses.sum() / max(1, len(losses))

    def _expected_reward(self, batch: Batch, states: Float[Tensor, "B L D"]) -> Float[Tensor, ""]:
        """Expected reward of the policy after a random prefix of each sequence."""
        (prefix, lengths), _ = random_prefix(batch.items, batch.targets)
        logits, proposed = self.propose(last_states(states, lengths), prefix)
        rewards = self.rewards(prefix, lengths, proposed)
        return (torch.softmax(logits, dim=1) * rewards).sum(1).mean()

    def _reweighted(
        self,
        batch: Batch,
        states: Float[Tensor, "B L D"],
        draw: Callable[[Tensor, int], Tensor],
    ) -> Float[Tensor, ""]:
        """bce with its positive term multiplied by the reward of the best continuation."""
        newest = last_states(states, batch.lengths).detach()
        _, proposed = self.propose(newest, batch.items)
        reward = self.rewards(batch.items, batch.lengths, proposed[:, :1])
        chosen, targets, users = real_positions(batch, states)
        vectors = self.item_weight()
        drawn = draw(users, self.config.n_negatives or 1)
        positive = (chosen * vectors[targets]).sum(1)
        negative = torch.bmm(vectors[drawn], chosen[:, :, None])[:, :, 0]
        weights = reward.expand_as(batch.targets)[batch.targets > 0]
        return (weights * F.softplus(-positive) + F.softplus(negative).mean(1)).mean()

    def propose(
        self, state: Float[Tensor, "B D"], hidden: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
        """The generator's best items that are not hidden, best first, and their logits.

        Where fewer are left, padding follows, with the least of logits, which passes no gradient.
        """
        vectors = self.item_weight()
        owner = torch.arange(len(hidden), device=hidden.device)
        sets = ItemSets(owner.repeat_interleave(hidden.shape[1]), hidden.flatten())
        _, items = top_k(Products(state.detach(), vectors), self.config.n_candidates, sets)
        missing, items = items < 0, items.clamp(min=0)
        logits = torch.bmm(vectors[items], state[:, :, None])[:, :, 0].float()
        return logits.masked_fill(missing, _HIDDEN), items

    @torch.no_grad()
    def rewards(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], following: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K"]:
        """Reward of each of K items after each sequence: the mean probability of being real."""
        return self.judge(items, lengths, following).sigmoid().mean(2)

    def judge(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], following: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K F"]:
        """Logit by each discriminator of each sequence, followed by each of its K items."""
        k = following.shape[1]
        ends = lengths.repeat_interleave(k)
        longer = F.pad(items, (0, 1)).repeat_interleave(k, 0)
        longer = longer.scatter(1, ends[:, None], following.reshape(-1, 1))
        logits = [
            discriminator(values[longer], ends + 1)
            for discriminator, values in zip(self.discriminators, self.factors, strict=True)
        ]
        return torch.stack(logits, dim=1).view(*following.shape, -1)


class Discriminator(nn.Module):
    """A bidirectional block over one factor's values, and a logit of its newest state."""

    def __init__(self, n_values: int, c: MFGAN.Config) -> None:
        super().__init__()
        self.values = ItemTable(n_values, c.dim, of_catalog=False)
        own = TransformerEncoder.Config(
            n_layers=1, n_heads=c.n_heads, position_encoding=c.position_encoding
        )
        self.encoder = TransformerEncoder(
            c.dim, c.max_len + 1, c.discriminator_dropout, own, causal=False
        )
        self.values.reset_parameters()
        self.encoder.reset_parameters()
        self.out = nn.Linear(c.dim, 1)

    def forward(
        self, values: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        logits: Tensor = self.out(newest_states(self.encode, values, lengths))[:, 0]
        return logits.float()

    def encode(
        self, values: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """States at every position of right-padded values."""
        states: Tensor = by_rows(self.encoder, self.values.embed(values), lengths)
        return states


def _best_metric(records: list[Epoch]) -> float:
    """The best validation metric; infinity without validation: then the newest is the best."""
    metrics = [record.valid for record in records if record.valid is not None]
    return max(metrics, default=math.inf)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def popularity_deciles(counts: Int[Tensor, " V"]) -> Int[Tensor, " V"]:
    """1 for the tenth of the items with the lowest counts, up to 10; equal counts share a group."""
    quantiles = np.quantile(counts[1:].numpy(), np.arange(1, _GROUPS) / _GROUPS)
    groups = 1 + np.searchsorted(quantiles, counts.numpy(), side="left")
    groups[0] = 0
    return torch.from_numpy(groups)


def attribute_values(catalog: Catalog, names: tuple[str, ...] | None) -> list[Int[Tensor, " V"]]:
    """The items' values in each of these attributes, numbered from 1; 0 where there is none.

    Args:
        names: columns of its attributes; None means ``category`` if items have one each.

    Raises:
        ConfigError: the catalog has no such attribute, or it holds lists or vectors.
    """
    frame = pl.DataFrame() if catalog.attributes is None else catalog.attributes
    if names is None:
        single = "category" in frame.columns and not frame["category"].dtype.is_nested()
        names = ("category",) if single else ()
    missing = [name for name in names if name not in frame.columns]
    if missing:
        known = ", ".join(frame.columns) or "none"
        raise ConfigError(f"the catalog has no attribute {missing[0]!r}; it has: {known}")
    nested = [name for name in names if frame[name].dtype.is_nested()]
    if nested:
        raise ConfigError(
            f"the attribute {nested[0]!r} is no single category or number of an item: leave it out"
        )
    numbered = [frame[name].rank("dense").fill_null(0).to_numpy() for name in names]
    return [torch.from_numpy(np.concatenate([[0], values]).astype(np.int64)) for values in numbered]
