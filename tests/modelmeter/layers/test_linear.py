"""Linear and GroupedLinear, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.categories import Category
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.expert_counts import distinct_experts, fewest_routing, most_routing
from modelmeter.layers import GroupedLinear, Linear
from modelmeter.layers.base import Traffic


def test_linear_forward() -> None:
    """x[3, 4] @ w[2, 4].T + b[2] in bf16."""
    layer = Linear(rows=3, in_features=4, out_features=2, bias=True, dtype=DType.BF16)
    assert layer.category is Category.LINEAR
    assert layer.matmul_flops() == 48  # 2 * 3 * 4 * 2
    assert layer.vector_flops() == 6  # 3 * 2 additions of the bias
    assert layer.weight_bytes() == 20  # (4 * 2 + 2) * 2
    assert layer.traffic() == Traffic(weights_read=20, activations_read=24, written=12)
    assert layer.activation_bytes() == 12
    assert layer.kvcache_bytes() == 0


def test_linear_without_bias() -> None:
    """No bias: no additions, no bytes of it."""
    layer = Linear(rows=3, in_features=4, out_features=2, bias=False, dtype=DType.FP32)
    assert layer.vector_flops() == 0
    assert layer.weight_bytes() == 32  # 4 * 2 * 4
    assert layer.tensor_core_flops() == 0
    assert layer.cuda_core_flops() == 48


def test_linear_backward() -> None:
    """dx = dy @ w, dw = dy.T @ x, db = sum(dy): three kernels that read dy[3, 2] (12 bytes) each."""
    layer = Linear(rows=3, in_features=4, out_features=2, bias=True, dtype=DType.BF16)
    assert layer.backward_matmul_flops() == 96
    assert layer.backward_vector_flops() == 6
    # w 16; x 24 + 3 * dy 12; dx 24 + dw 16 + db 4
    assert layer.backward_traffic() == Traffic(weights_read=16, activations_read=60, written=44)
    assert layer.backward_weight_bytes() == 20
    assert layer.backward_activation_bytes() == 24


def test_grouped_linear_reads_active_experts_only() -> None:
    """12 rows over 5 of 8 experts of w[4, 2]: FLOPs of one product, weights of 5 experts, offsets of 8."""
    layer = GroupedLinear(rows=12, in_features=4, out_features=2, experts=8, active_experts=5, dtype=DType.BF16)
    assert layer.matmul_flops() == 192  # 2 * 12 * 4 * 2
    assert layer.vector_flops() == 0
    assert layer.weight_bytes() == 128  # 8 * 4 * 2 * 2
    # weights 5 * 4 * 2 * 2; x 12 * 4 * 2 + offsets 8 * 4; y 12 * 2 * 2
    assert layer.traffic() == Traffic(weights_read=80, activations_read=128, written=48)


def test_grouped_linear_backward() -> None:
    """Two grouped products, which read dy (48) and the offsets (32) each; every expert's gradient is written."""
    layer = GroupedLinear(rows=12, in_features=4, out_features=2, experts=8, active_experts=5, dtype=DType.BF16)
    assert layer.backward_matmul_flops() == 384
    assert layer.backward_traffic() == Traffic(weights_read=80, activations_read=2 * 48 + 96 + 2 * 32, written=96 + 128)


def test_grouped_linear_under_a_routing() -> None:
    """8 tokens of 6 from 64: 6 experts at least, 48 at most, 34.9 expected; each is 2 * 3 * 2 = 12 bytes."""
    layer = GroupedLinear(
        rows=6 * symbol("B"),
        in_features=2,
        out_features=3,
        experts=64,
        active_experts=distinct_experts(64, 6, symbol("B")),
        dtype=DType.BF16,
    )
    assert layer.at(B=8, routing=fewest_routing).traffic().weights_read == 72
    assert layer.at(B=8, routing=most_routing).traffic().weights_read == 576
    assert layer.at(B=8).traffic().weights_read / 12 == pytest.approx(34.9, abs=0.05)


def test_grouped_linear_of_known_sizes_is_a_number() -> None:
    """Routing without dims counts as uniform: 64 * (1 - 58/64) = 6 experts for one token."""
    layer = GroupedLinear(
        rows=6,
        in_features=2,
        out_features=3,
        experts=64,
        active_experts=distinct_experts(64, 6, 1),
        dtype=DType.BF16,
    )
    assert layer.traffic().weights_read == 72


def test_negative_sizes_are_refused() -> None:
    """A negative size is a mistake, never a negative cost."""
    with pytest.raises(DimError, match="-4 is no dim"):
        Linear(rows=3, in_features=-4, out_features=2, bias=True, dtype=DType.BF16)
