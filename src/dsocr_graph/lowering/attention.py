"""Attention kernels that stay whole in the graph."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import lowers, operand
from modelmeter.layers import ScaledDotProductAttention


@lowers("aten::scaled_dot_product_attention")
def scaled_dot_product_attention(call: OpCall) -> ScaledDotProductAttention:
    """y[B, H, Sq, Dv] = softmax(q[B, H, Sq, D] @ k[B, Hkv, Sk, D].T * scale + mask) @ v[B, Hkv, Sk, Dv]."""
    q, k, v = call.tensor("query"), call.tensor("key"), call.tensor("value")
    return ScaledDotProductAttention(
        batch=q.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        query_length=q.shape[2],
        key_length=k.shape[2],
        head_dim=q.shape[3],
        value_head_dim=v.shape[3],
        causal=bool(call.value("is_causal", False)),
        mask=operand(call.tensor("attn_mask")) if call.has("attn_mask") else None,
        dtype=q.dtype,
    )


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
