"""Attention kernels that stay whole in the graph."""

from __future__ import annotations

from dsocr_graph.ir import OpCall, TensorSpec
from dsocr_graph.lowering.registry import lowers, operand
from modelmeter.dims import Dim, product
from modelmeter.layers import ScaledDotProductAttention


@lowers("aten::scaled_dot_product_attention")
def scaled_dot_product_attention(call: OpCall) -> ScaledDotProductAttention:
    """y[B, H, Sq, Dv] = softmax(q[B, H, Sq, D] @ k[B, Hkv, Sk, D].T * scale + mask) @ v[B, Hkv, Sk, Dv]."""
    q, k, v = call.tensor("query"), call.tensor("key"), call.tensor("value")
    batch, heads, query_length, head_dim = _by_head(q)
    _, kv_heads, key_length, _ = _by_head(k)
    return ScaledDotProductAttention(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        query_length=query_length,
        key_length=key_length,
        head_dim=head_dim,
        value_head_dim=v.shape[-1],
        causal=bool(call.value("is_causal", False)),
        mask=operand(call.tensor("attn_mask")) if call.has("attn_mask") else None,
        dtype=q.dtype,
    )


def _by_head(tensor: TensorSpec) -> tuple[Dim, Dim, Dim, Dim]:
    """Return batch, heads, length and width; with fewer axes there is one head, with more a batch of batches."""
    shape = tensor.shape
    if len(shape) < 4:
        shape = (*(1,) * (3 - len(shape)), *shape[:-2], 1, *shape[-2:])
    *batch, heads, length, width = shape
    return product(batch), heads, length, width


@lowers("dsocr_graph::flash_attention")
def flash_attention(call: OpCall) -> ScaledDotProductAttention:
    """y[B, Sq, H, D] = attention of q[B, Sq, H, D] on k, v [B, Sk, Hkv, D], in flash-attn's layout."""
    q, k, v = call.tensor("q"), call.tensor("k"), call.tensor("v")
    return ScaledDotProductAttention(
        batch=q.shape[0],
        heads=q.shape[2],
        kv_heads=k.shape[2],
        query_length=q.shape[1],
        key_length=k.shape[1],
        head_dim=q.shape[3],
        value_head_dim=v.shape[3],
        causal=bool(call.value("causal", False)),
        mask=None,
        dtype=q.dtype,
    )
