"""FLOPs of layers against torch.utils.flop_counter on meta tensors, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count

from modelmeter.dtypes import DType
from modelmeter.layers import (
    BaseLayer,
    Conv1d,
    Conv2d,
    GroupedLinear,
    Linear,
    Matmul,
    ScaledDotProductAttention,
)


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=True)


def _counted(forward: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """Return the FLOPs of a computation and of its backward pass."""
    with FlopCounterMode(display=False) as counter:
        result = forward()
        ahead = counter.get_total_flops()
        result.sum().backward()
    return ahead, counter.get_total_flops() - ahead


CASES: dict[str, tuple[Callable[[], torch.Tensor], BaseLayer]] = {
    "linear": (
        lambda: F.linear(_meta(3, 5, 16), _meta(24, 16), _meta(24)),
        Linear(rows=15, in_features=16, out_features=24, bias=True, dtype=DType.BF16),
    ),
    "linear without bias": (
        lambda: F.linear(_meta(7, 16), _meta(24, 16)),
        Linear(rows=7, in_features=16, out_features=24, bias=False, dtype=DType.BF16),
    ),
    "mm": (
        lambda: _meta(7, 16) @ _meta(16, 9),
        Matmul(batch=1, m=7, k=16, n=9, dtype=DType.BF16),
    ),
    "bmm": (
        lambda: torch.bmm(_meta(4, 7, 16), _meta(4, 16, 9)),
        Matmul(batch=4, m=7, k=16, n=9, dtype=DType.BF16),
    ),
    "einsum of a broadcast table": (
        lambda: torch.einsum("bhwc,hkc->bhwk", _meta(2, 6, 5, 8), _meta(6, 7, 8)),
        Matmul(batch=6, m=10, k=8, n=7, right_weight=True, dtype=DType.BF16),
    ),
    "conv2d": (
        lambda: F.conv2d(_meta(2, 3, 32, 48), _meta(8, 3, 16, 16), _meta(8), stride=16),
        Conv2d(
            batch=2,
            in_channels=3,
            out_channels=8,
            in_height=32,
            in_width=48,
            out_height=2,
            out_width=3,
            kernel_height=16,
            kernel_width=16,
            bias=True,
            dtype=DType.BF16,
        ),
    ),
    "conv2d with padding and stride": (
        lambda: F.conv2d(_meta(1, 4, 9, 9), _meta(6, 4, 3, 3), stride=2, padding=1),
        Conv2d(
            batch=1,
            in_channels=4,
            out_channels=6,
            in_height=9,
            in_width=9,
            out_height=5,
            out_width=5,
            kernel_height=3,
            kernel_width=3,
            bias=False,
            dtype=DType.BF16,
        ),
    ),
    "conv1d": (
        lambda: F.conv1d(_meta(2, 4, 20), _meta(6, 4, 3), padding=1),
        Conv1d(
            batch=2,
            in_channels=4,
            out_channels=6,
            in_length=20,
            out_length=20,
            kernel_length=3,
            bias=False,
            dtype=DType.BF16,
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_products_count_as_torch_counts_them(name: str) -> None:
    """Forward and backward FLOPs are torch's own, exactly."""
    forward, layer = CASES[name]
    assert _counted(forward) == (layer.matmul_flops(), layer.backward_matmul_flops())


def test_grouped_convolution_forward() -> None:
    """A depthwise convolution has one input channel per filter."""
    with FlopCounterMode(display=False) as counter:
        F.conv2d(_meta(2, 8, 10, 10), _meta(8, 1, 3, 3), groups=8)
    layer = Conv2d(
        batch=2,
        in_channels=8,
        out_channels=8,
        in_height=10,
        in_width=10,
        out_height=8,
        out_width=8,
        kernel_height=3,
        kernel_width=3,
        groups=8,
        bias=False,
        dtype=DType.BF16,
    )
    assert counter.get_total_flops() == layer.matmul_flops()


def test_grouped_products_count_as_the_products_of_each_expert() -> None:
    """32 rows over 4 experts, one without rows, cost what torch counts for three separate products."""
    with FlopCounterMode(display=False) as counter:
        for rows in (5, 20, 7):
            torch.mm(_meta(rows, 16), _meta(16, 24))
    layer = GroupedLinear(rows=32, in_features=16, out_features=24, experts=4, active_experts=3, dtype=DType.BF16)
    assert counter.get_total_flops() == layer.matmul_flops()


def _attention(*, causal: bool) -> ScaledDotProductAttention:
    return ScaledDotProductAttention(
        batch=2,
        heads=4,
        kv_heads=4,
        query_length=48,
        key_length=48,
        head_dim=32,
        value_head_dim=32,
        causal=causal,
        dtype=DType.BF16,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_forward_counts_as_torch_counts_it(causal: bool) -> None:
    """Two full products, causal or not."""
    q, k, v = (_meta(2, 4, 48, 32) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert counter.get_total_flops() == _attention(causal=causal).matmul_flops()


def test_attention_backward_counts_as_torch_counts_flash() -> None:
    """Five products, the scores computed again, as torch counts its flash backward kernel."""
    shape = (2, 4, 48, 32)
    counted = sdpa_backward_flop_count(shape, shape, shape, shape)
    assert counted == _attention(causal=True).backward_matmul_flops()
