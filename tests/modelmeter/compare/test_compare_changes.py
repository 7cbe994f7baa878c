"""What changed and why: shares of the change, and reasons from what differs."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve

import modelmeter
from modelmeter.compare import Change, Metric, Side, set_side_by_side
from modelmeter.compare.group import phase_of
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.layers import DataMovement, Linear, Unclassified
from modelmeter.model import Exactness

MakeSide = Callable[..., Side]


def changes(old: Side, new: Side, metric: Metric) -> list[Change]:
    """Return the entries of the change of a metric."""
    return list(set_side_by_side([old, new], ranked_by=metric).changes[0].entries)


def words(entry: Change) -> tuple[str, ...]:
    """Return the reasons of an entry in words."""
    return tuple(reason.text for reason in entry.reasons)


def role(entry: Change) -> str:
    """Return the name of the role of a part of the work."""
    assert entry.role is not None
    return entry.role.name


def effects(entry: Change) -> dict[str, Any]:
    """Return what each reason of an entry adds to it."""
    return {reason.text: reason.effect for reason in entry.reasons}


def test_more_steps_are_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Decode runs 4 times instead of 3 from the same T on: the step is all of it; prefill is not listed."""
    item = toy.toy_workload().items[0]
    longer = evolve(item, runs=(item.runs[0], evolve(item.runs[1], count=4)))
    new = toy_side("long", workload=evolve(toy.toy_workload(), items=(longer,)))
    (entry,) = changes(toy_side("short"), new, Metric.FLOPS)
    assert (entry.phase, entry.difference) == ("decode", 2048)
    assert effects(entry) == {"decode executions 3 → 4": 2048}  # at T = 8: 2 calls * 2 * 2*8 * 4*8


def test_a_stage_that_no_longer_runs_is_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Without decode its work is gone: executions 3 -> 0 explain all of it."""
    item = toy.toy_workload().items[0]
    prefill = evolve(toy.toy_workload(), items=(evolve(item, runs=item.runs[:1]),))
    entries = changes(toy_side("all"), toy_side("prefill", workload=prefill), Metric.FLOPS)
    assert [(entry.difference, words(entry)) for entry in entries] == [(-4608, ("decode executions 3 → 0",))]


def test_a_longer_prompt_is_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Twice the tokens are twice the FLOPs of every part of prefill, largest first."""
    item = toy.toy_workload().items[0]
    longer = evolve(item, runs=(evolve(item.runs[0], bindings={"B": 2, "S": 10}), item.runs[1]))
    new = toy_side("long", workload=evolve(toy.toy_workload(), items=(longer,)))
    entries = changes(toy_side("short"), new, Metric.FLOPS)
    assert [(role(entry), entry.difference) for entry in entries] == [
        ("head", 1440),
        ("decoder: linear", 1280),  # up of each layer
        ("decoder: other", 640),  # act of each layer
        ("decoder: experts", 320),
    ]
    assert {words(entry) for entry in entries} == {("prefill S 5 → 10",)}


def test_an_operator_that_one_side_cannot_count_is_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """The head's 1,440 FLOPs are gone though it is called as before: there is no rule for it, and only there."""
    model = toy.toy_model()
    unknown = Unclassified(op="linear", reads=(), writes=())
    leaves = tuple(
        evolve(leaf, exactness=Exactness.UNCLASSIFIED, layer=unknown) if leaf.module == "lm_head" else leaf
        for leaf in model.leaves
    )
    (entry,) = changes(toy_side("old"), toy_side("new", model=evolve(model, leaves=leaves)), Metric.FLOPS)
    assert (role(entry), entry.difference) == ("head", -1440)
    assert words(entry) == ("new leaves out FLOPs of aten::linear (unclassified) in prefill",)


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
    (reason,) = entry.reasons
    assert (reason.text, reason.effect) == ("head wide in b alone", 1440)  # 16 more columns of 2*4 + 1 FLOPs, 10 rows
    (part,) = reason.parts
    assert part.text == (
        "prefill linear: Linear dtype fp32 → bf16, Linear out_features 16 → 32, linear 1.44 kFLOP → 2.88 kFLOP"
    )
    (back,) = changes(toy_side("b", model=other), toy_side("a"), Metric.FLOPS)
    assert words(back)[0] == "head wide in b alone"


def other_dims(toy: ModuleType, dims: dict[str, int]) -> Any:
    """Return the toy under another name with a prefill of 10 rows that is bound by other dims."""
    symbols = [symbol(dim) for dim in dims]
    wide = Linear(rows=math.prod(symbols), in_features=4, out_features=32, bias=True, dtype=DType.FP32)
    model = toy.toy_model()
    legend = {dim: f"size {dim}" for dim in dims}
    stages = [evolve(model.stages[0], dims=tuple(dims), kv_cache_bytes=8 * symbol("B"), peaks=()), model.stages[1]]
    return evolve(
        model,
        name="other",
        dims={**model.dims, **legend},
        stages=tuple(stages),
        leaves=tuple(
            evolve(leaf, layer=wide, cost=None, fused_bytes=0) if leaf.stage == "prefill" else leaf
            for leaf in model.leaves
        ),
    )


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ({"B": 2, "L": 5}, "prefill S is called L in b"),
        ({"B": 2, "L": 6}, "prefill depends on S (tokens) in a alone"),
        ({"B": 2, "S": 5, "N": 3}, "prefill depends on N (size N) in b alone"),
        ({"B": 2, "N": 3, "V": 4}, "prefill depends on N (size N) and V (size V) in b alone"),
    ],
)
def test_a_dim_of_one_side_is_called_so(
    toy: ModuleType, toy_side: MakeSide, dims: dict[str, int], expected: str
) -> None:
    """A dim of the same size under another name is renamed; any other one that is missing is said to be."""
    item = toy.toy_workload().items[0]
    other = evolve(toy.toy_workload(), items=(evolve(item, runs=(evolve(item.runs[0], bindings=dims), item.runs[1])),))
    entries = changes(toy_side("a"), toy_side("b", model=other_dims(toy, dims), workload=other), Metric.FLOPS)
    (head,) = [entry for entry in entries if role(entry) == "head"]
    assert any(expected in reason for reason in words(head))
    assert not [reason for entry in entries for reason in words(entry) if "none" in reason]


def test_a_size_that_no_model_asks_for_is_no_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """A workload may name the columns of a grid where the model asks for the rows alone: both do the same work."""
    item = toy.toy_workload().items[0]
    spare = evolve(item, runs=(evolve(item.runs[0], bindings={"B": 3, "S": 5, "W": 7}), item.runs[1]))
    new = toy_side("b", workload=evolve(toy.toy_workload(), items=(spare,)))
    assert {words(entry) for entry in changes(toy_side("a"), new, Metric.FLOPS)} == {("prefill B 2 → 3",)}


def test_a_time_says_which_work_it_comes_from(toy: ModuleType, toy_side: MakeSide) -> None:
    """Twice the rows are twice the FLOPs of the head, 1440 → 2880; other metrics need no such figures."""
    h200 = modelmeter.load_device("h200")
    item = toy.toy_workload().items[0]
    longer = evolve(item, runs=(evolve(item.runs[0], bindings={"B": 2, "S": 10}), item.runs[1]))
    new = toy_side("b", workload=evolve(toy.toy_workload(), items=(longer,)), device=h200)
    old = toy_side("a", device=h200)
    (head,) = [entry for entry in changes(old, new, Metric.TIME) if role(entry) == "head"]
    # bytes: 10 * 4 * 4 read, 10 * 16 * 4 written, 80 * 4 of weights; then 20 rows
    assert head.work == {Metric.FLOPS: (1440, 2880), Metric.BYTES: (160 + 640 + 320, 320 + 1280 + 320)}
    assert all(entry.work == {} for entry in changes(old, new, Metric.FLOPS))


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
    # 1,440 FLOPs a call
    assert effects(entry) == {"prefill linear: mm calls 0 → 3 (+4.32 kFLOP), linear calls 1 → 0 (-1.44 kFLOP)": 2880}
    (entry,) = changes(toy_side("a", alone=True), toy_side("b", model=other, alone=True), Metric.FLOPS)
    assert words(entry) == ("prefill operator calls 1 → 3",)


def test_more_layers_are_a_reason(toy: ModuleType, toy_side: MakeSide) -> None:
    """Four layers instead of two: their operators are called twice as often, and do twice as much."""
    model = toy.toy_model()
    layers = [node.id for node in model.modules if node.id.startswith("model.layers")]
    other = evolve(
        model,
        modules=tuple(evolve(node, instances=4, series=4) if node.id in layers else node for node in model.modules),
        leaves=tuple(evolve(leaf, calls=4) if leaf.module in layers else leaf for leaf in model.leaves),
    )
    entries = changes(toy_side("a"), toy_side("b", model=other), Metric.FLOPS)
    # prefill runs up and act of each layer; decode up alone
    assert [(entry.phase, role(entry), entry.difference, words(entry)) for entry in entries] == [
        ("decode", "decoder: linear", 4608, ("decode linear: linear calls 2 → 4 (+4.61 kFLOP)",)),
        ("prefill", "decoder: linear", 1280, ("prefill linear: linear calls 2 → 4 (+1.28 kFLOP)",)),
        ("prefill", "decoder: other", 640, ("prefill activation: silu calls 2 → 4 (+640 FLOP)",)),
    ]


def test_a_device_explains_time_and_nothing_else(toy_side: MakeSide) -> None:
    """The same work on another device: every entry of time names both and what they can do, bytes have no entry.

    Datasheets: 4.8 TB/s and 989 TFLOP/s of an H200, 2,039 GB/s and 312 TFLOP/s of an A100 80GB SXM.
    """
    h200, a100 = (modelmeter.load_device(name) for name in ("h200", "a100-80gb-sxm"))
    old, new = toy_side("a", device=h200), toy_side("b", device=a100)
    entries = changes(old, new, Metric.TIME)
    assert entries
    assert {words(entry) for entry in entries} == {
        (
            f"device {h200.name} → {a100.name}, memory bandwidth 4.80 TB/s → 2.04 TB/s, "
            "matrix peak 989 TFLOP/s in bf16 → 312 TFLOP/s in bf16",
        )
    }
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
    assert words(entry) == ("torch 0 → 1",)
    same = evolve(other, provenance=model.provenance)
    (entry,) = changes(toy_side("a"), toy_side("b", model=same), Metric.FUSED_BYTES)
    # head: read 10*4*4 + written 10*16*4 + weights (64 + 16)*4 = 1120 bytes before
    assert effects(entry) == {"prefill linear: linear 1.12 kB → 5.00 kB": 3880}


def test_a_part_of_another_model_is_named(toy: ModuleType, toy_side: MakeSide) -> None:
    """What only one model has says where it is; the same words would mislead about a stage of another model."""
    model = toy.toy_model()
    other = evolve(model, name="other", leaves=tuple(leaf for leaf in model.leaves if leaf.module != "lm_head"))
    entries = changes(toy_side("a"), toy_side("b", model=other), Metric.FLOPS)
    (entry,) = [entry for entry in entries if role(entry) == "head"]
    assert words(entry) == ("only in a: `lm_head` (Linear)",)


def test_a_part_that_has_nothing_to_do_in_another_model_is_named(toy: ModuleType, toy_side: MakeSide) -> None:
    """A head that only looks at its rows in another shape has no work: it is as good as not there."""
    model = toy.toy_model()
    view = DataMovement(op="view", reads=(), writes=())
    idle = tuple(
        evolve(leaf, layer=view, op="aten::view", cost=None, fused_bytes=0) if leaf.module == "lm_head" else leaf
        for leaf in model.leaves
    )
    entries = changes(toy_side("a"), toy_side("b", model=evolve(model, name="other", leaves=idle)), Metric.FLOPS)
    (entry,) = [entry for entry in entries if role(entry) == "head"]
    assert words(entry) == ("only in a: `lm_head` (Linear)",)


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
