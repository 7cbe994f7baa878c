"""FLOPs per element of everything that is no matrix product: one table, each figure with its reason.

Each addition, multiplication, division, minimum or maximum and each special function (exp, erf, tanh, sqrt, sin, cos,
log) counts as 1. Scalars per row, such as the division that makes a mean, are left out: under 1/width of the
work.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attrs import frozen

from modelmeter.errors import ModelMeterError


class UnknownPointwiseError(ModelMeterError, KeyError):
    """No figure is known for a pointwise operation."""

    def __str__(self) -> str:
        """Return the message itself; a KeyError would quote it."""
        return str(self.args[0])


@frozen(kw_only=True)
class PointwiseFlops:
    """What one element costs, and why."""

    flops: int  # FLOPs per element
    reason: str


def _row(flops: int, reason: str) -> PointwiseFlops:
    return PointwiseFlops(flops=flops, reason=reason)


POINTWISE_FLOPS: Mapping[str, PointwiseFlops] = MappingProxyType(
    {
        # arithmetic
        "copy": _row(0, "moves a value"),
        "cast": _row(0, "changes a value's type; no arithmetic"),
        "select": _row(0, "picks one of two values (where, masked_fill)"),
        "add": _row(1, "one addition; sub, neg and rsub alike"),
        "mul": _row(1, "one multiplication"),
        "div": _row(1, "one division"),
        "extremum": _row(1, "one comparison that keeps a number: minimum, maximum, clamp by one bound"),
        "predicate": _row(0, "a comparison or logic whose result is a truth value"),
        "clamp": _row(2, "a comparison with each bound"),
        "power": _row(1, "one special function, or one multiplication for a square"),
        "special": _row(1, "one special function: exp, log, sqrt, rsqrt, sin, cos, erf, tanh, reciprocal"),
        "logit": _row(3, "log(x / (1 - x)): subtract, divide, log"),
        "log_of_sum": _row(6, "max + log(1 + exp(-|a - b|)): subtract, absolute value, exp, log, maximum, add"),
        "log_product": _row(2, "x * log(y): log, multiply"),
        "lerp": _row(3, "a + w*(b - a): subtract, multiply, add"),
        "scaled_product": _row(3, "a + c*x*y (addcmul): two multiplications, one addition"),
        "multiply_add": _row(2, "one multiplication, one addition"),
        # activations
        "relu": _row(1, "one comparison with 0"),
        "leaky_relu": _row(2, "compare with 0, multiply by the slope"),
        "elu": _row(3, "compare with 0, exp, subtract"),
        "softplus": _row(3, "log(1 + exp(x)): exp, add, log"),
        "hardswish": _row(5, "x * clamp(x + 3, 0, 6) / 6: add, two comparisons, two multiplications"),
        "tanh": _row(1, "one special function"),
        "sigmoid": _row(4, "1 / (1 + exp(-x)): negate, exp, add, divide"),
        "silu": _row(5, "x * sigmoid(x): sigmoid 4, multiply"),
        "gelu": _row(5, "x/2 * (1 + erf(x/sqrt 2)): scale, erf, add, two multiplications"),
        "gelu_tanh": _row(9, "x/2 * (1 + tanh(a*(x + b*x^3))): cube 2, b, add, a, tanh, add, two multiplications"),
        "hardsigmoid": _row(4, "clamp(x + 3, 0, 6) / 6: add, two comparisons, multiply"),
        "hardshrink": _row(2, "two comparisons with the bounds"),
        "softshrink": _row(3, "two comparisons with the bounds, subtract"),
        "hardtanh": _row(2, "a comparison with each bound; relu6 alike"),
        "log_sigmoid": _row(
            5, "min(0, x) - log(1 + exp(-|x|)): absolute value, exp, log(1 + x) as one, minimum, subtract"
        ),
        "selu": _row(4, "compare with 0, exp, subtract, multiply by the scale"),
        "celu": _row(5, "compare with 0, divide, exp, subtract, multiply"),
        "mish": _row(5, "x * tanh(softplus(x)): softplus 3, tanh, multiply"),
        "prelu": _row(2, "compare with 0, multiply by the slope; rrelu alike"),
        "threshold": _row(1, "one comparison with the threshold"),
        "glu": _row(5, "a * sigmoid(b) per element of the result: sigmoid 4, multiply"),
        "quick_gelu": _row(6, "x * sigmoid(1.702 x): scale, sigmoid 4, multiply"),
        # recurrent cells, per element of the hidden state, without the sums of products and biases
        "rnn_tanh_gates": _row(1, "one special function: tanh"),
        "rnn_relu_gates": _row(1, "one comparison with 0"),
        "lstm_gates": _row(
            18, "three sigmoids 12, two tanh, f*c + i*g: two products and a sum, o*tanh(c): one product"
        ),
        "gru_gates": _row(13, "two sigmoids 8, r*(W h): multiply, tanh, n + z*(h - n): subtract, multiply, add"),
        # rows
        "softmax": _row(5, "running maximum, subtract it, exp, sum, divide"),
        "softmax_backward": _row(4, "y * (dy - sum(dy * y)): multiply, sum, subtract, multiply"),
        "layer_norm": _row(5, "sum for the mean, subtract it, square, sum for the variance, multiply by 1/std"),
        "layer_norm_backward": _row(9, "x_hat 2, the two row sums 3, dx = (g - a - x_hat*b)/std 4"),
        "rms_norm": _row(3, "square, sum, multiply by 1/rms"),
        "rms_norm_backward": _row(6, "x_hat 1, the row sum 2, dx = (g - x_hat*b)/rms 3"),
        "given_statistics": _row(2, "a norm with a known mean and 1/std: subtract, multiply"),
        "norm_scale": _row(1, "multiply by the weight of a norm"),
        "norm_shift": _row(1, "add the bias of a norm"),
        "norm_scale_backward": _row(3, "scale the gradient 1, the weight's gradient: multiply, sum"),
        "norm_shift_backward": _row(1, "the bias's gradient: sum"),
        "quantize": _row(3, "x / (max|x| / 448) of a block: absolute value, running maximum, divide"),
        # attention scores, per entry of the [query, key] matrix
        "attention_score": _row(6, "scale 1, softmax 5"),
        "attention_mask": _row(1, "add the mask"),
        "attention_score_backward": _row(6, "recompute: scale, subtract, exp; P*(dP - d): 2; scale dS"),
        "attention_delta": _row(2, "per element of the result: d = sum(dO * O): multiply, sum"),
    }
)
"""FLOPs per element by operation."""


def flops_per_element(name: str) -> int:
    """Return the FLOPs per element of an operation in the table.

    Raises
    ------
    UnknownPointwiseError
        When the table has no such operation; the error lists those it has.

    Examples
    --------
    >>> flops_per_element("silu")
    5
    """
    if name not in POINTWISE_FLOPS:
        raise UnknownPointwiseError(
            f"no FLOPs per element for {name!r}; known are {', '.join(POINTWISE_FLOPS)}; "
            "add a row with its reason to modelmeter/layers/pointwise_flops.py"
        )
    return POINTWISE_FLOPS[name].flops
