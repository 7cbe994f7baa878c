"""Norms and softmax: kernels that read a row, compute a statistic of it and write the row."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Operand, Traffic, as_dim
from modelmeter.layers.gradients import kernel_gradient
from modelmeter.layers.pointwise_flops import flops_per_element


@frozen(kw_only=True)
class _Norm(BaseLayer):
    """What norms share: x and the parameters read once, y written once; statistics stay on chip.

    Backward: one kernel reads dy, x and the parameters, writes dx and the parameters' gradients.
    """

    category: ClassVar[Category] = Category.NORMALIZATION
    _statistic: ClassVar[str]

    dtype: DType
    parameter_dtype: DType | None = field(
        default=None, metadata=NOT_CAPTURED
    )  # type of the parameters; `dtype` when None

    @abstractmethod
    def _elements(self) -> Dim:
        """Elements of x."""

    @abstractmethod
    def _parameter_width(self) -> Dim:
        """Elements of one parameter."""

    @abstractmethod
    def _affine(self) -> tuple[bool, bool]:
        """Whether there are a weight and a bias."""

    def vector_flops(self) -> Dim:
        """FLOPs per element times elements. Unit: FLOPs."""
        weight, bias = self._affine()
        each = (
            flops_per_element(self._statistic)
            + weight * flops_per_element("norm_scale")
            + bias * flops_per_element("norm_shift")
        )
        return product((each, self._elements()))

    def backward_vector_flops(self) -> Dim:
        """FLOPs per element of the gradients times elements. Unit: FLOPs."""
        weight, bias = self._affine()
        each = (
            flops_per_element(f"{self._statistic}_backward")
            + weight * flops_per_element("norm_scale_backward")
            + bias * flops_per_element("norm_shift_backward")
        )
        return product((each, self._elements()))

    def weight_bytes(self) -> Dim:
        """Bytes of the weight and the bias."""
        width = product((sum(self._affine()), self._parameter_width()))
        return product((width, (self.parameter_dtype or self.dtype).itemsize))

    def traffic(self) -> Traffic:
        """Input x and the parameters read once, y written once."""
        moved = product((self._elements(), self.dtype.itemsize))
        return Traffic(weights_read=self.weight_bytes(), activations_read=moved, written=moved)


@frozen(kw_only=True)
class LayerNorm(_Norm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over rows of ``width`` elements.

    FLOPs per element: 5, 1 more for the weight and 1 for the bias. Sources: Ba et al. 2016, equation 4;
    ``aten::layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None,
    ...)``.

    Attributes
    ----------
    rows, width : Dim
        x is [rows, width]; the parameters are [width].
    weight, bias : bool
        Which parameters are there.
    dtype : DType
        Type of x, the parameters and y.

    Examples
    --------
    >>> layer = LayerNorm(rows=2, width=10, weight=True, bias=True, dtype=DType.BF16)
    >>> layer.vector_flops(), layer.traffic().bytes
    (140, 120)
    """

    _statistic: ClassVar[str] = "layer_norm"

    rows: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    weight: bool
    bias: bool

    def _elements(self) -> Dim:
        return product((self.rows, self.width))

    def _parameter_width(self) -> Dim:
        return self.width

    def _affine(self) -> tuple[bool, bool]:
        return self.weight, self.bias


@frozen(kw_only=True)
class RMSNorm(_Norm):
    """y = x / sqrt(mean(x^2) + eps) * weight, over rows of ``width`` elements.

    FLOPs per element: 3, 1 more for the weight. Sources: Zhang and Sennrich 2019, equation 4;
    ``aten::rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None)``.

    Attributes
    ----------
    rows, width : Dim
        x is [rows, width]; the weight is [width].
    weight : bool
        Whether the weight is there.
    dtype : DType
        Type of x, the weight and y.

    Examples
    --------
    >>> RMSNorm(rows=2, width=10, weight=True, dtype=DType.BF16).vector_flops()
    80
    """

    _statistic: ClassVar[str] = "rms_norm"

    rows: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    weight: bool

    def _elements(self) -> Dim:
        return product((self.rows, self.width))

    def _parameter_width(self) -> Dim:
        return self.width

    def _affine(self) -> tuple[bool, bool]:
        return self.weight, False


@frozen(kw_only=True)
class GroupNorm(_Norm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with statistics over each group of channels.

    FLOPs per element: 5, 1 more for the weight and 1 for the bias; they do not depend on the groups.
    Sources: Wu and He 2018, equation 1; ``aten::group_norm(Tensor input, int num_groups, ...)``.

    Attributes
    ----------
    batch, channels, spatial : Dim
        x is [batch, channels, spatial]; the parameters are [channels].
    groups : Dim
        Groups of channels.
    weight, bias : bool
        Which parameters are there.
    dtype : DType
        Type of x, the parameters and y.

    Examples
    --------
    >>> layer = GroupNorm(batch=1, channels=4, groups=2, spatial=9, weight=True, bias=True, dtype=DType.FP32)
    >>> layer.vector_flops(), layer.weight_bytes()
    (252, 32)
    """

    _statistic: ClassVar[str] = "layer_norm"

    batch: Dim = field(converter=as_dim)
    channels: Dim = field(converter=as_dim)
    groups: Dim = field(converter=as_dim)
    spatial: Dim = field(converter=as_dim)  # positions
    weight: bool
    bias: bool

    def _elements(self) -> Dim:
        return product((self.batch, self.channels, self.spatial))

    def _parameter_width(self) -> Dim:
        return self.channels

    def _affine(self) -> tuple[bool, bool]:
        return self.weight, self.bias


@frozen(kw_only=True)
class BatchNorm(_Norm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with a mean and a variance of each channel.

    FLOPs per element: with the running statistics of inference 2, with those of the batch 5; 1 more for the weight and
    1 for the bias. Traffic: the running statistics are read beside the parameters where there are any, and written back
    in training. Sources: Ioffe and Szegedy 2015, algorithms 1 and 2; ``aten::batch_norm(Tensor input, Tensor? weight,
    Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, ...)``.

    Attributes
    ----------
    batch, channels, spatial : Dim
        x is [batch, channels, spatial]; parameters and statistics are [channels].
    weight, bias : bool
        Which parameters are there.
    running : bool
        Whether running statistics are kept.
    training : bool
        Whether the statistics are those of the batch.
    dtype : DType
        Type of x, the parameters, the statistics and y.

    Examples
    --------
    >>> layer = BatchNorm(
    ...     batch=2, channels=4, spatial=9, weight=True, bias=True, running=True, training=False, dtype=DType.FP32
    ... )
    >>> layer.vector_flops() == (2 + 1 + 1) * 2 * 4 * 9, layer.weight_bytes()
    (True, 64)
    """

    _statistic: ClassVar[str] = "layer_norm"

    batch: Dim = field(converter=as_dim)
    channels: Dim = field(converter=as_dim)
    spatial: Dim = field(converter=as_dim)  # positions
    weight: bool
    bias: bool
    running: bool
    training: bool

    def vector_flops(self) -> Dim:
        """FLOPs per element times elements. Unit: FLOPs."""
        computed = flops_per_element("layer_norm") if self.training else flops_per_element("given_statistics")
        each = computed + self.weight * flops_per_element("norm_scale") + self.bias * flops_per_element("norm_shift")
        return product((each, self._elements()))

    def weight_bytes(self) -> Dim:
        """Bytes of the weight, the bias and the running statistics."""
        tensors = self.weight + self.bias + 2 * self.running
        return product((tensors, self.channels, (self.parameter_dtype or self.dtype).itemsize))

    def traffic(self) -> Traffic:
        """Input x, the parameters and the statistics read once, y written once; in training, the statistics too."""
        moved = product((self._elements(), self.dtype.itemsize))
        updated = product((2, self.channels, (self.parameter_dtype or self.dtype).itemsize))
        written = total((moved, updated)) if self.training and self.running else moved
        return Traffic(weights_read=self.weight_bytes(), activations_read=moved, written=written)

    def activation_bytes(self) -> Dim:
        """Bytes of y."""
        return product((self._elements(), self.dtype.itemsize))

    def _elements(self) -> Dim:
        return product((self.batch, self.channels, self.spatial))

    def _parameter_width(self) -> Dim:
        return self.channels

    def _affine(self) -> tuple[bool, bool]:
        return self.weight, self.bias


@frozen(kw_only=True)
class Softmax(BaseLayer):
    """y = exp(x - max) / sum(exp(x - max)), over rows of ``width`` elements, outside fused attention.

    Its own category is activation, as it depends on no context; a leaf in an attention or a router says so
    itself. FLOPs per element: 5. Backward: dx = y * (dy - sum(dy * y)), 4 per element, from the kept result
    y. Source: ``aten::softmax.int(Tensor self, int dim, ScalarType? dtype=None)``.

    Attributes
    ----------
    rows, width : Dim
        x and y are [rows, width].
    dtype : DType
        Type of x.
    out_dtype : DType or None
        Type of y; that of x when None.

    Examples
    --------
    >>> layer = Softmax(rows=2, width=10, dtype=DType.BF16, out_dtype=DType.FP32)
    >>> layer.vector_flops(), layer.traffic().bytes
    (100, 120)
    """

    category: ClassVar[Category] = Category.ACTIVATION

    rows: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    dtype: DType
    out_dtype: DType | None = None

    def vector_flops(self) -> Dim:
        """FLOPs per element times elements. Unit: FLOPs."""
        return product((flops_per_element("softmax"), self.rows, self.width))

    def backward_vector_flops(self) -> Dim:
        """FLOPs per element of the gradient times elements. Unit: FLOPs."""
        return product((flops_per_element("softmax_backward"), self.rows, self.width))

    def traffic(self) -> Traffic:
        """Input x read once, y written once."""
        return Traffic.from_operands((self._tensor(self.dtype),), (self._result(),))

    def backward_traffic(self) -> Traffic:
        """Result y and dy read once, dx written once."""
        result = self._result()
        gradient = kernel_gradient((self._tensor(self.dtype),), (result,))
        return Traffic(activations_read=total((result.bytes, result.bytes)), written=gradient.written)

    def backward_activation_bytes(self) -> Dim:
        """Bytes of y, kept for the backward pass in place of x."""
        return self._result().bytes

    def _tensor(self, dtype: DType) -> Operand:
        return Operand(elements=product((self.rows, self.width)), dtype=dtype)

    def _result(self) -> Operand:
        return self._tensor(self.out_dtype or self.dtype)
