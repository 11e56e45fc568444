"""Noise that belongs to a row, not to its place in a batch.

With an ordinary generator, a user's noise depends on who else is in the batch. Here each number is
a hash of (seed, key of the row, number of the draw, element): the same user gets the same noise in
any batch, in any order, alone or with others.

The hash is that of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014), chained over seed, key and draw, then run in counter mode over elements.
Each 64-bit word becomes two normals by Box and Muller's transform (Annals of Mathematical
Statistics, 1958).

Logarithm, sine and cosine are power series of additions, multiplications and one division, all of
which IEEE 754 defines to the last bit. Library versions do not agree between processors, nor
always between the body and the tail of one array.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_LOW_32 = 0xFFFFFFFF
_SQRT_HALF_BITS = 0x3F3504F3

# Words hashed at once: few enough for a core's cache, or enough to fill an accelerator.
_CHUNK_CPU = 2**16
_CHUNK_ACCELERATOR = 2**22


NoiseSource = Callable[[Int[Tensor, " B"], tuple[int, ...]], Float[Tensor, "B ..."]]
"""Keys of the rows and the shape of a row, to standard normal numbers of shape (B, *shape)."""

_SOURCE: ContextVar[NoiseSource | None] = ContextVar("_SOURCE", default=None)


@contextmanager
def noise_from(source: NoiseSource) -> Iterator[None]:
    """Within it, all normal numbers of :class:`KeyedNoise` come from elsewhere.

    For graphs that are given their noise, since hashes are no operations of theirs.
    """
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)


class KeyedNoise:
    """A source of noise with one independent stream per row.

    Args:
        seed: Any integer.
        keys: What identifies each row, such as a user's number. Equal keys get equal noise. The
            noise lives on the device of the keys.
    """

    def __init__(self, seed: int, keys: Int[Tensor, " B"]) -> None:
        self._keys, self._source = keys, _SOURCE.get()
        if self._source is not None:
            return
        origin = _mix(torch.tensor([_signed(seed)], device=keys.device))
        self._rows = _mix(origin + keys.to(torch.int64) * _signed(_GOLDEN))
        self._n_draws = 0

    def normal(self, *shape: int) -> Float[Tensor, "B ..."]:
        """The next draw of standard normal numbers, float32 of shape (B, *shape)."""
        if self._source is not None:
            return self._source(self._keys, shape)
        return self._draw(shape, _normals)

    def uniform(self, *shape: int) -> Float[Tensor, "B ..."]:
        """The next draw of numbers uniform over [0, 1), float32 of shape (B, *shape)."""
        return self._draw(shape, _uniforms)

    def _draw(
        self, shape: tuple[int, ...], transform: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Float[Tensor, "B ..."]:
        streams = _mix(self._rows + _signed(_GOLDEN * (self._n_draws + 1)))
        self._n_draws += 1
        n_rows, n_elements = len(streams), math.prod(shape)
        n_words = (n_elements + 1) // 2
        out = torch.empty(n_rows, n_words, 2, device=streams.device)
        if out.numel() == 0:
            return out.new_empty(n_rows, *shape)
        chunk = _CHUNK_CPU if streams.device.type == "cpu" else _CHUNK_ACCELERATOR
        n_columns = min(n_words, chunk)
        n_rows_at_once = max(1, chunk // n_columns)
        for start in range(0, n_words, n_columns):
            stop = min(start + n_columns, n_words)
            counters = torch.arange(start + 1, stop + 1, device=streams.device) * _signed(_GOLDEN)
            for top in range(0, n_rows, n_rows_at_once):
                rows = slice(top, top + n_rows_at_once)
                first, second = transform(_mix(streams[rows, None] + counters))
                out[rows, start:stop, 0] = first
                out[rows, start:stop, 1] = second
        return out.view(n_rows, 2 * n_words)[:, :n_elements].reshape(n_rows, *shape)


def row_keys(rows: Int[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """A 64-bit key of each row of integers, the same wherever the row stands."""
    keys = torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
    for column in rows.to(torch.int64).unbind(1):
        keys = _mix(keys + (column + 1) * _signed(_GOLDEN))
    return keys


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`: torch has no arithmetic on unsigned ones."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _mix(word: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's finalizer. A shift keeps the sign, so the mask makes it a logical one."""
    word = word ^ ((word >> 30) & (2**34 - 1))
    word *= _signed(0xBF58476D1CE4E5B9)
    word ^= (word >> 27) & (2**37 - 1)
    word *= _signed(0x94D049BB133111EB)
    word ^= (word >> 31) & (2**33 - 1)
    return word


def _uniforms(words: Int[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Two uniform numbers per word, from the upper 24 bits of either half."""
    return (
        ((words >> 40) & 0xFFFFFF).float() * 2.0**-24,
        ((words >> 8) & 0xFFFFFF).float() * 2.0**-24,
    )


def _normals(words: Int[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Two normal numbers per word: a radius from the upper half, a direction from the lower.

    The direction is an angle in [-pi/4, pi/4] (30 bits), turned by pi/4 into the first quadrant,
    and two signs. Turning makes sums of sine and cosine, and a factor sqrt(1/2) that turns the
    radius sqrt(-2 log u) into sqrt(-log u).
    """
    upper, lower = (words >> 32) & _LOW_32, words & _LOW_32
    radius = _minus_log((upper.float() + 0.5) * 2.0**-32).sqrt_()
    angle = ((lower & (2**30 - 1)) - 2**29).float()
    angle += 0.5
    angle *= math.pi / 2**31
    sine, cosine = _sine_cosine(angle)
    first = (cosine - sine) * radius
    second = (cosine + sine) * radius
    first *= 1 - 2 * (lower >> 31).float()
    second *= 1 - 2 * ((lower >> 30) & 1).float()
    return first, second


def _minus_log(u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """-log(u) for positive normal float32, at most 1.

    u = 2^exponent * m with m in [sqrt(1/2), sqrt(2)), and log m = 2 artanh((m - 1) / (m + 1)).
    """
    bits = u.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    m = (bits - (exponent << 23)).view(torch.float32)
    s = (m - 1) / (m + 1)
    return exponent.float() * -math.log(2) - s * _series(s * s, [2 / k for k in (1, 3, 5, 7, 9)])


def _sine_cosine(
    angle: Float[Tensor, "..."],
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Sine and cosine of angles in [-pi/4, pi/4], by their Taylor series."""
    square = angle * angle
    sine = angle * _series(square, [(-1) ** k / math.factorial(2 * k + 1) for k in range(5)])
    cosine = _series(square, [(-1) ** k / math.factorial(2 * k) for k in range(6)])
    return sine, cosine


def _series(x: Float[Tensor, "..."], coefficients: list[float]) -> Float[Tensor, "..."]:
    total = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        total += coefficient
        total *= x
    return total.add_(coefficients[0])
