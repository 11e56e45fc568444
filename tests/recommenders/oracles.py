"""What the tests of recommenders share: small data, untrained models, slow mathematics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuserec.training import loop as training
from diffuserec.models.base import ContrastiveRecommender, Recommender, Run
from diffuserec.data import Batch, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.settings import ContrastiveSettings

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
    places=torch.tensor([6, 10, 12]),
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


def rows_of(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Item ids and lengths."""
    width = max(map(len, lists))
    items = torch.tensor([items + [0] * (width - len(items)) for items in lists])
    return items, torch.tensor([len(items) for items in lists])


def batch_of(lists: list[list[int]]) -> Batch:
    """These sequences, without targets."""
    items, lengths = rows_of(lists)
    return Batch(torch.arange(len(lists)), items, lengths, torch.zeros_like(items), lengths)


def copies(batch: Batch) -> dict[str, Tensor]:
    """Of all tensors of the batch."""
    return {name: value.clone() for name, value in vars(batch).items() if torch.is_tensor(value)}


def assert_unchanged(batch: Batch, before: dict[str, Tensor]) -> None:
    for name, tensor in before.items():
        assert torch.equal(getattr(batch, name), tensor), name


# --- models, not trained -----------------------------------------------------------------------


def shaken(model: Recommender, std: float = 0.5) -> Recommender:
    """With weights so large that attention is not uniform and no two items are alike."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim == 1 else std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model


def wild(model: Recommender) -> Recommender:
    """Shaken, with a padding row of zeros."""
    shaken(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("items.weight"):
                parameter[0] = 0
    return model


def untrained(
    method: type[ContrastiveRecommender], defaults: dict, log: SequenceDataset = LOG, /, **settings
) -> ContrastiveRecommender:
    """A model of the method, with wild weights."""
    model = method(**defaults | settings)
    model.begin(log, Run(seed=2))
    return wild(model)


def with_its_loss(
    method: type[ContrastiveRecommender],
    defaults: dict,
    monkeypatch: pytest.MonkeyPatch,
    log: SequenceDataset = LOG,
    /,
    **settings,
):
    """A model with wild weights, and its loss or updates as its fit would pass them on."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_next_item", lambda _, loss, *__, **___: taken.append(loss))
        model = method(**defaults | settings).fit(log)
    return wild(model), taken[0]


# --- the mathematics written out, one vector at a time -----------------------------------------


def last_state(model: ContrastiveRecommender, items: list[int]) -> Tensor:
    return model.encoder(torch.tensor([items]), torch.tensor([len(items)]))[0, -1]


def next_item_by_hand(model: ContrastiveRecommender, batch: Batch) -> Tensor:
    """Mean over targets of -log softmax, each prefix passed through the encoder by itself."""
    table, losses = model.encoder.items.weight[:V], []
    for row, length in enumerate(batch.lengths.tolist()):
        for place in range(length):
            target = int(batch.targets[row, place])
            if target:
                scores = table[1:] @ last_state(model, batch.items[row, : place + 1].tolist())
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
    """All candidates are every anchor's; the one at its place is the positive."""
    losses = [choice_by_hand(anchor, candidates, own, c) for own, anchor in enumerate(anchors)]
    return torch.stack(losses).mean()


def nt_xent_by_hand(first: list[Tensor], second: list[Tensor], c: ContrastiveSettings) -> Tensor:
    """All views are anchors; all but the anchor are candidates; the other view is the positive."""
    views, n = [*first, *second], len(first)
    losses = []
    for anchor in range(2 * n):
        others = [place for place in range(2 * n) if place != anchor]
        own = others.index(anchor + n if anchor < n else anchor - n)
        losses.append(choice_by_hand(views[anchor], [views[place] for place in others], own, c))
    return torch.stack(losses).mean()


def loss_by_hand(
    model: ContrastiveRecommender, batch: Batch, first: list[list[int]], second: list[list[int]]
) -> Tensor:
    """Of the next items, and of two views that are given by their items."""
    c = model.config
    views = ([last_state(model, view) for view in views] for views in (first, second))
    return next_item_by_hand(model, batch) + c.contrast_weight * nt_xent_by_hand(*views, c)


# --- what is asserted of every method ----------------------------------------------------------


def gradients(
    model: ContrastiveRecommender, loss: Tensor, allow_unused: bool = False
) -> dict[str, Tensor]:
    """Of every parameter; zeros where the loss does not depend on it, if that is allowed."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, materialize_grads=allow_unused)
    return dict(zip(names, found, strict=True))


def assert_same(
    model: ContrastiveRecommender,
    loss: Tensor,
    expected: Tensor,
    rtol: float = 2e-3,
    allow_unused: bool = False,
) -> None:
    """The same figure and the same gradients."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    theirs = gradients(model, expected, allow_unused)
    for name, mine in gradients(model, loss, allow_unused).items():
        torch.testing.assert_close(mine, theirs[name], rtol=rtol, atol=2e-4, msg=name)


def assert_found_anew(seen: list[tuple[Tensor, Tensor]], k: int) -> None:
    """Of three epochs, the item table and the k similar items that each batch has seen."""
    n_batches, rest = divmod(len(seen), 3)
    assert n_batches > 1
    assert rest == 0
    for first in range(0, len(seen), n_batches):
        table, similar = seen[first]
        for item in range(1, len(table)):
            assert similar[item].tolist() == nearest_by_hand(table, item, k), item
        for _, later in seen[first : first + n_batches]:
            assert torch.equal(later, similar)  # and stay for the epoch
    assert not torch.equal(seen[0][1], seen[-1][1])


def assert_fits(
    method: type[ContrastiveRecommender],
    settings: dict,
    log: SequenceDataset,
    run: Run | None = None,
) -> ContrastiveRecommender:
    """What training leaves is finite and in single precision, and padding is still zero."""
    model = method(**settings).fit(log, run=run)
    assert np.isfinite(model.curve[0].loss)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not model.encoder.table[0].any()
    assert model.gives_logits == (settings.get("loss", "softmax") in ("softmax", "sampled_softmax"))
    return model


def assert_refused(method: type[ContrastiveRecommender], settings: dict, message: str) -> None:
    """In one line that begins with the method's name."""
    with pytest.raises(ConfigError, match=message) as refusal:
        method(**settings)
    assert str(refusal.value).startswith(method.__name__)
    assert "\n" not in str(refusal.value)
