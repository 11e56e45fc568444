"""From a log to batches: the first step of the data's way."""

from diffuserec.data.batches import (
    Batch,
    Histories,
    Pairs,
    Rows,
    batch_of,
    histories_of,
    history_batches,
    length_buckets,
    pair_batches,
    trainable_rows,
    training_batches,
    training_rows,
)
from diffuserec.data.dataset import (
    PAD,
    Catalog,
    RawId,
    Schedule,
    SequenceDataset,
    Variants,
    dataset_manifest,
    load_dataset,
)
from diffuserec.data.interactions import Interactions, from_dataset, from_frame, read_log
from diffuserec.data.splits import Queries, Split, leave_one_out, temporal
from diffuserec.data.synthetic import Store

__all__ = [
    "PAD",
    "Batch",
    "Catalog",
    "Histories",
    "Interactions",
    "Pairs",
    "Queries",
    "RawId",
    "Rows",
    "Schedule",
    "SequenceDataset",
    "Split",
    "Store",
    "Variants",
    "batch_of",
    "dataset_manifest",
    "from_dataset",
    "from_frame",
    "histories_of",
    "history_batches",
    "leave_one_out",
    "length_buckets",
    "load_dataset",
    "pair_batches",
    "read_log",
    "temporal",
    "trainable_rows",
    "training_batches",
    "training_rows",
]
