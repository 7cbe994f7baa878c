"""Elementwise arithmetic and activations: which row of modelmeter's table of FLOPs per element each operator takes."""

from __future__ import annotations

from collections.abc import Mapping

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Rule, lowers, operands, pointwise
from modelmeter.layers import Activation, BaseLayer
from modelmeter.layers.pointwise_flops import flops_per_element

_ARITHMETIC: Mapping[str, tuple[str, ...]] = {
    "add": ("add", "sub", "rsub", "neg", "abs", "round", "floor", "ceil"),
    "mul": ("mul",),
    "div": ("div", "true_divide"),
    "extremum": ("maximum", "minimum", "clamp_min", "clamp_max"),
    "clamp": ("clamp",),
    "power": ("pow", "square"),
    "special": ("sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos", "erf"),
    "scaled_product": ("addcmul",),
    "lerp": ("lerp",),
    "predicate": (
        *("eq", "ne", "lt", "le", "gt", "ge", "isin", "isnan", "isinf"),
        *("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not"),
    ),
    "select": ("where", "masked_fill", "tril", "triu"),
}
"""Operators, without namespace, by row."""

_INTEGER = ("floor_divide", "remainder", "__and__", "__or__", "__xor__")  # indices and masks: no floating-point work

_ACTIVATIONS = ("relu", "sigmoid", "silu", "tanh", "hardswish", "softplus", "elu", "leaky_relu")  # row of that name


def _elementwise_rule(flops: int) -> Rule:
    def rule(call: OpCall) -> BaseLayer:
        return pointwise(call, flops_per_element=flops if call.result.dtype.is_floating else 0)

    return rule


def _activation(call: OpCall, row: str) -> Activation:
    y = call.result
    return Activation(
        op=row,
        elements=y.elements,
        flops_per_element=flops_per_element(row),
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=y.dtype,
    )


def _activation_rule(row: str) -> Rule:
    return lambda call: _activation(call, row)


@lowers("aten::gelu", "aten::gelu_")
def gelu(call: OpCall) -> Activation:
    """y = x/2 * (1 + erf(x / sqrt(2))), or its approximation by tanh."""
    return _activation(call, "gelu_tanh" if call.value("approximate", "none") == "tanh" else "gelu")


for _row, _operators in _ARITHMETIC.items():
    for _operator in _operators:
        lowers(f"aten::{_operator}", f"aten::{_operator}_")(_elementwise_rule(flops_per_element(_row)))
for _operator in _INTEGER:
    lowers(f"aten::{_operator}")(_elementwise_rule(0))
for _operator in _ACTIVATIONS:
    lowers(f"aten::{_operator}", f"aten::{_operator}_")(_activation_rule(_operator))
