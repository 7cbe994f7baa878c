"""Calibration on a GPU: device times against what is known of the kernels, launches, host costs, a whole run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsocr_graph.timing.calibrate import Calibrator, calibrate
from dsocr_graph.timing.clocks import CudaClock
from dsocr_graph.timing.host_costs import measure_host_costs
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.microbench import Microbench
from dsocr_graph.timing.operands import OperandMaker, cache_bytes, cold_bytes
from dsocr_graph.timing.plan import Plan, PlannedCall
from modelmeter.dtypes import DType
from modelmeter.predict.calibration import read_calibration
from modelmeter.predict.host import HOST_CLASSES
from modelmeter.signature import Signature, TensorArgument

pytestmark = pytest.mark.gpu

BF16 = DType.BF16


def call(op: str, overload: str = "default", **arguments: Any) -> PlannedCall:
    """Return a planned call."""
    signature = Signature(op=op, overload=overload, arguments=arguments)
    return PlannedCall(signature=signature, conditions={}, flops=0, bytes=1, origin="a test")


def linear(rows: int, size: int) -> PlannedCall:
    """Return x[rows, size] times a square weight."""
    return call(
        "aten::linear",
        input=TensorArgument(dtype=BF16, shape=(rows, size), strides=(size, 1)),
        weight=TensorArgument(dtype=BF16, shape=(size, size), strides=(size, 1), weight=True),
    )


@pytest.fixture(scope="module")
def device() -> torch.device:
    """Return the GPU."""
    return torch.device("cuda")


@pytest.fixture(scope="module")
def clock(device: torch.device) -> CudaClock:
    """Return its clock."""
    return CudaClock(device)


def bench(device: torch.device, clock: CudaClock, *calls: PlannedCall) -> Microbench:
    """Return a microbenchmark of some calls."""
    return Microbench(
        operands=OperandMaker(calls, device, cold_bytes=cold_bytes(device, 0), cache_bytes=cache_bytes(device)),
        clock=clock,
        device=device,
    )


def test_a_spin_of_known_cycles_takes_its_time(clock: CudaClock, device: torch.device) -> None:
    """Twice the cycles take twice as long, within 5 %: the clock adds and loses nothing that counts."""

    def spin(cycles: int) -> float:
        return clock.window(lambda repeats: [torch.cuda._sleep(cycles) for _ in range(repeats)] and None, 4)()

    assert spin(4_000_000) == pytest.approx(2 * spin(2_000_000), rel=0.05)


def test_a_graph_of_many_executions_and_a_queue_of_them_agree(clock: CudaClock, device: torch.device) -> None:
    """A product of 2048 x 2048 takes the same within 15 %, captured 100 times or queued 4 times."""
    x = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            torch.mm(x, x)

    with torch.inference_mode():
        run(3)
        queued, captured = clock.window(run, 4), clock.window(run, 100)
        assert min(captured() for _ in range(5)) == pytest.approx(min(queued() for _ in range(5)), rel=0.15)


def test_a_call_that_waits_for_the_device_is_timed_by_its_kernels(clock: CudaClock, device: torch.device) -> None:
    """`item` copies to the host: it can be neither queued nor captured, and still has a device time below 1 ms."""
    x = torch.randn(1000, device=device)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            x.sum().item()

    run(3)
    assert 5e-7 <= clock.window(run, 500)() < 1e-3
    assert clock.window(lambda repeats: [x.mul(2) for _ in range(repeats)] and None, 100)() > 0  # it works on


def test_weights_are_read_from_memory(clock: CudaClock, device: torch.device) -> None:
    """One row times 4096 x 4096 bf16: 33.6 MB. From the L2 cache it would beat the memory's bandwidth."""
    gemv = linear(1, 4096)
    seconds = bench(device, clock, gemv).seconds(gemv)
    properties = torch.cuda.get_device_properties(device)
    bandwidth = 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8
    assert seconds > 0.9 * 4096 * 4096 * 2 / bandwidth


def test_more_rows_take_longer(clock: CudaClock, device: torch.device) -> None:
    """8192 rows against 16."""
    few, many = linear(16, 2048), linear(8192, 2048)
    timed = bench(device, clock, few, many)
    assert timed.seconds(many) > 2 * timed.seconds(few) > 0


def test_launches_are_counted(clock: CudaClock, device: torch.device) -> None:
    """A product of two vectors element by element is one kernel; a view is none; many calls share one session."""
    x = TensorArgument(dtype=BF16, shape=(64,), strides=(1,))
    product = call("aten::mul", "Tensor", self=x, other=x)
    view = call("aten::view", "default", self=x, size=(8, 8))
    timed = bench(device, clock, product, view)
    assert timed.launches([product, view, product]) == (1, 0, 1)


def test_host_costs_are_microseconds(device: torch.device) -> None:
    """Every class of host time, launches and waits: none negative, none beyond a millisecond, a call not free."""
    costs = measure_host_costs(device)
    assert sorted(costs.classes) == sorted(HOST_CLASSES)
    assert all(0 <= seconds < 1e-3 for seconds in costs.classes.values())
    assert 0 <= costs.latency < 1e-3
    assert 0 < costs.sync < 1e-3
    assert 1e-6 < costs.classes["gemm"] + costs.launch < 1e-3


def test_two_passes_agree(device: torch.device) -> None:
    """A product of 4096 rows: the passes are within 20 % of each other."""
    machine = this_machine("cuda", threads=1)
    calibrator = Calibrator(Plan(models=(), calls=(linear(4096, 4096),)), machine=machine)
    for _ in range(2):
        calibrator.run_pass()
    first, second = calibrator.calibration().samples[0].seconds
    assert first == pytest.approx(second, rel=0.2)


def test_a_model_is_calibrated(tmp_path: Path) -> None:
    """The decode step of the toy-size model in bf16: a file with device, driver, peaks and launches."""
    from dsocr_graph.compiling import compile_model
    from dsocr_graph.model_cache import ModelCache
    from dsocr_graph.models.registry import Variant, model_named
    from dsocr_graph.timing.plan import parse_point
    from modelmeter.serialize import model_from_bytes

    variant = Variant(base_size=512, dtype="bf16", attention="sdpa")
    compiled = compile_model(model_named("deepseek-ocr-tiny"), variant, store=ModelCache(directory=None))
    model = model_from_bytes(compiled.model_json, source="the toy-size model")
    out = tmp_path / "c.json"
    calibrate([(model, [parse_point("decode:B=2,T=33")])], device="cuda", passes=2, out=out)
    calibration = read_calibration(out)
    assert calibration.machine.kind == "cuda"
    assert calibration.machine.driver
    assert calibration.peaks.matrix_flops["bf16"] > calibration.peaks.vector_flops
    products = [sample for sample in calibration.samples if sample.signature.op == "aten::linear"]
    assert products
    assert all(sample.launches >= 1 for sample in products)
    assert all(len(sample.seconds) == 2 for sample in calibration.samples)
