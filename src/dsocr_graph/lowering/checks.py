"""Checks that a model makes of its own inputs, such as whether image features and image tokens are equal in number."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.reduction import reduction
from dsocr_graph.lowering.registry import Approximation, Unsupported, lowers
from modelmeter.layers import BaseLayer


@lowers("aten::_is_all_true")
def is_all_true(call: OpCall) -> BaseLayer | Approximation | Unsupported | None:
    """y = all of x[...]: each element is read once and takes part in one operation."""
    return reduction(call)
