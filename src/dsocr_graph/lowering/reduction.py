"""Reductions and scans."""

from __future__ import annotations

from typing import cast

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Approximation, combination, lowers, operands
from modelmeter.dims import product
from modelmeter.layers import Combination, Operand, Reduction, Scan


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
    "aten::special_logsumexp",
    "aten::linalg_vector_norm",
    "aten::norm",
    "aten::std",
    "aten::std_mean",
    "aten::nansum",
    "aten::nanmean",
    "aten::count_nonzero",
    "aten::aminmax",
    "aten::_aminmax",
    "aten::sum_to_size",
    "aten::frobenius_norm",
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


@lowers("aten::trace", "aten::linalg_trace")
def trace(call: OpCall) -> Reduction:
    """y = sum of the diagonal of x[n, n], whose other elements are not read."""
    x = call.reads[0]
    rows, columns = x.shape[-2:]
    shorter = min(rows, columns) if isinstance(rows, int) and isinstance(columns, int) else rows
    diagonal = product((*x.shape[:-2], shorter))
    read = Operand(elements=diagonal, dtype=x.dtype, weight=x.is_weight)
    return Reduction(op="trace", elements=diagonal, reads=(read,), writes=operands(call.writes), dtype=x.dtype)


@lowers("aten::median", "aten::nanmedian", "aten::mode", "aten::kthvalue", "aten::quantile", "aten::nanquantile")
def selection(call: OpCall) -> Approximation:
    """y = an element of each row by its rank, and where it is."""
    return Approximation(
        layer=cast("Reduction", reduction(call)), note="one comparison an element; selecting by rank takes more"
    )


@lowers(
    *(f"aten::{name}{suffix}" for name in ("cumsum", "cumprod", "logcumsumexp") for suffix in ("", "_")),
    "aten::cummax",
    "aten::cummin",
    "aten::cumulative_trapezoid",
)
def scan(call: OpCall) -> Scan:
    """y[i] = y[i - 1] + x[i] along one axis."""
    x = call.reads[0]
    return Scan(
        op=call.op.partition("::")[2],
        elements=x.elements,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=x.dtype,
    )


@lowers("aten::diff", "aten::trapezoid", "aten::trapz")
def differences(call: OpCall) -> Combination:
    """y = differences of neighbours, or the sum of their means: two operations an element."""
    return combination(call, flops_per_tap=1 if call.op == "aten::diff" else 2)


@lowers("aten::renorm", "aten::renorm_")
def renorm(call: OpCall) -> Combination:
    """y = slices of x scaled down to a norm: a square and a sum, then a product per element."""
    x = call.tensor("self")
    return Combination(
        op="renorm",
        elements=x.elements,
        taps=1,
        flops_per_tap=3,
        reads=(*operands((x,)), *operands((x,))),
        writes=operands(call.writes),
        dtype=x.dtype,
    )
