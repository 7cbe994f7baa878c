"""WeightFormat: how a layer's parameters are stored where that is another type than the layer computes in."""

from __future__ import annotations

import sympy
from attrs import field, frozen

from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import as_dim, bytes_of


@frozen(kw_only=True)
class WeightFormat:
    """Type of a matrix of parameters, its scales, and the type of the parameters beside it (a bias).

    With a group size, each run of so many elements along the input features of a row shares one scale; the last run
    of a row may be shorter. With group rows too, so do as many rows: a scale is of a block. Zero points are not stored:
    the format is symmetric. Source of groups of a row: Frantar et al. 2022 (GPTQ), section 4, "grouping"; of blocks:
    DeepSeek-AI 2024 (DeepSeek-V3), section 3.3.2, "fine-grained quantization", where they are of 128 x 128.

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
    group_rows : Dim
        Rows that share the scales of their groups.

    Examples
    --------
    >>> four_bits = WeightFormat(dtype=DType.INT4, other_dtype=DType.BF16, group_size=128)
    >>> four_bits.matrix_bytes(rows=2, width=256)  # 512 elements of half a byte, 4 scales of 2 bytes
    264
    >>> blocks = WeightFormat(
    ...     dtype=DType.FP8_E4M3, other_dtype=DType.BF16, group_size=128, group_rows=128, scale_dtype=DType.FP32
    ... )
    >>> blocks.matrix_bytes(rows=576, width=7168)  # 576 * 7168 elements, 5 * 56 scales of 4 bytes
    4129888
    """

    dtype: DType
    other_dtype: DType
    group_size: Dim | None = field(default=None, converter=lambda size: None if size is None else as_dim(size))
    scale_dtype: DType = DType.BF16
    group_rows: Dim = field(default=1, converter=as_dim)

    def matrix_bytes(self, *, rows: Dim, width: Dim) -> Dim:
        """Return the bytes of a matrix [rows, width] and its scales."""
        elements = bytes_of(simplify(rows * width), self.dtype)
        return total((elements, bytes_of(self.scales(rows=rows, width=width), self.scale_dtype)))

    def scales(self, *, rows: Dim, width: Dim) -> Dim:
        """Return how many scales a matrix [rows, width] has: ceil(rows / group rows) * ceil(width / group size)."""
        if self.group_size is None:
            return 0
        return product((groups(rows, self.group_rows), groups(width, self.group_size)))


def groups(elements: Dim, size: Dim) -> Dim:
    """Return how many groups of a size hold so many elements, the last one perhaps in part.

    Examples
    --------
    >>> groups(576, 128), groups(7168, 128)
    (5, 56)
    """
    return elements if size == 1 else simplify(sympy.ceiling(sympy.sympify(elements) / size))


def row_scale_bytes(*, rows: Dim, width: Dim, group_size: Dim | None) -> Dim:
    """Return the bytes of the fp32 scales of activations [rows, width] in groups of a row; none without groups.

    Source: DeepSeek-AI 2024 (DeepSeek-V3), section 3.3.2: activations in tiles of 1 x 128.

    Examples
    --------
    >>> row_scale_bytes(rows=3, width=7168, group_size=128)  # 3 * 56 scales of 4 bytes
    672
    """
    return 0 if group_size is None else product((rows, groups(width, group_size), DType.FP32.itemsize))


def stored_as(weights: WeightFormat | None, dtype: DType) -> WeightFormat:
    """Return how parameters are stored: as a format says, else in the type that the layer computes in."""
    return WeightFormat(dtype=dtype, other_dtype=dtype) if weights is None else weights
