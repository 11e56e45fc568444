"""DiffuRec: every item of a history is mixed with the noised target, and an encoder restores it.

Source: Li, Sun & Li, "DiffuRec: A Diffusion Model for Sequential Recommendation", TOIS 42(3), 2023
(arXiv 2304.00686), and its released code.

The target's embedding x_0 is noised to a step t (x_t). Each item e_s of the history becomes
``e_s + λ_s ⊙ (x_t + step)``, where λ_s is drawn from N(δ, δ²) for each item and dimension. The
encoder's state at the newest item is the estimate of x_0, and the cross entropy of its products
with all items is the whole loss. To recommend, x_T is pure noise; step by step, the reverse walk
draws from the posterior given the estimate, and the last estimate is scored.

With ``examples="prefixes"`` or ``"newest_prefixes"``, the paper's, an example has one target, with
which all its items are mixed. By default a user is one example. Its items are then each mixed with
their own next item, noised to one step for all: a position sees of the earlier ones what it knows
anyway, its own target's noised embedding beside it, and nothing of what comes after. To recommend,
the earlier items are mixed with the items that followed them, noised to the step of the walk.

Departures:
- Embeddings are divided by their standard deviation before they are noised, and what an item is
  mixed with is multiplied by it: those of a tied softmax are fifty times smaller than unit noise.
  The authors draw them from N(0, 1) and norm the history's.
- The encoder's blocks and positions are the house's; the authors have none of positions. Theirs
  lets a real item attend to padding, and one dropout is on the embeddings alone.
- The reverse walk takes ``num_inference_steps`` of the T steps and samples the posterior's
  variance, where the code has β_t; ``n_draws`` walks a user may be averaged. The authors walk once.
- The code's steps are drawn by recorded losses that it never records: uniformly, as here.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.data.batches import ONE_TARGET
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.diffusion import KeyedNoise, Sampler, row_keys
from diffuserec.models.encoders import following
from diffuserec.models.losses import LOSSES
from diffuserec.models.parts import by_rows
from diffuserec.models.settings import DiffusionSettings, NextItemSettings, PlainSettings
from diffuserec.models.step_embeddings import StepNetwork
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item

Normals = Callable[..., Float[Tensor, "B ..."]]
"""``normals(*shape) -> (B, *shape)``: standard normal numbers."""


class DiffuRec(EncoderRecommender):
    """An encoder of a history that is mixed with its noised target."""

    class Config(PlainSettings, DiffusionSettings, NextItemSettings):
        """Hyper-parameters of DiffuRec."""

        dim: int = Field(64, ge=4, multiple_of=2)
        """Width D of items and states; even, for the step's sinusoid."""
        delta: Annotated[float, Search(1e-4, 1.0, log=True)] = Field(0.001, gt=0)
        """Mean and standard deviation δ of λ, the share of the noised target in each item."""
        num_train_timesteps: int = Field(32, ge=2)
        """Diffusion steps T."""
        beta_schedule: Literal["trunc_linear", "linear", "cosine", "sqrt"] = "trunc_linear"
        """Name of the noise schedule."""
        num_inference_steps: int = Field(4, ge=1)
        """Steps of the reverse walk, each a pass through the encoder; the paper takes all T."""
        n_draws: int = Field(1, ge=1)
        """Walks whose probabilities are averaged."""

    config: Config
    combine = "mixture"
    as_published: ClassVar[Mapping[str, Any]] = {
        "examples": "prefixes",
        "position_encoding": "none",
        "dim": 128,
        "n_layers": 4,
        "n_heads": 4,
        "dropout": 0.1,
        "batch_size": 512,
        "epochs": 500,
        "num_inference_steps": 32,
        "average_epochs": 0.0,
    }

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        self.of_step = StepNetwork(c.dim, 1000 / c.num_train_timesteps)
        self.schedule = c.noise_schedule()

    @property
    def has_one_target(self) -> bool:
        """Whether an example has one target, with which all items are mixed."""
        return self.config.examples in ONE_TARGET

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c, of_batch = self.config, next_item_loss(self.config, train)
        of_items = LOSSES.find(c.loss).make(c, train)

        def loss(batch: Batch) -> Tensor:
            n = len(batch.items)
            t = torch.randint(c.num_train_timesteps, (n,), device=batch.items.device)

            def normals(*shape: int) -> Tensor:
                return torch.randn(n, *shape, device=batch.items.device)

            if self.has_one_target:
                x_t = self._noised(batch.newest_targets[:, None], t, normals)
                mixed = self._mixed(batch.items, x_t, t, normals)
                states = by_rows(self.encoder.newest, mixed, batch.lengths)
                return of_items(states, self.table, batch.newest_targets, batch.users)
            x_t = self._noised(batch.with_last_target().items[:, 1:], t, normals)
            mixed = self._mixed(batch.items, x_t, t, normals)
            states = by_rows(self.encoder, mixed, batch.lengths)
            return of_batch(batch, states, self.table)

        return train_next_item(self, loss, train, valid, runtime)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B K D"]:
        c, k = self.config, self.config.n_draws if n_draws is None else n_draws
        newest = histories.truncate(c.max_len)
        draw = torch.arange(k, device=newest.users.device).repeat(newest.users.shape[0])
        users, items, lengths = (
            part.repeat_interleave(k, 0) for part in (newest.users, newest.items, newest.lengths)
        )
        normals = KeyedNoise(seed, row_keys(torch.stack([users, draw], dim=1))).normal
        after = following(items)
        is_newest = torch.arange(items.shape[1], device=items.device) == lengths[:, None] - 1

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            tokens = x_t[:, None]
            if not self.has_one_target:
                known = self._noised(after, t, normals)
                tokens = torch.where(is_newest[:, :, None], tokens, known)
            return self.encoder.newest(self._mixed(items, tokens, t, normals), lengths)

        sampler = Sampler(c.num_inference_steps, eta=1.0)
        x_0 = sampler(denoise, normals(c.dim), self.schedule, normals)
        return x_0.view(-1, k, c.dim)

    def _noised(
        self, items: Int[Tensor, "B S"], t: Int[Tensor, " B"], normals: Normals
    ) -> Float[Tensor, "B S D"]:
        """Embeddings of items at unit deviation, noised to step t."""
        x_0 = self.table.embed(items) / self.table.deviation()
        return self.schedule.add_noise(x_0, normals(*x_0.shape[1:]), t)

    def _mixed(
        self,
        items: Int[Tensor, "B L"],
        x_t: Float[Tensor, "B #L D"],
        t: Int[Tensor, " B"],
        normals: Normals,
    ) -> Float[Tensor, "B L D"]:
        """Embeddings of items, each with a share of a noised target and of the step."""
        embedded = self.table.embed(items)
        share = self.config.delta * (1 + normals(*embedded.shape[1:]))
        step: Tensor = self.of_step(t)[:, None]
        return embedded + self.table.deviation() * share * (x_t + step)
