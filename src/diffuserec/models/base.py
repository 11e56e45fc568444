"""The contracts: what a recommender and an augmenter are. The file to read first.

The letters of shapes, everywhere: B users of a batch, L positions, D width of embeddings, E width
of scored states, K states a history, V items and padding (number 0), T diffusion steps, M generated
items, Q queries, U users, N interactions.

A method is one file in ``recommenders/`` or ``augmenters/`` with one public class. It declares
``Config`` (its hyper-parameters, which stand nowhere else), ``build`` (its parameters), ``learn``
(called by ``fit``) and what it gives:

* ``states``, vectors whose products with the item table are scores: most recommenders
  (:class:`StateRecommender`);
* ``all_scores``, a score of every item: counting methods (:class:`ScoreRecommender`);
* ``augment``, a dataset with generated items (:class:`Augmenter`).

Everything else here is concrete and final. What a fit needs from its surroundings is a
:class:`Runtime`, which is never saved and never changes what is learned.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from diffuserec.data import Catalog, Queries, SequenceDataset
from diffuserec.data.advice import require_queries, require_sequences
from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.models.artifact import Artifact, write_artifact
from diffuserec.models.config import Settings, by_log, parse_settings, signature_of
from diffuserec.models.features import item_features
from diffuserec.models.items import ItemTable
from diffuserec.models.rows import CatalogRows
from diffuserec.registry import Registry

_MEANT = {"gpu": "cuda", "float32": "fp32", "bfloat16": "bf16"}
"""What other libraries' words for a runtime mean here."""


@dataclass(frozen=True)
class Epoch:
    """Record of one epoch of one phase of a fit.

    Attributes:
        phase: name of the part of the fit that it belongs to.
        epoch: from 0.
        loss: mean of the batches' losses.
        valid: the validation metric, higher is better; None where there is none.
        seconds: of training and what prepares it, without validation.
        watched: other numbers of this epoch, by name.
        validation_seconds: of what was measured after it.
    """

    phase: str
    epoch: int
    loss: float
    valid: float | None
    seconds: float
    watched: dict[str, float] = field(default_factory=dict)
    validation_seconds: float = 0.0


@dataclass(frozen=True)
class Runtime:
    """Surroundings of a fit: never saved with a model, never changing what is learned.

    Attributes:
        device: ``auto`` takes a CUDA device if there is one, else the CPU; ``mps``, Apple's, is
            taken only where it is asked for.
        precision: ``bf16`` runs matrix products in bfloat16 where the processor has them.
        seed: of initialization, order, dropout and negatives; from 0 to 2⁶³ - 1.
        progress: show progress on standard error: a bar on a terminal, else a line an epoch; None
            means when it is a terminal.
        checkpoint: directory for the state after each epoch; None keeps none.
        resume: continue from that directory.
        shared: directory for fits that several methods begin with, each made once; None shares
            none.
        stop_after: epochs after which phases of the fit end, by name, whatever their settings say;
            rates that change over the epochs change as they would have. None ends none.
        on_epoch: called with the record of each epoch once it is in the checkpoint; True ends this
            phase of the fit, as patience would.

    Raises:
        ConfigError: a value that is not one of these.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    progress: bool | None = None
    checkpoint: Path | None = None
    resume: bool = False
    shared: Path | None = None
    stop_after: Mapping[str, int] | None = None
    on_epoch: Callable[[Epoch], bool | None] | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                known = get_args(hint)
                meant = _MEANT.get(value) if isinstance(value, str) else None
                raise ConfigError(
                    f"Runtime: {name} must be one of {', '.join(known)}, got {value!r}"
                    f"{did_you_mean(meant or str(value), known)}"
                )
        if type(self.resume) is not bool or self.progress not in (None, True, False):
            raise ConfigError(
                "Runtime: progress must be True, False or None, and resume True or False, got "
                f"{self.progress!r} and {self.resume!r}"
            )
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise ConfigError(f"Runtime: seed must be a whole number, got {self.seed!r}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"Runtime: seed must be from 0 to 2^63 - 1, got {self.seed}")
        for name in ("checkpoint", "shared"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))

    def within(self, name: str, before: str = "") -> "Runtime":
        """The same surroundings for one part of a fit, with its own checkpoint.

        Args:
            before: put before the names of its phases, which the hook is told of.
        """
        hook = self.on_epoch

        def named(epoch: Epoch) -> bool | None:
            return None if hook is None else hook(replace(epoch, phase=before + epoch.phase))

        checkpoint = self.checkpoint / name if self.checkpoint else None
        ends = {
            phase.removeprefix(before): n_epochs
            for phase, n_epochs in (self.stop_after or {}).items()
            if phase.startswith(before)
        }
        return replace(
            self, checkpoint=checkpoint, stop_after=ends or None, on_epoch=hook and named
        )


class Method(nn.Module, ABC):
    """Common part of recommenders and augmenters: settings, a catalog, state, a place on disk."""

    class Config(Settings):
        """Hyper-parameters of the method."""

    trained: ClassVar[bool] = True
    """Whether it learns by gradient steps; counting methods and the like cost no training."""

    version: ClassVar[int] = 1
    """Counts changes after which it gives other numbers; part of the key of a study's cells."""

    as_published: ClassVar[Mapping[str, Any]] = {}
    """Settings in which the method's paper differs from the defaults here, where that is known; of
    those that it tunes for each log, Amazon Beauty's. The page of the method gives the reasons."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings, by name, with which it becomes the method of another paper, as published there."""

    kind: ClassVar[Literal["recommender", "augmenter"]]
    registry: ClassVar[Registry[Any]]
    """Where methods of its kind are found by name."""

    catalog: Catalog
    config: Settings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls) and "__init__" not in vars(cls):
            cls.__signature__ = signature_of(cls.Config)  # type: ignore[attr-defined]

    def __init__(self, *loose: Any, **hyper_parameters: Any) -> None:
        if loose:
            name = type(self).__name__
            raise ConfigError(
                f"{name} takes its settings by name, such as {name}(epochs=5), got {loose[0]!r}: "
                "'diffuserec models' lists them"
            )
        super().__init__()
        self.given = parse_settings(type(self).Config, hyper_parameters, type(self).__name__)
        self.config = self.given  # fit suits what was not given to the log
        self.curve: list[Epoch] = []  # one record for each epoch of fit; not saved

    @property
    def name(self) -> str:
        """Name under which the method is found; an unregistered one's class name, lower case."""
        return self.registry.name_of(type(self)) or type(self).__name__.lower()

    @property
    def device(self) -> torch.device:
        """Device of its parameters."""
        first = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def max_len(self) -> int | None:
        """Newest items of a history that the method looks at; None if it looks at all."""
        found: int | None = self.config.model_dump().get("max_len")
        return found

    def chosen_settings(self) -> dict[str, Any]:
        """Settings with which a fit without validation queries gives what this fit chose, as JSON
        values: those that are not the defaults, or follow from the log. Epochs are the curve's.
        A method that chooses more by validation than settings and epochs adds it.
        """
        config = self.config
        found = config.model_dump(mode="json")
        fields = type(config).model_fields.items()
        usual = {name: field.get_default(call_default_factory=True) for name, field in fields}
        left = by_log(type(config))
        return {
            name: value
            for name, value in found.items()
            if name in left or getattr(config, name) != usual[name]
        }

    @abstractmethod
    def build(self, catalog: Catalog) -> None:
        """Makes the parameters for this catalog. Draws from torch's default generator."""

    @abstractmethod
    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Learns from `train`; `valid` only decides when to stop.

        Called by :meth:`fit` with parameters built and items counted.

        Returns:
            A record for each epoch; none if nothing is trained in epochs.
        """

    def fit(
        self,
        train: SequenceDataset,
        valid: Queries | None = None,
        runtime: Runtime | None = None,
        *,
        start: "Method | None" = None,
    ) -> Self:
        """Takes the catalog of `train`, builds the parameters and learns; returns itself.

        Args:
            train: sequences to learn from.
            valid: queries that decide when to stop; None trains all epochs.
            runtime: device, precision, seed and the like.
            start: a fitted method of this kind and these settings to begin with, instead of drawn
                parameters. Items and users are matched by raw id, and new ones are drawn; all other
                parameters are taken as they are. The optimizer begins anew.

        Raises:
            ConfigError: settings that do not fit the data, the device or `start`.
            DataError: nothing to learn from, or something else than a dataset and queries.
        """
        require_sequences("fit", train)
        if valid is not None:
            require_queries("fit(train, valid)", valid)
        runtime = runtime or Runtime()
        if not isinstance(runtime, Runtime):
            raise ConfigError(
                f"runtime must be a Runtime, such as Runtime(device='cpu'), got {runtime!r}"
            )
        self.config = self.given.suited_to(train.real())
        with torch.random.fork_rng():
            torch.manual_seed(runtime.seed)
            self.take(train.catalog)
            if start is not None:
                self._take_over(start)
        self.popularity = torch.from_numpy(train.item_counts())
        for table in _tables(self):
            table.set_seen(self.popularity > 0)
        self.eval()
        self.curve = self.learn(train, valid, runtime)
        return self

    def take(self, catalog: Catalog) -> None:
        """Takes the catalog and builds parameters for it, which know nothing yet."""
        self.catalog = catalog
        self.register_buffer("popularity", torch.zeros(catalog.vocab_size, dtype=torch.int64))
        self.build(catalog)
        given = self.config.model_dump()
        if given.get("item_features"):
            features = item_features(catalog)
            for table in _tables(self):
                table.describe(features, given.get("id_dropout", 0.0))

    @property
    def can_start(self) -> bool:
        """Whether a fit can start from this fitted one: it is trained, and not made of others."""
        return self.trained and not any(
            isinstance(part, Method) for part in self.modules() if part is not self
        )

    @torch.no_grad()
    def _take_over(self, start: "Method") -> None:
        """Takes the parameters of a fitted method, rows of items and users by their raw ids.

        Buffers of whole numbers are counts, which a fit makes anew.

        Raises:
            ConfigError: another method, one of other settings, or one that cannot start so.
        """
        if type(start) is not type(self):
            raise ConfigError(
                f"{self.name} can't start from a {type(start).__name__}: give a fitted {self.name}"
            )
        start.require_fitted()
        if not self.can_start:
            raise ConfigError(f"{self.name} can't start from another: it is fitted anew each time")
        tables = {
            name: part for name, part in self.named_modules() if isinstance(part, CatalogRows)
        }
        parameters, theirs = dict(self.named_parameters()), start.state_dict()
        for name, tensor in self.state_dict(keep_vars=True).items():
            if any(name.startswith(f"{table}.") for table in tables):
                continue
            same = name in theirs and theirs[name].shape == tensor.shape
            if same and tensor.is_floating_point():
                tensor.copy_(theirs[name])
            elif not same and name in parameters:
                raise ConfigError(
                    f"{self.name} can't start from one of other settings: {name} differs in shape"
                )
        for name, table in tables.items():
            other = dict(start.named_modules()).get(name)
            if not isinstance(other, CatalogRows):
                raise ConfigError(f"{self.name} can't start from one of other settings: no {name}")
            table.carry_over(self.catalog, other, start.catalog)

    @property
    def is_fitted(self) -> bool:
        """Whether it has a catalog and parameters."""
        return hasattr(self, "catalog")

    def require_fitted(self) -> None:
        """Raises ConfigError if it is not fitted."""
        if not self.is_fitted:
            raise ConfigError(f"this {type(self).__name__} is not fitted: call fit() or load one")

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the parameters and buffers of another method of its settings and catalog.

        Raises:
            RuntimeError: they are not its own.
        """
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            module = self.get_submodule(owner)
            if leaf in module._buffers:  # counts have the shape of what was counted
                setattr(module, leaf, tensor.clone())
        self.load_state_dict(dict(tensors))

    def save(self, path: Path | str) -> None:
        """Writes the method as a directory that ``load`` reads without the training data.

        Raises:
            ConfigError: not fitted, or a class that ``load`` could not find by its name.
            DataError: something else stands at that path.
        """
        self.require_fitted()
        name = self.registry.name_of(type(self))
        if name is None:
            raise ConfigError(
                f"{type(self).__name__} could not be loaded again: register it first with "
                f"diffuserec.register({type(self).__name__}), or declare the entry point "
                f"{self.registry.group!r} in its package"
            )
        tensors = {key: tensor.detach().clone() for key, tensor in self.state_dict().items()}
        config = self.config.model_dump(mode="json")
        write_artifact(path, Artifact(self.kind, name, config, tensors, self.catalog))


def _tables(module: nn.Module) -> Iterator[ItemTable]:
    """Item tables of the catalog's items in a module, but for those of methods inside of it."""
    for child in module.children():
        if isinstance(child, ItemTable) and child.of_catalog:
            yield child
        elif not isinstance(child, Method):
            yield from _tables(child)


def method_registry(base: type[Any], folder: str) -> Registry[Any]:
    """A registry of the methods that extend a base; each file of the folder holds one."""

    def check(part: Any) -> None:
        missing = ", ".join(sorted(getattr(part, "__abstractmethods__", ())))
        if missing:
            raise ConfigError(f"{part.__name__} is not complete: it does not define {missing}")

    return Registry(base.kind, base, folder, check)
