"""Layers that move rows by index or find indices: embedding, top-k, sort, search, gather and scatter."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Operand, Traffic, as_dim
from modelmeter.layers.gradients import differentiable, movement_gradient
from modelmeter.layers.weight_format import WeightFormat, stored_as


@frozen(kw_only=True)
class Embedding(BaseLayer):
    """y[r] = table[index[r]]: one row of the table per index.

    No FLOPs. Traffic: the indices and one row each read, y written; an upper bound of the rows read, as equal
    indices may hit a cache. Backward: the table's gradient is filled with zeros, then each row of dy is added
    to its row (one addition per element of dy). Source: ``aten::embedding(Tensor weight, Tensor indices,
    ...)`` and ``aten::embedding_dense_backward``.

    Attributes
    ----------
    rows : Dim
        Indices.
    width : Dim
        Elements per row.
    vocabulary : Dim
        Rows of the table.
    index_dtype, dtype : DType
        Types of the indices, and of the table and y.
    parameter_dtype : DType or None
        Type of the table; `dtype` when None.
    weights : WeightFormat or None
        How the table and its scales are stored; in `parameter_dtype` without scales when None.

    Examples
    --------
    >>> layer = Embedding(rows=3, width=4, vocabulary=100, index_dtype=DType.INT64, dtype=DType.BF16)
    >>> layer.traffic().bytes, layer.weight_bytes()
    (72, 800)
    """

    category: ClassVar[Category] = Category.EMBEDDING

    rows: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    vocabulary: Dim = field(converter=as_dim)
    index_dtype: DType
    dtype: DType
    parameter_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)
    weights: WeightFormat | None = field(default=None, metadata=NOT_CAPTURED)

    def weight_bytes(self) -> Dim:
        """Bytes of the table."""
        return self._row_bytes(self.vocabulary)

    def traffic(self) -> Traffic:
        """Indices and one row per index read, y written."""
        return Traffic(
            weights_read=self._row_bytes(self.rows),
            activations_read=product((self.rows, self.index_dtype.itemsize)),
            written=self._moved(),
        )

    def backward_vector_flops(self) -> Dim:
        """One addition per element of dy. Unit: FLOPs."""
        return product((self.rows, self.width))

    def backward_traffic(self) -> Traffic:
        """dy, the indices and the rows so far read; zeros for the table and the summed rows written."""
        indices = product((self.rows, self.index_dtype.itemsize))
        return Traffic(
            activations_read=total((self._moved(), self._moved(), indices)),
            written=total((self.weight_bytes(), self._moved())),
        )

    def _moved(self) -> Dim:
        return product((self.rows, self.width, self.dtype.itemsize))

    def _row_bytes(self, rows: Dim) -> Dim:
        return stored_as(self.weights, self.parameter_dtype or self.dtype).matrix_bytes(rows=rows, width=self.width)


@frozen(kw_only=True)
class TopK(BaseLayer):
    """The k largest of each row, and where they are.

    FLOPs: one comparison per input element, a lower bound of every selection algorithm. Traffic: the rows
    read once, k values and k int64 indices per row written. Backward: the values' gradients are scattered
    into zeros; indices have none. Source: ``aten::topk(Tensor self, SymInt k, ...) -> (Tensor values, Tensor
    indices)``.

    Attributes
    ----------
    rows, width, k : Dim
        Input [rows, width], results [rows, k].
    dtype : DType
        Type of the input and the values.

    Examples
    --------
    >>> layer = TopK(rows=2, width=64, k=6, dtype=DType.FP32)
    >>> layer.vector_flops(), layer.traffic().bytes
    (128, 656)
    """

    category: ClassVar[Category] = Category.ROUTING

    rows: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    k: Dim = field(converter=as_dim)
    dtype: DType

    def vector_flops(self) -> Dim:
        """rows*width comparisons. Unit: FLOPs."""
        return product((self.rows, self.width))

    def traffic(self) -> Traffic:
        """Input read once, values and indices written once."""
        return Traffic.from_operands((self._input(),), (self._values(), self._indices()))

    def backward_vector_flops(self) -> Dim:
        """None: gradients only move."""
        return 0

    def backward_traffic(self) -> Traffic:
        """Gradients of the values and the indices read, the input's gradient written."""
        return movement_gradient((self._input(),), (self._values(),), kept=(self._indices(),))

    def backward_activation_bytes(self) -> Dim:
        """Bytes of the indices, kept for the way back."""
        return self._indices().bytes if self.dtype.is_floating else 0

    def _input(self) -> Operand:
        return Operand(elements=product((self.rows, self.width)), dtype=self.dtype)

    def _values(self) -> Operand:
        return Operand(elements=product((self.rows, self.k)), dtype=self.dtype)

    def _indices(self) -> Operand:
        return Operand(elements=product((self.rows, self.k)), dtype=DType.INT64)


@frozen(kw_only=True)
class Sort(BaseLayer):
    """Each row in order, and the permutation that orders it.

    FLOPs: one comparison per floating-point key, a lower bound (a comparison sort makes log2(width) of them,
    a radix sort none); integer keys cost none. Traffic: the input read once, values and indices written once;
    the passes of a sort in several steps are left out. Backward: the values' gradients move back by the
    permutation. Source: ``aten::sort(Tensor self, ...) -> (Tensor values, Tensor indices)``.

    Attributes
    ----------
    rows, width : Dim
        Input and results are [rows, width].
    dtype, index_dtype : DType
        Types of the keys and of the indices.

    Examples
    --------
    >>> Sort(rows=1, width=12, dtype=DType.INT64).traffic().bytes
    288
    """

    category: ClassVar[Category] = Category.ROUTING

    rows: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    dtype: DType
    index_dtype: DType = DType.INT64

    def vector_flops(self) -> Dim:
        """rows*width comparisons of floating-point keys. Unit: FLOPs."""
        return product((self.rows, self.width)) if self.dtype.is_floating else 0

    def traffic(self) -> Traffic:
        """Input read once, values and indices written once."""
        keys = self._tensor(self.dtype)
        return Traffic.from_operands((keys,), (keys, self._tensor(self.index_dtype)))

    def backward_vector_flops(self) -> Dim:
        """None: gradients only move."""
        return 0

    def backward_traffic(self) -> Traffic:
        """Gradients of the values and the permutation read, the keys' written; integers have none."""
        keys = self._tensor(self.dtype)
        return movement_gradient((keys,), (keys,), kept=(self._tensor(self.index_dtype),))

    def backward_activation_bytes(self) -> Dim:
        """Bytes of the permutation, kept for the way back."""
        return self._tensor(self.index_dtype).bytes if self.dtype.is_floating else 0

    def _tensor(self, dtype: DType) -> Operand:
        return Operand(elements=product((self.rows, self.width)), dtype=dtype)


@frozen(kw_only=True)
class SearchSorted(BaseLayer):
    """Where each query belongs in a sorted sequence of ``width`` elements.

    FLOPs: one comparison per floating-point query, a lower bound (a binary search makes log2(width) of them);
    integers cost none. Traffic: the queries and the sequence read once, an upper bound of what a search
    touches; one index per query written. No gradient. Source: ``aten::searchsorted.Tensor(Tensor
    sorted_sequence, Tensor self, ...)``.

    Attributes
    ----------
    queries, width : Dim
        Elements to look up and elements of the sequence.
    dtype, out_dtype : DType
        Types of both inputs and of the indices.

    Examples
    --------
    >>> SearchSorted(queries=64, width=12, dtype=DType.INT64, out_dtype=DType.INT32).traffic().bytes
    864
    """

    category: ClassVar[Category] = Category.ROUTING

    queries: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    dtype: DType
    out_dtype: DType

    def vector_flops(self) -> Dim:
        """One comparison per floating-point query. Unit: FLOPs."""
        return self.queries if self.dtype.is_floating else 0

    def traffic(self) -> Traffic:
        """Queries and sequence read once, indices written once."""
        return Traffic(
            activations_read=product((total((self.queries, self.width)), self.dtype.itemsize)),
            written=product((self.queries, self.out_dtype.itemsize)),
        )

    def backward_vector_flops(self) -> Dim:
        """None: indices have no gradient."""
        return 0

    def backward_traffic(self) -> Traffic:
        """Nothing moves: indices have no gradient."""
        return Traffic()

    def backward_activation_bytes(self) -> Dim:
        """Nothing is kept."""
        return 0


@frozen(kw_only=True)
class _Indexed(BaseLayer):
    """A kernel that moves elements by index: no FLOPs; its operands, indices included, say what moves.

    Backward: gradients move the other way, along the same indices (integer operands, read again).
    """

    category: ClassVar[Category] = Category.ROUTING

    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]

    def weight_bytes(self) -> Dim:
        """Bytes of the operands that are parameters, as far as the kernel reads them."""
        return self.traffic().weights_read

    def traffic(self) -> Traffic:
        """Each operand read once, each result written once."""
        return Traffic.from_operands(self.reads, self.writes)

    def backward_traffic(self) -> Traffic:
        """Gradients of the results and the indices read, gradients of the floating-point operands written."""
        return movement_gradient(self.reads, self.writes, kept=self._indices())

    def backward_activation_bytes(self) -> Dim:
        """Bytes of the indices, kept for the way back."""
        if not differentiable(self.reads) or not differentiable(self.writes):
            return 0
        return total(operand.bytes for operand in self._indices())

    def _indices(self) -> tuple[Operand, ...]:
        return tuple(operand for operand in self.reads if not operand.dtype.is_floating)


@frozen(kw_only=True)
class Gather(_Indexed):
    """y[i] = x[index[i]]: elements picked by index (gather, index, index_select, take).

    Traffic: what ``reads`` and ``writes`` say; the elements that are picked count as read, not the whole
    source. Source: ``aten::index.Tensor(Tensor self, Tensor?[] indices)``, ``aten::gather``.

    Attributes
    ----------
    reads, writes : tuple of Operand
        The picked elements and the indices; the result.

    Examples
    --------
    >>> rows, index = Operand(elements=40, dtype=DType.BF16), Operand(elements=4, dtype=DType.INT64)
    >>> Gather(reads=(rows, index), writes=(rows,)).traffic().bytes
    192
    """


@frozen(kw_only=True)
class Scatter(_Indexed):
    """y[index[i]] = x[i]: elements placed by index (scatter, index_put, index_copy).

    No FLOPs: it assigns; an accumulating scatter is a `Reduction` over its source.
    Source: ``aten::index_put(Tensor self, Tensor?[] indices, Tensor values, ...)``, ``aten::scatter``.

    Attributes
    ----------
    reads, writes : tuple of Operand
        The source and the indices; the elements that are placed.

    Examples
    --------
    >>> rows, index = Operand(elements=40, dtype=DType.BF16), Operand(elements=4, dtype=DType.INT64)
    >>> Scatter(reads=(rows, index), writes=(rows,)).backward_traffic().bytes
    192
    """
