"""Interpolation: resizing planes (upsample, interpolate)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import attrs
import sympy
from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.errors import ModelMeterError
from modelmeter.layers.base import BaseLayer, Traffic, as_dim

TAPS: Mapping[str, int] = MappingProxyType({"nearest": 1, "linear": 2, "bilinear": 2, "bicubic": 4})
"""Source elements per result along one axis, by mode, when nothing is scaled down with antialiasing."""

_ANTIALIASED = frozenset({"bilinear", "bicubic"})


class UnknownInterpolationError(ModelMeterError, ValueError):
    """No such way to interpolate."""


def _known_mode(_layer: object, _attribute: attrs.Attribute[str], mode: str) -> None:
    if mode not in TAPS:
        raise UnknownInterpolationError(f"no interpolation mode {mode!r}; known are {', '.join(TAPS)}")


def _can_antialias(layer: Interpolation, _attribute: attrs.Attribute[bool], antialias: bool) -> None:
    if antialias and layer.mode not in _ANTIALIASED:
        raise UnknownInterpolationError(
            f"mode {layer.mode!r} has no antialiasing; it exists for {', '.join(sorted(_ANTIALIASED))}"
        )


@frozen(kw_only=True)
class Interpolation(BaseLayer):
    """Planes [in_height, in_width] resized to [out_height, out_width].

    A result is a weighted sum over taps_h * taps_w source elements, computed row by row: ``taps_h*taps_w +
    taps_h`` multiply-adds in two dimensions, ``taps_w`` in one ("linear" resizes the width only); "nearest"
    copies. Taps per axis are 2 (linear, bilinear) or 4 (bicubic); with antialiasing a scale-down by s widens
    them to ceil(taps*s). Computing the weights is left out. Traffic: the source read once, the result written
    once. Backward: as many multiply-adds, from the result's gradient to the source's.

    Its own category is elementwise; a leaf that resizes a table of positions says positional itself.
    Sources: ``aten::upsample_bicubic2d``, ``aten::_upsample_bicubic2d_aa``, ``aten::upsample_linear1d``.

    Attributes
    ----------
    mode : str
        "nearest", "linear", "bilinear" or "bicubic".
    planes : Dim
        Batch times channels.
    in_height, in_width, out_height, out_width : Dim
        Sizes of a plane before and after; heights are 1 for "linear".
    antialias : bool
        Whether a scale-down averages all the source elements that it skips otherwise.
    dtype : DType
        Type of both tensors.

    Raises
    ------
    UnknownInterpolationError
        On an unknown mode, or antialiasing for one that has none.

    Examples
    --------
    >>> layer = Interpolation(
    ...     mode="bicubic", planes=2, in_height=4, in_width=4, out_height=8, out_width=8, antialias=False,
    ...     dtype=DType.FP32,
    ... )
    >>> layer.vector_flops() == 2 * (2 * 8 * 8) * (4 * 4 + 4)
    True
    """

    category: ClassVar[Category] = Category.ELEMENTWISE

    mode: str = field(validator=_known_mode)
    planes: Dim = field(converter=as_dim)
    in_height: Dim = field(converter=as_dim)
    in_width: Dim = field(converter=as_dim)
    out_height: Dim = field(converter=as_dim)
    out_width: Dim = field(converter=as_dim)
    antialias: bool = field(validator=_can_antialias)
    dtype: DType

    def vector_flops(self) -> Dim:
        """Multiply-adds of the taps, 2 FLOPs each. Unit: FLOPs."""
        return product((2, self.planes, self.out_height, self.out_width, self._multiply_adds()))

    def traffic(self) -> Traffic:
        """Source read once, result written once."""
        return Traffic(
            activations_read=product((self.planes, self.in_height, self.in_width, self.dtype.itemsize)),
            written=product((self.planes, self.out_height, self.out_width, self.dtype.itemsize)),
        )

    def backward_vector_flops(self) -> Dim:
        """As many multiply-adds as forward. Unit: FLOPs."""
        return self.vector_flops()

    def backward_traffic(self) -> Traffic:
        """The result's gradient read once, the source's written once."""
        forward = self.traffic()
        return Traffic(activations_read=forward.written, written=forward.activations_read)

    def backward_activation_bytes(self) -> Dim:
        """Nothing is kept: interpolation is linear."""
        return 0

    def _multiply_adds(self) -> Dim:
        if self.mode == "nearest":
            return 0
        across = self._taps(self.in_width, self.out_width)
        if self.mode == "linear":
            return across
        down = self._taps(self.in_height, self.out_height)
        return total((product((down, across)), down))

    def _taps(self, before: Dim, after: Dim) -> Dim:
        taps = TAPS[self.mode]
        if not self.antialias:
            return taps
        widened = simplify(sympy.ceiling(sympy.sympify(taps * before) / after))
        if isinstance(widened, sympy.Expr):
            return simplify(sympy.Max(taps, widened))
        return max(taps, widened)
