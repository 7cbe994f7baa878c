"""Matmul: matrix products of two tensors (mm, bmm, matmul, einsum)."""

from __future__ import annotations

from typing import ClassVar

from attrs import converters, field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Operand, Traffic, as_dim


@frozen(kw_only=True)
class Matmul(BaseLayer):
    """y[batch, m, n] = left[batch, m, k] @ right[batch, k, n].

    FLOPs: ``2*batch*m*k*n``. Traffic: both operands read, the product written. Backward: two products of the
    same size, one per operand, each reading the gradient. Source: ``aten::bmm(Tensor self, Tensor mat2)``.

    Attributes
    ----------
    batch, m, k, n : Dim
        Products, rows of the left, columns of the left and columns of the right operand.
    dtype : DType
        Type of the operands, and of the products.
    left_elements, right_elements : Dim or None
        Elements stored, where an operand is broadcast over the batch; ``batch*m*k`` and ``batch*k*n`` when
        None.
    left_weight, right_weight : bool
        Whether an operand is a parameter.
    out_dtype : DType or None
        Type of the product; that of the operands when None.
    left_dtype, right_dtype : DType or None
        Type in which an operand is stored; `dtype` when None.

    Examples
    --------
    >>> scores = Matmul(batch=2, m=3, k=4, n=5, dtype=DType.BF16)
    >>> scores.matmul_flops(), scores.traffic().bytes
    (240, 188)
    >>> Matmul(batch=2, m=3, k=4, n=5, right_elements=20, dtype=DType.BF16).traffic().bytes
    148
    """

    category: ClassVar[Category] = Category.LINEAR

    batch: Dim = field(converter=as_dim)
    m: Dim = field(converter=as_dim)
    k: Dim = field(converter=as_dim)
    n: Dim = field(converter=as_dim)
    dtype: DType
    left_elements: Dim | None = field(default=None, converter=converters.optional(as_dim))  # elements
    right_elements: Dim | None = field(default=None, converter=converters.optional(as_dim))  # elements
    left_weight: bool = False
    right_weight: bool = False
    out_dtype: DType | None = None
    left_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)
    right_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)

    def matmul_flops(self) -> Dim:
        """2*batch*m*k*n; of complex numbers 8. Unit: FLOPs."""
        return product((self.dtype.multiply_add_flops, self.batch, self.m, self.k, self.n))

    def weight_bytes(self) -> Dim:
        """Bytes of the operands that are parameters."""
        return self.traffic().weights_read

    def traffic(self) -> Traffic:
        """Both operands read as stored, the product written."""
        return Traffic.from_operands((self._left(), self.right_operand()), (self._out(),))

    def backward_traffic(self) -> Traffic:
        """Each operand's gradient reads the other operand and the product's; it is written as stored."""
        forward = self.traffic()
        return Traffic(
            weights_read=forward.weights_read,
            activations_read=total((forward.activations_read, product((2, forward.written)))),
            written=total((forward.weights_read, forward.activations_read)),
        )

    def _left(self) -> Operand:
        elements = product((self.batch, self.m, self.k)) if self.left_elements is None else self.left_elements
        return Operand(elements=elements, dtype=self.left_dtype or self.dtype, weight=self.left_weight)

    def right_operand(self) -> Operand:
        """Return the right operand as stored, such as keys or values."""
        elements = product((self.batch, self.k, self.n)) if self.right_elements is None else self.right_elements
        return Operand(elements=elements, dtype=self.right_dtype or self.dtype, weight=self.right_weight)

    def _out(self) -> Operand:
        return Operand(elements=product((self.batch, self.m, self.n)), dtype=self.out_dtype or self.dtype)
