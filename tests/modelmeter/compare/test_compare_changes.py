"""What changed and why: shares of the change, and reasons from what differs."""

from collections.abc import Callable
from types import ModuleType

import pytest
from attrs import evolve

import modelmeter
from modelmeter.compare import Change, Metric, Side, set_side_by_side
from modelmeter.compare.changes import phase_of
from modelmeter.dtypes import DType
from modelmeter.layers import Linear

MakeSide = Callable[..., Side]


def changes(old: Side, new: Side, metric: Metric) -> list[Change]:
    """Return the entries of the change of a metric."""
    return list(set_side_by_side([old, new], ranked_by=metric).changes[0].entries)


def test_more_steps_are_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Decode runs 4 times instead of 3, T is 6.5 instead of 6 on average; prefill did not change and is not listed."""
    item = toy.toy_workload().items[0]
    longer = evolve(item, runs=(item.runs[0], evolve(item.runs[1], count=4)))
    new = toy_side("long", workload=evolve(toy.toy_workload(), items=(longer,)))
    (entry,) = changes(toy_side("short"), new, Metric.FLOPS)
    assert (entry.phase, entry.difference) == ("decode", 2048)
    assert entry.reasons == ("decode executions 3 → 4", "decode mean T 6 → 6.5")


def test_a_stage_that_no_longer_runs_is_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Without decode its work is gone: executions 3 -> 0 explain all of it."""
    item = toy.toy_workload().items[0]
    prefill = evolve(toy.toy_workload(), items=(evolve(item, runs=item.runs[:1]),))
    entries = changes(toy_side("all"), toy_side("prefill", workload=prefill), Metric.FLOPS)
    assert [(entry.difference, entry.reasons) for entry in entries] == [(-4608, ("decode executions 3 → 0",))]


def test_a_longer_prompt_is_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Twice the tokens are twice the FLOPs of every part of prefill, largest first."""
    item = toy.toy_workload().items[0]
    longer = evolve(item, runs=(evolve(item.runs[0], bindings={"B": 2, "S": 10}), item.runs[1]))
    new = toy_side("long", workload=evolve(toy.toy_workload(), items=(longer,)))
    entries = changes(toy_side("short"), new, Metric.FLOPS)
    # layers' up and act 1280 + 640, head 1440, experts 320
    assert [(entry.role.name, entry.difference) for entry in entries] == [
        ("decoder: other", 1920),
        ("head", 1440),
        ("decoder: experts", 320),
    ]
    assert {entry.reasons for entry in entries} == {("prefill S 5 → 10",)}


def test_another_layer_and_variant_are_reasons(toy: ModuleType, toy_side: MakeSide) -> None:
    """A head of twice the width in bf16 says so, with the fact of the variant that differs before it."""
    model = toy.toy_model()
    wide = Linear(rows=toy.B * toy.S, in_features=4, out_features=32, bias=True, dtype=DType.BF16)
    other = evolve(
        model,
        variant={"dtype": "bf16", "attention": "none", "head": "wide"},
        leaves=tuple(
            evolve(leaf, layer=wide, cost=None) if leaf.module == "lm_head" else leaf for leaf in model.leaves
        ),
    )
    (entry,) = changes(toy_side("a"), toy_side("b", model=other), Metric.FLOPS)
    assert entry.reasons == ("head none → wide", "Linear dtype fp32 → bf16", "Linear out_features 16 → 32")


def test_other_operators_are_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """An operator that came or went is named with its calls; bare reports know the number of calls alone."""
    model = toy.toy_model()
    other = evolve(
        model,
        leaves=tuple(
            evolve(leaf, op="aten::mm", calls=3) if leaf.module == "lm_head" else leaf for leaf in model.leaves
        ),
    )
    (entry,) = changes(toy_side("a"), toy_side("b", model=other), Metric.FLOPS)
    assert entry.reasons == ("mm calls 0 → 3", "linear calls 1 → 0")
    (entry,) = changes(toy_side("a", alone=True), toy_side("b", model=other, alone=True), Metric.FLOPS)
    assert entry.reasons == ("prefill operator calls 1 → 3",)


def test_more_layers_are_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Four layers instead of two: their operators are called twice as often, which needs no words of its own."""
    model = toy.toy_model()
    layers = [node.id for node in model.modules if node.id.startswith("model.layers")]
    other = evolve(
        model,
        modules=tuple(evolve(node, instances=4, series=4) if node.id in layers else node for node in model.modules),
        leaves=tuple(evolve(leaf, calls=4) if leaf.module in layers else leaf for leaf in model.leaves),
    )
    prefill, decode = changes(toy_side("a"), toy_side("b", model=other), Metric.FLOPS)[::-1]
    # prefill runs up and act of each layer; decode up alone, and beside it one module each for cat and mystery
    assert (prefill.phase, prefill.difference, prefill.reasons) == ("prefill", 1920, ("modules 4 → 8",))
    assert (decode.phase, decode.difference, decode.reasons) == (
        "decode",
        4608,
        ("modules 4 → 6", "linear calls 2 → 4"),
    )


def test_a_device_explains_time_and_nothing_else(toy_side: MakeSide) -> None:
    """The same work on another device: every entry of time names both, bytes have no entry."""
    h200, a100 = (modelmeter.load_device(name) for name in ("h200", "a100-80gb-sxm"))
    old, new = toy_side("a", device=h200), toy_side("b", device=a100)
    entries = changes(old, new, Metric.TIME)
    assert entries
    assert {entry.reasons for entry in entries} == {(f"device {h200.name} → {a100.name}",)}
    assert changes(old, new, Metric.BYTES) == []


def test_a_version_explains_what_nothing_else_does(toy: ModuleType, toy_side: MakeSide) -> None:
    """The same calls cost more, captured with another torch: the version is the reason."""
    model = toy.toy_model()
    other = evolve(
        model,
        provenance={"torch": "1", "dsocr_graph": "0"},
        leaves=tuple(evolve(leaf, fused_bytes=5000) if leaf.module == "lm_head" else leaf for leaf in model.leaves),
    )
    (entry,) = changes(toy_side("a"), toy_side("b", model=other), Metric.FUSED_BYTES)
    assert entry.reasons == ("torch 0 → 1",)
    same = evolve(other, provenance=model.provenance)
    (entry,) = changes(toy_side("a"), toy_side("b", model=same), Metric.FUSED_BYTES)
    # head: read 10*4*4 + written 10*16*4 + weights (64 + 16)*4 = 1120 bytes before
    assert entry.reasons == ("fused bytes of the same calls 1,120 → 5,000",)


def test_a_part_of_another_model_is_named(toy: ModuleType, toy_side: MakeSide) -> None:
    """What only one model has says where it is; the same words would mislead about a stage of another model."""
    model = toy.toy_model()
    other = evolve(model, name="other", leaves=tuple(leaf for leaf in model.leaves if leaf.module != "lm_head"))
    entries = changes(toy_side("a"), toy_side("b", model=other), Metric.FLOPS)
    (entry,) = [entry for entry in entries if entry.role.name == "head"]
    assert entry.reasons == ("only in a: `lm_head` (Linear)",)


@pytest.mark.parametrize(
    ("cached", "stage", "phase"),
    [
        ({"prefill", "decode"}, "vision_local", "encode"),
        ({"prefill", "decode"}, "prefill", "prefill"),
        ({"prefill", "decode"}, "decode", "decode"),
        (set(), "decode", "decode"),
        (set(), "forward", "encode"),
    ],
)
def test_the_phase_of_a_stage(toy_side: MakeSide, cached: set[str], stage: str, phase: str) -> None:
    """Stages without keys and values encode; the others prefill or decode."""
    assert phase_of(evolve(toy_side("a"), cached=frozenset(cached)), stage) == phase
