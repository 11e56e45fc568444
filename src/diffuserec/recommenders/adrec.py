"""ADRec: every position's target is noised to a step of its own, and restored from left to right.

Source: Chen, Xu & Jiang, "Unlocking the Power of Diffusion Models in Sequential Recommendation: A
Simple and Effective Approach", KDD 2025 (arXiv 2505.19544), and its released code.

A causal encoder turns the history into a condition c_i at each position i. The embedding x_0 of
position i's target, its next item, is noised to a step t_i drawn for that position alone. A causal
transformer reads ``c_i + δ (x_t + step(t_i))`` at every position and restores x_0; the loss is the
cross entropy of the restored embedding with all items and ``mse_weight`` times its squared error.
To recommend, the positions before the newest hold the items that followed them, clean and at step
0, and the reverse walk denoises the newest position alone.

Training has three stages: the item embeddings are learned by the encoder with cross entropy
(``pretrain_epochs``) and the encoder is then drawn anew; encoder and denoiser learn with the
embeddings held still (``frozen_epochs``); all learn together.

Departures:
- Embeddings are divided by their standard deviation before they are noised and compared: those of a
  tied softmax are fifty times smaller than unit noise. The authors draw them from N(0, 1).
- ``mse_weight`` is smaller by default, and the squared error leaves the targets where they are
  unless ``detach_target=False``; the code weighs the two losses equally and lets both move them.
- The denoiser knows positions by their distance; the authors' knows none, as their encoder.
- Of the pretraining's end nothing is said: here validation ends it, as it ends the last stage.
- The reverse walk takes ``num_inference_steps`` of the T steps and samples the posterior's
  variance, where the code has β_t; ``n_draws`` walks a user may be averaged.
- No gradient surgery (PCGrad) between the losses, which the code has as an option, off.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.diffusion import KeyedNoise, Sampler
from diffuserec.models.encoders import following, last_states
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.items import ItemTable
from diffuserec.models.parts import by_rows
from diffuserec.models.retrieval import Products
from diffuserec.models.settings import DiffusionSettings, HeadsSettings, PlainSettings, positive
from diffuserec.models.step_embeddings import StepNetwork
from diffuserec.training import (
    EncoderRecommender,
    Update,
    encoder_loss,
    next_item_loss,
    train_next_item,
)


class ADRec(EncoderRecommender):
    """A causal encoder of the history and a causal denoiser of all targets."""

    class Config(PlainSettings, DiffusionSettings, HeadsSettings):
        """Hyper-parameters of ADRec."""

        dim: int = Field(64, ge=4, multiple_of=2)
        """Width D of items and states; even, for the step's sinusoid."""
        n_denoiser_layers: int = Field(2, ge=1)
        """Blocks of the denoiser."""
        delta: Annotated[float, Search(1e-4, 1.0, log=True)] = Field(0.001, gt=0)
        """Share δ of the noised target in what the denoiser reads."""
        num_train_timesteps: int = Field(32, ge=2)
        """Diffusion steps T."""
        beta_schedule: Literal["trunc_linear", "linear", "cosine", "sqrt"] = "trunc_linear"
        """Name of the noise schedule."""
        mse_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.1, ge=0)
        """Of the squared error, a mean over targets and the width, beside the cross entropy."""
        detach_target: Annotated[bool, OnlyIf(mse_weight=positive)] = True
        """Whether the squared error leaves the target's embedding alone."""
        pretrain_epochs: int = Field(20, ge=0)
        """Epochs of the first stage, at most; 0 leaves it out."""
        frozen_epochs: int = Field(5, ge=0)
        """Epochs of the second stage; 0 leaves it out."""
        num_inference_steps: int = Field(32, ge=1)
        """Steps of the reverse walk."""
        n_draws: int = Field(1, ge=1)
        """Walks whose probabilities are averaged."""

    config: Config
    combine = "mixture"
    as_published: ClassVar[Mapping[str, Any]] = {
        "position_encoding": "none",
        "dim": 128,
        "n_heads": 4,
        "dropout": 0.1,
        "weight_decay": 1e-5,
        "rate_decay": "cosine",
        "batch_size": 512,
        "epochs": 500,
        "pretrain_epochs": 500,
        "mse_weight": 1.0,
        "detach_target": False,
        "average_epochs": 0.0,
    }

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        own = TransformerEncoder.Config(n_layers=c.n_denoiser_layers, n_heads=c.n_heads)
        self.denoiser = TransformerEncoder(c.dim, c.max_len, c.dropout, own)
        self.denoiser.init_std = c.init_std
        self.denoiser.reset_parameters()
        self.of_step = StepNetwork(c.dim, 1000 / c.num_train_timesteps)
        self.schedule = c.noise_schedule()

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        records: list[Epoch] = []
        if c.pretrain_epochs:
            drawn = {name: value.clone() for name, value in self.encoder.state_dict().items()}
            records = train_next_item(
                self,
                encoder_loss(self, c, train),
                train.with_all_copies(),
                valid,
                runtime,
                scorer=self._of_encoder,
                phase="pretrain",
                epochs=c.pretrain_epochs,
            )
            self.encoder.load_state_dict(drawn)
        loss = self._loss(next_item_loss(c, train))
        if c.frozen_epochs:
            table = {id(parameter) for parameter in self.table.parameters()}
            moved = [parameter for parameter in self.parameters() if id(parameter) not in table]
            records += train_next_item(
                self,
                [Update(loss, moved)],
                train.with_all_copies(),
                None,
                runtime,
                phase="frozen",
                epochs=c.frozen_epochs,
            )
        return records + train_next_item(self, loss, train, valid, runtime)

    def _loss(
        self, next_item: Callable[[Batch, Tensor, ItemTable], Tensor]
    ) -> Callable[[Batch], Float[Tensor, ""]]:
        """Next-item loss of the restored targets, and their squared error."""
        c = self.config

        def loss(batch: Batch) -> Tensor:
            condition = self.encode(batch.items, batch.lengths)
            x_0 = self._clean(batch.with_last_target().items[:, 1:])
            t = torch.randint(c.num_train_timesteps, x_0.shape[:2], device=condition.device)
            x_t = self.schedule.add_noise(
                x_0.flatten(0, 1), torch.randn_like(x_0).flatten(0, 1), t.flatten()
            )
            tokens = self._tokens(condition, x_t.view_as(x_0), t)
            restored = by_rows(self.denoiser, tokens, batch.lengths)
            value = next_item(batch, restored, self.table)
            if not c.mse_weight:
                return value
            real = batch.targets > 0
            aim = x_0[real].detach() if c.detach_target else x_0[real]
            return value + c.mse_weight * F.mse_loss(restored[real].float(), aim)

        return loss

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B K D"]:
        c, k = self.config, self.config.n_draws if n_draws is None else n_draws
        newest = histories.truncate(c.max_len)
        condition = self.encode(newest.items, newest.lengths)
        at_newest = last_states(condition, newest.lengths)[:, None]
        clean = self._clean(following(newest.items))
        steps = torch.zeros_like(newest.items)
        read_slots = self.denoiser.beside(self._tokens(condition, clean, steps))
        n_before = (newest.lengths - 1)[:, None].expand(-1, k)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return read_slots(self._tokens(at_newest, x_t, t[:, None].expand(-1, k)), n_before)

        normal = KeyedNoise(seed, newest.users).normal
        sampler = Sampler(c.num_inference_steps, eta=1.0)
        x_0: Tensor = sampler(denoise, normal(k, c.dim), self.schedule, normal)
        return x_0

    def _of_encoder(self, histories: Histories) -> Products:
        """Scores by the encoder alone, for the first stage."""
        newest = histories.truncate(self.config.max_len)
        return Products(self.newest(newest.items, newest.lengths), self.item_weight())

    def _clean(self, items: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """Embeddings of items at unit deviation."""
        embedded: Tensor = self.table.embed(items) / self.table.deviation()
        return embedded

    def _tokens(
        self,
        condition: Float[Tensor, "B #S D"],
        x_t: Float[Tensor, "B S D"],
        t: Int[Tensor, "B S"],
    ) -> Float[Tensor, "B S D"]:
        """What the denoiser reads."""
        step: Tensor = self.of_step(t)
        return condition + self.config.delta * (x_t + step)
