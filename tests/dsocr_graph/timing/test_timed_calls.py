"""What is told of a stage's calls: one pass on a CPU, two on a GPU, put together."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dsocr_graph.ir import OpGraph
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.timing import call_clocks, timed_calls
from dsocr_graph.timing.call_clocks import HostClock
from dsocr_graph.timing.timed_calls import CallTimes, median_times, time_calls
from dsocr_graph.tracing import capture

CUDA = torch.device("cuda", 0)


class Twice(nn.Module):
    """Two calls on 8 numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """[8] -> [8]."""
        return x.exp().tanh()


@pytest.fixture(scope="module")
def graph() -> OpGraph:
    """Return the graph of the two calls."""
    stage = StageSpec(name="twice", description="", module=Twice(), inputs=(torch.empty(8, device="meta"),))
    return capture(stage.module, [stage], name="toy", variant={}).graphs[0]


def inputs() -> list[Tensor]:
    """Return eight numbers."""
    return [torch.ones(8)]


def made_up(seconds: tuple[float, ...]) -> type:
    """Return a clock that tells these times, whatever runs."""

    class Clock:
        device = torch.device("cpu")

        def __init__(self, *_: object, **__: object) -> None: ...

        def begin(self) -> None: ...

        def end(self) -> tuple[float, ...]:
            return seconds

    return Clock


def test_a_cpu_tells_the_time_of_each_call(graph: OpGraph) -> None:
    """Two calls, two times; there is no other device."""
    found = time_calls(graph, Twice(), inputs, {}, device=torch.device("cpu"), threads=1)
    assert len(found.seconds) == 2
    assert min(found.seconds) > 0
    assert found.device_seconds == ()


def test_a_gpu_is_asked_for_its_own_time_and_for_the_hosts(graph: OpGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of 1 s on a host of 3 s a call: each call delays the end by 3 s, 1 s of it is the kernel's."""
    monkeypatch.setattr(timed_calls, "DeviceClock", made_up((1.0, 1.0)))
    monkeypatch.setattr(timed_calls, "HostClock", made_up((3.0, 3.0)))
    found = time_calls(graph, Twice(), inputs, {}, device=CUDA, threads=1)
    assert found == CallTimes(seconds=(3.0, 3.0), device_seconds=(1.0, 1.0))


def test_medians_are_taken_call_by_call() -> None:
    """Of 1, 5 and 2 s 2 s, of 4, 3 and 9 s 4 s; no pass tells nothing."""
    passes = [CallTimes(seconds=pair, device_seconds=pair[::-1]) for pair in ((1.0, 4.0), (5.0, 3.0), (2.0, 9.0))]
    assert median_times(passes) == CallTimes(seconds=(2.0, 4.0), device_seconds=(4.0, 2.0))
    assert median_times([]) == CallTimes(seconds=())


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return what lets the wall clock show some times, and logs when the device is waited for."""

    def show(*nanoseconds: int) -> list[str]:
        shown, log = iter(nanoseconds), list[str]()

        def read() -> int:
            log.append("read")
            return next(shown)

        monkeypatch.setattr(call_clocks.time, "perf_counter_ns", read)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: log.append("wait"))
        return log

    return show


def test_a_host_beside_a_gpu_is_timed_by_the_wall(now: Callable[..., list[str]]) -> None:
    """1,000 and 2,500 ns; the device is idle when the first call begins, and waited for after the last reading."""
    log = now(5_000, 6_000, 8_500)
    clock = HostClock(threads=1, device=CUDA)
    clock.begin()
    clock.begin()
    assert clock.end() == pytest.approx((1e-6, 2.5e-6))
    assert log == ["wait", "read", "read", "read", "wait"]
