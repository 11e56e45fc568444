"""Orders and groups of a log: numbers of raw ids, stable sorting in linear time, k-core."""

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64
from scipy.sparse import csc_array


def codes_of(values: pl.Series) -> tuple[Int32[np.ndarray, " N"], pl.Series]:
    """Rank of each value among the sorted distinct values, and the distinct values."""
    distinct = values.unique().sort()
    if values.dtype.is_integer() and len(distinct):
        low, high = int(distinct[0]), int(distinct[-1])
        if high - low < 4 * len(values) + 1024:
            table = np.zeros(high - low + 1, dtype=np.int32)
            table[distinct.to_numpy() - low] = np.arange(len(distinct), dtype=np.int32)
            return table[values.to_numpy() - low], distinct
    index = pl.DataFrame({"value": distinct, "code": np.arange(len(distinct), dtype=np.int32)})
    found = pl.DataFrame({"value": values}).join(
        index, on="value", how="left", maintain_order="left"
    )
    return found["code"].to_numpy().copy(), distinct


def group_order(codes: Int[np.ndarray, " N"], n_groups: int) -> Int[np.ndarray, " N"]:
    """Positions by group, each group in its former order: a counting sort, linear in N.

    Transposes a sparse matrix with one entry a column.
    """
    n = len(codes)
    narrow = np.int32 if n < 2**31 - 1 else np.int64
    ones = np.ones(n, dtype=np.int8)
    matrix = csc_array(
        (ones, codes.astype(narrow, copy=False), np.arange(n + 1, dtype=narrow)),
        shape=(n_groups, n),
    )
    return np.asarray(matrix.tocsr().indices)


def time_order(times: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Positions by time, equal times in their former order."""
    n, first = len(times), int(times.min())
    bits = n.bit_length()
    if (int(times.max()) - first).bit_length() + bits < 63:
        # (time, position) fits one integer, and plain sorting of integers is several times faster
        keys = ((times - first) << bits) | np.arange(n)
        keys.sort()
        keys &= (1 << bits) - 1
        return keys
    return np.argsort(times, kind="stable")


def user_order(
    users: Int32[np.ndarray, " N"], n_users: int, times: Int64[np.ndarray, " N"] | None
) -> tuple[Int[np.ndarray, " N"] | None, int]:
    """Positions by user, then time, then former order; and how many had a later one before them.

    Returns:
        None in place of positions that are in order.
    """
    n_late, order = 0, None
    if (users[1:] < users[:-1]).any():
        order = group_order(users, n_users)
    if times is not None:
        by_user, in_time = (users, times) if order is None else (users[order], times[order])
        late = (in_time[1:] < in_time[:-1]) & (by_user[1:] == by_user[:-1])
        n_late = int(late.sum())
        del by_user, in_time, late
        if n_late:
            by_time = time_order(times)
            order = by_time[group_order(users[by_time], n_users)]
    return order, n_late


def k_core(
    users: Int32[np.ndarray, " N"], items: Int32[np.ndarray, " N"], min_user: int, min_item: int
) -> tuple[Bool[np.ndarray, " N"], int]:
    """True for each interaction that is kept; and the number of rounds that removed any."""
    kept, rounds = np.arange(len(users)), 0
    while len(kept):
        u, i = users[kept], items[kept]
        enough = (np.bincount(u)[u] >= min_user) & (np.bincount(i)[i] >= min_item)
        if enough.all():
            break
        kept, rounds = kept[enough], rounds + 1
    keep = np.zeros(len(users), dtype=bool)
    keep[kept] = True
    return keep, rounds
