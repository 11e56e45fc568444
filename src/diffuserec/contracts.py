"""What a recommender and an augmenter are. The file to read first.

The letters of shapes, everywhere: B users of a batch, L positions, D width, V rows of the item
table (row 0 is padding), T diffusion steps, M generated items, K list length, Q queries, U users,
N interactions.

A method is one file in ``recommenders/`` or ``augmenters/`` with one public class that declares
``Config``, ``build``, ``fit`` and ``score`` (or ``augment``). Everything else here is concrete and
final. Hyper-parameters are the fields of ``Config`` and stand nowhere else; what a run needs from
its surroundings is a :class:`Run`, which is never saved and never changes what is learned.
"""

import difflib
import importlib
import inspect
import itertools
import pkgutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, TypeVar, get_args

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int, Int64
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from diffuserec.artifacts import Artifact, read_artifact, write_artifact
from diffuserec.data import Batch, Catalog, Histories, Queries, RawId, SequenceDataset, histories_of
from diffuserec.draws import Averaged
from diffuserec.errors import ConfigError, DataError
from diffuserec.nn.encoders import SequenceEncoder
from diffuserec.ranking import allowed_mask, hide, seen_pairs, top_k


@dataclass(frozen=True)
class Run:
    """The surroundings of a fit: never saved with a model, never changing what is learned.

    Attributes:
        device: ``auto`` takes a GPU when there is one.
        precision: ``bf16`` runs matrix products in bfloat16 where the processor has them.
        seed: of initialization, order, dropout and negatives.
        progress: show a progress bar; None means when standard error is a terminal.
        checkpoint: directory for the state after each epoch; None keeps none.
        resume: continue from that directory.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    progress: bool | None = None
    checkpoint: Path | None = None
    resume: bool = False

    def stage(self, name: str) -> "Run":
        """The same surroundings for one part of a fit, with its own checkpoint."""
        return replace(self, checkpoint=self.checkpoint / name if self.checkpoint else None)


class Settings(BaseModel):
    """Hyper-parameters: typed, frozen, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Neither a command line nor TOML can say None but by its name."""

        def may_be_none(name: str) -> bool:
            field = cls.model_fields.get(name)
            return field is not None and NoneType in get_args(field.annotation)

        return {k: None if v == "none" and may_be_none(k) else v for k, v in values.items()}

    @property
    def gives_logits(self) -> bool:
        """Whether they make the softmax of a recommender's scores its own distribution."""
        return False


class Method(nn.Module, ABC):
    """What recommenders and augmenters share: settings, a catalog, state, a place on disk."""

    class Config(Settings):
        """Hyper-parameters of the method."""

    catalog: Catalog
    config: Settings

    def __init__(self, **hyper_parameters: Any) -> None:
        super().__init__()
        self.config = parse_settings(type(self).Config, hyper_parameters, type(self).__name__)
        self.curve: list[Any] = []  # one training.Epoch for each epoch of fit; not saved

    @property
    def name(self) -> str:
        """The method's name: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def kind(self) -> Literal["recommender", "augmenter"]:
        return "recommender" if isinstance(self, Recommender) else "augmenter"

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        tensors = [*self.parameters(), *self.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    @abstractmethod
    def build(self, catalog: Catalog) -> None:
        """Makes the parameters for this catalog. Draws from torch's default generator."""

    @abstractmethod
    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Learns from `train`; `valid` only decides when to stop.

        Begins with ``self.begin(train, run)``.
        """

    def begin(self, train: SequenceDataset, run: Run) -> None:
        """Takes the catalog and builds the parameters for it, seeded by the run."""
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            self._take(train.catalog)
        counts = np.bincount(
            train.items[~train.synthetic] if train.synthetic.any() else train.items,
            minlength=train.vocab_size,
        )
        self.popularity = torch.from_numpy(counts)
        self.eval()

    def _take(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.register_buffer("popularity", torch.zeros(catalog.vocab_size, dtype=torch.int64))
        self.build(catalog)

    @property
    def is_fitted(self) -> bool:
        return hasattr(self, "catalog")

    def require_fitted(self) -> None:
        if not self.is_fitted:
            raise ConfigError(f"this {type(self).__name__} is not fitted: call fit() or load one")

    def save(self, path: Path | str) -> None:
        """Writes the method as a directory that :func:`load` reads without the training data.

        Raises:
            ConfigError: not fitted.
            DataError: something else stands at that path.
        """
        self.require_fitted()
        tensors = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        config = self.config.model_dump(mode="json")
        write_artifact(path, Artifact(self.kind, self.name, config, tensors, self.catalog))


class Recommender(Method):
    """Scores every item as the next one of a history."""

    @abstractmethod
    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        """A score for each item, higher is better; column 0 is padding and means nothing.

        Nothing is hidden here. What is random is drawn for each user from (seed, user), so that a
        user's scores do not depend on the rest of the batch.

        Args:
            histories: on this method's device; every one holds at least one item.
            seed: of the noise, for methods that have any.
        """

    @property
    def gives_logits(self) -> bool:
        """Whether the softmax of ``score`` is the model's own distribution over the items."""
        return self.config.gives_logits

    def recommend(
        self,
        histories: Sequence[Sequence[RawId]],
        k: int = 10,
        *,
        filter_seen: bool = True,
        allow: Sequence[RawId] | None = None,
        deny: Sequence[RawId] | None = None,
        on_unknown: Literal["skip", "refuse"] = "skip",
        augmenter: "Augmenter | None" = None,
        n_draws: int | None = None,
        diversity: float = 0.0,
        seed: int = 0,
        batch_size: int = 256,
    ) -> pl.DataFrame:
        """The k best next items of each history, raw ids in and out.

        A history without a known item is answered by popularity. A generative recommender's scores
        are probabilities, the mean of its draws of noise, and come with their spread.

        Args:
            histories: raw item ids, oldest first, one list a query.
            k: list length; a catalog with fewer items gives shorter lists.
            filter_seen: leave out items of the history itself.
            allow: only these items may be shown.
            deny: these may not.
            on_unknown: whether ids that the catalog does not hold are skipped (and counted in the
                column ``n_unknown``) or refused.
            augmenter: lengthens the histories first, as in training.
            n_draws: noise draws of a generative recommender; by default its own number.
            diversity: from 0, which ranks by the mean of the draws, to 1, which ranks by the first
                draw alone, so that every seed gives another list; for generative recommenders.
            seed: of the noise, for methods that have any.
            batch_size: histories scored at once.

        Returns:
            Rows ``query`` (0-based), ``rank`` (from 1), ``item_id``, ``score``, ``n_unknown`` (ids
            of that history that were skipped); best first within a query. A generative
            recommender's rows have ``spread`` too, the standard deviation of the item's
            probability over the draws (0 where popularity answered).

        Raises:
            ConfigError: not fitted, k or n_draws below 1, diversity outside [0, 1], or one of the
                two given to a method without noise.
            DataError: an unknown id in `allow` or `deny`, or in a history when refused.
        """
        self.require_fitted()
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        drawing = self if isinstance(self, GenerativeRecommender) else None
        self._check_drawing(n_draws, diversity)
        dataset, unknown = self._encode(histories, on_unknown)
        mask = allowed_mask(
            self.catalog.vocab_size, self._listed("allow", allow), self._listed("deny", deny)
        )
        longer = dataset if augmenter is None else augmenter.lengthened(dataset, seed)
        frames = [_no_recommendations(self.catalog, drawing is not None)]
        self.eval()
        for first in range(0, len(dataset), batch_size):
            rows = np.arange(first, min(first + batch_size, len(dataset)))
            averaged = None
            if drawing is None:
                scores = self.scores(longer, rows, seed)
            else:
                averaged = drawing.averaged(longer, rows, seed, n_draws)
                scores = averaged.mean * (1 - diversity) + averaged.first * diversity
            scores[:, ~mask.to(scores.device)] = -torch.inf
            hide(scores, seen_pairs(dataset, rows) if filter_seen else None)
            values, items = top_k(scores, k)
            shown = items > 0
            columns = {"score": values}
            if averaged is not None:
                columns = {
                    "score": averaged.mean.gather(1, items.clamp(min=0)),
                    "spread": averaged.std.gather(1, items.clamp(min=0)),
                }
            n_shown = shown.sum(1).cpu().numpy()
            places = torch.arange(1, items.shape[1] + 1, device=items.device).expand_as(items)
            frames.append(
                pl.DataFrame(
                    {
                        "query": np.repeat(rows, n_shown),
                        "rank": places[shown].cpu().numpy(),
                        "item_id": self.catalog.item_ids.gather(items[shown].cpu().numpy() - 1),
                        **{n: v[shown].cpu().double().numpy() for n, v in columns.items()},
                        "n_unknown": np.repeat(unknown[rows], n_shown),
                    }
                )
            )
        return pl.concat(frames)

    def _check_drawing(self, n_draws: int | None, diversity: float) -> None:
        if not isinstance(self, GenerativeRecommender) and (n_draws is not None or diversity != 0):
            raise ConfigError(
                f"{self.name} draws no noise, its lists are always the same: leave out n_draws and "
                "diversity"
            )
        if n_draws is not None and n_draws < 1:
            raise ConfigError(f"n_draws must be at least 1, got {n_draws}")
        if not 0 <= diversity <= 1:
            raise ConfigError(f"diversity must be between 0 and 1, got {diversity}")

    def similar_items(self, items: Sequence[RawId], k: int = 10) -> pl.DataFrame:
        """The items that would be recommended after each of these alone.

        Args:
            items: raw ids.
            k: list length.

        Returns:
            Rows ``target_item_id``, ``rank``, ``item_id``, ``score``.

        Raises:
            DataError: an id that the catalog does not hold.
        """
        found = self.recommend([[item] for item in items], k, on_unknown="refuse")
        targets = pl.DataFrame(
            {
                "query": np.arange(len(items)),
                "target_item_id": self.catalog.item_ids.gather(self.catalog.encode(items) - 1),
            }
        )
        return found.join(targets, on="query", maintain_order="left").select(
            "target_item_id", "rank", "item_id", "score"
        )

    @torch.no_grad()
    def scores(
        self, dataset: SequenceDataset, rows: np.ndarray, seed: int = 0
    ) -> Float[Tensor, "B V"]:
        """Scores for these rows of a dataset, empty histories answered by popularity.

        Args:
            dataset: histories as the method is to see them (already augmented, if at all).
            rows: which sequences of it, shape (B,).
            seed: of the noise, for methods that have any.

        Returns:
            A fresh float32 tensor that the caller may write into. A method's minus infinity
            becomes the least finite number, so that an impossible item stays apart from a hidden
            one.
        """
        least = torch.finfo(torch.float32).min
        known = np.flatnonzero(dataset.lengths[rows] > 0)
        if len(known) == len(rows):
            scored = self.score(histories_of(dataset, rows).to(self.device), seed)
            return torch.clamp(scored.float(), min=least)
        scores = self.popularity.to(torch.float32).expand(len(rows), -1).clone()
        if len(known):
            scored = self.score(histories_of(dataset, rows[known]).to(self.device), seed)
            scores[torch.from_numpy(known).to(scores.device)] = scored.float().clamp(min=least)
        return scores

    def _encode(
        self, histories: Sequence[Sequence[RawId]], on_unknown: str
    ) -> tuple[SequenceDataset, np.ndarray]:
        if isinstance(histories, str) or any(isinstance(h, str | int) for h in histories):
            raise DataError(
                "histories must be a list of lists of item ids, one inner list a user: "
                'recommend([["B0012", "B0440"]])'
            )
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        numbers = self.catalog.encode([item for history in histories for item in history])
        owner = np.repeat(np.arange(len(histories)), lengths)
        unknown = np.bincount(owner[numbers == 0], minlength=len(histories))
        if on_unknown == "refuse" and unknown.any():
            where = int(np.argmax(numbers == 0))
            raw = [item for history in histories for item in history][where]
            raise DataError(
                f"history {owner[where]}: the catalog does not hold item {raw!r} "
                f"({int(unknown.sum())} unknown in all)"
            )
        offsets = np.concatenate([[0], np.cumsum(lengths - unknown)]).astype(np.int64)
        items = numbers[numbers > 0].astype(np.int32)
        # noise belongs to the history itself, wherever it stands in the list
        keys = [zlib.crc32(items[a:b].tobytes()) for a, b in itertools.pairwise(offsets)]
        users = np.array(keys, dtype=np.int64) + self.catalog.n_users
        return SequenceDataset(items, offsets, self.catalog, users), unknown

    def _listed(self, what: str, raw: Sequence[RawId] | None) -> np.ndarray | None:
        if raw is None:
            return None
        numbers = self.catalog.encode(raw)
        if (numbers == 0).any():
            raise DataError(
                f"{what}: the catalog does not hold item {raw[int(np.argmax(numbers == 0))]!r}"
            )
        return numbers


@dataclass(frozen=True, eq=False)
class View:
    """One version of a batch's sequences that training tells from other sequences'.

    Attributes:
        name: what it is, for people.
        items: item numbers, zeros after the end; a number beyond the catalog is ``[mask]``; (B, M).
        lengths: real positions, (B,).
        changed: the positions whose items were chosen anew, (B, L); None where positions do not
            line up with the original's.
        confidence: of the model in what it restores at each position, (B, L), if it has any.
    """

    name: str
    items: Int[Tensor, "B M"]
    lengths: Int[Tensor, " B"]
    changed: Bool[Tensor, "B L"] | None = None
    confidence: Float[Tensor, "B L"] | None = None


class ContrastiveRecommender(Recommender):
    """A recommender that also learns from other versions of its training sequences.

    Attributes:
        encoder: of the sequences; it holds the item embeddings.
    """

    encoder: SequenceEncoder

    @abstractmethod
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        """The versions that training would make of these sequences now.

        What is random is drawn from torch's default generator.

        Args:
            batch: on this method's device.
            train: the dataset that the batch is of.
        """


class GenerativeRecommender(Recommender):
    """A recommender that draws noise: each draw is a distribution over the items.

    ``score`` is the mean of the draws, or stands for it.
    """

    @abstractmethod
    def draws(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Iterator[Float[Tensor, "B V"]]:
        """The probabilities of each draw, one after the other; column 0 is 0.

        Args:
            histories: on this method's device; every one holds at least one item.
            seed: of the noise, which is drawn for each user from (seed, user).
            n_draws: how many; by default as many as ``score`` averages.
        """

    @torch.no_grad()
    def averaged(
        self, dataset: SequenceDataset, rows: np.ndarray, seed: int = 0, n_draws: int | None = None
    ) -> Averaged:
        """The draws for these rows of a dataset, put together.

        An empty history has one draw, popularity.
        """
        known = np.flatnonzero(dataset.lengths[rows] > 0)
        found = None
        if len(known):
            histories = histories_of(dataset, rows[known]).to(self.device)
            found = Averaged.of(self.draws(histories, seed, n_draws))
            if len(known) == len(rows):
                return found
        counts = self.popularity.to(torch.float32) / max(1, int(self.popularity.sum()))
        whole = Averaged.of([counts.expand(len(rows), -1)])
        if found is not None:
            at = torch.from_numpy(known).to(counts.device)
            for field in fields(Averaged):
                getattr(whole, field.name)[at] = getattr(found, field.name)
        return whole


class Augmenter(Method):
    """Adds to sequences: dataset in, dataset out.

    Either items in front of them, marked synthetic, or variants beside them for training
    (:class:`VaryingAugmenter`).
    """

    @abstractmethod
    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same users, with generated items added.

        Pure, and by user: what a user is given depends on (seed, user, that user's own history).

        Args:
            dataset: the histories as they are allowed to be seen.
            seed: of the noise.
        """

    def lengthened(self, histories: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """What a recommender that learned from augmented sequences is shown of histories."""
        return self.augment(histories, seed)


class VaryingAugmenter(Augmenter):
    """An augmenter whose result has variants beside the sequences, for training alone."""

    def lengthened(self, histories: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The histories as they are."""
        return histories

    @abstractmethod
    def require_epochs(self, epochs: int) -> None:
        """Raises a ConfigError where training of so many epochs would not use all variants."""


class PrependingSettings(Settings):
    """Those of an augmenter that puts items in front of histories."""

    n_items: int = Field(10, ge=1)
    """M, the items put in front of a history."""
    max_history: int | None = Field(None, ge=1)
    """Only users with at most so many real items are given any; None means all."""

    def rows(self, dataset: SequenceDataset) -> Int64[np.ndarray, " R"]:
        """The sequences that are given items; empty ones stay empty."""
        lengths = dataset.real_lengths
        longest = np.inf if self.max_history is None else self.max_history
        return np.flatnonzero((lengths > 0) & (lengths <= longest))


AnyMethod = TypeVar("AnyMethod", bound=Method)


def load(path: Path | str) -> Any:
    """Reads a saved recommender or augmenter back, ready to use, on the CPU.

    Raises:
        DataError: the directory is missing, foreign, incomplete or changed.
        ConfigError: it was written by a method that this release does not have.
    """
    artifact = read_artifact(path)
    method = find(artifact.kind, artifact.name)(**artifact.config)
    with torch.random.fork_rng():
        method._take(artifact.catalog)
    try:
        for module_path, tensor in artifact.tensors.items():
            owner, _, leaf = module_path.rpartition(".")
            module = method.get_submodule(owner)
            if leaf in module._buffers:  # counts have the shape of what was counted
                setattr(module, leaf, tensor)
        method.load_state_dict(dict(artifact.tensors))
    except (AttributeError, RuntimeError) as error:
        raise DataError(f"{path}: the weights do not fit the settings ({error})") from error
    return method.eval()


def method_names(kind: str) -> list[str]:
    """Names of all recommenders or augmenters: the files in their folder."""
    package = importlib.import_module(f"diffuserec.{kind}s")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def find(kind: str, name: str) -> type[Any]:
    """The class of a method by its file's name; imports that one module.

    Args:
        kind: ``recommender`` or ``augmenter``.
        name: as :func:`method_names` lists it.

    Raises:
        ConfigError: there is none of that name; says the nearest and all others.
    """
    if kind not in ("recommender", "augmenter"):
        raise ConfigError(f"a method is a recommender or an augmenter, not {kind!r}")
    names = method_names(kind)
    if name not in names:
        raise ConfigError(
            f"no {kind} {name!r}{nearest(name, names)}; there are: {', '.join(names)}"
        )
    module = importlib.import_module(f"diffuserec.{kind}s.{name}")
    wanted = Recommender if kind == "recommender" else Augmenter
    (found,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, wanted)
        and value.__module__ == module.__name__
    )
    return found


def method_summaries() -> list[dict[str, str]]:
    """Kind, name and the first line of the module's docstring, for every method."""
    rows = []
    for kind in ("recommender", "augmenter"):
        for name in method_names(kind):
            module = importlib.import_module(f"diffuserec.{kind}s.{name}")
            summary = (module.__doc__ or "").strip().splitlines()[0]
            rows.append({"kind": kind, "name": name, "summary": summary})
    return rows


def parse_settings(schema: type[Settings], values: dict[str, Any], owner: str) -> Any:
    """Hyper-parameters checked against their schema.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value that is not allowed.
    """
    known = list(schema.model_fields)
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{owner} has no setting {name!r}{nearest(name, known)}; it has: {', '.join(known)}"
            )
    try:
        return schema(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        message = first["msg"].removeprefix("Value error, ")
        got = first["input"] if first["loc"] else values
        raise ConfigError(f"{owner}: {where}: {message}, got {got!r}") from error


def nearest(name: str, known: Sequence[str]) -> str:
    """ " (did you mean 'x'?)", or nothing where no known name is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _no_recommendations(catalog: Catalog, drawn: bool) -> pl.DataFrame:
    return pl.DataFrame(
        schema={
            "query": pl.Int64,
            "rank": pl.Int64,
            "item_id": catalog.item_ids.dtype,
            "score": pl.Float64,
            **({"spread": pl.Float64} if drawn else {}),
            "n_unknown": pl.Int64,
        }
    )
