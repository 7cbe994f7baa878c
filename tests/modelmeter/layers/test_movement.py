"""DataMovement and Unclassified, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.categories import Category
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import DataMovement, Unclassified
from modelmeter.layers.base import Operand, Traffic

BF16 = Operand(elements=10, dtype=DType.BF16)
FP32 = Operand(elements=10, dtype=DType.FP32)


def test_a_cast_moves_both_widths() -> None:
    """10 elements from 2 to 4 bytes, and the reverse backward; nothing is kept and nothing computed."""
    layer = DataMovement(op="cast", reads=(BF16,), writes=(FP32,))
    assert layer.category is Category.DATA_MOVEMENT
    assert layer.cuda_core_flops() == layer.tensor_core_flops() == 0
    assert layer.traffic() == Traffic(weights_read=0, activations_read=20, written=40)
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=40, written=20)
    assert layer.backward_cuda_core_flops() == 0
    assert layer.backward_activation_bytes() == 0


def test_a_fill_only_writes() -> None:
    """Zeros read nothing and have no gradient to hand on."""
    layer = DataMovement(op="fill", reads=(), writes=(FP32,))
    assert layer.traffic() == Traffic(weights_read=0, activations_read=0, written=40)
    assert layer.backward_traffic() == Traffic()


def test_copies_of_integers_have_no_backward_pass() -> None:
    """An index copy hands no gradient on."""
    index = Operand(elements=10, dtype=DType.INT64)
    assert DataMovement(op="copy", reads=(index,), writes=(index,)).backward_traffic() == Traffic()


def test_unclassified_has_bytes_and_no_flops() -> None:
    """What is unknown shows its bytes under its own category."""
    layer = Unclassified(op="aten::grid_sampler_2d", reads=(BF16,), writes=(FP32,))
    assert layer.category is Category.UNCLASSIFIED
    assert layer.vector_flops() == layer.matmul_flops() == 0
    assert layer.traffic().bytes == 60
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=60, written=20)


def test_operands_have_sizes() -> None:
    """A tensor of a negative size is refused where it is made."""
    with pytest.raises(DimError):
        DataMovement(op="copy", reads=(Operand(elements=-1, dtype=DType.BF16),), writes=())
