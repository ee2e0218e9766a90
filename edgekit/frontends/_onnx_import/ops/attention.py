"""Attention: torch's fused operator where it computes the same; the standard's function body for the rest."""

from __future__ import annotations

from edgekit.frontends._onnx_import.call import Call
from edgekit.frontends._onnx_import.errors import Declined
from edgekit.frontends._onnx_import.libs import F, Value, torch
from edgekit.frontends._onnx_import.registry import handles

_TAKEN = {"q_num_heads", "kv_num_heads", "is_causal", "scale", "qk_matmul_output_mode"}
_HEADS_APART = 4


@handles("Attention", since=23)
def attention(call: Call, q: Value, k: Value, v: Value, mask: Value = None, *cache: Value) -> tuple[Value, ...]:
    """Scaled dot products; a cache, a cap, or looking at the scores is left to the function body."""
    if any(value is not None for value in cache) or any(call.wants(i) for i in (1, 2, 3)):
        raise Declined
    if call.attributes.keys() - _TAKEN:
        raise Declined
    apart = q.ndim == _HEADS_APART
    if not apart:
        q, k, v = (_split(x, call.attr(n)) for x, n in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads")))
    causal = bool(call.attr("is_causal", 0))
    if causal and (mask is not None or q.shape[2] != k.shape[2]):
        raise Declined
    if mask is not None and mask.shape[-1] != k.shape[2]:
        raise Declined
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (torch.repeat_interleave(x, groups, dim=1) for x in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=call.attr("scale", None))
    return (y if apart else torch.flatten(torch.transpose(y, 1, 2), 2),)


def _split(x: Value, heads: int) -> Value:
    """(batch, length, heads · size) as (batch, heads, length, size)."""
    return torch.transpose(x.reshape((-1, x.shape[1], heads, x.shape[2] // heads)), 1, 2)
