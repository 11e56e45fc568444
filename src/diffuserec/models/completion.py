"""Recognition of training histories, to complete each by the item that came next."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from diffuserec.data import PAD, Histories, Queries, SequenceDataset


class HistoryCompletion(nn.Module):
    """Puts each user's validation item after their training history, and after no other history.

    A training history is recognized by the user's number and a 64-bit hash of its items.
    """

    next_items: Int64[Tensor, " U"]
    hashes: Int64[Tensor, " U"]

    def __init__(self, n_users: int) -> None:
        super().__init__()
        self.register_buffer("next_items", torch.zeros(n_users, dtype=torch.int64))
        self.register_buffer("hashes", torch.zeros(n_users, dtype=torch.int64))

    def remember(self, train: SequenceDataset, valid: Queries) -> None:
        """Takes the training histories and the validation items, as part of the state."""
        self.hashes[torch.from_numpy(train.users)] = _hashes(train)
        users = torch.from_numpy(valid.histories.users)
        self.next_items[users] = torch.from_numpy(valid.targets)

    def forward(self, histories: Histories) -> Histories:
        """These histories, which are on the CPU; those of training one item longer."""
        known = (histories.users < len(self.hashes)).nonzero()[:, 0]
        users, lengths = histories.users[known], histories.lengths[known]
        rows = zip(histories.items[known].numpy(), lengths.tolist(), strict=True)
        same = self.hashes.cpu()[users] == _hashes(items[:length] for items, length in rows)
        added = torch.full_like(histories.lengths, PAD)
        added[known] = self.next_items.cpu()[users] * same
        items = F.pad(histories.items, (0, 1)).scatter(
            1, histories.lengths[:, None], added[:, None]
        )
        return Histories(histories.users, items, histories.lengths + (added != PAD))


def _hashes(sequences: Iterable[np.ndarray]) -> Int64[Tensor, " U"]:
    hashes = [
        hashlib.blake2b(items.astype(np.int32).tobytes(), digest_size=8).digest()
        for items in sequences
    ]
    return torch.from_numpy(np.frombuffer(b"".join(hashes), dtype=np.int64).copy())
