"""Normalizations and softmax."""

from __future__ import annotations

from typing import cast

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import lowers, rows_of
from modelmeter.dims import product
from modelmeter.layers import BaseLayer, GroupNorm, LayerNorm, RMSNorm, Softmax


@lowers("aten::layer_norm")
def layer_norm(call: OpCall) -> LayerNorm:
    """y = (x - mean) / sqrt(var + eps) * w + b over the last axes."""
    x = call.tensor("input")
    axes = len(cast("tuple[int, ...]", call.value("normalized_shape")))
    return LayerNorm(
        rows=rows_of(x, axes),
        width=product(x.shape[len(x.shape) - axes :]),
        weight=call.has("weight"),
        bias=call.has("bias"),
        dtype=x.dtype,
    )


@lowers("aten::rms_norm")
def rms_norm(call: OpCall) -> RMSNorm:
    """y = x / sqrt(mean(x * x) + eps) * w over the last axes."""
    x = call.tensor("input")
    axes = len(cast("tuple[int, ...]", call.value("normalized_shape")))
    return RMSNorm(
        rows=rows_of(x, axes),
        width=product(x.shape[len(x.shape) - axes :]),
        weight=call.has("weight"),
        dtype=x.dtype,
    )


@lowers("aten::group_norm")
def group_norm(call: OpCall) -> GroupNorm:
    """y = (x - mean) / sqrt(var + eps) * w + b over groups of channels."""
    x = call.tensor("input")
    return GroupNorm(
        batch=x.shape[0],
        channels=x.shape[1],
        groups=call.integer("num_groups", 1),
        spatial=product(x.shape[2:]),
        weight=call.has("weight"),
        bias=call.has("bias"),
        dtype=x.dtype,
    )


@lowers("aten::softmax", "aten::_softmax", "aten::log_softmax")
def softmax(call: OpCall) -> BaseLayer:
    """y = exp(x - max) / sum(exp(x - max)) over one axis."""
    x, y = call.tensor("self"), call.result
    axis = call.integer("dim", -1) % len(x.shape)
    return Softmax(
        rows=product(size for position, size in enumerate(x.shape) if position != axis),
        width=x.shape[axis],
        dtype=x.dtype,
        out_dtype=y.dtype,
    )
