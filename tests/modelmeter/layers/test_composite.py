"""Module: sums of children, weights once, peak memory given."""

from __future__ import annotations

import pytest

from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.errors import DimError, UnboundDimError
from modelmeter.layers import Child, DataMovement, LayerNorm, Linear, Module
from modelmeter.layers.base import Operand, Traffic

BF16 = Linear(rows=3, in_features=4, out_features=4, bias=False, dtype=DType.BF16)  # 96 FLOPs
FP32 = Linear(rows=3, in_features=4, out_features=2, bias=False, dtype=DType.FP32)  # 48 FLOPs
NORM = LayerNorm(rows=3, width=4, weight=True, bias=True, dtype=DType.BF16)  # 84 FLOPs
COPY = DataMovement(op="copy", reads=(Operand(elements=6, dtype=DType.BF16),), writes=())


def test_costs_are_children_times_calls() -> None:
    """Twice 96 and once 84 FLOPs; traffic twice (32 + 24 + 24) and once (16 + 24 + 24)."""
    block = Module(children=(Child(layer=BF16, calls=2), Child(layer=NORM)))
    assert block.matmul_flops() == 192
    assert block.vector_flops() == 84
    assert block.traffic() == Traffic(weights_read=80, activations_read=72, written=72)
    assert block.backward_matmul_flops() == 384


def test_children_run_where_their_dtype_runs() -> None:
    """bf16 products go to tensor cores, fp32 products and the norm to CUDA cores, forward and backward."""
    block = Module(children=(Child(layer=BF16), Child(layer=FP32, calls=3), Child(layer=NORM)))
    assert block.tensor_core_flops() == 96
    assert block.cuda_core_flops() == 3 * 48 + 84
    assert block.backward_tensor_core_flops() == 192
    assert block.backward_cuda_core_flops() == 3 * 96 + 12 * 13  # norm: 9 + 3 + 1 per element
    assert block.runs_on_tensor_cores()
    assert not Module(children=(Child(layer=FP32),)).runs_on_tensor_cores()


def test_weights_are_held_once() -> None:
    """Called five times, a child holds its 32 bytes once, and so do their gradients; read they are five times."""
    block = Module(children=(Child(layer=BF16, calls=5),))
    assert block.weight_bytes() == block.backward_weight_bytes() == 32
    assert block.traffic().weights_read == 160


def test_memory_is_the_given_peak_or_the_largest_child() -> None:
    """Given 1000 it is 1000; else 24 bytes, the largest result, not the 48 of both calls."""
    children = (Child(layer=BF16, calls=2), Child(layer=FP32))
    assert Module(children=children, peak_activation_bytes=1000).activation_bytes() == 1000
    assert Module(children=children, peak_activation_bytes=0).activation_bytes() == 0
    assert Module(children=children).activation_bytes() == 24
    assert Module(children=()).activation_bytes() == 0


def test_what_training_keeps_adds_up() -> None:
    """Each of three calls keeps its input of 24 bytes."""
    assert Module(children=(Child(layer=BF16, calls=3),)).backward_activation_bytes() == 72


def test_modules_nest() -> None:
    """A module of modules multiplies its calls: 2 * 3 * 96 FLOPs."""
    inner = Module(children=(Child(layer=BF16, calls=3),))
    outer = Module(children=(Child(layer=inner, calls=2), Child(layer=COPY)))
    assert outer.matmul_flops() == 576
    assert outer.tensor_core_flops() == 576
    assert outer.traffic().activations_read == 6 * 24 + 12
    assert outer.forward_tensor_core_flops() == 576 / 10**12


def test_symbolic_children_and_calls_bind() -> None:
    """2*B*16 FLOPs, S times: at B = 3 and S = 5 that is 480; the largest result is 4*B*2 = 24."""
    layer = Linear(rows=symbol("B"), in_features=4, out_features=4, bias=False, dtype=DType.BF16)
    block = Module(children=(Child(layer=layer, calls=symbol("S")), Child(layer=NORM)))
    assert block.free_dims() == {"B", "S"}
    bound = block.at(B=3, S=5)
    assert bound.matmul_flops() == 480
    assert bound.activation_bytes() == 24
    with pytest.raises(UnboundDimError, match="no size for dim S"):
        block.at(B=3)


def test_calls_are_a_count() -> None:
    """A negative number of calls is refused."""
    with pytest.raises(DimError):
        Child(layer=BF16, calls=-1)
