"""Augmenters: what they may change in sequences, in training and at inference."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from diffuserec.data import SequenceDataset
from diffuserec.models.base import Method, method_registry
from diffuserec.registry import Registry


class Augmenter(Method):
    """Changes sequences: dataset in, dataset out.

    It may insert items (marked synthetic: context, never a target, never "seen"), delete items,
    add alternative copies for training (:class:`ParallelAugmenter`), or add whole new users.
    """

    kind = "augmenter"
    training_only: ClassVar[bool] = False
    """Whether it only adds to training; histories are then shown as they are at inference."""

    @abstractmethod
    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """A new dataset: the same users first, in their order; then new users, if it makes any.

        Pure, and by user: what a user is given depends on (seed, user, that user's own history).

        Args:
            dataset: the histories as they are allowed to be seen.
        """

    def augment_for_inference(self, histories: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """Applies to histories what `augment` applied in training.

        Returns:
            The same users in the same order, new ones left out; the histories themselves if the
            augmenter only adds to training.
        """
        if self.training_only:
            return histories
        augmented = self.augment(histories, seed)
        return augmented.select(np.arange(len(histories)))


class ParallelAugmenter(Augmenter):
    """An augmenter that adds alternative copies of each training sequence."""

    training_only = True

    @abstractmethod
    def require_epochs(self, epochs: int) -> None:
        """Raises ConfigError if `epochs` is too small for the curriculum to reach every copy."""


AUGMENTERS: Registry[type[Augmenter]] = method_registry(Augmenter, "diffuserec.augmenters")
Augmenter.registry = AUGMENTERS
