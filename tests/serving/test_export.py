"""Graphs of models give what the models give, at any size; vectors come with raw ids."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from diffuserec import DataError, DreamRec, Markov, Runtime, SASRec, SequenceDataset, Store, load
from diffuserec.augmenters.random import Random
from diffuserec.cli import app
from diffuserec.data import Histories
from diffuserec.errors import ConfigError
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.methods import find_recommender, method_names
from diffuserec.models.recommender import StateRecommender
from diffuserec.serving.export import TOLERANCE, export

RUNTIME = Runtime(device="cpu", progress=False)
STATES = [
    n for n in method_names("recommender") if issubclass(find_recommender(n), StateRecommender)
]


@pytest.fixture(scope="module")
def log() -> SequenceDataset:
    return Store(n_users=60, n_items=40, seed=0).dataset()


def asked(n: int, length: int, vocab_size: int) -> Histories:
    """Random histories, the first as long as can be."""
    generator = torch.Generator().manual_seed(n + length)
    lengths = torch.randint(1, length + 1, (n,), generator=generator)
    lengths[0] = length
    items = torch.randint(1, vocab_size, (n, length), generator=generator)
    items = items.masked_fill(torch.arange(length) >= lengths[:, None], 0)
    return Histories(torch.arange(n) + 1000, items, lengths)


@pytest.fixture(scope="module")
def sasrec(log: SequenceDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sasrec") / "model"
    SASRec(dim=8, max_len=10, epochs=1, n_layers=1, n_heads=1).fit(log, runtime=RUNTIME).save(path)
    return path


def test_an_onnx_graph_gives_scores_and_lists_of_the_model(sasrec: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "sasrec.onnx"
    done = CliRunner().invoke(app, ["export", str(sasrec), "--to", "onnx", "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "differs from the model by" in done.output
    model = load(sasrec)
    about = json.loads((tmp_path / "sasrec.onnx.json").read_text(encoding="utf-8"))
    assert about["item_ids"] == model.catalog.item_ids.to_list()
    assert (about["max_len"], about["padding"], about["scores"]) == (10, "right", "products")
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for n, length in ((1, 1), (7, 4), (2, 10)):
        histories = asked(n, length, model.catalog.vocab_size)
        given = {"items": histories.items.numpy(), "lengths": histories.lengths.numpy()}
        states, scores = session.run(["states", "scores"], given)
        assert states.shape == (n, 1, 8)
        assert np.abs(scores - model.score(histories)[:, 1:].numpy()).max() <= TOLERANCE
    raw = model.catalog.decode(histories.items[0].numpy())
    best = model.recommend([raw], k=1, filter_seen=False)["item_id"][0]
    assert about["item_ids"][int(scores[0].argmax())] == best


@pytest.mark.slow
def test_a_generative_graph_is_given_its_noise(log: SequenceDataset, tmp_path: Path) -> None:
    model = DreamRec(dim=8, max_len=6, epochs=1, n_layers=1, n_draws=2, num_inference_steps=2)
    model.fit(log, runtime=RUNTIME).save(tmp_path / "model")
    done = export(tmp_path / "model", "torch-export", tmp_path / "dreamrec.pt2")
    names = [path.name for path in done.files]
    assert names == ["dreamrec.pt2", "dreamrec-step.pt2", "dreamrec.pt2.json"]
    about = json.loads((tmp_path / "dreamrec.pt2.json").read_text(encoding="utf-8"))
    histories = asked(5, 6, model.catalog.vocab_size)
    keyed = KeyedNoise(3, histories.users)
    x_T, fresh = keyed.normal(2, 8), keyed.normal(2, 8)
    noise = torch.cat([x_T.flatten(1), fresh.flatten(1)], dim=1)
    assert about["graphs"]["dreamrec.pt2"]["noise"] == noise.shape[1]
    graph = torch.export.load(str(tmp_path / "dreamrec.pt2")).module()
    given = {"items": histories.items, "lengths": histories.lengths, "noise": noise}
    states, scores = graph(**given)
    expected = model.states(histories, seed=3)
    assert torch.allclose(states, expected, atol=TOLERANCE)
    chances = (expected @ model.item_weight()[1:].T).softmax(2).mean(1)
    assert torch.allclose(scores, chances, atol=TOLERANCE)
    # two calls of the denoiser, by DDPM's posterior between them, are the unrolled sampler
    step = torch.export.load(str(tmp_path / "dreamrec-step.pt2")).module()
    last, first = 499, 249
    a, b = (float(model.schedule.alpha_bars[t]) for t in (last, first))
    x_0 = step(**given, x_t=x_T[:, None], t=torch.full((5,), last))[:, 0]
    variance = (1 - a / b) * (1 - b) / (1 - a)
    kept = ((1 - b - variance) / (1 - a)) ** 0.5
    x = kept * x_T + (b**0.5 - kept * a**0.5) * x_0 + variance**0.5 * fresh
    x_0 = step(**given, x_t=x[:, None], t=torch.full((5,), first))[:, 0]
    assert torch.allclose(x_0 / 8**0.5, expected, atol=TOLERANCE)
    # a file of before stays
    (tmp_path / "dreamrec.pt2").unlink()
    (tmp_path / "dreamrec.pt2.json").unlink()
    with pytest.raises(DataError, match=r"dreamrec-step\.pt2 exists already"):
        export(tmp_path / "model", "torch-export", tmp_path / "dreamrec.pt2")


def test_vectors_are_parquet_by_raw_id_and_an_exact_index(sasrec: Path, tmp_path: Path) -> None:
    done = export(sasrec, "vectors", tmp_path / "items.parquet")
    model: Any = load(sasrec)
    frame = pl.read_parquet(tmp_path / "items.parquet")
    assert frame["item_id"].equals(model.catalog.item_ids)
    vectors = model.item_weight()[1:].detach().numpy()
    assert np.array_equal(frame["vector"].to_numpy(), vectors)
    if "faiss" in sys.modules:
        faiss = sys.modules["faiss"]
        index = faiss.read_index(str(tmp_path / "items.faiss"))
        _, found = index.search(vectors[:5], 1)
        assert found[:, 0].tolist() == (vectors[:5] @ vectors.T).argmax(1).tolist()
    assert done.difference is None


def test_what_has_no_graph_is_refused_in_one_line(
    log: SequenceDataset, sasrec: Path, tmp_path: Path
) -> None:
    Markov().fit(log).save(tmp_path / "markov")
    for name in ("there.parquet", "beside.faiss", "sasrec-step.onnx"):
        (tmp_path / name).touch()
    for model, to, out, match in (
        (tmp_path / "markov", "vectors", "m.parquet", "without states"),
        (sasrec, "onnx", "sasrec.pt2", "ends in .onnx"),
        (sasrec, "vectors", "there.parquet", "exists already"),
        (sasrec, "vectors", "beside.parquet", "beside.faiss exists already"),
    ):
        with pytest.raises((ConfigError, DataError), match=match) as told:
            export(model, to, tmp_path / out)
        assert "\n" not in str(told.value)


def test_only_an_augmenter_that_changes_histories_keeps_a_graph_from_being_made(
    log: SequenceDataset, sasrec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(sasrec, run / "model")
    Random(n_items=2).fit(log).save(run / "augmenter")
    with pytest.raises(ConfigError, match="trained with random, which changes histories"):
        export(run, "torch-export", tmp_path / "sasrec.pt2")
    export(run, "vectors", tmp_path / "items.parquet")
    monkeypatch.setattr(Random, "training_only", True)
    assert export(run, "torch-export", tmp_path / "sasrec.pt2").difference is not None


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize("name", STATES)
def test_every_model_with_states_has_a_graph(
    name: str, to: Any, log: SequenceDataset, tmp_path: Path
) -> None:
    known = find_recommender(name).Config.model_fields
    small = {"epochs": 1, "pretrain_epochs": 1, "frozen_epochs": 0, "dim": 16, "max_len": 12}
    small |= {"num_train_timesteps": 32, "num_inference_steps": 2, "n_draws": 3, "rounds": 1}
    small |= {"generator_epochs": 1, "n_candidates": 3} if name == "mfgan" else {}
    settings = {key: value for key, value in small.items() if key in known}
    if name == "simdiffrec":
        settings |= {"k_noise": 2, "k_sample": 3, "num_inference_steps": 1}
    if name == "gsasrec":
        settings["n_negatives"] = 5
    find_recommender(name)(**settings).fit(log, runtime=RUNTIME).save(tmp_path / "model")
    out = tmp_path / ("graph.onnx" if to == "onnx" else "graph.pt2")
    difference = export(tmp_path / "model", to, out).difference  # at three sizes
    assert difference is not None
    assert difference <= TOLERANCE
