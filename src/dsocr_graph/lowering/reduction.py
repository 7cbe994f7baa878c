"""Reductions and scans."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import lowers, operands
from modelmeter.layers import Reduction, Scan


@lowers(
    "aten::sum",
    "aten::mean",
    "aten::amax",
    "aten::amin",
    "aten::max",
    "aten::min",
    "aten::argmax",
    "aten::argmin",
    "aten::var",
    "aten::var_mean",
    "aten::prod",
    "aten::any",
    "aten::all",
    "aten::logsumexp",
    "aten::linalg_vector_norm",
    "aten::norm",
)
def reduction(call: OpCall) -> Reduction:
    """y = reduce(x) over some axes: each element of x is read once and takes part in one operation."""
    reads = call.reads
    return Reduction(
        op=call.op.partition("::")[2],
        elements=reads[0].elements,
        reads=operands(reads),
        writes=operands(call.writes),
        dtype=reads[0].dtype,
    )


@lowers("aten::cumsum", "aten::cumprod")
def scan(call: OpCall) -> Scan:
    """y[i] = y[i - 1] + x[i] along one axis."""
    x = call.tensor("self")
    return Scan(
        op=call.op.partition("::")[2],
        elements=x.elements,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=x.dtype,
    )
