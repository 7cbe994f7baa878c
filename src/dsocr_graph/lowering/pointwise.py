"""Elementwise arithmetic and activations."""

from __future__ import annotations

from collections.abc import Mapping

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Rule, lowers, operands, pointwise
from modelmeter.layers import Activation, BaseLayer

# FLOPs per element of the result: one per arithmetic operation of the definition; a transcendental function counts
# as one, as in torch's and fvcore's counts of elementwise work. Comparisons and logic are no floating-point work.
_FLOPS_PER_ELEMENT: Mapping[str, int] = {
    "add": 1,
    "sub": 1,
    "rsub": 1,
    "mul": 1,
    "div": 1,
    "true_divide": 1,
    "neg": 1,
    "abs": 1,
    "pow": 1,
    "square": 1,
    "sqrt": 1,
    "rsqrt": 2,
    "reciprocal": 1,
    "exp": 1,
    "log": 1,
    "sin": 1,
    "cos": 1,
    "erf": 1,
    "maximum": 1,
    "minimum": 1,
    "clamp": 2,
    "clamp_min": 1,
    "round": 1,
    "floor": 1,
    "addcmul": 3,
    "lerp": 3,
    "floor_divide": 0,
    "remainder": 0,
    "eq": 0,
    "ne": 0,
    "lt": 0,
    "le": 0,
    "gt": 0,
    "ge": 0,
    "logical_and": 0,
    "logical_or": 0,
    "logical_not": 0,
    "bitwise_and": 0,
    "bitwise_or": 0,
    "bitwise_not": 0,
    "where": 0,
    "masked_fill": 0,
    "tril": 0,
    "triu": 0,
    "isin": 0,
    "isnan": 0,
    "isinf": 0,
}

# sigmoid: negate, exp, add, divide; the others multiply or scale on top of it.
_ACTIVATION_FLOPS: Mapping[str, int] = {
    "relu": 1,
    "sigmoid": 4,
    "silu": 5,
    "tanh": 5,
    "gelu": 5,  # x * 0.5 * (1 + erf(x / sqrt(2)))
    "hardswish": 5,
    "softplus": 3,
    "elu": 3,
    "leaky_relu": 2,
}


def _elementwise_rule(flops: int) -> Rule:
    def rule(call: OpCall) -> BaseLayer:
        return pointwise(call, flops_per_element=flops if call.result.dtype.is_floating else 0)

    return rule


def _activation_rule(flops: int) -> Rule:
    def rule(call: OpCall) -> BaseLayer:
        y = call.result
        return Activation(
            op=call.op.partition("::")[2],
            elements=y.elements,
            flops_per_element=flops,
            reads=operands(call.reads),
            writes=operands(call.writes),
            dtype=y.dtype,
        )

    return rule


for _name, _flops in _FLOPS_PER_ELEMENT.items():
    lowers(f"aten::{_name}", f"aten::{_name}_")(_elementwise_rule(_flops))
for _name, _flops in _ACTIVATION_FLOPS.items():
    lowers(f"aten::{_name}", f"aten::{_name}_")(_activation_rule(_flops))
lowers("aten::__and__", "aten::__or__", "aten::__xor__")(_elementwise_rule(0))
