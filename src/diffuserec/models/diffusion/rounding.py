"""Rounding: from generated vectors to the rows of an embedding table.

Estimates of x_0 at high noise have large norms, so rows are compared by cosine similarity (as in
Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023, section 3.3).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def nearest_rows(
    vectors: Float[Tensor, "N D"], table: Float[Tensor, "V D"], first: int = 1, chunk: int = 1024
) -> Int[Tensor, " N"]:
    """The row of `table` most similar to each vector, by cosine.

    Args:
        vectors: Vectors to round. A zero vector is equally similar to all rows.
        table: Rows to choose from. A zero row has similarity 0 to everything.
        first: Rows below this one are never chosen: row 0 is padding.

    Returns:
        Row numbers in first..V-1. Among similarities that are equal, up to rounding error, the
        lowest row wins.

    Raises:
        ValueError: If there is no row to choose from, or a number is not finite.
    """
    if not 0 <= first < len(table):
        raise ValueError(f"no row to round to: the table has {len(table)} rows, first is {first}")
    if not vectors.isfinite().all():
        raise ValueError("vectors to round hold NaN or infinity: did sampling or training diverge?")
    if not table[first:].isfinite().all():
        raise ValueError("the table to round to holds NaN or infinity")
    rows = normalize(table[first:], dim=1)
    # Equal rows of the table may differ in the last bits of their products.
    tolerance = 8 * torch.finfo(table.dtype).eps
    nearest = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    for top in range(0, len(vectors), chunk):
        block = normalize(vectors[top : top + chunk], dim=1)
        best = block.new_full((len(block),), -torch.inf)
        best_row = nearest[top : top + chunk]
        for start in range(0, len(rows), chunk):
            similarity = block @ rows[start : start + chunk].T
            highest = similarity.amax(dim=1)
            row = (similarity >= (highest - tolerance)[:, None]).byte().argmax(dim=1)
            better = highest > best + tolerance
            best = torch.where(better, highest, best)
            best_row.copy_(torch.where(better, row + start, best_row))
    return nearest + first
