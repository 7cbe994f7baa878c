"""Pointwise kernels, reductions and scans, described by the tensors they read and write."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers.base import BaseLayer, Operand, Traffic, as_dim
from modelmeter.layers.gradients import differentiable, kernel_gradient, movement_gradient


def _no_negative_count(_layer: object, _attribute: object, flops: int) -> None:
    if flops < 0:
        raise DimError(f"flops_per_element={flops} is negative; 0 is for kernels without arithmetic")


@frozen(kw_only=True)
class OperandKernel(BaseLayer):
    """A kernel given by its operands, the base of several layers; parameters among them have ``weight=True``.

    Backward, an estimate: twice the FLOPs, operands and the results' gradients read, a gradient written for each
    floating-point operand. A layer that knows better says so.
    """

    op: str
    elements: Dim = field(converter=as_dim)  # elements that one FLOP count applies to
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    dtype: DType

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
        """Bytes of the operands kept for the backward pass; an upper bound, as an addition keeps none."""
        return self.traffic().activations_read if self._has_gradient() else 0

    def _has_gradient(self) -> bool:
        return bool(differentiable(self.reads)) and bool(differentiable(self.writes))


@frozen(kw_only=True)
class Elementwise(OperandKernel):
    """One pointwise kernel: ``elements`` results, each of ``flops_per_element`` FLOPs.

    FLOPs per element come from `modelmeter.layers.pointwise_flops`. A broadcast operand counts as stored.
    Backward, an estimate: twice the FLOPs (the derivative, and its product with the gradient); operands are
    read again and a gradient is written for each floating-point one.

    Attributes
    ----------
    op : str
        Name of the operation, such as "add".
    elements : Dim
        Elements of the result.
    flops_per_element : int
        FLOPs per element of the result.
    reads, writes : tuple of Operand
        What moves.
    dtype : DType
        Type of the computation.

    Examples
    --------
    >>> x = Operand(elements=10, dtype=DType.BF16)
    >>> add = Elementwise(
    ...     op="add", elements=10, flops_per_element=1, reads=(x, x), writes=(x,), dtype=DType.BF16
    ... )
    >>> add.vector_flops(), add.traffic().bytes
    (10, 60)
    """

    category: ClassVar[Category] = Category.ELEMENTWISE

    flops_per_element: int = field(validator=_no_negative_count)  # FLOPs

    def vector_flops(self) -> Dim:
        """flops_per_element*elements. Unit: FLOPs."""
        return product((self.flops_per_element, self.elements))


@frozen(kw_only=True)
class Activation(Elementwise):
    """A pointwise activation function: an `Elementwise` kernel of its own category.

    Examples
    --------
    >>> from modelmeter.layers.pointwise_flops import flops_per_element
    >>> x = Operand(elements=10, dtype=DType.BF16)
    >>> silu = Activation(
    ...     op="silu", elements=10, flops_per_element=flops_per_element("silu"), reads=(x,), writes=(x,),
    ...     dtype=DType.BF16,
    ... )
    >>> silu.vector_flops(), silu.category.value
    (50, 'activation')
    """

    category: ClassVar[Category] = Category.ACTIVATION


@frozen(kw_only=True)
class Reduction(OperandKernel):
    """A sum, mean, maximum or accumulating scatter: one FLOP per input element, none on integers.

    Backward: the gradient is spread over the input and scaled, at most one FLOP per element (a plain sum has
    none).

    Attributes
    ----------
    op : str
        Name of the operation, such as "sum".
    elements : Dim
        Elements that are reduced.
    reads, writes : tuple of Operand
        What moves.
    dtype : DType
        Type of the computation.

    Examples
    --------
    >>> x, y = Operand(elements=10, dtype=DType.FP32), Operand(elements=2, dtype=DType.FP32)
    >>> Reduction(op="sum", elements=10, reads=(x,), writes=(y,), dtype=DType.FP32).vector_flops()
    10
    """

    category: ClassVar[Category] = Category.REDUCTION

    def vector_flops(self) -> Dim:
        """One per input element; 2 of a complex one. Unit: FLOPs."""
        return product((self.dtype.addition_flops, self.elements)) if self.dtype.is_floating else 0

    def backward_vector_flops(self) -> Dim:
        """At most one per input element. Unit: FLOPs."""
        return self.elements if self._has_gradient() else 0

    def backward_traffic(self) -> Traffic:
        """The result's gradient read once, the input's written once."""
        return movement_gradient(self.reads, self.writes)

    def backward_activation_bytes(self) -> Dim:
        """Nothing is kept: the gradient of a sum depends on no input."""
        return 0


@frozen(kw_only=True)
class Scan(OperandKernel):
    """A running sum (cumsum): one addition per element, no FLOP on integers.

    Backward: the same scan from the other end.

    Attributes
    ----------
    op : str
        Name of the operation, such as "cumsum".
    elements : Dim
        Elements of the input.
    reads, writes : tuple of Operand
        What moves.
    dtype : DType
        Type of the computation.

    Examples
    --------
    >>> x = Operand(elements=10, dtype=DType.INT32)
    >>> scan = Scan(op="cumsum", elements=10, reads=(x,), writes=(x,), dtype=DType.INT32)
    >>> scan.vector_flops(), scan.backward_vector_flops()
    (0, 0)
    """

    category: ClassVar[Category] = Category.REDUCTION

    def vector_flops(self) -> Dim:
        """One per element; 2 of a complex one. Unit: FLOPs."""
        return product((self.dtype.addition_flops, self.elements)) if self.dtype.is_floating else 0

    def backward_vector_flops(self) -> Dim:
        """One per element where there is a gradient. Unit: FLOPs."""
        return self.elements if self._has_gradient() else 0

    def backward_traffic(self) -> Traffic:
        """The result's gradient read once, the input's written once."""
        return movement_gradient(self.reads, self.writes)

    def backward_activation_bytes(self) -> Dim:
        """Nothing is kept."""
        return 0
