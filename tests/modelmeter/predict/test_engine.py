"""Engine: what runs as one kernel, and times that add up by hand on a model of one decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import modelmeter
from modelmeter.categories import Category
from modelmeter.devices import load_device
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.evaluate import evaluate, evaluate_stage
from modelmeter.expert_counts import distinct_experts, fewest_routing, most_routing, uniform_routing
from modelmeter.layers import (
    Activation,
    BaseLayer,
    Conv2d,
    DataMovement,
    GroupedLinear,
    Linear,
    Matmul,
    MoEExperts,
    Operand,
    ScaledDotProductAttention,
)
from modelmeter.model import AnalyticModel, Edge, Leaf, ModuleNode, PeakPoint, Stage
from modelmeter.predict.device_records import DeviceRecord
from modelmeter.predict.engine import GRAPH_LAUNCH, Engine, EngineDTypeError, UntabledKernelError
from modelmeter.predict.engine_calls import call_of
from modelmeter.predict.engine_plan import EngineKernel, Role, plan_kernels
from modelmeter.predict.kernel_calls import Attention, Experts, Gemm, Product, Streaming, Untabled
from modelmeter.predict.kernel_time import Method
from modelmeter.predict.lattice import Lattice
from modelmeter.predict.op_tables import ExpertSite, OpTables
from modelmeter.predict.schedule import UnscheduledModelError
from modelmeter.predict.table_times import TableTimes
from modelmeter.signature import Signature, TensorArgument
from modelmeter.workload import StageRun, Workload, WorkloadItem

B, T = symbol("B"), symbol("T")
H200 = load_device("h200")
RECORD = DeviceRecord(
    system="h200_sxm",
    matrix_flops={"bf16": 989e12},
    memory_bandwidth=4.8e12,
    memory_bytes=141 << 30,
    power=700,
    memory_efficiency=0.8,
    kernel_latency=3e-6,
)


def bf16(elements: object) -> Operand:
    """Return a tensor."""
    return Operand(elements=elements, dtype=DType.BF16)


def linear(in_features: int, out_features: int, dtype: DType = DType.BF16) -> Linear:
    """Return a linear layer over B rows."""
    return Linear(rows=B, in_features=in_features, out_features=out_features, bias=False, dtype=dtype)


SILU = Activation(
    op="silu", elements=512 * B, flops_per_element=5, reads=(bf16(512 * B),), writes=(bf16(512 * B),), dtype=DType.BF16
)
APPEND = DataMovement(op="cat", reads=(bf16(128 * B * T), bf16(128 * B)), writes=(bf16(128 * B * T + 128 * B),))
STEP = ScaledDotProductAttention(
    batch=B,
    heads=2,
    kv_heads=2,
    query_length=1,
    key_length=T + 1,
    head_dim=64,
    value_head_dim=64,
    causal=False,
    dtype=DType.BF16,
)
# One layer twice: q, k; append; attend; out; gate, silu, up, silu again; down.
CALLS: tuple[tuple[str, str, BaseLayer], ...] = (
    ("attn.q", "linear", linear(128, 128)),
    ("attn.k", "linear", linear(128, 128)),
    ("attn", "cat", APPEND),
    ("attn", "scaled_dot_product_attention", STEP),
    ("attn.out", "linear", linear(128, 128)),
    ("mlp.gate", "linear", linear(128, 512)),
    ("mlp.act", "silu", SILU),
    ("mlp.up", "linear", linear(128, 512)),
    ("mlp", "silu", SILU),
    ("mlp.down", "linear", linear(512, 128)),
)
# Who reads whose result.
READS = {
    "attn.q": "",
    "attn.k": "",
    "attn": "attn.k",
    "attn.out": "attn",
    "mlp.gate": "attn.out",
    "mlp.up": "attn.out",
    "mlp.down": "mlp",
}


def leaf(module: str, op: str, layer: BaseLayer, calls: int = 2, fused_bytes: object = None) -> Leaf:
    """Return a call of the layers, with an operand for its message."""
    operand = TensorArgument(dtype=DType.BF16, shape=("B", 128), strides=(128, 1))
    return Leaf(
        id=f"{module}/{op}",
        module=module,
        stage="decode",
        op=f"aten::{op}",
        function="forward",
        category=layer.category,
        layer=layer,
        calls=calls,
        fused_bytes=layer.traffic().bytes if fused_bytes is None else fused_bytes,
        signature=Signature(op=f"aten::{op}", overload="default", arguments={"self": operand}),
    )


def model_of(leaves: Sequence[Leaf], schedule: Sequence[int], reads: dict[str, str] | None = None) -> AnalyticModel:
    """Return a model of one stage whose calls run in some order."""
    reads = reads or {}
    names = dict.fromkeys(["", *(name.rpartition(".")[0] for name in reads), *(item.module for item in leaves)])
    nodes = tuple(
        ModuleNode(
            id=name,
            class_name="Module",
            parent=None if name == "" else name.rpartition(".")[0],
            instances=1,
            series=1,
            parallel={"decode": 1},
            calls={"decode": 1},
            parameters=0,
            parameter_bytes=0,
            fan_in=1,
            fan_out=1,
        )
        for name in names
    )
    peak = PeakPoint(at="aten::linear", module="", activation_bytes=1, kv_cache_bytes=0, input_bytes=0, live=())
    stage = Stage(
        name="decode",
        description="",
        dims=("B", "T"),
        weight_bytes=0,
        kv_cache_bytes=0,
        peaks=(peak,),
        schedule=tuple(schedule),
    )
    return AnalyticModel(
        name="layer",
        variant={"dtype": "bf16"},
        dims={"B": "documents", "T": "cached tokens"},
        parameters=0,
        parameter_bytes=0,
        load_bytes=0,
        stages=(stage,),
        modules=nodes,
        leaves=tuple(leaves),
        free=(),
        edges=tuple(
            Edge(stage="decode", source=source, target=target, tensors=1, bytes=2) for target, source in reads.items()
        ),
    )


def layer_model() -> AnalyticModel:
    """Return the decoder layer, run twice."""
    return model_of([leaf(*call) for call in CALLS], [*range(10), *range(10)], READS)


def kernels_of(model: AnalyticModel) -> list[tuple[Role, list[str], int]]:
    """Return role, modules and calls of each kernel."""
    return [
        (kernel.role, [item.module for item in kernel.leaves], kernel.calls)
        for kernel in plan_kernels(model, model.stages[0].name)
    ]


def engine(*, physical: bool = True, **tables: object) -> Engine:
    """Return an engine on an H200 whose every product takes 5 us and every attention 10 us, whatever its sizes."""
    even = {
        "gemm": Lattice(axes=("n", "k", "m"), points={(1, 1, 1): 5e-6}),
        "generation_attention": Lattice(axes=("d", "g", "h", "b", "s"), points={(64, 1, 2, 1, 2): 10e-6}),
    }
    times = TableTimes(device=H200, tables=OpTables(source={"tables": "a test"}, **{**even, **tables}), record=RECORD)
    return Engine(table_times=times, physical=physical)


def workload(*runs: StageRun) -> Workload:
    """Return a workload of one item."""
    return Workload(name="test", items=(WorkloadItem(name="item", documents=1, runs=runs),))


# --- what runs as one kernel


def test_projections_of_one_input_are_one_product() -> None:
    """Query and key join, gate and up join across the activation between them; out and down stand alone."""
    assert kernels_of(layer_model()) == [
        (Role.GEMM, ["attn.q", "attn.k"], 2),
        (Role.STREAMING, ["attn"], 2),
        (Role.ATTENTION, ["attn"], 2),
        (Role.GEMM, ["attn.out"], 2),
        (Role.GEMM, ["mlp.gate", "mlp.up"], 2),
        (Role.STREAMING, ["mlp.act", "mlp"], 2),
        (Role.GEMM, ["mlp.down"], 2),
    ]


def test_layers_in_a_row_do_not_join() -> None:
    """The second reads what the first wrote, though their sizes and parents are equal."""
    calls = [leaf("0", "linear", linear(128, 128), 1), leaf("1", "linear", linear(128, 128), 1)]
    assert len(kernels_of(model_of(calls, [0, 1], {"0": "", "1": "0"}))) == 2


def test_a_layer_called_twice_in_a_row_is_two_kernels() -> None:
    """Folded instances share an id; one product cannot hold a layer twice."""
    calls = [leaf("0", "linear", linear(128, 128))]
    assert kernels_of(model_of(calls, [0, 0], {"0": ""})) == [(Role.GEMM, ["0"], 2)]


@given(st.permutations(range(10)), st.integers(1, 3))
def test_every_call_runs_once_in_whatever_order(order: list[int], repeats: int) -> None:
    """Law: over all kernels each call is there as often as in the schedule."""
    model = model_of([leaf(*call, calls=repeats) for call in CALLS], order * repeats, READS)
    counts: dict[str, int] = {}
    for kernel in plan_kernels(model, model.stages[0].name):
        for item in kernel.leaves:
            counts[item.id] = counts.get(item.id, 0) + kernel.calls
    assert counts == {item.id: repeats for item in model.leaves}


def test_appending_to_the_cache_moves_the_new_rows_only() -> None:
    """128 B elements are read and written, 2 bytes each: 512 B bytes, at any number of cached tokens."""
    kernel = plan_kernels(layer_model(), layer_model().stages[0].name)[1]
    assert call_of(kernel, {"B": 3, "T": 1000}, uniform_routing) == Streaming(bytes=1536, vector_flops=0)


def test_a_fused_kernel_reads_what_the_product_before_it_wrote() -> None:
    """SiLU fused into its producer reads nothing; the table's product has written 512 B elements, so they are read."""
    gate = leaf("gate", "linear", linear(128, 512), 1, fused_bytes=linear(128, 512).traffic().bytes - 1024 * B)
    silu = leaf("act", "silu", SILU, 1, fused_bytes=1024 * B)
    model = model_of([gate, silu], [0, 1])
    streaming = plan_kernels(model, model.stages[0].name)[1]
    assert call_of(streaming, {"B": 1, "T": 1}, uniform_routing) == Streaming(bytes=2048, vector_flops=2560)


def test_what_fusion_leaves_nothing_to_move_costs_nothing() -> None:
    """No bytes, no kernel."""
    model = model_of([leaf("act", "silu", SILU, 1, fused_bytes=0)], [0])
    assert call_of(plan_kernels(model, model.stages[0].name)[0], {"B": 1, "T": 1}, uniform_routing) is None


def test_a_model_without_an_order_is_refused() -> None:
    """A model written by hand says nothing of what may be fused."""
    with pytest.raises(UnscheduledModelError, match=r"stage 'decode' of layer .*roofline"):
        kernels_of(model_of([leaf(*CALLS[0])], []))


# --- from layers to kernels


def product_call(layer: BaseLayer) -> object:
    """Return the kernel of a product at B = 2, T = 7."""
    kernel = EngineKernel(role=Role.OTHER_PRODUCT, leaves=(leaf("", "op", layer),), calls=1)
    return call_of(kernel, {"B": 2, "T": 7}, uniform_routing)


def test_joined_projections_are_as_wide_as_their_sum() -> None:
    """Query and key of 128 each over 3 rows."""
    first = plan_kernels(layer_model(), layer_model().stages[0].name)[0]
    assert call_of(first, {"B": 3, "T": 7}, uniform_routing) == Gemm(rows=3, out_features=256, in_features=128)


def test_a_step_of_attention() -> None:
    """One query of two heads over 7 cached keys and its own."""
    kernel = EngineKernel(role=Role.ATTENTION, leaves=(leaf("", "op", STEP),), calls=1)
    expected = Attention(batch=2, heads=2, kv_heads=2, query_length=1, key_length=8, head_dim=64)
    assert call_of(kernel, {"B": 2, "T": 7}, uniform_routing) == expected


def test_a_convolution_is_a_product_over_its_taps() -> None:
    """B * 4 * 4 rows, 8 columns, 3 * 2 * 2 = 12 taps: 2 * 32 * 8 * 12 = 6144 FLOPs."""
    patches = Conv2d(
        batch=B,
        in_channels=3,
        out_channels=8,
        in_height=8,
        in_width=8,
        out_height=4,
        out_width=4,
        kernel_height=2,
        kernel_width=2,
        bias=False,
        dtype=DType.BF16,
    )
    call = product_call(patches)
    assert isinstance(call, Product)
    assert (call.family, call.like) == ("convolution", Gemm(rows=32, out_features=8, in_features=12))
    assert (call.work.flops, call.work.cold_bytes) == (6144, 192)


def test_products_in_a_batch_are_one_with_the_rows_of_all() -> None:
    """2 products of 5 rows."""
    call = product_call(Matmul(batch=B, m=5, k=4, n=3, dtype=DType.BF16))
    assert isinstance(call, Product)
    assert (call.family, call.like) == ("batched product", Gemm(rows=10, out_features=3, in_features=4))


def test_a_product_in_fp32_is_in_no_table() -> None:
    """The router: 2 * 2 * 128 * 64 FLOPs on vector units."""
    call = product_call(linear(128, 64, DType.FP32))
    assert isinstance(call, Untabled)
    assert (call.family, call.work.flops, call.on_matrix_units) == ("fp32 product", 32768, False)


ACTIVE = distinct_experts(8, 2, B)
GATE = GroupedLinear(rows=2 * B, in_features=64, out_features=32, experts=8, active_experts=ACTIVE, dtype=DType.BF16)
DOWN = evolve(GATE, in_features=32, out_features=64)


def test_a_module_of_experts_is_one_call() -> None:
    """Gate, activation, up and down of 8 experts, 2 per token, at 4 tokens: 8 (1 - (1 - 2/8)^4) = 5.47 are active."""
    layers = (GATE, SILU, GATE, DOWN)
    calls = [leaf("experts", f"op{index}", layer, 1) for index, layer in enumerate(layers)]
    model = model_of(calls, [0, 1, 2, 3])
    (kernel,) = plan_kernels(model, model.stages[0].name)
    call = call_of(kernel, {"B": 4, "T": 1}, uniform_routing)
    assert isinstance(call, Experts)
    assert (call.tokens, call.hidden_size, call.intermediate_size) == (4, 64, 32)
    assert (call.experts_per_token, call.experts, round(call.active_experts, 2)) == (2, 8, 5.47)
    fewest = call_of(kernel, {"B": 4, "T": 1}, fewest_routing)
    assert isinstance(fewest, Experts)
    assert fewest.active_experts == 2


def test_the_layer_of_a_whole_block_is_the_same_call() -> None:
    """MoEExperts, as models written by hand have it."""
    block = MoEExperts(
        tokens=B,
        experts=8,
        experts_per_token=2,
        hidden_size=64,
        intermediate_size=32,
        gated=True,
        dtype=DType.BF16,
    )
    kernel = EngineKernel(role=Role.EXPERTS, leaves=(leaf("", "op", block),), calls=1)
    call = call_of(kernel, {"B": 4, "T": 1}, most_routing)
    assert call == Experts(
        tokens=4, hidden_size=64, intermediate_size=32, experts_per_token=2, experts=8, active_experts=8
    )


def test_experts_without_a_gate_are_in_no_table() -> None:
    """Two products: 2 * 8 * 64 * 32 FLOPs each at 4 tokens."""
    kernel = EngineKernel(role=Role.EXPERTS, leaves=(leaf("", "up", GATE), leaf("", "down", DOWN)), calls=1)
    call = call_of(kernel, {"B": 4, "T": 1}, uniform_routing)
    assert isinstance(call, Untabled)
    assert (call.family, call.work.flops, call.on_matrix_units) == ("experts", 65536, True)


# --- times


def test_times_add_up_by_hand() -> None:
    """Per layer four products of 5 us, one attention of 10 us, two memory-bound kernels of 3 us and bytes at 3.84e12/s.

    At B = 1 appending moves 512 bytes and the two SiLUs 2 * 2048: 4608 / 3.84e12 = 1.2 ns. The products' limits are the
    table's 5 us and some ns of bytes: the tolerance. Two layers and one launch of 5 us: 2 * 36 + 5 = 77 us.
    """
    report = evaluate_stage(layer_model(), "decode", time_model=engine(), B=1, T=1)
    time = report.total.time
    assert time is not None
    assert time.seconds == pytest.approx(77e-6, rel=0.02)
    assert time.host == GRAPH_LAUNCH
    assert report.categories[Category.HOST].time is not None


def test_the_time_of_a_joined_product_goes_to_its_layers_by_width() -> None:
    """Gate and up are as wide as one another; both together take one product's time."""
    modules = evaluate_stage(layer_model(), "decode", time_model=engine(), B=1, T=1).modules
    gate, up, out = (modules[name].own.time for name in ("mlp.gate", "mlp.up", "attn.out"))
    assert gate is not None
    assert up is not None
    assert out is not None
    assert gate.seconds == pytest.approx(up.seconds)
    assert gate.seconds + up.seconds == pytest.approx(out.seconds, rel=0.02)


@given(batch=st.integers(1, 8), start=st.integers(1, 300), count=st.integers(1, 9))
def test_a_short_sweep_is_the_sum_of_its_steps(batch: int, start: int, count: int) -> None:
    """Law: up to nine steps are evaluated one by one, launches included."""
    model, clock = layer_model(), engine()
    swept = evaluate_stage(model, "decode", count=count, sweep="T", time_model=clock, B=batch, T=start).total.time
    steps = [evaluate_stage(model, "decode", time_model=clock, B=batch, T=start + i).total.time for i in range(count)]
    assert swept is not None
    assert swept.seconds == pytest.approx(sum(step.seconds for step in steps if step), rel=1e-9)


def test_calls_of_one_group_err_together() -> None:
    """Gate and up rest on the same points: their errors have one sign in every sampled run."""
    modules = evaluate_stage(layer_model(), "decode", time_model=engine(), B=1, T=1).modules
    gate, up = modules["mlp.gate"].own.time, modules["mlp.up"].own.time
    assert gate is not None
    assert up is not None
    assert gate.draws is not None
    assert up.draws is not None
    assert np.allclose(gate.draws / gate.seconds, up.draws / up.seconds)
    assert gate.p10 is not None
    assert gate.p90 is not None
    assert gate.p10 < gate.seconds < gate.p90


def test_the_experts_that_sampled_runs_touch_spread_the_time() -> None:
    """Under uniform routing 4 tokens touch fewer or more experts than expected; under another they do not vary."""
    site = ExpertSite(
        hidden_size=64,
        intermediate_size=32,
        experts_per_token=2,
        experts=8,
        balanced=True,
        times=Lattice(axes=("tokens",), points={(1,): 40e-6}),
    )
    large = evolve(GATE, in_features=4096, out_features=4096)  # 100 MB an expert, so that weights decide
    model = model_of([leaf("experts", f"op{index}", large, 1) for index in range(3)], [0, 1, 2])
    clock = engine(experts=(site,))
    spreads = []
    for routing in (uniform_routing, most_routing):
        time = evaluate_stage(model, "decode", time_model=clock, routing=routing, B=4, T=1).total.time
        assert time is not None
        assert time.draws is not None
        spreads.append(float(np.std(np.log(time.draws))))
    assert spreads[0] > spreads[1]


def test_the_statement_accounts_for_all_device_time() -> None:
    """By family and method, the largest first; with the launch it is the total."""
    model, clock = layer_model(), engine()
    run = StageRun(stage="decode", count=3, bindings={"B": 1, "T": 5}, sweep="T")
    shares = clock.statement(model, workload(run))
    total = evaluate(model, workload(run), time_model=clock).total.total.time
    assert total is not None
    assert sum(share.seconds for share in shares) + 3 * GRAPH_LAUNCH == pytest.approx(total.seconds)
    assert [(share.family, share.method, share.calls) for share in shares] == [
        ("gemm", Method.HOLD, 24),
        ("attention", Method.HOLD, 6),
        ("memory", Method.PHYSICAL, 12),
    ]


def test_facts_name_the_tables_and_what_is_done_without() -> None:
    """A report says where its times come from."""
    facts = engine().facts
    assert (facts.method, facts.runtime, facts.traffic, facts.device.key) == ("tables", "engine", "fused", "h200")
    assert facts.source == {"tables": "a test", "without a table": "rates of the device record"}


def test_a_kernel_without_a_table_is_an_error_unless_rates_are_allowed() -> None:
    """The message has the call with its operands, the tables, and the ways out."""
    with pytest.raises(UntabledKernelError) as caught:
        evaluate_stage(layer_model(), "decode", time_model=engine(physical=False), B=1, T=1)
    message = str(caught.value)
    assert "a test has no table of memory kernels on h200: attn/cat, aten::cat.default(self=bf16[B,128])" in message
    assert "physical=True" in message
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("variant", [{"dtype": "fp32"}, {}])
def test_a_model_in_another_type_is_refused(variant: dict[str, str]) -> None:
    """Engines run bf16 or fp16; a type that nobody names is not guessed."""
    model = evolve(layer_model(), variant=variant)
    with pytest.raises(EngineDTypeError, match="engines, and the tables measured with them, run bf16 or fp16"):
        evaluate_stage(model, "decode", time_model=engine(), B=1, T=1)


# --- the installed package


def _installed() -> bool:
    try:
        distribution("aiconfigurator-core")
    except PackageNotFoundError:
        return False
    return find_spec("pyarrow") is not None


@pytest.mark.skipif(not _installed(), reason="needs the extra `tables`: pip install -e '.[tables]'")
@pytest.mark.parametrize("key", ["h200", "h100-sxm", "a100-80gb-sxm", "l40s"])
def test_deepseek_ocr_lies_above_the_roofline_by_a_small_factor(key: str) -> None:
    """Matrix-bound work never beats the datasheet and is within a factor of 4; half of a step's time is measured."""
    model, device = modelmeter.load("deepseek-ocr"), load_device(key)
    clock = Engine.on(device, physical=True)
    for stage, sizes in (("vision_global", {}), ("prefill", {"B": 1, "S": 913, "N": 903})):
        predicted = evaluate_stage(model, stage, time_model=clock, **sizes).total.time
        bound = evaluate_stage(model, stage, device=device, fused=True, **sizes).total.time
        assert predicted is not None
        assert bound is not None
        assert bound.matrix_units < predicted.matrix_units
        assert bound.seconds < predicted.seconds < 4 * bound.seconds
    step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 913})
    shares = clock.statement(model, workload(step))
    rates = sum(share.seconds for share in shares if share.method is Method.PHYSICAL)
    assert rates < 0.5 * sum(share.seconds for share in shares)
