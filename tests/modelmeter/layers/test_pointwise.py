"""Elementwise, Activation, Reduction, Scan and the table of FLOPs per element."""

from __future__ import annotations

import pytest

from modelmeter.categories import Category
from modelmeter.dtypes import DType
from modelmeter.errors import DimError, ModelMeterError
from modelmeter.layers import POINTWISE_FLOPS, Activation, Elementwise, Reduction, Scan, flops_per_element
from modelmeter.layers.base import Operand, Traffic

X = Operand(elements=10, dtype=DType.BF16)
WEIGHT = Operand(elements=5, dtype=DType.BF16, weight=True)
MASK = Operand(elements=10, dtype=DType.BOOL)
INDEX = Operand(elements=10, dtype=DType.INT64)


def test_elementwise_forward() -> None:
    """x * w over 10 elements with w of 5 stored: 10 FLOPs; 20 + 10 bytes read, 20 written."""
    layer = Elementwise(op="mul", elements=10, flops_per_element=1, reads=(X, WEIGHT), writes=(X,), dtype=DType.BF16)
    assert layer.category is Category.ELEMENTWISE
    assert layer.vector_flops() == layer.cuda_core_flops() == 10
    assert layer.matmul_flops() == 0
    assert layer.traffic() == Traffic(weights_read=10, activations_read=20, written=20)
    assert layer.weight_bytes() == 10


def test_elementwise_backward_gives_no_gradient_to_masks() -> None:
    """where(mask, x, .): x (20), mask (10) and dy (20) are read; only x has a gradient (20)."""
    layer = Elementwise(op="where", elements=10, flops_per_element=1, reads=(X, MASK), writes=(X,), dtype=DType.BF16)
    assert layer.backward_vector_flops() == 20
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=50, written=20)


def test_integer_arithmetic_has_no_backward_pass() -> None:
    """No gradient flows into or out of integers."""
    layer = Elementwise(op="add", elements=10, flops_per_element=0, reads=(INDEX,), writes=(INDEX,), dtype=DType.INT64)
    assert layer.backward_vector_flops() == 0
    assert layer.backward_traffic().bytes == 0
    assert layer.backward_activation_bytes() == 0


def test_activation_is_elementwise_of_its_own_category() -> None:
    """SiLU costs 5 per element."""
    layer = Activation(
        op="silu",
        elements=10,
        flops_per_element=flops_per_element("silu"),
        reads=(X,),
        writes=(X,),
        dtype=DType.BF16,
    )
    assert layer.category is Category.ACTIVATION
    assert layer.vector_flops() == 50


def test_negative_flops_per_element_are_refused() -> None:
    """A negative count would hide other work."""
    with pytest.raises(DimError, match="flops_per_element=-1 is negative"):
        Elementwise(op="x", elements=1, flops_per_element=-1, reads=(), writes=(), dtype=DType.BF16)


def test_reduction_counts_input_elements() -> None:
    """10 elements to 2: 10 additions, and backward 10 scalings from dy (4 bytes) to dx (20)."""
    y = Operand(elements=2, dtype=DType.BF16)
    layer = Reduction(op="mean", elements=10, reads=(X,), writes=(y,), dtype=DType.BF16)
    assert layer.category is Category.REDUCTION
    assert layer.vector_flops() == 10
    assert layer.backward_vector_flops() == 10
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=4, written=20)
    assert layer.backward_activation_bytes() == 0


def test_scan_runs_back_the_same_way() -> None:
    """A running sum of 10: 10 additions, 10 more backward."""
    layer = Scan(op="cumsum", elements=10, reads=(X,), writes=(X,), dtype=DType.BF16)
    assert layer.vector_flops() == 10
    assert layer.backward_vector_flops() == 10
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=20, written=20)


@pytest.mark.parametrize("layer", [Reduction, Scan])
def test_integer_sums_are_no_flops(layer: type[Reduction | Scan]) -> None:
    """FLOPs are floating-point: sums of counts move bytes only."""
    counted = layer(op="sum", elements=10, reads=(INDEX,), writes=(INDEX,), dtype=DType.INT64)
    assert counted.vector_flops() == 0
    assert counted.traffic().bytes == 160
    assert counted.backward_traffic().bytes == 0


def test_every_figure_has_its_reason() -> None:
    """The one table: whole FLOPs of at least 0, and a reason for each."""
    assert POINTWISE_FLOPS
    for name, row in POINTWISE_FLOPS.items():
        assert row.flops >= 0, name
        assert len(row.reason) > 8, name


def test_figures_build_on_each_other() -> None:
    """SiLU is a sigmoid and a product, QuickGELU also scales, a score is scaled and goes through a softmax."""
    assert flops_per_element("silu") == flops_per_element("sigmoid") + 1
    assert flops_per_element("quick_gelu") == flops_per_element("sigmoid") + 2
    assert flops_per_element("attention_score") == flops_per_element("softmax") + 1


def test_unknown_figure_lists_the_known_ones() -> None:
    """One message: what, the alternatives, what to do."""
    with pytest.raises(KeyError, match=r"no FLOPs per element for 'swish'; known are .*silu.*add a row") as caught:
        flops_per_element("swish")
    assert isinstance(caught.value, ModelMeterError)
    assert not str(caught.value).startswith('"')
