"""Combination: results that are each computed from several elements, without a matrix product."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers.base import BaseLayer, Operand, Traffic, as_dim
from modelmeter.layers.gradients import differentiable, kernel_gradient


def _no_negative_count(_layer: object, _attribute: object, flops: int) -> None:
    if flops < 0:
        raise DimError(f"flops_per_tap={flops} is negative; 0 is for kernels that only pick elements")


@frozen(kw_only=True)
class Combination(BaseLayer):
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
    >>> left, right = Operand(elements=12, dtype=DType.FP32), Operand(elements=8, dtype=DType.FP32)
    >>> distances = Combination(
    ...     op="cdist", elements=6, taps=4, flops_per_tap=3, reads=(left, right),
    ...     writes=(Operand(elements=6, dtype=DType.FP32),), dtype=DType.FP32,
    ... )
    >>> distances.vector_flops(), distances.traffic().bytes
    (72, 104)
    """

    category: ClassVar[Category] = Category.ELEMENTWISE

    op: str
    elements: Dim = field(converter=as_dim)
    taps: Dim = field(converter=as_dim)
    flops_per_tap: int = field(validator=_no_negative_count)  # FLOPs
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    dtype: DType

    def vector_flops(self) -> Dim:
        """elements*taps*flops_per_tap. Unit: FLOPs."""
        return product((self.flops_per_tap, self.elements, self.taps))

    def weight_bytes(self) -> Dim:
        """Bytes of the operands that are parameters, as far as the kernel reads them."""
        return self.traffic().weights_read

    def traffic(self) -> Traffic:
        """Each operand read once, each result written once."""
        return Traffic.from_operands(self.reads, self.writes)

    def backward_vector_flops(self) -> Dim:
        """Twice the forward FLOPs where there is a gradient. Unit: FLOPs."""
        return product((2, self.vector_flops())) if self._has_gradient() else 0

    def backward_traffic(self) -> Traffic:
        """Operands and the results' gradients read once, the operands' gradients written once."""
        return kernel_gradient(self.reads, self.writes)

    def backward_activation_bytes(self) -> Dim:
        """Bytes of the operands kept for the backward pass."""
        return self.traffic().activations_read if self._has_gradient() else 0

    def _has_gradient(self) -> bool:
        return bool(differentiable(self.reads)) and bool(differentiable(self.writes))
