"""Norms and softmax, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.categories import Category
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import BatchNorm, GroupNorm, LayerNorm, RMSNorm, Softmax
from modelmeter.layers.base import Traffic


def test_layer_norm() -> None:
    """[2, 10] with weight and bias: 5 + 1 + 1 FLOPs on each of 20 elements."""
    layer = LayerNorm(rows=2, width=10, weight=True, bias=True, dtype=DType.BF16)
    assert layer.category is Category.NORMALIZATION
    assert layer.matmul_flops() == 0
    assert layer.vector_flops() == 140
    assert layer.weight_bytes() == 40  # 2 * 10 * 2
    assert layer.traffic() == Traffic(weights_read=40, activations_read=40, written=40)


def test_layer_norm_without_parameters() -> None:
    """The statistic alone: 5 per element and nothing held."""
    layer = LayerNorm(rows=2, width=10, weight=False, bias=False, dtype=DType.FP32)
    assert layer.vector_flops() == 100
    assert layer.weight_bytes() == 0


def test_layer_norm_backward() -> None:
    """9 + 3 + 1 FLOPs on each of 20 elements; dy and x read, dx and two parameter gradients written."""
    layer = LayerNorm(rows=2, width=10, weight=True, bias=True, dtype=DType.BF16)
    assert layer.backward_vector_flops() == 260
    assert layer.backward_traffic() == Traffic(weights_read=40, activations_read=80, written=80)
    assert layer.backward_activation_bytes() == 40


def test_rms_norm() -> None:
    """3 + 1 FLOPs per element forward, 6 + 3 backward, one parameter."""
    layer = RMSNorm(rows=2, width=10, weight=True, dtype=DType.BF16)
    assert layer.vector_flops() == 80
    assert layer.backward_vector_flops() == 180
    assert layer.weight_bytes() == 20
    assert RMSNorm(rows=2, width=10, weight=False, dtype=DType.BF16).vector_flops() == 60


def test_group_norm_parameters_are_per_channel() -> None:
    """[1, 4, 9]: 36 elements of 7 FLOPs, parameters of 4 channels, whatever the groups."""
    one, two = (
        GroupNorm(batch=1, channels=4, groups=groups, spatial=9, weight=True, bias=True, dtype=DType.FP32)
        for groups in (1, 2)
    )
    assert one.vector_flops() == two.vector_flops() == 252
    assert two.weight_bytes() == 32  # 2 * 4 * 4
    assert two.traffic() == Traffic(weights_read=32, activations_read=144, written=144)


def test_softmax() -> None:
    """5 FLOPs on each of 20 elements; bf16 in, fp32 out."""
    layer = Softmax(rows=2, width=10, dtype=DType.BF16, out_dtype=DType.FP32)
    assert layer.vector_flops() == 100
    assert layer.traffic() == Traffic(weights_read=0, activations_read=40, written=80)


def test_softmax_backward_reads_its_result() -> None:
    """4 FLOPs per element; y and dy in fp32 (80 each) read, dx in bf16 written; y is what is kept."""
    layer = Softmax(rows=2, width=10, dtype=DType.BF16, out_dtype=DType.FP32)
    assert layer.backward_vector_flops() == 80
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=160, written=40)
    assert layer.backward_activation_bytes() == 80


@pytest.mark.parametrize("layer", [LayerNorm, RMSNorm])
def test_rows_must_be_a_size(layer: type) -> None:
    """Text is no size."""
    parameters = {"weight": True} | ({"bias": True} if layer is LayerNorm else {})
    with pytest.raises(DimError, match="'2' is no dim"):
        layer(rows="2", width=10, dtype=DType.BF16, **parameters)


@pytest.mark.parametrize(
    ("training", "running", "flops", "parameters", "written"),
    [
        (False, True, 4 * 72, 4 * 4 * 4, 288),  # given statistics 2, weight 1, bias 1; both parameters, both statistics
        (True, True, 7 * 72, 4 * 4 * 4, 288 + 32),  # computed statistics 5; the running ones are written back
        (True, False, 7 * 72, 2 * 4 * 4, 288),
    ],
)
def test_batch_norm(*, training: bool, running: bool, flops: int, parameters: int, written: int) -> None:
    """[2, 4, 9] in fp32: 72 elements, 4 channels."""
    layer = BatchNorm(
        batch=2, channels=4, spatial=9, weight=True, bias=True, running=running, training=training, dtype=DType.FP32
    )
    assert layer.vector_flops() == flops
    assert layer.weight_bytes() == parameters
    assert layer.traffic() == Traffic(weights_read=parameters, activations_read=288, written=written)
    assert layer.activation_bytes() == 288
