"""Sequence encoders: embeddings of items in, one state a position out. One file each.

An encoder is found by its file's name, or registered (``diffuserec.encoders`` entry points,
:data:`ENCODERS`), and then usable by every method that takes ``encoder=``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffuserec.errors import ConfigError
from diffuserec.models.config import Settings
from diffuserec.models.dropout import Dropout
from diffuserec.models.items import INIT_STD
from diffuserec.registry import Registry

ReadSlots = Callable[[Float[Tensor, "B S D"], Int[Tensor, "#B S"]], Float[Tensor, "B S D"]]
"""Embeddings in S slots, and how many positions stand before each, to the slots' states."""


class SequenceEncoder(nn.Module, ABC):
    """Common interface of sequence encoders: one hidden state per position.

    A subclass is constructed with ``(dim, max_len, dropout, own, causal=True)``, where ``own`` is
    its ``Config``, and does not draw initial weights beyond torch's own: :meth:`reset_parameters`
    does.

    Attributes:
        sees: what a position sees beside itself: ``before``, always the earlier positions alone;
            ``either``, by ``causal`` the earlier ones or all, and all with ``both_ways=True`` in
            :meth:`forward`; ``both``, always all: such an encoder trains on prefixes alone.
        init_std: standard deviation of initial weights; the method's settings decide it.
        reads_times: whether :meth:`forward` takes ``times`` of items, too.
        takes_slots: whether it has :meth:`beside`.
    """

    class Config(Settings):
        """Settings of the encoder's own, beside width, length and dropout."""

    sees: ClassVar[Literal["before", "either", "both"]] = "before"
    init_std: float = INIT_STD
    reads_times: bool = False
    takes_slots: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """States of right-padded embeddings; what stands in the padding changes no real state."""

    def newest(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """State at the newest item of each sequence; an encoder may know a shorter way to it.

        Training with one target an example needs no other. A sequence without items has the state
        of the first position.
        """
        states: Tensor = self(embeddings, lengths)
        return last_states(states, lengths)

    def beside(self, embeddings: Float[Tensor, "B L D"]) -> ReadSlots:
        """Reads slots that each follow the first positions of a sequence; of a causal encoder.

        A slot's state is what it would be at the end of those positions, whatever comes after them
        and stands in other slots. The sequences are encoded once, here.

        Raises:
            ConfigError: this encoder cannot.
        """
        raise ConfigError(f"{type(self).__name__} does not read slots beside a sequence")

    def reset_parameters(self) -> None:
        """Draws initial weights: N(0, init_std²), biases zero."""
        self.apply(partial(initialize, std=self.init_std))

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        """Raises ValueError if settings of its own do not fit the width."""


def _check_encoder(part: type[SequenceEncoder]) -> None:
    taken = sorted(_GIVEN & part.Config.model_fields.keys())
    if taken:
        raise ConfigError(
            f"{part.__name__}.Config has {', '.join(taken)}, which every encoder is given by its "
            "method: leave it out"
        )


_GIVEN = {"dim", "max_len", "dropout", "causal"}
"""Arguments of every encoder's constructor."""

ENCODERS: Registry[type[SequenceEncoder]] = Registry(
    "encoder", SequenceEncoder, __name__, _check_encoder
)


def check_heads(dim: int, n_heads: int) -> None:
    """Raises ValueError if attention heads do not divide the width."""
    if dim % n_heads:
        raise ValueError(f"dim {dim} is not divisible by n_heads {n_heads}")


def real_keys(lengths: Int[Tensor, " B"], length: int) -> Bool[Tensor, "B 1 1 L"]:
    """Mask of an attention in which every position sees all real ones."""
    return (torch.arange(length, device=lengths.device) < lengths[:, None])[:, None, None, :]


def places_from_newest(lengths: Int[Tensor, " B"], length: int, max_len: int) -> Int[Tensor, "B L"]:
    """Place of each position of right-padded sequences, max_len - 1 at the newest item.

    Pads have the place of the newest, too.
    """
    place = max_len - lengths[:, None] + torch.arange(length, device=lengths.device)
    return place.clamp(max=max_len - 1)


def following(items: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The item after each one, 0 after the last; a roll, which graphs take with any length."""
    last = torch.arange(items.shape[1], device=items.device) == items.shape[1] - 1
    return items.roll(-1, 1).masked_fill(last, 0)


def last_states(states: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """State at each history's newest item."""
    index = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, index)[:, 0]


def mean_of_last(
    states: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], n: int
) -> Float[Tensor, "B D"]:
    """Mean of each sequence's newest n states, or of all if there are fewer; 0 if there is none."""
    position = torch.arange(states.shape[1], device=states.device)
    newest = (position < lengths[:, None]) & (position >= lengths[:, None] - n)
    return (states * newest[:, :, None]).sum(1) / newest.sum(1, keepdim=True).clamp(min=1)


def align_right(
    embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], width: int
) -> Float[Tensor, "B W D"]:
    """The newest `width` positions of each sequence, the newest last, zeros before the oldest.

    The form that encoders of a fixed length take; :func:`align_left` turns states back.
    """
    columns = lengths[:, None] - width + torch.arange(width, device=lengths.device)
    index = columns.clamp(0, embeddings.shape[1] - 1)[:, :, None]
    found = embeddings.gather(1, index.expand(-1, -1, embeddings.shape[2]))
    return found.masked_fill((columns < 0)[:, :, None], 0)


def align_left(
    states: Float[Tensor, "B W D"], lengths: Int[Tensor, " B"], length: int
) -> Float[Tensor, "B L D"]:
    """Right-padded states out of right-aligned ones; zeros where a sequence has none."""
    width = states.shape[1]
    columns = width - lengths[:, None] + torch.arange(length, device=lengths.device)
    index = columns.clamp(0, width - 1)[:, :, None].expand(-1, -1, states.shape[2])
    outside = (columns < 0) | (columns >= width)
    return states.gather(1, index).masked_fill(outside[:, :, None], 0)


EPS = 1e-12
"""Added to variances by encoders of the BERT lineage."""


class PaddedInFront(SequenceEncoder):
    """An encoder of sequences of one length, `max_len`, whose padding in front takes part.

    Positions count from the newest item. Padding is a fixed vector, drawn like the items', and has
    its position's. What runs over the whole sequence sees later items, so that such an encoder
    trains on prefixes alone.
    """

    sees = "both"

    def __init__(self, dim: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.max_len = max_len
        self.positions = nn.Embedding(max_len, dim)
        self.register_buffer("padding", torch.zeros(dim))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.dropout = Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draws initial weights: N(0, init_std²), the padding's vector too; biases zero."""
        super().reset_parameters()
        nn.init.normal_(self.get_buffer("padding"), std=self.init_std)

    def enter(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B W D"], Bool[Tensor, "B W"]]:
        """Input of the first layer, padding included, and which positions are real."""
        position = torch.arange(self.max_len, device=lengths.device)
        real = position >= self.max_len - lengths[:, None]
        aligned = align_right(embeddings, lengths, self.max_len)
        aligned = torch.where(real[:, :, None], aligned, self.get_buffer("padding"))
        entered: Tensor = self.dropout(self.norm(aligned + self.positions.weight))
        return entered, real


def newest_states(
    encode: Callable[[Tensor, Tensor], Tensor],
    items: Int[Tensor, "B L"],
    lengths: Int[Tensor, " B"],
    n_parts: int = 4,
) -> Float[Tensor, "B D"]:
    """Newest state of each sequence, for lengths that differ widely.

    The sequences are encoded in parts of like length: padding all to the longest would cost
    several times as much.

    Args:
        encode: item numbers and lengths to states (B, L, D).
    """
    if not len(lengths):
        return last_states(encode(items, lengths), lengths)
    order = lengths.argsort()
    parts = order.chunk(n_parts)
    widths = lengths[torch.stack([part[-1] for part in parts])].clamp(min=1).tolist()
    found = []
    for part, width in zip(parts, widths, strict=True):
        found.append(last_states(encode(items[part, :width], lengths[part]), lengths[part]))
    return torch.cat(found)[order.argsort()]


def initialize(module: nn.Module, std: float = INIT_STD) -> None:
    """Draws weights of linear layers and embeddings from N(0, std²); biases, padding are zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
