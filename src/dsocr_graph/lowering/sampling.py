"""Samples at any place, distances of pairs, and columns added up to pictures."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Approximation, combination, lowers, operands
from modelmeter.dims import Dim, product
from modelmeter.layers import Combination, Reduction

_GRID_TAPS = (2, 1, 4)  # per axis: bilinear, nearest, bicubic, by the operator's number


@lowers("aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d")
def grid_sampler(call: OpCall) -> Approximation:
    """y[B, C, ...] = weighted neighbours of x[B, C, ...] at the points of grid[B, ..., axes]."""
    per_axis = _GRID_TAPS[call.integer("interpolation_mode", 0)]
    axes = len(call.tensor("input").shape) - 2
    flops = 2 if per_axis > 1 else 0  # the nearest neighbour is only picked
    layer = combination(call, elements=call.result.elements, taps=per_axis**axes, flops_per_tap=flops)
    return Approximation(
        layer=layer,
        note="a multiply-add per neighbour; a point's place and weights, once for all channels, are left out",
    )


@lowers("aten::affine_grid_generator")
def affine_grid(call: OpCall) -> Combination:
    """grid[B, ..., n] = theta[B, n, n + 1] times the places of a picture, with a one: n + 1 multiply-adds."""
    taps = call.tensor("theta").shape[2]
    return combination(call, elements=call.result.elements, taps=taps, flops_per_tap=2)


@lowers("aten::upsample_trilinear3d")
def trilinear(call: OpCall) -> Approximation:
    """y[B, C, Do, Ho, Wo] = the 8 neighbours of x[B, C, D, H, W], axis by axis."""
    layer = combination(call, elements=call.result.elements, taps=8 + 4 + 2, flops_per_tap=2)
    return Approximation(layer=layer, note="multiply-adds of 8 + 4 + 2 neighbours; their weights are left out")


@lowers("aten::upsample_nearest3d", *(f"aten::_upsample_nearest_exact{size}" for size in ("1d", "2d", "3d")))
def nearest(call: OpCall) -> Combination:
    """y = the nearest neighbour in x."""
    return combination(call, elements=call.result.elements, taps=1, flops_per_tap=0)


@lowers("aten::cdist", "aten::_cdist_forward", "aten::_euclidean_dist")
def cdist(call: OpCall) -> Combination | Approximation:
    """y[B, P, R] = distances of the rows of a[B, P, M] and b[B, R, M]: subtract, square or absolute value, add."""
    layer = combination(call, elements=call.result.elements, taps=call.reads[0].shape[-1], flops_per_tap=3)
    if call.value("p", 2.0) != 2:
        return layer
    return Approximation(layer=layer, note="subtract, square, add; beyond 25 rows torch takes a matrix product instead")


@lowers("aten::pdist", "aten::_pdist_forward")
def pdist(call: OpCall) -> Combination:
    """y = distances of all pairs of the rows of x[N, M]."""
    return combination(call, elements=call.result.elements, taps=call.reads[0].shape[-1], flops_per_tap=3)


@lowers("aten::cosine_similarity")
def cosine_similarity(call: OpCall) -> Combination:
    """y = a . b / (|a| |b|) along one axis: three sums of products."""
    return combination(call, elements=_longest(call), taps=1, flops_per_tap=6)


@lowers("aten::pairwise_distance", "aten::dist")
def pairwise_distance(call: OpCall) -> Combination:
    """y = |a - b + eps| along one axis: subtract, add, power, sum."""
    return combination(call, elements=_longest(call), taps=1, flops_per_tap=4)


def _longest(call: OpCall) -> Dim:
    """Return the elements of both operands broadcast."""
    left, right = (tensor.shape for tensor in (call.reads[0], call.reads[-1]))
    rank = max(len(left), len(right))
    padded = [(1,) * (rank - len(shape)) + shape for shape in (left, right)]
    return product(a if b == 1 else b for a, b in zip(*padded, strict=True))


@lowers("aten::col2im")
def fold(call: OpCall) -> Reduction:
    """y[B, C, H, W] = columns x[B, C*taps, L] added where they overlap: one addition per element of x."""
    x = call.reads[0]
    return Reduction(
        op="col2im", elements=x.elements, reads=operands(call.reads), writes=operands(call.writes), dtype=x.dtype
    )
