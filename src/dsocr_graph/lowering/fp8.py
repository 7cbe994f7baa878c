"""Products in blocks of fp8, and the quantisation of the activations that go into them."""

from __future__ import annotations

from typing import TypeVar, cast

from attrs import evolve

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.linear import grouped_linear, linear
from dsocr_graph.lowering.registry import lowers, pointwise
from modelmeter.layers import BaseLayer, GroupedLinear, Linear
from modelmeter.layers.pointwise_flops import flops_per_element
from modelmeter.layers.weight_format import WeightFormat

Product = TypeVar("Product", Linear, GroupedLinear)


@lowers("dsocr_graph::quantize_rows")
def quantize_rows(call: OpCall) -> BaseLayer:
    """q[..., K] = x[..., K] / s, s[..., ceil(K / k)] = max|x| / 448 of each run of k: x read, q and s written."""
    return pointwise(call, flops_per_element=flops_per_element("quantize"))


@lowers("dsocr_graph::block_scaled_linear")
def block_scaled_linear(call: OpCall) -> Linear:
    """y[..., N] = (x[..., K] * s) @ (w[N, K] * t).T, the scales s of runs of a row and t of blocks of w read too."""
    return _in_blocks(cast("Linear", linear(call)), call)


@lowers("dsocr_graph::block_scaled_grouped_linear")
def block_scaled_grouped_linear(call: OpCall) -> GroupedLinear:
    """y[R, N]: rows of x[R, K], sorted by expert, each times its expert's w[e, N, K].T, both with scales."""
    return _in_blocks(cast("GroupedLinear", grouped_linear(call)), call)


def _in_blocks(layer: Product, call: OpCall) -> Product:
    rows, width = cast("tuple[int, int]", call.value("block"))
    stored = WeightFormat(
        dtype=call.tensor("weight").dtype,
        other_dtype=call.result.dtype,
        group_size=width,
        scale_dtype=call.tensor("weight_scale").dtype,
        group_rows=rows,
    )
    return evolve(layer, weights=stored, out_dtype=call.result.dtype, input_group_size=width)
