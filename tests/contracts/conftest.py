"""Fitted methods and small logs that the contract tests share."""

import numpy as np
import pytest

pytest.register_assert_rewrite(f"{__package__}.suite")

from diffuserec.data import SequenceDataset, Split, Store, leave_one_out  # noqa: E402
from diffuserec.models.augmenter import Augmenter  # noqa: E402
from diffuserec.models.recommender import Recommender, StateRecommender  # noqa: E402

from .suite import (  # noqa: E402
    CHANGING,
    GENERATIVE,
    PARALLEL,
    RECOMMENDERS,
    fitted,
    frozen,
    with_ids,
)


@pytest.fixture(scope="session")
def split(cycle: SequenceDataset) -> Split:
    return leave_one_out(with_ids(cycle, "int"))


@pytest.fixture(scope="session")
def built_in_store() -> Split:
    """The built-in store, small."""
    return leave_one_out(Store(n_users=80, n_items=60, seed=0).dataset())


@pytest.fixture(params=RECOMMENDERS)
def recommender(request, split: Split) -> Recommender:
    return fitted("recommender", request.param, split)


@pytest.fixture(params=GENERATIVE)
def generative(request, split: Split) -> StateRecommender:
    return fitted("recommender", request.param, split)


@pytest.fixture(params=CHANGING)
def augmenter(request, split: Split) -> Augmenter:
    return fitted("augmenter", request.param, split)


@pytest.fixture(params=PARALLEL)
def parallel(request, split: Split) -> Augmenter:
    return fitted("augmenter", request.param, split)


@pytest.fixture(scope="session")
def mixed(split: Split) -> SequenceDataset:
    """Test histories, one of them empty, users out of order."""
    part = split.test.histories.select(np.arange(30)[::-1]).compact()
    ends = part.ends.copy()
    ends[4] = part.starts[4]
    return frozen(part.view(part.starts, ends).compact())
