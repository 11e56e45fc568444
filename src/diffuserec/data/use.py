"""How generated items are used: beside what, how often, and what they count in training."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int32

if TYPE_CHECKING:
    from diffuserec.data.dataset import SequenceDataset


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """Items that could have stood in the place of each target, with their probabilities.

    In a share of the epochs, one of them, drawn by its probability, is learned instead of the
    target. On average over the epochs that is a target smoothed over these items, for any loss.

    Attributes:
        items: item numbers for each position of the flat log, shape (N, S); 0 is no item.
        probability: of each of them, shape (N, S). The target itself is not drawn; where that
            leaves nothing, it is kept.
        weight: share of the epochs.
    """

    items: Int32[np.ndarray, "N S"]
    probability: Float32[np.ndarray, "N S"]
    weight: float

    def drawn(
        self, items: Int32[np.ndarray, " N"], generator: np.random.Generator
    ) -> Int32[np.ndarray, " N"]:
        """What is learned at each position of the flat log in an epoch: its item or another."""
        others = (self.items != items[:, None]) & (self.items > 0)
        upper = np.where(others, self.probability, 0).cumsum(axis=1)
        chosen = (generator.random(len(items)) < self.weight) & (upper[:, -1] > 0)
        level = generator.random(len(items)) * upper[:, -1]
        at = np.minimum((level[:, None] >= upper).sum(1), upper.shape[1] - 1)
        learned: np.ndarray = np.where(chosen, self.items[np.arange(len(items)), at], items)
        return learned

    def take(self, where: Any) -> "SoftTargets":
        """Those at some positions of the flat log."""
        return replace(self, items=self.items[where], probability=self.probability[where])


@dataclass(frozen=True, eq=False)
class Use:
    """How training and scoring use the synthetic items of a dataset's sequences.

    Attributes:
        weight: of a target in a sequence with synthetic items, against one in the same user's real
            items alone, which are trained on beside it; None: the real items alone are not.
        dropout: chance that an epoch reads a user's real items alone.
        average: whether a history is scored with and without its synthetic items, and the mean
            taken.
        rows: further sequences of these users to train on, with the same weight; or None.
        soft: items that could have stood in the place of targets; or None.
    """

    weight: float | None = None
    dropout: float = 0.0
    average: bool = False
    rows: "SequenceDataset | None" = None
    soft: SoftTargets | None = None

    @property
    def is_for_training(self) -> bool:
        """Whether it changes what is trained on."""
        return bool(self.weight or self.dropout or self.soft is not None)

    def of(self, users: Any) -> "Use":
        """The use of the sequences of some users, of the same flat log."""
        if self.rows is None:
            return self
        return replace(self, rows=self.rows.select(np.isin(self.rows.users, users)))

    def take(self, where: Any) -> "Use":
        """The use of sequences whose flat log is that at these positions of the present one."""
        return self if self.soft is None else replace(self, soft=self.soft.take(where))
