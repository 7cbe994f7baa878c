"""Normalizations and softmax."""

from __future__ import annotations

from typing import cast

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import lowers, operands, rows_of
from modelmeter.dims import product
from modelmeter.layers import BaseLayer, BatchNorm, Combination, GroupNorm, LayerNorm, RMSNorm, Softmax


@lowers("aten::layer_norm", "aten::native_layer_norm")
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


@lowers(
    "aten::softmax",
    "aten::_softmax",
    "aten::log_softmax",
    "aten::_log_softmax",
    "aten::_safe_softmax",
    "aten::special_softmax",
    "aten::special_log_softmax",
)
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


@lowers("aten::batch_norm")
def batch_norm(call: OpCall) -> BatchNorm:
    """y[B, C, ...] = (x - mean[C]) / sqrt(var[C] + eps) * w[C] + b[C]."""
    return _by_channel(call, training=bool(call.value("training", False)))


@lowers("aten::instance_norm")
def instance_norm(call: OpCall) -> BatchNorm | GroupNorm:
    """Each channel of each item over its own positions: a group norm with a channel per group."""
    x = call.tensor("input")
    if not call.value("use_input_stats", True):
        return _by_channel(call, training=False)
    return GroupNorm(
        batch=x.shape[0],
        channels=x.shape[1],
        groups=x.shape[1],
        spatial=product(x.shape[2:]),
        weight=call.has("weight"),
        bias=call.has("bias"),
        dtype=x.dtype,
    )


def _by_channel(call: OpCall, *, training: bool) -> BatchNorm:
    x = call.tensor("input")
    return BatchNorm(
        batch=x.shape[0],
        channels=x.shape[1],
        spatial=product(x.shape[2:]),
        weight=call.has("weight"),
        bias=call.has("bias"),
        running=call.has("running_mean"),
        training=training,
        dtype=x.dtype,
    )


@lowers("aten::_weight_norm", "aten::_weight_norm_interface")
def weight_norm(call: OpCall) -> Combination:
    """w = v * g / |v|, a norm for each slice of v: a square and a sum, then a product per element."""
    v = call.tensor("v")
    return Combination(
        op="weight_norm",
        elements=v.elements,
        taps=1,
        flops_per_tap=3,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=v.dtype,
    )
