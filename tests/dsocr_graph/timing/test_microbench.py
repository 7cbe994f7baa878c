"""The time of one call: how often it is executed, which figure is kept, what happens when memory runs out."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.errors import MeasurementMemoryError
from dsocr_graph.timing.clocks import CpuClock, Run, Window
from dsocr_graph.timing.microbench import LONG_SECONDS, WINDOW_SECONDS, Microbench, pass_seconds
from dsocr_graph.timing.operands import OperandMaker
from dsocr_graph.timing.plan import PlannedCall
from modelmeter.dtypes import DType
from modelmeter.signature import Signature, TensorArgument

CPU = torch.device("cpu")


class ScriptedClock:
    """A clock whose windows take what a script says, per execution."""

    warmups = 2
    most_repeats = 500

    def __init__(self, seconds: Iterator[float]) -> None:
        self.windows: list[int] = []  # executions of each timed window
        self._seconds = seconds

    def window(self, run: Run, repeats: int) -> Window:
        """Return a window that runs nothing."""

        def timed() -> float:
            self.windows.append(repeats)
            return next(self._seconds)

        return timed


def planned(op: str, overload: str = "default", **arguments: Any) -> PlannedCall:
    """Return a planned call."""
    signature = Signature(op=op, overload=overload, arguments=arguments)
    return PlannedCall(signature=signature, conditions={}, flops=0, bytes=8 * 2**45, origin="prefill S=9")


def exp_call(elements: int) -> PlannedCall:
    """Return a pointwise call."""
    return planned("aten::exp", self=TensorArgument(dtype=DType.FP32, shape=(elements,), strides=(1,)))


@pytest.fixture
def scripted() -> Callable[..., tuple[float, list[int]]]:
    """Return a function that times a call by a script: the figure kept, and the executions of each window."""

    def timed(*seconds: float) -> tuple[float, list[int]]:
        call = exp_call(4)
        clock = ScriptedClock(iter(seconds))
        bench = Microbench(operands=operands_of(call), clock=clock, device=CPU)
        return bench.seconds(call), clock.windows

    return timed


def operands_of(*calls: PlannedCall) -> OperandMaker:
    """Return a maker of operands with small pools, all of them warm."""
    return OperandMaker(calls, CPU, cold_bytes=0, cache_bytes=1 << 30)


def test_a_long_call_is_executed_once(scripted: Callable[..., tuple[float, list[int]]]) -> None:
    """0.3 s: the first execution is the figure."""
    assert scripted(0.3) == (0.3, [1])


def test_a_call_that_fills_a_window_is_executed_one_by_one(scripted: Callable[..., tuple[float, list[int]]]) -> None:
    """20 ms: the first execution warms up; three more fit into 60 ms, and their median is kept."""
    assert scripted(0.020, 0.018, 0.03, 0.019) == (0.019, [1, 1, 1, 1])


def test_a_short_call_is_repeated_until_a_window_is_long_enough(
    scripted: Callable[..., tuple[float, list[int]]],
) -> None:
    """The first execution takes 0.2 ms: 10 would fill 2 ms. They take 10 us each: 200 do. Median of five windows."""
    seconds, windows = scripted(2e-4, 1e-5, 1e-5, 1e-5, 3e-5, 0.9e-5, 1.1e-5, 1.2e-5)
    assert seconds == 1.1e-5
    assert windows == [1, 10, 200, 200, 200, 200, 200, 200]


def test_repeats_end_at_what_the_clock_can_take(scripted: Callable[..., tuple[float, list[int]]]) -> None:
    """1 us each would need 2000 executions; this clock takes 500."""
    seconds, windows = scripted(*[1e-6] * 7)
    assert (seconds, windows) == (1e-6, [1, *[500] * 6])


@given(st.floats(1e-7, 100))
def test_a_pass_is_busy_for_longer_than_the_call_itself_and_not_for_much_longer(seconds: float) -> None:
    """Long calls once, others for at most 60 ms, their last window and a warm-up more."""
    busy = pass_seconds(seconds)
    assert busy >= seconds
    assert busy <= max(seconds, WINDOW_SECONDS) * 2.5 + 0.06 if seconds < LONG_SECONDS else busy == seconds


def test_more_work_takes_longer() -> None:
    """A million exponentials against a thousand."""
    small, large = exp_call(1000), exp_call(1_000_000)
    operands = OperandMaker([small, large], CPU, cold_bytes=0, cache_bytes=1 << 30)
    bench = Microbench(operands=operands, clock=CpuClock(threads=1), device=CPU)
    assert bench.seconds(large) > 5 * bench.seconds(small) > 0


def test_nothing_is_launched_on_a_cpu() -> None:
    """Launches are kernels of a GPU."""
    call = exp_call(4)
    bench = Microbench(operands=operands_of(call), clock=ScriptedClock(iter([])), device=CPU)
    assert bench.launches([call, call]) == (0, 0)


def test_memory_that_runs_out_names_the_call_and_what_to_leave_out() -> None:
    """2**45 elements of 8 bytes are more than any machine has."""
    call = planned("aten::zeros", size=(2**45,), dtype="float64")
    bench = Microbench(operands=operands_of(call), clock=CpuClock(threads=1), device=CPU)
    with pytest.raises(
        MeasurementMemoryError, match=r"aten::zeros.*of prefill S=9.*ran out of memory.*--points"
    ) as error:
        bench.seconds(call)
    assert isinstance(error.value, MemoryError)
