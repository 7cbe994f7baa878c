"""Elementwise arithmetic and activations: which row of modelmeter's table of FLOPs per element each operator takes."""

from __future__ import annotations

from collections.abc import Mapping

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Rule, lowers, operands, pointwise
from modelmeter.layers import Activation, BaseLayer
from modelmeter.layers.pointwise_flops import flops_per_element

_SPECIAL = (
    *("bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "digamma", "erf", "erfc", "erfcx", "erfinv"),
    *("exp2", "expm1", "gammainc", "gammaincc", "gammaln", "i0", "i0e", "i1", "i1e", "log1p", "log_ndtr"),
    *("ndtr", "ndtri", "polygamma", "psi", "sinc", "zeta"),
)
"""Functions of torch.special; whatever a library computes them with counts as one special function."""

_ARITHMETIC: Mapping[str, tuple[str, ...]] = {
    "add": (
        *("add", "sub", "subtract", "rsub", "neg", "negative", "abs", "absolute", "round", "floor", "ceil"),
        *("trunc", "fix", "frac", "sign", "sgn"),
    ),
    "mul": ("mul", "multiply", "deg2rad", "rad2deg", "ldexp"),
    "div": ("div", "divide", "true_divide", "fmod"),
    "extremum": ("maximum", "minimum", "clamp_min", "clamp_max", "fmax", "fmin"),
    "clamp": ("clamp", "clip"),
    "power": ("pow", "square", "float_power"),
    "special": (
        *("sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos", "erf", "exp2", "expm1", "log2", "log10", "log1p"),
        *(
            "tan",
            "asin",
            "acos",
            "atan",
            "atan2",
            "arctan2",
            "sinh",
            "cosh",
            "asinh",
            "acosh",
            "atanh",
            "erfc",
            "erfinv",
        ),
        *("arcsin", "arccos", "arctan", "arcsinh", "arccosh", "arctanh", "igamma", "igammac"),
        *("lgamma", "digamma", "polygamma", "sinc", "i0", "mvlgamma", "angle"),
        *(f"special_{name}" for name in _SPECIAL),
    ),
    "logit": ("logit", "special_logit"),
    "log_of_sum": ("logaddexp", "logaddexp2"),
    "log_product": ("xlogy", "special_xlogy", "special_xlog1py", "special_entr"),
    "scaled_product": ("addcmul", "addcdiv"),
    "lerp": ("lerp",),
    "predicate": (
        *("eq", "ne", "lt", "le", "gt", "ge", "isin", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "isreal"),
        *("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not", "logical_xor"),
        *("bitwise_xor", "signbit", "greater", "greater_equal", "less", "less_equal", "not_equal"),
    ),
    "select": ("where", "masked_fill", "tril", "triu", "nan_to_num", "copysign", "nextafter", "heaviside"),
}
"""Operators, without namespace, by row."""

_INTEGER = (
    *("floor_divide", "remainder", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "gcd", "lcm"),
    *("bitwise_left_shift", "bitwise_right_shift"),
)  # indices and masks: no floating-point work

_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in (
            *("relu", "sigmoid", "silu", "tanh", "hardswish", "softplus", "elu", "leaky_relu", "hardsigmoid"),
            *("hardshrink", "softshrink", "log_sigmoid", "selu", "celu", "mish", "threshold", "glu"),
        )
    },
    "sigmoid": ("sigmoid", "special_expit"),
    "hardtanh": ("hardtanh", "relu6"),
    "prelu": ("prelu", "_prelu_kernel", "rrelu"),
}
"""Operators, without namespace, by row."""

_COMPLEX: Mapping[str, int] = {
    **dict.fromkeys(("add", "sub", "subtract", "rsub", "neg", "negative"), 2),  # both parts
    **dict.fromkeys(("mul", "multiply", "square"), 6),  # (a + bi)(c + di): 4 multiplications, 2 additions
    **dict.fromkeys(("div", "divide", "true_divide"), 11),  # by the conjugate 6, |c + di|^2 3, two divisions
    **dict.fromkeys(("where", "masked_fill", "tril", "triu", "eq", "ne"), 0),
    "abs": 4,  # two squares, their sum, a root
    "absolute": 4,
    "angle": 1,
    "reciprocal": 5,
    "exp": 5,  # exp(a) (cos b + i sin b): three special functions, two multiplications
    "addcmul": 8,
}
"""FLOPs per element of a result that has a complex operand."""

_COMPLEX_FUNCTION = 10
"""FLOPs of any other function of a complex number: special functions of both parts, and products of these."""


def _elementwise_rule(flops: int) -> Rule:
    def rule(call: OpCall) -> BaseLayer:
        if any(tensor.dtype.is_complex for tensor in (*call.reads, *call.writes)):
            return _of_complex(call)
        return pointwise(call, flops_per_element=flops if call.result.dtype.is_floating else 0)

    return rule


def _of_complex(call: OpCall) -> BaseLayer:
    """Count the real arithmetic of complex numbers; a factor that is real is multiplied with both parts."""
    name = call.op.partition("::")[2].removesuffix("_")
    if name in ("mul", "multiply", "div", "divide", "true_divide") and not call.reads[-1].dtype.is_complex:
        return pointwise(call, flops_per_element=2)
    return pointwise(call, flops_per_element=_COMPLEX.get(name, _COMPLEX_FUNCTION))


@lowers("aten::complex", "aten::conj_physical", "aten::resolve_conj", "aten::resolve_neg")
def parts(call: OpCall) -> BaseLayer | None:
    """y = a complex number of two parts, or its conjugate; free where the result is x itself."""
    return None if call.is_view else pointwise(call, flops_per_element=0)


@lowers("aten::polar")
def polar(call: OpCall) -> BaseLayer:
    """y = r cos t + i r sin t: two special functions, two multiplications."""
    return pointwise(call, flops_per_element=4)


@lowers("aten::linalg_cross", "aten::cross")
def cross(call: OpCall) -> BaseLayer:
    """y = a x b: two multiplications and a subtraction per element of the result."""
    return pointwise(call, flops_per_element=3)


@lowers("aten::outer", "aten::ger", "aten::kron", "aten::addr", "aten::vander", "aten::linalg_vander")
def outer(call: OpCall) -> BaseLayer:
    """y = every product of two elements; addr adds one to each."""
    flops = 2 if call.op == "aten::addr" else 1
    return pointwise(call, flops_per_element=flops)


@lowers("aten::isclose")
def isclose(call: OpCall) -> BaseLayer:
    """y = |a - b| <= atol + rtol |b|: two absolute values, a difference, a product and a sum."""
    return pointwise(call, flops_per_element=5)


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
    lowers(f"aten::{_operator}", *([] if _operator.endswith("_") else [f"aten::{_operator}_"]))(_elementwise_rule(0))
for _row, _operators in _ACTIVATIONS.items():
    for _operator in _operators:
        lowers(f"aten::{_operator}", f"aten::{_operator}_")(_activation_rule(_row))
