"""BaseLayer: units, defaults of the backward pass, binding; operands and traffic."""

from __future__ import annotations

from typing import ClassVar

import pytest
from attrs import field, frozen

from modelmeter.categories import Category
from modelmeter.dim_text import parse, to_text
from modelmeter.dims import Dim, product, symbol
from modelmeter.dtypes import DType
from modelmeter.errors import DimError, UnboundDimError
from modelmeter.expert_counts import fewest_routing
from modelmeter.layers import GroupedLinear, Linear
from modelmeter.layers.base import BaseLayer, Operand, Traffic, as_dim


@frozen(kw_only=True)
class Block(BaseLayer):
    """A layer of given FLOPs and 8 bytes of traffic, for the contract alone."""

    category: ClassVar[Category] = Category.LINEAR
    matmul: Dim = field(converter=as_dim)
    vector: Dim = field(converter=as_dim)
    dtype: DType = DType.BF16

    def matmul_flops(self) -> Dim:
        """Given FLOPs."""
        return self.matmul

    def vector_flops(self) -> Dim:
        """Given FLOPs."""
        return self.vector

    def traffic(self) -> Traffic:
        """8 bytes."""
        return Traffic(weights_read=2, activations_read=5, written=1)

    def weight_bytes(self) -> Dim:
        """1 GB."""
        return 2**30

    def kvcache_bytes(self) -> Dim:
        """Half a GB."""
        return 2**29


def test_units_of_the_contract() -> None:
    """TFLOPs are 1e12 FLOPs, Tb 1e12 bits, GB 2**30 bytes, intensity FLOPs per bit."""
    layer = Block(matmul=3 * 10**12, vector=10**12)
    assert layer.forward_tensor_core_flops() == 3
    assert layer.forward_cuda_core_flops() == 1
    assert layer.forward_cal_io() == 64 / 10**12  # 8 bytes are 64 bits
    assert layer.forward_arithmetic_intensity() == 4 * 10**12 / 64
    assert layer.forward_memory_weight() == 1
    assert layer.forward_memory_kvcache() == 0.5
    assert layer.forward_memory_activation() == 1 / 2**30


def test_default_backward_pass() -> None:
    """Twice the FLOPs; dy (1) is read beside every operand (2 + 5), whose gradients (2 + 5) are written."""
    layer = Block(matmul=3 * 10**12, vector=10**12)
    assert layer.backward_tensor_core_flops() / 10**12 == 6
    assert layer.backward_cuda_core_flops() / 10**12 == 2
    assert layer.backward_traffic() == Traffic(weights_read=2, activations_read=6, written=7)
    assert layer.backward_cal_io() == 120 / 10**12  # 15 bytes
    assert layer.backward_arithmetic_intensity() == 8 * 10**12 / 120
    assert layer.backward_memory_weight() == 1
    assert layer.backward_memory_activation() == 5 / 2**30
    assert layer.backward_memory_kvcache() == 0


def test_fp32_products_are_cuda_core_work() -> None:
    """Without TF32 no tensor core takes fp32, so its products join the vector work."""
    layer = Block(matmul=3, vector=1, dtype=DType.FP32)
    assert not layer.runs_on_tensor_cores()
    assert layer.tensor_core_flops() == 0
    assert layer.cuda_core_flops() == 4
    assert layer.backward_tensor_core_flops() == 0
    assert layer.backward_cuda_core_flops() == 8


def test_intensity_without_traffic_is_zero() -> None:
    """A layer that moves nothing has no bits to divide by."""
    assert BaseLayer().forward_arithmetic_intensity() == 0
    assert BaseLayer().backward_arithmetic_intensity() == 0


def test_at_binds_nested_expressions() -> None:
    """Dims of a layer, however built, become numbers: rows 2*3*4 = 24, FLOPs 2*24*5*6 = 1440."""
    B, S = symbol("B"), symbol("S")
    layer = Linear(rows=2 * B * S, in_features=5, out_features=6, bias=False, dtype=DType.BF16)
    assert layer.free_dims() == {"B", "S"}
    bound = layer.at(B=3, S=4)
    assert bound.rows == 24
    assert bound.matmul_flops() == 1440
    assert bound.free_dims() == frozenset()
    assert to_text(layer.matmul_flops()) == "120*B*S"


def test_at_names_every_unbound_dim() -> None:
    """One error for the whole layer, not one per field."""
    layer = Linear(rows=symbol("B"), in_features=symbol("S"), out_features=symbol("T"), bias=False, dtype=DType.BF16)
    with pytest.raises(UnboundDimError, match=r"no size for dim B, T: the expression is in B, S, T"):
        layer.at(S=4)


def test_at_takes_a_routing() -> None:
    """Fewest experts: 6 of 64 whatever the tokens; weights read 6*2*3 elements of 2 bytes = 72."""
    layer = GroupedLinear(
        rows=6 * symbol("B"),
        in_features=2,
        out_features=3,
        experts=64,
        active_experts=parse("distinct_experts(64, 6, B)"),
        dtype=DType.BF16,
    )
    assert layer.at(B=9, routing=fewest_routing).traffic().weights_read == 72


@pytest.mark.parametrize("value", [-1, True, "4", None, float("nan"), float("inf"), [1]])
def test_a_field_that_is_no_dim_is_refused(value: object) -> None:
    """Text, booleans, negative and endless numbers never become a size."""
    with pytest.raises(DimError, match="is no dim"):
        Linear(rows=value, in_features=1, out_features=1, bias=False, dtype=DType.BF16)
    with pytest.raises(DimError, match="is no dim"):
        Operand(elements=value, dtype=DType.BF16)


def test_records_are_frozen_and_keyword_only() -> None:
    """A layer is a value: equal fields, equal layers, and no field changes."""
    one = Linear(rows=1, in_features=2, out_features=3, bias=True, dtype=DType.BF16)
    assert one == Linear(rows=1, in_features=2, out_features=3, bias=True, dtype=DType.BF16)
    with pytest.raises(AttributeError):
        one.rows = 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        Linear(1, 2, 3, True, DType.BF16)  # type: ignore[misc]


def test_traffic_of_operands() -> None:
    """Weights and activations are told apart: 4*2 bytes of weight, 3*8 of index, 5*4 written."""
    reads = (
        Operand(elements=4, dtype=DType.BF16, weight=True),
        Operand(elements=3, dtype=DType.INT64),
    )
    moved = Traffic.from_operands(reads, (Operand(elements=5, dtype=DType.FP32),))
    assert moved == Traffic(weights_read=8, activations_read=24, written=20)
    assert moved.bytes == 52


def test_operand_bytes_are_symbolic_too() -> None:
    """B elements of fp32 are 4*B bytes."""
    assert Operand(elements=symbol("B"), dtype=DType.FP32).bytes == product((4, symbol("B")))
