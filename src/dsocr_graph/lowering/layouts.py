"""Changes of layout that take their shape from another tensor."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.movement import copy_if_needed
from dsocr_graph.lowering.registry import Approximation, Unsupported, lowers
from modelmeter.layers import BaseLayer


@lowers("aten::reshape_as")
def reshape_as(call: OpCall) -> BaseLayer | Approximation | Unsupported | None:
    """y = x in the shape of another tensor, whose values are not read: free when y shares x's memory."""
    return copy_if_needed(call)
