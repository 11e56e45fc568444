"""Augmented copies of training sequences, and the curriculum by which training takes them up."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

from diffuserec.errors import ConfigError


@dataclass(frozen=True)
class CurriculumSchedule:
    """Epochs in which training uses the augmented copies of its sequences, and their weight.

    Attributes:
        pacing: ``cumulative``: stage s has the first s copies; ``one_pass``: only the s-th, and
            all of them after the last stage; ``none``: all from the start.
        stage_epochs: epochs a stage.
        weight: of the loss of one copy against that of the original.
        copies_per_step: copies that a training step uses with each original: ``one`` of the
            stage's copies, drawn at random to represent all of them, or ``all``.
    """

    pacing: Literal["cumulative", "one_pass", "none"] = "cumulative"
    stage_epochs: int = 1
    weight: float = 1.0
    copies_per_step: Literal["one", "all"] = "one"

    def stage(self, epoch: int, n_copies: int) -> range:
        """Numbers of the copies that the epoch uses, from 0."""
        begun = min(epoch // self.stage_epochs, n_copies) + 1
        if self.pacing == "none" or begun > n_copies:
            return range(n_copies)
        return range(begun - 1 if self.pacing == "one_pass" else 0, begun)

    def n_epochs(self, n_copies: int) -> int:
        """Epochs before all copies are in use."""
        stages = {"cumulative": n_copies - 1, "one_pass": n_copies, "none": 0}
        return stages[self.pacing] * self.stage_epochs

    def require_epochs(self, epochs: int, n_copies: int) -> None:
        """Raises ConfigError if `epochs` end before all copies are in use."""
        least = self.n_epochs(n_copies)
        if epochs <= least:
            raise ConfigError(
                f"{epochs} epochs end before all {n_copies} copies are in use, which takes "
                f"{least + 1}: raise epochs, lower n_copies or stage_epochs, or set curriculum "
                "none"
            )


@dataclass(frozen=True, eq=False)
class AugmentedCopies:
    """Alternative copies of every sequence of a dataset, trained on together with the original.

    A copy is as long as its original. All its items are targets, and none is "seen": they are
    items that a user might have chosen.

    Attributes:
        items: item numbers of K copies, int32, shape (K, N): column n is the alternative to the
            interaction at position n of the dataset's flat log. The first copy of a user is the
            first that training uses.
        difficulty: of each copy, float32, shape (K, U).
        schedule: epochs in which training uses each copy.
    """

    items: Int32[np.ndarray, "K N"]
    difficulty: Float32[np.ndarray, "K U"]
    schedule: CurriculumSchedule

    def __len__(self) -> int:
        return len(self.items)
