"""Linear layers: y = x W^T + b, and many experts' products in one grouped kernel."""

from __future__ import annotations

from typing import ClassVar

from attrs import converters, field, frozen

from modelmeter.categories import Category
from modelmeter.dim_binding import settle
from modelmeter.dims import Dim, product, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Operand, Traffic, as_dim, bytes_of
from modelmeter.layers.weight_format import WeightFormat, row_scale_bytes, stored_as


@frozen(kw_only=True)
class Linear(BaseLayer):
    """y[rows, out] = x[rows, in] @ w[out, in].T + b[out].

    FLOPs: ``2*rows*in*out`` in products, ``rows*out`` additions of the bias. Traffic: x, w and b read, y
    written. Backward: two products of the same size, dx = dy @ w and dw = dy.T @ x; the bias's gradient sums
    dy. Each of these kernels reads dy. Source: ``aten::linear(Tensor input, Tensor weight, Tensor?
    bias=None)``.

    Attributes
    ----------
    rows : Dim
        Product of all leading axes of x.
    in_features, out_features : Dim
        Elements per row of x and of y.
    bias : bool
        Whether b is there.
    dtype : DType
        Type of x, w, b and y, and of the products.
    weights : WeightFormat or None
        How w and b are stored; in `dtype` when None.
    out_dtype : DType or None
        Type of y; `dtype` when None.
    input_group_size : Dim or None
        Elements of a row of x that share a scale in fp32, which is read beside x; None for no scales.

    Examples
    --------
    >>> layer = Linear(rows=3, in_features=4, out_features=2, bias=True, dtype=DType.BF16)
    >>> layer.matmul_flops(), layer.vector_flops(), layer.traffic().bytes
    (48, 6, 56)
    """

    category: ClassVar[Category] = Category.LINEAR

    rows: Dim = field(converter=as_dim)
    in_features: Dim = field(converter=as_dim)  # elements
    out_features: Dim = field(converter=as_dim)  # elements
    bias: bool
    dtype: DType
    weights: WeightFormat | None = field(default=None, metadata=NOT_CAPTURED)
    out_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)
    input_group_size: Dim | None = field(
        default=None, converter=converters.optional(as_dim), metadata=NOT_CAPTURED
    )  # elements

    def matmul_flops(self) -> Dim:
        """2*rows*in*out; of complex numbers 8. Unit: FLOPs."""
        return product((self.dtype.multiply_add_flops, self.rows, self.in_features, self.out_features))

    def vector_flops(self) -> Dim:
        """rows*out for the bias; of complex numbers 2. Unit: FLOPs."""
        return product((self.dtype.addition_flops, self.rows, self.out_features)) if self.bias else 0

    def weight_bytes(self) -> Dim:
        """Bytes of w and b."""
        bias = bytes_of(self.out_features, stored_as(self.weights, self.dtype).other_dtype) if self.bias else 0
        return total((self._matrix_bytes(), bias))

    def traffic(self) -> Traffic:
        """x, w and b read once, y written once."""
        return Traffic(
            weights_read=self.weight_bytes(),
            activations_read=_input_bytes(self),
            written=product((self.rows, self.out_features, (self.out_dtype or self.dtype).itemsize)),
        )

    def backward_vector_flops(self) -> Dim:
        """rows*out to sum the bias's gradient. Unit: FLOPs."""
        return self.vector_flops()

    def backward_traffic(self) -> Traffic:
        """Computing dx reads dy and w; dw reads dy and x; db reads dy; each writes its result."""
        forward = self.traffic()
        kernels = 3 if self.bias else 2
        return Traffic(
            weights_read=self._matrix_bytes(),
            activations_read=total((forward.activations_read, product((kernels, forward.written)))),
            written=total((forward.activations_read, self.weight_bytes())),
        )

    def _matrix_bytes(self) -> Dim:
        return stored_as(self.weights, self.dtype).matrix_bytes(rows=self.out_features, width=self.in_features)


@frozen(kw_only=True)
class GroupedLinear(BaseLayer):
    """y[r, out] = x[r, in] @ w[e(r), in, out]: the rows of several experts in one grouped product.

    Rows are sorted by expert; int32 offsets [experts] say where each expert's rows end. Every row meets one
    expert, so FLOPs are those of one linear layer: ``2*rows*in*out``. Only the weights of experts that have
    rows are read: ``active_experts*in*out``. Backward: two grouped products, which read dy each; gradients of
    all experts are written. Source: ``aten::_grouped_mm(Tensor self, Tensor mat2, Tensor? offs=None, ...)``.

    Attributes
    ----------
    rows : Dim
        Rows of all experts together.
    in_features, out_features : Dim
        Elements per row of x and of y.
    experts : Dim
        Experts whose weights are held.
    active_experts : Dim
        Experts that have rows; often ``distinct_experts(E, k, tokens)``. An expression without dims counts as
        bound under uniform routing until `at` binds it under another.
    dtype : DType
        Type of x, w and y, and of the products.
    weights : WeightFormat or None
        How w is stored; in `dtype` when None.
    out_dtype : DType or None
        Type of y; `dtype` when None.
    input_group_size : Dim or None
        Elements of a row of x that share a scale in fp32, which is read beside x; None for no scales.

    Examples
    --------
    >>> layer = GroupedLinear(
    ...     rows=12, in_features=4, out_features=2, experts=8, active_experts=5, dtype=DType.BF16
    ... )
    >>> layer.matmul_flops(), layer.traffic().weights_read, layer.weight_bytes()
    (192, 80, 128)
    """

    category: ClassVar[Category] = Category.LINEAR

    rows: Dim = field(converter=as_dim)
    in_features: Dim = field(converter=as_dim)  # elements
    out_features: Dim = field(converter=as_dim)  # elements
    experts: Dim = field(converter=as_dim)
    active_experts: Dim = field(converter=as_dim)
    dtype: DType
    weights: WeightFormat | None = field(default=None, metadata=NOT_CAPTURED)
    out_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)
    input_group_size: Dim | None = field(
        default=None, converter=converters.optional(as_dim), metadata=NOT_CAPTURED
    )  # elements

    def matmul_flops(self) -> Dim:
        """2*rows*in*out. Unit: FLOPs."""
        return product((2, self.rows, self.in_features, self.out_features))

    def weight_bytes(self) -> Dim:
        """Bytes of every expert's w."""
        return product((self.experts, self._expert_bytes()))

    def traffic(self) -> Traffic:
        """x, the offsets and the active experts' w read once, y written once."""
        return Traffic(
            weights_read=product((settle(self.active_experts), self._expert_bytes())),
            activations_read=total((_input_bytes(self), self._offsets().bytes)),
            written=self._output_bytes(),
        )

    def backward_traffic(self) -> Traffic:
        """Computing dx reads dy, w and the offsets, dw reads dy, x and the offsets; dw is whole."""
        return Traffic(
            weights_read=self.traffic().weights_read,
            activations_read=total(
                (product((2, self._output_bytes())), _input_bytes(self), product((2, self._offsets().bytes)))
            ),
            written=total((_input_bytes(self), self.weight_bytes())),
        )

    def _expert_bytes(self) -> Dim:
        return stored_as(self.weights, self.dtype).matrix_bytes(rows=self.out_features, width=self.in_features)

    def _output_bytes(self) -> Dim:
        return product((self.rows, self.out_features, (self.out_dtype or self.dtype).itemsize))

    def _offsets(self) -> Operand:
        return Operand(elements=self.experts, dtype=DType.INT32)


def _input_bytes(layer: Linear | GroupedLinear) -> Dim:
    """Return the bytes of x and its scales."""
    scales = row_scale_bytes(rows=layer.rows, width=layer.in_features, group_size=layer.input_group_size)
    return total((product((layer.rows, layer.in_features, layer.dtype.itemsize)), scales))
