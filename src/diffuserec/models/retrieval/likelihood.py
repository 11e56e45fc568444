"""Likelihoods of items under softmax(states · vectors), and the neighbors of items.

The logits are made a block of rows at a time and never kept.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffuserec.errors import ConfigError
from diffuserec.models.parts import by_rows, mean_by_rows
from diffuserec.models.retrieval.blocks import block_shape
from diffuserec.models.retrieval.scorers import Products
from diffuserec.models.retrieval.search import ItemSets, top_k


def mean_log_prob(
    states: Float[Tensor, "P K E"],
    vectors: Float[Tensor, "V E"],
    targets: Int[Tensor, " P"],
) -> Float[Tensor, ""]:
    """Mean over P of the log of a target's probability, averaged over K states.

    The probability of a state is softmax(state · vectorsᵀ)[target] over the items 1..V-1. The
    gradients, which need nothing but the logits, are taken while a block is at hand: three matrix
    products in all, the least there can be, and memory for one block whatever P. With K states,
    the gradient of one is that of its own log probability times its share in the target's averaged
    probability. A catalog too large for the memory budget costs a fourth product: its logits are
    made again, a block of columns at a time. Under autocast the products run in its lower
    precision.
    """
    return mean_by_rows(partial(_mean_log_prob, vectors), states, targets)


def _mean_log_prob(
    vectors: Float[Tensor, "V E"], states: Float[Tensor, "P K E"], targets: Int[Tensor, " P"]
) -> Float[Tensor, ""]:
    n_targets, n_draws, _ = states.shape
    flat = states.flatten(0, 1)
    _, width = _block_shape(flat, vectors, n_draws)
    if width < len(vectors):
        of_draws = log_prob(flat, vectors, targets.repeat_interleave(n_draws))
        averaged = torch.logsumexp(of_draws.view(-1, n_draws), dim=1) - math.log(n_draws)
        return averaged.sum() / max(1, n_targets)
    loss: Tensor = _BlockedSoftmax.apply(  # type: ignore[no-untyped-call]
        flat, vectors, targets, n_draws
    )
    return -loss


class _BlockedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, targets: Tensor, n_draws: int) -> Tensor:
        device = states.device.type
        precision = _autocast_precision(device)
        # the logits of several draws are copied in full precision
        held = precision if precision and n_draws == 1 else torch.float32
        block, _ = _block_shape(states, vectors, n_draws, held)
        with torch.autocast(device, enabled=False):
            low_states = states if precision is None else states.to(precision)
            low_vectors = vectors if precision is None else vectors.to(precision)
            low_states = low_states.to(low_vectors.dtype)
            need = any(ctx.needs_input_grad)
            grad_states = torch.empty_like(states)
            grad_vectors = torch.zeros_like(vectors)
            full = _full_precision(states)
            total = torch.zeros((), dtype=full, device=states.device)
            n_targets = len(targets)
            targets = targets.repeat_interleave(n_draws)
            # one piece of memory for all blocks: fresh pages cost more than the products
            memory = low_states.new_empty(min(block, len(states)), len(vectors))
            for first in range(0, len(states), block):
                rows = slice(first, first + block)
                logits = memory[: len(low_states[rows])]
                torch.mm(low_states[rows], low_vectors.T, out=logits)
                logits[:, 0] = -torch.inf
                own = targets[rows, None]
                if n_draws > 1:  # shares of a target's draws need logarithms: all may underflow
                    partition = torch.logsumexp(logits.to(full), dim=1)
                    log_p = (logits.gather(1, own)[:, 0].to(full) - partition).view(-1, n_draws)
                    total -= (torch.logsumexp(log_p, dim=1) - math.log(n_draws)).sum()
                probabilities = torch.softmax(logits, dim=1, out=logits)
                if n_draws == 1:
                    # a probability too small for the format is only reported at its smallest;
                    # the gradient p - 1 does not need it
                    tiny = torch.finfo(full).tiny
                    total -= probabilities.gather(1, own).to(full).clamp(min=tiny).log().sum()
                if need:
                    probabilities[torch.arange(len(own), device=own.device), own[:, 0]] -= 1
                    grad_states[rows] = probabilities @ low_vectors
                    own_states = low_states[rows]
                    if n_draws > 1:
                        share = torch.softmax(log_p, dim=1).view(-1, 1)
                        grad_states[rows] *= share
                        own_states = own_states * share.to(own_states.dtype)
                    if precision is None:
                        grad_vectors.addmm_(probabilities.T, own_states)
                    else:
                        grad_vectors += probabilities.T @ own_states
        n = max(1, n_targets)
        ctx.save_for_backward(grad_states.div_(n), grad_vectors.div_(n))
        return total / n

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_states, grad_vectors = ctx.saved_tensors
        return grad_states * grad, grad_vectors * grad, None, None


class Raised(NamedTuple):
    """What is added to the logits of some of the items 1..V-1; what is there twice adds up."""

    row: Int[Tensor, " N"]
    item: Int[Tensor, " N"]
    by: Float[Tensor, " N"]

    def within(self, rows: range, items: range) -> "Raised":
        """Those of a block, whose rows and items are counted from its first."""
        row, item = self.row - rows.start, self.item - items.start
        inside = (row >= 0) & (row < len(rows)) & (item >= 0) & (item < len(items))
        return Raised(row[inside], item[inside], self.by[inside])


def log_prob(
    states: Float[Tensor, "P E"],
    vectors: Float[Tensor, "V E"],
    items: Int[Tensor, " P"],
    raised: Raised | None = None,
) -> Float[Tensor, " P"]:
    """Log probability of each state's item under softmax(states · vectorsᵀ) over 1..V-1.

    Args:
        raised: what is added to some of the products.
    """
    # a matrix product, so that autocast rounds it as those in the partition
    own = torch.bmm(states[:, None], vectors[items][:, :, None])[:, 0, 0]
    own = own.to(_full_precision(states))
    if raised is not None:
        of_own = raised.by * (raised.item == items[raised.row])
        own = own.index_add(0, raised.row, of_own.to(own.dtype))
    return own - log_partition(states, vectors, raised)


def log_partition(
    states: Float[Tensor, "P E"], vectors: Float[Tensor, "V E"], raised: Raised | None = None
) -> Float[Tensor, " P"]:
    """log Σ exp(state · vector) over the items 1..V-1; the logits are made again for gradients.

    Args:
        raised: what is added to some of the products.
    """
    return _normalizers(states, vectors, "multinomial", raised)


def mean_set_log_prob(
    states: Float[Tensor, "B E"],
    vectors: Float[Tensor, "V E"],
    items: Int[Tensor, " N"],
    offsets: Int[Tensor, " B"],
    likelihood: Literal["multinomial", "bernoulli"] = "multinomial",
) -> Float[Tensor, ""]:
    """Mean over B sets of the log likelihood of a set of items, the logits being states · vectorsᵀ.

    Source: Liang, Krishnan, Hoffman & Jebara (WWW 2018).

    Args:
        items: of the sets, one after another.
        offsets: where each begins.
        likelihood: ``multinomial``, the sum over the set of log softmax over the items 1..V-1; or
            ``bernoulli``: every item is in the set or not, by the sigmoid of its logit.
    """
    normalizers = by_rows(lambda rows: _normalizers(rows, vectors, likelihood), states)
    if likelihood == "multinomial":
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(items)])])
        normalizers = normalizers * (ends - offsets)
    chosen = F.embedding_bag(items, vectors, offsets, mode="sum")
    return ((states * chosen).sum(1) - normalizers).mean()


def _normalizers(
    states: Float[Tensor, "B E"],
    vectors: Float[Tensor, "V E"],
    likelihood: str,
    raised: Raised | None = None,
) -> Float[Tensor, " B"]:
    """Log partition of each state, or its sum of log(1 + exp) over the items."""
    is_bernoulli = likelihood == "bernoulli"
    full = _full_precision(states)

    def of_block(rows: Tensor, columns: Tensor, n_padding: int, *raised: Tensor) -> Tensor:
        logits = rows @ columns[n_padding:].T
        if raised:
            row, item, by = raised
            places = row * logits.shape[1] + item - n_padding
            by, flat = by.to(full), logits.to(full).flatten()
            logits = flat.index_add(0, places, by).view_as(logits)
        if is_bernoulli:
            return F.softplus(logits).to(full).sum(1)
        return torch.logsumexp(logits.to(full), dim=1)

    def raised_within(rows: range, items: range) -> Raised | tuple[()]:
        if raised is None:
            return ()
        is_all = len(rows) == len(states) and len(items) == len(vectors)
        return raised if is_all else raised.within(rows, items)

    def total(rows: range) -> Tensor:
        parts = []
        for items, columns in zip(_ranges(len(vectors), width), blocks, strict=True):
            block = states[rows.start : rows.stop], columns, int(items.start == 0)
            parts.append(_recomputed(of_block, *block, *raised_within(rows, items)))
        if len(parts) == 1:
            return parts[0]
        together = torch.stack(parts)
        return together.sum(0) if is_bernoulli else torch.logsumexp(together, dim=0)

    height, width = _block_shape(states, vectors)
    blocks = [vectors] if width >= len(vectors) else vectors.split(width)
    return torch.cat([total(rows) for rows in _ranges(len(states), height)])


def _ranges(n: int, size: int) -> list[range]:
    """The numbers below n in ranges of a size, the last of which may be shorter.

    If n is 0, one empty range.
    """
    return [range(start, min(start + size, n)) for start in range(0, max(1, n), size)]


def _recomputed(function: Callable[..., Tensor], *given: Any) -> Tensor:
    """The function's result; what it makes on the way is not kept for gradients but made again."""
    if not torch.is_grad_enabled():
        return function(*given)
    found: Tensor = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return found


@torch.no_grad()
def max_prob(states: Float[Tensor, "P E"], vectors: Float[Tensor, "V E"]) -> Float[Tensor, " P"]:
    """Probability of each state's likeliest item under softmax(states · vectorsᵀ) over 1..V-1."""
    full = _full_precision(states)
    least = torch.finfo(full).min
    found = []
    for blocks in _logits(states, vectors):
        maxima, sums = [], []
        for logits in blocks:
            greatest = logits.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
            maxima.append(greatest[:, 0].to(full))
            sums.append(logits.sub_(greatest).exp_().sum(1, dtype=full))
        greatest = torch.stack(maxima)
        weights = (greatest - greatest.amax(0).clamp(min=least)).exp()
        found.append(1 / (weights * torch.stack(sums)).sum(0))
    return torch.cat(found) if found else states.new_zeros(0)


@torch.no_grad()
def expected_vectors(
    states: Float[Tensor, "P E"], vectors: Float[Tensor, "V E"]
) -> Float[Tensor, "P E"]:
    """Mean vector of an item drawn from softmax(states · vectorsᵀ) over the items 1..V-1."""
    if torch.compiler.is_exporting():  # a graph has no blocks
        return (states @ vectors[1:].T).softmax(1) @ vectors[1:]
    full = _full_precision(states)
    _, width = _block_shape(states, vectors)
    found = []
    for blocks in _logits(states, vectors):
        peak, total, mean = torch.tensor(-torch.inf), torch.tensor(0.0), torch.tensor(0.0)
        for logits, part in zip(blocks, vectors.split(width), strict=True):
            new_peak = torch.maximum(peak.to(logits), logits.amax(1, keepdim=True))
            new_peak = new_peak.clamp(min=torch.finfo(logits.dtype).min)  # only padding so far
            shrunk = (peak.to(logits) - new_peak).exp().to(full)
            weights = logits.sub_(new_peak).exp_()
            total = total.to(shrunk) * shrunk + weights.sum(1, keepdim=True, dtype=full)
            mean = mean.to(shrunk) * shrunk + (weights @ part.to(weights)).to(full)
            peak = new_peak
        found.append(mean / total)
    return torch.cat(found) if found else states.new_zeros(states.shape)


def nearest_items(vectors: Float[Tensor, "V E"], k: int) -> Int64[Tensor, "V K"]:
    """The k other items with the greatest product with each item, nearest first.

    Padding is no item's neighbor, and has padding as its own.

    Raises:
        ConfigError: there are fewer than k other items.
    """
    if k > len(vectors) - 2:
        raise ConfigError(
            f"{k} nearest items were asked for, but an item of this catalog has only "
            f"{max(0, len(vectors) - 2)} others: choose a smaller number"
        )
    items = torch.arange(1, len(vectors), device=vectors.device)
    scorer = Products(vectors[1:], vectors)
    _, nearest = top_k(scorer, k, hidden=ItemSets(items - 1, items))
    return torch.cat([nearest.new_zeros(1, k), nearest])


def _logits(
    states: Float[Tensor, "P E"], vectors: Float[Tensor, "V E"]
) -> Iterator[Iterator[Tensor]]:
    """Logits a block of rows at a time, and of each the blocks of columns, in one piece of memory.

    Padding has minus infinity.
    """
    device = states.device.type
    precision = _autocast_precision(device) or vectors.dtype
    states, vectors = states.to(precision), vectors.to(precision)
    height, width = _block_shape(states, vectors)
    memory = states.new_empty(min(height, len(states)) * width)

    def blocks(rows: Tensor) -> Iterator[Tensor]:
        for number, columns in enumerate(vectors.split(width)):
            out = memory[: len(rows) * len(columns)].view(len(rows), len(columns))
            with torch.autocast(device, enabled=False):
                logits = torch.mm(rows, columns.T, out=out)
            if number == 0:
                logits[:, 0] = -torch.inf
            yield logits

    for rows in states.split(height):
        if len(rows):
            yield blocks(rows)


def _block_shape(
    states: Float[Tensor, "P E"],
    vectors: Float[Tensor, "V E"],
    n_draws: int = 1,
    precision: torch.dtype = torch.float32,
) -> tuple[int, int]:
    device, size = states.device, (len(states), len(vectors))
    return block_shape(*size, device, cached=True, group=n_draws, precision=precision)


def _full_precision(states: Tensor) -> torch.dtype:
    """float64 for such states, else float32."""
    return torch.promote_types(states.dtype, torch.float32)


def _autocast_precision(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
