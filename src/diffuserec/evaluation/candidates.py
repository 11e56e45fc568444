"""Sampled candidates: items that a query's target is ranked among instead of the whole catalog."""

import numpy as np
from jaxtyping import Int64, UInt64

from diffuserec.data import Queries, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.retrieval import seen_items


def uniform_candidates(
    queries: Queries, index: Int64[np.ndarray, " B"], n: int, seed: int
) -> Int64[np.ndarray, "B n"]:
    """Items for each query's target to be ranked among, all equally likely.

    Each user has an endless sequence of items that depends on (seed, user) alone; the candidates
    are the first `n` of it that are new and neither the target nor in the real history.

    Args:
        n: how many items a query; the catalog must have as many to give.
    """
    n_items = queries.histories.catalog.n_items
    users = queries.histories.users[index]
    at = np.arange(len(index))
    taken = np.zeros((len(index), n_items + 1), dtype=bool)
    seen = seen_items(queries.histories, index)
    taken[seen.owner.numpy(), seen.items.numpy()] = True
    taken[at, queries.targets[index]] = True
    width = n + n // 4 + 16
    while True:
        drawn = 1 + (_words(seed, users, width) % np.uint64(n_items)).astype(np.int64)
        usable = ~taken[at[:, None], drawn]
        order = np.argsort(drawn, axis=1, kind="stable")
        ordered = np.take_along_axis(drawn, order, axis=1)
        again = np.zeros_like(usable)
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        usable &= ~again
        place = usable.cumsum(1)
        if (place[:, -1] >= n).all():
            return drawn[usable & (place <= n)].reshape(len(index), n)
        width *= 2


def n_candidates(candidates: str) -> int | None:
    """Number of sampled candidates that ``full`` (None) or ``uniform:N`` asks for.

    Raises:
        ConfigError: neither of the two.
    """
    if candidates == "full":
        return None
    name, _, number = candidates.partition(":") if isinstance(candidates, str) else ("", "", "")
    if name != "uniform" or not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"candidates must be 'full' or 'uniform:N', got {candidates!r}")
    return int(number)


def require_enough(queries: Queries, n: int) -> None:
    """Raises ConfigError if some user leaves fewer than n items to sample from."""
    real = queries.histories.real()
    vocab_size = real.vocab_size
    owner = np.repeat(np.arange(len(queries)), real.lengths)
    own = np.concatenate(
        [owner * vocab_size + real.items, np.arange(len(queries)) * vocab_size + queries.targets]
    )
    n_own = np.bincount(np.unique(own) // vocab_size, minlength=len(queries))
    left = real.catalog.n_items - int(n_own.max())
    if left < n:
        raise ConfigError(
            f"uniform:{n} needs {n} items that a user does not have, and "
            f"{user_name(real, int(n_own.argmax()))} leaves {left} of {real.catalog.n_items}: "
            "use fewer candidates, or 'full'"
        )


def _words(seed: int, users: Int64[np.ndarray, " B"], width: int) -> UInt64[np.ndarray, "B W"]:
    """Random 64-bit words, each a hash of (seed, user, position): SplitMix64 in counter mode."""
    golden = np.uint64(0x9E3779B97F4A7C15)

    def mixed(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed_word: np.ndarray = z ^ (z >> np.uint64(31))
        return mixed_word

    # the constant keeps these draws apart from any noise that is keyed by (seed, user) too
    origin = mixed(np.array([seed & (2**64 - 1)], dtype=np.uint64) ^ np.uint64(0xCA9D1DA7E5))
    streams = mixed(origin + users.astype(np.uint64) * golden)
    steps: np.ndarray = np.arange(1, width + 1, dtype=np.uint64) * golden
    return mixed(streams[:, None] + steps)


def user_name(histories: SequenceDataset, index: int) -> str:
    """A user in words, by raw id if the catalog knows it."""
    number = int(histories.users[index])
    known = histories.catalog.user_ids
    return f"user number {number}" if known is None else f"user {known[number]!r}"
