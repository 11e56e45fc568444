"""The item table: embeddings, weights, tokens, biases, features, and what is carried over."""

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffuserec.data import Catalog
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.items import INIT_STD, ItemTable

V, D = 7, 3
EVERY = torch.arange(V)


def drawn(seed=0, **settings):
    torch.manual_seed(seed)
    table = ItemTable(V, D, **settings)
    table.reset_parameters(std=1.0)
    if table.bias is not None:
        nn.init.normal_(table.bias)
    return table


def catalog(ids):
    return Catalog(pl.Series("item_id", ids), n_users=2)


MATRIX = torch.randn(V, 4, generator=torch.Generator().manual_seed(1))
CATEGORY = torch.tensor([5, 1, 3, 0, 1, 2, 0])


# --- plain --------------------------------------------------------------------------------------


def test_embeddings_by_number():
    table = drawn()
    items = torch.tensor([[3, 0, 6], [3, 1, 0]])
    found = table.embed(items)
    assert found.shape == (2, 3, D)
    assert torch.equal(found, table.embeddings()[items])
    assert torch.equal(table.embeddings(), table.weight())
    assert table.embed(torch.zeros(4, 0, dtype=torch.int64)).shape == (4, 0, D)


def test_padding_is_zero_and_never_learns():
    table = drawn(bias=True, n_special=1, features={"matrix": MATRIX, "category": CATEGORY})
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    for _ in range(2):
        assert not table.embed(torch.tensor([0])).any()
        assert not table.embeddings()[0].any()
        optimizer.zero_grad()
        table.embed(torch.arange(V + 1)).square().sum().backward()
        optimizer.step()


def test_initial_weights_are_normal_in_the_order_of_the_parameters():
    torch.manual_seed(3)
    table = ItemTable(400, 50, bias=True, n_special=2)
    table.reset_parameters()
    assert table.embed(torch.arange(1, 402)).std().item() == pytest.approx(INIT_STD, rel=0.02)
    assert table.embed(torch.arange(1, 402)).mean().abs() < 1e-3
    assert not table.bias.any()
    # the very draws of torch, after those that the constructor made
    torch.manual_seed(3)
    torch.randn(402, 50)
    expected = torch.empty(402, 50).normal_(std=INIT_STD)
    assert torch.equal(table.embed(torch.arange(1, 402)), expected[1:])


def test_weights_are_drawn_with_the_spread_that_is_asked_for():
    table = ItemTable(400, 50, features={"matrix": torch.randn(400, 30)})
    table.reset_parameters(std=2.0)
    for parameter in table.parameters():
        assert parameter[1:].std().item() == pytest.approx(2.0, rel=0.1)


# --- special tokens and biases ------------------------------------------------------------------


def test_special_tokens_have_embeddings_and_no_scores():
    table = drawn(n_special=2)
    assert table.mask_token == V
    tokens = table.embed(torch.tensor([V, V + 1]))
    assert tokens.any(1).all()
    assert not torch.equal(tokens[0], tokens[1])
    assert table.embeddings().shape == table.weight().shape == (V, D)
    with pytest.raises(IndexError):
        table.embed(torch.tensor([V + 2]))
    with pytest.raises(IndexError):
        drawn().embed(torch.tensor([V]))


def test_a_bias_is_a_column_of_the_weight():
    table, hidden = drawn(bias=True), torch.randn(5, 2, D)
    assert table.weight().shape == (V, D + 1)
    assert table.embeddings().shape == (V, D)
    states = table.states(hidden)
    assert states.shape == (5, 2, D + 1)
    expected = F.linear(hidden, table.embeddings(), table.bias)
    torch.testing.assert_close(states @ table.weight().T, expected)


def test_without_a_bias_states_stay_as_they_are():
    hidden = torch.randn(5, D)
    assert drawn().states(hidden) is hidden


def test_scores_teach_embeddings_and_biases():
    table, targets = drawn(bias=True, n_special=1), torch.tensor([1, 2])
    states = table.states(torch.randn(2, D))
    F.cross_entropy(states @ table.weight()[1:].T, targets - 1).backward()
    assert table.bias.grad[1:].all()
    gradients = dict(table.named_parameters())["vectors.weight"].grad
    assert gradients[1:V].any(1).all()
    assert not gradients[0].any()
    assert not gradients[V].any()


# --- features -----------------------------------------------------------------------------------


def feature_maps(table):
    return {name: module.weight for name, module in table.of_features.items()}


def test_an_item_is_the_sum_of_its_own_vector_and_its_features():
    table = drawn(n_special=1, features={"text": MATRIX, "kind": CATEGORY})
    maps, own = feature_maps(table), dict(table.named_parameters())["vectors.weight"]
    assert maps["text"].shape == (D, 4)
    assert maps["kind"].shape == (4, D)  # categories 1 to 3 and unknown; 5 is padding's, not read
    for item in range(1, V):
        expected = own[item] + MATRIX[item] @ maps["text"].T
        if CATEGORY[item]:
            expected = expected + maps["kind"][CATEGORY[item]]
        torch.testing.assert_close(table.embed(torch.tensor([item]))[0], expected)
    torch.testing.assert_close(table.embed(EVERY), table.embeddings())
    assert not table.embeddings()[0].any()
    # a special token is no item and has no features
    assert torch.equal(table.embed(torch.tensor([V]))[0], own[V])


def test_features_are_learned_but_not_the_unknown_category():
    table = drawn(features={"text": MATRIX.double(), "kind": CATEGORY.int()})
    (table.embeddings() * torch.randn(V, D)).sum().backward()
    text, kind = (parameter.grad for parameter in feature_maps(table).values())
    assert text.all()
    assert kind[1:].any(1).all()
    assert not kind[0].any()


def test_features_stay_with_the_table_when_it_is_saved():
    table = drawn(bias=True, features={"text": MATRIX, "kind": CATEGORY})
    again = ItemTable(V, D, bias=True, features={"text": MATRIX * 0, "kind": CATEGORY * 1})
    again.load_state_dict(table.state_dict())
    assert torch.equal(again.weight(), table.weight())


def test_features_of_the_caller_are_left_alone():
    before = MATRIX.clone(), CATEGORY.clone()
    drawn(features={"text": MATRIX, "kind": CATEGORY})
    assert torch.equal(MATRIX, before[0])
    assert torch.equal(CATEGORY, before[1])


@pytest.mark.parametrize(
    "values, message",
    [
        (MATRIX[1:], r"must have a row for each of 7 items.*got torch.float32 of shape \(6, 4\)"),
        (MATRIX[:, 0], r"must have a row for each of 7 items.*of shape \(7,\)"),
        (CATEGORY[:, None], r"must have a row for each of 7 items.*of shape \(7, 1\)"),
        (MATRIX.index_fill(0, torch.tensor([2]), torch.nan), "are not finite numbers"),
        (CATEGORY - 1, r"negative categories: number them from 1, 0 is unknown"),
    ],
)
def test_features_that_cannot_be_are_refused(values, message):
    with pytest.raises(DataError, match=rf"^item feature 'it' .*{message}") as caught:
        ItemTable(V, D, features={"it": values})
    assert "\n" not in str(caught.value)


def test_padding_may_hold_anything_in_a_feature():
    table = drawn(features={"text": MATRIX.index_fill(0, torch.tensor([0]), torch.nan)})
    assert table.embeddings().isfinite().all()


# --- carried over -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old_ids, new_ids",
    [
        (["a", "b", "c", "d"], ["d", "x", "b", "a", "y"]),
        ([10, 20, 30, 40], [40, 5, 20, 10, 99]),
        ([10, 20, 30, 40], ["40", "5", "20", "10", "99"]),
        (["10", "20", "30", "40"], [40, 5, 20, 10, 99]),
    ],
    ids=["strings", "integers", "integers to strings", "strings to integers"],
)
def test_items_are_carried_over_by_their_raw_ids(old_ids, new_ids):
    torch.manual_seed(0)
    old, new = ItemTable(5, D, bias=True, n_special=1), ItemTable(6, D, bias=True, n_special=2)
    for table in (old, new):
        table.reset_parameters()
        nn.init.normal_(table.bias)
    before, tokens = new.weight().detach().clone(), new.embed(torch.tensor([6, 7])).detach().clone()
    assert new.carry_over(catalog(new_ids), old, catalog(old_ids)) == 3
    # new number and old number of what both have: the first, third and fourth of the new
    for here, there in ((1, 4), (3, 2), (4, 1)):
        assert torch.equal(new.weight()[here], old.weight()[there])
    for fresh in (0, 2, 5):
        assert torch.equal(new.weight()[fresh], before[fresh])
    assert torch.equal(new.embed(torch.tensor([6])), old.embed(torch.tensor([5])))
    assert torch.equal(new.embed(torch.tensor([7]))[0], tokens[1])


@pytest.mark.parametrize("biases", [(True, False), (False, True)])
def test_a_bias_that_one_of_the_tables_lacks_is_not_carried_over(biases):
    old, new = drawn(0, bias=biases[0]), drawn(1, bias=biases[1])
    before = None if new.bias is None else new.bias.detach().clone()
    ids = catalog(list(range(1, V)))
    assert new.carry_over(ids, old, ids) == V - 1
    assert torch.equal(new.embeddings(), old.embeddings())
    assert before is None or torch.equal(new.bias, before)


def test_nothing_in_common_changes_nothing():
    old, new = drawn(0, bias=True), drawn(1, bias=True)
    before = new.weight().detach().clone()
    here, there = catalog(list("abcdef")), catalog(list("uvwxyz"))
    assert new.carry_over(here, old, there) == 0
    assert torch.equal(new.weight(), before)


def test_what_was_carried_over_is_a_copy_and_goes_on_learning():
    old, new = drawn(0), drawn(1)
    ids = catalog(list("abcdef"))
    new.carry_over(ids, old, ids)
    before = old.embeddings().detach().clone()
    new.embeddings().sum().backward()
    torch.optim.SGD(new.parameters(), lr=1.0).step()
    assert torch.equal(old.embeddings(), before)
    assert not torch.equal(new.embeddings(), before)


def test_feature_maps_of_one_shape_are_carried_over_by_their_name():
    features = {"text": MATRIX, "kind": CATEGORY, "own": MATRIX}
    old = drawn(0, features={**features, "kind": CATEGORY * 2, "elsewhere": MATRIX})
    new = drawn(1, features=features)
    before = {name: weight.clone() for name, weight in feature_maps(new).items()}
    ids = catalog(list("abcdef"))
    new.carry_over(ids, old, ids)
    assert torch.equal(feature_maps(new)["text"], feature_maps(old)["text"])
    assert torch.equal(feature_maps(new)["own"], feature_maps(old)["own"])
    assert torch.equal(feature_maps(new)["kind"], before["kind"])  # other categories
    # the features themselves are those of the new table
    expected = dict(new.named_parameters())["vectors.weight"] + F.pad(
        MATRIX[1:] @ (feature_maps(new)["text"] + feature_maps(new)["own"]).T, (0, 0, 1, 0)
    )
    expected = expected + feature_maps(new)["kind"][CATEGORY.index_fill(0, torch.tensor([0]), 0)]
    torch.testing.assert_close(new.embeddings(), expected)


def test_another_width_is_not_carried_over():
    with pytest.raises(ConfigError, match=r"width 5 do not fit a table of width 3: set dim to 5$"):
        drawn().carry_over(catalog(list("abcdef")), ItemTable(V, 5), catalog(list("abcdef")))


def test_a_large_catalog_is_carried_over_at_once():
    generator = np.random.default_rng(0)
    old_ids, new_ids = (generator.permutation(40_000)[:30_000] for _ in range(2))
    old, new = ItemTable(30_001, 2), ItemTable(30_001, 2)
    n = new.carry_over(catalog(new_ids), old, catalog(old_ids))
    common, here, there = np.intersect1d(new_ids, old_ids, return_indices=True)
    assert n == len(common)
    assert torch.equal(new.embeddings()[1:][here], old.embeddings()[1:][there])
