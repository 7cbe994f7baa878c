"""Pools: windows reduced to their maximum or mean, and maxima put back where they came from."""

from __future__ import annotations

from typing import cast

from dsocr_graph.ir import Argument, OpCall
from dsocr_graph.lowering.registry import Approximation, lowers, operand, operands
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.layers import Operand, Reduction, Scatter

_SIZES = ("1d", "2d", "3d")


def _axes(call: OpCall) -> int:
    """Return the number of axes that a pool's name says."""
    return next(count for count, size in enumerate(_SIZES, start=1) if size in call.op)


def _pool(call: OpCall, elements: Dim) -> Reduction:
    x = call.reads[0]
    return Reduction(
        op=call.op.partition("::")[2],
        elements=elements,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=x.dtype,
    )


def _taps(size: Argument, axes: int) -> Dim:
    """Return the elements of a window, whose size is given per axis or once for all."""
    sizes = cast("tuple[int, ...]", size if isinstance(size, tuple) else (size,))
    return product(sizes if len(sizes) == axes else sizes * axes)


@lowers(
    *(f"aten::{kind}_pool{size}" for kind in ("max", "avg") for size in _SIZES),
    *(f"aten::max_pool{size}_with_indices" for size in _SIZES),
    *(f"aten::fractional_max_pool{size}" for size in ("2d", "3d")),
)
def pool(call: OpCall) -> Reduction:
    """y[..., o] = max or mean of the window of x that o stands for; padded elements count as any other."""
    return _pool(call, product((call.writes[0].elements, _taps(call.value("kernel_size"), _axes(call)))))


@lowers(*(f"aten::adaptive_{kind}_pool{size}" for kind in ("max", "avg") for size in _SIZES))
def adaptive_pool(call: OpCall) -> Reduction | Approximation:
    """y[..., o] = max or mean of x[floor(o I / O) : ceil((o + 1) I / O)] along each axis."""
    x, y = call.reads[0], call.writes[0]
    axes = _axes(call)
    sizes = list(zip(x.shape[-axes:], y.shape[-axes:], strict=True))
    taken = [_taken(before, after) for before, after in sizes]
    planes = product(x.shape[: len(x.shape) - axes])
    if all(each is not None for each in taken):
        return _pool(call, product((planes, *(each for each in taken if each is not None))))
    apart = [before if each is None else each for (before, _), each in zip(sizes, taken, strict=True)]
    return Approximation(layer=_pool(call, product((planes, *apart))), note="windows of open sizes as if they met")


def _taken(before: Dim, after: Dim) -> Dim | None:
    """Return the elements of all windows along one axis; None where a size is open and windows may overlap."""
    if isinstance(before, int) and isinstance(after, int):
        return sum(-(-(o + 1) * before // after) - o * before // after for o in range(after))
    return before if after == 1 or simplify(total((before, product((-1, after))))) == 0 else None


@lowers("aten::max_unpool2d", "aten::max_unpool3d")
def unpool(call: OpCall) -> Scatter:
    """y = zeros, and x at the positions that a pool found: y is written, and x's elements over it."""
    x, y = call.tensor("self"), call.result
    return Scatter(reads=operands(call.reads), writes=(operand(y), Operand(elements=x.elements, dtype=x.dtype)))
