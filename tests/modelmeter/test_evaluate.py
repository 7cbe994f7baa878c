"""evaluate: totals worked by hand, laws that every split keeps, memory, coverage and errors."""

from __future__ import annotations

from types import ModuleType

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.binding import Binding, degree_in, newton_sum
from modelmeter.categories import Category
from modelmeter.costs import Amount
from modelmeter.devices import load_device
from modelmeter.errors import DimError, ModelMeterError, UnboundDimError
from modelmeter.evaluate import UnknownStageError, evaluate, evaluate_stage
from modelmeter.expert_counts import fewest_routing, most_routing
from modelmeter.model import SizeLimitError
from modelmeter.reports.rollup import component_of
from modelmeter.workload import StageRun, Workload, WorkloadItem

# E = 8 experts, 2 per token, 10 tokens, uniform: 8 * (1 - (3/4)^10) = 8 * (1 - 59049/1048576) = 7.5494918...
DISTINCT = 8 * (1 - 59049 / 1048576)


def test_prefill_totals_worked_by_hand(toy: ModuleType) -> None:
    """Ten tokens cost what the operators add up to on paper."""
    cost = evaluate_stage(toy.toy_model(), "prefill", B=2, S=5).total.cost
    # up 2 x 640, experts 320, head 2*10*4*16 = 1280
    assert cost.matmul_flops == 1280 + 320 + 1280
    # SiLU 2 x 320, bias of head 10*16
    assert cost.vector_flops == 640 + 160
    # head is fp32, so its 1280 + 160 run on CUDA cores beside SiLU's 640
    assert (cost.tensor_core_flops, cost.cuda_core_flops) == (1600, 2080)
    assert cost.calls == 2 + 2 + 1 + 1
    # up 2 x (64+80+160), SiLU 2 x (160+160), experts 160 read + 80 written + 32 of offsets + 16 a distinct expert,
    # head (80 weights + 40 read + 160 written) x 4 bytes
    assert cost.bytes == pytest.approx(608 + 640 + 272 + 16 * DISTINCT + 1120)
    # fused, SiLU's 640 bytes stay on chip
    assert cost.fused_bytes == pytest.approx(cost.bytes - 640)
    # weights: up 2 x 64, experts 16 each, head 320
    assert cost.weight_bytes_read == pytest.approx(128 + 16 * DISTINCT + 320)


def test_a_sweep_adds_up_its_steps(toy: ModuleType) -> None:
    """Three decode steps at T = 5, 6, 7 (T adds up to 18) cost the sum of the three."""
    cost = evaluate_stage(toy.toy_model(), "decode", count=3, sweep="T", B=2, T=5).total.cost
    # two layers of 2*(2T)*4*8 = 128 T
    assert cost.flops == 2 * 128 * 18
    # cat 16T read + 16T + 16 written; up 2 x (64 + 16T + 32T); mystery 24
    assert cost.bytes == (32 * 18 + 3 * 16) + 2 * (3 * 64 + 48 * 18) + 3 * 24
    assert cost.calls == 3 * 4


def test_own_and_inclusive_amounts_of_modules(toy: ModuleType) -> None:
    """A wrapper's inclusive amount is its own and its children's."""
    modules = evaluate_stage(toy.toy_model(), "prefill", B=2, S=5).modules
    assert modules["model.layers.[0-1]"].own.cost.flops == 0
    assert modules["model.layers.[0-1]"].inclusive.cost.flops == 1280 + 640
    assert modules["model"].inclusive.cost.flops == 1280 + 640 + 320
    assert "model.spare" not in modules


def test_report_totals_are_the_sum_of_stages_and_items(toy: ModuleType) -> None:
    """The workload is one prefill (3680 FLOPs) and three steps (4608 FLOPs)."""
    report = evaluate(toy.toy_model(), toy.toy_workload())
    assert report.total.total.cost.flops == 3680 + 4608
    assert {name: amount.cost.flops for name, amount in report.total.stages.items()} == {
        "prefill": 3680,
        "decode": 4608,
    }
    assert report.total.executions == {"prefill": 1, "decode": 3}
    assert report.items[0].breakdown.total == report.total.total
    assert report.documents == 2
    assert report.idle_modules == {"model.spare": 7}


def test_items_of_one_size_are_counted_each(toy: ModuleType) -> None:
    """Two equal pages cost twice one, though their runs are evaluated once."""
    one = toy.toy_workload()
    two = Workload(name="two", items=(one.items[0], evolve(one.items[0], name="again")))
    single, double = evaluate(toy.toy_model(), one), evaluate(toy.toy_model(), two)
    assert double.total.total.cost == single.total.total.cost * 2
    assert [item.memory[0].item for item in double.items] == ["page", "again"]


def _workload(batch: int, tokens: int, cached: int, steps: int) -> Workload:
    runs = (
        StageRun(stage="prefill", count=2, bindings={"B": batch, "S": tokens}),
        StageRun(stage="decode", count=steps, bindings={"B": batch, "T": cached}, sweep="T"),
    )
    return Workload(name="any", items=(WorkloadItem(name="page", documents=batch, runs=runs),))


@given(st.integers(1, 8), st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 300))
def test_every_split_adds_up(toy: ModuleType, batch: int, tokens: int, cached: int, steps: int) -> None:
    """Law: stages, components, categories, modules' own and the root's inclusive amounts equal the total."""
    report = evaluate(toy.toy_model(), _workload(batch, tokens, cached, steps))
    total = report.total
    cells = [amount for categories in total.module_categories.values() for amount in categories.values()]
    splits = [
        list(total.stages.values()),
        list(total.components.values()),
        list(total.categories.values()),
        [module.own for module in total.modules.values()],
        [total.modules[""].inclusive],
        cells,
        [modules[""].inclusive for modules in report.module_stages.values()],
        [item.breakdown.total for item in report.items],
    ]
    for split in splits:
        found = sum(split, Amount()).cost
        assert found.flops == total.total.cost.flops
        assert found.calls == total.total.cost.calls
        assert found.bytes == pytest.approx(total.total.cost.bytes, rel=1e-12)
    shares = report.coverage
    states = (shares.exact, shares.approximated, shares.unclassified)
    assert sum(state.flops for state in states) == total.total.cost.flops
    assert sum(state.calls for state in states) == total.total.cost.calls


@given(st.integers(1, 4), st.integers(1, 3000), st.integers(1, 40))
def test_sweep_equals_single_steps(toy: ModuleType, batch: int, cached: int, steps: int) -> None:
    """Law: a sweep costs what its executions cost one by one."""
    model = toy.toy_model()
    swept = evaluate_stage(model, "decode", count=steps, sweep="T", B=batch, T=cached).total
    single = sum((evaluate_stage(model, "decode", B=batch, T=cached + i).total for i in range(steps)), Amount())
    assert swept == single


_TEXTS = (
    "7",
    "3*T + 2",
    "2*T**2 - T + 5",
    "B*T**3",
    "T*(T - 1)*(T - 2)",
    "T*(T + 1)/2",
    "floor(T/3)",
    "Max(T, 40) + ceiling(T/7)",
    "16*distinct_experts(8, 2, B)*T",
    "distinct_experts(8, 2, B*T)",
)


@pytest.mark.parametrize("text", _TEXTS)
@given(start=st.integers(1, 5000), count=st.integers(1, 200))
def test_sum_of_an_expression_equals_brute_force(text: str, start: int, count: int) -> None:
    """Law: closed forms, and expressions that have none, equal the sum term by term."""
    binding = Binding(bindings={"B": 3, "T": start}, count=count, sweep="T")
    single = [Binding(bindings={"B": 3, "T": start + i}).sum(text) for i in range(count)]
    if all(isinstance(value, int) for value in single):
        assert binding.sum(text) == sum(single)
    else:
        assert binding.sum(text) == pytest.approx(sum(single), rel=1e-12)
    steps = binding.steps(text)
    assert (steps * count if isinstance(steps, int | float) else steps.sum()) == pytest.approx(sum(single), rel=1e-9)


def test_large_sums_stay_exact() -> None:
    """10**6 steps of 10**13 * T from T = 1: 10**13 * 10**6 * (10**6 + 1) / 2, far beyond a float's 2**53."""
    binding = Binding(bindings={"T": 1}, count=10**6, sweep="T")
    assert binding.sum("10000000000000*T") == 10**13 * (10**6 * (10**6 + 1) // 2)


def test_degrees_as_written() -> None:
    """Degrees add in products; functions of the dim are no polynomials, functions of others are constants."""
    assert degree_in("B*T*(T + 1)", "T") == 2
    assert degree_in("distinct_experts(64, 6, B)*T", "T") == 1
    assert degree_in("B**2", "T") == 0
    assert degree_in("Min(T, 9)", "T") is None
    assert degree_in("1/T", "T") is None
    assert degree_in("2**T", "T") is None


def test_newton_sum_refuses_what_is_no_polynomial_of_the_degree() -> None:
    """Squares 0, 1, 4 summed as if they were linear: the second difference is 2, not 0."""
    assert newton_sum(lambda i: i * i, 1, 10) is None
    assert newton_sum(lambda i: i / 2, 1, 10) is None


def test_components_open_up_a_wrapper(toy: ModuleType) -> None:
    """`model` owns 2071 of 2151 parameters (96 %), so its children are components; the folded layers stay whole."""
    component = component_of(toy.toy_model())
    assert component["model.layers.[0-1].up"] == "model.layers.[0-1]"
    assert component["lm_head"] == "lm_head"
    assert component["model"] == "model (own operators)"
    assert component[""] == "Toy (own operators)"


def test_stage_memory_takes_the_larger_peak_point(toy: ModuleType) -> None:
    """At S=5 the late point decides (10*10 + 2000 = 2100 > 1016), at S=50 the early one (100*100 + 16)."""
    model = toy.toy_model()
    few = evaluate_stage(model, "prefill", B=2, S=5).memory
    assert (few.peak_bytes, few.at, few.module) == (2100, "aten::silu", "model.layers.[0-1].act")
    many = evaluate_stage(model, "prefill", B=2, S=50).memory
    assert (many.peak_bytes, many.peak_input_bytes, many.at) == (10016, 16, "aten::linear")
    assert [(tensor.name, tensor.bytes) for tensor in many.live] == [("logits", 6400)]


def test_memory_of_a_sweep_is_that_of_its_last_step(toy: ModuleType) -> None:
    """Steps at T = 5, 6, 7: the cache needs 16*2*7 = 224 bytes at the last, and 8 of activations."""
    memory = evaluate_stage(toy.toy_model(), "decode", count=3, sweep="T", B=2, T=5).memory
    assert memory.bindings == {"B": 2, "T": 7}
    assert memory.peak_bytes == 232
    assert memory.kv_cache_bytes == 8 * 2 * 7 + 8 * 2


def test_peak_of_the_run(toy: ModuleType) -> None:
    """Loading needs 8604 bytes, running 4302 + 2100; without a load transient the prefill decides."""
    model, workload = toy.toy_model(), toy.toy_workload()
    memory = evaluate(model, workload).memory
    assert (memory.running_bytes, memory.peak_bytes, memory.decided_by) == (6402, 8604, "load")
    quick = evaluate(evolve(model, load_bytes=4302), workload).memory
    assert (quick.peak_bytes, quick.decided_by) == (6402, "prefill")


def test_routing_moves_weight_traffic_only(toy: ModuleType) -> None:
    """Ten tokens of 2 of 8 experts read 2 to 8 of them, 16 bytes each; FLOPs stay."""
    model, workload = toy.toy_model(), toy.toy_workload()
    report = evaluate(model, workload, routing=fewest_routing)
    (entry,) = report.moe
    assert (entry.experts, entry.top_k, entry.tokens) == (8, 2, 10)
    read, weights = entry.distinct_experts, entry.expert_weight_bytes_read
    assert (read.selected, read.fewest, read.most) == (2, 2, 8)
    assert (weights.selected, weights.fewest, weights.most) == (32, 32, 128)
    assert read.uniform == pytest.approx(DISTINCT)
    assert entry.stage_bytes.most - entry.stage_bytes.fewest == 128 - 32
    assert report.routing == "fewest_routing"
    most = evaluate(model, workload, routing=most_routing)
    assert most.total.total.cost.bytes - report.total.total.cost.bytes == 96
    assert most.total.total.cost.flops == report.total.total.cost.flops


def test_coverage_counts_every_state(toy: ModuleType) -> None:
    """Exact, approximated, free and unclassified calls of one prefill and three steps."""
    coverage = evaluate(toy.toy_model(), toy.toy_workload()).coverage
    # prefill 2 + 2 + 1 exact; each of three steps 1 cat + 2 linear
    assert coverage.exact.calls == 5 + 3 * 3
    assert (coverage.approximated.calls, coverage.approximated.flops) == (1, 320)
    assert coverage.free.calls == 3
    assert (coverage.unclassified.calls, coverage.unclassified.flops, coverage.unclassified.bytes) == (3, 0, 72)
    (odd,) = coverage.unclassified_ops
    assert (odd.op, odd.stage, odd.module, odd.calls) == ("aten::mystery", "decode", "", 3)
    (assumed,) = coverage.approximations
    assert assumed.note == "experts are picked uniformly"


def test_categories_keep_the_order_of_the_list(toy: ModuleType) -> None:
    """Categories that occur, in the order of `Category`."""
    found = list(evaluate(toy.toy_model(), toy.toy_workload()).total.categories)
    assert found == [Category.LINEAR, Category.ACTIVATION, Category.DATA_MOVEMENT, Category.UNCLASSIFIED]


def test_without_a_device_there_is_no_time(toy: ModuleType) -> None:
    """Time is None, not zero; with a device it is there and positive."""
    model, workload = toy.toy_model(), toy.toy_workload()
    assert evaluate(model, workload).total.total.time is None
    timed = evaluate(model, workload, device=load_device("h200"))
    assert timed.total.total.time is not None
    assert timed.total.total.time.seconds > 0


def test_unknown_stage_names_the_known_ones(toy: ModuleType) -> None:
    """A wrong stage is an error that says where it was asked for."""
    run = StageRun(stage="prefil", count=1, bindings={})
    workload = Workload(name="w", items=(WorkloadItem(name="page", documents=1, runs=(run,)),))
    with pytest.raises(UnknownStageError, match=r"(?s)prefil.*decode, prefill.*'page' in workload 'w'") as caught:
        evaluate(toy.toy_model(), workload)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ModelMeterError)


def test_unbound_dims_are_all_named(toy: ModuleType) -> None:
    """A run without sizes names the stage, every missing dim and what was given."""
    with pytest.raises(UnboundDimError, match=r"stage 'prefill' needs a size for dim B, S: .* given are none"):
        evaluate_stage(toy.toy_model(), "prefill")
    with pytest.raises(UnboundDimError, match=r"dim S: its dims are B, S, given are B=2"):
        evaluate_stage(toy.toy_model(), "prefill", B=2)


def test_a_size_for_an_unknown_dim_is_refused(toy: ModuleType) -> None:
    """A misspelt dim is no silent default."""
    with pytest.raises(DimError, match="toy has no dim s; its dims are B, S, T"):
        evaluate_stage(toy.toy_model(), "prefill", B=2, S=5, s=5)


def test_sizes_beyond_the_model_are_refused(toy: ModuleType) -> None:
    """The last step of a sweep counts too; the message names the limit."""
    limited = evolve(toy.toy_model(), limits={"S": 5, "T": 9})
    assert (
        evaluate_stage(limited, "prefill", B=2, S=5).total.cost
        == evaluate_stage(toy.toy_model(), "prefill", B=2, S=5).total.cost
    )
    with pytest.raises(SizeLimitError, match=r"stage 'prefill' runs at S = 6; toy has room for S up to 5"):
        evaluate_stage(limited, "prefill", B=2, S=6)
    assert evaluate_stage(limited, "decode", B=1, T=7, count=3, sweep="T").executions == 3
    with pytest.raises(SizeLimitError, match="runs at T = 10"):
        evaluate_stage(limited, "decode", B=1, T=7, count=4, sweep="T")
