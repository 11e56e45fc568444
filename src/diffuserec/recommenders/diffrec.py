"""DiffRec: the next item's embedding is diffused; a transformer denoises it given the history.

Source: Du, Yuan, Huang, Zhao & Zhou, "Sequential Recommendation with Diffusion Models", 2023 (arXiv
2304.04541). Equations and algorithms below are its. No code of it was published.

A history is followed by a slot that holds the target's embedding, noised to some step n (eq. 7).
The network predicts the clean embedding from it (eq. 16), a linear head turns that into
probabilities of items (eq. 8), and the loss is squared error plus cross entropy (eq. 18). To
recommend, the slot holds pure noise, one pass predicts, and the probabilities of several noise
draws are averaged (algorithm 3); ``num_inference_steps`` above 1 walks back in steps (algorithm 2).

Two forms:
- ``form="prefixes"`` is the paper's: a row for every prefix of a history, every token sees every
  other, and all tokens carry the step's embedding.
- ``form="two_stream"`` trains all targets of a user in one row. History tokens see the history
  before them; each target has its own slot with its own step, which sees the history before it
  and itself. A history's keys and values then do not depend on the noise: they are computed once
  and all draws read them. It equals a row per prefix with causal attention, but for histories
  longer than ``max_len``, whose rows are windows: the first targets of one see less.

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
- ``carry_last`` adds the newest item's embedding to the slot; ``pure_noise`` is the share of
  targets that train from pure noise, as recommending does (0); ``tie_head`` scores with the item
  table instead of one of its own.

Not options: the reverse walk samples the posterior's variance, where the paper has beta_n;
``max_len`` counts the history alone and the slot has a position of its own; norms follow the
residuals, the feed-forward width is 4·dim with a GELU; batches hold equally many targets.
"""

from collections.abc import Iterator
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import GenerativeRecommender, Run
from diffuserec.data import Batch, Catalog, Histories, Queries, Rows, SequenceDataset
from diffuserec.models.diffusion import ImportanceSteps, KeyedNoise, NoiseSchedule, Sampler
from diffuserec.models.losses import mixture_cross_entropy
from diffuserec.models.step_embeddings import interleaved_sinusoidal
from diffuserec.models.encoders import TransformerEncoder
from diffuserec.models.settings import TransformerSettings

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values (B, H, L, E) of a history in each block."""

_BLOCK = 2_500_000
"""Probabilities made at once: 10 MB stay in the cache."""

_DRAWS = 32
"""Draws in one pass: the mask of who sees whom grows with their square."""


class DiffRec(GenerativeRecommender):
    """Transformer that denoises the embedding of the next item."""

    class Config(TransformerSettings):
        """Hyper-parameters of DiffRec."""

        form: Literal["two_stream", "prefixes"] = "two_stream"
        """All targets of a user in one row with causal attention, or the paper's row a prefix with
        bidirectional attention."""
        dim: int = Field(64, ge=2)
        """Width D of items and states; the paper has 256."""
        dropout: float = Field(0.5, ge=0, lt=1)
        """The paper has 0.3 for Amazon and 0.2 for MovieLens, at width 256."""
        num_train_timesteps: int = Field(1000, ge=2)
        """N diffusion steps."""
        beta_schedule: Literal["sqrt", "cosine", "linear"] = "sqrt"
        step_sampling: Literal["importance", "uniform"] = "importance"
        """How training draws steps: by recorded losses (eq. 18), or all alike."""
        step_weight: Literal["normalized", "literal"] = "normalized"
        """Weight of the squared error at step n: 1/(N p_n), or eq. 18's 1/p_n."""
        pure_noise: float = Field(0.5, ge=0, le=1)
        """Share of the targets that train at n = N, whatever the step sampling says."""
        mse_weight: float = Field(0.01, ge=0)
        mse_reduction: Literal["mean", "sum"] = "mean"
        """Over the width."""
        detach_target: bool = False
        """Whether the squared error leaves the target's embedding alone."""
        keep_prior: bool = False
        """Whether to add the norm of the fully noised embedding's mean, which the paper drops; with
        its schedule, which leaves 5e-7 of the signal, that is next to nothing."""
        rounding_loss: bool = False
        """Whether to add the cross entropy of the true embedding (eq. 13 as printed)."""
        targets: Literal["all", "last"] = "all"
        """Train on every item of a user that has a history (a long one takes several rows), or on
        the newest alone."""
        noise_last: int = Field(1, ge=1)
        """Noised items: 1 is the target alone; more noise history too (form prefixes; fig. 5)."""
        normalize: bool = True
        damping: float | None = Field(0.3, gt=0, le=1)
        """The slot holds the noised embedding times sqrt(alpha_bar_n), the best linear guess of the
        clean one, but at least times this; None leaves it as it is."""
        carry_last: bool = True
        tie_head: bool = True
        position_embedding: bool = True
        step_embedding: bool = True
        rescale_steps: bool = False
        """Whether the step's embedding is that of n·1000/N instead of n."""
        n_train_draws: int = Field(1, ge=1)
        """Noise draws a target whose averaged probability is trained (form two_stream)."""
        n_draws: int = Field(10, ge=1)
        """Noise draws whose probabilities are averaged."""
        num_inference_steps: int = Field(1, ge=1)
        """1 predicts from pure noise at once; more walk back, N of them as in algorithm 2."""
        n_candidates: int | None = Field(None, ge=1)
        """Score by averaging over so many items that the draws' mean state puts first, not over
        all; ``draws``, and what is made of them, stay exact."""
        batch_size: int = Field(64, ge=1)
        """Rows a batch: users, or prefixes in that form (the paper has 256)."""

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.num_inference_steps > self.num_train_timesteps:
                raise ValueError(
                    f"num_inference_steps {self.num_inference_steps} is more than the "
                    f"{self.num_train_timesteps} steps there are"
                )
            if self.noise_last > 1 and self.form != "prefixes":
                raise ValueError(
                    f"noise_last {self.noise_last} noises history, which only form='prefixes' does"
                )
            if self.noise_last > 1 and self.num_inference_steps > 1:
                raise ValueError("noise_last above 1 works with num_inference_steps = 1 only")
            if self.noise_last > 1 and self.carry_last:
                raise ValueError(
                    "noise_last above 1 noises the newest item, which carry_last would show clean: "
                    "set carry_last to false"
                )
            if self.noise_last > self.max_len + 1:
                raise ValueError(
                    f"noise_last {self.noise_last} is more than the {self.max_len + 1} tokens"
                )
            if self.n_train_draws > 1 and self.form != "two_stream":
                raise ValueError("n_train_draws above 1 works with form='two_stream' only")
            NoiseSchedule.named(self.beta_schedule, self.num_train_timesteps)
            return self

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.encoder = TransformerEncoder(
            catalog.vocab_size,
            c.dim,
            c.n_layers,
            c.n_heads,
            c.max_len + 1,
            c.dropout,
            causal=c.form == "two_stream",
        )
        self.schedule = NoiseSchedule.named(c.beta_schedule, c.num_train_timesteps)
        self.steps = ImportanceSteps(c.num_train_timesteps)
        if not c.tie_head:
            self.head = nn.Linear(c.dim, catalog.vocab_size)
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        rows: Rows = "last"
        if c.targets == "all":
            rows = "windows" if c.form == "two_stream" else "prefixes"
        self.curve = training.train_next_item(
            self, self._loss, train, valid, run, score=self._quickly, rows=rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        return self._score(histories, seed, self.config.n_candidates)

    def _quickly(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Scores for choosing an epoch: the top ten lie among a few hundred candidates."""
        return self._score(histories, 0, self.config.n_candidates or 256)

    def _score(
        self, histories: Histories, seed: int, n_candidates: int | None
    ) -> Float[Tensor, "B V"]:
        c = self.config
        h_0 = self.denoised(histories, c.n_draws, seed)
        weight, bias = self._head()
        total = torch.zeros(len(h_0), len(weight), device=h_0.device)
        block = max(1, _BLOCK // len(weight))
        for first in range(0, len(h_0), block):
            rows = slice(first, first + block)
            if n_candidates is not None:
                total[rows] = _among_candidates(h_0[rows], weight, bias, n_candidates)
                continue
            for draw in range(c.n_draws):
                total[rows] += _probabilities(h_0[rows, draw], weight, bias)
        return total if n_candidates is not None else total / c.n_draws

    def draws(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Iterator[Float[Tensor, "B V"]]:
        h_0 = self.denoised(histories, self.config.n_draws if n_draws is None else n_draws, seed)
        for draw in range(h_0.shape[1]):
            yield _probabilities(h_0[:, draw], *self._head())

    def _loss(self, batch: Batch) -> Tensor:
        c = self.config
        items, lengths, targets = batch.items, batch.lengths, batch.targets
        n_history = torch.arange(1, items.shape[1] + 1, device=items.device)[None]
        if c.form == "prefixes" or c.targets == "last":
            n_history = lengths[:, None]
            targets = targets.gather(1, n_history - 1)
        k = c.n_train_draws
        x_0 = self.encoder.items(targets) / self._scale()
        t, weight = self._draw_steps(targets.numel(), targets.device)
        noise = torch.randn(*targets.shape, k, c.noise_last, c.dim, device=targets.device)
        several = x_0.flatten(0, 1)[:, None].expand(-1, k, -1)
        x_t = self.schedule.add_noise(several, noise[:, :, :, 0].flatten(0, 1), t)
        t, weight = t.view_as(targets), weight.view_as(targets)
        if c.form == "two_stream":
            h_0 = self._read(
                self._remember(items),
                items,
                n_history.repeat_interleave(k, 1),
                x_t.view(len(items), -1, c.dim),
                t.repeat_interleave(k, 1),
            ).view(*targets.shape, k, c.dim)
        else:
            h_0 = self._bidirectional(items, lengths, x_t[:, 0], t[:, 0], noise[:, 0, 0, 1:])
            h_0 = h_0[:, None, None]
        real = targets > 0
        h_0, x_0, targets, t, weight = h_0[real], x_0[real], targets[real], t[real], weight[real]
        n = max(1, len(targets))
        loss = self._cross_entropy(h_0, targets)
        if c.rounding_loss:
            loss = loss + self._cross_entropy((x_0 * self._scale())[:, None], targets)
        if c.keep_prior:
            end = float(self.schedule.alpha_bars[-1])
            loss = loss + end * x_0.square().sum() / n
        aim = x_0.detach() if c.detach_target else x_0
        error = (h_0.float() - aim[:, None]).square().mean(1)
        error = error.sum(1) if c.mse_reduction == "sum" else error.mean(1)
        if c.step_sampling == "importance":
            self.steps.record(t, error)
        squares: Tensor = c.mse_weight * (weight * error).sum() / n
        return loss + squares

    def _cross_entropy(
        self, h_0: Float[Tensor, "P K D"], targets: Int[Tensor, " P"]
    ) -> Float[Tensor, ""]:
        table, bias = self._head()
        if bias is not None:  # the bias is the weight of a constant input
            h_0 = F.pad(h_0, (0, 1), value=1.0)
            table = torch.cat([table, bias[:, None]], dim=1)
        return mixture_cross_entropy(h_0, table, targets)

    def _draw_steps(
        self, n: int, device: torch.device
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Steps of n targets, 0..N-1, and the weights of their squared errors."""
        c = self.config
        n_steps = c.num_train_timesteps
        if c.step_sampling == "importance":
            p = self.steps.probabilities()
        else:
            p = torch.full((n_steps,), 1 / n_steps, device=device)
        p = p * (1 - c.pure_noise)
        p[-1] += c.pure_noise
        t = torch.multinomial(p, n, replacement=True)
        return t, 1 / (p[t] * (n_steps if c.step_weight == "normalized" else 1))

    def _scale(self) -> Float[Tensor, ""]:
        """What embeddings are divided by before they are diffused."""
        with torch.no_grad():
            table = self.encoder.table
            return table[1:].std() if self.config.normalize else table.new_ones(())

    def _head(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        if self.config.tie_head:
            return self.encoder.table, None
        return self.head.weight, self.head.bias

    def _step_embedding(self, t: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        c = self.config
        n = (t.flatten() + 1).float()
        if c.rescale_steps:
            n = n * (1000 / c.num_train_timesteps)
        return interleaved_sinusoidal(n, c.dim).view(*t.shape, c.dim)

    def _slot(
        self,
        items: Int[Tensor, "B L"],
        n_history: Int[Tensor, "#B S"],
        x_t: Float[Tensor, "B S D"],
        t: Int[Tensor, "B S"],
    ) -> Float[Tensor, "B S D"]:
        """What stands in the slots after the first `n_history` items."""
        c = self.config
        slot = x_t
        if c.damping is not None:
            signal, _ = self.schedule.signal_and_noise(t.flatten(), x_t.flatten(0, 1))
            slot = slot * signal.view(*t.shape, 1).clamp(min=c.damping)
        if c.step_embedding:
            slot = slot + self._step_embedding(t)
        slot = slot * self._scale()
        if c.position_embedding:
            slot = slot + self.encoder.positions(n_history)
        if c.carry_last:
            last = items.gather(1, (n_history - 1).expand(len(items), -1))
            slot = slot + self.encoder.items(last)
        return slot

    def _remember(self, items: Int[Tensor, "B L"]) -> Memory:
        """Keys and values of the histories, each token made of those up to itself."""
        encoder = self.encoder
        embedded = encoder.items(items)
        if self.config.position_embedding:
            embedded = embedded + encoder.positions.weight[: items.shape[1]]
        states = encoder.enter(embedded)
        memory: Memory = []
        for block in encoder.layers:
            query, key, value = block.heads(states)
            memory.append((key, value))
            if len(memory) < len(encoder.layers):
                attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
                states = block.after(states, attended)
        return memory

    def _read(
        self,
        memory: Memory,
        items: Int[Tensor, "B L"],
        n_history: Int[Tensor, "#B S"],
        x_t: Float[Tensor, "B S D"],
        t: Int[Tensor, "B S"],
    ) -> Float[Tensor, "B S D"]:
        """Predicted clean embeddings of slots that see their first `n_history` items."""
        encoder = self.encoder
        states = encoder.enter(self._slot(items, n_history, x_t, t))
        length, n_slots = items.shape[1], x_t.shape[1]
        before = torch.arange(length, device=items.device) < n_history[:, :, None]
        own = torch.eye(n_slots, dtype=torch.bool, device=items.device)
        seen: Bool[Tensor, "b 1 S L+S"] = torch.cat([before, own.expand(len(before), -1, -1)], 2)[
            :, None
        ]
        for block, (key, value) in zip(encoder.layers, memory, strict=True):
            query, own_key, own_value = block.heads(states)
            attended = F.scaled_dot_product_attention(
                query,
                torch.cat([key, own_key], dim=2),
                torch.cat([value, own_value], dim=2),
                attn_mask=seen,
            )
            states = block.after(states, attended)
        return states

    def _bidirectional(
        self,
        items: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
        x_t: Float[Tensor, "B D"],
        t: Int[Tensor, " B"],
        noise: Float[Tensor, "B K D"],
    ) -> Float[Tensor, "B D"]:
        """Predicted clean embeddings, every token seeing every other; `noise` is for history.

        The slot stands first in the tensor, which attention does not notice.
        """
        c, encoder = self.config, self.encoder
        embedded = encoder.items(items)
        place = torch.arange(items.shape[1], device=items.device)
        if c.noise_last > 1:
            age = lengths[:, None] - 1 - place  # 0 is the newest
            noised = (age >= 0) & (age < c.noise_last - 1)
            index = age.clamp(0, c.noise_last - 2)[:, :, None].expand(-1, -1, c.dim)
            signal, spread = self.schedule.signal_and_noise(t, embedded)
            blurred = signal * embedded + spread * self._scale() * noise.gather(1, index)
            embedded = torch.where(noised[:, :, None], blurred, embedded)
        if c.position_embedding:
            embedded = embedded + encoder.positions.weight[: items.shape[1]]
        if c.step_embedding:
            embedded = embedded + (self._step_embedding(t) * self._scale())[:, None]
        slot = self._slot(items, lengths[:, None], x_t[:, None], t[:, None])
        tokens = encoder.enter(torch.cat([slot, embedded], dim=1))
        seen = F.pad(place < lengths[:, None], (1, 0), value=True)[:, None, None]
        *others, last = encoder.layers
        for block in others:
            tokens = block(tokens, seen)
        query, key, value = last.heads(tokens)  # of the last block only the slot is read
        attended = F.scaled_dot_product_attention(query[:, :, :1], key, value, attn_mask=seen)
        return last.after(tokens[:, :1], attended)[:, 0]

    def denoised(self, histories: Histories, n_draws: int, seed: int = 0) -> Float[Tensor, "B K D"]:
        """The predicted clean embedding of each of K draws, divided by the table's scale."""
        c = self.config
        newest = histories.newest(c.max_len)
        keyed = KeyedNoise(seed, newest.users)
        noise = keyed.normal(n_draws, c.noise_last, c.dim)
        n_history = newest.lengths[:, None].expand(-1, n_draws)
        if c.form == "two_stream":
            memory = self._remember(newest.items)

            def denoise(x_t: Tensor, t: Tensor) -> Tensor:
                steps = t[:, None].expand(-1, n_draws)
                several = range(0, n_draws, _DRAWS)
                parts = [slice(first, first + _DRAWS) for first in several]
                return torch.cat(
                    [
                        self._read(memory, newest.items, n_history[:, p], x_t[:, p], steps[:, p])
                        for p in parts
                    ],
                    dim=1,
                )

        else:
            items = newest.items.repeat_interleave(n_draws, 0)
            lengths = newest.lengths.repeat_interleave(n_draws)

            def denoise(x_t: Tensor, t: Tensor) -> Tensor:
                states = self._bidirectional(
                    items,
                    lengths,
                    x_t.flatten(0, 1),
                    t.repeat_interleave(n_draws),
                    noise[:, :, 1:].flatten(0, 1),
                )
                return states.view_as(x_t)

        x_T = noise[:, :, 0]
        sampler = Sampler(c.num_inference_steps, eta=1.0)
        return sampler(denoise, x_T, self.schedule, keyed.normal)


def _probabilities(
    h_0: Float[Tensor, "B D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None
) -> Float[Tensor, "B V"]:
    logits = F.linear(h_0, weight, bias)
    logits[:, 0] = -torch.inf
    return torch.softmax(logits, dim=1, out=logits)


def _among_candidates(
    h_0: Float[Tensor, "B K D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    n_candidates: int,
) -> Float[Tensor, "B V"]:
    """Averaged probabilities among the items that the mean state puts first.

    All other items keep the order of the mean state, below every candidate: their score is its
    logit less the greatest, which is not above 0.
    """
    scores = F.linear(h_0.mean(1), weight, bias)
    scores[:, 0] = -torch.inf
    best = scores.topk(min(n_candidates, len(weight) - 1), dim=1, sorted=False)
    scores -= best.values.amax(1, keepdim=True)
    logits = h_0 @ weight[best.indices].transpose(1, 2)
    if bias is not None:
        logits += bias[best.indices][:, None]
    return scores.scatter_(1, best.indices, torch.softmax(logits, dim=2).mean(1))
