"""Conv2d and Conv1d, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import Conv1d, Conv2d, ConvTranspose
from modelmeter.layers.base import Traffic


def _conv2d(**changes: object) -> Conv2d:
    fields = {
        "batch": 2,
        "in_channels": 4,
        "out_channels": 6,
        "in_height": 8,
        "in_width": 10,
        "out_height": 4,
        "out_width": 5,
        "kernel_height": 2,
        "kernel_width": 3,
        "bias": True,
        "dtype": DType.BF16,
    }
    return Conv2d(**(fields | changes))


def test_conv2d_forward() -> None:
    """[2, 4, 8, 10] to [2, 6, 4, 5] with 2x3 taps and a bias."""
    layer = _conv2d()
    assert layer.matmul_flops() == 11_520  # 2 * 2 * (4*5) * 6 * 4 * (2*3)
    assert layer.vector_flops() == 240  # 2 * 6 * 4 * 5
    assert layer.weight_bytes() == 300  # (6*4*2*3 + 6) * 2
    # x 2*4*8*10*2, y 2*6*4*5*2
    assert layer.traffic() == Traffic(weights_read=300, activations_read=1280, written=480)


def test_conv2d_backward() -> None:
    """Two convolutions of the size of the forward one and a sum; each of the three kernels reads dy (480)."""
    layer = _conv2d()
    assert layer.backward_matmul_flops() == 23_040
    assert layer.backward_vector_flops() == 240
    assert layer.backward_traffic() == Traffic(weights_read=288, activations_read=1280 + 3 * 480, written=1280 + 300)


def test_groups_divide_the_filters() -> None:
    """Two groups: half the taps per output, half the weights."""
    layer = _conv2d(groups=2, bias=False)
    assert layer.matmul_flops() == 5_760
    assert layer.weight_bytes() == 144  # 6 * (4/2) * 2*3 * 2
    assert layer.vector_flops() == 0


def test_groups_that_divide_no_channels_are_refused() -> None:
    """4 and 6 channels have no third of their groups in common."""
    with pytest.raises(DimError, match="groups=3 does not divide its 4 input and 6 output channels"):
        _conv2d(groups=3)
    with pytest.raises(DimError, match="groups=0"):
        _conv2d(groups=0)


def test_symbolic_channels_are_divided_exactly() -> None:
    """B channels in 2 groups: 2*2*20*6*(B/2)*6 = 1440*B, at B = 4 the 5,760 of the case above."""
    layer = _conv2d(in_channels=symbol("B"), groups=2, bias=False)
    assert layer.at(B=4).matmul_flops() == 5_760


def test_conv1d_forward() -> None:
    """Depthwise: [2, 8, 10] with 8 groups and 3 taps in fp32."""
    layer = Conv1d(
        batch=2,
        in_channels=8,
        out_channels=8,
        in_length=10,
        out_length=9,
        kernel_length=3,
        groups=8,
        bias=True,
        dtype=DType.FP32,
    )
    assert layer.matmul_flops() == 864  # 2 * 2 * 9 * 8 * 1 * 3
    assert layer.vector_flops() == 144  # 2 * 8 * 9
    assert layer.weight_bytes() == 128  # (8*3 + 8) * 4
    assert layer.traffic() == Traffic(weights_read=128, activations_read=640, written=576)
    assert layer.tensor_core_flops() == 0


def test_a_transposed_convolution_spreads_each_input_position() -> None:
    """[2, 4, 20] to [2, 6, 80] with 4 taps in 2 groups: 20 positions of 4 channels meet 3 outputs and 4 taps each."""
    layer = ConvTranspose(
        batch=2,
        in_channels=4,
        out_channels=6,
        in_positions=20,
        out_positions=80,
        taps=4,
        groups=2,
        bias=True,
        dtype=DType.BF16,
    )
    assert layer.matmul_flops() == 1_920 * 2  # 2 * 2 * 20 * 4 * 3 * 4
    assert layer.vector_flops() == 960  # 2 * 6 * 80
    assert layer.weight_bytes() == 108  # (4*3*4 + 6) * 2
    assert layer.traffic() == Traffic(weights_read=108, activations_read=320, written=1_920)
