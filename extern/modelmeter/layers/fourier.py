"""FourierTransform: fast Fourier transforms."""

from __future__ import annotations

import math
from typing import ClassVar

import sympy
from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import BaseLayer, Operand, Traffic, as_dim
from modelmeter.layers.gradients import differentiable, movement_gradient


@frozen(kw_only=True)
class FourierTransform(BaseLayer):
    """Fast Fourier transforms of ``length`` points each, over one axis or over several as one.

    FLOPs of one transform of n complex points: ``5*n*ceil(log2 n)``, by which transforms are compared everywhere; a
    radix-2 transform takes just that many where n is a power of two. One that begins or ends with real numbers takes
    half. Several axes are one transform of all their points, as log2 of a product is the sum of the logarithms.
    Traffic: one pass, each operand read and each result written once; lengths that do not fit on chip take more.
    Backward: the transform in the other direction, nothing is kept. Sources: Cooley and Tukey 1965; Frigo and Johnson
    2005 (FFTW), section VI, for 5*n*log2(n) and its half; ``aten::fft_fft``, ``aten::stft``.

    Attributes
    ----------
    op : str
        Name of the operation, such as "fft_rfft".
    transforms : Dim
        Transforms of ``length`` points.
    length : Dim
        Points n of one of them, over all axes.
    real : bool
        Whether one side is real.
    flops_per_point : int
        FLOPs around the transform per point: windows, sums of frames that overlap.
    reads, writes : tuple of Operand
        What moves.
    dtype : DType
        Type of the complex side.

    Examples
    --------
    >>> x, y = Operand(elements=16, dtype=DType.FP32), Operand(elements=10, dtype=DType.COMPLEX64)
    >>> layer = FourierTransform(
    ...     op="fft_rfft", transforms=2, length=8, real=True, reads=(x,), writes=(y,), dtype=DType.COMPLEX64
    ... )
    >>> layer.vector_flops() == 2 * 5 * 8 * 3 // 2, layer.traffic().bytes
    (True, 144)
    """

    category: ClassVar[Category] = Category.ELEMENTWISE

    op: str
    transforms: Dim = field(converter=as_dim)
    length: Dim = field(converter=as_dim)
    real: bool
    flops_per_point: int = 0  # FLOPs
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    dtype: DType

    def vector_flops(self) -> Dim:
        """5*n*ceil(log2 n) per transform, half of it where one side is real. Unit: FLOPs."""
        points = product((self.transforms, self.length))
        whole = product((5, points, stages(self.length)))
        halved = simplify(sympy.Rational(1, 2) * whole) if self.real else whole
        return total((halved, product((self.flops_per_point, points))))

    def weight_bytes(self) -> Dim:
        """Bytes of the operands that are parameters, such as a window."""
        return self.traffic().weights_read

    def traffic(self) -> Traffic:
        """Each operand read once, each result written once."""
        return Traffic.from_operands(self.reads, self.writes)

    def backward_vector_flops(self) -> Dim:
        """As many as forward where there is a gradient. Unit: FLOPs."""
        return self.vector_flops() if differentiable(self.reads) and differentiable(self.writes) else 0

    def backward_traffic(self) -> Traffic:
        """The result's gradient read once, the operand's written once."""
        return movement_gradient(self.reads, self.writes)

    def backward_activation_bytes(self) -> Dim:
        """Nothing is kept: a transform is linear."""
        return 0


_MOST_STAGES = 24


def stages(length: Dim) -> Dim:
    """Return ceil(log2 n): the radix-2 stages of a transform of n points.

    A length that is open counts a stage for each of 1, 2, 4, ... that it exceeds, up to 2**24 points, as expressions in
    dims have no logarithm.

    Examples
    --------
    >>> from modelmeter.dim_binding import bind
    >>> from modelmeter.dims import symbol
    >>> stages(8), stages(9), stages(1), bind(stages(symbol("S")), {"S": 9})
    (3, 4, 0, 4)
    """
    if isinstance(length, sympy.Expr):
        below = (sympy.floor((length - 1) / 2**stage) for stage in range(_MOST_STAGES))
        return simplify(sympy.Add(*(sympy.Min(1, whole) for whole in below)))
    return (max(math.ceil(length), 1) - 1).bit_length()
