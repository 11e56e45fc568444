"""Attributes against what they are for: items that training does not hold, and generated items."""

import numpy as np
import pytest

import diffuserec as dr
from diffuserec.data import SequenceDataset, Store, new_items
from diffuserec.errors import ConfigError
from diffuserec.models.methods import find_augmenter

STORE = Store(n_users=300, n_items=120, n_categories=8, seed=0).dataset()
SMALL = {"dim": 16, "n_layers": 1, "epochs": 6, "learning_rate": 5e-3}
QUIET = dr.Runtime(seed=1, progress=False)


def test_attributes_rank_items_without_an_interaction_above_chance() -> None:
    split = new_items(STORE, 0.1, seed=0)
    assert not split.train.item_counts()[split.test.targets].any()
    chance = (120 - split.test.histories.lengths.mean() - 1) / 2
    of_new, of_others = {}, {}
    for on in (False, True):
        model = dr.SASRec(**SMALL, item_features=on).fit(split.train, runtime=QUIET)
        of_new[on], of_others[on] = (
            dr.evaluate(model, queries).per_user["target_rank"].mean()
            for queries in (split.test, split.valid)
        )
    assert of_new[True] < 0.75 * chance
    assert of_new[False] > chance  # nothing ever spoke for them
    assert of_others[True] < 1.1 * of_others[False]  # and the others do not pay for it


def test_a_generator_knows_items_by_their_attributes() -> None:
    """Around an item that training does not hold, items of its category are generated."""
    split = new_items(STORE, 0.1, seed=0)
    unseen = np.flatnonzero(split.train.item_counts()[1:] == 0) + 1
    category = STORE.catalog.attributes["category"].to_numpy()
    shares = []
    for on in (False, True):
        method = find_augmenter("maskdiff")(
            **SMALL, n_items=3, max_len=20, window=0, item_features=on
        ).fit(split.train, runtime=QUIET)
        alone = SequenceDataset.from_lists([[int(item)] for item in unseen], STORE.catalog)
        made = method.insert(alone, np.zeros(len(unseen), dtype=np.int64), 3).items
        shares.append((category[made - 1] == category[unseen - 1][:, None]).mean())
    assert shares[0] < 0.3  # an eighth by chance
    assert shares[1] > 0.5


def test_a_catalog_without_attributes_is_refused_before_training() -> None:
    bare = dr.SequenceDataset.from_lists([[1, 2, 3], [2, 3, 1]])
    with pytest.raises(ConfigError, match=r"item_features=True needs .*--items FILE"):
        dr.SASRec(item_features=True).fit(bare)
    with pytest.raises(ConfigError, match=r"id_dropout = 0\.1 has no effect with item_features"):
        dr.SASRec(id_dropout=0.1)
