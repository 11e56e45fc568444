"""First mistakes with methods get one line of advice, and tensors count as lists."""

import numpy as np
import pytest
import torch

import diffuserec as dr
from diffuserec.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def split():
    return dr.leave_one_out(dr.Store(n_users=80, n_items=40, seed=1).dataset())


@pytest.fixture(scope="module")
def model(split):
    return dr.Markov().fit(split.train)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"candidates": 5}, "candidates must be"),
        ({"candidates": None}, "candidates must be"),
        ({"augmenter": "x"}, "augmenter must be a fitted augmenter"),
        ({"metrics": "HR@10"}, "metrics must be a list of names"),
        ({"cutoffs": 10}, "cutoffs must be a list"),
        ({"cutoffs": [1.5]}, "cutoffs must be positive"),
        ({"filter_seen": "no"}, "filter_seen must be True or False"),
        ({"batch_size": "8"}, "must be at least 1"),
    ],
)
def test_an_option_that_is_none_is_refused(options, told, split, model) -> None:
    with pytest.raises(ConfigError, match=told):
        dr.evaluate(model, split.test, **options)


def test_other_things_than_asked_for_get_advice(split, model) -> None:
    with pytest.raises(ConfigError, match="takes its settings by name"):
        dr.SASRec(5)
    with pytest.raises(ConfigError, match="load needs the path"):
        dr.load(None)
    with pytest.raises(ConfigError, match="filter_seen must be True or False"):
        model.recommend([[1]], filter_seen="no")
    with pytest.raises(DataError, match=r"give split.valid"):
        dr.Markov().fit(split.train, split)
    augmenter = dr.find_augmenter("random")().fit(split.train)
    with pytest.raises(DataError, match=r"augment needs a dataset of sequences, got a Split"):
        augmenter.augment(split)


def test_a_tensor_is_a_history(split, model) -> None:
    raw = split.train.catalog.item_ids[:2].to_list()
    wanted = model.recommend([raw])
    assert wanted["source"].unique().to_list() == ["model"]
    numbers = np.asarray(raw)
    if numbers.dtype.kind in "iu":
        for history in (torch.from_numpy(numbers), [torch.tensor(number) for number in raw]):
            assert model.recommend([history]).equals(wanted)
