"""The cache of a grouped-query attention under a mask, whose keys and values are copied for each query head."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from attrs import evolve

from modelmeter.categories import Category
from modelmeter.dim_text import to_text
from modelmeter.dims import Dim, simplify, symbol
from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer, DataMovement, Operand, ScaledDotProductAttention
from modelmeter.model import AnalyticModel, Leaf, ModuleNode, PeakPoint, Stage
from modelmeter.whatif import Options, UnsupportedWhatIfError, apply
from modelmeter.whatif.cache import find_cache

B, S, T = symbol("B"), symbol("S"), symbol("T")
LAYERS, HEADS, KV_HEADS, WIDTH = 3, 8, 2, 16
ENTRY = KV_HEADS * WIDTH  # elements of the keys, or of the values, of a token in a layer: 32
TOKEN = LAYERS * 2 * ENTRY * 2  # bytes of a token in bf16: 384


def moved(op: str, reads: tuple[Dim, ...], written: Dim) -> DataMovement:
    """Return a movement of bf16 elements."""
    read = tuple(Operand(elements=simplify(elements), dtype=DType.BF16) for elements in reads)
    return DataMovement(op=op, reads=read, writes=(Operand(elements=simplify(written), dtype=DType.BF16),))


def attention(kv_heads: int, queries: Dim, keys: Dim) -> ScaledDotProductAttention:
    """Return the attention of one layer, under a mask."""
    return ScaledDotProductAttention(
        batch=B,
        heads=HEADS,
        kv_heads=kv_heads,
        query_length=queries,
        key_length=keys,
        head_dim=WIDTH,
        value_head_dim=WIDTH,
        causal=False,
        mask=Operand(elements=queries * keys, dtype=DType.BOOL),
        dtype=DType.BF16,
    )


def stage(name: str, kept: Dim, grown: Dim) -> Stage:
    """Return a stage that holds its cache at its peak, and at another as much as before it began."""
    peaks = tuple(
        PeakPoint(at="aten::cat", module="attn", activation_bytes=B, kv_cache_bytes=held, input_bytes=0, live=())
        for held in (kept, grown)
    )
    dims = ("B", "S") if name == "prefill" else ("B", "T")
    return Stage(name=name, description="", dims=dims, weight_bytes=0, kv_cache_bytes=kept, peaks=peaks)


def model_of(layers: Mapping[str, tuple[BaseLayer, ...]]) -> AnalyticModel:
    """Return a model of two stages that run these layers in one module of three instances."""
    leaves = tuple(
        Leaf(
            id=f"attn/{position}",
            module="attn",
            stage=name,
            op="aten::op",
            function="forward",
            category=Category.ATTENTION,
            layer=layer,
            calls=LAYERS,
            fused_bytes=layer.traffic().bytes,
        )
        for name, held in layers.items()
        for position, layer in enumerate(held)
    )
    nodes = tuple(
        ModuleNode(
            id=name,
            class_name=name,
            parent=parent,
            instances=instances,
            series=1,
            parallel={},
            calls={},
            parameters=0,
            parameter_bytes=0,
            fan_in=0,
            fan_out=0,
        )
        for name, parent, instances in (("", None, 1), ("attn", "", LAYERS))
    )
    return AnalyticModel(
        name="grouped",
        variant={"dtype": "bf16"},
        dims={"B": "documents", "S": "tokens", "T": "cached tokens"},
        parameters=0,
        parameter_bytes=0,
        load_bytes=0,
        stages=(stage("prefill", TOKEN * B * S, 0), stage("decode", TOKEN * B * (T + 1), TOKEN * B * (2 * T + 1))),
        modules=nodes,
        leaves=leaves,
        free=(),
        edges=(),
    )


@pytest.fixture
def grouped() -> AnalyticModel:
    """Return a model whose prefill copies keys and values to the query heads; its steps do so too."""
    filled = moved("cat", (0, ENTRY * B * S), ENTRY * B * S)
    grown = moved("cat", (ENTRY * B * T, ENTRY * B), ENTRY * B * (T + 1))
    sinks = moved("cat", (HEADS * B * T + HEADS * B, HEADS), HEADS * B * T + 2 * HEADS * B)
    nothing = moved("cat", (ENTRY * B, 0), ENTRY * B)
    return model_of(
        {
            "prefill": (
                filled,
                filled,
                moved("reshape", (ENTRY * B * S,), 4 * ENTRY * B * S),
                moved("reshape", (ENTRY * B * S,), 4 * ENTRY * B * S),
                attention(HEADS, S, S),
            ),
            "decode": (
                nothing,
                grown,
                grown,
                moved("reshape", (ENTRY * B * (T + 1),), 4 * ENTRY * B * (T + 1)),
                moved("reshape", (ENTRY * B * (T + 1),), 4 * ENTRY * B * (T + 1)),
                attention(HEADS, 1, T + 1),
                sinks,
            ),
        }
    )


def test_copies_to_query_heads_read_the_cache_and_attention_reads_the_copies(grouped: AnalyticModel) -> None:
    """Neither a concatenation with nothing nor one with a broadcast column of scores grows it."""
    cache = find_cache(grouped)
    assert (cache["prefill"].growing, cache["prefill"].readers) == ((), (2, 3))
    assert (cache["decode"].growing, cache["decode"].readers) == ((1, 2), (3, 4))


def test_an_int8_cache_is_read_by_the_copies_alone(grouped: AnalyticModel) -> None:
    """A token takes 192 bytes in place of 384: half of what copies read, and of what a concatenation holds, is saved.

    A step reads T tokens and writes T + 1 to grow the cache, and reads T + 1 to copy them: 3*T + 2 tokens.
    """
    what_if = apply(grouped, Options(kv_dtype="int8"))
    assert [to_text(each.kv_cache_bytes) for each in what_if.model.stages] == ["192*B*S", "192*B*T + 192*B"]
    moved_less = {shift.stage: shift.bytes.text for shift in what_if.changes[0].shifts}
    assert moved_less == {"prefill": "-192*B*S", "decode": "-576*B*T - 384*B"}
    attentions = [leaf.layer for leaf in what_if.model.leaves if isinstance(leaf.layer, ScaledDotProductAttention)]
    assert all(each.kv_dtype is None for each in attentions)


def test_fp32_activations_leave_the_cache_in_bf16(grouped: AnalyticModel) -> None:
    """The copies read 2 bytes an element and write 4; the cache is kept as captured."""
    changed = apply(grouped, Options(activation_dtype="fp32")).model
    copy = changed.leaves_by_stage["prefill"][2].layer.traffic()
    assert (to_text(copy.activations_read), to_text(copy.written)) == ("64*B*S", "512*B*S")
    assert changed.stage("decode").kv_cache_bytes == grouped.stage("decode").kv_cache_bytes


def test_a_preallocated_cache_leaves_the_peaks_of_a_prefill_alone(grouped: AnalyticModel) -> None:
    """A step never holds more than the cache it leaves; a prefill that does not copy it holds what it held."""
    changed = apply(grouped, Options(kv_growth="preallocated")).model
    kept = changed.stage("decode").kv_cache_bytes
    assert {peak.kv_cache_bytes for peak in changed.stage("decode").peaks} == {kept}
    assert changed.stage("prefill").peaks == grouped.stage("prefill").peaks


def test_attention_that_reads_a_group_for_each_head_reads_the_cache_itself() -> None:
    """Where the kernel takes fewer key heads than query heads, nothing is copied."""
    model = model_of(
        {
            "prefill": (attention(KV_HEADS, S, S),),
            "decode": (
                moved("cat", (ENTRY * B * T, ENTRY * B), ENTRY * B * (T + 1)),
                moved("cat", (ENTRY * B * T, ENTRY * B), ENTRY * B * (T + 1)),
                attention(KV_HEADS, 1, T + 1),
            ),
        }
    )
    assert [found.readers for found in find_cache(model).values()] == [(0,), (2,)]


def test_the_type_of_the_cache_is_its_own(grouped: AnalyticModel) -> None:
    """Weights quantised as published, or of two types, do not keep the cache from another type."""
    for dtype in ("fp8", "bf16 and fp32"):
        model = evolve(grouped, variant={"dtype": dtype})
        assert to_text(apply(model, Options(kv_dtype="fp32")).model.stage("prefill").kv_cache_bytes) == "768*B*S"
        assert apply(model, Options(kv_dtype="bf16")).changes == ()


def test_keys_that_nothing_accounts_for_are_refused_with_the_figures(grouped: AnalyticModel) -> None:
    """Copies of which one is missing read half of what is kept."""
    leaves = tuple(leaf for leaf in grouped.leaves if (leaf.stage, leaf.id) != ("prefill", "attn/2"))
    with pytest.raises(UnsupportedWhatIfError, match=r"keeps 384\*B\*S bytes, its attention reads 192\*B\*S"):
        apply(evolve(grouped, leaves=leaves), Options(kv_dtype="int8"))
