"""The pairwise loss of BPR as a next-item loss: -log sigmoid of target less negative.

Source: Rendle, Freudenthaler, Gantner & Schmidt-Thieme, UAI 2009 (arXiv 1205.2618).
"""

import torch.nn.functional as F
from torch import Tensor

from diffuserec.data import SequenceDataset
from diffuserec.models.losses import (
    ItemLoss,
    ItemLossFunction,
    LossOptions,
    seen_keys,
    uniform_negatives,
)


def make(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    """The loss, with negatives that the user does not have."""
    seen = seen_keys(data)

    def loss(states: Tensor, targets: Tensor, users: Tensor, vectors: Tensor) -> Tensor:
        n = options.n_negatives or 1
        drawn = uniform_negatives(users, n, len(vectors), seen.to(users.device))
        positive = (states * vectors[targets]).sum(1, keepdim=True)
        negative = (states[:, None] * vectors[drawn]).sum(2)
        return F.softplus(negative - positive).mean()

    return loss


BPR = ItemLoss(make, n_negatives=1)
