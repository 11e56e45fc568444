"""A sparse matrix of weights from item to item: all that counting methods learn."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy.sparse import csr_array
from torch import Tensor, nn

from diffuserec.data import Histories, SequenceDataset


class Pairs(NamedTuple):
    """Items that stand near each other in a sequence.

    Attributes:
        owner: index of the sequence, shape (N,).
        later: the later item of each pair.
        earlier: the earlier one.
        weight: 1 / distance.
    """

    owner: Int64[np.ndarray, " N"]
    later: Int64[np.ndarray, " N"]
    earlier: Int64[np.ndarray, " N"]
    weight: Float32[np.ndarray, " N"]


def pairs_within(dataset: SequenceDataset, window: int) -> Pairs:
    """All pairs of items of a sequence that are at most `window` positions apart."""
    owners = np.repeat(np.arange(len(dataset)), dataset.lengths)
    items = dataset.items.astype(np.int64)
    parts = [(np.zeros(0, np.int64),) * 3 + (np.zeros(0, np.float32),)]
    for distance in range(1, window + 1):
        same = owners[distance:] == owners[:-distance]
        later, earlier = items[distance:][same], items[:-distance][same]
        weight = np.full(len(later), 1 / distance, dtype=np.float32)
        parts.append((owners[distance:][same], later, earlier, weight))
    return Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class ItemMatrix(nn.Module):
    """V × V weights in compressed sparse rows, saved like parameters; all zero until set.

    Row i is ``offsets[i]:offsets[i + 1]`` of ``columns`` and ``values``.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.zeros(vocab_size + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0, dtype=torch.float32))
        self._built: tuple[Tensor, csr_array] | None = None
        self.register_load_state_dict_post_hook(_require_rows)  # type: ignore[no-untyped-call]

    def set(self, matrix: csr_array) -> None:
        """Takes the weights of a SciPy matrix."""
        self.offsets = torch.from_numpy(matrix.indptr)
        self.columns = torch.from_numpy(matrix.indices)
        self.values = torch.from_numpy(matrix.data.astype(np.float32))

    def decayed_sums(self, histories: Histories, decay: float) -> Float[Tensor, "B V"]:
        """Sum of the rows of each history's items, weighted by decay^age; the newest has age 0."""
        position = torch.arange(histories.items.shape[1], device=histories.items.device)
        age = histories.lengths[:, None] - 1 - position
        weights = torch.pow(decay, age.clamp(min=0).to(torch.float32))
        used = (age >= 0) & (weights > 0)
        starts = np.concatenate([[0], np.cumsum(used.sum(1).cpu().numpy())])
        chosen = csr_array(
            (
                weights[used].cpu().numpy(),
                histories.items[used].to(torch.int32).cpu().numpy(),
                starts.astype(np.int32),
            ),
            shape=(len(histories.users), len(self.offsets) - 1),
        )
        return torch.from_numpy(self.sums(chosen).toarray()).to(self.values.device)

    def sums(self, weights: csr_array) -> csr_array:
        """Weighted sums of rows: one for each row of `weights`, of shape (B, V)."""
        found: csr_array = weights @ self._matrix()
        return found

    def _matrix(self) -> csr_array:
        """The weights as a SciPy matrix, built once for these buffers."""
        if self._built is None or self._built[0] is not self.values:
            parts = (self.values, self.columns, self.offsets)
            size = len(self.offsets) - 1
            matrix = csr_array(tuple(part.cpu().numpy() for part in parts), shape=(size, size))
            self._built = self.values, matrix
        return self._built[1]


def _require_rows(matrix: nn.Module, _: object) -> None:
    """Raises RuntimeError, as loading a state dict does, if buffers are no rows of a matrix."""
    assert isinstance(matrix, ItemMatrix)
    offsets, columns = matrix.offsets, matrix.columns
    ends = int(offsets[0]), int(offsets[-1])
    if (
        ends != (0, len(columns))
        or len(matrix.values) != len(columns)
        or bool((offsets[1:] < offsets[:-1]).any())
        or bool(((columns < 0) | (columns >= len(offsets) - 1)).any())
    ):
        raise RuntimeError("the weights from item to item are no rows of a matrix")
