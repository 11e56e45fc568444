"""An own head and noise on the input: what a plain model may share with diffusion methods."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec import Runtime, load
from diffuserec.data import histories_of
from diffuserec.models.settings import ControlSettings
from diffuserec.recommenders.bsarec import BSARec
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.training.next_item import encoder_loss

from .oracles import BATCH, LOG, V, untrained

SMALL = {"dim": 8, "max_len": 8, "n_layers": 1, "dropout": 0.0, "batch_size": 8}
METHODS = pytest.mark.parametrize("method", [SASRec, BSARec])


@METHODS
def test_the_loss_of_an_own_head_by_hand(method: type[SASRec]) -> None:
    model = untrained(method, SMALL, tie_head=False)
    assert isinstance(model, method)
    weight, bias = model.own_head.vectors.weight, model.own_head.bias
    states = model.encoder(model.table.vectors.weight[BATCH.items], BATCH.lengths)
    expected = []
    for row, length in enumerate(BATCH.lengths.tolist()):
        for position in range(length):
            logits = weight[1:] @ states[row, position] + bias[1:]
            target = int(BATCH.targets[row, position])
            expected.append(-torch.log_softmax(logits, 0)[target - 1])
    loss = encoder_loss(model, model.config, LOG)(BATCH)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    with torch.no_grad():
        histories = histories_of(LOG, np.array([1, 2]))
        scores = model.score(histories)
        newest = model.encoder.newest(model.table.embed(histories.items), histories.lengths)
        torch.testing.assert_close(scores[:, 1:], newest @ weight[1:].T + bias[1:])


@METHODS
def test_an_own_head_is_learned_and_saved(method: type[SASRec], cycle, tmp_path) -> None:
    tied = method(**SMALL, epochs=1).fit(cycle)
    model = method(**SMALL, epochs=2, tie_head=False, loss="bce").fit(cycle)
    names = set(model.state_dict()) - set(tied.state_dict())
    assert names == {"own_head.vectors.weight", "own_head.bias"}
    assert model.own_head.bias.any()
    model.save(tmp_path / "model")
    histories = histories_of(cycle, np.arange(5))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model").score(histories), model.score(histories))


@METHODS
def test_noise_on_the_input_is_of_training_alone_and_has_its_deviation(method) -> None:
    model = untrained(method, SMALL, input_noise=0.3)
    clean = model.table.embed(BATCH.items)
    assert torch.equal(model.embed(BATCH.items), clean)
    model.train()
    items = torch.ones(400, 100, dtype=torch.int64)
    noise = model.embed(items) - model.table.embed(items)
    deviation = float(model.table.vectors.weight[1:].detach().std())
    assert float(noise.detach().std()) == pytest.approx(0.3 * deviation, rel=0.02)
    assert abs(float(noise.detach().mean())) < 0.01 * deviation
    (gradient,) = torch.autograd.grad(model.embed(items).sum(), model.table.vectors.weight)
    expected = F.one_hot(torch.tensor(1), V)[:, None] * 40_000.0
    torch.testing.assert_close(gradient, expected.expand_as(gradient))


@METHODS
def test_noise_changes_what_is_learned_by_the_seed_alone(method, cycle) -> None:
    def losses(**settings: float) -> list[float]:
        model = method(**SMALL, epochs=2, **settings)
        return [epoch.loss for epoch in model.fit(cycle, runtime=Runtime(seed=3)).curve]

    assert losses(input_noise=0.3) == losses(input_noise=0.3)
    assert losses(input_noise=0.3) != losses()
    assert losses(input_noise=0.0) == losses()


def test_both_are_off_by_default() -> None:
    assert ControlSettings() == ControlSettings(tie_head=True, input_noise=0.0)
