"""The pairwise loss of BPR as a next-item loss: -log sigmoid of target less negative.

Source: Rendle, Freudenthaler, Gantner & Schmidt-Thieme, UAI 2009 (arXiv 1205.2618).
"""

import torch.nn.functional as F
from torch import Tensor

from diffuserec.data import SequenceDataset
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import (
    ItemLoss,
    ItemLossFunction,
    LossOptions,
    unseen_negatives,
)


def make(options: LossOptions, data: SequenceDataset) -> ItemLossFunction:
    """The loss, with negatives that the user does not have."""
    draw = unseen_negatives(data)

    def loss(states: Tensor, table: ItemTable, targets: Tensor, users: Tensor) -> Tensor:
        drawn = draw(users, options.n_negatives or 1)
        positive = (states * table.rows(targets)).sum(1, keepdim=True)
        negative = (states[:, None] * table.rows(drawn)).sum(2)
        return F.softplus(negative - positive).mean()

    return loss


BPR = ItemLoss(make, n_negatives=1)
