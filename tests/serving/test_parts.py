"""Parts of a service on their own: search, diverse lists, rates."""

import contextlib
import io
import json
import logging
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffuserec.data import Catalog
from diffuserec.serving.diversity import mmr_order
from diffuserec.serving.guard import Buckets
from diffuserec.serving.observation import log_lines, tell
from diffuserec.serving.search import ItemSearch, folded

NAMES = ["The Matrix", "Matrix Reloaded", "the  animatrix", "Amélie", None, "MATRIX", "a\tb\nc"]
CATALOG = Catalog(
    pl.Series("item_id", ["m1", "m2", "m3", "am", "mat", "x", "z"]),
    1,
    attributes=pl.DataFrame({"name": NAMES}),
)
POPULARITY = np.array([0, 1, 9, 3, 4, 5, 6, 7])


@pytest.mark.parametrize(
    "query, found",
    [
        ("matrix", [2, 6, 3, 1]),  # names that begin with it, by popularity; then the others
        ("the matrix", [1, 3]),  # "the" and "matrix" are in animatrix, too
        ("reloaded matr", [2]),
        ("m1", [1]),
        ("mat", [5, 2, 6, 3, 1]),  # an id that is the very query first
        ("AMELIE", [4]),
        ("a b c", [7]),
        ("b\nc", [7]),
        ("\n", [2, 7, 6, 5, 4, 3, 1]),
        ("", [2, 7, 6, 5, 4, 3, 1]),
        ("nothing", []),
    ],
)
def test_search_by_name_and_id(query: str, found: list[int]) -> None:
    search = ItemSearch(CATALOG, POPULARITY)
    assert search.find(query, 10) == found
    assert search.find(query, 2) == found[:2]


def test_search_of_integers_without_names() -> None:
    catalog = Catalog(pl.Series("item_id", [30, 7, 307]), 1)
    search = ItemSearch(catalog, np.array([0, 1, 1, 1]))
    assert search.find("30", 10) == [1, 3]
    assert search.find("07", 10) == [3]


@given(
    st.lists(st.text(max_size=8), min_size=1, max_size=12),
    st.text(max_size=6),
    st.integers(1, 20),
)
def test_search_finds_what_a_look_at_every_item_finds(names, query: str, limit: int) -> None:
    catalog = replace(
        CATALOG,
        item_ids=pl.Series("item_id", range(100, 100 + len(names))),
        attributes=pl.DataFrame({"name": names}),
    )
    found = ItemSearch(catalog, np.ones(len(names) + 1, dtype=np.int64)).find(query, limit)
    words = folded(query).split()
    texts = [f"\n{100 + n}\t{folded(name)}" for n, name in enumerate(names)]
    matching = {n + 1 for n, text in enumerate(texts) if all(word in text for word in words)}
    assert len(found) == len(set(found)) == min(limit, len(matching))
    assert set(found) <= matching


def test_diverse_order_by_hand() -> None:
    # 0 and 1 are the same item twice, 2 is at a right angle to both
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    scores = torch.tensor([3.0, 2.0, 1.0])
    assert mmr_order(scores, vectors, 3, 0.0) == [0, 1, 2]
    # after 0: item 1 gains .4 · .5 - .6 · 1 = -.4, item 2 gains 0 - 0
    assert mmr_order(scores, vectors, 3, 0.6) == [0, 2, 1]
    assert mmr_order(scores, vectors, 2, 1.0) == [0, 2]
    # at weight w, item 1 gains (1 - w) / 2 - w and item 2 nothing: they change places at 1/3
    assert mmr_order(scores, vectors, 2, 0.33) == [0, 1]
    assert mmr_order(scores, vectors, 2, 0.34) == [0, 2]


@given(st.integers(0, 12), st.integers(1, 15), st.floats(0, 1), st.integers(0, 99))
def test_a_diverse_list_holds_each_candidate_once(n, k, weight, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, 3, generator=generator)
    scores = torch.randn(n, generator=generator)
    order = mmr_order(scores, vectors, k, weight)
    assert len(order) == len(set(order)) == min(n, k)
    if n:
        assert order[0] == int(scores.argmax())


def test_a_bucket_fills_with_time() -> None:
    buckets = Buckets(2.0)
    assert [buckets.wait_of("ann", 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert buckets.wait_of("bob", 0.0) == 0
    assert buckets.wait_of("ann", 0.25) == pytest.approx(0.25)
    assert buckets.wait_of("ann", 0.5) == 0
    assert buckets.wait_of("ann", 1000.0) == 0
    assert [Buckets(0.0).wait_of("ann", 0.0) for _ in range(100)] == [0] * 100


def test_a_service_that_has_ended_logs_to_no_stream_of_its_own(caplog) -> None:
    stream = io.StringIO()
    caplog.set_level(logging.INFO)
    with contextlib.redirect_stderr(stream), log_lines():
        tell("inside", n=1)
    written = stream.getvalue()
    stream.close()
    tell("outside")
    assert [json.loads(line)["event"] for line in written.splitlines()] == ["inside"]
    assert [record.message for record in caplog.records] == ["outside"]
