"""Matmul, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import Matmul
from modelmeter.layers.base import Traffic


def test_batched_product() -> None:
    """[2, 3, 4] @ [2, 4, 5] in bf16."""
    layer = Matmul(batch=2, m=3, k=4, n=5, dtype=DType.BF16)
    assert layer.matmul_flops() == 240  # 2 * 2 * 3 * 4 * 5
    # left 2*3*4*2 = 48, right 2*4*5*2 = 80, out 2*3*5*2 = 60
    assert layer.traffic() == Traffic(weights_read=0, activations_read=128, written=60)
    assert layer.weight_bytes() == 0


def test_a_broadcast_operand_counts_as_stored() -> None:
    """One right operand [4, 5] for both products: 40 bytes, not 80; FLOPs stay."""
    layer = Matmul(batch=2, m=3, k=4, n=5, right_elements=20, dtype=DType.BF16)
    assert layer.matmul_flops() == 240
    assert layer.traffic().activations_read == 48 + 40


def test_a_weight_operand_is_weight_traffic() -> None:
    """A parameter on the right is read as weights and held by the layer."""
    layer = Matmul(batch=1, m=3, k=4, n=5, right_weight=True, dtype=DType.BF16)
    assert layer.traffic() == Traffic(weights_read=40, activations_read=24, written=30)
    assert layer.weight_bytes() == 40


def test_wider_result() -> None:
    """bf16 operands with an fp32 result: 3*5 elements of 4 bytes, still on tensor cores."""
    layer = Matmul(batch=1, m=3, k=4, n=5, dtype=DType.BF16, out_dtype=DType.FP32)
    assert layer.traffic().written == 60
    assert layer.tensor_core_flops() == 120


def test_backward_reads_the_gradient_per_operand() -> None:
    """Two products: left and right are read again (48 + 80), dy twice (2 * 60), both gradients written."""
    layer = Matmul(batch=2, m=3, k=4, n=5, dtype=DType.BF16)
    assert layer.backward_matmul_flops() == 480
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=248, written=128)


def test_stored_elements_must_be_a_size() -> None:
    """Minus twenty stored elements are refused."""
    with pytest.raises(DimError):
        Matmul(batch=2, m=3, k=4, n=5, right_elements=-20, dtype=DType.BF16)
