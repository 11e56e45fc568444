"""S3Rec: its pretraining written out, what a segment is, and two phases with one encoder."""

from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec.training import loop as training
from diffuserec.models.base import Run
from diffuserec.data import SequenceDataset, histories_of, leave_one_out
from diffuserec.models.encoders import TransformerEncoder
from diffuserec.recommenders import s3rec
from diffuserec.recommenders.s3rec import S3Rec, _segments

from .oracles import (
    BATCH,
    LOG,
    PSEUDO,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    next_item_by_hand,
    wild,
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
ROWS = [[3, 1, 4, 1, 5, 9, 2], [2, 6, 5, 3], [8, 7]]


def begun(monkeypatch: pytest.MonkeyPatch, **settings):
    """A model, not trained, and its two calls of training: loss, validation queries, keywords."""
    calls = []

    def instead(model, loss, data, valid, run, **words):
        calls.append((loss, valid, words))
        return []

    split = leave_one_out(LOG)
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_next_item", instead)
        model = S3Rec(**SETTINGS | settings).fit(LOG, split.valid)
    return wild(model), calls


# --- stage 1 -----------------------------------------------------------------------------------


def loss_by_hand(
    model: S3Rec,
    masked: list[list[int]],
    negatives: list[list[int]],
    segments: list[range],
    others: list[list[int]],
) -> torch.Tensor:
    """One sequence at a time, by an encoder that is built to see both ways."""
    c, table = model.config, model.encoder.items.weight
    encoder = TransformerEncoder(V, c.dim, c.n_layers, c.n_heads, c.max_len + 1, 0.0, False, 1)

    def states(items: list[int]) -> torch.Tensor:
        arguments = torch.tensor([items]), torch.tensor([len(items)])
        weights = dict(model.encoder.named_parameters())
        return torch.func.functional_call(encoder, weights, arguments)[0]

    of_items, of_segments = [], []
    for row, places, drawn, segment, other in zip(
        ROWS, masked, negatives, segments, others, strict=True
    ):
        found = states([V if place in places else item for place, item in enumerate(row)])
        for place, negative in zip(places, drawn, strict=True):
            h = model.of_item.weight @ found[place] + model.of_item.bias
            chance = torch.sigmoid(h @ table[row[place]] - h @ table[negative])
            of_items.append(-torch.log(chance))
        inside = dict(zip(segment, other, strict=True))
        context = states([V if place in segment else item for place, item in enumerate(row)])[-1]
        own = states([item if place in segment else V for place, item in enumerate(row)])[-1]
        foreign = states([inside.get(place, V) for place in range(len(row))])[-1]
        context = model.of_segment.weight @ context + model.of_segment.bias
        of_segments.append(-F.logsigmoid(context @ own - context @ foreign))
    items, segments_ = torch.stack(of_items).mean(), torch.stack(of_segments).mean()
    return c.item_weight * items + c.segment_weight * segments_


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.3, 2.0), (0.7, 0.0)], ids=str)
@pytest.mark.parametrize(
    "batch, masked",
    [
        (BATCH, [[0, 2, 6], [3], [0, 1]]),  # 3 and 1 are the newest: masked without being drawn
        (PSEUDO, [[2, 6], [3], [0, 1]]),  # what is generated is not masked
    ],
    ids=["all real", "some generated"],
)
def test_the_loss_of_stage_1_and_its_gradients_written_out(
    monkeypatch, weights, batch, masked
) -> None:
    settings = {"mask_ratio": 0.35, "item_weight": weights[0], "segment_weight": weights[1]}
    model, calls = begun(monkeypatch, **settings)
    drawn = torch.zeros(3, 7, dtype=torch.bool)
    drawn[0, [0, 2]] = drawn[2, 0] = True
    segment, other = torch.zeros(3, 7, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.int64)
    segment[0, 3:5] = segment[1, 2] = segment[2, 1] = True
    other[0, 3:5], other[1, 2], other[2, 1] = torch.tensor([11, 12]), 13, 4
    negatives = [
        [(place + 7 * row) % 13 + 1 for place in places] for row, places in enumerate(masked)
    ]
    asked = []

    def fixed(users: torch.Tensor, n: int, vocab_size: int, seen: torch.Tensor) -> torch.Tensor:
        asked.append((users.tolist(), n, vocab_size, seen.tolist()))
        return torch.tensor([*chain(*negatives)])[:, None]

    def share(real: torch.Tensor, ratio: float) -> torch.Tensor:
        assert ratio == settings["mask_ratio"]
        return drawn & real

    monkeypatch.setattr(s3rec, "random_share", share)
    monkeypatch.setattr(s3rec, "_segments", lambda *_: (segment, other))
    monkeypatch.setattr(s3rec, "uniform_negatives", fixed)
    segments = [range(3, 5), range(2, 3), range(1, 2)]
    expected = loss_by_hand(model, masked, negatives, segments, [[11, 12], [13], [4]])
    assert_same(model, calls[0][0](batch), expected, allow_unused=True)
    users = [row for row, places in enumerate(masked) for _ in places]
    own = [*range(1, V), V + 1, V + 3, 2 * V + 2, 2 * V + 5, 2 * V + 6]  # user · V + item
    assert asked == [(users, 1, V, own)]


def test_a_segment_is_a_run_of_real_items_and_another_of_the_log_takes_its_place() -> None:
    torch.manual_seed(0)
    n_real, lengths = [7, 5, 1, 3, 2], [7, 7, 1, 4, 2]
    real = torch.zeros(5, 8, dtype=torch.bool)
    for row, (n, length) in enumerate(zip(n_real, lengths, strict=True)):
        real[row, length - n : length] = True
    log = torch.arange(100, 112, dtype=torch.int32)
    found = [set() for _ in n_real], [set() for _ in n_real]
    for _ in range(3000):
        segment, other = _segments(real, torch.tensor(lengths), log)
        for row in range(5):
            places = segment[row].nonzero()[:, 0].tolist()
            items = other[row, places].tolist()
            assert items == [*range(items[0], items[0] + len(places))]
            found[0][row].add((places[0], len(places)))
            assert places == [*range(places[0], places[0] + len(places))]
            found[1][row].add(items[0])
    for row, (n, length) in enumerate(zip(n_real, lengths, strict=True)):
        sizes = range(1, max(1, n // 2) + 1)
        runs = {(first, size) for size in sizes for first in range(length - n, length - size + 1)}
        assert found[0][row] == runs
        assert found[1][row] == {*range(100, 112)}


def test_segments_are_taken_from_real_items_of_the_log(monkeypatch) -> None:
    synthetic = np.array([True, False, False, False, True, False, False])
    log = SequenceDataset(
        np.array([5, 1, 2, 3, 6, 4, 1], dtype=np.int32),
        np.array([0, 4, 7]),
        LOG.catalog,
        synthetic=synthetic,
    )
    taken = []

    def watched(real, lengths, everything):
        taken.append(everything.tolist())
        return _segments(real, lengths, everything)

    monkeypatch.setattr(s3rec, "_segments", watched)
    S3Rec(**SETTINGS).fit(log)
    assert taken == [[1, 2, 3, 4, 1]]


# --- both stages -------------------------------------------------------------------------------


def test_only_stage_2_is_validated(monkeypatch) -> None:
    _, calls = begun(monkeypatch, pretrain_epochs=3, pretrain_rows="prefixes", rows="windows")
    (_, first, of_first), (_, second, of_second) = calls
    assert first is None
    assert second is not None
    assert (of_first["phase"], of_first["epochs"], of_first["rows"]) == ("pretrain", 3, "prefixes")
    assert of_second["rows"] == "windows"
    assert "phase" not in of_second
    assert "epochs" not in of_second


@pytest.mark.parametrize("batch", [BATCH, PSEUDO], ids=["all real", "some generated"])
def test_stage_2_is_sasrec(monkeypatch, batch) -> None:
    model, calls = begun(monkeypatch)
    # each prefix by itself: no position may have seen what comes after it
    assert_same(model, calls[1][0](batch), next_item_by_hand(model, batch), allow_unused=True)
    states = model.encoder(torch.tensor([[3, 1, 4]]), torch.tensor([3]))[0]
    with torch.no_grad():
        scores = model.score(
            histories_of(SequenceDataset.from_lists([[3, 1, 4]], LOG.catalog), np.arange(1))
        )
    torch.testing.assert_close(scores[0], model.encoder.items.weight[:V] @ states[2])


def test_stage_1_can_be_left_out(random_log) -> None:
    model = S3Rec(**SETTINGS | {"pretrain_epochs": 0}).fit(random_log)
    assert [record.phase for record in model.curve] == ["fit"]


def test_stage_2_goes_on_from_stage_1(random_log) -> None:
    """Stage 1 moves all; stage 2 begins there and moves all but what only stage 1 has."""
    settings = SETTINGS | {"pretrain_epochs": 2}
    trained, before = S3Rec(**settings), []
    train_next_item = training.train_next_item

    def watched(model, *arguments, **words):
        before.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return train_next_item(model, *arguments, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_next_item", watched)
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

    def fitted(run: Run) -> S3Rec:
        settings = {"epochs": 3, "pretrain_epochs": 3, "dropout": 0.3, "n_layers": 1}
        return S3Rec(**SETTINGS | settings).fit(split.train, split.valid, run)

    whole = fitted(Run(seed=3))
    save, begun_epochs = training._Checkpoint.save, []

    def interrupted(self, records, best):
        save(self, records, best)
        if (records[-1].phase, records[-1].epoch) == (phase, epoch):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted(Run(seed=3, checkpoint=tmp_path))

    def counted(self, records, best):
        begun_epochs.append((records[-1].phase, records[-1].epoch))
        save(self, records, best)

    monkeypatch.setattr(training._Checkpoint, "save", counted)
    resumed = fitted(Run(seed=3, checkpoint=tmp_path, resume=True))
    every = [("pretrain", 0), ("pretrain", 1), ("pretrain", 2), ("fit", 0), ("fit", 1), ("fit", 2)]
    assert begun_epochs == every[every.index((phase, epoch)) + 1 :]
    assert [(record.phase, record.epoch) for record in resumed.curve] == every
    assert [record.valid is None for record in resumed.curve] == [True] * 3 + [False] * 3
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["users", "windows", "prefixes"])
@pytest.mark.parametrize("loss", ["softmax", "bce", "gbce", "sampled_softmax"])
def test_every_loss_and_row_fits(random_log, loss, rows) -> None:
    settings = {"loss": loss, "rows": rows, "pretrain_rows": rows, "n_layers": 1}
    assert_fits(S3Rec, SETTINGS | settings, random_log, Run(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask_ratio": 0}, "mask_ratio: .*greater than 0, got 0"),
        ({"item_weight": -1}, "item_weight: .*greater than or equal to 0, got -1"),
        ({"segment_weight": -0.5}, "segment_weight: .*greater than or equal to 0, got -0.5"),
        ({"pretrain_epochs": -1}, "pretrain_epochs: .*greater than or equal to 0, got -1"),
        ({"pretrain_rows": "last"}, "pretrain_rows: .*'windows' or 'prefixes', got 'last'"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(S3Rec, settings, message)
