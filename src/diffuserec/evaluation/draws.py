"""Lists of single draws: of a generative model's noise, or of dropout that is left on.

Dropout as draws: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64

from diffuserec.data import Queries
from diffuserec.errors import ConfigError
from diffuserec.evaluation.uncertainty import scored_batches
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.recommender import Recommender, StateRecommender
from diffuserec.models.retrieval import seen_items, top_k


def drawing_of(model: Recommender) -> str | None:
    """What a model's draws are: ``noise`` or ``dropout``; None if it has neither."""
    if model.is_generative:
        return "noise"
    has_dropout = float(getattr(model.config, "dropout", 0.0)) > 0
    return "dropout" if has_dropout and isinstance(model, StateRecommender) else None


@torch.inference_mode()
def best_of_draws(
    model: Recommender,
    queries: Queries,
    n_draws: int,
    length: int,
    *,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> Int64[np.ndarray, "Q N K"]:
    """The best items of each of N draws.

    Noise is drawn for each user; dropout for each batch, so that its draws, and they alone, depend
    on who else is in the batch.

    Args:
        length: K, the items of a draw.

    Returns:
        Best first; -1 where fewer may be shown.

    Raises:
        ConfigError: the model draws no noise and has no dropout, or an argument is below 1.
    """
    kind = drawing_of(model)
    if kind is None:
        raise ConfigError(f"{model.name} draws no noise and has no dropout: its lists are the same")
    if n_draws < 1 or length < 1:
        raise ConfigError(f"n_draws and length must be at least 1, got {n_draws} and {length}")
    shown = queries.histories
    if augmenter is not None:
        shown = augmenter.augment_for_inference(shown, seed)
    made = np.full((len(queries), n_draws, length), -1, dtype=np.int64)
    for draw in range(n_draws):
        batches = scored_batches(
            model,
            replace(queries, histories=shown),
            None,
            n_draws * seed + draw,
            batch_size,
            n_draws=1 if kind == "noise" else None,
            dropout=kind == "dropout",
        )
        for index, scorer in batches:
            hidden = seen_items(queries.histories, index) if filter_seen else None
            items = top_k(scorer, length, hidden)[1].cpu().numpy()
            made[index, draw, : items.shape[1]] = items
    return made
