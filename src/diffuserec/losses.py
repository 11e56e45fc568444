"""Training objectives: next-item losses of states, item table and targets, and InfoNCE.

Next-item losses take only real positions, P of them, so that padding costs nothing. Sources: full
softmax for SASRec, Klenitskiy & Vasilev (RecSys 2023, arXiv 2309.07602); binary cross entropy with
one negative, Kang & McAuley (ICDM 2018); gBCE, Petrov & Macdonald (RecSys 2023, arXiv 2308.07192);
BPR-max, Hidasi & Karatzoglou (CIKM 2018, arXiv 1706.03847);
sets of items, Liang, Krishnan, Hoffman & Jebara (WWW 2018);
InfoNCE, van den Oord, Li & Vinyals (arXiv 1807.03748), as NT-Xent by Chen, Kornblith, Norouzi &
Hinton (ICML 2020) and with labels by Khosla et al. (NeurIPS 2020).
"""

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffuserec.data import SequenceDataset

_BLOCK = 2_500_000
"""Logits held at once: a block of 10 MB stays in the cache between its passes."""


def softmax_cross_entropy(
    states: Float[Tensor, "P D"],
    table: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
) -> Float[Tensor, ""]:
    """Mean of -log softmax(states · tableᵀ)[target] over the items 1..V-1.

    The logits are made a block of rows at a time and never kept: the gradients, which need nothing
    else, are taken while a block is at hand. That is three matrix products in all, the least
    there can be, and memory for one block whatever P and V.
    Under autocast the products run in its lower precision.
    """
    return mixture_cross_entropy(states[:, None], table, targets)


def mixture_cross_entropy(
    states: Float[Tensor, "P K D"],
    table: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
) -> Float[Tensor, ""]:
    """Mean of -log of the average over K states of softmax(state · tableᵀ)[target].

    With K = 1 that is :func:`softmax_cross_entropy`, which says how it is made. The gradient of a
    state is that of its own cross entropy times its share in the target's averaged probability.
    """
    loss: Tensor = _BlockedSoftmax.apply(  # type: ignore[no-untyped-call]
        states.flatten(0, 1), table, targets, states.shape[1]
    )
    return loss


class _BlockedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor, n_draws: int) -> Tensor:
        device = states.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            low_states = states if precision is None else states.to(precision)
            low_table = table if precision is None else table.to(precision)
            low_states = low_states.to(low_table.dtype)
            need = any(ctx.needs_input_grad)
            grad_states = torch.empty_like(states)
            # transposed where the product that is added to it comes out so
            grad_table = table.new_zeros(table.shape if precision is None else table.shape[::-1])
            total = torch.zeros((), device=states.device)
            block = max(1, _BLOCK // table.shape[0] // n_draws) * n_draws
            targets = targets.repeat_interleave(n_draws)
            # one piece of memory for all blocks: fresh pages cost more than the products
            memory = low_states.new_empty(min(block, len(states)), len(table))
            for first in range(0, len(states), block):
                rows = slice(first, first + block)
                logits = memory[: len(low_states[rows])]
                torch.mm(low_states[rows], low_table.T, out=logits)
                logits[:, 0] = -torch.inf
                own = targets[rows, None]
                if n_draws > 1:  # shares of a target's draws need logarithms: all may underflow
                    partition = torch.logsumexp(logits.float(), dim=1)
                    log_p = (logits.gather(1, own)[:, 0].float() - partition).view(-1, n_draws)
                    total -= (torch.logsumexp(log_p, dim=1) - math.log(n_draws)).sum()
                probabilities = torch.softmax(logits, dim=1, out=logits)
                if n_draws == 1:
                    # a probability too small for the format is only reported at its smallest;
                    # the gradient p - 1 does not need it
                    tiny = torch.finfo(torch.float32).tiny
                    total -= probabilities.gather(1, own).float().clamp(min=tiny).log().sum()
                if need:
                    probabilities[torch.arange(len(own), device=own.device), own[:, 0]] -= 1
                    grad_states[rows] = probabilities @ low_table
                    own_states = low_states[rows]
                    if n_draws > 1:
                        share = torch.softmax(log_p, dim=1).view(-1, 1)
                        grad_states[rows] *= share
                        own_states = own_states * share.to(own_states.dtype)
                    if precision is None:
                        grad_table.addmm_(probabilities.T, own_states)
                    else:
                        grad_table += own_states.T @ probabilities
            grad_table = grad_table if precision is None else grad_table.T
        n = max(1, len(states) // n_draws)
        ctx.save_for_backward(grad_states / n, grad_table / n)
        return total / n

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_states, grad_table = ctx.saved_tensors
        return grad_states * grad, grad_table * grad, None, None


def set_likelihood(
    states: Float[Tensor, "B D"],
    table: Float[Tensor, "V D"],
    items: Int[Tensor, " N"],
    offsets: Int[Tensor, " B"],
    likelihood: Literal["multinomial", "bernoulli"] = "multinomial",
) -> Float[Tensor, ""]:
    """Mean over rows of the log likelihood of a set of items, the logits being states · tableᵀ.

    ``multinomial``: the sum over the set of log softmax over the items 1..V-1 (Liang et al., WWW
    2018). ``bernoulli``: every item is in the set or not, by the sigmoid of its logit. The logits
    are made a block of rows at a time, once forward and once backward, and never kept.

    Args:
        states: one for each set.
        table: of the items.
        items: of the sets, one after another.
        offsets: where each begins.
        likelihood: which.
    """

    def normalizer(rows: Tensor) -> Tensor:
        logits = rows @ table[1:].T
        if likelihood == "bernoulli":
            return F.softplus(logits).float().sum(1)
        return torch.logsumexp(logits.float(), dim=1)

    blocks = states.split(max(1, _BLOCK // len(table)))
    normalizers = torch.cat(
        [
            checkpoint(normalizer, block, use_reentrant=False, preserve_rng_state=False)
            for block in blocks
        ]
    )
    if likelihood == "multinomial":
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(items)])])
        normalizers = normalizers * (ends - offsets)
    chosen = F.embedding_bag(items, table, offsets, mode="sum")
    return ((states * chosen).sum(1) - normalizers).mean()


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
    states: Float[Tensor, "P D"],
    table: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " K"],
) -> Float[Tensor, ""]:
    """Cross entropy over the target and K uniform negatives shared by all positions.

    The negatives' logits are raised by log((V - 1) / K) and a negative that is a position's own
    target is left out there: each other item is then expected exactly once, so that the sum
    estimates the full partition function without bias.
    """
    positive = (states * table[targets]).sum(dim=1)
    logits = states @ table[negatives].T + math.log((table.shape[0] - 1) / len(negatives))
    logits = logits.masked_fill(negatives == targets[:, None], -torch.inf)
    partition = torch.logsumexp(torch.cat([positive[:, None], logits], dim=1), dim=1)
    return (partition - positive).mean()


def bpr_max(
    states: Float[Tensor, "P D"],
    table: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " K"],
    penalty: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean of -log Σ_k w_k σ(s⁺ - s⁻_k) + penalty · Σ_k w_k s⁻_k², w the softmax of the s⁻.

    K uniform negatives are shared by all positions; one that is a position's own target is left
    out there. The penalty keeps scores near 0, and its weight is the released code's (Hidasi &
    Karatzoglou, CIKM 2018).
    """
    positive = (states * table[targets]).sum(dim=1, keepdim=True).float()
    negative = (states @ table[negatives].T).float()
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
        anchors: one view of each.
        positives: the other view of each.
        two_way: NT-Xent: all 2B views are anchors, each among the 2B - 1 others. Otherwise only
            `anchors` are, each among the B `positives`.
        labels: views of sequences with the same label are positives too; an anchor's loss is the
            mean over its positives (Khosla et al., eq. 2). By default every sequence has its own.
        negatives: more candidates, N of them, that are no one's positive.
        similarity: of two vectors.
        temperature: what similarities are divided by.

    With one sequence and no `negatives` there is nothing to tell apart: the loss is 0.
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
        owners: user number of each position.
        n: negatives a position.
        vocab_size: V.
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
