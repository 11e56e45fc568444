"""S3Rec: SASRec whose encoder first learns, both ways, to restore masked items and segments.

Source: Zhou, Wang, Zhao, Zhu, Wang, Zhang, Wang & Wen, "S3-Rec: Self-Supervised Learning for
Sequential Recommendation with Mutual Information Maximization", CIKM 2020 (arXiv 2008.07873), and
its released code; here the two of its four tasks that need no attributes.

Stage 1 sees sequences both ways. Masked items (MIP): at each masked position t with item i and a
negative j, the state h_t is to satisfy ``(W h_t) · e_i > (W h_t) · e_j``. Segments (SP): with a
segment masked, the newest state c is to satisfy ``(U c) · s > (U c) · n``, where s is the newest
state of a row that holds the segment and masks elsewhere, and n that of one with another segment in
its place. Each costs -log sigmoid of the difference. Stage 2 trains the same weights as SASRec,
each position seeing only what came before it; only this stage is validated.

Departures and options:
- One sigmoid. The released code takes sigmoids of the products before it takes that of their
  difference, which leaves hardly a gradient.
- Both losses are means; the code adds up a batch's masked items and segments.
- Other segments come from all training sequences put together. In the code they hold the
  validation and test items too, and a user's negatives leave these out.
- ``pretrain_rows="users"``: the newest items of each user are a row; ``"prefixes"``, as in the
  paper, a row for each item.
- ``loss="softmax"`` in stage 2, ``"bce"`` in the paper.
- No attributes: their two tasks are left out.
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import Recommender, Run
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.models.encoders import initialize, last_states
from diffuserec.models.settings import NextItemSettings
from diffuserec.models.views import random_share


class S3Rec(Recommender):
    """Causal transformer, pretrained both ways on masked items and segments."""

    class Config(NextItemSettings):
        """Hyper-parameters of S3Rec."""

        pretrain_epochs: int = Field(100, ge=0)
        """Of stage 1; 0 leaves it out."""
        pretrain_rows: Literal["users", "windows", "prefixes"] = "users"
        """What a row of stage 1 is, as `rows` says it of stage 2."""
        mask_ratio: float = Field(0.2, gt=0, le=1)
        """Chance of an item to be masked; the newest always is."""
        item_weight: float = Field(1.0, ge=0)
        """Of masked items in the loss of stage 1."""
        segment_weight: float = Field(0.5, ge=0)
        """Of segments in the loss of stage 1."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.encoder = c.transformer(catalog.vocab_size, n_extra=1, n_more=1)
        self.of_item, self.of_segment = nn.Linear(c.dim, c.dim), nn.Linear(c.dim, c.dim)
        self.of_item.apply(initialize)
        self.of_segment.apply(initialize)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        self.curve = self._pretrain(train, run) if c.pretrain_epochs else []
        loss = training.encoder_loss(self.encoder, c, train)
        self.curve += training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=c.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)

    def _pretrain(self, train: SequenceDataset, run: Run) -> list[training.Epoch]:
        return training.train_next_item(
            self,
            self._restoring(train, training.device_of(run)),
            train.with_all_variants(),
            None,
            run,
            score=self.score,
            rows=self.config.pretrain_rows,
            phase="pretrain",
            epochs=self.config.pretrain_epochs,
        )

    def _restoring(
        self, train: SequenceDataset, device: torch.device
    ) -> Callable[[Batch], Float[Tensor, ""]]:
        """The loss of stage 1."""
        c, mask_id = self.config, self.encoder.vocab_size
        seen = seen_keys(train).to(device)
        everything = torch.from_numpy(train.real().items.copy()).to(device)

        def loss(batch: Batch) -> Tensor:
            whole, real = batch.whole(), batch.whole_real()
            items, lengths, n = whole.items, whole.lengths, len(whole.items)
            place = torch.arange(items.shape[1], device=items.device)
            masked = random_share(real, c.mask_ratio) | (real & (place == lengths[:, None] - 1))
            segment, other = _segments(real, lengths, everything)
            hidden = items.masked_fill(items > 0, mask_id)
            versions = [
                items.masked_fill(masked, mask_id),
                items.masked_fill(segment, mask_id),
                torch.where(segment, items, hidden),
                torch.where(segment, other, hidden),
            ]
            embeddings = self.encoder.items(torch.cat(versions))
            states = self.encoder.encode(embeddings, lengths.repeat(4), both_ways=True)
            restored = self.of_item(states[:n][masked])
            users = whole.users[:, None].expand_as(masked)[masked]
            negatives = uniform_negatives(users, 1, self.encoder.vocab_size, seen)[:, 0]
            context, own, foreign = last_states(states[n:], lengths.repeat(3)).split(n)
            of_items = _apart(
                restored, self.encoder.items(items[masked]), self.encoder.items(negatives)
            )
            of_segments = _apart(self.of_segment(context), own, foreign)
            return c.item_weight * of_items + c.segment_weight * of_segments

        return loss


def _apart(
    states: Float[Tensor, "P D"], positives: Float[Tensor, "P D"], negatives: Float[Tensor, "P D"]
) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(state · positive - state · negative)."""
    return F.softplus((states.float() * (negatives - positives).float()).sum(1)).mean()


def _segments(
    real: Bool[Tensor, "B M"], lengths: Int[Tensor, " B"], everything: Int[Tensor, " N"]
) -> tuple[Bool[Tensor, "B M"], Int[Tensor, "B M"]]:
    """A run of up to half of each row's real items, which are its newest, and another in its place.

    Args:
        real: positions with a real item.
        lengths: of the rows.
        everything: what the others are taken from, as long as the longest row's half at least.
    """
    n = real.sum(1)
    size = 1 + _below((n // 2).clamp(min=1))
    first = lengths - n + _below(n - size + 1)
    from_there = torch.arange(real.shape[1], device=real.device) - first[:, None]
    segment = real & (from_there >= 0) & (from_there < size[:, None])
    begin = _below(len(everything) - size + 1)
    where = (begin[:, None] + from_there).masked_fill(~segment, 0)
    return segment, everything[where].long()


def _below(n: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """A whole number of 0 to n - 1 for each n."""
    return (torch.rand(len(n), dtype=torch.float64, device=n.device) * n).long()
