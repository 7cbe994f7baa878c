"""EmbeddingBag: rows of a table, summed by bag."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, total
from modelmeter.dtypes import DType
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Traffic, as_dim
from modelmeter.layers.weight_format import WeightFormat, stored_as


@frozen(kw_only=True)
class EmbeddingBag(BaseLayer):
    """y[b] = sum, mean or maximum of table[index[r]] over the rows r of a bag.

    FLOPs: one addition or comparison per element of a row, and one multiplication where rows have weights. Traffic: the
    indices, where bags begin, the weights and one row of the table per index read (an upper bound, as equal indices may
    hit a cache), one row per bag written; the rows themselves are never written out. Backward: the table's gradient is
    filled with zeros, then a row's gradient is added per index. Source: ``aten::embedding_bag(Tensor weight, Tensor
    indices, Tensor offsets, ..., Tensor? per_sample_weights=None, ...)``.

    Attributes
    ----------
    rows : Dim
        Indices.
    bags : Dim
        Results.
    width : Dim
        Elements per row.
    vocabulary : Dim
        Rows of the table.
    weighted : bool
        Whether each index has a weight.
    index_dtype, dtype : DType
        Types of the indices, and of the table, the weights and y.
    parameter_dtype : DType or None
        Type of the table; `dtype` when None.
    weights : WeightFormat or None
        How the table and its scales are stored; in `parameter_dtype` without scales when None.

    Examples
    --------
    >>> layer = EmbeddingBag(
    ...     rows=6, bags=2, width=4, vocabulary=100, weighted=False, index_dtype=DType.INT64, dtype=DType.FP32
    ... )
    >>> layer.vector_flops(), layer.traffic().bytes, layer.weight_bytes()
    (24, 192, 1600)
    """

    category: ClassVar[Category] = Category.EMBEDDING

    rows: Dim = field(converter=as_dim)
    bags: Dim = field(converter=as_dim)
    width: Dim = field(converter=as_dim)  # elements
    vocabulary: Dim = field(converter=as_dim)
    weighted: bool
    index_dtype: DType
    dtype: DType
    parameter_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)
    weights: WeightFormat | None = field(default=None, metadata=NOT_CAPTURED)

    def vector_flops(self) -> Dim:
        """One or two per element of a row. Unit: FLOPs."""
        return product((2 if self.weighted else 1, self.rows, self.width))

    def weight_bytes(self) -> Dim:
        """Bytes of the table."""
        return self._row_bytes(self.vocabulary)

    def traffic(self) -> Traffic:
        """Indices, offsets, weights and one row per index read, one row per bag written."""
        return Traffic(
            weights_read=self._row_bytes(self.rows),
            activations_read=total((self._index_bytes(), self._sample_bytes())),
            written=self._result_bytes(),
        )

    def backward_vector_flops(self) -> Dim:
        """As many as forward. Unit: FLOPs."""
        return self.vector_flops()

    def backward_traffic(self) -> Traffic:
        """dy, the indices and the rows so far read; zeros for the table and the summed rows written."""
        moved = self._row_bytes(self.rows)
        return Traffic(
            activations_read=total((self._result_bytes(), moved, self._index_bytes(), self._sample_bytes())),
            written=total((self.weight_bytes(), moved)),
        )

    def _index_bytes(self) -> Dim:
        return product((total((self.rows, self.bags)), self.index_dtype.itemsize))

    def _sample_bytes(self) -> Dim:
        return product((self.rows, self.dtype.itemsize)) if self.weighted else 0

    def _result_bytes(self) -> Dim:
        return product((self.bags, self.width, self.dtype.itemsize))

    def _row_bytes(self, rows: Dim) -> Dim:
        return stored_as(self.weights, self.parameter_dtype or self.dtype).matrix_bytes(rows=rows, width=self.width)
