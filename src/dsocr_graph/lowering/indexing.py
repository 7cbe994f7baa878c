"""Look-ups, sorts, gathers and scatters."""

from __future__ import annotations

from dsocr_graph.ir import OpCall, TensorSpec
from dsocr_graph.lowering.registry import Approximation, lowers, operand, operands
from modelmeter.dims import Dim, product
from modelmeter.layers import (
    BaseLayer,
    Embedding,
    EmbeddingBag,
    Gather,
    Operand,
    Reduction,
    Scatter,
    SearchSorted,
    Sort,
    TopK,
)


@lowers("aten::embedding")
def embedding(call: OpCall) -> Embedding:
    """y[..., D] = table[index[...], D]."""
    table, index = call.tensor("weight"), call.tensor("indices")
    return Embedding(
        rows=index.elements,
        width=table.shape[1],
        vocabulary=table.shape[0],
        index_dtype=index.dtype,
        dtype=table.dtype,
    )


def _gathered(source: TensorSpec, elements: Dim) -> Operand:
    return Operand(elements=elements, dtype=source.dtype, weight=source.is_weight)


@lowers("aten::index", "aten::index_select", "aten::gather", "aten::take_along_dim", "aten::take")
def gather(call: OpCall) -> Gather:
    """y = x at given positions: one element read per element of the result, and the indices."""
    source, *indices = call.reads
    y = call.result
    return Gather(reads=(_gathered(source, y.elements), *operands(indices)), writes=(operand(y),))


@lowers(
    "aten::index_put",
    "aten::index_put_",
    "aten::index_copy",
    "aten::index_copy_",
    "aten::scatter",
    "aten::scatter_",
    "aten::index_fill",
    "aten::index_fill_",
    "aten::put",
    "aten::put_",
)
def scatter(call: OpCall) -> BaseLayer:
    """x at given positions = values: the values and indices are read, one element written per value.

    The out-of-place forms copy `x` first.
    """
    target, *others = call.reads
    values = others[-1]  # a scalar value fills as many elements as there are indices
    written = Operand(elements=values.elements, dtype=target.dtype)
    if call.op.endswith("_"):
        return Scatter(reads=operands(others), writes=(written,))
    return Scatter(reads=operands(call.reads), writes=(*operands(call.writes), written))


@lowers("aten::scatter_add", "aten::scatter_add_", "aten::index_add", "aten::index_add_")
def scatter_add(call: OpCall) -> BaseLayer:
    """x at given positions += values: the touched elements are read and written back."""
    target, *others = call.reads
    values = others[-1]
    touched = Operand(elements=values.elements, dtype=target.dtype)
    if call.op.endswith("_"):
        return Scatter(reads=(*operands(others), touched), writes=(touched,))
    return Scatter(reads=(*operands(call.reads), touched), writes=(*operands(call.writes), touched))


@lowers("aten::scatter_reduce", "aten::scatter_reduce_", "aten::index_reduce", "aten::index_reduce_")
def scatter_reduce(call: OpCall) -> BaseLayer:
    """x at given positions = its reduction with values: an operation per value, on elements read and written back."""
    target, *others = call.reads
    values = others[-1]
    touched = Operand(elements=values.elements, dtype=target.dtype)
    copied = () if call.op.endswith("_") else (operand(target),)
    return Reduction(
        op=call.op.partition("::")[2],
        elements=values.elements,
        reads=(*copied, *operands(others), touched),
        writes=(*copied, touched),
        dtype=target.dtype,
    )


@lowers("aten::segment_reduce")
def segment_reduce(call: OpCall) -> Reduction:
    """y[s] = reduce(x[rows of segment s])."""
    x = call.tensor("data")
    return Reduction(
        op="segment_reduce",
        elements=x.elements,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=x.dtype,
    )


@lowers("aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(call: OpCall) -> EmbeddingBag:
    """y[b, D] = sum, mean or maximum of table[index[r], D] over the rows r of a bag."""
    table, index = call.tensor("weight"), call.tensor("indices")
    return EmbeddingBag(
        rows=index.elements,
        bags=call.writes[0].shape[0],
        width=table.shape[1],
        vocabulary=table.shape[0],
        weighted=call.has("per_sample_weights"),
        index_dtype=index.dtype,
        dtype=table.dtype,
    )


@lowers("aten::masked_scatter", "aten::masked_scatter_")
def masked_scatter(call: OpCall) -> Scatter:
    """x where mask = the next values of source: mask and source are read, the source's elements written."""
    x, mask, source = call.tensor("self"), call.tensor("mask"), call.tensor("source")
    written = Operand(elements=source.elements, dtype=x.dtype)
    if call.op.endswith("_"):
        return Scatter(reads=operands((mask, source)), writes=(written,))
    return Scatter(reads=operands((x, mask, source)), writes=(operand(call.result), written))


@lowers("aten::topk")
def topk(call: OpCall) -> TopK:
    """The k largest of each row of x[..., n], with their positions."""
    x = call.tensor("self")
    axis = call.integer("dim", -1) % len(x.shape)
    return TopK(
        rows=product(size for position, size in enumerate(x.shape) if position != axis),
        width=x.shape[axis],
        k=call.integer("k", 1),
        dtype=x.dtype,
    )


@lowers("aten::sort", "aten::argsort", "aten::msort")
def sort(call: OpCall) -> Approximation:
    """Each row of x[..., n] in order, with the positions."""
    x = call.tensor("self")
    axis = call.integer("dim", 0 if call.op == "aten::msort" else -1) % len(x.shape) if x.shape else 0
    layer = Sort(
        rows=product(size for position, size in enumerate(x.shape) if position != axis),
        width=x.shape[axis] if x.shape else 1,
        dtype=x.dtype,
    )
    return Approximation(
        layer=layer, note="one pass over keys and positions; the passes of the sort depend on the device"
    )


@lowers("aten::searchsorted", "aten::bucketize")
def searchsorted(call: OpCall) -> SearchSorted:
    """Position of each query in a sorted row."""
    sorted_row = call.tensor("sorted_sequence" if "sorted_sequence" in call.arguments else "boundaries")
    queries = call.tensor("self")
    return SearchSorted(
        queries=queries.elements,
        width=sorted_row.shape[-1],
        dtype=sorted_row.dtype,
        out_dtype=call.result.dtype,
    )


@lowers("aten::bincount", "aten::histc")
def count(call: OpCall) -> Scatter:
    """Counts per bin: every element is read and one bin is incremented."""
    y = call.result
    return Scatter(reads=operands(call.reads), writes=(operand(y),))
