"""Measuring on a GPU: the replay is the model there too, and its times are of the device."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from dsocr_graph.errors import MeasurementMemoryError
from dsocr_graph.ir import OpGraph
from dsocr_graph.models.registry import Variant, model_named
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.timing.bench import Bench
from dsocr_graph.timing.call_clocks import DeviceClock
from dsocr_graph.timing.launches import count_launches, count_launches_of_each
from dsocr_graph.timing.measure import measure
from dsocr_graph.timing.peak_memory import peak_memory
from dsocr_graph.timing.plan import Point
from dsocr_graph.timing.replay import replay
from dsocr_graph.timing.timed_calls import time_calls
from dsocr_graph.tracing import capture

pytestmark = pytest.mark.gpu

VARIANT = Variant(base_size=512, dtype="bf16", attention="sdpa")
POINTS = [
    Point(stage="vision_global", bindings={}),
    Point(stage="vision_local", bindings={"V": 2, "H": 1}),
    Point(stage="prefill", bindings={"B": 2, "S": 91, "N": 81}),
    Point(stage="decode", bindings={"B": 2, "T": 91}),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.stage)
def test_every_stage_replays_to_the_bit(point: Point) -> None:
    """The outputs of the captured graph are those of the model on the GPU."""
    named = model_named("deepseek-ocr-tiny")
    assert named.runnable is not None
    runnable = named.runnable(VARIANT, "grouped")
    model = runnable.load(device=CUDA, seed=0)
    described, specs = named.build(VARIANT)
    wanted = [spec for spec in specs if spec.name == point.stage]
    (graph,) = capture(described, wanted, name=named.name, variant={}).graphs

    def inputs() -> list[Tensor]:
        return runnable.inputs(point.stage, point.bindings, device=CUDA, seed=0)

    with torch.no_grad():
        real = runnable.run(model, point.stage, inputs())
    clock = DeviceClock(CUDA)
    mine = replay(graph, runnable.stage_module(model, point.stage), inputs(), point.bindings, clock)
    assert all(torch.equal(one, other) for one, other in zip(mine.outputs, real, strict=True))
    assert len(mine.call_seconds) == len(graph.calls)


def captured_chain(length: int, size: int) -> tuple[OpGraph, Callable[[], list[Tensor]], nn.Module]:
    """Return a graph of so many hyperbolic tangents of a square matrix, its inputs and its module."""

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """[size, size] -> [size, size]."""
            for _ in range(length):
                x = x.tanh()
            return x

    stage = StageSpec(name="chain", description="", module=Chain(), inputs=(torch.empty(size, size, device="meta"),))
    (graph,) = capture(stage.module, [stage], name="toy", variant={}).graphs
    return graph, lambda: [torch.rand(size, size, device=CUDA)], stage.module


def test_times_are_of_the_device_not_of_the_host() -> None:
    """300 elementwise calls on 64 numbers take a GPU microseconds each, though the host needs longer to start them."""
    graph, inputs, module = captured_chain(300, 8)
    replay(graph, module, inputs(), {}, DeviceClock(CUDA))
    seconds = sorted(replay(graph, module, inputs(), {}, DeviceClock(CUDA)).call_seconds)
    assert len(seconds) == 300
    assert seconds[150] < 5e-6


def test_long_calls_add_up_to_the_run() -> None:
    """Twenty calls of 64 M numbers each fill the device: their times are those of the whole run, within 5 %."""
    graph, inputs, module = captured_chain(20, 8192)
    replay(graph, module, inputs(), {}, DeviceClock(CUDA))
    calls = sum(replay(graph, module, inputs(), {}, DeviceClock(CUDA)).call_seconds)
    given = inputs()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.no_grad():
        begin.record()
        module(*given)
        end.record()
    torch.cuda.synchronize()
    assert calls == pytest.approx(begin.elapsed_time(end) * 1e-3, rel=0.05)


def test_a_host_bound_stage_is_attributed_to_its_calls() -> None:
    """1,000 small calls: what they delay the end by is most of the run without instruments; kernels are less of it."""
    graph, inputs, module = captured_chain(1000, 8)
    time_calls(graph, module, inputs, {}, device=CUDA, threads=1)
    times = time_calls(graph, module, inputs, {}, device=CUDA, threads=1)
    walls: list[float] = []
    for _ in range(5):
        given = inputs()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.no_grad():
            module(*given)
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - begin)
    assert sum(times.seconds) >= 0.9 * sorted(walls)[2]
    assert sum(times.device_seconds) < 0.9 * sum(times.seconds)


def test_kernels_of_many_runs_are_counted_in_one_session() -> None:
    """One, two and no kernels; what is made between them belongs to none."""

    def runs() -> Iterator[Callable[[], object]]:
        for run in (x.exp, lambda: x.exp() + x, lambda: x.view(10, 100)):
            torch.rand(1000, device=CUDA)
            yield run

    x = torch.rand(1000, device=CUDA)
    for run in runs():
        run()
    if count_launches(x.exp, CUDA) is not None:  # None without the right to trace
        assert count_launches_of_each(runs(), CUDA) == (1, 2, 0)


def test_kernels_are_counted() -> None:
    """Three elementwise operators are three kernels; a copy by the driver is none."""

    def run() -> Tensor:
        return (x.exp() + x).tanh()

    x = torch.rand(1000, device=CUDA)
    run()
    assert count_launches(run, CUDA) in {3, None}  # None without the right to trace


def test_the_caching_allocator_tells_the_peak() -> None:
    """-x and exp(-x) of 2 MB each live together."""
    size = 2**19
    assert peak_memory(lambda: torch.rand(size, device=CUDA), lambda x: x.neg().exp(), CUDA) == 2 * 4 * size


def test_a_model_is_measured() -> None:
    """Wall times only, a time per call, kernels, and a peak within 3 % of liveness at a size where it matters."""
    measured = measure("deepseek-ocr-tiny", points=POINTS, mode="Tiny", device="cuda")
    assert measured.machine.kind == "cuda"
    assert all(len(stage.wall_seconds) == 7 and stage.warmups == 3 for stage in measured.stages)
    assert all(stage.cpu_seconds == () for stage in measured.stages)
    assert all(len(stage.device_seconds) == len(stage.call_seconds) for stage in measured.stages)
    assert all(stage.attributed >= 0.9 for stage in measured.stages)
    assert all(stage.gpu is None or stage.gpu.least_clock_mhz > 0 for stage in measured.stages)
    assert all(stage.launches is None or stage.launches > 0 for stage in measured.stages)
    assert {count.module for count in measured.miscounted} <= {""}


def test_memory_that_runs_out_is_explained() -> None:
    """The message names the point; there is no analytic model here to say more."""
    bench = Bench(model_named("deepseek-ocr-tiny"), VARIANT, device="cuda")
    total = torch.cuda.get_device_properties(CUDA).total_memory
    documents = 2 * total // (6 * 4 * 100 * 16 * 2)  # six caches of [B, 4, 100, 16] in bf16, twice the memory
    with pytest.raises(MeasurementMemoryError, match=f"decode B={documents}, T=100 ran out of memory on cuda"):
        bench.run(Point(stage="decode", bindings={"B": documents, "T": 100}))
