"""Sequence encoders: embeddings of items in, one state a position out. One file each.

An encoder is found by its file's name, or registered (``diffuserec.encoders`` entry points,
:data:`ENCODERS`), and then usable by every method that takes ``encoder=``.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffuserec.errors import ConfigError
from diffuserec.models.config import Settings, parse_settings
from diffuserec.models.items import INIT_STD
from diffuserec.registry import Registry


class SequenceEncoder(nn.Module, ABC):
    """Common interface of sequence encoders: one hidden state per position.

    A subclass is constructed with ``(dim, max_len, dropout, causal=True, **own)``, where ``own``
    are the fields of its ``Config``, and does not draw initial weights beyond torch's own:
    :meth:`reset_parameters` does.

    Attributes:
        bidirectional: whether it can also see what comes after a position (``causal=False``).
        looks_ahead: whether it always does; such an encoder trains on prefixes alone.
    """

    class Config(Settings):
        """Settings of the encoder's own, beside width, length and dropout."""

    bidirectional: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """States of embeddings.

        Args:
            embeddings: right-padded; what stands in the padding changes no real state.
            lengths: real positions of each sequence.
        """

    def reset_parameters(self) -> None:
        """Draws initial weights: N(0, 0.02²), biases zero."""
        self.apply(initialize)

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        """Raises ValueError if settings of its own do not fit the width."""


def _encoder_of(module: ModuleType) -> type[SequenceEncoder]:
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, SequenceEncoder)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{module.__name__} defines {len(found)} public encoders: a file in this folder holds "
            "one"
        )
    return found[0]


def _check_encoder(part: Any) -> None:
    if not (inspect.isclass(part) and issubclass(part, SequenceEncoder)):
        raise ConfigError(f"an encoder is a subclass of SequenceEncoder, got {part!r}")
    taken = sorted(_GIVEN & part.Config.model_fields.keys())
    if taken:
        raise ConfigError(
            f"{part.__name__}.Config has {', '.join(taken)}, which every encoder is given by its "
            "method: leave it out"
        )


_GIVEN = {"dim", "max_len", "dropout", "causal"}
"""Arguments of every encoder's constructor."""

ENCODERS: Registry[type[SequenceEncoder]] = Registry(
    "encoder", "diffuserec.models.encoders", _encoder_of, _check_encoder
)


def make_encoder(
    name: str,
    dim: int,
    max_len: int,
    dropout: float,
    own: Mapping[str, Any],
    causal: bool = True,
) -> SequenceEncoder:
    """The encoder of that name, its initial weights not drawn yet.

    Args:
        name: as registered.
        dim: width D.
        max_len: positions.
        dropout: chance of a hidden value to be dropped in training.
        own: settings of the encoder's own ``Config``.
        causal: whether a position sees only itself and what came before.

    Raises:
        ConfigError: no such encoder or setting, or one that cannot look ahead is to.
    """
    found = ENCODERS.find(name)
    if not causal and not found.bidirectional:
        raise ConfigError(f"encoder {name!r} reads forward only: choose one that sees both ways")
    settings = parse_settings(found.Config, own, f"encoder {name}")
    make: Callable[..., SequenceEncoder] = found
    return make(dim, max_len, dropout, causal=causal, **settings.model_dump())


def real_keys(lengths: Int[Tensor, " B"], length: int) -> Bool[Tensor, "B 1 1 L"]:
    """Mask of an attention in which every position sees all real ones."""
    return (torch.arange(length, device=lengths.device) < lengths[:, None])[:, None, None, :]


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
        items: right-padded.
        lengths: real positions of each sequence.
        n_parts: of like length.
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


def initialize(module: nn.Module) -> None:
    """Draws weights of linear layers and embeddings from N(0, 0.02²); biases, padding are zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
