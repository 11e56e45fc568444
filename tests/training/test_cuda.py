"""Training, ranks and lists on an NVIDIA GPU; skipped where there is none.

python -m pytest tests/training/test_cuda.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffuserec.data import Catalog, SequenceDataset, leave_one_out
from diffuserec.evaluation import evaluate, uncertainty
from diffuserec.models.base import Runtime
from diffuserec.models.items import ItemTable
from diffuserec.models.methods import find_augmenter, find_recommender, load
from diffuserec.training.rows import RowAdam

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ITEMS = 40
SMALL: dict[str, Any] = {
    "dim": 16,
    "max_len": 10,
    "epochs": 2,
    "batch_size": 64,
    "pretrain_epochs": 1,
}
METHODS = [
    "sasrec", "gru4rec", "bert4rec", "diffrec", "simdiffrec", "dreamrec", "acvae", "stosa", "vsan",
    "cl4srec", "contrarec", "duorec", "ecl", "mclrec", "s3rec", "cadirec", "caser", "blockdiffrec",
]  # fmt: skip


class OnlySinglePrecision(TorchDispatchMode):
    """Fails where an operation leaves float64 on the device: others, such as Apple's, lack it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
                assert leaf.dtype != torch.float64, func
        return result


@pytest.fixture(scope="module")
def split():
    """Whoever is at an item goes on to the next: 300 users of 6 to 19 items."""
    generator = np.random.default_rng(0)
    starts = generator.integers(0, ITEMS, 300).tolist()
    lengths = generator.integers(6, 20, 300).tolist()
    lists = [
        [(start + step) % ITEMS + 1 for step in range(length)]
        for start, length in zip(starts, lengths, strict=True)
    ]
    catalog = Catalog(pl.Series("item_id", range(100, 100 + ITEMS)), 300)
    return leave_one_out(SequenceDataset.from_lists(lists, catalog))


def made(name: str, **settings: Any) -> Any:
    found = find_recommender(name)
    known = {key: value for key, value in SMALL.items() if key in found.Config.model_fields}
    return found(**{**known, **settings})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_model_of_the_gpu_is_the_same_on_the_cpu(name, precision, split, tmp_path: Path) -> None:
    with OnlySinglePrecision():
        model = made(name).fit(
            split.train, split.valid, Runtime(device="cuda", precision=precision, seed=3)
        )
        assert model.device.type == "cuda"
        assert all(np.isfinite(epoch.loss) for epoch in model.curve)
        found = evaluate(model, split.test, filter_seen=False)
        lists = model.recommend([[100, 101, 102], [120]], k=5)
    assert len(lists) == 10
    model.save(tmp_path / "model")
    on_cpu = load(tmp_path / "model")
    assert on_cpu.device.type == "cpu"
    again = evaluate(on_cpu, split.test, filter_seen=False)
    # two devices round differently: near ties may change places
    far = (found.per_user["target_rank"] - again.per_user["target_rank"]).abs() > 1
    assert far.mean() <= 0.02
    assert again.metrics["NDCG@10"] == pytest.approx(found.metrics["NDCG@10"], abs=0.02)
    listed = on_cpu.recommend([[100, 101, 102], [120]], k=5)
    assert len(set(lists["item_id"]) & set(listed["item_id"])) >= 0.7 * len(set(lists["item_id"]))


@pytest.mark.parametrize("name", ["sasrec", "diffrec"])
def test_a_fit_resumed_on_the_gpu_ends_as_one_that_was_not_cut(name, split, tmp_path) -> None:
    def fitted(epochs: int, **surroundings: Any) -> Any:
        model = made(name, epochs=epochs)
        return model.fit(split.train, split.valid, Runtime(device="cuda", **surroundings))

    whole = fitted(4)

    class Cut(Exception):
        """After two epochs."""

    def cut(epoch: Any) -> None:
        if epoch.epoch == 1:
            raise Cut

    with pytest.raises(Cut):
        fitted(4, checkpoint=tmp_path, on_epoch=cut)
    resumed = fitted(4, checkpoint=tmp_path, resume=True)
    assert len(resumed.curve) == 4
    for key, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)


def test_uncertainty_and_sampled_candidates_on_the_gpu(split) -> None:
    model = made("diffrec").fit(split.train, runtime=Runtime(device="cuda"))
    with OnlySinglePrecision():
        certain = uncertainty(model, split.test, filter_seen=False)
        found = evaluate(model, split.test, candidates="uniform:5", filter_seen=False)
    assert np.isfinite(certain.to_numpy()).all()
    assert found.per_user["target_rank"].max() <= 5


@pytest.mark.parametrize("name", ["diffuasr", "diff4rec", "asrep"])
def test_augmenters_on_the_gpu(name, split) -> None:
    augmenter = find_augmenter(name)
    settings = {
        "epochs": 1,
        "n_items": 2,
        "pretrain_epochs": 1,
        "model_settings": {"epochs": 1, "dim": 16},
    }
    known = {key: value for key, value in settings.items() if key in augmenter.Config.model_fields}
    with OnlySinglePrecision():
        fitted = augmenter(**known).fit(split.train, split.valid, Runtime(device="cuda"))
        changed = fitted.augment(split.train)
    assert len(changed) == len(split.train)
    assert changed.copies is not None or len(changed.items) > len(split.train.items)


def moved_by_row(device: str) -> torch.Tensor:
    """Item vectors and biases after some steps of a few rows each."""
    torch.manual_seed(0)
    table = ItemTable(ITEMS, 3, bias=True)
    table.reset_parameters(0.5)
    table.to(device)
    optimizer = RowAdam(table.parameters(), 0.05, weight_decay=0.1)
    with optimizer.reading(table):
        for step in range(30):
            items = torch.arange(1, 7, device=device) + step % 20
            optimizer.zero_grad()
            table.rows(items).sub(1).square().sum().backward()
            optimizer.step()
    optimizer.settle()
    return table.weight().detach().cpu()


def test_rows_are_moved_as_on_a_cpu() -> None:
    torch.testing.assert_close(moved_by_row("cuda"), moved_by_row("cpu"), rtol=1e-4, atol=1e-5)
