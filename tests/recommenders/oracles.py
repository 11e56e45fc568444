"""Shared parts of the recommenders' tests: small data, untrained models, slow mathematics."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuserec import Recommender, Runtime
from diffuserec.data import Batch, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.training import EncoderRecommender

V, D = 14, 8
MASK = V

SMALL = {
    "dim": D,
    "max_len": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "batch_size": 8,
    "epochs": 1,
    "contrast_weight": 0.7,
}
LOG = SequenceDataset.from_lists([[*range(1, V)], [3, 1], [5, 2, 6]])
BATCH = Batch(
    users=torch.tensor([0, 1, 2]),
    items=torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [8, 0, 0, 0, 0, 0]]),
    lengths=torch.tensor([6, 3, 1]),
    targets=torch.tensor([[1, 4, 1, 5, 9, 2], [6, 5, 3, 0, 0, 0], [7, 0, 0, 0, 0, 0]]),
    last_target_index=torch.tensor([6, 10, 12]),
)
# a position in the middle whose next item is none to learn
GAP = replace(
    BATCH,
    targets=BATCH.targets.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(0)),
)
# the first items of two histories are generated: never a target of anything
PSEUDO = replace(
    BATCH,
    targets=BATCH.targets.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(0)),
    real=(BATCH.items > 0).index_put(
        (torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])), torch.tensor(False)
    ),
)


def ragged(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Padded item numbers, and lengths."""
    width = max(map(len, lists))
    items = torch.tensor([items + [0] * (width - len(items)) for items in lists])
    return items, torch.tensor([len(items) for items in lists])


def batch_of(lists: list[list[int]]) -> Batch:
    """A batch of these sequences, without targets."""
    items, lengths = ragged(lists)
    return Batch(torch.arange(len(lists)), items, lengths, torch.zeros_like(items), lengths)


def clones(batch: Batch) -> dict[str, Tensor]:
    """Clones of all tensors of the batch, by name."""
    return {name: value.clone() for name, value in batch.tensors.items()}


def assert_unchanged(batch: Batch, before: dict[str, Tensor]) -> None:
    for name, tensor in before.items():
        assert torch.equal(getattr(batch, name), tensor), name


# --- models, not trained -----------------------------------------------------------------------


def shaken(model: Recommender, std: float = 0.5) -> Recommender:
    """The model with weights so large that attention is not uniform and no two items are alike."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim == 1 else std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model


def wild(model: Recommender) -> Recommender:
    """The shaken model, with zeros as the embedding of padding."""
    shaken(model)
    with torch.no_grad():
        model.table.vectors.weight[0] = 0
    return model


def built(model: Recommender, log: SequenceDataset, seed: int = 0) -> Recommender:
    """The model with the parameters that a fit with this seed begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.take(log.catalog)
    return model.eval()


def untrained(
    method: type[Recommender], defaults: dict, log: SequenceDataset = LOG, /, **settings
) -> Recommender:
    """A model of the method, with wild weights."""
    return wild(built(method(**defaults | settings), log))


def with_its_phases(
    method: type[Recommender],
    defaults: dict,
    monkeypatch: pytest.MonkeyPatch,
    log: SequenceDataset = LOG,
    /,
    valid=None,
    **settings,
) -> tuple[Recommender, list[tuple]]:
    """A model with wild weights, and what its fit passes on to `train_next_item` in each phase.

    That is the loss or the updates, the data, the validation queries and the keywords.
    """
    phases = []

    def instead(model, loss, data, queries, runtime, **words):
        phases.append((loss, data, queries, words))
        return []

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[method.learn.__module__], "train_next_item", instead)
        model = method(**defaults | settings).fit(log, valid)
    return wild(model), phases


def with_its_loss(
    method: type[Recommender],
    defaults: dict,
    monkeypatch: pytest.MonkeyPatch,
    log: SequenceDataset = LOG,
    /,
    **settings,
):
    """A model with wild weights, and its loss or updates as its fit passes them on."""
    model, phases = with_its_phases(method, defaults, monkeypatch, log, **settings)
    return model, phases[0][0]


# --- the mathematics written out, one vector at a time -----------------------------------------


def states_by_hand(model: EncoderRecommender, items: list[int]) -> Tensor:
    """States of one sequence, from the vectors of its items and tokens."""
    embedded = model.table.vectors(torch.tensor([items]))
    return model.encoder(embedded, torch.tensor([len(items)]))[0]


def last_state(model: EncoderRecommender, items: list[int]) -> Tensor:
    return states_by_hand(model, items)[-1]


def next_item_by_hand(model: EncoderRecommender, batch: Batch) -> Tensor:
    """Mean over targets of -log softmax, each prefix passed through the encoder by itself."""
    table, losses = model.table.vectors.weight[:V], []
    for row, length in enumerate(batch.lengths.tolist()):
        for position in range(length):
            target = int(batch.targets[row, position])
            if target:
                scores = table[1:] @ last_state(model, batch.items[row, : position + 1].tolist())
                losses.append(-torch.log_softmax(scores, 0)[target - 1])
    return torch.stack(losses).mean()


def nearest_by_hand(table: Tensor, item: int, k: int) -> list[int]:
    products = (table.detach() @ table[item].detach()).tolist()
    others = [other for other in range(1, len(table)) if other != item]
    return sorted(others, key=lambda other: -products[other])[:k]


def similarity(a: Tensor, b: Tensor, kind: str) -> Tensor:
    product = a @ b
    return product / (a.square().sum() * b.square().sum()).sqrt() if kind == "cosine" else product


def choice_by_hand(
    anchor: Tensor, candidates: list[Tensor], own: int, c: ContrastiveSettings
) -> Tensor:
    """-log of the probability of the anchor's own candidate."""
    logits = torch.stack([similarity(anchor, other, c.similarity) for other in candidates])
    return -torch.log_softmax(logits / c.temperature, 0)[own]


def one_way_by_hand(
    anchors: list[Tensor], candidates: list[Tensor], c: ContrastiveSettings
) -> Tensor:
    """All candidates are every anchor's; the one of its number is the positive."""
    losses = [choice_by_hand(anchor, candidates, own, c) for own, anchor in enumerate(anchors)]
    return torch.stack(losses).mean()


def nt_xent_by_hand(first: list[Tensor], second: list[Tensor], c: ContrastiveSettings) -> Tensor:
    """All views are anchors; all but the anchor are candidates; the other view is the positive."""
    views, n = [*first, *second], len(first)
    losses = []
    for anchor in range(2 * n):
        others = [view for view in range(2 * n) if view != anchor]
        own = others.index(anchor + n if anchor < n else anchor - n)
        losses.append(choice_by_hand(views[anchor], [views[other] for other in others], own, c))
    return torch.stack(losses).mean()


def loss_by_hand(
    model: EncoderRecommender, batch: Batch, first: list[list[int]], second: list[list[int]]
) -> Tensor:
    """Loss of the next items, and of two views that are given by their items."""
    c = model.config
    views = ([last_state(model, view) for view in views] for views in (first, second))
    return next_item_by_hand(model, batch) + c.contrast_weight * nt_xent_by_hand(*views, c)


# --- assertions about every method --------------------------------------------------------------


def gradients(model: Recommender, loss: Tensor, allow_unused: bool = False) -> dict[str, Tensor]:
    """Gradients of all parameters; zeros where the loss does not depend on one, if allowed."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, materialize_grads=allow_unused)
    return dict(zip(names, found, strict=True))


def assert_same(
    model: Recommender,
    loss: Tensor,
    expected: Tensor,
    rtol: float = 2e-3,
    allow_unused: bool = False,
) -> None:
    """Two losses are equal, and so are their gradients."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    theirs = gradients(model, expected, allow_unused)
    for name, mine in gradients(model, loss, allow_unused).items():
        torch.testing.assert_close(mine, theirs[name], rtol=rtol, atol=2e-4, msg=name)


def assert_found_anew(seen: list[tuple[Tensor, Tensor]], k: int) -> None:
    """Similar items are those of the item table as it is before each of three epochs.

    Args:
        seen: for each batch, the item table and the items that were taken as similar.
        k: similar items of each.
    """
    n_batches, rest = divmod(len(seen), 3)
    assert n_batches > 1
    assert rest == 0
    for first in range(0, len(seen), n_batches):
        table, similar = seen[first]
        for item in range(1, len(table)):
            assert similar[item].tolist() == nearest_by_hand(table, item, k), item
        for _, later in seen[first : first + n_batches]:
            assert torch.equal(later, similar)  # they stay for the epoch
    assert not torch.equal(seen[0][1], seen[-1][1])


def assert_fits(
    method: type[Recommender],
    settings: dict,
    log: SequenceDataset,
    runtime: Runtime | None = None,
) -> Recommender:
    """Training leaves finite parameters in single precision, and padding at zero."""
    model = method(**settings).fit(log, runtime=runtime)
    assert np.isfinite(model.curve[0].loss)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not model.table.embeddings()[0].any()
    logits = settings.get("loss", "softmax") in ("softmax", "sampled_softmax")
    assert model.scores_are_logits == logits
    return model


def assert_refused(method: type[Recommender], settings: dict, message: str) -> None:
    """The settings are refused in one line that begins with the method's name."""
    with pytest.raises(ConfigError, match=message) as refusal:
        method(**settings)
    assert str(refusal.value).startswith(method.__name__)
    assert "\n" not in str(refusal.value)
