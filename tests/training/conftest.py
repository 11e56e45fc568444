"""A fit without interruption, which many tests compare theirs with."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite(f"{__package__}.suite")

from diffuserec.data import SequenceDataset  # noqa: E402
from diffuserec.models.base import Runtime  # noqa: E402
from diffuserec.recommenders.sasrec import SASRec  # noqa: E402

from .suite import fit  # noqa: E402


@pytest.fixture(scope="session")
def whole(
    random_log: SequenceDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SASRec, Path]:
    """Four epochs without interruption, and the folder of their checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(random_log, Runtime(seed=3, checkpoint=folder)), folder
