"""Embedding, top-k, sort, search, gather and scatter, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.categories import Category
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import Embedding, Gather, Scatter, SearchSorted, Sort, TopK
from modelmeter.layers.base import Operand, Traffic

ROWS = Operand(elements=40, dtype=DType.BF16)
INDEX = Operand(elements=4, dtype=DType.INT64)


def test_embedding_reads_one_row_per_index() -> None:
    """3 rows of 4 in bf16 from a table of 100: 24 bytes of the 800, 24 bytes of indices."""
    layer = Embedding(rows=3, width=4, vocabulary=100, index_dtype=DType.INT64, dtype=DType.BF16)
    assert layer.category is Category.EMBEDDING
    assert layer.vector_flops() == 0
    assert layer.weight_bytes() == 800
    assert layer.traffic() == Traffic(weights_read=24, activations_read=24, written=24)


def test_embedding_backward_is_a_scatter_add() -> None:
    """12 additions; dy and the rows so far (24 each) and indices (24) read; zeros (800) and sums (24) written."""
    layer = Embedding(rows=3, width=4, vocabulary=100, index_dtype=DType.INT64, dtype=DType.BF16)
    assert layer.backward_vector_flops() == 12
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=72, written=824)
    assert layer.backward_activation_bytes() == 24  # the indices


def test_top_k() -> None:
    """6 of 64 for 2 rows in fp32: 128 comparisons; 512 bytes in, 12 values of 4 and 12 indices of 8 out."""
    layer = TopK(rows=2, width=64, k=6, dtype=DType.FP32)
    assert layer.category is Category.ROUTING
    assert layer.vector_flops() == 128
    assert layer.traffic() == Traffic(weights_read=0, activations_read=512, written=144)


def test_top_k_backward_moves_the_values_gradient() -> None:
    """Gradients of 12 values (48) and the kept indices (96) are read, the input's (512) written; no FLOPs."""
    layer = TopK(rows=2, width=64, k=6, dtype=DType.FP32)
    assert layer.backward_vector_flops() == 0
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=144, written=512)
    assert layer.backward_activation_bytes() == 96


def test_sort_of_integers_is_no_flops_and_has_no_gradient() -> None:
    """12 expert ids: 96 bytes in, ids and permutation out."""
    layer = Sort(rows=1, width=12, dtype=DType.INT64)
    assert layer.vector_flops() == 0
    assert layer.traffic() == Traffic(weights_read=0, activations_read=96, written=192)
    assert layer.backward_traffic().bytes == 0
    assert layer.backward_activation_bytes() == 0


def test_sort_of_floats_moves_gradients_back() -> None:
    """12 keys in fp32: 12 comparisons at least; backward reads dy (48) and the permutation (96), writes 48."""
    layer = Sort(rows=1, width=12, dtype=DType.FP32)
    assert layer.vector_flops() == 12
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=144, written=48)
    assert layer.backward_activation_bytes() == 96


def test_search_sorted() -> None:
    """64 queries in 12 sorted ids: (64 + 12) * 8 bytes read, 64 * 4 written; integers cost no FLOPs."""
    layer = SearchSorted(queries=64, width=12, dtype=DType.INT64, out_dtype=DType.INT32)
    assert layer.vector_flops() == 0
    assert layer.traffic() == Traffic(weights_read=0, activations_read=608, written=256)
    assert layer.backward_traffic().bytes == 0
    assert SearchSorted(queries=64, width=12, dtype=DType.FP32, out_dtype=DType.INT32).vector_flops() == 64


@pytest.mark.parametrize("layer", [Gather, Scatter])
def test_moves_by_index(layer: type[Gather | Scatter]) -> None:
    """40 elements and 4 indices: 80 + 32 bytes read, 80 written, and the same way back; no FLOPs."""
    moved = layer(reads=(ROWS, INDEX), writes=(ROWS,))
    assert moved.vector_flops() == moved.backward_vector_flops() == 0
    assert moved.traffic() == Traffic(weights_read=0, activations_read=112, written=80)
    assert moved.backward_traffic() == Traffic(weights_read=0, activations_read=112, written=80)
    assert moved.backward_activation_bytes() == 32  # the indices


def test_a_gathered_parameter_is_weight_traffic() -> None:
    """Rows of a table of positions: what is picked counts as weight bytes."""
    table = Operand(elements=40, dtype=DType.BF16, weight=True)
    layer = Gather(reads=(table, INDEX), writes=(ROWS,))
    assert layer.traffic() == Traffic(weights_read=80, activations_read=32, written=80)
    assert layer.weight_bytes() == 80


def test_sizes_are_checked() -> None:
    """k = -1 is refused."""
    with pytest.raises(DimError):
        TopK(rows=2, width=64, k=-1, dtype=DType.FP32)
