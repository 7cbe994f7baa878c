"""A small model of two stages, built by hand, whose totals and times can be worked out on paper."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from attrs import evolve, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Time
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.expert_counts import distinct_experts
from modelmeter.layers import Activation, DataMovement, GroupedLinear, Linear, Operand, Unclassified
from modelmeter.model import (
    AnalyticModel,
    Edge,
    Exactness,
    FreeOps,
    Leaf,
    LiveTensor,
    ModuleNode,
    PeakPoint,
    Stage,
)
from modelmeter.predict.kernel_time import Method, SourceShare
from modelmeter.predict.time_model import DeviceFacts, PredictionFacts
from modelmeter.predict.timeline import CallTime
from modelmeter.signature import Signature, TensorArgument
from modelmeter.workload import StageRun, Workload, WorkloadItem

B, S, T = symbol("B"), symbol("S"), symbol("T")

# prefill, at B=2, S=5 (10 tokens):
#   up      Linear 4 -> 8, 2 calls (two folded layers): 2*10*4*8 = 640 FLOPs a call
#           bytes a call: weights 4*8*2 = 64, read 10*4*2 = 80, written 10*8*2 = 160
#   act     SiLU on 10*8 = 80 elements, 4 FLOPs each = 320 FLOPs; 160 read, 160 written; fused: 0 bytes
#   experts GroupedLinear 4 -> 2 over 8 experts, 2 per token, 1 call: rows 20, 2*20*4*2 = 320 FLOPs
#   head    Linear 4 -> 16, fp32, with bias: 2*10*4*16 = 1280 matmul, 10*16 = 160 vector
# decode at B=2, T: attends to T cached tokens by a product of 4*T*B elements
UP = Linear(rows=B * S, in_features=4, out_features=8, bias=False, dtype=DType.BF16)
ACT = Activation(
    op="silu",
    elements=8 * B * S,
    flops_per_element=4,
    reads=(Operand(elements=8 * B * S, dtype=DType.BF16),),
    writes=(Operand(elements=8 * B * S, dtype=DType.BF16),),
    dtype=DType.BF16,
)
EXPERTS = GroupedLinear(
    rows=2 * B * S,
    in_features=4,
    out_features=2,
    experts=8,
    active_experts=distinct_experts(8, 2, B * S),
    dtype=DType.BF16,
)
HEAD = Linear(rows=B * S, in_features=4, out_features=16, bias=True, dtype=DType.FP32)
STEP = Linear(rows=B * T, in_features=4, out_features=8, bias=False, dtype=DType.BF16)
GROW = DataMovement(
    op="cat",
    reads=(Operand(elements=4 * B * T, dtype=DType.BF16),),
    writes=(Operand(elements=4 * B * T + 4 * B, dtype=DType.BF16),),
)
ODD = Unclassified(op="mystery", reads=(Operand(elements=3 * B, dtype=DType.FP32),), writes=())


def _leaf(name: str, module: str, stage: str, layer: object, **changes: object) -> Leaf:
    fields: dict[str, object] = {
        "id": f"{module}/{stage}.{name}",
        "module": module,
        "stage": stage,
        "op": f"aten::{name}",
        "function": "forward",
        "category": getattr(layer, "category", Category.LINEAR),
        "layer": layer,
        "calls": 1,
        "fused_bytes": layer.traffic().bytes,  # type: ignore[attr-defined]
    }
    return Leaf(**{**fields, **changes})  # type: ignore[arg-type]


def _node(name: str, parent: str | None, class_name: str, **changes: object) -> ModuleNode:
    fields: dict[str, object] = {
        "id": name,
        "class_name": class_name,
        "parent": parent,
        "instances": 1,
        "series": 1,
        "parallel": {"prefill": 1},
        "calls": {"prefill": 1, "decode": 1},
        "parameters": 0,
        "parameter_bytes": 0,
        "fan_in": 1,
        "fan_out": 1,
    }
    return ModuleNode(**{**fields, **changes})  # type: ignore[arg-type]


def toy_model() -> AnalyticModel:
    """Return the model: wrapper `model` (with layers and experts), `lm_head`, and `spare` that never runs."""
    modules = (
        _node("", None, "Toy"),
        _node("model", "", "ToyModel"),
        _node("model.layers.[0-1]", "model", "Layer", instances=2, series=2),
        _node("model.layers.[0-1].up", "model.layers.[0-1]", "Linear", instances=2, parameters=2000),
        _node("model.layers.[0-1].act", "model.layers.[0-1]", "SiLU", instances=2),
        _node("model.experts", "model", "Experts", parameters=64),
        _node("model.spare", "model", "Linear", parameters=7, calls={}, parallel={}),
        _node("lm_head", "", "Linear", parameters=80, parameter_bytes=320),
    )
    leaves = (
        _leaf("linear", "model.layers.[0-1].up", "prefill", UP, calls=2),
        _leaf("silu", "model.layers.[0-1].act", "prefill", ACT, calls=2, fused_bytes=0),
        _leaf(
            "grouped_linear",
            "model.experts",
            "prefill",
            EXPERTS,
            exactness=Exactness.APPROXIMATED,
            note="experts are picked uniformly",
        ),
        _leaf("linear", "lm_head", "prefill", HEAD),
        _leaf("cat", "model", "decode", GROW),
        _leaf("linear", "model.layers.[0-1].up", "decode", STEP, calls=2),
        _leaf("mystery", "", "decode", ODD, exactness=Exactness.UNCLASSIFIED),
    )
    early = PeakPoint(
        at="aten::linear",
        module="lm_head",
        activation_bytes=100 * B * S,
        kv_cache_bytes=0,
        input_bytes=8 * B,
        live=(LiveTensor(name="logits", module="lm_head", op="aten::linear", role="activation", bytes=64 * B * S),),
    )
    late = PeakPoint(
        at="aten::silu",
        module="model.layers.[0-1].act",
        activation_bytes=10 * B * S + 2000,
        kv_cache_bytes=0,
        input_bytes=0,
        live=(),
    )
    growing = PeakPoint(
        at="aten::cat",
        module="model",
        activation_bytes=8,
        kv_cache_bytes=16 * B * T,
        input_bytes=0,
        live=(LiveTensor(name="k", module="model", op="aten::cat", role="kv_cache", bytes=16 * B * T),),
    )
    return AnalyticModel(
        name="toy",
        variant={"dtype": "bf16", "attention": "none"},
        dims={"B": "batch", "S": "tokens", "T": "cached tokens"},
        parameters=2151,
        parameter_bytes=4302,
        load_bytes=8604,
        stages=(
            Stage(
                name="prefill",
                description="all tokens",
                dims=("B", "S"),
                weight_bytes=4288,
                kv_cache_bytes=8 * B * S,
                peaks=(early, late),
            ),
            Stage(
                name="decode",
                description="one token",
                dims=("B", "T"),
                weight_bytes=128,
                kv_cache_bytes=8 * B * T + 8 * B,
                peaks=(growing,),
            ),
        ),
        modules=modules,
        leaves=leaves,
        free=(FreeOps(module="model", stage="prefill", op="aten::view", calls=3),),
        edges=(Edge(stage="prefill", source="model", target="lm_head", tensors=1, bytes=8 * B * S),),
        provenance={"torch": "0", "dsocr_graph": "0"},
    )


def toy_workload() -> Workload:
    """Return one page: a prefill of 2 documents of 5 tokens, then three decode steps at T = 5, 6, 7."""
    return Workload(
        name="toy pages",
        items=(
            WorkloadItem(
                name="page",
                documents=2,
                runs=(
                    StageRun(stage="prefill", count=1, bindings={"B": 2, "S": 5}),
                    StageRun(stage="decode", count=3, bindings={"B": 2, "T": 5}, sweep="T"),
                ),
                facts={"width": 640, "height": 480, "context_tokens": 5, "new_tokens": 4},
            ),
        ),
        facts={"batch": 2},
    )


# Order of calls: of prefill a view in the wrapper before each of the two layers and before the experts.
#   positions 0 up, 1 act, 2 experts, 3 head, 4 the view; of decode 0 cat, 1 up, 2 mystery
SCHEDULES = {"prefill": (4, 0, 1, 4, 0, 1, 4, 2, 3), "decode": (0, 1, 1, 2)}
FOLDED = ("model.layers.[0-1]", "model.layers.[0-1].up", "model.layers.[0-1].act")


def scheduled_toy_model() -> AnalyticModel:
    """Return the model as a capture gives it: with the order of its calls, and the call of each leaf."""
    model = toy_model()
    x = TensorArgument(dtype=DType.BF16, shape=("B*S", 4), strides=(4, 1))
    return evolve(
        model,
        stages=tuple(evolve(stage, schedule=SCHEDULES[stage.name]) for stage in model.stages),
        modules=tuple(
            evolve(node, calls={"prefill": 2, "decode": 2}) if node.id in FOLDED else node for node in model.modules
        ),
        leaves=tuple(
            evolve(leaf, signature=Signature(op=leaf.op, overload="default", arguments={"input": x}))
            for leaf in model.leaves
        ),
    )


# Seconds of one call, by stage and position, and what bounds it; a view takes the host half a second. In eleven
# sampled runs, all calls but views take 0.5, 0.6, ... 1.5 times as long: p10 is 0.6 times, p90 1.4 times.
#   prefill: up 2*1, act 2*2, experts 3, head 4: 13 s, and 1.5 s of views: 14.5 s, 9.3 s to 19.7 s
#   decode:  cat 1, up 2*2, mystery 3: 8 s a step, 4.8 s to 11.2 s
WORK = {
    "prefill": ((1.0, "matrix_units"), (2.0, "memory"), (3.0, "matrix_units"), (4.0, "vector_units")),
    "decode": ((1.0, "memory"), (2.0, "memory"), (3.0, "memory")),
}
VIEW = 0.5
FACTORS = np.arange(5, 16) / 10


@frozen(kw_only=True)
class ToyClock:
    """A time model that knows how long each call of the toy takes."""

    kind: str = "cpu"
    runtime: str = "eager"

    @property
    def facts(self) -> PredictionFacts:
        """A machine without a name in any table."""
        return PredictionFacts(
            method="calibration",
            traffic="measured",
            device=DeviceFacts(
                key=self.kind,
                name="toy machine",
                matrix_flops_per_second={"bf16": 1e12},
                vector_flops_per_second=1e11,
                bytes_per_second=1e10,
                memory_bytes=1 << 30,
            ),
            runtime=self.runtime,
            source={"date": "2026-01-02", "torch": "2.13.0"},
        )

    def times(self, model: AnalyticModel, run: StageRun, binding: Binding) -> Mapping[tuple[str, Category], Time]:
        """Return the same seconds at all sizes, as many times as there are executions."""
        del binding
        cells: dict[tuple[str, Category], Time] = {}
        for leaf, (seconds, bound) in zip(model.leaves_by_stage[run.stage], WORK[run.stage], strict=True):
            busy = seconds * leaf.calls * run.count
            key = (leaf.module, leaf.category)
            cells[key] = cells.get(key, Time()) + Time(**{bound: busy}, draws=busy * FACTORS)
        for free in model.free_by_stage[run.stage]:
            waiting = VIEW * free.calls * run.count
            cells[free.module, Category.HOST] = Time(host=waiting, draws=np.full(len(FACTORS), waiting))
        return cells

    def calls(self, model: AnalyticModel, stage: str, bindings: Mapping[str, int]) -> tuple[CallTime, ...]:
        """Return the calls one after the other, as on a CPU."""
        del bindings
        placed: list[CallTime] = []
        now = 0.0
        (schedule,) = (each.schedule for each in model.stages if each.name == stage)
        for position in schedule:
            is_view = position >= len(WORK[stage])
            seconds, bound = (VIEW, "host") if is_view else WORK[stage][position]
            placed.append(
                CallTime(
                    begin=now,
                    seconds=seconds,
                    host_begin=now,
                    host_seconds=seconds if is_view else 0.0,
                    device_seconds=0.0 if is_view else seconds,
                    bound_by=bound.replace("_", " "),
                )
            )
            now += seconds
        return tuple(placed)

    def statement(self, model: AnalyticModel, workload: Workload) -> tuple[SourceShare, ...]:
        """Say that products were measured and the rest was interpolated, with some of it held."""
        del model, workload
        return (
            SourceShare(family="gemm", method=Method.EXACT, seconds=30.0, calls=9),
            SourceShare(family="memory", method=Method.BRACKET, seconds=8.0, calls=5),
            SourceShare(family="memory", method=Method.HOLD, seconds=2.0, calls=1),
        )
