"""Where a fit computes, and at what precision."""

import jaxtyping
import pytest
import torch

from diffuserec.cli import main
from diffuserec.errors import ConfigError
from diffuserec.models.base import Runtime
from diffuserec.training import device_of, train

from .suite import TWO_USERS, fit, pair, pair_after, state


@pytest.mark.parametrize("rank", ["0", "1"])
def test_commands_that_do_not_share_are_refused_in_one_line(monkeypatch, capsys, rank) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("sys.argv", ["diffuserec", "models"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = (
        "diffuserec: several processes were started, and each would do all of this command: start "
        "one, without torchrun; 'diffuserec train' is what several can share\n"
    )
    assert capsys.readouterr().err == (said if rank == "0" else "")


@pytest.mark.parametrize("world_size", [None, "1", ""])
def test_one_process_is_as_good_as_none(monkeypatch, world_size) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    assert device_of(Runtime(device="cpu")) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^device 'cuda' was asked for .*: use --device cpu$"):
        device_of(Runtime(device="cuda"))
    assert device_of(Runtime()) == device_of(Runtime(device="cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"device": "gpu"},
            "device must be one of auto, cpu, cuda, mps, got 'gpu' (did you mean 'cuda'?)",
        ),
        ({"device": "cud"}, "got 'cud' (did you mean 'cuda'?)"),
        ({"device": "cuda:0"}, "got 'cuda:0' (did you mean 'cuda'?)"),
        ({"device": None}, "device must be one of auto, cpu, cuda, mps, got None"),
        ({"precision": "bf32"}, "precision must be one of fp32, bf16, got 'bf32'"),
        ({"precision": "float32"}, "(did you mean 'fp32'?)"),
        ({"precision": 16}, "precision must be one of fp32, bf16, got 16"),
        ({"seed": -1}, "seed must be from 0 to 2^63 - 1, got -1"),
        ({"seed": 2**64}, "seed must be from 0 to 2^63 - 1, got 18446744073709551616"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"resume": "yes"}, "resume True or False, got None and 'yes'"),
        ({"progress": "no"}, "progress must be True, False or None"),
    ],
)
def test_wrong_surroundings_are_refused_in_one_line(given, message) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # a user's types are not enforced
    try:
        with pytest.raises(ConfigError) as caught:
            Runtime(**given)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_greatest_seed_trains(cycle) -> None:
    assert fit(cycle, Runtime(seed=2**63 - 1), epochs=1).curve[0].loss > 0


def test_mps_is_taken_only_where_it_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of(Runtime()).type == "cpu"
    assert device_of(Runtime(device="mps")).type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'mps' was asked for"):
        device_of(Runtime(device="mps"))


def test_a_gpu_is_taken_where_there_is_one(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(Runtime()).type == device_of(Runtime(device="cuda")).type == "cuda"
    assert device_of(Runtime(device="cpu")).type == "cpu"


class Moved:
    """A batch that notes the device it is moved to."""

    def __init__(self) -> None:
        self.device: torch.device | None = None

    def to(self, device: torch.device) -> "Moved":
        self.device = device
        return self


def test_method_and_batches_go_to_the_device_of_the_surroundings() -> None:
    batch = Moved()
    model, _, _ = pair_after(
        lambda model: lambda batch: model.a * 1.0,
        batches=lambda epoch: [batch],
        runtime=Runtime(device="cpu"),
    )
    assert batch.device == model.device == torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_products_in_the_loss_alone(precision) -> None:
    seen, model = [], pair()

    def dtype() -> torch.dtype:
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    def loss(batch: torch.Tensor) -> torch.Tensor:
        seen.append(("loss", dtype()))
        return model.a * 1.0

    train(
        model,
        loss,
        lambda epoch: [torch.zeros(1)],
        n_batches=1,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        epochs=1,
        runtime=Runtime(precision=precision),
        data=TWO_USERS,
        prepare=lambda: seen.append(("prepare", dtype())),
        validate=lambda: seen.append(("validate", dtype())) or 0.0,
    )
    low = torch.bfloat16 if precision == "bf16" else torch.float32
    assert seen == [("prepare", torch.float32), ("loss", low), ("validate", torch.float32)]
    assert model.a.dtype == torch.float32


def test_half_the_precision_learns_nearly_the_same(random_log) -> None:
    high, low = (fit(random_log, Runtime(precision=p), epochs=2) for p in ("fp32", "bf16"))
    assert [e.loss for e in low.curve] == pytest.approx([e.loss for e in high.curve], rel=0.02)
    assert not all(torch.equal(a, state(low)[name]) for name, a in state(high).items())
    assert {p.dtype for p in low.parameters()} == {torch.float32}
