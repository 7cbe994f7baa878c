"""Convolutions."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import lowers
from modelmeter.layers import Conv1d, Conv2d


@lowers("aten::conv2d")
def conv2d(call: OpCall) -> Conv2d:
    """y[B, Co, Ho, Wo] = x[B, Ci, H, W] convolved with w[Co, Ci/groups, kh, kw]."""
    x, w, y = call.tensor("input"), call.tensor("weight"), call.result
    return Conv2d(
        batch=x.shape[0],
        in_channels=x.shape[1],
        out_channels=w.shape[0],
        in_height=x.shape[2],
        in_width=x.shape[3],
        out_height=y.shape[2],
        out_width=y.shape[3],
        kernel_height=w.shape[2],
        kernel_width=w.shape[3],
        groups=call.integer("groups", 1),
        bias=call.has("bias"),
        dtype=x.dtype,
    )


@lowers("aten::conv1d")
def conv1d(call: OpCall) -> Conv1d:
    """y[B, Co, Lo] = x[B, Ci, L] convolved with w[Co, Ci/groups, k]."""
    x, w, y = call.tensor("input"), call.tensor("weight"), call.result
    return Conv1d(
        batch=x.shape[0],
        in_channels=x.shape[1],
        out_channels=w.shape[0],
        in_length=x.shape[2],
        out_length=y.shape[2],
        kernel_length=w.shape[2],
        groups=call.integer("groups", 1),
        bias=call.has("bias"),
        dtype=x.dtype,
    )
