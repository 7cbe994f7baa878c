"""Which operands have gradients, and what the backward pass of a single kernel moves."""

from __future__ import annotations

from modelmeter.dims import total
from modelmeter.layers.base import Operand, Traffic


def differentiable(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
    """Return the operands that have a gradient: floating-point ones.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> index = Operand(elements=3, dtype=DType.INT64)
    >>> differentiable((index,))
    ()
    """
    return tuple(operand for operand in operands if operand.dtype.is_floating)


def kernel_gradient(reads: tuple[Operand, ...], writes: tuple[Operand, ...]) -> Traffic:
    """Return the backward traffic of a kernel whose derivative depends on its operands.

    One kernel reads the gradient of each result and every forward operand again, and writes a gradient for
    each floating-point operand. Nothing moves when no operand or no result has a gradient.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> x = Operand(elements=10, dtype=DType.BF16)
    >>> kernel_gradient((x,), (x,))
    Traffic(weights_read=0, activations_read=40, written=20)
    """
    wanted, given = differentiable(reads), differentiable(writes)
    if not wanted or not given:
        return Traffic()
    forward = Traffic.from_operands(reads, given)
    return Traffic(
        weights_read=forward.weights_read,
        activations_read=total((forward.activations_read, forward.written)),
        written=total(operand.bytes for operand in wanted),
    )


def movement_gradient(
    reads: tuple[Operand, ...], writes: tuple[Operand, ...], kept: tuple[Operand, ...] = ()
) -> Traffic:
    """Return the backward traffic of a kernel that is linear in its operands: the way back of the data.

    The gradient of each result is read, and a gradient is written for each floating-point operand. ``kept``
    are operands that the way back reads again, such as indices.

    Examples
    --------
    >>> from modelmeter.dtypes import DType
    >>> x = Operand(elements=10, dtype=DType.BF16)
    >>> movement_gradient((x,), (x,))
    Traffic(weights_read=0, activations_read=20, written=20)
    >>> movement_gradient((), (x,)).bytes
    0
    """
    wanted, given = differentiable(reads), differentiable(writes)
    if not wanted or not given:
        return Traffic()
    return Traffic(
        activations_read=total(operand.bytes for operand in (*given, *kept)),
        written=total(operand.bytes for operand in wanted),
    )
