"""The item table: embeddings, weights, tokens, biases, features, and what is carried over."""

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffuserec.data import Catalog
from diffuserec.errors import ConfigError
from diffuserec.models.features import item_features
from diffuserec.models.items import INIT_STD, ItemTable

V, D = 7, 3
EVERY = torch.arange(V)


FRAME = pl.DataFrame(
    {
        "name": ["p", "p", "q", "q", "r", "r"],
        "brand": ["x", "y", None, "x", "y", "alone"],
        "genres": [["a", "b"], ["b"], [], None, ["a", "alone", "b"], ["b", "b"]],
        "price": [1.0, 2.0, None, 4.0, 5.0, 3.0],
        "text": pl.Series(
            np.random.default_rng(1).normal(size=(6, 4)).tolist(), dtype=pl.Array(pl.Float32, 4)
        ),
        "same": [7] * 6,
    }
)
"""Attributes of the items 1 to 6."""


def catalog(ids, attributes=None):
    return Catalog(pl.Series("item_id", ids), n_users=2, attributes=attributes)


FEATURES = item_features(catalog(list("abcdef"), FRAME))


def drawn(seed=0, features=None, id_dropout=0.0, **settings):
    torch.manual_seed(seed)
    table = ItemTable(V, D, **settings)
    table.reset_parameters(std=1.0)
    if table.bias is not None:
        nn.init.normal_(table.bias)
    if features is not None:
        table.describe(features, id_dropout)
    return table.eval()


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
    table = drawn(bias=True, n_special=1, features=FEATURES).train()
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


def test_weights_of_attributes_are_drawn_with_the_spread_of_the_items_own():
    numbers = np.random.default_rng(0).normal(size=(400, 30)).tolist()
    frame = pl.DataFrame({"text": pl.Series(numbers, dtype=pl.Array(pl.Float32, 30))})
    table = ItemTable(401, 50)
    table.reset_parameters(std=2.0)
    table.describe(item_features(catalog(list(range(400)), frame)))
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


def of_attributes(table):
    """What attributes say of the items 0 to 6, by hand: an oracle of the table's features."""
    parameters = dict(table.named_parameters())
    learned, values = parameters["features.categories"], parameters["features.values"]
    number = {pair: n for n, pair in enumerate(table.features.features.categories)}
    assert number.keys() == {("brand", "x"), ("brand", "y"), ("genres", "a"), ("genres", "b")}
    price = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 3.0])
    price = (price - 3) / np.sqrt(2)
    text = FRAME["text"].to_numpy().astype(float)
    text = text - text.mean(0)
    text /= np.sqrt((text**2).sum(1).mean())
    found = torch.zeros(V, D)
    for item, row in enumerate(FRAME.iter_rows(named=True), start=1):
        brand = [row["brand"]] if row["brand"] in ("x", "y") else []
        genres = sorted(set(row["genres"] or []) - {"alone"})
        for column, texts in (("brand", brand), ("genres", genres)):
            for one in texts:
                found[item] += learned[number[column, one]] / len(texts)
        numbers = np.concatenate([np.nan_to_num(price[item - 1 : item]), text[item - 1]])
        found[item] += torch.tensor(numbers, dtype=torch.float32) @ values
    return found


def own_vectors(table):
    return dict(table.named_parameters())["vectors.weight"]


def test_an_item_is_the_sum_of_its_own_vector_and_its_attributes():
    table = drawn(n_special=1, features=FEATURES)
    assert FEATURES.columns == (("price", 1), ("text", 4))
    own, expected = own_vectors(table), of_attributes(table)
    expected = expected + own[:V]
    for mode in (True, False):
        table.train(mode)
        torch.testing.assert_close(table.embeddings(), expected)
        torch.testing.assert_close(table.embed(EVERY), expected)
        some = torch.tensor([[4, 1], [0, 4]])
        torch.testing.assert_close(table.embed(some), expected[some])
        # a special token is no item and has no attributes
        assert torch.equal(table.embed(torch.tensor([V]))[0], own[V])
    with torch.no_grad():
        torch.testing.assert_close(table.embed(torch.tensor([[5, V]])), own_row(table, 5))
        torch.testing.assert_close(table.embeddings(), expected)


def own_row(table, item):
    own = own_vectors(table)
    return torch.stack([own[item] + of_attributes(table)[item], own[V]])[None]


def test_gradients_of_all_items_are_those_of_items_one_by_one():
    weights = torch.randn(V, D).index_fill(0, torch.tensor([0]), 0)  # padding is never scored
    found = []
    for whole in (True, False):
        table = drawn(features=FEATURES).train()
        parts = [table.embeddings()] if whole else [table.embed(EVERY[i : i + 1]) for i in EVERY]
        (torch.cat(parts) * weights).sum().backward()
        found.append({name: p.grad for name, p in table.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])
        assert gradient[1:].any(1).all()


def test_what_training_does_not_hold_is_its_attributes_alone():
    seen = torch.tensor([False, True, True, False, True, False, True])
    tables = [drawn(0, features=FEATURES, bias=True), drawn(0, features=FEATURES, bias=True)]
    with torch.no_grad():  # whatever was drawn for unseen items does not matter
        own_vectors(tables[1])[~seen] = 9.0
        tables[1].bias[~seen] = 9.0
    for table in tables:
        table.set_seen(seen)
        expected = of_attributes(table) + own_vectors(table) * seen[:, None]
        torch.testing.assert_close(table.embeddings()[1:], expected[1:])
        assert not table.weight()[~seen, D].any()
        assert torch.equal(table.weight()[seen, D], table.bias[seen])
        table.train()
        assert not table.embeddings()[~seen].any()
        assert not table.embed(EVERY)[~seen].any()
        torch.testing.assert_close(table.embeddings()[seen], expected[seen])
        table.eval()
    assert torch.equal(tables[0].weight(), tables[1].weight())
    assert torch.equal(tables[0].rows(EVERY)[1:], tables[0].weight()[1:])


def test_own_vectors_are_left_out_at_random_in_training_alone():
    table = drawn(features=FEATURES, id_dropout=0.5, bias=True, n_special=1).train()
    described, whole = of_attributes(table), own_vectors(table)[:V] + of_attributes(table)
    n_left_out = 0
    for _ in range(50):
        weight = table.weight()
        for item in range(1, V):
            left_out = weight[item, D] == 0
            n_left_out += int(left_out)
            expected = described if left_out else whole
            torch.testing.assert_close(weight[item, :D], expected[item])
        rows = table.rows(EVERY)
        for item in range(1, V):
            expected = described if rows[item, D] == 0 else whole
            torch.testing.assert_close(rows[item, :D], expected[item])
        assert table.embed(torch.tensor([V])).any()  # never a token
    assert 110 < n_left_out < 190  # of 300
    table.eval()
    torch.testing.assert_close(table.embeddings(), whole)


def test_what_is_kept_outside_of_training_is_made_anew_when_a_parameter_changes():
    table = drawn(features=FEATURES)
    with torch.no_grad():
        before = table.embeddings()
        assert table.embeddings() is before
        for parameter in table.parameters():
            parameter.add_(1.0)
            changed = table.embeddings()
            assert not torch.equal(changed, before)
            torch.testing.assert_close(changed[1:], (own_vectors(table) + of_attributes(table))[1:])
            before = changed
    optimizer = torch.optim.Adam(table.train().parameters(), 0.1, fused=True)
    table.embeddings().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = table.eval().embeddings()
        assert not torch.equal(after, before)
        table.train()
        own_vectors(table).data.add_(1.0)  # which leaves no trace
        torch.testing.assert_close(table.eval().embeddings()[1:], after[1:] + 1)


def test_weights_of_attributes_are_saved_and_attributes_are_not():
    table, again = drawn(0, bias=True, features=FEATURES), drawn(1, bias=True, features=FEATURES)
    table.set_seen(torch.arange(V) % 2 == 0)
    assert sum(v.numel() for v in table.state_dict().values()) == V * D + 2 * V + (4 + 5) * D
    again.load_state_dict(table.state_dict())
    assert torch.equal(again.weight(), table.weight())


def test_attributes_that_tell_no_items_apart_are_refused():
    for frame in (None, FRAME.select("name"), FRAME.select("same"), FRAME.select("name", "same")):
        with pytest.raises(ConfigError, match=r"item_features=True needs attributes.*--items FILE"):
            item_features(catalog(list("abcdef"), frame))


def test_numbers_of_a_category_column_are_categories_and_outliers_are_cut():
    frame = pl.DataFrame({"category": [1, 2] * 50, "n": [0.0] * 99 + [1.0]})
    found = item_features(catalog(list(range(100)), frame))
    assert found.categories == (("category", "1"), ("category", "2"))
    assert found.values[100, 0] == 5.0  # of 9.95 standard deviations


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


def test_what_attributes_mean_is_carried_over_by_column_and_text():
    other = FRAME.with_columns(
        pl.Series("brand", ["w", "w", "y", "y", None, "x"]),
        pl.Series("size", [1, 2, 3, 4, 5, 6]),
    )
    old = drawn(0, features=FEATURES)
    new = drawn(1, features=item_features(catalog(list("abcdef"), other)))
    before = [parameter.clone() for parameter in new.features.parameters()]
    new.carry_over(catalog(list("abcdef")), old, catalog(list("abcdef")))
    theirs, mine = (
        dict(zip(t.features.features.categories, t.features.categories, strict=True))
        for t in (old, new)
    )
    assert mine.keys() == {("brand", "w"), ("brand", "y"), ("genres", "a"), ("genres", "b")}
    for pair in mine.keys() & theirs.keys():
        assert torch.equal(mine[pair], theirs[pair])
    fresh = list(mine).index(("brand", "w"))
    assert torch.equal(mine["brand", "w"], before[0][fresh])
    # price, text and size stand side by side
    assert torch.equal(new.features.values[:5], old.features.values)
    assert torch.equal(new.features.values[5:], before[1][5:])


def test_an_item_that_was_unseen_begins_as_its_attributes():
    """What it was drawn with had no part in the model that is carried over."""
    old, new = (drawn(seed, features=FEATURES, bias=True) for seed in (0, 1))
    old.set_seen(torch.arange(V) != 3)
    new.carry_over(catalog(list("abcdef")), old, catalog(list("abcdef")))
    assert not own_vectors(new)[3].any()
    assert new.bias[3] == 0
    torch.testing.assert_close(new.weight()[1:], old.weight()[1:])


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


def test_vectors_with_a_bias_are_put_together_once_and_again_after_a_change() -> None:
    table = ItemTable(5, 3, bias=True).eval()
    table.reset_parameters()
    with torch.no_grad():
        first = table.weight()
        assert table.weight() is first
        table.bias[2] = 7.0
        changed = table.weight()
        assert changed[2, -1] == 7.0
        table.vectors.weight.data = table.vectors.weight.data * 2
        torch.testing.assert_close(table.weight()[:, :3], 2 * first[:, :3])
    assert table.weight().requires_grad
    assert table.train().weight().requires_grad
