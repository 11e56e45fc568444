"""Augmenters: what they may change in sequences, in training and at inference."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from diffuserec.data import PAD, Catalog, Queries, SequenceDataset, SoftTargets, Use
from diffuserec.data.advice import require_sequences
from diffuserec.data.batches import padded
from diffuserec.errors import ConfigError
from diffuserec.models.base import Epoch, Method, Runtime, method_registry
from diffuserec.models.diffusion import row_keys
from diffuserec.models.settings import PrependingSettings
from diffuserec.registry import Registry


class Augmenter(Method):
    """Changes sequences: dataset in, dataset out.

    It may insert items (marked synthetic: context, never a target, never "seen"), delete items,
    add alternative copies for training (:class:`ParallelAugmenter`), or add whole new users. What
    stands in front of a target should follow from the items before it alone, unless a setting says
    otherwise by name: a recommender cannot be told at inference what training told it.
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

        Overridden by augmenters of whose work a part is for training alone.

        Returns:
            The same users in the same order, new ones left out; the histories themselves if the
            augmenter only adds to training.
        """
        if self.training_only:
            return histories
        augmented = self.augment(histories, seed)
        return augmented.select(np.arange(len(histories)))

    def as_in_training(self, histories: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """Histories with what training would put in front of the item that comes next.

        Other than what they are shown with at inference where a part of it is for training alone.
        """
        return self.augment_for_inference(histories, seed)

    def training_sequences(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """All sequences with generated items that training on :meth:`augment`'s result reads."""
        longer = self.augment(dataset, seed)
        return longer.joined(None if longer.use is None else longer.use.rows)


class PrependingAugmenter(Augmenter):
    """An augmenter that puts M generated items in front of histories.

    A subclass says how to generate them, and how that is learned: what of a history it may look at,
    whose histories are given any, and what is no target behind them is decided here.

    With ``condition="causal"`` they are generated from the first k items of a history and from
    nothing else, noise included, and those k items are never targets behind them. So a user has the
    same generated items in training, at validation and test, when served, and after the next click,
    and equal beginnings are generated from once. With ``"published"``, they are generated from
    whole histories, training targets among them.
    """

    config: PrependingSettings
    remembers: ClassVar[int] = 2**16
    """Beginnings of histories whose generated items are remembered at most."""
    long_histories: Int64[Tensor, " N"]

    def likely(
        self, conditions: SequenceDataset, seed: int, before: int = 0
    ) -> tuple[Int32[np.ndarray, "S M"], Float32[np.ndarray, "S M"] | None]:
        """:meth:`generate`, and how probable each item is; None where that is not known.

        Overridden by those that know it, whose settings say ``gives_probabilities``.

        Args:
            before: number of the item that they stand in front of; 0 unless the settings say
                ``writes_inside``.
        """
        return self.generate(conditions, seed), None

    def expected(
        self, histories: SequenceDataset
    ) -> tuple[Int32[np.ndarray, "S N"], Float32[np.ndarray, "S N"]]:
        """The most probable items after each of these sequences, and how probable each is.

        Overridden by those whose settings say ``gives_probabilities``.

        Raises:
            ConfigError: it is not.
        """
        raise ConfigError(f"{self.name} does not say what it expects next: leave out use_soft")

    @abstractmethod
    def generate(self, conditions: SequenceDataset, seed: int) -> Int32[np.ndarray, "S M"]:
        """M items, oldest first, that could have come before each of these sequences.

        By sequence: noise is drawn from `seed` and the sequences' user numbers.

        Args:
            conditions: real items, at least one each; all that may be known of a user. With
                ``condition="causal"``, its user numbers are no users' but keys of the sequences.
        """

    def learn_to_generate(
        self, train: SequenceDataset, valid: Queries | None, runtime: Runtime
    ) -> list[Epoch]:
        """Learns from `train`, which holds real items and no copies; see :meth:`Method.learn`.

        Overridden by those that learn.
        """
        return []

    def take(self, catalog: Catalog) -> None:
        self.register_buffer("long_histories", torch.zeros(0, dtype=torch.int64))
        self._remembered: dict[tuple[int, bytes], np.ndarray] = {}
        super().take(catalog)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        train = train.real().without_copies()
        self.long_histories = self._keys_of_long(train)[1].unique().to(self.device)
        return self.learn_to_generate(train, valid, runtime)

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same users with M generated items, oldest first, in front of their histories.

        Synthetic items that are there already stay and are not looked at. Histories that are empty,
        shorter than what items are generated from, or of users whose training history was longer
        than `max_history`, stay as they are. What is returned says how a recommender is to use the
        items, if the settings do.
        """
        self.require_fitted()
        require_sequences("augment", dataset)
        c = self.config
        longer = self.augment_for_inference(dataset, seed).with_use(None)
        use = Use(
            weight=c.use_weight,
            dropout=c.use_dropout,
            average=c.use_average,
            rows=self._short(dataset.real(), seed) if c.use_short else None,
            soft=self._soft(longer) if c.use_soft else None,
        )
        return longer.with_use(use) if use.is_for_training or use.average else longer

    def augment_for_inference(self, histories: SequenceDataset, seed: int = 0) -> SequenceDataset:
        if self.config.use_place == "nowhere":
            return histories
        longer = self.as_in_training(histories, seed)
        return longer.with_use(Use(average=True)) if self.config.use_average else longer

    def training_sequences(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        longer = self.augment_for_inference(dataset, seed).with_use(None)
        return longer.joined(self._short(dataset.real(), seed) if self.config.use_short else None)

    def as_in_training(self, histories: SequenceDataset, seed: int = 0) -> SequenceDataset:
        self.require_fitted()
        require_sequences("augment", histories)
        if self.config.use_place == "nowhere" and not self.config.use_short:
            return histories
        return self._with_items(histories, self._chosen(histories.real()), seed)

    def _short(self, real: SequenceDataset, seed: int) -> SequenceDataset:
        """The newest items of longer sequences behind generated ones, where there are some."""
        n = self.config.use_short
        assert n is not None
        index = np.flatnonzero(real.lengths > n)
        cut = real.view(real.ends[index] - n, real.ends[index], index)
        rows = self._with_items(cut, np.arange(len(cut)), seed)
        return rows.select(rows.real_lengths < rows.lengths).compact()

    def _soft(self, longer: SequenceDataset) -> SoftTargets:
        """What is expected in the place of each real item, after the real ones before it."""
        real = longer.real()
        owners = np.repeat(np.arange(len(real)), real.lengths)
        number = np.arange(len(owners)) - real.offsets[owners]
        later = np.flatnonzero(number > 0)
        starts = real.starts[owners[later]]
        found = self.expected(real.view(starts, starts + number[later], owners[later]))
        where = np.flatnonzero(~longer.synthetic)[later]
        items, probability = (
            np.zeros((len(longer.items), part.shape[1]), dtype=part.dtype) for part in found
        )
        items[where], probability[where] = found
        return SoftTargets(items, probability, self.config.use_soft)

    def _with_items(
        self, dataset: SequenceDataset, chosen: Int64[np.ndarray, " S"], seed: int
    ) -> SequenceDataset:
        """The same sequences, the chosen ones with generated items."""
        real, k = dataset.real(), self.config.n_condition
        if self.config.condition == "published":
            return dataset.prepend(self._generated(real.select(chosen), seed), chosen)
        starts = real.starts[chosen]
        heads, which = np.unique(
            padded(real.log.items, starts, starts + k), axis=0, return_inverse=True
        )
        heads = heads.astype(np.int32)
        generated = self._behind(heads, real.catalog, seed)[which.reshape(-1)]
        return dataset.prepend(generated, chosen, n_context=k, before=self.config.before)

    def _behind(
        self, heads: Int32[np.ndarray, "S k"], catalog: Catalog, seed: int
    ) -> Int32[np.ndarray, "S M"]:
        """Items for histories that begin so.

        They follow from the beginning and the seed alone, and so are remembered: training, each
        protocol of a measurement and every request ask for the same ones.
        """
        names = [(seed, head.tobytes()) for head in heads]
        known = [self._remembered.get(name) for name in names]
        new = np.flatnonzero([items is None for items in known])
        keys = row_keys(torch.from_numpy(heads[new])).numpy() % 2**62
        offsets = np.arange(len(new) + 1) * heads.shape[1]
        conditions = SequenceDataset.from_offsets(
            heads[new].reshape(-1), offsets, catalog, keys + self.catalog.n_users
        )
        generated = self._generated(conditions, seed)
        if len(self._remembered) + len(new) > self.remembers:
            self._remembered.clear()
        if len(new) <= self.remembers:
            self._remembered.update(zip([names[i] for i in new], generated, strict=True))
        found = np.empty((len(heads), generated.shape[1]), dtype=np.int32)
        found[new] = generated
        for number, items in enumerate(known):
            if items is not None:
                found[number] = items
        return found

    def _generated(self, conditions: SequenceDataset, seed: int) -> Int32[np.ndarray, "S M"]:
        """Items for these sequences; 0 where one is not probable enough."""
        items, probability = self.likely(conditions, seed, self.config.before)
        if probability is None:
            return items
        probable: np.ndarray = np.where(probability >= self.config.use_threshold, items, PAD)
        return probable

    def _chosen(self, real: SequenceDataset) -> Int64[np.ndarray, " S"]:
        """Indices of the sequences that are given items."""
        causal = self.config.condition == "causal"
        given = real.lengths >= (self.config.n_condition if causal else 1)
        index, keys = self._keys_of_long(real)
        given[index] &= ~torch.isin(keys, self.long_histories.cpu()).numpy()
        return np.flatnonzero(given)

    def _keys_of_long(
        self, real: SequenceDataset
    ) -> tuple[Int64[np.ndarray, " S"], Int64[Tensor, " S"]]:
        """Sequences longer than `max_history`, and keys of their beginnings, by which they are
        known however they go on."""
        longest = self.config.max_history
        if longest is None:
            return np.zeros(0, dtype=np.int64), torch.zeros(0, dtype=torch.int64)
        index = np.flatnonzero(real.lengths > longest)
        starts = real.starts[index]
        return index, row_keys(
            torch.from_numpy(padded(real.log.items, starts, starts + longest + 1))
        )


class ParallelAugmenter(Augmenter):
    """An augmenter that adds alternative copies of each training sequence."""

    training_only = True

    @abstractmethod
    def require_epochs(self, epochs: int) -> None:
        """Raises ConfigError if `epochs` is too small for the curriculum to reach every copy."""


AUGMENTERS: Registry[type[Augmenter]] = method_registry(Augmenter, "diffuserec.augmenters")
Augmenter.registry = AUGMENTERS
"""Augmenters, one file each: dataset in, augmented dataset out. The folder is the list of them."""
