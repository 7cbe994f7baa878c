"""Convolutions in one and two dimensions, and transposed ones in any."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import attrs
from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Traffic, as_dim


def _divides_channels(layer: _Convolution, attribute: attrs.Attribute[Dim], groups: Dim) -> None:
    for channels in (layer.in_channels, layer.out_channels):
        if isinstance(channels, int) and isinstance(groups, int) and (groups < 1 or channels % groups):
            raise DimError(
                f"{type(layer).__name__}: {attribute.name}={groups} does not divide its "
                f"{layer.in_channels} input and {layer.out_channels} output channels; use a divisor of both"
            )


@frozen(kw_only=True)
class _Convolution(BaseLayer):
    """What convolutions of any rank share: a subclass says how many positions and taps there are."""

    category: ClassVar[Category] = Category.CONVOLUTION

    batch: Dim = field(converter=as_dim)
    in_channels: Dim = field(converter=as_dim)
    out_channels: Dim = field(converter=as_dim)
    groups: Dim = field(default=1, converter=as_dim, validator=_divides_channels)
    bias: bool
    dtype: DType
    parameter_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)

    @abstractmethod
    def _in_positions(self) -> Dim:
        """Positions of one input channel."""

    @abstractmethod
    def _out_positions(self) -> Dim:
        """Positions of one output channel."""

    @abstractmethod
    def _taps(self) -> Dim:
        """Weights per pair of an input and an output channel."""

    def matmul_flops(self) -> Dim:
        """2*batch*out_positions*out_channels*(in_channels/groups)*taps; of complex numbers 8. Unit: FLOPs."""
        each = self.dtype.multiply_add_flops
        return product((each, self.batch, self._out_positions(), self._filter_elements()))

    def vector_flops(self) -> Dim:
        """One addition per output element for the bias; 2 FLOPs of a complex one. Unit: FLOPs."""
        each = self.dtype.addition_flops
        return product((each, self.batch, self.out_channels, self._out_positions())) if self.bias else 0

    def weight_bytes(self) -> Dim:
        """Bytes of the filters and the bias."""
        bias = self.out_channels if self.bias else 0
        return product((total((self._filter_elements(), bias)), (self.parameter_dtype or self.dtype).itemsize))

    def traffic(self) -> Traffic:
        """Input, filters and bias read once, output written once."""
        return Traffic(
            weights_read=self.weight_bytes(),
            activations_read=product((self.batch, self.in_channels, self._in_positions(), self.dtype.itemsize)),
            written=product((self.batch, self.out_channels, self._out_positions(), self.dtype.itemsize)),
        )

    def backward_vector_flops(self) -> Dim:
        """One addition per output element to sum the bias's gradient. Unit: FLOPs."""
        return self.vector_flops()

    def backward_traffic(self) -> Traffic:
        """The input's gradient reads dy and w, the filters' dy and x, the bias's dy; all are written."""
        forward = self.traffic()
        kernels = 3 if self.bias else 2
        return Traffic(
            weights_read=product((self._filter_elements(), (self.parameter_dtype or self.dtype).itemsize)),
            activations_read=total((forward.activations_read, product((kernels, forward.written)))),
            written=total((forward.activations_read, self.weight_bytes())),
        )

    def _filter_elements(self) -> Dim:
        whole = product((self.out_channels, self.in_channels, self._taps()))
        if isinstance(whole, int) and isinstance(self.groups, int):
            return whole // self.groups
        return simplify(whole / self.groups)


@frozen(kw_only=True)
class Conv2d(_Convolution):
    """y[b, o, Y, X] = sum over c, i, j of x[b, c, y+i, x+j] * w[o, c, i, j] + bias[o].

    FLOPs: ``2*batch*out_h*out_w*out_channels*(in_channels/groups)*kernel_h*kernel_w``, and one addition per
    output element for the bias; strides and padding show in the sizes alone. Backward: two convolutions of
    the same size. Source: ``aten::conv2d(Tensor input, Tensor weight, Tensor? bias=None, ..., SymInt
    groups=1)``.

    Attributes
    ----------
    batch, in_channels, out_channels : Dim
        Sizes of the input [batch, in_channels, in_height, in_width] and of the output.
    in_height, in_width, out_height, out_width : Dim
        Positions, without padding.
    kernel_height, kernel_width : Dim
        Taps.
    groups : Dim
        Groups of channels; divides both channel counts.
    bias : bool
        Whether a bias [out_channels] is added.
    dtype : DType
        Type of all tensors.
    parameter_dtype : DType or None
        Type of the filters and the bias; `dtype` when None.

    Examples
    --------
    >>> patches = Conv2d(
    ...     batch=1, in_channels=3, out_channels=768, in_height=1024, in_width=1024, out_height=64,
    ...     out_width=64, kernel_height=16, kernel_width=16, bias=True, dtype=DType.BF16,
    ... )
    >>> patches.matmul_flops() == 2 * 64 * 64 * 768 * 3 * 16 * 16
    True
    """

    in_height: Dim = field(converter=as_dim)
    in_width: Dim = field(converter=as_dim)
    out_height: Dim = field(converter=as_dim)
    out_width: Dim = field(converter=as_dim)
    kernel_height: Dim = field(converter=as_dim)
    kernel_width: Dim = field(converter=as_dim)

    def _in_positions(self) -> Dim:
        return product((self.in_height, self.in_width))

    def _out_positions(self) -> Dim:
        return product((self.out_height, self.out_width))

    def _taps(self) -> Dim:
        return product((self.kernel_height, self.kernel_width))


@frozen(kw_only=True)
class Conv1d(_Convolution):
    """y[b, o, X] = sum over c, j of x[b, c, x+j] * w[o, c, j] + bias[o].

    FLOPs: ``2*batch*out_length*out_channels*(in_channels/groups)*kernel_length``, and one addition per output
    element for the bias. Backward: two convolutions of the same size.
    Source: ``aten::conv1d(Tensor input, Tensor weight, Tensor? bias=None, ..., SymInt groups=1)``.

    Attributes
    ----------
    batch, in_channels, out_channels : Dim
        Sizes of the input [batch, in_channels, in_length] and of the output.
    in_length, out_length : Dim
        Positions, without padding.
    kernel_length : Dim
        Taps.
    groups : Dim
        Groups of channels; divides both channel counts.
    bias : bool
        Whether a bias [out_channels] is added.
    dtype : DType
        Type of all tensors.
    parameter_dtype : DType or None
        Type of the filters and the bias; `dtype` when None.

    Examples
    --------
    >>> depthwise = Conv1d(
    ...     batch=2, in_channels=8, out_channels=8, in_length=10, out_length=10, kernel_length=3, groups=8,
    ...     bias=False, dtype=DType.FP32,
    ... )
    >>> depthwise.matmul_flops()
    960
    """

    in_length: Dim = field(converter=as_dim)
    out_length: Dim = field(converter=as_dim)
    kernel_length: Dim = field(converter=as_dim)

    def _in_positions(self) -> Dim:
        return self.in_length

    def _out_positions(self) -> Dim:
        return self.out_length

    def _taps(self) -> Dim:
        return self.kernel_length


@frozen(kw_only=True)
class ConvTranspose(_Convolution):
    """y[b, o, s*i + j] += x[b, c, i] * w[c, o, j], in one, two or three dimensions: a convolution read backwards.

    FLOPs: each position of the input meets all taps, ``2*batch*in_positions*in_channels*(out_channels/groups)*taps``,
    and one addition per output element for the bias; strides and padding show in the sizes alone, and the cost does not
    depend on how positions spread over axes. Backward: two convolutions of the same size. Source:
    ``aten::conv_transpose2d.input(Tensor input, Tensor weight, Tensor? bias=None, ..., SymInt groups=1, ...)``.

    Attributes
    ----------
    batch, in_channels, out_channels : Dim
        Sizes of the input [batch, in_channels, positions] and of the output.
    in_positions, out_positions : Dim
        Products of the axes of one channel, without padding.
    taps : Dim
        Weights per pair of channels.
    groups : Dim
        Groups of channels; divides both channel counts.
    bias : bool
        Whether a bias [out_channels] is added.
    dtype : DType
        Type of all tensors.
    parameter_dtype : DType or None
        Type of the filters and the bias; `dtype` when None.

    Examples
    --------
    >>> double = ConvTranspose(
    ...     batch=1, in_channels=8, out_channels=4, in_positions=9, out_positions=36, taps=4, bias=False,
    ...     dtype=DType.BF16,
    ... )
    >>> double.matmul_flops() == 2 * 9 * 8 * 4 * 4
    True
    """

    in_positions: Dim = field(converter=as_dim)
    out_positions: Dim = field(converter=as_dim)
    taps: Dim = field(converter=as_dim)

    def matmul_flops(self) -> Dim:
        """2*batch*in_positions*in_channels*(out_channels/groups)*taps; of complex numbers 8. Unit: FLOPs."""
        each = self.dtype.multiply_add_flops
        return product((each, self.batch, self.in_positions, self._filter_elements()))

    def _in_positions(self) -> Dim:
        return self.in_positions

    def _out_positions(self) -> Dim:
        return self.out_positions

    def _taps(self) -> Dim:
        return self.taps
