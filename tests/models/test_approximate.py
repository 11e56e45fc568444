"""Lists found by an index: exact where all of it is looked into, and what it hides and refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffuserec import SequenceDataset, find_recommender
from diffuserec.errors import ConfigError
from diffuserec.models.retrieval import (
    ItemIndex,
    ItemSets,
    OrPopularity,
    Products,
    allowed_mask,
    approximate_top_k,
    memory_budget,
    recall,
    top_k,
)
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.serving.answers import Asked, lists_of
from diffuserec.serving.served import load_served
from diffuserec.serving.wire import Options

N_ITEMS, E = 6000, 8


@pytest.fixture(scope="module")
def grouped() -> tuple[torch.Tensor, torch.Tensor]:
    """Item vectors in groups, and states near some of them."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(60, E, generator=generator) * 2
    vectors = centers[torch.randint(60, (N_ITEMS + 1,), generator=generator)]
    vectors = vectors + 0.5 * torch.randn(N_ITEMS + 1, E, generator=generator)
    near = torch.randint(1, N_ITEMS, (40,), generator=generator)
    return vectors, vectors[near] + 0.3 * torch.randn(40, E, generator=generator)


@pytest.fixture(scope="module")
def index(grouped: tuple[torch.Tensor, torch.Tensor]) -> ItemIndex:
    return ItemIndex.of(*grouped)


def test_a_few_parts_of_the_index_hold_most_of_a_list(grouped, index) -> None:
    scorer = Products(grouped[1], grouped[0])
    scores, items = top_k(scorer, 10)
    found_scores, found = approximate_top_k(scorer, index, 10)
    assert index.n_probed <= 0.3 * len(index.centers)
    assert index.recall == recall(found, items) > 0.95
    same = (found == items).all(1)
    torch.testing.assert_close(found_scores[same], scores[same])
    assert same.float().mean() > 0.7


def test_all_parts_of_an_index_hold_exact_lists(grouped, index) -> None:
    vectors, states = grouped
    whole = ItemIndex.again(vectors, index.tensors())
    assert (whole.n_probed, whole.recall) == (index.n_probed, index.recall)
    whole.n_probed = len(whole.centers)
    known = torch.arange(40) % 7 != 0
    counts = torch.arange(N_ITEMS + 1.0)
    products = Products(states, vectors)
    _, best = top_k(products, 30)
    owner = torch.arange(40).repeat_interleave(30)  # the best of each are hidden, and one more
    hidden = ItemSets(
        torch.cat([owner, torch.tensor([39])]), torch.cat([best.flatten(), best[0, :1]])
    )
    denied = best[:, 31:].flatten().unique().numpy()[:50]
    some = np.arange(1, 50)
    scorers = products, OrPopularity(known, Products(states[known], vectors), counts)
    for scorer in scorers:
        for allow, deny in ((None, None), (None, denied), (some, None)):
            allowed = None
            if allow is not None or deny is not None:
                allowed = allowed_mask(N_ITEMS + 1, allow, deny)
            scores, items = top_k(scorer, 10, hidden, allowed)
            found_scores, found = approximate_top_k(scorer, whole, 10, hidden, allowed)
            assert torch.equal(found, items)
            torch.testing.assert_close(found_scores, scores)


def test_a_history_that_too_few_candidates_are_left_for_gets_the_exact_list(grouped, index) -> None:
    scorer = Products(grouped[1][:3], grouped[0])
    _, best = top_k(scorer, N_ITEMS - 4)
    hidden = ItemSets(torch.ones(N_ITEMS - 4, dtype=torch.int64), best[1])
    _, items = top_k(scorer, 10, hidden)
    _, found = approximate_top_k(scorer, index, 10, hidden)
    assert torch.equal(found[1], items[1])
    assert (found[1] > 0).sum() == 4


def test_an_index_of_other_items_is_refused(grouped, index) -> None:
    with pytest.raises(ValueError, match="other items"):
        ItemIndex.again(grouped[0][:-1], index.tensors())
    with pytest.raises(ValueError, match="other items"):
        ItemIndex.again(grouped[0], index.tensors() | {"lists": index.lists + 1})


def test_a_recommender_has_an_index_of_its_items() -> None:
    data = SequenceDataset.from_lists([[1 + (u + p) % 30 for p in range(8)] for u in range(30)])
    model = SASRec(dim=8, n_layers=1, epochs=1, tie_head=False).fit(data)
    index = model.item_index()
    assert index.recall == 1.0  # of few items all are looked at
    asked = [[3, 4], [], [29, 1, 2]]
    exact = model.recommend(asked, deny=[7])
    found = model.recommend(asked, deny=[7], index=index)
    assert found.drop("score").equals(exact.drop("score"))
    np.testing.assert_allclose(found["score"], exact["score"], rtol=1e-5)
    assert found.schema == exact.schema


@pytest.mark.parametrize("name", ["markov", "acvae"])
def test_who_scores_otherwise_is_refused(name: str) -> None:
    settings = {"epochs": 1} if name == "acvae" else {}
    data = SequenceDataset.from_lists([[1, 2, 3, 4], [2, 3, 4, 1]])
    model = find_recommender(name)(**settings).fit(data)
    index = SASRec(dim=4, n_layers=1, epochs=1).fit(data).item_index()
    with pytest.raises(ConfigError, match=rf"^{name} does not score by the product of one state"):
        model.recommend([[1]], index=index)


@pytest.mark.parametrize("approximate", [False, True])
def test_a_served_model_may_find_lists_by_an_index(tmp_path: Path, approximate: bool) -> None:
    data = SequenceDataset.from_lists([[1, 2, 3, 4], [2, 3, 4, 1]])
    SASRec(dim=4, n_layers=1, epochs=1).fit(data).save(tmp_path / "model")
    served = load_served("here", tmp_path / "model", approximate)
    assert served.card()["recall"] == (1.0 if approximate else None)
    found = lists_of(served, Options(k=2), [Asked([1, 2]), Asked([])])
    assert [line["item_id"] for line in found[0]["items"]] in ([3, 4], [4, 3])
    assert found[1]["source"] == "popularity"
    assert (tmp_path / "model.index.safetensors").exists() == approximate


def test_scores_of_all_items_are_made_for_few_histories_at_once() -> None:
    data = SequenceDataset.from_lists([[1, 2, 3, 4], [2, 3, 4, 1]] * 9)
    markov = find_recommender("markov")().fit(data)
    exact = markov.recommend([[1, 2]] * 8 + [[3]])
    with memory_budget(4 * 5 * 3):  # three histories of four items and padding
        assert markov.at_once(256) == 3
        assert markov.recommend([[1, 2]] * 8 + [[3]]).equals(exact)
    with memory_budget(1):
        assert markov.at_once(256) == 1
