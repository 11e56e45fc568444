"""Updates by row against torch's AdamW over the whole table, and what they leave alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from diffuserec import SASRec, SequenceDataset, leave_one_out
from diffuserec.data import Catalog
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.items import ItemTable
from diffuserec.training import adam, encoder_loss, train_next_item
from diffuserec.training.average import Average
from diffuserec.training.rows import RowAdam, clip_gradients

from .suite import assert_same_fit

V, D = 40, 3


def gradients(n_steps: int, share: float, seed: int = 0) -> list[Tensor]:
    """For each step a gradient of some rows; some rows have long pauses, some never move."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(n_steps):
        often = torch.rand(V, generator=generator) < share
        often[-5:] = False
        often[7] = step % 97 == 0
        often[3] = share == 1 or step == 2
        gradient = torch.randn(V, D, generator=generator) * 10.0 ** torch.arange(-3, D - 3)
        found.append(gradient * often[:, None])
    return found


def by_row(gradient: Tensor) -> Tensor:
    """The gradient as one of its rows alone, the last of which comes in two parts."""
    rows = gradient.any(1).nonzero()[:, 0]
    if not len(rows):
        return torch.sparse_coo_tensor(
            rows[None], gradient[rows], gradient.shape, check_invariants=True
        )
    values = torch.cat([gradient[rows[:-1]], gradient[rows[-1:]] / 2, gradient[rows[-1:]] / 2])
    rows = torch.cat([rows, rows[-1:]])
    return torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=True)


def pair(decay: float, rate: float = 0.01) -> tuple[Any, Any]:
    """One start twice: a table and a dense parameter, AdamW and RowAdam."""
    torch.manual_seed(1)
    mine = nn.ParameterList([nn.Parameter(torch.randn(V, D)), nn.Parameter(torch.randn(4))])
    theirs = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in mine])
    whole = torch.optim.AdamW(theirs, rate, weight_decay=decay)
    return (mine, RowAdam(mine, rate, decay)), (theirs, whole)


def test_weights_that_fade_to_nothing_in_an_epoch_are_those_of_adamw() -> None:
    (mine, rows), (theirs, whole) = pair(decay=10.0, rate=0.05)  # halves them in every step
    for gradient in gradients(300, 0.1):  # 2^300 is beyond float32
        mine[0].grad, theirs[0].grad = by_row(gradient), gradient
        rows.step()
        whole.step()
    rows.settle()
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("share", "decay"), [(0.1, 0.0), (0.02, 0.1), (1.0, 0.1)])
def test_rows_end_where_adamw_over_all_of_them_does(share: float, decay: float) -> None:
    (mine, rows), (theirs, whole) = pair(decay)
    for step, gradient in enumerate(gradients(200, share)):
        for group in (*rows.param_groups, *whole.param_groups):
            group["lr"] = 0.01 * (1 + step % 7)  # a rate that changes
        mine[0].grad, theirs[0].grad = by_row(gradient), gradient
        if step in (50, 51):  # all rows at once, and back
            mine[0].grad = gradient.clone()
        mine[1].grad = theirs[1].grad = gradient[0, :1].expand(4).clone()
        rows.step()
        whole.step()
        if step == 120:
            rows.settle()
        # a row that is read is where it is to be, however long it was left alone
        rows.catch_up(mine[0], torch.tensor([[7, 3], [3, 20]]))
        torch.testing.assert_close(mine[0][[3, 7, 20]], theirs[0][[3, 7, 20]], rtol=1e-3, atol=2e-4)
    rows.settle()
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-6, atol=1e-6)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        ours, other = rows.state[mine[0]][name], whole.state[theirs[0]][name]
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-9)
    assert rows.state_dict().keys() == whole.state_dict().keys()


def test_a_step_touches_its_rows_alone() -> None:
    (mine, rows), _ = pair(decay=0.1)
    start = mine[0].detach().clone()
    average = Average(mine, 10.0, rows)
    gradient = torch.zeros(V, D)
    gradient[[4, 9]] = 1.0
    for _ in range(3):
        mine[0].grad = by_row(gradient)
        rows.step()
        average.update()
    others = [row for row in range(V) if row not in (4, 9)]
    assert torch.equal(mine[0][others], start[others])
    assert not rows.state[mine[0]]["exp_avg"][others].any()
    assert torch.equal(average.values[0][others], start[others])
    assert (mine[0][[4, 9]] != start[[4, 9]]).all()


def test_averages_of_rows_are_those_of_all() -> None:
    (mine, rows), (theirs, whole) = pair(decay=0.0)
    ours, other = Average(mine, 200.0, rows), Average(theirs, 200.0)
    for step, gradient in enumerate(gradients(400, 0.3)):
        mine[0].grad, theirs[0].grad = by_row(gradient), gradient
        if step == 120:
            mine[0].grad = gradient.clone()
        for optimizer, average in ((rows, ours), (whole, other)):
            optimizer.step()
            average.update()
        if step in (150, 399):
            rows.settle()
            ours.settle()
    # an average does not see how momentum ebbs, which is over in a few steps of its two hundred
    apart = (ours.values[0] - other.values[0]).abs().max()
    assert apart < 0.05 * (mine[0] - ours.values[0]).abs().max()
    never = slice(V - 5, V)
    assert torch.equal(ours.values[0][never], other.values[0][never])


def test_gradients_of_rows_and_others_are_cut_together() -> None:
    (mine, _), (theirs, _) = pair(decay=0.0)
    gradient = gradients(1, 0.5)[0]
    mine[0].grad, theirs[0].grad = by_row(gradient), gradient
    mine[1].grad, theirs[1].grad = torch.ones(4), torch.ones(4)
    clip_gradients(mine, 0.7)
    nn.utils.clip_grad_norm_(theirs, 0.7)
    torch.testing.assert_close(mine[0].grad.to_dense(), theirs[0].grad)
    torch.testing.assert_close(mine[1].grad, theirs[1].grad)


@pytest.mark.parametrize("bias", [False, True])
def test_a_table_that_is_read_by_row_learns_what_it_does_whole(bias: bool) -> None:
    found = []
    for optimizer_of in (RowAdam, torch.optim.AdamW):
        torch.manual_seed(0)
        table = ItemTable(V, D, bias=bias, n_special=1)
        table.reset_parameters(0.5)
        optimizer = optimizer_of(table.parameters(), 0.05, weight_decay=0.0)
        if isinstance(optimizer, RowAdam):
            with optimizer.reading(table):
                _learn(table, optimizer)
                assert table.vectors.sparse
            optimizer.settle()
        else:
            _learn(table, optimizer)
        assert not table.vectors.sparse
        found.append(table.weight())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
    assert not found[0][0].any()


def _learn(table: ItemTable, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        items = torch.randint(0, V + 1, (2, 3), generator=generator)
        drawn = torch.randint(1, V, (5,), generator=generator)
        states = table.states(table.embed(items).mean(1))
        loss = (states @ table.rows(drawn).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, RowAdam):
            assert all(p.grad.is_sparse for p in table.parameters())
        optimizer.step()


def large_log(n_items: int = 60_000, n_users: int = 40) -> SequenceDataset:
    lists = [[1 + (17 * user + 3 * p) % 400 for p in range(12)] for user in range(n_users)]
    return SequenceDataset.from_lists(lists, Catalog(pl.Series("item_id", range(n_items)), n_users))


BY_ROW: dict[str, Any] = {
    "dim": 4,
    "n_layers": 1,
    "epochs": 3,
    "batch_size": 8,
    "loss": "sampled_softmax",
    "negatives": "mixed",
    "n_negatives": 20,
    "max_norm": 0.5,
    "weight_decay": 0.01,
    "tie_head": False,
}


def test_a_resumed_fit_by_row_is_an_undisturbed_one(tmp_path: Path) -> None:
    split = leave_one_out(large_log())
    folders = [tmp_path / "whole", tmp_path / "resumed"]

    def stopped(epoch: Epoch) -> None:
        if epoch.epoch == 1:
            raise KeyboardInterrupt

    whole, resumed = SASRec(**BY_ROW), SASRec(**BY_ROW)
    runtimes = [Runtime(seed=2, checkpoint=folder) for folder in folders]
    whole.fit(split.train, split.valid, runtimes[0])
    with pytest.raises(KeyboardInterrupt):
        SASRec(**BY_ROW).fit(split.train, split.valid, replace(runtimes[1], on_epoch=stopped))
    resumed.fit(split.train, split.valid, replace(runtimes[1], resume=True))
    assert_same_fit(whole, resumed, *folders)


def test_a_fit_by_row_is_a_fit_over_all_items() -> None:
    class Whole(SASRec):
        """Moves all items in every step."""

        def learn(self, train: Any, valid: Any, runtime: Runtime) -> list[Epoch]:
            loss, optimizer = (
                encoder_loss(self, self.config, train),
                adam(self.config, self.parameters()),
            )
            return train_next_item(self, loss, train, valid, runtime, optimizer=optimizer)

    data = large_log()
    settings = BY_ROW | {"dropout": 0.0, "average_epochs": 0.0}
    mine, theirs = (method(**settings).fit(data) for method in (SASRec, Whole))
    for (name, ours), other in zip(
        mine.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5, msg=name)
