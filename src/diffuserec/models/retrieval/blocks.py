"""Sizes of the blocks in which scores are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_CACHED = 10_000_000
"""Bytes of a block that stays in a CPU's cache between its passes."""

_MEMORY = {"cpu": 2**25, "cuda": 2**28}
"""Scores that a block may hold at most: 128 MiB in float32 on a CPU, 1 GiB on a GPU."""

_MIN_ROWS = {"cpu": 128, "cuda": 1024}
"""Rows below which a matrix product wastes most of its time on reading the item vectors."""

_MAX_COLUMNS = 2**24
"""Columns that can be counted exactly in float32."""

_budget: ContextVar[int | None] = ContextVar("budget", default=None)


@contextmanager
def memory_budget(n_bytes: int) -> Iterator[None]:
    """Limits the memory of a block of scores within the context, however slow that is.

    Args:
        n_bytes: memory of the scores held at once, in float32; one score at least.
    """
    token = _budget.set(max(1, n_bytes // 4))
    try:
        yield
    finally:
        _budget.reset(token)


def most_scores(device: torch.device) -> int:
    """Scores that may be held at once, as the memory budget has it."""
    limit = _budget.get()
    return _MEMORY["cpu" if device.type == "cpu" else "cuda"] if limit is None else limit


def block_shape(
    n_rows: int,
    vocab_size: int,
    device: torch.device,
    cached: bool = False,
    group: int = 1,
    precision: torch.dtype = torch.float32,
) -> tuple[int, int]:
    """Rows and columns of the blocks in which `n_rows` × V scores are made.

    All columns at once if that leaves enough rows within the memory budget; otherwise the fewest
    rows that are still worth a product, and as many columns as fit.

    Args:
        cached: keep a block small enough for a CPU's cache, for callers that pass over it often.
            Where all columns fit into the memory budget but not into the cache, they stay together:
            columns that are cut are made twice.
        group: rows that must stay together; a block holds one group or more.
        precision: of the scores; more of fewer bytes are cached.
    """
    kind = "cpu" if device.type == "cpu" else "cuda"
    memory, least = most_scores(device), _MIN_ROWS[kind]
    if _budget.get() is not None:
        least = 1
    wanted = min(_CACHED // precision.itemsize, memory) if cached and kind == "cpu" else memory
    rows = min(n_rows, max(least, wanted // vocab_size))
    rows = max(1, rows // group) * group
    columns = vocab_size if rows * vocab_size <= memory else max(1, wanted // rows)
    return rows, min(columns, _MAX_COLUMNS)
