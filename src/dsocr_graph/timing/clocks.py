"""Clocks for one call repeated: CPU time of the process, or a GPU's events around work that is queued already."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Run = Callable[[int], None]
"""Executes a call so many times, one after the other."""

Window = Callable[[], float]
"""Executes a call some times and returns the seconds of one execution."""


class Clock(Protocol):
    """Times windows of repeated executions."""

    @property
    def warmups(self) -> int:
        """Executions before a call is timed, beside the first window, which nothing is made of."""
        ...

    @property
    def most_repeats(self) -> int:
        """Executions in a window, at most."""
        ...

    def window(self, run: Run, repeats: int) -> Window:
        """Return a window of about that many executions, ready to be timed any number of times."""
        ...


class CpuClock:
    """CPU time of the process, so that other processes disturb little; with several threads, wall time.

    An execution through `torch.ops` passes through more Python than the same call in a model: what that takes is
    measured once, with tiny operands, and subtracted.

    Parameters
    ----------
    threads : int
        Of torch, within an operator: their CPU times would add up.

    Examples
    --------
    >>> x = torch.ones(1000)
    >>> def run(repeats: int) -> None:
    ...     for _ in range(repeats):
    ...         x.exp()
    >>> 0 < CpuClock(threads=1).window(run, 100)() < 1
    True
    """

    warmups = 0
    most_repeats = 300

    def __init__(self, *, threads: int) -> None:
        fine = time.get_clock_info("process_time").resolution <= _FINE
        self._now = time.process_time if threads == 1 and fine else time.perf_counter
        self._detour = 0.0
        self._detour = _detour(self)

    def window(self, run: Run, repeats: int) -> Window:
        """Return a window of exactly that many executions; one that the system handed out memory in is timed anew."""

        def timed() -> float:
            seconds = self._timed(run, repeats) / repeats
            # The detour is of the order of the shortest calls: they never come out at nothing.
            return max(seconds - self._detour, seconds * _LEAST_SHARE)

        return timed

    def _timed(self, run: Run, repeats: int, attempts: int = 3) -> float:
        faults, begin = _page_faults(), self._now()
        run(repeats)
        seconds = self._now() - begin
        disturbed = (_page_faults() - faults) * _FAULT_SECONDS > _FAULT_SHARE * seconds
        return self._timed(run, repeats, attempts - 1) if disturbed and attempts > 1 else seconds


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


_FAULT_SECONDS = 5e-6  # of a page that is written for the first time, on a virtual machine; see `warm_heap`
_FAULT_SHARE = 0.05
_FINE = 1e-6  # seconds; a clock of ticks tells nothing of calls of microseconds
_LEAST_SHARE = 0.2
_DETOUR_WINDOWS = 15
_DETOUR_REPEATS = 300


def _detour(clock: CpuClock) -> float:
    """Return what a call by overload and argument names takes beyond the same call in a model. Unit: seconds."""
    x, weight = torch.randn(1, 8), torch.randn(8, 8)
    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: torch.ops.aten.mul.Tensor(self=x, other=x), lambda: x * x),
        (lambda: torch.ops.aten.silu.default(self=x), lambda: torch.nn.functional.silu(x)),
        (lambda: torch.ops.aten.linear.default(input=x, weight=weight), lambda: torch.nn.functional.linear(x, weight)),
        (lambda: torch.ops.aten.cat.default(tensors=[x, x], dim=-1), lambda: torch.cat([x, x], dim=-1)),
    ]
    with torch.inference_mode():
        excess = [_seconds(clock, named) - _seconds(clock, written) for named, written in pairs]
    return max(0.0, sum(excess) / len(excess))


def _seconds(clock: CpuClock, call: Callable[[], object]) -> float:
    def run(repeats: int) -> None:
        for _ in range(repeats):
            call()

    window = clock.window(run, _DETOUR_REPEATS)
    return min(window() for _ in range(_DETOUR_WINDOWS))


# --- CUDA


class CudaClock:
    """Events on a stream behind a kernel that spins until the host has queued everything between them.

    On an idle stream two events would time the host. A short call is captured into a CUDA graph of many executions,
    which the host starts at once; a long one, or one that cannot be captured, is queued one by one. A call that makes
    the host wait for the device cannot be queued behind anything: its kernels are timed by the profiler. What two
    events with nothing between them show is subtracted.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    warmups = 3  # kernels are loaded, libraries choose among theirs
    most_repeats = 1000

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None  # the last one, whose memory the next one takes over
        windows = sorted(self._between_events(lambda: None) or 0.0 for _ in range(_EMPTY_WINDOWS))
        self._empty = windows[len(windows) // 2]

    def window(self, run: Run, repeats: int) -> Window:
        """Return a window of that many executions, or of fewer where they cannot be captured into a graph."""
        if self._between_events(lambda: run(1)) is None:
            return lambda: self._profiled(run)
        graph = self._captured(run, repeats) if repeats >= _FEWEST_IN_GRAPH else None
        if graph is not None:
            return lambda: self._queued(graph.replay, repeats) or self._profiled(run)
        queued = min(repeats, _MOST_QUEUED)
        return lambda: self._queued(lambda: run(queued), queued) or self._profiled(run)

    def _queued(self, enqueue: Callable[[], object], executions: int) -> float | None:
        """Return the seconds of one execution, or None where the host does not stay ahead of the device."""
        seconds = self._between_events(enqueue)
        return None if seconds is None else max(seconds - self._empty, _RESOLUTION) / executions

    def _between_events(self, enqueue: Callable[[], object]) -> float | None:
        """Return the seconds that the device takes for what is queued; None where the queueing waits for the device."""
        spin = _SPIN_CYCLES
        for _ in range(_SPIN_ATTEMPTS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with torch.cuda.device(self._device):
                torch.cuda.synchronize()
                torch.cuda._sleep(spin)  # pyright: ignore[reportPrivateUsage] - torch's only kernel that spins
                begin.record()
                enqueue()
                end.record()
                ahead = not begin.query()  # the device still spins: it will not wait for the host
                torch.cuda.synchronize()
            if ahead:
                return begin.elapsed_time(end) * 1e-3
            spin *= 4
        return None

    def _captured(self, run: Run, repeats: int) -> torch.cuda.CUDAGraph | None:
        """Return a graph of some executions, or None where the call cannot be part of one."""
        graph = torch.cuda.CUDAGraph()
        pool = None if self._graph is None else self._graph.pool()
        before = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=pool, stream=self._stream):
                run(repeats)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of many kinds: a copy to the host, a kernel of a library that does not allow it
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
            torch.cuda.synchronize(self._device)
            self._graph = None  # and may hold its pool for ever; the next one gets a new pool and a new stream
            self._stream = torch.cuda.Stream(self._device)
            return None
        self._graph = graph
        return graph

    def _profiled(self, run: Run) -> float:
        """Return the seconds of the kernels of one execution, as the profiler sees them."""
        with torch.cuda.device(self._device), profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            run(1)
            torch.cuda.synchronize()
        kernels = (event for event in profiler.events() or () if event.device_type == DeviceType.CUDA)
        return max(sum(event.time_range.elapsed_us() for event in kernels) * 1e-6, _RESOLUTION)


_FEWEST_IN_GRAPH = 8  # executions; fewer fill a window by themselves
_MOST_QUEUED = 100  # executions one by one: the driver queues about 1,024 kernels, and a call may start several
_SPIN_CYCLES = 500_000  # about a quarter of a millisecond
_SPIN_ATTEMPTS = 4  # the last spins for about 16 ms
_EMPTY_WINDOWS = 21
_RESOLUTION = 5e-7  # seconds; of CUDA events. Source: CUDA's manual of the runtime, cudaEventElapsedTime
