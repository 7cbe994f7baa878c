"""Combination: results that are each computed from several elements, without a matrix product."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product
from modelmeter.errors import DimError
from modelmeter.layers.base import as_dim
from modelmeter.layers.pointwise import OperandKernel


def _no_negative_count(_layer: object, _attribute: object, flops: int) -> None:
    if flops < 0:
        raise DimError(f"flops_per_tap={flops} is negative; 0 is for kernels that only pick elements")


@frozen(kw_only=True)
class Combination(OperandKernel):
    """Each of ``elements`` results takes ``taps`` elements into account, at ``flops_per_tap`` FLOPs each.

    Samples of a picture at any place (grid_sample: 4 neighbours, a multiply-add each), distances of pairs (cdist: the
    elements of two rows, 3 each), losses (a term per element). Unlike an `Elementwise` kernel it cannot join the kernel
    that makes its operand, since a result needs elements from other places. Backward, an estimate: twice the FLOPs,
    operands read again, a gradient for each floating-point one. Sources: ``aten::grid_sampler``, ``aten::cdist``.

    Attributes
    ----------
    op : str
        Name of the operation, such as "cdist".
    elements : Dim
        Results, or terms of one result.
    taps : Dim
        Elements that a result is made of.
    flops_per_tap : int
        FLOPs for each of them.
    reads, writes : tuple of Operand
        What moves.
    dtype : DType
        Type of the computation.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> from modelmeter.layers.base import Operand
    >>> left, right = Operand(elements=12, dtype=DType.FP32), Operand(elements=8, dtype=DType.FP32)
    >>> distances = Combination(
    ...     op="cdist", elements=6, taps=4, flops_per_tap=3, reads=(left, right),
    ...     writes=(Operand(elements=6, dtype=DType.FP32),), dtype=DType.FP32,
    ... )
    >>> distances.vector_flops(), distances.traffic().bytes
    (72, 104)
    """

    category: ClassVar[Category] = Category.ELEMENTWISE

    taps: Dim = field(converter=as_dim)
    flops_per_tap: int = field(validator=_no_negative_count)  # FLOPs

    def vector_flops(self) -> Dim:
        """elements*taps*flops_per_tap. Unit: FLOPs."""
        return product((self.flops_per_tap, self.elements, self.taps))
