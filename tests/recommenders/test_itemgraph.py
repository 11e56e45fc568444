"""The item graph against loops over pairs and walks."""

import math
from typing import Any

import numpy as np
import pytest

from diffuserec.data import SequenceDataset, histories_of
from diffuserec.recommenders.itemgraph import ItemGraph

SEQUENCES = [[1, 2, 3, 1], [2, 3, 4], [5, 2], [3, 5, 1, 2]]
V = 6


def by_hand(history: list[int], **settings: Any) -> np.ndarray:
    c = ItemGraph(**settings).config
    edges = np.zeros((V, V))
    for sequence in SEQUENCES:
        for a in range(len(sequence)):
            for b in range(a + 1, min(len(sequence), a + c.window + 1)):
                if sequence[a] != sequence[b]:
                    edges[sequence[a], sequence[b]] += 1 / (b - a)
    edges = edges + c.backward * edges.T
    step = np.zeros((V, V))
    for i in range(V):
        for j in range(V):
            if edges[i, j]:
                step[i, j] = {
                    "share": edges[i, j] / edges[i].sum(),
                    "log": math.log1p(edges[i, j]) / math.log1p(edges[i].max()),
                    "cosine": edges[i, j] / math.sqrt(edges[i].sum() * edges[:, j].sum()),
                }[c.scaling]
    counts = np.bincount([item for sequence in SEQUENCES for item in sequence], minlength=V)
    scores = 0.001 * counts / counts.sum()
    for age, item in enumerate(reversed(history[-c.n_newest :])):
        for hop in range(c.n_hops):
            walk = np.linalg.matrix_power(step, hop + 1)[item]
            scores = scores + c.decay**age * c.hop_decay**hop * walk
    return scores


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scaling": "share", "n_hops": 3, "hop_decay": 0.5},
        {"scaling": "log", "window": 1, "backward": 0.0},
        {"scaling": "cosine", "backward": 1.0, "n_newest": 1},
        {"n_newest": 4, "decay": 0.9},
    ],
)
def test_scores_are_sums_of_walks(settings: dict[str, Any]) -> None:
    train = SequenceDataset.from_lists(SEQUENCES)
    model = ItemGraph(**settings).fit(train)
    asked = [[1, 2, 3], [4], [5, 3, 2, 1]]
    found = model.score(
        histories_of(SequenceDataset.from_lists(asked, train.catalog), np.arange(3))
    )
    for row, history in enumerate(asked):
        expected = by_hand(history, **settings)
        np.testing.assert_allclose(found[row, 1:].numpy(), expected[1:], rtol=1e-5, atol=1e-7)
