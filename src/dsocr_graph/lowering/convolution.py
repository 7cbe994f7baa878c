"""Convolutions, and transposed ones."""

from __future__ import annotations

from typing import cast

from dsocr_graph.ir import OpCall, TensorSpec
from dsocr_graph.lowering.registry import Unsupported, lowers
from modelmeter.dims import Dim, product
from modelmeter.layers import BaseLayer, Conv1d, Conv2d, ConvTranspose


def batched(tensor: TensorSpec, axes: int) -> tuple[Dim, ...]:
    """Return the shape [B, C, ...] of pictures; an operator takes a single one without its batch axis too."""
    return tensor.shape if len(tensor.shape) == axes + 2 else (1, *tensor.shape)


@lowers("aten::conv2d")
def conv2d(call: OpCall) -> Conv2d:
    """y[B, Co, Ho, Wo] = x[B, Ci, H, W] convolved with w[Co, Ci/groups, kh, kw]."""
    tensor, w = call.tensor("input"), call.tensor("weight")
    x, y = batched(tensor, 2), batched(call.result, 2)
    return Conv2d(
        batch=x[0],
        in_channels=x[1],
        out_channels=w.shape[0],
        in_height=x[2],
        in_width=x[3],
        out_height=y[2],
        out_width=y[3],
        kernel_height=w.shape[2],
        kernel_width=w.shape[3],
        groups=call.integer("groups", 1),
        bias=call.has("bias"),
        dtype=tensor.dtype,
    )


@lowers("aten::conv1d")
def conv1d(call: OpCall) -> Conv1d:
    """y[B, Co, Lo] = x[B, Ci, L] convolved with w[Co, Ci/groups, k]."""
    tensor, w = call.tensor("input"), call.tensor("weight")
    x, y = batched(tensor, 1), batched(call.result, 1)
    return Conv1d(
        batch=x[0],
        in_channels=x[1],
        out_channels=w.shape[0],
        in_length=x[2],
        out_length=y[2],
        kernel_length=w.shape[2],
        groups=call.integer("groups", 1),
        bias=call.has("bias"),
        dtype=tensor.dtype,
    )


@lowers("aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d")
def conv_transpose(call: OpCall) -> ConvTranspose:
    """y[B, Co, ...]: each x[B, Ci, ...] spread over the taps of w[Ci, Co/groups, ...]."""
    return _transposed(call, call.integer("groups", 1))


def _transposed(call: OpCall, groups: int) -> ConvTranspose:
    tensor, w = call.tensor("input"), call.tensor("weight")
    axes = len(w.shape) - 2
    x, y = batched(tensor, axes), batched(call.result, axes)
    return ConvTranspose(
        batch=x[0],
        in_channels=x[1],
        out_channels=y[1],
        in_positions=product(x[2:]),
        out_positions=product(y[2:]),
        taps=product(w.shape[2:]),
        groups=groups,
        bias=call.has("bias"),
        dtype=tensor.dtype,
    )


@lowers("aten::convolution")
def convolution(call: OpCall) -> BaseLayer | Unsupported:
    """Any of them, as one operator says it: `transposed` and the axes of w tell which."""
    if call.value("transposed", False):
        return _transposed(call, call.integer("groups", 1))
    axes = len(call.tensor("weight").shape) - 2
    if axes == 1:
        return cast("Conv1d", conv1d(call))
    return cast("Conv2d", conv2d(call)) if axes == 2 else Unsupported(reason=f"a convolution over {axes} axes")


@lowers("aten::conv_tbc")
def conv_tbc(call: OpCall) -> Conv1d:
    """y[T, B, Co] = x[T, B, Ci] convolved with w[k, Ci, Co]."""
    x, w, y = call.tensor("self"), call.tensor("weight"), call.result
    return Conv1d(
        batch=x.shape[1],
        in_channels=x.shape[2],
        out_channels=w.shape[2],
        in_length=x.shape[0],
        out_length=y.shape[0],
        kernel_length=w.shape[0],
        bias=True,
        dtype=x.dtype,
    )
