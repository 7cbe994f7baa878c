"""Element types: sizes, and what the arithmetic of complex numbers counts."""

from __future__ import annotations

import pytest

from modelmeter.dtypes import DType
from modelmeter.json_text import read_schema
from modelmeter.layers import Linear, Matmul, Operand, Reduction


@pytest.mark.parametrize(("dtype", "size"), [(DType.COMPLEX64, 8), (DType.COMPLEX128, 16)])
def test_a_complex_number_is_two_real_ones(dtype: DType, size: int) -> None:
    """Its size is theirs, and no tensor core takes it."""
    assert dtype.itemsize == size
    assert dtype.is_complex
    assert dtype.is_floating
    assert not dtype.on_tensor_cores


def test_a_complex_product_is_four_real_ones() -> None:
    """3 x 4 times 4 x 5: 8 FLOPs for each of 60 multiply-adds; 2 for each of 15 additions of a bias."""
    assert Matmul(batch=1, m=3, k=4, n=5, dtype=DType.COMPLEX64).matmul_flops() == 480
    linear = Linear(rows=3, in_features=4, out_features=5, bias=True, dtype=DType.COMPLEX64)
    assert (linear.matmul_flops(), linear.vector_flops()) == (480, 30)


def test_a_complex_sum_adds_both_parts() -> None:
    """10 elements are 20 additions."""
    x = Operand(elements=10, dtype=DType.COMPLEX64)
    assert Reduction(op="sum", elements=10, reads=(x,), writes=(), dtype=DType.COMPLEX64).vector_flops() == 20


def test_the_schema_of_models_knows_every_type() -> None:
    """What a model may be written with is what it may be read with."""
    assert read_schema("model")["$defs"]["dtype"]["enum"] == [dtype.value for dtype in DType]
