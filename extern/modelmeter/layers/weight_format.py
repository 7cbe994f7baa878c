"""WeightFormat: how a layer's parameters are stored where that is another type than the layer computes in."""

from __future__ import annotations

import sympy
from attrs import field, frozen

from modelmeter.dims import Dim, simplify, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import as_dim, bytes_of


@frozen(kw_only=True)
class WeightFormat:
    """Type of a matrix of parameters, its scales, and the type of the parameters beside it (a bias).

    With a group size, each run of so many elements along the input features of a row shares one scale; the last run
    of a row may be shorter. Zero points are not stored: the format is symmetric. Source of the layout: Frantar et al.
    2022 (GPTQ), section 4, "grouping".

    Attributes
    ----------
    dtype : DType
        Type of the matrix.
    other_dtype : DType
        Type of biases.
    group_size : Dim or None
        Elements that share a scale; None for no scales.
    scale_dtype : DType
        Type of a scale.

    Examples
    --------
    >>> four_bits = WeightFormat(dtype=DType.INT4, other_dtype=DType.BF16, group_size=128)
    >>> four_bits.matrix_bytes(rows=2, width=256)  # 512 elements of half a byte, 4 scales of 2 bytes
    264
    """

    dtype: DType
    other_dtype: DType
    group_size: Dim | None = field(default=None, converter=lambda size: None if size is None else as_dim(size))
    scale_dtype: DType = DType.BF16

    def matrix_bytes(self, *, rows: Dim, width: Dim) -> Dim:
        """Return the bytes of a matrix [rows, width] and its scales."""
        elements = bytes_of(simplify(rows * width), self.dtype)
        return total((elements, bytes_of(self.scales(rows=rows, width=width), self.scale_dtype)))

    def scales(self, *, rows: Dim, width: Dim) -> Dim:
        """Return how many scales a matrix [rows, width] has: rows * ceil(width / group size)."""
        if self.group_size is None:
            return 0
        return simplify(rows * sympy.ceiling(sympy.sympify(width) / self.group_size))


def stored_as(weights: WeightFormat | None, dtype: DType) -> WeightFormat:
    """Return how parameters are stored: as a format says, else in the type that the layer computes in."""
    return WeightFormat(dtype=dtype, other_dtype=dtype) if weights is None else weights
