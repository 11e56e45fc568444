"""What attributes of items cost: a training step and a request, with and without them.

    python benchmarks/features.py [ITEMS [CATEGORIES]]

Prints seconds of CPU, of one core, for 100,000 items with 20 categories each by default.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from diffuserec.data import Catalog
from diffuserec.models.features import item_features
from diffuserec.models.items import ItemTable

DIM, KINDS = 64, 300


def main() -> None:
    n_items, n_columns = (
        int(text) for text in (*sys.argv[1:], *("100000", "20")[len(sys.argv) - 1 :])
    )
    torch.set_num_threads(1)
    drawn = np.random.default_rng(0).integers(0, KINDS, (n_columns, n_items))
    frame = pl.DataFrame({f"column {n}": column.astype(str) for n, column in enumerate(drawn)})
    catalog = Catalog(pl.Series("item_id", np.arange(n_items)), 1, attributes=frame)
    features = None
    for name in ("without", "with attributes"):
        table = ItemTable(n_items + 1, DIM)
        table.reset_parameters()
        if features is not None:
            table.describe(features, id_dropout=0.2)
        for scored in ("all items", "1,000 items"):
            print(f"{name}, a step that scores {scored}: {seconds(step(table, scored)):.4f} s")
        table.eval()
        print(f"{name}, vectors of all items: {seconds(torch.no_grad()(table.weight)):.6f} s")
        begin = time.process_time()
        features = item_features(catalog)
        if name == "without":
            print(f"attributes as numbers: {time.process_time() - begin:.2f} s")


def step(table: ItemTable, scored: str) -> Callable[[], None]:
    """A step of the softmax, on 640 states and the embeddings of 64 histories of 50 items."""
    optimizer = torch.optim.Adam(table.parameters(), 1e-3, fused=True)
    histories = torch.randint(1, table.vocab_size, (64, 50))
    states = torch.randn(640, DIM)
    negatives = torch.randint(1, table.vocab_size, (1000,))

    def run() -> None:
        optimizer.zero_grad()
        read = table.embed(histories)
        vectors = table.weight() if scored == "all items" else table.rows(negatives)
        (read.sum() + torch.logsumexp(states @ vectors.T, 1).sum()).backward()
        optimizer.step()

    table.train()
    return run


def seconds(run: Callable[[], object], times: int = 5) -> float:
    run()
    begin = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - begin) / times


if __name__ == "__main__":
    main()
