"""Flow: a path from the history's state to the next item's embedding, walked in a few steps.

This project's own. Diffusion recommenders start from noise that knows nothing of the history; here
the path starts from what an encoder makes of it. Between the state h of a history (s = 0) and the
embedding e of the next item at unit deviation (s = 1) stands

    x_s = (1 - s) h + s e + σ sqrt(s (1 - s)) ε,   ε ~ N(0, 1),   0 ≤ s ≤ 1,

a Brownian bridge of noise σ, or for σ = 0 the straight line of rectified flow. A network of
(x_s, h, s) gives logits of all items, p(i | x_s, h, s), and is trained by the house's loss of the
next item alone, as SASRec is; the mean of the embeddings under p is the estimate ê of e (so long as
the loss is the softmax, whole or sampled: others make no distribution of the products). A share
``start_share`` of the targets trains at s = 0, where recommending begins, the others at uniform s.
The path does not move e: its embedding learns as an item of histories and of the softmax.

To recommend, the walk begins at x_0 = h and visits s = k / N for N ``num_inference_steps``. From s
to s' it draws from the bridge that is held at x_s and at ê:

    x_s' = x_s + (s' - s) / (1 - s) (ê - x_s) + σ sqrt((s' - s) (1 - s') / (1 - s)) ε.

For σ = 0 that is Euler's step along the velocity (ê - x_s) / (1 - s), which is the mean of e - h
given x_s: the flow's own. Items are ranked by p at the last s visited, averaged over ``n_draws``
walks. With N = 1 nothing is walked: p at s = 0 is the answer, and all draws are the same.

With a network that knows p(i | x_s, h, s) exactly and many small steps, a walk ends at the
embedding of an item drawn from p(i | h), and the average over walks is p(i | h): the answer of
N = 1. More steps buy draws that differ from each other, not accuracy; what the path adds to
training is the task of telling, from blurred embeddings, which item they are.

Sources: Liu, Gong & Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with
Rectified Flow", ICLR 2023 (the straight path); Li, Xue, Liu & Lai, "BBDM: Image-to-Image
Translation with Brownian Bridge Diffusion Models", CVPR 2023 (the bridge). Relatives that
recommend: FMRec (IJCAI 2025), FlowRec, BBDRec and FAVE (2025 and 2026).
"""

import itertools
import math
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.encoders import initialize
from diffuserec.models.retrieval import expected_vectors
from diffuserec.models.settings import NextItemSettings, PlainSettings, several
from diffuserec.models.step_embeddings import StepNetwork
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class Flow(EncoderRecommender):
    """An encoder, and a network along the path from its state to the next item."""

    class Config(PlainSettings, NextItemSettings):
        """Hyper-parameters of Flow."""

        dim: int = Field(64, ge=4, multiple_of=2)
        """Width D of items and states; even, for the step's sinusoid."""
        bridge_noise: Annotated[float, Search(0.3, 10.0, log=True)] = Field(3.0, ge=0)
        """σ, in units of the embeddings' deviation; 0 is the straight line."""
        start_share: Annotated[float, Search(0.1, 0.9)] = Field(0.5, ge=0, le=1)
        """Share of the targets that train at s = 0."""
        num_inference_steps: int = Field(2, ge=1, le=16)
        """N, places of the path that are visited; one to four are enough."""
        n_draws: Annotated[int, OnlyIf(num_inference_steps=several)] = Field(4, ge=1)
        """Walks whose probabilities are averaged."""

    config: Config
    combine = "mixture"

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        self.of_step = StepNetwork(c.dim, 1000.0)
        self.network = nn.Sequential(
            nn.Linear(3 * c.dim, 4 * c.dim), nn.GELU(), nn.Linear(4 * c.dim, c.dim)
        )
        self.dropout = nn.Dropout(c.dropout)
        for part in (self.of_step, self.network):
            part.apply(initialize)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        of_batch = next_item_loss(self.config, train)

        def loss(batch: Batch) -> Tensor:
            h = self.encode(batch.items, batch.lengths)
            e = self.table.embed(batch.targets).detach() / self.table.deviation()
            s = torch.rand(batch.targets.shape, device=h.device)
            at_start = torch.rand(s.shape, device=h.device) < self.config.start_share
            s = s.masked_fill(at_start, 0)
            x_s = self.bridge(h, e, s, torch.randn_like(e))
            return of_batch(batch, self._arrived(x_s, h, s), self.table)

        return train_next_item(self, loss, train, valid, runtime)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B K D"]:
        c = self.config
        newest = histories.truncate(c.max_len)
        h = self.newest(newest.items, newest.lengths)[:, None]
        k, normal = n_draws or c.n_draws, KeyedNoise(seed, newest.users).normal
        is_random = c.bridge_noise > 0 and c.num_inference_steps > 1
        places = [n / c.num_inference_steps for n in range(c.num_inference_steps)]
        x, state = h, self._arrived(h, h, h.new_zeros(h.shape[:2]))
        for s, after in itertools.pairwise(places):
            e = self._expected(state)
            x = x + (after - s) / (1 - s) * (e - x)
            if is_random:
                spread = math.sqrt((after - s) * (1 - after) / (1 - s))
                x = x + c.bridge_noise * spread * normal(k, c.dim)
            state = self._arrived(x, h.expand_as(x), x.new_full(x.shape[:2], after))
        return state

    def bridge(
        self,
        h: Float[Tensor, "B S D"],
        e: Float[Tensor, "B S D"],
        s: Float[Tensor, "B S"],
        noise: Float[Tensor, "B S D"],
    ) -> Float[Tensor, "B S D"]:
        """Places x_s of the path from h to e, for standard normal noise."""
        s = s[:, :, None]
        return (1 - s) * h + s * e + self.config.bridge_noise * (s * (1 - s)).sqrt() * noise

    def _arrived(
        self, x_s: Float[Tensor, "B S D"], h: Float[Tensor, "B S D"], s: Float[Tensor, "B S"]
    ) -> Float[Tensor, "B S D"]:
        """States whose products with the item table are the logits at x_s."""
        moved = self.network(torch.cat([x_s, h, self.of_step(s)], dim=2))
        arrived: Tensor = h + self.dropout(moved)
        return arrived

    def _expected(self, states: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Mean embedding of the next item at unit deviation."""
        mean = expected_vectors(states.flatten(0, 1), self.table.weight())
        return mean.view_as(states) / self.table.deviation()
