"""The item table: the one module that owns item embeddings.

Encoders read items with ``embed``, diffusion noises what ``embed`` gives, and states are scored
against ``weight``. Everything a method knows of single items stands here, so that warm starts,
exports and item features need one place alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffuserec.data import PAD, Catalog
from diffuserec.errors import ConfigError
from diffuserec.models.features import FeatureMap, ItemFeatures
from diffuserec.models.parts import drawn
from diffuserec.models.rows import CatalogRows

INIT_STD = 0.02
"""Standard deviation of freshly drawn weights, as in the BERT lineage."""


class ItemTable(CatalogRows):
    """Embeddings of V items, of which 0 is padding, and of special tokens after them.

    An item's embedding is a learned vector of its own. With :meth:`describe` it is that plus a
    learned vector of its attributes, and three things see to it that an item can be ranked by its
    attributes alone:

    * one that training does not hold (:meth:`set_seen`) has no vector and no bias of its own;
    * in training it has no vector at all, so that it is no negative that attributes pay for;
    * in training, own vectors and biases are left out at random (Volkovs et al., DropoutNet,
      NeurIPS 2017), so that those of attributes learn to stand alone.

    Args:
        vocab_size: V.
        dim: width D.
        bias: give every item a bias, one more column of :meth:`weight`.
        n_special: tokens that are no items; the first is number V, ``[mask]`` where there is one.
        of_catalog: whether its rows are the catalog's items, which may have attributes.
    """

    seen: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        bias: bool = False,
        n_special: int = 0,
        of_catalog: bool = True,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.of_catalog = of_catalog
        self.vectors = nn.Embedding(vocab_size + n_special, dim, padding_idx=PAD)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None
        self.features: FeatureMap | None = None
        self.id_dropout = 0.0
        self._made: tuple[Any, tuple[Tensor, Tensor]] | None = None
        self._weight: tuple[Any, Tensor] | None = None

    def describe(self, features: ItemFeatures, id_dropout: float = 0.0) -> None:
        """Adds a learned vector of an item's attributes to its own, whose spread it is drawn with.

        Args:
            id_dropout: chance that an item's own vector is left out in training.
        """
        own = self.vectors.weight.detach()[1 : self.vocab_size]
        self.features = FeatureMap(features, self.vectors.embedding_dim)
        self.features.reset_parameters(INIT_STD if own.is_meta else float(own.std()))
        self.id_dropout = id_dropout
        self.register_buffer("seen", torch.ones(len(self.vectors.weight), dtype=torch.bool))

    def set_seen(self, seen: Bool[Tensor, " V"]) -> None:
        """Says which items training holds; of no effect without attributes."""
        if self.features is not None:
            self.seen[: self.vocab_size] = seen.to(self.seen.device)

    @property
    def mask_token(self) -> int:
        """Number of the first special token."""
        return self.vocab_size

    def reset_parameters(self, std: float = INIT_STD) -> None:
        """Draws all vectors from N(0, std²); padding and biases are 0."""
        nn.init.normal_(self.vectors.weight, std=std)
        with torch.no_grad():
            self.vectors.weight[PAD].zero_()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def embed(self, items: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Embeddings of items and special tokens, by number."""
        if self.features is not None:
            return self._some(items)[0]
        found: Tensor = self.vectors(items)
        return found

    def embeddings(self) -> Float[Tensor, "V D"]:
        """Embeddings of all items, special tokens left out; row 0 is zero."""
        weight: Tensor = self.vectors.weight if self.features is None else self._all()[0]
        return weight if len(weight) == self.vocab_size else weight[: self.vocab_size]

    def weight(self) -> Float[Tensor, "V E"]:
        """Vectors that states are multiplied with: the embeddings, and the bias as a last column.

        Row 0 means nothing: padding is never scored. Outside of training, what has to be put
        together is kept until a parameter changes.
        """
        if self.bias is None:
            return self.embeddings()
        key = self._key() if self._is_fixed else None
        if key is not None and self._weight is not None and self._weight[0] == key:
            return self._weight[1]
        if self.features is None:
            made = torch.cat([self.embeddings(), self.bias[:, None]], dim=1)
        else:
            found, shown = self._all()
            made = torch.cat([found[: self.vocab_size], (self.bias * shown)[:, None]], dim=1)
        self._weight = None if key is None else (key, made)
        return made

    def _key(self) -> list[tuple[int, int]]:
        """Changes when a parameter or a buffer does."""
        parts = (*self.parameters(), *self.buffers())
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parts]

    @property
    def _is_fixed(self) -> bool:
        exporting = torch.compiler.is_exporting()  # then tensors have no place
        return not (self.training or torch.is_grad_enabled() or exporting)

    def _all(self) -> tuple[Float[Tensor, "N D"], Bool[Tensor, " V"]]:
        """Embeddings of all items and special tokens, and which items' own parts are in them.

        Outside of training they are made once and kept until a parameter changes.
        """
        assert self.features is not None
        key = self._key() if self._is_fixed else None
        if self._is_fixed and self._made is not None and self._made[0] == key:
            return self._made[1]
        shown = self._shown(self.seen)
        shown[self.vocab_size :] = True
        described = F.pad(self.features.of_all(), (0, 0, 0, len(self.seen) - self.vocab_size))
        found = self._sum(self.vectors.weight, described, self.seen, shown)
        made = found, shown[: self.vocab_size]
        self._made = (key, made) if self._is_fixed else None
        return made

    def _some(self, items: Int[Tensor, "*n"]) -> tuple[Float[Tensor, "*n D"], Bool[Tensor, "*n"]]:
        """Embeddings of items and special tokens, and whether their own parts are in them."""
        assert self.features is not None
        if self._is_fixed:
            return F.embedding(items, self._all()[0]), self.seen[items]
        is_token = items >= self.vocab_size
        described, seen = self.features.of(items.masked_fill(is_token, PAD)), self.seen[items]
        shown = self._shown(seen, _uniform_by_rows) | is_token
        return self._sum(self.vectors(items), described, seen, shown), shown

    def train(self, mode: bool = True) -> Self:
        """As of every module; what was kept for other modes than training is forgotten."""
        if mode:
            self._made = self._weight = None
        return super().train(mode)

    def _shown(
        self, seen: Bool[Tensor, "*n"], uniform: Callable[..., Tensor] = torch.rand
    ) -> Bool[Tensor, "*n"]:
        """Items whose own part is in: those that training holds, in training not always."""
        if not (self.training and self.id_dropout):
            return seen.clone()
        return seen & (uniform(seen.shape, device=seen.device) >= self.id_dropout)

    def _sum(
        self,
        own: Float[Tensor, "*n D"],
        described: Float[Tensor, "*n D"],
        seen: Bool[Tensor, "*n"],
        shown: Bool[Tensor, "*n"],
    ) -> Float[Tensor, "*n D"]:
        """Own vectors where they are shown and those of attributes; no unseen item in training."""
        found = own * shown[..., None] + described
        return found * seen[..., None] if self.training else found

    @torch.no_grad()
    def deviation(self) -> Float[Tensor, ""]:
        """Standard deviation of the items' embeddings over all items and the width."""
        return self.embeddings()[1:].std()

    def rows(self, items: Int[Tensor, "*n"]) -> Float[Tensor, "*n E"]:
        """The vectors of :meth:`weight` of some items alone, which is all that is read for them."""
        found, shown = (self.embed(items), None) if self.features is None else self._some(items)
        if self.bias is None:
            return found
        sparse = self.vectors.sparse
        bias = torch.gather(self.bias, 0, items.flatten(), sparse_grad=sparse).view(items.shape)
        bias = bias if shown is None else bias * shown
        return torch.cat([found, bias[..., None]], dim=-1)

    def states(self, hidden: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        """States as wide as :meth:`weight`: a constant 1 is added for the bias, if there is one."""
        return hidden if self.bias is None else F.pad(hidden, (0, 1), value=1.0)

    @torch.no_grad()
    def carry_over(self, catalog: Catalog, old: "ItemTable", old_catalog: Catalog) -> int:
        """Takes over what another table learned of the items that both catalogs hold.

        Items are matched by raw id, special tokens by their order, categories by their column and
        text, numbers and vectors by their column and width. Everything else stays as it is.

        Args:
            old: the table to take from, of the same width.

        Returns:
            The number of items that were found.

        Raises:
            ConfigError: the tables differ in width.
        """
        widths = old.vectors.embedding_dim, self.vectors.embedding_dim
        if widths[0] != widths[1]:
            raise ConfigError(
                f"item vectors of width {widths[0]} do not fit a table of width {widths[1]}: set "
                f"dim to {widths[0]}"
            )
        numbers = torch.from_numpy(catalog.encode(old_catalog.item_ids))
        numbers = numbers.to(old.vectors.weight.device)
        known = numbers > 0
        here = numbers[known].to(self.vectors.weight.device)
        moved = [(self.vectors.weight, old.vectors.weight)]
        if self.bias is not None and old.bias is not None:
            moved.append((self.bias, old.bias))
        for mine, learned in moved:
            mine[here] = learned[1 : old.vocab_size][known].to(mine)
            if old.features is not None:  # what an unseen item was drawn with was never used
                mine[here[~old.seen[1 : old.vocab_size][known].to(here.device)]] = 0
        n_special = min(len(t.vectors.weight) - t.vocab_size for t in (self, old))
        theirs = old.vectors.weight[old.vocab_size : old.vocab_size + n_special]
        self.vectors.weight[self.vocab_size : self.vocab_size + n_special] = theirs
        if self.features is not None and old.features is not None:
            self.features.carry_over(old.features)
        return int(known.sum())


def _uniform_by_rows(shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform numbers for rows that may be a part of a batch's."""
    if not shape:
        return torch.rand((), device=device)
    return drawn(lambda n: torch.rand(n, *shape[1:], device=device), shape[0])
