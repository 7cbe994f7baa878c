"""Combination, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import Combination, Operand


def _distances(pairs: int, width: int) -> Combination:
    x, y = Operand(elements=pairs * width, dtype=DType.BF16), Operand(elements=pairs, dtype=DType.BF16)
    return Combination(
        op="cdist", elements=pairs, taps=width, flops_per_tap=3, reads=(x, x), writes=(y,), dtype=DType.BF16
    )


def test_distances() -> None:
    """6 pairs of rows of 4: 6*4*3 FLOPs; 2*24 elements read, 6 written, 2 bytes each."""
    layer = _distances(6, 4)
    assert (layer.vector_flops(), layer.matmul_flops()) == (72, 0)
    assert (layer.traffic().activations_read, layer.traffic().written) == (96, 12)


def test_backward_reads_the_operands_again() -> None:
    """Twice the FLOPs; 96 bytes of operands and 12 of the gradient read, 96 written."""
    layer = _distances(6, 4)
    assert layer.backward_vector_flops() == 144
    assert (layer.backward_traffic().activations_read, layer.backward_traffic().written) == (108, 96)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_flops_add_up_over_results(one: int, other: int, width: int) -> None:
    """The results of two calls take what those of one take."""
    both = _distances(one + other, width).vector_flops()
    assert both == _distances(one, width).vector_flops() + _distances(other, width).vector_flops()


def test_a_negative_count_is_refused() -> None:
    """FLOPs are at least 0."""
    with pytest.raises(DimError, match="flops_per_tap=-1 is negative"):
        Combination(op="x", elements=1, taps=1, flops_per_tap=-1, reads=(), writes=(), dtype=DType.BF16)
