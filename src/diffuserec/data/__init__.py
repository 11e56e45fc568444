"""From a log to batches: the first step of the data's way."""

from diffuserec.data.batches import (
    Batch,
    Examples,
    Histories,
    Pairs,
    batch_of,
    histories_of,
    history_batches,
    length_buckets,
    pair_batches,
    trainable_sequences,
    training_batches,
    training_examples,
)
from diffuserec.data.catalog import PAD, Catalog, RawId
from diffuserec.data.copies import AugmentedCopies, CurriculumSchedule
from diffuserec.data.dataset import FlatLog, SequenceDataset, offsets_of
from diffuserec.data.formats import FORMATS
from diffuserec.data.histories import encode_histories, encode_items
from diffuserec.data.interactions import Interactions, from_dataset, from_frame, read_log
from diffuserec.data.log_format import LogFile, LogFormat
from diffuserec.data.splits import Queries, Split, leave_one_out, temporal
from diffuserec.data.storage import dataset_manifest, load_dataset
from diffuserec.data.store import Store

__all__ = [
    "FORMATS",
    "PAD",
    "AugmentedCopies",
    "Batch",
    "Catalog",
    "CurriculumSchedule",
    "Examples",
    "FlatLog",
    "Histories",
    "Interactions",
    "LogFile",
    "LogFormat",
    "Pairs",
    "Queries",
    "RawId",
    "SequenceDataset",
    "Split",
    "Store",
    "batch_of",
    "dataset_manifest",
    "encode_histories",
    "encode_items",
    "from_dataset",
    "from_frame",
    "histories_of",
    "history_batches",
    "leave_one_out",
    "length_buckets",
    "load_dataset",
    "offsets_of",
    "pair_batches",
    "read_log",
    "temporal",
    "trainable_sequences",
    "training_batches",
    "training_examples",
]
