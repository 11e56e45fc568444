"""S3Rec: its pretraining written out, the segments, and two phases with one encoder."""

from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec import Runtime
from diffuserec.data import Batch, SequenceDataset, histories_of, leave_one_out
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.recommenders import s3rec
from diffuserec.recommenders.s3rec import S3Rec
from diffuserec.training.checkpoint import Checkpoint

from .oracles import (
    BATCH,
    LOG,
    MASK,
    PSEUDO,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    next_item_by_hand,
    with_its_phases,
)

SETTINGS = {
    "dim": 8,
    "max_len": 6,
    "n_layers": 2,
    "n_heads": 2,
    "dropout": 0.0,
    "batch_size": 64,
    "epochs": 1,
    "pretrain_epochs": 1,
}
SEQUENCES = [[3, 1, 4, 1, 5, 9, 2], [2, 6, 5, 3], [8, 7]]
begun = partial(with_its_phases, S3Rec, SETTINGS)


def shown_to_encoder(model: S3Rec) -> list[torch.Tensor]:
    """The list to which the items of each call of the encoder will be added."""
    found: list[torch.Tensor] = []

    def decoded(module, inputs):
        same = (inputs[0][:, :, None] == model.table.vectors.weight).all(-1)
        assert bool((same.sum(-1) == 1).all())
        found.append(same.int().argmax(-1))

    model.encoder.register_forward_pre_hook(decoded)
    return found


# --- stage 1 -----------------------------------------------------------------------------------


def loss_by_hand(
    model: S3Rec, versions: list[list[list[int]]], negatives: list[list[int]]
) -> torch.Tensor:
    """Loss of one sequence at a time, by an encoder that is built to see both ways.

    Args:
        model: of the weights.
        versions: of each sequence, with masked items, with a masked segment, with its own segment
            alone, and with another segment alone.
        negatives: of each sequence, one for each masked item.
    """
    c, table = model.config, model.table.vectors.weight
    encoder = TransformerEncoder(c.dim, c.max_len + 1, 0.0, c.encoder_config(), causal=False)

    def states(items: list[int]) -> torch.Tensor:
        arguments = table[torch.tensor([items])], torch.tensor([len(items)])
        weights = dict(model.encoder.named_parameters())
        return torch.func.functional_call(encoder, weights, arguments)[0]

    of_items, of_segments = [], []
    for items, (masked, *segments), drawn in zip(SEQUENCES, versions, negatives, strict=True):
        found = states(masked)
        hidden = [position for position, item in enumerate(masked) if item == MASK]
        for position, negative in zip(hidden, drawn, strict=True):
            h = model.of_item.weight @ found[position] + model.of_item.bias
            chance = torch.sigmoid(h @ table[items[position]] - h @ table[negative])
            of_items.append(-torch.log(chance))
        context, own, foreign = (states(version)[-1] for version in segments)
        context = model.of_segment.weight @ context + model.of_segment.bias
        of_segments.append(-F.logsigmoid(context @ own - context @ foreign))
    items, segments = torch.stack(of_items).mean(), torch.stack(of_segments).mean()
    return c.item_weight * items + c.segment_weight * segments


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.3, 2.0), (0.7, 0.0)], ids=str)
@pytest.mark.parametrize(
    "batch, masked",
    [
        (BATCH, [[0, 2, 6], [3], [0, 1]]),  # 3 and 1 are the newest: masked without being drawn
        (PSEUDO, [[2, 6], [3], [0, 1]]),  # generated items are not masked
    ],
    ids=["all real", "some generated"],
)
def test_the_loss_of_stage_1_and_its_gradients_written_out(
    monkeypatch, weights, batch, masked
) -> None:
    settings = {"mask_ratio": 0.35, "item_weight": weights[0], "segment_weight": weights[1]}
    model, phases = begun(monkeypatch, **settings)
    drawn = torch.zeros(3, 7, dtype=torch.bool)
    drawn[0, [0, 2]] = drawn[2, 0] = True
    negatives = [[(p + 7 * n) % 13 + 1 for p in positions] for n, positions in enumerate(masked)]
    asked = []

    def fixed(users: torch.Tensor, n: int, vocab_size: int, seen: torch.Tensor) -> torch.Tensor:
        asked.append((users.tolist(), n, vocab_size, seen.tolist()))
        return torch.tensor([*chain(*negatives)])[:, None]

    def share(real: torch.Tensor, ratio: float) -> torch.Tensor:
        assert ratio == settings["mask_ratio"]
        return drawn & real

    monkeypatch.setattr(s3rec, "random_share", share)
    monkeypatch.setattr(s3rec, "uniform_negatives", fixed)
    shown = shown_to_encoder(model)
    torch.manual_seed(0)
    loss = phases[0][0](batch)
    versions = [
        [shown[0][n + 3 * version, : len(items)].tolist() for version in range(4)]
        for n, items in enumerate(SEQUENCES)
    ]
    for items, (with_masks, *_), hidden in zip(SEQUENCES, versions, masked, strict=True):
        assert with_masks == [MASK if p in hidden else item for p, item in enumerate(items)]
    assert_same(model, loss, loss_by_hand(model, versions, negatives), allow_unused=True)
    users = [n for n, positions in enumerate(masked) for _ in positions]
    own = [*range(1, V), V + 1, V + 3, 2 * V + 2, 2 * V + 5, 2 * V + 6]  # user · V + item
    assert asked == [(users, 1, V, own)]


def test_a_segment_is_a_run_of_real_items_and_another_of_the_log_takes_its_place(
    monkeypatch,
) -> None:
    n_real, lengths = [7, 5, 1, 3, 2], [7, 7, 1, 4, 2]
    items = torch.zeros(5, 6, dtype=torch.int64)
    targets, real = torch.zeros_like(items), torch.zeros(5, 6, dtype=torch.bool)
    for n, (count, length) in enumerate(zip(n_real, lengths, strict=True)):
        last = max(1, length - 1)
        items[n, :last] = torch.arange(1, last + 1)
        real[n, length - count : last] = True
        targets[n, last - 1] = 9 if length > 1 else 0  # the last target is an item of the sequence
    of_items = (items > 0).sum(1)
    batch = Batch(torch.arange(5), items, of_items, targets, torch.arange(5), real)
    many = Batch(*(tensor.repeat_interleave(3000, 0) for tensor in batch.tensors.values()))
    log = SequenceDataset.from_lists([[*range(1, 13)]], LOG.catalog)
    log = log.prepend(np.array([[13]], dtype=np.int32), np.array([0]))  # no segment has that
    model, phases = begun(monkeypatch, log)
    shown = shown_to_encoder(model)
    torch.manual_seed(0)
    with torch.no_grad():
        phases[0][0](many)
    whole = many.with_last_target()
    runs, begins = ([set() for _ in n_real] for _ in range(2))
    originals, ends, versions = whole.items.tolist(), whole.lengths.tolist(), shown[0].tolist()
    for n, (original, length) in enumerate(zip(originals, ends, strict=True)):
        context, own, foreign = (versions[n + 15_000 * number] for number in (1, 2, 3))
        inside = [p for p in range(length) if context[p] == MASK]
        assert inside == [*range(inside[0], inside[0] + len(inside))]
        hidden = [MASK] * length + [0] * (7 - length)
        assert context == [MASK if p in inside else item for p, item in enumerate(original)]
        assert own == [original[p] if p in inside else item for p, item in enumerate(hidden)]
        assert foreign == [foreign[p] if p in inside else item for p, item in enumerate(hidden)]
        other = foreign[inside[0] : inside[-1] + 1]
        assert other == [*range(other[0], other[0] + len(inside))]
        runs[n // 3000].add((inside[0], len(inside)))
        begins[n // 3000].add(other[0])
    for n, (count, length) in enumerate(zip(n_real, lengths, strict=True)):
        sizes = range(1, max(1, count // 2) + 1)
        assert runs[n] == {
            (first, size) for size in sizes for first in range(length - count, length - size + 1)
        }
        assert begins[n] == {*range(1, 13)}


# --- both stages -------------------------------------------------------------------------------


def test_only_stage_2_is_validated(monkeypatch) -> None:
    valid = leave_one_out(LOG).valid
    settings = {"pretrain_epochs": 3, "pretrain_examples": "prefixes", "examples": "windows"}
    _, phases = begun(monkeypatch, valid=valid, **settings)
    (_, _, none, first), (_, _, queries, second) = phases
    assert none is None
    assert queries is valid
    assert (first["phase"], first["epochs"], first["examples"]) == ("pretrain", 3, "prefixes")
    assert "examples" not in second  # those of the settings
    assert "phase" not in second
    assert "epochs" not in second


@pytest.mark.parametrize("batch", [BATCH, PSEUDO], ids=["all real", "some generated"])
def test_stage_2_is_sasrec(monkeypatch, batch) -> None:
    model, phases = begun(monkeypatch)
    # each prefix by itself: no position may have seen a later one
    assert_same(model, phases[1][0](batch), next_item_by_hand(model, batch), allow_unused=True)
    states = model.encode(torch.tensor([[3, 1, 4]]), torch.tensor([3]))[0]
    with torch.no_grad():
        scores = model.score(
            histories_of(SequenceDataset.from_lists([[3, 1, 4]], LOG.catalog), np.arange(1))
        )
    torch.testing.assert_close(scores[0], model.table.vectors.weight[:V] @ states[2])


def test_stage_1_can_be_left_out(random_log) -> None:
    model = S3Rec(**SETTINGS | {"pretrain_epochs": 0}).fit(random_log)
    assert [record.phase for record in model.curve] == ["fit"]


def test_stage_2_goes_on_from_stage_1(random_log) -> None:
    """Stage 1 moves all parameters; stage 2 goes on from there, without those of stage 1 alone."""
    settings = SETTINGS | {"pretrain_epochs": 2}
    trained, before = S3Rec(**settings), []
    train_next_item = s3rec.train_next_item

    def watched(model, *arguments, **words):
        before.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return train_next_item(model, *arguments, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3rec, "train_next_item", watched)
        trained.fit(random_log)
    after = trained.state_dict()
    moved = {name for name in after if not torch.equal(before[0][name], before[1][name])}
    assert moved == set(after) - {"popularity"}
    still = {name for name in after if torch.equal(before[1][name], after[name])}
    assert still == {"popularity", *(name for name in after if name.startswith("of_"))}


@pytest.mark.parametrize("phase, epoch", [("pretrain", 1), ("fit", 0), ("fit", 2)])
def test_an_interrupted_run_goes_on_in_its_phase(
    random_log, tmp_path, monkeypatch, phase, epoch
) -> None:
    split = leave_one_out(random_log)

    def fitted(**words) -> S3Rec:
        settings = {"epochs": 3, "pretrain_epochs": 3, "dropout": 0.3, "n_layers": 1}
        return S3Rec(**SETTINGS | settings).fit(split.train, split.valid, Runtime(seed=3, **words))

    whole = fitted()
    save, begun_epochs = Checkpoint.save, []

    def interrupted(self, records, best):
        save(self, records, best)
        if (records[-1].phase, records[-1].epoch) == (phase, epoch):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted(checkpoint=tmp_path)

    def counted(self, records, best):
        begun_epochs.append((records[-1].phase, records[-1].epoch))
        save(self, records, best)

    monkeypatch.setattr(Checkpoint, "save", counted)
    resumed = fitted(checkpoint=tmp_path, resume=True)
    every = [("pretrain", 0), ("pretrain", 1), ("pretrain", 2), ("fit", 0), ("fit", 1), ("fit", 2)]
    assert begun_epochs == every[every.index((phase, epoch)) + 1 :]
    assert [(record.phase, record.epoch) for record in resumed.curve] == every
    assert [record.valid is None for record in resumed.curve] == [True] * 3 + [False] * 3
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize("examples", ["per_user", "windows", "prefixes"])
@pytest.mark.parametrize("loss", ["softmax", "bce", "gbce", "sampled_softmax"])
def test_every_loss_and_example_fits(random_log, loss, examples) -> None:
    settings = {"loss": loss, "examples": examples, "pretrain_examples": examples, "n_layers": 1}
    assert_fits(S3Rec, SETTINGS | settings, random_log, Runtime(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask_ratio": 0}, "mask_ratio: .*greater than 0, got 0"),
        ({"item_weight": -1}, "item_weight: .*greater than or equal to 0, got -1"),
        ({"segment_weight": -0.5}, "segment_weight: .*greater than or equal to 0, got -0.5"),
        ({"pretrain_epochs": -1}, "pretrain_epochs: .*greater than or equal to 0, got -1"),
        ({"pretrain_examples": "last"}, "pretrain_examples: .*'windows' or 'prefixes', got 'last'"),
        ({"encoder": "gru"}, "encoder 'gru' reads forward only, and stage 1 both ways"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(S3Rec, settings, message)
