"""Attention of queries over keys: by torch's fused kernel where it can be, with cheap dropout."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diffuserec.models.dropout import dropout


def attend(
    query: Float[Tensor, "B H Q E"],
    key: Float[Tensor, "B H L E"],
    value: Float[Tensor, "B H L E"],
    seen: Bool[Tensor, "#B #H #Q L"] | Float[Tensor, "#B #H #Q L"] | None = None,
    causal: bool = False,
    chance: float = 0.0,
) -> Float[Tensor, "B H Q E"]:
    """Means of the values by softmax(query · key / sqrt(E)).

    Args:
        seen: the keys that each query sees, or what is added to each product (-inf hides a key).
        causal: whether query i sees the keys up to i; without `seen`.
        chance: that a weight is dropped.
    """
    if seen is not None and seen.is_floating_point():
        seen = seen.to(query.dtype)
    if not chance:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
    products = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
    if causal:
        seen = torch.ones(products.shape[2:], dtype=torch.bool, device=query.device).tril()
    if seen is not None and seen.is_floating_point():
        products = products + seen
    elif seen is not None:
        products = products.masked_fill(~seen, torch.finfo(products.dtype).min)
    return dropout(products.softmax(3).to(value.dtype), chance) @ value
