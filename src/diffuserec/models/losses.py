"""Training objectives: next-item losses of states, item vectors and targets, and InfoNCE.

Next-item losses take only real positions, P of them, so that padding costs nothing. A loss is
found by name in :data:`LOSSES`; another package adds one with :func:`item_loss`, or as an entry
point ``diffuserec.losses``.

Sources: full softmax for SASRec, Klenitskiy & Vasilev (RecSys 2023, arXiv 2309.07602); binary
cross entropy with one negative, Kang & McAuley (ICDM 2018); gBCE, Petrov & Macdonald (RecSys 2023,
arXiv 2308.07192); BPR-max, Hidasi & Karatzoglou (CIKM 2018, arXiv 1706.03847); InfoNCE, van den
Oord, Li & Vinyals (arXiv 1807.03748), as NT-Xent by Chen, Kornblith, Norouzi & Hinton (ICML 2020)
and with labels by Khosla et al. (NeurIPS 2020).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor

from diffuserec.data import SequenceDataset
from diffuserec.models.retrieval import mean_log_prob
from diffuserec.registry import Registry

ItemLossFunction = Callable[
    [Float[Tensor, "P E"], Float[Tensor, "V E"], Int[Tensor, " P"], Int[Tensor, " P"]],
    Float[Tensor, ""],
]
"""Of states, the item vectors, the items to predict and their users: a scalar to minimize."""


@runtime_checkable
class LossOptions(Protocol):
    """Settings that a next-item loss may read."""

    @property
    def n_negatives(self) -> int | None:
        """Negatives; None means the loss's own number."""

    @property
    def gbce_t(self) -> float:
        """Calibration of gbce."""


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
    return lambda states, vectors, targets, users: softmax_cross_entropy(states, vectors, targets)


@item_loss("sampled_softmax", n_negatives=1000, scores_are_logits=True)
def _sampled_softmax(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    return _with_shared_negatives(sampled_softmax, _sampled_softmax.negatives_by(options))


@item_loss("bpr_max", n_negatives=1000)
def _bpr_max(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    return _with_shared_negatives(bpr_max, _bpr_max.negatives_by(options))


@item_loss("bce", n_negatives=1)
def _bce(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    draw, n = unseen_negatives(data), _bce.negatives_by(options)

    def loss(states: Tensor, vectors: Tensor, targets: Tensor, users: Tensor) -> Tensor:
        return binary_cross_entropy(*_products(states, vectors, targets, draw(users, n)))

    return loss


@item_loss("gbce", n_negatives=256)
def _gbce(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    n = _gbce.negatives_by(options)

    def loss(states: Tensor, vectors: Tensor, targets: Tensor, users: Tensor) -> Tensor:
        drawn = uniform_negatives(users, n, len(vectors))
        products = _products(states, vectors, targets, drawn)
        return gbce(*products, len(vectors), options.gbce_t)

    return loss


def _with_shared_negatives(of_shared: Callable[..., Tensor], n: int) -> ItemLossFunction:
    """A loss whose uniform negatives all positions of a batch share."""

    def loss(states: Tensor, vectors: Tensor, targets: Tensor, users: Tensor) -> Tensor:
        shared = torch.randint(1, len(vectors), (n,), device=users.device)
        return of_shared(states, vectors, targets, shared)

    return loss


def _products(
    states: Float[Tensor, "P E"],
    vectors: Float[Tensor, "V E"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, "P K"],
) -> tuple[Float[Tensor, " P"], Float[Tensor, "P K"]]:
    """Scores of targets and of negatives."""
    positive = (states * vectors[targets]).sum(-1)
    return positive, torch.bmm(vectors[negatives], states[:, :, None])[:, :, 0]


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
    """Mean over positions of -log σ(s⁺) - mean_k log σ(-s⁻_k): gBCE at t = 0 but for a factor."""
    return (F.softplus(-positive) + F.softplus(negative).mean(dim=1)).mean()


def gbce(
    positive: Float[Tensor, " P"],
    negative: Float[Tensor, "P K"],
    vocab_size: int,
    t: float = 0.75,
) -> Float[Tensor, ""]:
    """Generalized binary cross entropy: the positive probability raised to β.

    β = α(t(1 - 1/α) + 1/α) with the sampling rate α = K / (V - 2); t = 0 is plain BCE, t = 1 is
    calibrated. Averaged over the K + 1 terms of a position (Petrov & Macdonald 2023, eq. 11).
    """
    n_negatives = negative.shape[1]
    alpha = n_negatives / (vocab_size - 2)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    terms = beta * F.softplus(-positive) + F.softplus(negative).sum(dim=1)
    return (terms / (n_negatives + 1)).mean()


def sampled_softmax(
    states: Float[Tensor, "P E"],
    vectors: Float[Tensor, "V E"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " K"],
) -> Float[Tensor, ""]:
    """Cross entropy over the target and K uniform negatives shared by all positions.

    The negatives' logits are raised by log((V - 1) / K) and a negative that is a position's own
    target is left out there: each other item is then expected exactly once, so that the sum
    estimates the full partition function without bias.
    """
    positive = (states * vectors[targets]).sum(dim=1)
    logits = states @ vectors[negatives].T + math.log((vectors.shape[0] - 1) / len(negatives))
    logits = logits.masked_fill(negatives == targets[:, None], -torch.inf)
    partition = torch.logsumexp(torch.cat([positive[:, None], logits], dim=1), dim=1)
    return (partition - positive).mean()


def bpr_max(
    states: Float[Tensor, "P E"],
    vectors: Float[Tensor, "V E"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " K"],
    penalty: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean of -log Σ_k w_k σ(s⁺ - s⁻_k) + penalty · Σ_k w_k s⁻_k², w the softmax of the s⁻.

    K uniform negatives are shared by all positions; one that is a position's own target is left
    out there. The penalty keeps scores near 0, and its weight is the released code's (Hidasi &
    Karatzoglou, CIKM 2018).
    """
    positive = (states * vectors[targets]).sum(dim=1, keepdim=True).float()
    negative = (states @ vectors[negatives].T).float()
    own = negatives == targets[:, None]
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
