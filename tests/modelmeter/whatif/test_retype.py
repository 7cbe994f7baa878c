"""Layers in other types: every class has a rule, and a law holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import modelmeter
from modelmeter.dtypes import DType
from modelmeter.layers import (
    LAYERS,
    BaseLayer,
    Conv1d,
    DataMovement,
    Embedding,
    Linear,
    Matmul,
    Module,
    MoEExperts,
    Operand,
    RMSNorm,
)
from modelmeter.layers.weight_format import WeightFormat
from modelmeter.whatif import UnsupportedWhatIfError
from modelmeter.whatif.retype import with_activations, with_matrices, with_narrow_inputs, with_parameters

BF16, FP32, FP8, INT4 = DType.BF16, DType.FP32, DType.FP8_E4M3, DType.INT4


def samples() -> Mapping[str, BaseLayer]:
    """Return one layer of each class that the shipped models have, and of some that they do not."""
    found = {
        type(leaf.layer).__name__: leaf.layer
        for variant in ("gundam", "gundam-eager")
        for leaf in modelmeter.load("deepseek-ocr", variant).leaves
    }
    norm = RMSNorm(rows=3, width=8, weight=True, dtype=BF16)
    experts = MoEExperts(
        tokens=2, experts=8, experts_per_token=2, hidden_size=16, intermediate_size=4, gated=True, dtype=BF16
    )
    conv = Conv1d(
        batch=1, in_channels=2, out_channels=2, in_length=4, out_length=4, kernel_length=1, bias=True, dtype=BF16
    )
    return found | {type(layer).__name__: layer for layer in (norm, experts, conv)}


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"Module"}))
def test_every_class_of_layer_has_a_rule(name: str) -> None:
    """No layer passes through a what-if unseen: a new class without a rule fails here."""
    from modelmeter.whatif.retype import _RULES  # pyright: ignore[reportPrivateUsage]

    assert LAYERS[name] in _RULES


@pytest.mark.parametrize("change", [with_activations, with_parameters, with_narrow_inputs])
def test_a_class_without_a_rule_is_refused(change: object) -> None:
    """A composite is no leaf: the message names its class and those that are known."""
    assert callable(change)
    with pytest.raises(UnsupportedWhatIfError, match=r"no rule gives a Module .* known are Activation"):
        change(Module(children=()), BF16, FP32)


@pytest.mark.parametrize("name", sorted(samples()))
def test_there_and_back_is_the_same_cost(name: str) -> None:
    """bf16 to fp32, parameters too, and back moves the same bytes, unless a cast vanished on the way."""
    layer = samples()[name]
    wide = with_parameters(with_activations(layer, BF16, FP32), BF16, FP32)
    if isinstance(layer, DataMovement) and layer.op == "cast":
        assert wide.traffic().bytes == 0
        return
    mixed = {FP32} & {operand.dtype for operand in (*getattr(layer, "reads", ()), *getattr(layer, "writes", ()))}
    if mixed or getattr(layer, "dtype", None) is FP32 or getattr(layer, "out_dtype", None) is FP32:
        return  # what was fp32 already cannot be told on the way back
    narrow = with_parameters(with_activations(wide, FP32, BF16), FP32, BF16)
    assert narrow.traffic() == layer.traffic()
    assert narrow.weight_bytes() == layer.weight_bytes()


def test_parameters_and_activations_of_a_linear_layer_change_apart() -> None:
    """3 rows, 4 -> 2 with bias: 4*2 + 2 = 10 parameters; x has 12 elements, y 6."""
    layer = Linear(rows=3, in_features=4, out_features=2, bias=True, dtype=BF16)
    wide = with_activations(layer, BF16, FP32)
    assert (wide.traffic().weights_read, wide.traffic().activations_read, wide.traffic().written) == (20, 48, 24)
    heavy = with_parameters(layer, BF16, FP32)
    assert (heavy.traffic().weights_read, heavy.traffic().activations_read, heavy.traffic().written) == (40, 24, 12)


def test_a_quantised_linear_layer_keeps_its_bias() -> None:
    """2 rows of 200 int4 elements: 200 bytes; 2 groups of 128 a row: 4 scales, 8 bytes; bias 2 * 2 bytes."""
    layer = Linear(rows=3, in_features=200, out_features=2, bias=True, dtype=BF16)
    small = with_matrices(layer, BF16, WeightFormat(dtype=INT4, other_dtype=BF16, group_size=128))
    assert small.weight_bytes() == 200 + 8 + 4
    assert small.tensor_core_flops() == layer.tensor_core_flops()


def test_narrow_inputs_shrink_what_is_read_and_not_what_is_written() -> None:
    """x of 12 elements in fp8 takes 12 bytes; y of 6 stays bf16: 12 bytes; the weights stay bf16 until told."""
    layer = Linear(rows=3, in_features=4, out_features=2, bias=False, dtype=BF16)
    narrow = with_narrow_inputs(layer, BF16, FP8)
    assert (narrow.traffic().weights_read, narrow.traffic().activations_read, narrow.traffic().written) == (16, 12, 12)


def test_an_embedding_reads_its_table_and_writes_rows_in_types_of_their_own() -> None:
    """3 rows of 4: 24 bytes of a bf16 table read, 48 bytes of fp32 rows written."""
    layer = Embedding(rows=3, width=4, vocabulary=10, index_dtype=DType.INT64, dtype=BF16)
    traffic = with_activations(layer, BF16, FP32).traffic()
    assert (traffic.weights_read, traffic.written) == (24, 48)


def test_a_weight_in_a_product_is_a_parameter() -> None:
    """A product whose right operand is a weight of 2*5 elements: the activations change, those 20 bytes do not."""
    layer = Matmul(batch=1, m=3, k=2, n=5, right_weight=True, dtype=BF16)
    assert with_activations(layer, BF16, FP32).traffic().weights_read == 20
    assert with_parameters(layer, BF16, FP32).traffic().weights_read == 40


def test_a_router_in_fp32_is_left_alone() -> None:
    """A layer of another type than the captured one is of that type by design."""
    router = Linear(rows=3, in_features=4, out_features=2, bias=False, dtype=FP32)
    stored = WeightFormat(dtype=INT4, other_dtype=BF16)
    assert with_matrices(router, BF16, stored) == router
    assert with_narrow_inputs(router, BF16, FP8) == router


def test_half_bytes_are_exact() -> None:
    """7 elements of int4 are 3.5 bytes; 8 are 4."""
    assert Operand(elements=7, dtype=INT4).bytes == 3.5
    assert Operand(elements=8, dtype=INT4).bytes == 4
