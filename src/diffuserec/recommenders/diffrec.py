"""DiffRec: the next item's embedding is diffused; a transformer denoises it given the history.

Source: Du, Yuan, Huang, Zhao & Zhou, "Sequential Recommendation with Diffusion Models", 2023 (arXiv
2304.04541). Equations and algorithms below are its. No code of it was published.

A history is followed by a slot that holds the target's embedding, noised to some step n (eq. 7).
The network predicts the clean embedding from it (eq. 16), a linear head turns that into
probabilities of items (eq. 8), and the loss is squared error plus cross entropy (eq. 18). To
recommend, the slot holds pure noise, one pass predicts, and the probabilities of several noise
draws are averaged (algorithm 3); ``num_inference_steps`` above 1 walks back in steps (algorithm 2).

Two forms:
- ``form="prefixes"`` is the paper's: a training example for every prefix of a history, every token
  sees every other, and all tokens carry the step's embedding. With an ``encoder`` other than the
  transformer, the state at the slot is the prediction, whatever that encoder sees.
- ``form="two_stream"`` trains all targets of a user in one example. History tokens see the history
  before them; each target has its own slot with its own step, which sees the history before it
  and itself. What an encoder makes of a history then does not depend on the noise: it is computed
  once and all draws read it. It equals an example per prefix with a causal encoder, but for
  histories longer than ``max_len``, whose examples are windows: the first targets of one see less.

Departures; docs/methods/diffrec.md has what each is worth. Options, with the paper's reading:
- The cross entropy is that of the *predicted* embedding: on the true one, as eq. 13 prints it, it
  would not train the network. ``rounding_loss`` adds the printed term.
- Importance weights are 1/(N p_n), which is 1 for uniform steps; eq. 18's 1/p_n would multiply the
  squared error by N against the cross entropy (``step_weight="literal"``). Errors are averaged
  over the width (``mse_reduction="sum"``) and weigh 0.01 (``mse_weight=1``).
- ``normalize``: embeddings are divided by their standard deviation before they are diffused. Those
  of a tied softmax are fifty times smaller than unit noise, which drowns them. The step's embedding
  is scaled with them.
- ``damping``: the slot holds the noised embedding times sqrt(alpha_bar_n), at least times 0.3; as
  it is, its noise runs through the residual stream into the prediction (``damping=None``).
- ``add_last_item`` adds the newest item's embedding to the slot; ``pure_noise`` is the share of
  targets that train from pure noise, as recommending does (0); ``tie_head`` scores with the item
  table instead of one of its own.
- Positions are known by their distance; in eq. 14 they are counted up to the slot, which is the
  last (``position_encoding="from_newest"``).
- ``slot="empty"`` is the ablation without diffusion: the slot holds nothing of the target and no
  noise, and asks the history what comes next.

Not options: the reverse walk samples the posterior's variance, where the paper has beta_n;
``max_len`` counts the history alone; norms follow the residuals, the feed-forward width is 4·dim
with a GELU; batches hold equally many targets.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.data import Batch, Catalog, Examples, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import ByLog, OnlyIf, Search
from diffuserec.models.diffusion import ImportanceSteps, KeyedNoise, Sampler
from diffuserec.models.encoders import ENCODERS
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import mixture_cross_entropy
from diffuserec.models.parts import by_rows
from diffuserec.models.recommender import StateRecommender
from diffuserec.models.retrieval import Mixture
from diffuserec.models.settings import AttentiveSettings, DiffusionSettings, several
from diffuserec.models.step_embeddings import interleaved_sinusoidal
from diffuserec.training import train_next_item

Predictor = Callable[[Float[Tensor, "B S D"], Int[Tensor, "B S"]], Float[Tensor, "B S D"]]
"""Noised embeddings in S slots of a history, and their steps, to predicted clean embeddings."""

_SLOTS = 32
"""Slots read at once when recommending: the attention mask grows with their square."""

_VALIDATION_CANDIDATES = 256
"""Items that validation averages over: the top ten that it looks for are among them."""


class DiffRec(StateRecommender):
    """An encoder that denoises the embedding of the next item."""

    class Config(DiffusionSettings, AttentiveSettings):
        """Hyper-parameters of DiffRec."""

        form: Literal["two_stream", "prefixes"] = "two_stream"
        """All targets of a user in one example with a causal encoder, or the paper's example a
        prefix with bidirectional attention."""
        slot: Literal["diffused", "empty"] = "diffused"
        """What the slot holds: the noised target, or nothing: the ablation without diffusion."""
        dim: int = Field(64, ge=2)
        """Width D of items and states; the paper has 256."""
        beta_schedule: Annotated[Literal["sqrt", "cosine", "linear"], OnlyIf(slot="diffused")] = (
            "sqrt"
        )
        step_sampling: Annotated[Literal["importance", "uniform"], OnlyIf(slot="diffused")] = (
            "importance"
        )
        """Training steps are drawn by their recorded losses (eq. 18), or uniformly."""
        step_weight: Annotated[Literal["normalized", "literal"], OnlyIf(slot="diffused")] = (
            "normalized"
        )
        """Weight of the squared error at step n: 1/(N p_n), or eq. 18's 1/p_n."""
        pure_noise: Annotated[float, OnlyIf(slot="diffused")] = Field(0.5, ge=0, le=1)
        """Share of the targets that train at n = N, whatever the step sampling says."""
        mse_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.01, ge=0)
        mse_reduction: Literal["mean", "sum"] = "mean"
        """Over the width."""
        detach_target: bool = False
        """Whether the squared error leaves the target's embedding alone."""
        prior_loss: bool = False
        """Whether to add the norm of the fully noised embedding's mean, which the paper drops; with
        its schedule, which leaves 5e-7 of the signal, that is next to nothing."""
        rounding_loss: bool = False
        """Whether to add the cross entropy of the true embedding (eq. 13 as printed)."""
        targets: Literal["all", "last"] = "all"
        """Train on every item of a user that has a history (in several examples if it is long), or
        on the newest alone."""
        noise_last: Annotated[int, OnlyIf(form="prefixes", encoder="transformer")] = Field(1, ge=1)
        """Noised items: 1 is the target alone; more noise history too (fig. 5)."""
        noised_history: Annotated[Literal["always", "training"], OnlyIf(noise_last=several)] = (
            "always"
        )
        """Whether nothing of the noised history is seen when recommending either, or all of it."""
        normalize: bool = True
        """Whether embeddings are divided by their standard deviation before they are diffused."""
        damping: Annotated[float | None, OnlyIf(slot="diffused")] = Field(0.3, gt=0, le=1)
        """The slot holds the noised embedding times sqrt(alpha_bar_n), the best linear guess of the
        clean one, but at least times this; None leaves it as it is."""
        add_last_item: bool = True
        """Whether the newest item's embedding is added to the slot."""
        tie_head: bool = True
        """Whether scores come from the item table, or from a second one with biases."""
        step_embedding: bool = True
        rescale_steps: Annotated[bool, OnlyIf(step_embedding=True)] = False
        """Whether the step's embedding is that of n·1000/N instead of n."""
        n_train_draws: Annotated[int, OnlyIf(form="two_stream", slot="diffused")] = Field(1, ge=1)
        """Noise draws a target whose averaged probability is trained."""
        n_draws: Annotated[int, OnlyIf(slot="diffused")] = Field(10, ge=1)
        """Noise draws whose probabilities are averaged."""
        num_inference_steps: Annotated[int, OnlyIf(slot="diffused")] = Field(1, ge=1)
        """1 predicts from pure noise at once; more walk back, N of them as in algorithm 2."""
        n_candidates: int | None = Field(None, ge=1)
        """Score by averaging over so many items that the draws' mean state puts first, not over
        all; the draws themselves stay exact."""
        batch_size: Annotated[int, ByLog()] = Field(64, ge=1)
        """Training examples a batch, on average: users, or prefixes (the paper has 256)."""

        @property
        def full_softmaxes(self) -> int:
            return self.n_train_draws + self.rounding_loss

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.form == "two_stream":
                self._require_slots()
            if self.noise_last > 1 and self.num_inference_steps > 1:
                raise ValueError("noise_last above 1 works with num_inference_steps = 1 only")
            if self.noise_last > 1 and self.add_last_item:
                raise ValueError(
                    "noise_last above 1 noises the newest item, which add_last_item would show "
                    "clean: set add_last_item to false"
                )
            if self.noise_last > self.max_len + 1:
                raise ValueError(
                    f"noise_last {self.noise_last} is more than the {self.max_len + 1} tokens"
                )
            return self

        def _require_slots(self) -> None:
            if not ENCODERS.find(self.encoder).takes_slots:
                raise ValueError(
                    f"form 'two_stream' needs an encoder with slots, such as 'transformer' or "
                    f"'bsarec_causal': set form='prefixes' for encoder {self.encoder!r}"
                )
            if getattr(self.encoder_config(), "position_encoding", None) == "from_newest":
                raise ValueError(
                    "position_encoding 'from_newest' needs form='prefixes': in two streams an item "
                    "would have another place for each slot"
                )

    config: Config
    combine = "mixture"
    as_published: ClassVar[Mapping[str, Any]] = {
        "form": "prefixes",
        "position_encoding": "from_newest",
        "dim": 256,
        "max_len": 49,  # and the slot: 50 tokens
        "dropout": 0.3,  # 0.2 for MovieLens
        "batch_size": 256,
        "epochs": 50,
        "patience": 50,  # all epochs, the best one taken
        "tie_head": False,
        "normalize": False,
        "damping": None,
        "add_last_item": False,
        "pure_noise": 0.0,
        "mse_weight": 1.0,
        "average_epochs": 0.0,
    }

    def build(self, catalog: Catalog) -> None:
        c = self.config
        causal = c.form == "two_stream" or ENCODERS.find(c.encoder).sees == "before"
        self.table, self.encoder = c.build_encoder(catalog.vocab_size, causal, extra_positions=1)
        self.schedule = c.noise_schedule()
        self.steps = ImportanceSteps(c.num_train_timesteps)
        self.head = None if c.tie_head else ItemTable(catalog.vocab_size, c.dim, bias=True)
        if self.head is not None:
            self.head.reset_parameters(c.init_std)

    @property
    def n_candidates(self) -> int | None:
        return self.config.n_candidates

    def item_weight(self) -> Float[Tensor, "V E"]:
        return self._head.weight()

    @property
    def _head(self) -> ItemTable:
        return self.head or self.table

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        examples: Examples = "last"
        if c.targets == "all":
            examples = "windows" if c.form == "two_stream" else "prefixes"
        return train_next_item(
            self, self._loss, train, valid, runtime, scorer=self._quick_scorer, examples=examples
        )

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B K E"]:
        c = self.config
        newest = histories.truncate(c.max_len)
        n_draws = c.n_draws if n_draws is None else n_draws
        keyed = KeyedNoise(seed, newest.users)
        noise = keyed.normal(n_draws, c.noise_last, c.dim)
        if c.slot == "empty":  # all draws are the same
            n_draws, noise = 1, torch.zeros_like(noise[:, :1])
        n_history = newest.lengths[:, None].expand(-1, n_draws)
        of_history = noise[:, :, 1:] if c.noised_history == "always" else noise[:, :, :0]
        predict = self.predictor(newest.items, n_history, of_history)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return predict(x_t, t[:, None].expand(-1, n_draws))

        sampler = Sampler(c.num_inference_steps, eta=1.0)
        x_0 = sampler(denoise, noise[:, :, 0], self.schedule, keyed.normal)
        return self._head.states(x_0)

    def _quick_scorer(self, histories: Histories) -> Mixture:
        """Scores for choosing an epoch."""
        n_candidates = self.n_candidates or _VALIDATION_CANDIDATES
        return Mixture(self.states(histories), self.item_weight(), n_candidates)

    def _loss(self, batch: Batch) -> Tensor:
        c = self.config
        items, targets, k = batch.items, batch.targets, c.n_train_draws
        n_history = torch.arange(1, items.shape[1] + 1, device=items.device)[None]
        if c.form == "prefixes" or c.targets == "last":
            n_history = batch.lengths[:, None]
            targets = targets.gather(1, n_history - 1)
        x_0 = self.table.embed(targets) / self._scale()
        t, weight = self.draw_steps(targets)
        noise = torch.randn(*targets.shape, k, c.noise_last, c.dim, device=targets.device)
        several = x_0.flatten(0, 1)[:, None].expand(-1, k, -1)
        x_t = self.schedule.add_noise(several, noise[:, :, :, 0].flatten(0, 1), t.flatten())
        if c.slot == "empty":
            x_t = torch.zeros_like(x_t)
        predicted = by_rows(
            lambda items, n_history, noise, *slots: self.predictor(items, n_history, noise)(*slots),
            items,
            n_history.repeat_interleave(k, 1),
            noise[:, :, :, 1:].flatten(1, 2),
            x_t.view(len(items), -1, c.dim),
            t.repeat_interleave(k, 1),
        )
        predicted = predicted.view(*targets.shape, k, c.dim)
        at = batch.with_target if targets is batch.targets else None
        if at is None:
            at = targets.flatten().nonzero()[:, 0]
        found = (predicted, x_0, targets, t, weight)
        return self._objective(*(values.flatten(0, 1)[at] for values in found))

    def _objective(
        self,
        predicted: Float[Tensor, "P K D"],
        x_0: Float[Tensor, "P D"],
        targets: Int[Tensor, " P"],
        t: Int[Tensor, " P"],
        weight: Float[Tensor, " P"],
    ) -> Float[Tensor, ""]:
        """Cross entropy of predicted embeddings, and their squared error by the step's weight."""
        c, n = self.config, max(1, len(targets))
        loss = self._cross_entropy(predicted, targets)
        if c.rounding_loss:
            loss = loss + self._cross_entropy(x_0[:, None], targets)
        if c.prior_loss:
            end = float(self.schedule.alpha_bars[-1])
            loss = loss + end * x_0.square().sum() / n
        aim = x_0.detach() if c.detach_target else x_0
        error = (predicted.float() - aim[:, None]).square().mean(1)
        error = error.sum(1) if c.mse_reduction == "sum" else error.mean(1)
        if c.step_sampling == "importance":
            self.steps.record(t, error)
        return loss + c.mse_weight * (weight * error).sum() / n

    def _cross_entropy(
        self, predicted: Float[Tensor, "P K D"], targets: Int[Tensor, " P"]
    ) -> Float[Tensor, ""]:
        return mixture_cross_entropy(self._head.states(predicted), self._head.weight(), targets)

    def draw_steps(
        self, targets: Int[Tensor, "B S"]
    ) -> tuple[Int[Tensor, "B S"], Float[Tensor, "B S"]]:
        """Steps of the targets, 0..N-1, and the weights of their squared errors.

        With the normalized weights, the error's expectation is its mean over all steps and, for
        the share of pure noise, the error at n = N.
        """
        c = self.config
        n_steps = c.num_train_timesteps
        pure_noise = 1.0 if c.slot == "empty" else c.pure_noise
        if c.step_sampling == "importance":
            p = self.steps.probabilities()
        else:
            p = torch.full((n_steps,), 1 / n_steps, device=targets.device)
        wanted = torch.full_like(p, (1 - pure_noise) / n_steps)
        p = p * (1 - pure_noise)
        p[-1] += pure_noise
        wanted[-1] += pure_noise
        t = torch.multinomial(p, targets.numel(), replacement=True).view_as(targets)
        return t, wanted[t] / p[t] * (1 if c.step_weight == "normalized" else n_steps)

    def _scale(self) -> Float[Tensor, ""]:
        """Divisor of the embeddings before they are diffused."""
        weight = self.table.vectors.weight
        return self.table.deviation() if self.config.normalize else weight.new_ones(())

    def predictor(
        self,
        items: Int[Tensor, "B L"],
        n_history: Int[Tensor, "#B S"],
        noise: Float[Tensor, "B S N D"],
    ) -> Predictor:
        """The network for slots that each follow the first `n_history` items of a history.

        Args:
            items: of the histories, which are encoded here if that does not depend on the noise.
            noise: of the newest items of each slot's history (``noise_last``).
        """
        embedded = self.table.embed(items)
        if self.config.form == "two_stream":
            read_slots = self.encoder.beside(embedded)

            def decode(x_t: Tensor, t: Tensor) -> Tensor:
                slots = self.target_token(items, n_history, x_t, t)
                size = slots.shape[1] if self.training else _SLOTS
                parts = zip(slots.split(size, 1), n_history.split(size, 1), strict=True)
                return torch.cat([read_slots(*part) for part in parts], dim=1)

            return decode

        def read(x_t: Tensor, t: Tensor) -> Tensor:
            n_slots = x_t.shape[1]
            lengths, steps = n_history.flatten(), t.flatten()
            own, own_embedded = (x.repeat_interleave(n_slots, 0) for x in (items, embedded))
            slots = x_t.flatten(0, 1)[:, None]
            slot = self.target_token(own, lengths[:, None], slots, steps[:, None])
            tokens = self._noise_last(own_embedded, lengths, steps, noise.flatten(0, 1))
            if self.config.step_embedding:
                tokens = tokens + (self._step_embedding(steps) * self._scale())[:, None]
            after = lengths[:, None, None].expand_as(slot)
            tokens = F.pad(tokens, (0, 0, 0, 1)).scatter(1, after, slot)
            return self.encoder.newest(tokens, lengths + 1).view_as(x_t)

        return read

    def target_token(
        self,
        items: Int[Tensor, "B L"],
        n_history: Int[Tensor, "#B S"],
        x_t: Float[Tensor, "B S D"],
        t: Int[Tensor, "B S"],
    ) -> Float[Tensor, "B S D"]:
        """Input tokens of the slots after the first `n_history` items: targets noised to step t."""
        c = self.config
        token = x_t
        if c.damping is not None:
            signal, _ = self.schedule.signal_and_noise(t.flatten(), x_t.flatten(0, 1))
            token = token * signal.view(*t.shape, 1).clamp(min=c.damping)
        if c.step_embedding:
            token = token + self._step_embedding(t)
        token = token * self._scale()
        if c.add_last_item:
            last = items.gather(1, (n_history - 1).expand(items.shape[0], -1))
            token = token + self.table.embed(last)
        return token

    def _noise_last(
        self,
        embedded: Float[Tensor, "B L D"],
        lengths: Int[Tensor, " B"],
        t: Int[Tensor, " B"],
        noise: Float[Tensor, "B N D"],
    ) -> Float[Tensor, "B L D"]:
        """Histories whose newest N items are noised to step t."""
        n = noise.shape[1]
        if not n:
            return embedded
        age = lengths[:, None] - 1 - torch.arange(embedded.shape[1], device=embedded.device)
        noised = (age >= 0) & (age < n)
        index = age.clamp(0, n - 1)[:, :, None].expand(-1, -1, noise.shape[2])
        signal, spread = self.schedule.signal_and_noise(t, embedded)
        blurred = signal * embedded + spread * self._scale() * noise.gather(1, index)
        return torch.where(noised[:, :, None], blurred, embedded)

    def _step_embedding(self, t: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        c = self.config
        n = (t.flatten() + 1).float()
        if c.rescale_steps:
            n = n * (1000 / c.num_train_timesteps)
        return interleaved_sinusoidal(n, c.dim).view(*t.shape, c.dim)
