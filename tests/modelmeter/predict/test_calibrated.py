"""Predictions from a calibration, on a model of three calls whose times can be added up by hand."""

import math

import attrs
import pytest

from modelmeter.categories import Category
from modelmeter.costs import Time
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.evaluate import EvaluationError, evaluate, evaluate_stage
from modelmeter.expert_counts import fewest_routing
from modelmeter.layers import Activation, GroupedLinear, Linear, Operand
from modelmeter.machine import Machine
from modelmeter.model import AnalyticModel, FreeOps, Leaf, ModuleNode, PeakPoint, Stage
from modelmeter.predict import Calibrated, MissingKernelTimeError, RuntimeNameError, UnscheduledModelError
from modelmeter.predict.calibration import (
    CalibratedModel,
    Calibration,
    CalibrationMismatchError,
    HostCosts,
    Peaks,
    Sample,
    Sentinel,
)
from modelmeter.predict.call_steps import MACHINE_SPREAD, machine_spread
from modelmeter.predict.kernel_time import Method
from modelmeter.signature import Signature, TensorArgument
from modelmeter.workload import StageRun, Workload, WorkloadItem

CPU = Machine(kind="cpu", device="a CPU", driver="", memory_bytes=1 << 30, threads=1, torch="2.13.0")
GPU = attrs.evolve(CPU, kind="cuda", device="a GPU", driver="590")
PEAKS = Peaks(matrix_flops={"fp32": 1e12}, vector_flops=1e12, bandwidth=1e9)
B = symbol("B")
X = TensorArgument(dtype=DType.FP32, shape=("B", 4), strides=(4, 1))
Y = TensorArgument(dtype=DType.FP32, shape=("B", 8), strides=(8, 1))
W = TensorArgument(dtype=DType.FP32, shape=(8, 4), strides=(4, 1), weight=True)
LINEAR = Signature(op="aten::linear", overload="default", arguments={"input": X, "weight": W})
SILU = Signature(op="aten::silu", overload="default", arguments={"self": Y})


def model() -> AnalyticModel:
    """Return two layers of linear, view and SiLU, folded: calls 0, 2, 1, 0, 2, 1 with the view as record 2."""
    up = Linear(rows=B, in_features=4, out_features=8, bias=False, dtype=DType.FP32)
    operand = Operand(elements=8 * B, dtype=DType.FP32)
    act = Activation(
        op="silu", elements=8 * B, flops_per_element=4, reads=(operand,), writes=(operand,), dtype=DType.FP32
    )
    leaves = tuple(
        Leaf(
            id=f"layers.[0-1]/{name}",
            module="layers.[0-1]",
            stage="step",
            op=signature.op,
            function="forward",
            category=category,
            layer=layer,
            calls=2,
            fused_bytes=layer.traffic().bytes,
            signature=signature,
        )
        for name, category, layer, signature in (
            ("linear", Category.LINEAR, up, LINEAR),
            ("silu", Category.ACTIVATION, act, SILU),
        )
    )
    nodes = {"": (None, "Toy", 1), "layers.[0-1]": ("", "Layer", 2)}
    peak = PeakPoint(at="aten::linear", module="", activation_bytes=1, kv_cache_bytes=0, input_bytes=0, live=())
    stage = Stage(
        name="step",
        description="",
        dims=("B",),
        weight_bytes=128,
        kv_cache_bytes=0,
        peaks=(peak,),
        schedule=(0, 2, 1, 0, 2, 1),
    )
    return AnalyticModel(
        name="toy",
        variant={},
        dims={"B": "documents"},
        parameters=32,
        parameter_bytes=128,
        load_bytes=128,
        stages=(stage,),
        modules=tuple(
            ModuleNode(
                id=name,
                class_name=kind,
                parent=parent,
                instances=count,
                series=count,
                parallel={},
                calls={"step": count},
                parameters=0,
                parameter_bytes=0,
                fan_in=0,
                fan_out=0,
            )
            for name, (parent, kind, count) in nodes.items()
        ),
        leaves=leaves,
        free=(FreeOps(module="layers.[0-1]", stage="step", op="aten::view", calls=2),),
        edges=(),
    )


def calibration(machine: Machine = CPU, **host: float) -> Calibration:
    """Return 4 ms for the linear layer and 1 ms for SiLU at B = 2, twice that at B = 8."""
    samples = tuple(
        Sample(signature=signature.at({"B": size}), seconds=(seconds,), launches=int(machine.kind == "cuda"))
        for size, factor in ((2, 1), (8, 2))
        for signature, seconds in ((LINEAR, 4e-3 * factor), (SILU, 1e-3 * factor))
    )
    return Calibration(
        machine=machine,
        date="2026-11-25",
        models=(CalibratedModel(name="toy", variant={"dtype": "fp32"}, points=()),),
        peaks=PEAKS,
        host=HostCosts(classes={"view": 0.5e-3, "module": 0.2e-3, "gemm": 3e-3, "elementwise": 3e-3}, **host),
        samples=samples,
    )


def test_on_a_cpu_every_call_and_view_adds_up() -> None:
    """Two of each call: 2 * (4 + 1 + 0.5) ms; 3 module calls (the root, the layer twice) of 0.2 ms: 11.6 ms."""
    time = Calibrated(calibration=calibration()).seconds(model(), "step", {"B": 2})
    assert time.seconds == pytest.approx(11.6e-3)
    assert time.host == pytest.approx(1.6e-3)


def test_on_a_cpu_every_call_and_view_takes_its_turn() -> None:
    """Six calls and views, 0.1 ms each beyond the 11.6 ms that they take in a row."""
    costs = {"view": 0.5e-3, "module": 0.2e-3, "turn": 0.1e-3}
    in_turn = attrs.evolve(calibration(), host=HostCosts(classes=costs))
    time = Calibrated(calibration=in_turn).seconds(model(), "step", {"B": 2})
    assert time.seconds == pytest.approx(11.6e-3 + 6 * 0.1e-3)
    # SiLU takes 1 ms, less than twice the 0.6 ms of a view in turn: its two calls count as the host's.
    assert time.host == pytest.approx(1.6e-3 + 6 * 0.1e-3 + 2 * 1e-3)


def test_between_two_sizes_the_time_is_between() -> None:
    """B = 4 is halfway between 2 and 8 in the logarithm: sqrt(2) times 10 ms, views and modules as before."""
    time = Calibrated(calibration=calibration()).seconds(model(), "step", {"B": 4})
    assert time.seconds == pytest.approx(2**0.5 * 10e-3 + 1.6e-3)


def ends(time: Time) -> tuple[float, float]:
    """Return p10 and p90 of a prediction, which has both."""
    assert time.p10 is not None
    assert time.p90 is not None
    return time.p10, time.p90


def test_the_interval_holds_the_centre_and_widens_with_the_method() -> None:
    """An interpolated time is less certain than a measured one."""
    predictor = Calibrated(calibration=calibration())
    widths: list[float] = []
    for size in (2, 4):
        time = predictor.seconds(model(), "step", {"B": size})
        low, high = ends(time)
        assert low < time.seconds < high
        widths.append((high - low) / time.seconds)
    assert widths[1] > widths[0]


def test_sentinels_widen_the_interval_of_a_machine_that_drifts() -> None:
    """Eight timings of one call, four of them 1.5 times the others: residuals of log(1.25) around the median 1.25."""
    steady = calibration()
    seconds = [1.0, 1.5] * 4
    sentinels = tuple(Sentinel(elapsed=float(index), name="copy", seconds=each) for index, each in enumerate(seconds))
    drifting = attrs.evolve(steady, sentinels=sentinels)
    assert machine_spread(steady).residuals == ()
    assert sorted(set(machine_spread(drifting).residuals)) == pytest.approx([math.log(1 / 1.25), math.log(1.5 / 1.25)])
    assert machine_spread(drifting).stated == MACHINE_SPREAD
    widths: list[float] = []
    for each in (steady, drifting):
        low, high = ends(Calibrated(calibration=each).seconds(model(), "step", {"B": 2}))
        widths.append(high - low)
    assert widths[1] > widths[0]


def test_on_a_gpu_a_slow_host_leaves_the_device_waiting() -> None:
    """Per call the host takes 3.1 ms, per view 0.6 ms, modules included; the kernels take 4 and 1 ms.

    Launched at 3.1, 6.8, 9.9 and 13.6 ms; the device runs 3.1-7.1, 7.1-8.1, 9.9-13.9 and 13.9-14.9 ms, so it waits
    3.1 ms for the first kernel and 1.8 ms for the third.
    """
    predictor = Calibrated(calibration=calibration(GPU))
    time = predictor.seconds(model(), "step", {"B": 2})
    assert (time.seconds, time.host) == (pytest.approx(14.9e-3), pytest.approx(4.9e-3))
    calls = predictor.calls(model(), "step", {"B": 2})
    assert [call.begin for call in calls if call.device_seconds] == pytest.approx([3.1e-3, 7.1e-3, 9.9e-3, 13.9e-3])


def test_a_cuda_graph_is_the_kernels_and_one_launch() -> None:
    """2 * (4 + 1) ms of kernels, 0.1 ms of launch."""
    predictor = Calibrated(calibration=calibration(GPU, launch=0.1e-3), runtime="cudagraph")
    assert predictor.seconds(model(), "step", {"B": 2}).seconds == pytest.approx(10.1e-3)


def test_calls_follow_the_schedule_and_add_up() -> None:
    """Six calls, views in the second and fifth place, one begun where the last ended."""
    predictor = Calibrated(calibration=calibration())
    calls = predictor.calls(model(), "step", {"B": 2})
    assert [call.bound_by == "host" for call in calls] == [False, True, False, False, True, False]
    assert sum(call.seconds for call in calls) == pytest.approx(11.6e-3)
    assert calls[3].begin == pytest.approx(5.8e-3)


def test_a_report_carries_the_prediction() -> None:
    """evaluate() takes the predictor: the report's total is the workload's time, host time a category of its own."""
    run = StageRun(stage="step", count=3, bindings={"B": 2})
    workload = Workload(name="three", items=(WorkloadItem(name="page", documents=2, runs=(run,)),))
    report = evaluate(model(), workload, time_model=Calibrated(calibration=calibration()))
    assert report.total.total.time is not None
    assert report.total.total.time.seconds == pytest.approx(3 * 11.6e-3)
    host = report.total.categories[Category.HOST]
    assert host.time is not None
    assert host.time.seconds == pytest.approx(3 * 2 * (0.5e-3 + 0.1e-3))
    assert report.prediction is not None
    assert report.prediction.device.name == "a CPU"


def test_a_sweep_is_summed() -> None:
    """B = 2 ... 8: every step between the ends' 11.6 ms and 21.6 ms."""
    run = StageRun(stage="step", count=7, bindings={"B": 2}, sweep="B")
    workload = Workload(name="sweep", items=(WorkloadItem(name="page", documents=1, runs=(run,)),))
    time = evaluate(model(), workload, time_model=Calibrated(calibration=calibration())).total.total.time
    assert time is not None
    by_hand = sum(10e-3 * (size / 2) ** 0.5 + 1.6e-3 for size in range(2, 9))
    assert time.seconds == pytest.approx(by_hand)


def test_the_statement_says_how_times_were_found() -> None:
    """At B = 2 all is exact: 8 ms of products, 2 ms of the rest."""
    run = StageRun(stage="step", count=1, bindings={"B": 2})
    workload = Workload(name="one", items=(WorkloadItem(name="page", documents=1, runs=(run,)),))
    shares = Calibrated(calibration=calibration()).statement(model(), workload)
    assert [(share.family, share.method, share.calls) for share in shares] == [
        ("gemm", Method.EXACT, 2),
        ("memory", Method.EXACT, 2),
    ]
    assert shares[0].seconds == pytest.approx(8e-3)


def test_a_device_and_a_time_model_exclude_each_other() -> None:
    """A roofline and a prediction are two answers."""
    import modelmeter

    with pytest.raises(EvaluationError, match="leave one out"):
        evaluate_stage(
            model(),
            "step",
            device=modelmeter.load_device("h200"),
            time_model=Calibrated(calibration=calibration()),
            B=2,
        )


def test_runtimes_that_cannot_be_are_refused() -> None:
    """No CUDA graph on a CPU, no unknown names."""
    with pytest.raises(RuntimeNameError, match="needs a GPU, the calibration is of a CPU; use 'eager'"):
        Calibrated(calibration=calibration(), runtime="cudagraph")
    with pytest.raises(RuntimeNameError, match=r"'fast' is not known.*eager, cudagraph"):
        Calibrated(calibration=calibration(), runtime="fast")
    with pytest.raises(RuntimeNameError, match="moe 'dense'"):
        Calibrated(calibration=calibration(), moe="dense")


def test_an_uncovered_call_is_named_with_what_is_covered() -> None:
    """A calibration without SiLU says so, and which variants it was made for."""
    full = calibration()
    without = attrs.evolve(
        full, samples=tuple(sample for sample in full.samples if sample.signature.op != "aten::silu")
    )
    with pytest.raises(MissingKernelTimeError, match=r"aten::silu.*It covers toy \(dtype fp32\)"):
        Calibrated(calibration=without).seconds(model(), "step", {"B": 2})


def test_a_model_without_a_schedule_is_refused() -> None:
    """Hand-written models carry neither signatures nor an order."""
    bare = model()
    bare = attrs.evolve(bare, stages=(attrs.evolve(bare.stages[0], schedule=()),))
    with pytest.raises(UnscheduledModelError, match="'step' of toy does not say in which order"):
        Calibrated(calibration=calibration()).seconds(bare, "step", {"B": 2})


def test_another_machine_is_refused_by_what_differs() -> None:
    """The message names each difference."""
    other = attrs.evolve(CPU, torch="2.14.0", threads=2)
    with pytest.raises(CalibrationMismatchError, match=r"threads is 1, not 2; torch is '2.13.0', not '2.14.0'"):
        calibration().require(other)


def moe_model() -> AnalyticModel:
    """Return one grouped product, 8 rows for each of B tokens' 2 experts out of 4."""
    rows = TensorArgument(dtype=DType.FP32, shape=("2*B", 4), strides=(4, 1))
    weight = TensorArgument(dtype=DType.FP32, shape=(4, 8, 4), strides=(32, 4, 1), weight=True)
    signature = Signature(
        op="dsocr_graph::grouped_linear",
        overload="default",
        arguments={"input": rows, "weight": weight, "experts_per_token": 2},
    )
    layer = GroupedLinear(rows=2 * B, in_features=4, out_features=8, experts=4, active_experts=2, dtype=DType.FP32)
    plain = model()
    leaf = attrs.evolve(
        plain.leaves[0],
        op=signature.op,
        layer=layer,
        cost=None,
        signature=signature,
        calls=1,
        fused_bytes=layer.traffic().bytes,
    )
    stage = attrs.evolve(plain.stages[0], schedule=(0,))
    return attrs.evolve(plain, leaves=(leaf,), free=(), stages=(stage,))


def moe_calibration() -> Calibration:
    """Return 10 ms per expert with rows, at 1 token (2 experts of 4) and at 4 tokens (8 rows, 2 and 4 experts)."""
    (leaf,) = moe_model().leaves
    assert leaf.signature is not None
    grouped = tuple(
        Sample(
            signature=leaf.signature.at({"B": tokens}),
            seconds=(10e-3 * active,),
            conditions={"active_experts": active},
        )
        for tokens, active in ((1, 2), (4, 2), (4, 4))
    )
    single = Sample(signature=LINEAR.at({"B": 1}), seconds=(7e-3,), flops=64, bytes=176)
    return attrs.evolve(calibration(), samples=(*grouped, single), host=HostCosts(classes={}))


def test_the_choice_of_experts_widens_the_interval() -> None:
    """4 tokens touch 2 to 4 of 4 experts: 20 ms to 40 ms; one token always touches 2."""
    predictor = Calibrated(calibration=moe_calibration())
    one, four = (predictor.seconds(moe_model(), "step", {"B": tokens}) for tokens in (1, 4))
    assert one.seconds == pytest.approx(20e-3)
    (few, many), (fewest, most) = ends(one), ends(four)
    assert most / fewest > many / few


def test_a_given_routing_replaces_the_drawn_one() -> None:
    """All tokens at two experts: 20 ms."""
    predictor = Calibrated(calibration=moe_calibration())
    time = predictor.seconds(moe_model(), "step", {"B": 4}, fewest_routing)
    assert time.seconds == pytest.approx(20e-3)
    cost = evaluate_stage(moe_model(), "step", time_model=predictor, routing=fewest_routing, B=4)
    assert cost.total.time is not None
    assert cost.total.time.seconds == pytest.approx(20e-3)


def test_the_loop_multiplies_expert_by_expert() -> None:
    """One token, two experts with one row each: two products of 7 ms."""
    predictor = Calibrated(calibration=moe_calibration(), moe="loop")
    assert predictor.seconds(moe_model(), "step", {"B": 1}).seconds == pytest.approx(14e-3)


def test_the_statement_of_a_loop_has_the_calls_of_the_loop() -> None:
    """One token, two experts: two products, and no grouped one."""
    run = StageRun(stage="step", count=1, bindings={"B": 1})
    workload = Workload(name="one", items=(WorkloadItem(name="page", documents=1, runs=(run,)),))
    shares = Calibrated(calibration=moe_calibration(), moe="loop").statement(moe_model(), workload)
    assert [(share.family, share.calls) for share in shares] == [("gemm", 2)]


def test_a_copy_by_the_driver_takes_its_time_on_the_device() -> None:
    """The profiler counts no kernel for it; its time is not lost: 2 * (4 + 1) ms and the waiting of the host."""
    full = calibration(GPU)
    copies = attrs.evolve(full, samples=tuple(attrs.evolve(sample, launches=0) for sample in full.samples))
    predictor = Calibrated(calibration=copies)
    assert predictor.seconds(model(), "step", {"B": 2}).seconds == pytest.approx(14.9e-3)


def test_launches_of_a_stage_are_counted() -> None:
    """Two calls of two operators with one kernel each; none on a CPU."""
    assert Calibrated(calibration=calibration(GPU)).launches(model(), "step", {"B": 2}) == 4
    assert Calibrated(calibration=calibration()).launches(model(), "step", {"B": 2}) == 0
