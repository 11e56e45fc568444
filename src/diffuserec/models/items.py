"""The item table: the one module that owns item embeddings.

Encoders read items with ``embed``, diffusion noises what ``embed`` gives, and states are scored
against ``weight``. Everything a method knows of single items stands here, so that warm starts,
exports and item features need one place alone.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuserec.data import PAD, Catalog
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.rows import CatalogRows

INIT_STD = 0.02
"""Standard deviation of freshly drawn weights, as in the BERT lineage."""


class ItemTable(CatalogRows):
    """Embeddings of V items, of which 0 is padding, and of special tokens after them.

    An item's embedding is a learned vector of its own plus, for each feature, a learned
    projection of its values (a matrix) or a learned vector of its category.

    Args:
        vocab_size: V.
        dim: width D.
        bias: give every item a bias, one more column of :meth:`weight`.
        n_special: tokens that are no items; the first is number V, ``[mask]`` where there is one.
        features: what is known of the items by name: values of shape (V, F), or categories
            numbered from 1, of shape (V,). Row 0 is padding and not read; category 0 means
            unknown and adds nothing.

    Raises:
        DataError: features that are not of V items, not finite, or negative categories.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        bias: bool = False,
        n_special: int = 0,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.vectors = nn.Embedding(vocab_size + n_special, dim, padding_idx=PAD)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None
        self.of_features = nn.ModuleDict()
        for name, values in (features or {}).items():
            values = _checked(name, values, vocab_size)
            self.register_buffer(f"feature_{name}", values)
            if values.is_floating_point():
                self.of_features[name] = nn.Linear(values.shape[1], dim, bias=False)
            else:
                self.of_features[name] = nn.Embedding(int(values.max()) + 1, dim, padding_idx=0)

    @property
    def mask_token(self) -> int:
        """Number of the first special token."""
        return self.vocab_size

    def reset_parameters(self, std: float = INIT_STD) -> None:
        """Draws all vectors from N(0, std²); padding and biases are 0."""
        for module in (self.vectors, *self.of_features.values()):
            nn.init.normal_(module.weight, std=std)  # type: ignore[arg-type]
            if isinstance(module, nn.Embedding):
                with torch.no_grad():
                    module.weight[PAD].zero_()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def embed(self, items: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Embeddings of items and special tokens, by number."""
        found: Tensor = self.vectors(items)
        if self.of_features:
            known = items.masked_fill(items >= self.vocab_size, PAD)
            for name, module in self.of_features.items():
                found = found + module(self.get_buffer(f"feature_{name}")[known])
        return found

    def embeddings(self) -> Float[Tensor, "V D"]:
        """Embeddings of all items, special tokens left out; row 0 is zero."""
        weight: Tensor = self.vectors.weight
        if len(weight) != self.vocab_size:
            weight = weight[: self.vocab_size]
        for name, module in self.of_features.items():
            weight = weight + module(self.get_buffer(f"feature_{name}"))
        return weight

    def weight(self) -> Float[Tensor, "V E"]:
        """Vectors that states are multiplied with: the embeddings, and the bias as a last column.

        Row 0 means nothing: padding is never scored.
        """
        weight = self.embeddings()
        return weight if self.bias is None else torch.cat([weight, self.bias[:, None]], dim=1)

    @torch.no_grad()
    def deviation(self) -> Float[Tensor, ""]:
        """Standard deviation of the items' embeddings over all items and the width."""
        return self.embeddings()[1:].std()

    def rows(self, items: Int[Tensor, "*n"]) -> Float[Tensor, "*n E"]:
        """The vectors of :meth:`weight` of some items alone, which is all that is read for them."""
        found = self.embed(items)
        if self.bias is None:
            return found
        sparse = self.vectors.sparse
        bias = torch.gather(self.bias, 0, items.flatten(), sparse_grad=sparse).view(items.shape)
        return torch.cat([found, bias[..., None]], dim=-1)

    def states(self, hidden: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        """States as wide as :meth:`weight`: a constant 1 is added for the bias, if there is one."""
        return hidden if self.bias is None else F.pad(hidden, (0, 1), value=1.0)

    @torch.no_grad()
    def carry_over(self, catalog: Catalog, old: "ItemTable", old_catalog: Catalog) -> int:
        """Takes over what another table learned of the items that both catalogs hold.

        Items are matched by raw id, special tokens by their order, feature maps of equal shape by
        their name. Everything else stays as it is.

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
        n_special = min(len(t.vectors.weight) - t.vocab_size for t in (self, old))
        theirs = old.vectors.weight[old.vocab_size : old.vocab_size + n_special]
        self.vectors.weight[self.vocab_size : self.vocab_size + n_special] = theirs
        for name in self.of_features.keys() & old.of_features.keys():
            module, other = self.of_features[name], old.of_features[name]
            if module.weight.shape == other.weight.shape:
                module.load_state_dict(other.state_dict())
        return int(known.sum())


def _checked(name: str, values: Tensor, vocab_size: int) -> Tensor:
    """A feature's values as the table keeps them: float32 or int64, row 0 zero."""
    n_dimensions = 2 if values.is_floating_point() else 1
    if values.ndim != n_dimensions or len(values) != vocab_size:
        raise DataError(
            f"item feature {name!r} must have a row for each of {vocab_size} items, padding "
            f"included: floats of shape (V, F) or categories of shape (V,); got {values.dtype} of "
            f"shape {tuple(values.shape)}"
        )
    values = values.float() if values.is_floating_point() else values.long()
    values = values.index_fill(0, torch.tensor([PAD], device=values.device), 0)
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise DataError(f"item feature {name!r} has values that are not finite numbers")
    if not values.is_floating_point() and bool((values < 0).any()):
        raise DataError(
            f"item feature {name!r} has negative categories: number them from 1, 0 is unknown"
        )
    return values
