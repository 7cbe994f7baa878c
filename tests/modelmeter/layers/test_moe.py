"""MoEExperts, by hand and against its parts."""

from __future__ import annotations

import pytest

from modelmeter.dim_binding import bind
from modelmeter.dims import Dim, symbol, total
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.expert_counts import fewest_routing, most_routing
from modelmeter.layers import Activation, BaseLayer, Elementwise, GroupedLinear, MoEExperts, flops_per_element
from modelmeter.layers.base import Operand, Traffic


def _experts(tokens: Dim, *, gated: bool = True) -> MoEExperts:
    return MoEExperts(
        tokens=tokens,
        experts=64,
        experts_per_token=6,
        hidden_size=10,
        intermediate_size=7,
        gated=gated,
        dtype=DType.BF16,
    )


def _parts(block: MoEExperts) -> tuple[BaseLayer, ...]:
    """Gate, up, SiLU, product and down as separate kernels."""
    rows = block.tokens * block.experts_per_token
    inner = Operand(elements=rows * block.intermediate_size, dtype=block.dtype)

    def grouped(wide: Dim, narrow: Dim) -> GroupedLinear:
        return GroupedLinear(
            rows=rows,
            in_features=wide,
            out_features=narrow,
            experts=block.experts,
            active_experts=block.active_experts,
            dtype=block.dtype,
        )

    return (
        grouped(block.hidden_size, block.intermediate_size),
        grouped(block.hidden_size, block.intermediate_size),
        Activation(
            op="silu",
            elements=inner.elements,
            flops_per_element=flops_per_element("silu"),
            reads=(inner,),
            writes=(inner,),
            dtype=block.dtype,
        ),
        Elementwise(
            op="mul",
            elements=inner.elements,
            flops_per_element=flops_per_element("mul"),
            reads=(inner, inner),
            writes=(inner,),
            dtype=block.dtype,
        ),
        grouped(block.intermediate_size, block.hidden_size),
    )


def test_one_token() -> None:
    """6 rows of 10 through 3 products of 10*7; 6 of 64 experts of 3*10*7*2 = 420 bytes."""
    layer = _experts(1)
    assert layer.matmul_flops() == 2520  # 2 * 6 * 3 * 70
    assert layer.vector_flops() == 252  # 6 * 7 * (5 + 1)
    assert layer.weight_bytes() == 26_880  # 64 * 420
    assert layer.traffic() == Traffic(weights_read=2520, activations_read=120, written=120)


def test_without_a_gate() -> None:
    """Two products and an activation."""
    layer = _experts(1, gated=False)
    assert layer.matmul_flops() == 1680  # 2 * 6 * 2 * 70
    assert layer.vector_flops() == 210  # 6 * 7 * 5
    assert layer.weight_bytes() == 17_920  # 64 * 280


@pytest.mark.parametrize("tokens", [1, 8, 500])
def test_sums_agree_with_the_parts(tokens: int) -> None:
    """FLOPs and weights are those of three grouped products, an activation and a product."""
    block = _experts(tokens)
    parts = _parts(block)
    assert block.matmul_flops() == total(part.matmul_flops() for part in parts)
    assert block.vector_flops() == total(part.vector_flops() for part in parts)
    assert block.weight_bytes() == total(part.weight_bytes() for part in parts)
    weights_read = total(part.traffic().weights_read for part in parts)
    assert block.traffic().weights_read == pytest.approx(weights_read)
    assert block.backward_matmul_flops() == total(part.backward_matmul_flops() for part in parts)


def test_fusion_saves_the_inner_rows_and_the_second_read() -> None:
    """Apart, 8 tokens also move: x once more (6*8*10*2), 7 times the inner rows (6*8*7*2), offsets thrice (64*4)."""
    block = _experts(8)
    apart = total(part.traffic().bytes for part in _parts(block))
    inner = 6 * 8 * 7 * 2
    # written by gate, up, SiLU and product; read by SiLU, product twice and down
    assert apart - block.traffic().bytes == pytest.approx(6 * 8 * 10 * 2 + 8 * inner + 3 * 64 * 4)


def test_bounds_of_the_weights_read() -> None:
    """8 tokens touch 6 to 48 experts, 34.9 under uniform routing; 100 tokens at most all 64."""
    fewest, most = _experts(8).weight_read_bounds()
    assert (fewest, most) == (6 * 420, 48 * 420)
    assert _experts(8).traffic().weights_read / 420 == pytest.approx(34.9, abs=0.05)
    assert _experts(100).weight_read_bounds()[1] == 64 * 420


def test_the_bounds_are_the_extreme_routings() -> None:
    """Binding under the fewest and the most routing meets the bounds."""
    layer = _experts(symbol("B"))
    fewest, most = layer.weight_read_bounds()
    assert layer.at(B=8, routing=fewest_routing).traffic().weights_read == bind(fewest, {"B": 8})
    assert layer.at(B=8, routing=most_routing).traffic().weights_read == bind(most, {"B": 8})


def test_a_routing_reaches_known_sizes_too() -> None:
    """`at` without dims still binds the routing of a layer of numbers."""
    assert _experts(8).at(routing=fewest_routing).traffic().weights_read == 6 * 420


def test_backward_writes_every_experts_gradient() -> None:
    """One token: rows and their gradients (120 each) and 6 experts read, dx (120) and 64 experts written."""
    layer = _experts(1)
    assert layer.backward_matmul_flops() == 5040
    assert layer.backward_traffic() == Traffic(weights_read=2520, activations_read=240, written=27_000)


def test_measured_experts_can_be_given() -> None:
    """A histogram's mean of 10.5 active experts reads 10.5 * 420 bytes."""
    layer = MoEExperts(
        tokens=8,
        experts=64,
        experts_per_token=6,
        hidden_size=10,
        intermediate_size=7,
        gated=True,
        dtype=DType.BF16,
        active_experts=10.5,
    )
    assert layer.traffic().weights_read == 4410


def test_sizes_are_checked() -> None:
    """A negative number of tokens is refused."""
    with pytest.raises(DimError):
        _experts(-1)
