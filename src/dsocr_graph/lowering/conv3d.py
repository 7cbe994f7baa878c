"""Convolutions over volumes, such as the patches of two video frames that a picture is embedded as."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.convolution import batched
from dsocr_graph.lowering.registry import lowers
from modelmeter.dims import product
from modelmeter.layers import Conv1d


@lowers("aten::conv3d")
def conv3d(call: OpCall) -> Conv1d:
    """y[B, Co, To, Ho, Wo] = x[B, Ci, T, H, W] convolved with w[Co, Ci/groups, kt, kh, kw].

    The cost depends on the numbers of positions and taps alone, so the three axes are written as one.
    """
    tensor, w = call.tensor("input"), call.tensor("weight")
    x, y = batched(tensor, 3), batched(call.result, 3)
    return Conv1d(
        batch=x[0],
        in_channels=x[1],
        out_channels=w.shape[0],
        in_length=product(x[2:]),
        out_length=product(y[2:]),
        kernel_length=product(w.shape[2:]),
        groups=call.integer("groups", 1),
        bias=call.has("bias"),
        dtype=tensor.dtype,
    )
