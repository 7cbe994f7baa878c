"""EmbeddingBag, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.dtypes import DType
from modelmeter.layers import EmbeddingBag
from modelmeter.layers.base import Traffic


def _bag(*, weighted: bool = False) -> EmbeddingBag:
    return EmbeddingBag(
        rows=6, bags=2, width=4, vocabulary=10, weighted=weighted, index_dtype=DType.INT64, dtype=DType.FP32
    )


def test_rows_are_read_and_bags_written() -> None:
    """6 rows of 16 bytes read, 6 indices and 2 offsets of 8, 2 rows written; one addition an element."""
    layer = _bag()
    assert layer.vector_flops() == 24
    assert layer.weight_bytes() == 160
    assert layer.traffic() == Traffic(weights_read=96, activations_read=64, written=32)


def test_weights_of_rows_are_multiplied() -> None:
    """One multiplication an element more, and 6 weights of 4 bytes read."""
    layer = _bag(weighted=True)
    assert layer.vector_flops() == 48
    assert layer.traffic().activations_read == 64 + 24


@pytest.mark.parametrize("weighted", [True, False])
def test_backward_fills_the_table(weighted: bool) -> None:
    """160 bytes of zeros and 96 of summed rows written."""
    layer = _bag(weighted=weighted)
    assert layer.backward_traffic().written == 256
    assert layer.backward_vector_flops() == layer.vector_flops()
