"""The user table: a vector for each user of a log, and one made from the history of anyone else."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor, nn

from diffuserec.data import PAD, Catalog, Histories, SequenceDataset
from diffuserec.data.ids import IdIndex
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.rows import CatalogRows


class UserTable(CatalogRows):
    """Vectors of the users 0..n_users-1, drawn from N(0, 0.01²).

    ``audience[i]`` is the mean vector of the training users who interacted with item i. A user who
    is not among those trained on is represented by the mean of ``audience`` over their history:
    it needs nothing but the history, and is saved like the vectors themselves.
    """

    known: Bool[Tensor, " U"]
    audience: Float[Tensor, "V D"]

    def __init__(self, n_users: int, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(n_users, dim)
        nn.init.normal_(self.vectors.weight, std=0.01)
        self.register_buffer("known", torch.zeros(n_users, dtype=torch.bool))
        self.register_buffer("audience", torch.zeros(vocab_size, dim))

    def forward(self, users: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Vectors of users of the catalog, by number."""
        vectors: Tensor = self.vectors(users)
        return vectors

    def of(self, histories: Histories) -> Float[Tensor, "B D"]:
        """Vectors of known users; for other users, means over the items of their histories."""
        real = (histories.items != PAD)[:, :, None]
        total = (self.audience[histories.items] * real).sum(1)
        found = total / real.sum(1).clamp(min=1)
        if not len(self.known):
            return found
        users = histories.users.clamp(max=len(self.known) - 1)
        own = (histories.users < len(self.known)) & self.known[users]
        return torch.where(own[:, None], self(users), found)

    @torch.no_grad()
    def carry_over(self, catalog: Catalog, old: "UserTable", old_catalog: Catalog) -> int:
        """Takes over the vectors of the users that both catalogs hold, matched by raw id.

        What else there is follows from the vectors, see :meth:`remember`.

        Raises:
            ConfigError: the raw ids of the users are not known, or the widths differ.
        """
        if catalog.user_ids is None or old_catalog.user_ids is None:
            raise ConfigError(
                "vectors of users are matched by raw id, and these users have none: start from a "
                "run whose data is there, on a prepared log"
            )
        if old.vectors.embedding_dim != self.vectors.embedding_dim:
            raise ConfigError(
                f"user vectors of width {old.vectors.embedding_dim} do not fit a table of width "
                f"{self.vectors.embedding_dim}: set dim to the first"
            )
        at = torch.from_numpy(IdIndex(catalog.user_ids).find(old_catalog.user_ids))
        at = at.to(old.vectors.weight.device)
        learned = old.vectors.weight[at >= 0].to(self.vectors.weight)
        self.vectors.weight[at[at >= 0].to(self.vectors.weight.device)] = learned
        return len(learned)

    @torch.no_grad()
    def remember(self, data: SequenceDataset) -> None:
        """Computes `known` and `audience` from the training data and the vectors as they are now.

        The audience of an item without training users is the mean of all of them.

        Raises:
            DataError: a user number that the catalog does not have.
        """
        real = data.real()
        users = np.repeat(np.asarray(real.users), real.lengths)
        if users.max(initial=-1) >= len(self.known):
            raise DataError(
                f"user number {users.max()} has no vector: the catalog of the training data has "
                f"{len(self.known)} users, numbered from 0"
            )
        known = np.zeros(len(self.known), dtype=bool)
        known[users] = True
        vectors = self.vectors.weight.cpu().numpy()
        everyone = vectors[known].sum(0, keepdims=True) / max(1, known.sum())
        size = (len(self.audience), len(known))
        taken = csr_array((np.ones(len(users), dtype=np.float32), (real.items, users)), shape=size)
        taken.data[:] = 1  # however often
        n_users = taken.sum(axis=1)[:, None]
        audience = np.where(n_users > 0, taken @ vectors / np.maximum(n_users, 1), everyone)
        self.known.copy_(torch.from_numpy(known))
        self.audience.copy_(torch.from_numpy(audience))
