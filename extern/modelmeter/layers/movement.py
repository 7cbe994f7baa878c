"""DataMovement: kernels that copy, convert or fill and compute nothing."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim
from modelmeter.layers.base import BaseLayer, Operand, Traffic
from modelmeter.layers.gradients import movement_gradient


@frozen(kw_only=True)
class DataMovement(BaseLayer):
    """A copy, cast, concatenation, pad, fill or arange: bytes without FLOPs.

    Traffic: each operand read once, each result written once. Backward: the reverse copy; the gradient of
    each result is read and one is written per floating-point operand, and nothing is kept.

    Attributes
    ----------
    op : str
        Name of the operation, such as "copy".
    reads, writes : tuple of Operand
        What moves; a fill reads nothing.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> source = Operand(elements=10, dtype=DType.BF16)
    >>> cast = DataMovement(op="cast", reads=(source,), writes=(Operand(elements=10, dtype=DType.FP32),))
    >>> cast.traffic().bytes, cast.backward_traffic().bytes, cast.vector_flops()
    (60, 60, 0)
    """

    category: ClassVar[Category] = Category.DATA_MOVEMENT

    op: str
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]

    def weight_bytes(self) -> Dim:
        """Bytes of the operands that are parameters, as far as the kernel reads them."""
        return self.traffic().weights_read

    def traffic(self) -> Traffic:
        """Each operand read once, each result written once."""
        return Traffic.from_operands(self.reads, self.writes)

    def backward_traffic(self) -> Traffic:
        """The reverse copy."""
        return movement_gradient(self.reads, self.writes)

    def backward_activation_bytes(self) -> Dim:
        """Nothing is kept."""
        return 0
