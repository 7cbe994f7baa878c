"""Layers in blocks of fp8: scales of a weight's blocks and of runs of activations, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import GroupedLinear, Linear
from modelmeter.layers.base import BaseLayer, Traffic
from modelmeter.layers.weight_format import WeightFormat
from modelmeter.serialize import layer_from_json, layer_to_json

BLOCKS = WeightFormat(
    dtype=DType.FP8_E4M3, other_dtype=DType.BF16, group_size=128, scale_dtype=DType.FP32, group_rows=128
)


def linear() -> Linear:
    """Return x[3, 200] @ w[300, 200].T, whose last blocks are not full."""
    return Linear(
        rows=3,
        in_features=200,
        out_features=300,
        bias=False,
        dtype=DType.FP8_E4M3,
        weights=BLOCKS,
        out_dtype=DType.BF16,
        input_group_size=128,
    )


def grouped() -> GroupedLinear:
    """Return 12 rows over 5 of 8 such weights."""
    return GroupedLinear(
        rows=12,
        in_features=200,
        out_features=300,
        experts=8,
        active_experts=5,
        dtype=DType.FP8_E4M3,
        weights=BLOCKS,
        out_dtype=DType.BF16,
        input_group_size=128,
    )


def test_a_linear_layer_in_blocks_of_fp8() -> None:
    """One byte an element, a scale of 4 bytes for each of 3 * 2 blocks of w and for each of 2 runs of a row of x."""
    layer = linear()
    assert layer.matmul_flops() == layer.tensor_core_flops() == 360_000  # 2 * 3 * 200 * 300
    assert layer.weight_bytes() == 60_024  # 300 * 200 + 4 * ceil(300/128) * ceil(200/128)
    # x 3 * 200 and its scales 3 * 2 * 4; y 3 * 300 * 2
    assert layer.traffic() == Traffic(weights_read=60_024, activations_read=624, written=1_800)


def test_experts_in_blocks_of_fp8() -> None:
    """Each of 5 touched experts is read with its scales, all 8 are held with theirs."""
    layer = grouped()
    assert layer.matmul_flops() == 1_440_000  # 2 * 12 * 200 * 300
    assert layer.weight_bytes() == 480_192  # 8 * 60,024
    # x 12 * 200, its scales 12 * 2 * 4, offsets 8 * 4; y 12 * 300 * 2
    assert layer.traffic() == Traffic(weights_read=300_120, activations_read=2_528, written=7_200)


def test_scales_are_read_again_in_the_backward_pass() -> None:
    """dx and dw read dy (1,800) each, dw reads x and its scales (624); dx has their size, dw that of w."""
    assert linear().backward_traffic() == Traffic(
        weights_read=60_024, activations_read=624 + 2 * 1_800, written=624 + 60_024
    )


@pytest.mark.parametrize("layer", [linear(), grouped()], ids=["linear", "grouped"])
def test_what_is_stored_is_read_back(layer: BaseLayer) -> None:
    """Blocks and groups are part of a layer's record."""
    assert layer_from_json(layer_to_json(layer)) == layer


def test_a_layer_without_scales_is_stored_as_before() -> None:
    """Models that were compiled before scales were known stay equal."""
    plain = Linear(rows=3, in_features=4, out_features=2, bias=False, dtype=DType.BF16)
    assert "input_group_size" not in layer_to_json(plain)


def test_symbolic_rows_keep_their_scales() -> None:
    """B rows of 200 elements and 2 scales: 208 bytes each."""
    layer = Linear(
        rows=symbol("B"),
        in_features=200,
        out_features=300,
        bias=False,
        dtype=DType.FP8_E4M3,
        weights=BLOCKS,
        out_dtype=DType.BF16,
        input_group_size=128,
    )
    assert layer.traffic().activations_read == 208 * symbol("B")


@given(rows=st.integers(1, 1000), width=st.integers(1, 1000), height=st.integers(1, 200), size=st.integers(1, 200))
def test_there_is_a_scale_for_each_block(rows: int, width: int, height: int, size: int) -> None:
    """As many as blocks begin in the matrix, however they divide it."""
    stored = WeightFormat(dtype=DType.FP8_E4M3, other_dtype=DType.BF16, group_size=size, group_rows=height)
    assert stored.scales(rows=rows, width=width) == len(range(0, rows, height)) * len(range(0, width, size))


def test_a_block_has_rows() -> None:
    """A number of rows below 0 is no dim."""
    with pytest.raises(DimError, match="-1 is no dim"):
        WeightFormat(dtype=DType.FP8_E4M3, other_dtype=DType.BF16, group_size=128, group_rows=-1)
