"""Division: a layer on one device is a layer with its dims divided, and its own formulas."""

import pytest

from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.expert_counts import experts_touched
from modelmeter.layers import Elementwise, GroupedLinear, Linear, Operand, ScaledDotProductAttention, Sort
from modelmeter.parallel import Layout, Role, UndividedLayerError
from modelmeter.parallel.division import cuts, divided

LINEAR = Linear(rows=8, in_features=1280, out_features=6400, bias=False, dtype=DType.BF16)


def test_a_column_layer_reads_all_and_writes_a_part() -> None:
    """On 4 ranks 1,600 of 6,400 features: x [8, 1280] is read whole, y [8, 1600] written, in 2 bytes."""
    column = divided(LINEAR, Role.COLUMN, Layout(tensor=4))
    traffic = column.traffic()
    assert (traffic.activations_read, traffic.written) == (8 * 1280 * 2, 8 * 1600 * 2)
    assert column.weight_bytes() == 1280 * 1600 * 2


def test_a_row_layer_reads_a_part_and_writes_all() -> None:
    """On 4 ranks 320 of 1,280 features are read, and a partial sum of all 6,400 is written."""
    traffic = divided(LINEAR, Role.ROW, Layout(tensor=4)).traffic()
    assert (traffic.activations_read, traffic.written) == (8 * 320 * 2, 8 * 6400 * 2)


def test_a_replicated_layer_is_the_same() -> None:
    """A norm or a router is not divided at all."""
    assert divided(LINEAR, Role.REPLICATED, Layout(tensor=4)) is LINEAR


def test_attention_has_a_part_of_the_heads() -> None:
    """10 heads and 10 key heads on 2 ranks are 5 and 5, so half the FLOPs."""
    layer = ScaledDotProductAttention(
        batch=1,
        heads=10,
        kv_heads=10,
        query_length=3,
        key_length=3,
        head_dim=128,
        value_head_dim=128,
        causal=True,
        dtype=DType.BF16,
    )
    half = divided(layer, Role.INNER, Layout(tensor=2))
    assert half.matmul_flops() == 2 * 5 * 3 * 3 * 256
    assert [(cut.what, cut.size) for cut in cuts(layer, Role.INNER)] == [("heads", 10), ("kv_heads", 10)]


def test_a_table_that_all_heads_share_stays_whole() -> None:
    """Rotary cosines of 128 elements are read by every rank, beside its half of 1,280."""
    full = Operand(elements=1280, dtype=DType.BF16)
    table = Operand(elements=128, dtype=DType.BF16)
    layer = Elementwise(
        op="mul", elements=1280, reads=(full, table), writes=(full,), dtype=DType.BF16, flops_per_element=1
    )
    traffic = divided(layer, Role.INNER, Layout(tensor=2)).traffic()
    assert (traffic.activations_read, traffic.written) == ((640 + 128) * 2, 640 * 2)


def test_an_expert_rank_serves_the_tokens_of_several_replicas() -> None:
    """4 expert ranks, one per replica, of 64 experts: 16 each; 4 x 6B rows over 4 ranks; experts touched by 4B."""
    batch = symbol("B")
    layer = GroupedLinear(
        rows=6 * batch,
        in_features=1280,
        out_features=896,
        experts=64,
        active_experts=experts_touched(64, 6, batch),
        dtype=DType.BF16,
    )
    rank = divided(layer, Role.EXPERT_COLUMN, Layout(expert=4, data=4))
    assert isinstance(rank, GroupedLinear)
    assert (rank.experts, rank.rows) == (16, 6 * batch)
    assert rank.active_experts == experts_touched(64, 6, 4 * batch) / 4


def test_tensor_ranks_beyond_the_experts_ranks_divide_each_expert() -> None:
    """4 tensor ranks of which 2 share experts: 32 experts, half the rows, and 448 of 896 features each."""
    layer = GroupedLinear(rows=48, in_features=1280, out_features=896, experts=64, active_experts=20, dtype=DType.BF16)
    rank = divided(layer, Role.EXPERT_COLUMN, Layout(tensor=4, expert=2))
    assert isinstance(rank, GroupedLinear)
    assert (rank.experts, rank.rows, rank.active_experts, rank.out_features) == (32, 24, 10, 448)


def test_a_layer_that_no_rule_divides_is_refused() -> None:
    """A sort has no features to divide; the message lists what has, and what to do."""
    layer = Sort(rows=1, width=8, dtype=DType.INT64, index_dtype=DType.INT64)
    with pytest.raises(UndividedLayerError, match=r"no rule divides a Sort in the role 'inner'; .* Matmul"):
        divided(layer, Role.INNER, Layout(tensor=2))
