"""Training: the loop, its checkpoints and validation, and the two kinds of data it runs on."""

from diffuserec.training.checkpoint import checkpoint_files
from diffuserec.training.device import device_of
from diffuserec.training.loop import Update, train
from diffuserec.training.masks import train_on_masks
from diffuserec.training.next_item import (
    EncoderRecommender,
    NextItemRecommender,
    adam,
    encoder_loss,
    next_item_loss,
    real_positions,
    train_next_item,
)
from diffuserec.training.pairs import train_on_pairs
from diffuserec.training.shared import fit_shared
from diffuserec.training.validation import n_measured, sample_of, validation

__all__ = [
    "EncoderRecommender",
    "NextItemRecommender",
    "Update",
    "adam",
    "checkpoint_files",
    "device_of",
    "encoder_loss",
    "fit_shared",
    "n_measured",
    "next_item_loss",
    "real_positions",
    "sample_of",
    "train",
    "train_next_item",
    "train_on_masks",
    "train_on_pairs",
    "validation",
]
