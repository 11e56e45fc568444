"""Training objectives: next-item losses of states, item vectors and targets, and InfoNCE.

Next-item losses take only real positions, P of them, so that padding costs nothing. A loss is
found by name in :data:`LOSSES`; another package adds one with :func:`item_loss`, or as an entry
point ``diffuserec.losses``. A loss reads the item table: one that draws negatives takes the
``rows`` of those and of the targets alone, and then costs the same whatever the catalog.

Sources: full softmax for SASRec, Klenitskiy & Vasilev (RecSys 2023, arXiv 2309.07602); binary
cross entropy with one negative, Kang & McAuley (ICDM 2018); the correction of negatives by the
logarithm of their chance, Bengio & Senécal (2008) and, in a batch, Yi et al. (RecSys 2019); mixed
negatives, Yang et al. (WWW 2020); gBCE, Petrov & Macdonald (RecSys 2023,
arXiv 2308.07192); BPR-max, Hidasi & Karatzoglou (CIKM 2018, arXiv 1706.03847); InfoNCE, van den
Oord, Li & Vinyals (arXiv 1807.03748), as NT-Xent by Chen, Kornblith, Norouzi & Hinton (ICML 2020)
and with labels by Khosla et al. (NeurIPS 2020).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from diffuserec.data import SequenceDataset
from diffuserec.models.items import ItemTable
from diffuserec.models.parts import mean_by_rows
from diffuserec.models.retrieval import mean_log_prob
from diffuserec.registry import Registry

ItemLossFunction = Callable[
    [Float[Tensor, "P E"], ItemTable, Int[Tensor, " P"], Int[Tensor, " P"]],
    Float[Tensor, ""],
]
"""Of states, the item table, the items to predict and their users: a scalar to minimize."""

NegativesName = Literal["uniform", "popularity", "in_batch", "mixed"]


@runtime_checkable
class LossOptions(Protocol):
    """Settings that a next-item loss may read."""

    @property
    def n_negatives(self) -> int | None:
        """Negatives; None means the loss's own number."""

    @property
    def negatives(self) -> NegativesName:
        """What the negatives of sampled_softmax are drawn from."""

    @property
    def gbce_t(self) -> float:
        """Calibration of gbce."""

    @property
    def gbce_offset(self) -> bool:
        """Whether gbce's scores are moved to where a constant is best."""


@dataclass(frozen=True)
class ItemLoss:
    """A next-item loss by name.

    Attributes:
        make: from settings and training data to the loss itself; called once a fit.
        n_negatives: negatives that it draws by default; None if it draws none.
        scores_are_logits: whether softmax(score) of the trained model is a distribution over items.
    """

    make: Callable[[LossOptions, SequenceDataset], ItemLossFunction]
    n_negatives: int | None = None
    scores_are_logits: bool = False

    def negatives_by(self, options: LossOptions) -> int:
        """Number of negatives by the settings, or else by default."""
        return options.n_negatives or self.n_negatives or 0


LOSSES: Registry[ItemLoss] = Registry("loss", ItemLoss)


def item_loss(
    name: str, n_negatives: int | None = None, scores_are_logits: bool = False
) -> Callable[[Callable[[LossOptions, SequenceDataset], ItemLossFunction]], ItemLoss]:
    """Decorator that registers what makes a loss, an :class:`ItemLoss`, under a name."""

    def register(make: Callable[[LossOptions, SequenceDataset], ItemLossFunction]) -> ItemLoss:
        return LOSSES.register(name, ItemLoss(make, n_negatives, scores_are_logits))

    return register


def takes_negatives(loss: str) -> bool:
    """a loss that draws negatives"""
    return LOSSES.find(loss).n_negatives is not None


@item_loss("softmax", scores_are_logits=True)
def _softmax(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    return lambda states, table, targets, users: softmax_cross_entropy(
        states, table.weight(), targets
    )


@item_loss("sampled_softmax", n_negatives=1000, scores_are_logits=True)
def _sampled_softmax(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    draw = SharedNegatives(options.negatives, _sampled_softmax.negatives_by(options), data)

    def loss(states: Tensor, table: ItemTable, targets: Tensor, users: Tensor) -> Tensor:
        drawn, log_expected = draw(targets)
        objective = partial(sampled_softmax, log_expected=log_expected)
        return _of_shared(objective, states, table, targets, drawn)

    return loss


@item_loss("bpr_max", n_negatives=1000)
def _bpr_max(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    draw = SharedNegatives("uniform", _bpr_max.negatives_by(options), data)

    def loss(states: Tensor, table: ItemTable, targets: Tensor, users: Tensor) -> Tensor:
        return _of_shared(bpr_max, states, table, targets, draw(targets)[0])

    return loss


@item_loss("bce", n_negatives=1)
def _bce(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    draw, n = unseen_negatives(data), _bce.negatives_by(options)

    def loss(states: Tensor, table: ItemTable, targets: Tensor, users: Tensor) -> Tensor:
        return _of_own(binary_cross_entropy, states, table, targets, draw(users, n))

    return loss


@item_loss("gbce", n_negatives=256)
def _gbce(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    n = _gbce.negatives_by(options)

    def loss(states: Tensor, table: ItemTable, targets: Tensor, users: Tensor) -> Tensor:
        drawn = uniform_negatives(users, n, table.vocab_size)
        objective = partial(
            gbce, vocab_size=table.vocab_size, t=options.gbce_t, offset=options.gbce_offset
        )
        return _of_own(objective, states, table, targets, drawn)

    return loss


def _of_own(
    objective: Callable[[Tensor, Tensor], Tensor],
    states: Float[Tensor, "P E"],
    table: ItemTable,
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, "P K"],
) -> Float[Tensor, ""]:
    """Mean of an objective of the scores of targets and of negatives of their own."""

    def mean(states: Tensor, own: Tensor, others: Tensor) -> Tensor:
        return objective((states * own).sum(-1), torch.bmm(others, states[:, :, None])[:, :, 0])

    return mean_by_rows(mean, states, table.rows(targets), table.rows(negatives))


def _of_shared(
    objective: Callable[[Tensor, Tensor, Tensor], Tensor],
    states: Float[Tensor, "P E"],
    table: ItemTable,
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " K"],
) -> Float[Tensor, ""]:
    """Mean of an objective of the scores of targets and of negatives that all share.

    It is also told where one is a position's target.
    """
    vectors = table.rows(negatives)

    def mean(states: Tensor, own: Tensor, targets: Tensor) -> Tensor:
        same = negatives == targets[:, None]
        return objective((states * own).sum(1), states @ vectors.T, same)

    return mean_by_rows(mean, states, table.rows(targets), targets)


def softmax_cross_entropy(
    states: Float[Tensor, "P E"],
    vectors: Float[Tensor, "V E"],
    targets: Int[Tensor, " P"],
) -> Float[Tensor, ""]:
    """Mean of -log softmax(states · vectorsᵀ)[target] over the items 1..V-1."""
    return -mean_log_prob(states[:, None], vectors, targets)


def mixture_cross_entropy(
    states: Float[Tensor, "P K E"],
    vectors: Float[Tensor, "V E"],
    targets: Int[Tensor, " P"],
) -> Float[Tensor, ""]:
    """Mean of -log of the average over K states of softmax(state · vectorsᵀ)[target]."""
    return -mean_log_prob(states, vectors, targets)


def binary_cross_entropy(
    positive: Float[Tensor, " P"], negative: Float[Tensor, "P K"]
) -> Float[Tensor, ""]:
    """Mean over positions of -log σ(s⁺) - mean_k log σ(-s⁻_k).

    For one negative it is gBCE at t = 0 but for a factor.
    """
    return (F.softplus(-positive) + F.softplus(negative).mean(dim=1)).mean()


def gbce(
    positive: Float[Tensor, " P"],
    negative: Float[Tensor, "P K"],
    vocab_size: int,
    t: float = 0.75,
    offset: bool = True,
) -> Float[Tensor, ""]:
    """Generalized binary cross entropy: the positive probability raised to β.

    β = α(t(1 - 1/α) + 1/α) with the sampling rate α = K / (V - 2); t = 0 without the offset is
    plain BCE, t = 1 is calibrated. Averaged over the K + 1 terms of a position (Petrov & Macdonald
    2023, eq. 11).

    Args:
        offset: add log(β / K) to all scores, which no ranking sees. Where all items score alike, 0
            is then the best they can score. Without it, as published, the K negatives first push
            all scores down together, and with a table near 0 nothing else is learned for epochs
            (the rare class of Lin et al., ICCV 2017, section 3.3).
    """
    n_negatives = negative.shape[1]
    alpha = n_negatives / (vocab_size - 2)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    moved = math.log(beta / n_negatives) if offset else 0.0
    terms = beta * F.softplus(-positive - moved) + F.softplus(negative + moved).sum(dim=1)
    return (terms / (n_negatives + 1)).mean()


def sampled_softmax(
    positive: Float[Tensor, " P"],
    negative: Float[Tensor, "P K"],
    own: Bool[Tensor, "P K"],
    log_expected: Float[Tensor, "#K"] | float,
) -> Float[Tensor, ""]:
    """Cross entropy over the target and K negatives that all positions share.

    The logit of a negative is lowered by the logarithm of how often its item is expected among the
    K, and a negative that is a position's own target is left out there: each other item then counts
    once in expectation, so that the sum estimates the full partition function without bias.

    Args:
        positive: scores of the targets.
        negative: scores of the negatives.
        own: where a negative is the position's own target.
        log_expected: log of the expected number, of each negative's item or of all.
    """
    logits = (negative - log_expected).masked_fill(own, -torch.inf)
    partition = torch.logsumexp(torch.cat([positive[:, None], logits], dim=1), dim=1)
    return (partition - positive).mean()


class SharedNegatives:
    """Draws negatives that all positions of a batch share, and knows how often each is expected.

    What is known of an item is its training count, and what a batch holds are training targets:
    validation and test have no part in it. Draws from torch's default generator.

    Args:
        kind: ``uniform`` over the catalog; ``popularity``, in proportion to the training count and
            one; ``in_batch``, from the batch's own targets, which are about as popular as items
            are: an item without a training count is never drawn, so nothing holds its score down;
            ``mixed``, a quarter in_batch and the rest uniform. Other targets of a position's own
            user are among those of the batch more often than by their count; leaving them out
            gained nothing in looks at validation.
        n: K.
        data: training data.
    """

    def __init__(self, kind: NegativesName, n: int, data: SequenceDataset) -> None:
        self.n_items = data.vocab_size - 1
        self.of_batch = {"in_batch": n, "mixed": n // 4}.get(kind, 0)
        self.by_count = n if kind == "popularity" else 0
        self.uniform = n - self.of_batch - self.by_count
        if self.uniform == n:  # nothing to be known
            return
        counts = torch.from_numpy(data.item_counts())
        self.n_counted = max(1, int(counts.sum()))
        self.ends = torch.cumsum(counts[1:] + 1, 0) if self.by_count else None
        # generated items may be targets, too, without having been counted
        self.counts = (counts + 1 if self.by_count else counts.clamp(min=1)).to(torch.float32)

    def __call__(
        self, targets: Int[Tensor, " P"]
    ) -> tuple[Int64[Tensor, " K"], Float[Tensor, "#K"]]:
        """Items for a batch with these targets, and the logs of their expected numbers."""
        device = targets.device
        drawn = torch.randint(1, self.n_items + 1, (self.uniform,), device=device)
        if not (self.of_batch or self.by_count):
            return drawn, torch.full((1,), math.log(self.uniform / self.n_items), device=device)
        self.counts = self.counts.to(device)  # and there it stays
        if self.ends is not None:
            self.ends = self.ends.to(device)
            n_ends = self.n_counted + self.n_items
            at = torch.randint(n_ends, (self.by_count,), device=device)
            drawn = torch.searchsorted(self.ends, at, right=True) + 1
            expected = self.counts[drawn] * (self.by_count / n_ends)
            return drawn, expected.log()
        # of P targets, a position's own is left out, and those of the others are draws by count
        n_others = self.of_batch * (len(targets) - 1) / max(1, len(targets))
        at = torch.randint(max(1, len(targets)), (self.of_batch,), device=device)
        drawn = torch.cat([drawn, targets[at] if len(targets) else drawn[:0]])
        expected = self.counts[drawn] * (n_others / self.n_counted) + self.uniform / self.n_items
        return drawn, expected.clamp(min=torch.finfo(torch.float32).tiny).log()


def bpr_max(
    positive: Float[Tensor, " P"],
    negative: Float[Tensor, "P K"],
    own: Bool[Tensor, "P K"],
    penalty: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean of -log Σ_k w_k σ(s⁺ - s⁻_k) + penalty · Σ_k w_k s⁻_k², w the softmax of the s⁻.

    K uniform negatives are shared by all positions; one that is a position's own target is left
    out there. The penalty keeps scores near 0, and its weight is the released code's (Hidasi &
    Karatzoglou, CIKM 2018).

    Args:
        positive: scores of the targets.
        negative: scores of the negatives.
        own: where a negative is the position's own target.
    """
    positive, negative = positive[:, None].float(), negative.float()
    log_weights = torch.log_softmax(negative.masked_fill(own, torch.finfo().min), dim=1)
    better = torch.logsumexp(log_weights + F.logsigmoid(positive - negative), dim=1)
    return (penalty * (log_weights.exp() * negative.square()).sum(dim=1) - better).mean()


def kl_to_standard(
    mean: Float[Tensor, "*n D"], log_variance: Float[Tensor, "*n D"]
) -> Float[Tensor, "*n"]:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over the width."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2


def info_nce(
    anchors: Float[Tensor, "B D"],
    positives: Float[Tensor, "B D"],
    *,
    two_way: bool = True,
    labels: Int[Tensor, " B"] | None = None,
    negatives: Float[Tensor, "N D"] | None = None,
    similarity: Literal["dot", "cosine"] = "dot",
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean of -log softmax(similarities / temperature)[positive], for two views of B sequences.

    Args:
        two_way: NT-Xent: all 2B views are anchors, each among the 2B - 1 others. Otherwise only
            `anchors` are, each among the B `positives`.
        labels: views of sequences with the same label are positives too; an anchor's loss is the
            mean over its positives (Khosla et al., eq. 2). By default every sequence has its own.
        negatives: more candidates, N of them, that are no one's positive.

    With one sequence and no `negatives` there is nothing to contrast: the loss is 0.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        queries, candidates = anchors.float(), positives.float()
        if labels is None:
            labels = torch.arange(len(anchors), device=anchors.device)
        if two_way:
            queries = candidates = torch.cat([queries, candidates])
            labels = labels.repeat(2)
        itself = torch.eye(len(queries), dtype=torch.bool, device=queries.device) & two_way
        if negatives is not None:
            candidates = torch.cat([candidates, negatives.float()])
        if similarity == "cosine":
            queries, candidates = F.normalize(queries, dim=1), F.normalize(candidates, dim=1)
        logits = queries @ candidates.T / temperature
        logits[:, : len(itself)].masked_fill_(itself, -torch.inf)
        own = (labels[:, None] == labels) & ~itself
        log_p = logits[:, : len(itself)] - torch.logsumexp(logits, dim=1, keepdim=True)
        return -(log_p.masked_fill(~own, 0).sum(1) / own.sum(1)).mean()


def seen_keys(dataset: SequenceDataset) -> Int64[Tensor, " N"]:
    """Sorted keys ``user · V + item`` of all real interactions, to look up what a user has."""
    real = dataset.real()
    users = np.repeat(np.asarray(real.users), real.lengths)
    return torch.from_numpy(np.unique(users * dataset.vocab_size + real.items))


def uniform_negatives(
    owners: Int[Tensor, " P"],
    n: int,
    vocab_size: int,
    seen: Int64[Tensor, " N"] | None = None,
) -> Int64[Tensor, "P K"]:
    """n items for each position, uniform over 1..V-1 without those its user has.

    Draws from torch's default generator. After 20 rounds of redrawing what is left stays: a user
    who has nearly everything gets some of it as negatives.

    Args:
        seen: from :func:`seen_keys`; None excludes nothing.
    """
    drawn = torch.randint(1, vocab_size, (len(owners), n), device=owners.device)
    if seen is None or not len(seen):
        return drawn
    base = owners[:, None] * vocab_size
    for _ in range(20):
        keys = base + drawn
        at = torch.searchsorted(seen, keys).clamp(max=len(seen) - 1)
        bad = seen[at] == keys
        n_bad = int(bad.sum())
        if n_bad == 0:
            break
        drawn[bad] = torch.randint(1, vocab_size, (n_bad,), device=owners.device)
    return drawn


def unseen_negatives(
    dataset: SequenceDataset,
) -> Callable[[Int[Tensor, " P"], int], Int64[Tensor, "P K"]]:
    """:func:`uniform_negatives` of user numbers and n, without the items that the users have."""
    seen = seen_keys(dataset)

    def draw(users: Tensor, n: int) -> Tensor:
        nonlocal seen
        seen = seen.to(users.device)  # and there it stays
        return uniform_negatives(users, n, dataset.vocab_size, seen)

    return draw
