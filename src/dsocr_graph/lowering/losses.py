"""Losses: a term per element, and their mean or sum."""

from __future__ import annotations

from collections.abc import Mapping

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Approximation, combination, lowers

_FLOPS: Mapping[str, int] = {
    "l1_loss": 3,  # subtract, absolute value, sum
    "mse_loss": 3,  # subtract, square, sum
    "huber_loss": 6,  # subtract, absolute value, compare, square and scale or multiply and subtract, sum
    "smooth_l1_loss": 6,
    "soft_margin_loss": 5,  # log(1 + exp(-y x)): two products, exp, log(1 + x), sum
    "binary_cross_entropy": 7,  # y log p + (1 - y) log(1 - p): two logs, two subtractions, two products, sum
    "binary_cross_entropy_with_logits": 8,  # (1 - y) x + max(-x, 0) + log(1 + exp(-|x|)), sum
    "kl_div": 4,  # y (log y - x): log, subtract, multiply, sum
    "poisson_nll_loss": 4,  # exp(x) - y x: exp, product, subtract, sum
    "cross_entropy_loss": 5,  # a softmax: maximum, subtract, exp, sum, and the logarithm once a row
    "nll_loss": 0,  # one element a row is picked
    "nll_loss_nd": 0,
    "nll_loss2d": 0,
    "margin_ranking_loss": 4,  # max(0, -y (a - b) + margin): subtract, product, add, maximum
    "hinge_embedding_loss": 3,  # x or max(0, margin - x), sum
    "multi_margin_loss": 4,  # max(0, margin - x_y + x): subtract, add, maximum, sum
    "multilabel_margin_loss": 4,
    "cosine_embedding_loss": 6,  # three sums of products
    "triplet_margin_loss": 8,  # two distances
}
"""FLOPs per element of the first operand; reductions to rows and scalars are left out."""


@lowers(*(f"aten::{name}" for name in _FLOPS))
def loss(call: OpCall) -> Approximation:
    """y = mean or sum over the elements of x of a term of x and its target."""
    layer = combination(call, flops_per_tap=_FLOPS[call.op.partition("::")[2]])
    return Approximation(layer=layer, note="FLOPs of the loss's definition, in one kernel")
