"""Matrix products and attention."""

from __future__ import annotations

import math
from typing import Any

from edgekit.backends._mil.operators import Args, operator


@operator("linear")
def linear(torch: Any, args: Args) -> Any:
    """`x · weightᵀ + bias`."""
    return torch.nn.functional.linear(args.tensor("x"), args.tensor("weight"), args.optional("bias"))


@operator("matmul")
def matmul(torch: Any, args: Args) -> Any:
    """Matrix product over the last two axes, either side transposed first where asked."""
    x, y = args.tensor("x"), args.tensor("y")
    if args.flag("transpose_x") and x.dim() > 1:
        x = x.transpose(-1, -2)
    if args.flag("transpose_y") and y.dim() > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


@operator("einsum")
def einsum(torch: Any, args: Args) -> Any:
    """Sum of products by an equation of axes."""
    return torch.einsum(args.text("equation"), *args.tensors("values"))


@operator("scaled_dot_product_attention")
def scaled_dot_product_attention(torch: Any, args: Args) -> Any:
    """`softmax(query · keyᵀ / √width + mask) · value`."""
    query, key, value = args.tensor("query"), args.tensor("key"), args.tensor("value")
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    if args.has("attn_mask"):
        mask = args.tensor("attn_mask")
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)
