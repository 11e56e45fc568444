"""DiffuASR learns nothing from the long users whose error decides when it stops."""

import numpy as np
import pytest
import torch

from diffuserec.augmenters.diffuasr import DiffuASR
from diffuserec.data import SequenceDataset
from diffuserec.models.base import Runtime

M, PER_USER = 2, 5


def private_log(n_users: int) -> SequenceDataset:
    """Every user has items that nobody else has."""
    return SequenceDataset.from_lists(
        [list(range(user * PER_USER + 1, (user + 1) * PER_USER + 1)) for user in range(n_users)]
    )


def moved_users(log: SequenceDataset, seed: int) -> np.ndarray:
    """Share of each user's items whose vectors training moved, from where they were drawn.

    With ``item_embedding="scratch"`` the denoising loss alone trains the item vectors, and a
    vector moves only if the loss reads it: for a user's first items, or as what follows them.
    """
    model = DiffuASR(
        n_items=M,
        condition="published",
        item_embedding="scratch",
        guidance="classifier_free",
        epochs=1,
        batch_size=64,
        num_train_timesteps=50,
        num_inference_steps=5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.take(log.catalog)
    drawn = model.vectors.detach().clone()
    model.fit(log, runtime=Runtime(device="cpu", seed=seed))
    moved = (model.vectors.detach() != drawn).any(1)[1:]
    return moved.view(len(log), PER_USER).float().mean(1).numpy()


@pytest.mark.parametrize("n_users, n_held_out, seed", [(30, 3, 0), (12, 1, 1)])
def test_held_out_users_are_never_trained_on(n_users, n_held_out, seed) -> None:
    moved = moved_users(private_log(n_users), seed)
    # a user is learned from whole or not at all
    assert set(moved.tolist()) == {0.0, 1.0}
    assert int((moved == 0).sum()) == n_held_out
