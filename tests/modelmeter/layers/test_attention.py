"""ScaledDotProductAttention, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.categories import Category
from modelmeter.dim_text import to_text
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.errors import DimError
from modelmeter.layers import ScaledDotProductAttention
from modelmeter.layers.base import Operand, Traffic


def _attention(**changes: object) -> ScaledDotProductAttention:
    fields = {
        "batch": 2,
        "heads": 4,
        "kv_heads": 2,
        "query_length": 3,
        "key_length": 5,
        "head_dim": 8,
        "value_head_dim": 6,
        "causal": False,
        "dtype": DType.BF16,
    }
    return ScaledDotProductAttention(**(fields | changes))


def test_forward() -> None:
    """2*4*3*5 = 120 scores; products over 8 and over 6; softmax and scale cost 6 per score."""
    layer = _attention()
    assert layer.category is Category.ATTENTION
    assert layer.matmul_flops() == 3360  # 2 * 120 * (8 + 6)
    assert layer.vector_flops() == 720
    # q 2*4*3*8 = 192, k 2*2*5*8 = 160, v 2*2*5*6 = 120 elements; o 2*4*3*6 = 144
    assert layer.traffic() == Traffic(weights_read=0, activations_read=944, written=288)
    assert layer.kvcache_bytes() == 0


def test_a_mask_is_read_as_stored_and_added() -> None:
    """A mask [1, 1, 3, 5] in bf16 is 30 bytes and one addition per score."""
    layer = _attention(mask=Operand(elements=15, dtype=DType.BF16))
    assert layer.vector_flops() == 840  # 7 * 120
    assert layer.traffic().activations_read == 944 + 30


def test_backward() -> None:
    """Five products: q k^T, dQ, dK over 8 and dV, dP over 6: 2 * 120 * (3*8 + 2*6) = 8640."""
    layer = _attention(mask=Operand(elements=15, dtype=DType.BF16))
    assert layer.backward_matmul_flops() == 8640
    assert layer.backward_vector_flops() == 7 * 120 + 2 * 144
    # q, k, v 944, the mask 30, o and dO 288 each; dQ, dK, dV 944, none for the mask
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=1550, written=944)
    assert layer.backward_activation_bytes() == 944 + 30 + 288


def test_backward_is_two_and_a_half_times_forward() -> None:
    """With D = Dv, five products against two."""
    layer = _attention(value_head_dim=8)
    assert 2 * layer.backward_matmul_flops() == 5 * layer.matmul_flops()


def test_causal_products_stay_full() -> None:
    """FLOPs count the whole square; what a causal kernel saves is apart and 0 without a causal mask."""
    assert _attention(causal=True).matmul_flops() == _attention().matmul_flops()
    assert _attention().causal_saved_flops() == 0


def test_causal_savings_of_a_square() -> None:
    """S = 4 hides 4*3/2 = 6 scores of each head: 2 * 2*4 * 6 * 14 = 1344."""
    layer = _attention(query_length=4, key_length=4, causal=True)
    assert layer.causal_saved_flops() == 1344


@given(st.integers(1, 12), st.integers(1, 12))
def test_causal_savings_count_the_hidden_scores(queries: int, keys: int) -> None:
    """Query i sees keys 0..i: the saving is 2*(D + Dv) for each (i, j) with j > i, of every head."""
    hidden = sum(1 for i in range(queries) for j in range(keys) if j > i)
    layer = _attention(query_length=queries, key_length=keys, causal=True)
    assert layer.causal_saved_flops() == 2 * 2 * 4 * 14 * hidden


def test_causal_savings_are_symbolic() -> None:
    """Over S: B*H*(D + Dv)*(S^2 - S) = 2*4*14*(S^2 - S)."""
    layer = _attention(query_length=symbol("S"), key_length=symbol("S"), causal=True)
    assert to_text(layer.causal_saved_flops()) == "112*S**2 - 112*S"


def test_key_heads_must_divide_heads() -> None:
    """3 key heads cannot serve 4 query heads evenly."""
    with pytest.raises(DimError, match="kv_heads=3 does not divide heads=4"):
        _attention(kv_heads=3)
