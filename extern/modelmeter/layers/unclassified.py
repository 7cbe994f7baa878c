"""Unclassified: an operator without a rule; its tensors' bytes and nothing else."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim
from modelmeter.layers.base import BaseLayer, Operand, Traffic
from modelmeter.layers.gradients import kernel_gradient


@frozen(kw_only=True)
class Unclassified(BaseLayer):
    """An operator whose arithmetic is unknown: traffic of its operands, no FLOPs.

    Its zero FLOPs say "not known"; reports list such operators and their share apart. Backward traffic
    supposes one kernel that reads every operand again.

    Attributes
    ----------
    op : str
        Name of the operator, such as "aten::grid_sampler_2d".
    reads, writes : tuple of Operand
        Its tensors.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> x = Operand(elements=10, dtype=DType.BF16)
    >>> Unclassified(op="aten::grid_sampler_2d", reads=(x,), writes=(x,)).traffic().bytes
    40
    """

    category: ClassVar[Category] = Category.UNCLASSIFIED

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
        """Operands and the results' gradients read once, the operands' gradients written once."""
        return kernel_gradient(self.reads, self.writes)
