"""Clocks for calls that follow one another: the CPU time of the process, or a GPU's events behind a spinning kernel."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Protocol

import torch

_CPU = torch.device("cpu")


class CallClock(Protocol):
    """Tells how long each of some consecutive calls took.

    `begin` is called before every call, `end` once after the last.
    """

    @property
    def device(self) -> torch.device:
        """Where the calls run."""
        ...

    def begin(self) -> None:
        """Note that the next call begins, and so that the one before is over."""
        ...

    def end(self) -> tuple[float, ...]:
        """Return the seconds of each call; the clock can be used again."""
        ...


class HostClock:
    """Time of the host from the beginning of a call to that of the next.

    On a CPU it is CPU time of the process: other processes cost wall time but no CPU time, so that a shared machine
    disturbs it little. With several threads, whose CPU times would add up, it is wall time. Beside a GPU it is wall
    time, too, as a host that waits for its device uses no processor.

    Parameters
    ----------
    threads : int
        Of torch, within an operator.
    device : torch.device
        Where the calls run.

    Examples
    --------
    >>> clock = HostClock(threads=1)
    >>> for _ in range(3):
    ...     clock.begin()
    >>> len(clock.end())
    3
    """

    def __init__(self, *, threads: int, device: torch.device = _CPU) -> None:
        self.device = device
        alone = threads == 1 and device.type == "cpu"
        self._now = time.process_time_ns if alone else time.perf_counter_ns
        self._marks: list[int] = []  # ns

    def begin(self) -> None:
        """Note the time; before the first call, wait until the device has nothing to do."""
        if not self._marks:
            self._settle()
        self._marks.append(self._now())

    def end(self) -> tuple[float, ...]:
        """Return the seconds of each call; what the device still runs is not waited for in them."""
        marks = [*self._marks, self._now()]
        self._marks = []
        self._settle()
        return tuple((after - before) * 1e-9 for before, after in pairwise(marks))

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_LEAD = 32  # calls that the device has to be behind the host
_SPIN_CYCLES = 8_000_000  # about 4 ms; the host starts some hundred calls meanwhile
_EMPTY_WINDOWS = 64


class DeviceClock:
    """Time between events of one CUDA stream, while the device is never waiting for the host.

    Where the device comes within a few calls of the host, a kernel that spins is put in front of the next call: it
    runs while the host starts further calls. What an event itself takes is subtracted. A call that makes the host wait
    for the device, by the nature of its operator, contains that wait.

    Parameters
    ----------
    device : torch.device or str
        A CUDA device; the calls run on its current stream.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._starts: list[torch.cuda.Event] = []
        self._ends: list[torch.cuda.Event] = []
        self._empty = self._empty_window()

    def begin(self) -> None:
        """Record where the last call ends and the next one begins."""
        boundary = self._record()
        if self._starts:
            self._ends.append(boundary)
        if len(self._ends) < _LEAD or self._ends[-_LEAD].query():
            self._spin()
            boundary = self._record()
        self._starts.append(boundary)

    def end(self) -> tuple[float, ...]:
        """Wait for the device and return the seconds of each call."""
        self._ends.append(self._record())
        torch.cuda.synchronize(self.device)
        windows = [start.elapsed_time(end) * 1e-3 for start, end in zip(self._starts, self._ends, strict=True)]
        self._starts, self._ends = [], []
        return tuple(max(0.0, seconds - self._empty) for seconds in windows)

    def _record(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _spin(self) -> None:
        with torch.cuda.device(self.device):
            torch.cuda._sleep(_SPIN_CYCLES)  # pyright: ignore[reportPrivateUsage] - torch's only kernel that spins

    def _empty_window(self) -> float:
        """Return the median time between two events with nothing between them. Unit: seconds."""
        self._spin()
        events = [self._record() for _ in range(_EMPTY_WINDOWS + 1)]
        torch.cuda.synchronize(self.device)
        windows = sorted(before.elapsed_time(after) for before, after in pairwise(events))
        return windows[len(windows) // 2] * 1e-3
