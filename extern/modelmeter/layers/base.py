"""BaseLayer: the contract every layer keeps, in base units inside and in the contract's units outside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, Self, TypeVar, cast

import attrs
import sympy
from attrs import field, frozen

from modelmeter import units
from modelmeter.categories import Category
from modelmeter.dim_binding import bind
from modelmeter.dim_text import free_dims
from modelmeter.dims import Dim, product, simplify, total
from modelmeter.dtypes import DType
from modelmeter.errors import DimError, UnboundDimError
from modelmeter.expert_counts import Routing, uniform_routing

NOT_CAPTURED: Mapping[str, bool] = MappingProxyType({"not_captured": True})
"""Metadata of a field that is None in a layer as captured, unless its model is quantised, and that a what-if sets; a
layer is stored without it where it is None."""

Record = TypeVar("Record", bound=attrs.AttrsInstance)


def as_dim(value: Dim) -> Dim:
    """Normalise a dim field: expressions expanded, constants as numbers.

    Raises
    ------
    DimError
        When the value is no expression and no finite number of at least 0.

    Examples
    --------
    >>> from modelmeter.dims import symbol
    >>> as_dim((symbol("B") + 1) * 2)
    2*B + 2
    """
    dim = simplify(value)
    if isinstance(dim, sympy.Expr):
        return dim
    if not isinstance(dim, int | float) or isinstance(dim, bool) or not math.isfinite(dim) or dim < 0:
        raise DimError(f"{value!r} is no dim: use a number of at least 0, or an expression in dims")
    return dim


def bytes_of(elements: Dim, dtype: DType) -> Dim:
    """Return the bytes that elements of a type take, exactly: those of int4 take half a byte each.

    Examples
    --------
    >>> from modelmeter.dim_text import to_text
    >>> from modelmeter.dims import symbol
    >>> bytes_of(10, DType.INT4), to_text(bytes_of(symbol("B"), DType.INT4)), bytes_of(10, DType.BF16)
    (5, 'B/2', 20)
    """
    if dtype.bits % 8 == 0:
        return product((elements, dtype.itemsize))
    return simplify(sympy.Mul(sympy.sympify(elements), sympy.Rational(dtype.bits, 8)))


@frozen(kw_only=True)
class Operand:
    """A tensor that a layer reads or writes: how much of it moves, not what is in it.

    Attributes
    ----------
    elements : Dim
        Elements that a kernel touches; a broadcast operand counts as stored.
    dtype : DType
        Their type.
    weight : bool
        Whether it is a parameter of the model.

    Examples
    --------
    >>> Operand(elements=10, dtype=DType.BF16).bytes
    20
    """

    elements: Dim = field(converter=as_dim)  # elements
    dtype: DType
    weight: bool = False

    @property
    def bytes(self) -> Dim:
        """Bytes of the touched elements."""
        return bytes_of(self.elements, self.dtype)


@frozen(kw_only=True)
class Traffic:
    """Bytes that one execution moves to and from device memory, each operand once."""

    weights_read: Dim = 0  # bytes
    activations_read: Dim = 0  # bytes
    written: Dim = 0  # bytes

    @property
    def bytes(self) -> Dim:
        """All bytes moved."""
        return total((self.weights_read, self.activations_read, self.written))

    @classmethod
    def from_operands(cls, reads: tuple[Operand, ...], writes: tuple[Operand, ...]) -> Self:
        """Return the traffic of a kernel that reads and writes each operand once."""
        return cls(
            weights_read=total(operand.bytes for operand in reads if operand.weight),
            activations_read=total(operand.bytes for operand in reads if not operand.weight),
            written=total(operand.bytes for operand in writes),
        )


@frozen(kw_only=True)
class BaseLayer:
    """What one analytic layer costs, forward and backward.

    A subclass holds the dims of one execution and states the cost in base units (FLOPs, bytes) through the
    methods `matmul_flops`, `vector_flops`, `traffic`, `weight_bytes`, `activation_bytes` and `kvcache_bytes`,
    and their backward twins. The contract's methods below derive from them and only convert units.

    Dims may be numbers or expressions; `at` binds them.
    """

    category: ClassVar[Category]

    # --- what a subclass states, in FLOPs and bytes -----------------------------------------------

    def matmul_flops(self) -> Dim:
        """FLOPs of matrix products and convolutions; one multiply-add is 2. Unit: FLOPs."""
        return 0

    def vector_flops(self) -> Dim:
        """FLOPs outside matrix products, run on CUDA cores. Unit: FLOPs."""
        return 0

    def traffic(self) -> Traffic:
        """Bytes moved by one forward execution when every kernel reads and writes its operands once."""
        return Traffic()

    def weight_bytes(self) -> Dim:
        """Bytes of the parameters held by the layer."""
        return 0

    def activation_bytes(self) -> Dim:
        """Bytes of the results that one execution leaves behind."""
        return self.traffic().written

    def kvcache_bytes(self) -> Dim:
        """Bytes of keys and values kept for later steps."""
        return 0

    def backward_matmul_flops(self) -> Dim:
        """FLOPs of matrix products in the backward pass: one product per input that has a gradient."""
        return product((2, self.matmul_flops()))

    def backward_vector_flops(self) -> Dim:
        """FLOPs outside matrix products in the backward pass."""
        return product((2, self.vector_flops()))

    def backward_traffic(self) -> Traffic:
        """Bytes moved by the backward pass.

        The gradient of each result is read, every forward operand is read again, and a gradient is written
        for each operand that was read.
        """
        forward = self.traffic()
        return Traffic(
            weights_read=forward.weights_read,
            activations_read=total((forward.activations_read, forward.written)),
            written=total((forward.weights_read, forward.activations_read)),
        )

    def backward_weight_bytes(self) -> Dim:
        """Bytes of the parameters' gradients."""
        return self.weight_bytes()

    def backward_activation_bytes(self) -> Dim:
        """Bytes kept from the forward pass for the backward pass: the activations that were read."""
        return self.traffic().activations_read

    def backward_kvcache_bytes(self) -> Dim:
        """Bytes of keys and values kept for the backward pass; training keeps no cache."""
        return 0

    def runs_on_tensor_cores(self) -> bool:
        """Whether the matrix products run on tensor cores; decided by the compute dtype."""
        dtype = getattr(self, "dtype", None)
        return isinstance(dtype, DType) and dtype.on_tensor_cores

    # --- the contract, in its units ---------------------------------------------------------------

    def tensor_core_flops(self) -> Dim:
        """FLOPs on tensor cores of one forward execution."""
        return self.matmul_flops() if self.runs_on_tensor_cores() else 0

    def cuda_core_flops(self) -> Dim:
        """FLOPs on CUDA cores of one forward execution: vector work, and products no tensor core takes."""
        return self.vector_flops() if self.runs_on_tensor_cores() else total((self.matmul_flops(), self.vector_flops()))

    def backward_tensor_core_flops(self) -> Dim:
        """FLOPs on tensor cores of one backward execution."""
        return self.backward_matmul_flops() if self.runs_on_tensor_cores() else 0

    def backward_cuda_core_flops(self) -> Dim:
        """FLOPs on CUDA cores of one backward execution."""
        if self.runs_on_tensor_cores():
            return self.backward_vector_flops()
        return total((self.backward_matmul_flops(), self.backward_vector_flops()))

    def forward_tensor_core_flops(self) -> Dim:
        """Tensor-core work of one forward execution. Unit: TFLOPs (1e12)."""
        return units.flops_to_tflops(self.tensor_core_flops())

    def forward_cuda_core_flops(self) -> Dim:
        """CUDA-core work of one forward execution. Unit: TFLOPs (1e12)."""
        return units.flops_to_tflops(self.cuda_core_flops())

    def forward_cal_io(self) -> Dim:
        """Device memory traffic of one forward execution. Unit: Tb (1e12 bits)."""
        return units.bytes_to_terabits(self.traffic().bytes)

    def forward_arithmetic_intensity(self) -> Dim:
        """All FLOPs per bit of I/O of one forward execution."""
        return _intensity(total((self.matmul_flops(), self.vector_flops())), self.traffic().bytes)

    def forward_memory_weight(self) -> Dim:
        """Memory of the parameters. Unit: GB (2**30 bytes)."""
        return units.bytes_to_gb(self.weight_bytes())

    def forward_memory_activation(self) -> Dim:
        """Memory of the results. Unit: GB (2**30 bytes)."""
        return units.bytes_to_gb(self.activation_bytes())

    def forward_memory_kvcache(self) -> Dim:
        """Memory of kept keys and values. Unit: GB (2**30 bytes)."""
        return units.bytes_to_gb(self.kvcache_bytes())

    def backward_cal_io(self) -> Dim:
        """Device memory traffic of one backward execution. Unit: Tb (1e12 bits)."""
        return units.bytes_to_terabits(self.backward_traffic().bytes)

    def backward_arithmetic_intensity(self) -> Dim:
        """All FLOPs per bit of I/O of one backward execution."""
        flops = total((self.backward_matmul_flops(), self.backward_vector_flops()))
        return _intensity(flops, self.backward_traffic().bytes)

    def backward_memory_weight(self) -> Dim:
        """Memory of the parameters' gradients. Unit: GB (2**30 bytes)."""
        return units.bytes_to_gb(self.backward_weight_bytes())

    def backward_memory_activation(self) -> Dim:
        """Memory of the activations kept for the backward pass. Unit: GB (2**30 bytes)."""
        return units.bytes_to_gb(self.backward_activation_bytes())

    def backward_memory_kvcache(self) -> Dim:
        """Memory of keys and values kept for the backward pass. Unit: GB (2**30 bytes)."""
        return units.bytes_to_gb(self.backward_kvcache_bytes())

    # --- dims -------------------------------------------------------------------------------------

    def free_dims(self) -> frozenset[str]:
        """Return the names of the dims that are not bound yet."""
        return frozenset().union(*(free_dims(dim) for dim in _dims_of(self)))

    def at(self, *, routing: Routing = uniform_routing, **bindings: int) -> Self:
        """Return the layer with every dim bound to a number.

        Raises
        ------
        UnboundDimError
            When a dim has no binding; the error names every one.

        Examples
        --------
        >>> from modelmeter.dims import symbol
        >>> from modelmeter.layers import Linear
        >>> layer = Linear(rows=symbol("B"), in_features=4, out_features=2, bias=False, dtype=DType.BF16)
        >>> layer.at(B=3).matmul_flops()
        48
        """
        free = self.free_dims()
        missing = free - bindings.keys()
        if missing:
            raise UnboundDimError(missing, free)
        return _bound(self, bindings, routing)


def _intensity(flops: Dim, moved: Dim) -> Dim:
    bits = product((moved, 8))
    return flops / bits if isinstance(bits, sympy.Expr) or bits else 0.0


def _dims_of(record: attrs.AttrsInstance) -> Iterator[Dim]:
    """Yield every expression in a record's fields, nested records and tuples included."""
    for attribute in attrs.fields(type(record)):
        yield from _dims_in(getattr(record, attribute.name))


def _dims_in(value: object) -> Iterator[Dim]:
    if isinstance(value, sympy.Expr):
        yield value
    elif isinstance(value, tuple):
        for item in cast("tuple[object, ...]", value):
            yield from _dims_in(item)
    elif attrs.has(type(value)):
        yield from _dims_of(cast("attrs.AttrsInstance", value))


def _bound(record: Record, bindings: Mapping[str, int], routing: Routing) -> Record:
    changes = {
        attribute.name: _bound_value(getattr(record, attribute.name), bindings, routing)
        for attribute in attrs.fields(type(record))
    }
    return type(record)(**changes)


def _bound_value(value: object, bindings: Mapping[str, int], routing: Routing) -> object:
    if isinstance(value, sympy.Expr):
        return bind(value, bindings, routing=routing)
    if isinstance(value, tuple):
        return tuple(_bound_value(item, bindings, routing) for item in cast("tuple[object, ...]", value))
    if attrs.has(type(value)):
        return _bound(cast("attrs.AttrsInstance", value), bindings, routing)
    return value
