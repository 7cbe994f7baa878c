"""Timeline: the calls of a stage on two queues, host and device, with the points where one waits for the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import field, frozen

from modelmeter.costs import Draws
from modelmeter.predict.calibration import HostCosts

MAX_QUEUED = 1024
"""Launches that the driver lets the host run ahead of the device. Source: CUDA's launch queue, as observed."""


@frozen(kw_only=True)
class Step:
    """One call of a schedule, in seconds; arrays hold one figure per sampled run."""

    host: Draws | float  # of the host for the call itself, launches left out; a number where it is certain
    device: Draws  # of all its kernels together, [draws]
    launches: int = 1  # kernels that it starts; 0: a view
    syncs: bool = False  # whether the host waits until the device is done


@frozen(kw_only=True)
class Advance:
    """How a call moves the completion of its stage, per sampled run, in seconds."""

    begin: Draws  # when its first kernel begins, or the host where it starts none
    host_begin: Draws
    waiting: Draws  # the device is idle before its kernels: bound by the host
    busy: Draws  # its kernels run

    @property
    def seconds(self) -> Draws:
        """By how much the completion moves."""
        return self.waiting + self.busy


@frozen(kw_only=True)
class CallTime:
    """One call of a schedule as predicted: the mean over sampled runs."""

    begin: float  # seconds since the stage began, on the device
    seconds: float  # by how much the call moves the completion of the stage
    host_begin: float
    host_seconds: float
    device_seconds: float  # all kernels of the call; 0 for views
    bound_by: str = field(default="memory")  # "matrix units", "vector units", "memory" or "host"


def serial(steps: Sequence[Step]) -> list[Advance]:
    """Run the calls one after the other in one thread, as on a CPU: every call moves the completion by all it takes.

    Examples
    --------
    >>> work = Step(host=0.0, device=np.array([2.0]))
    >>> view = Step(host=0.5, device=np.array([0.0]), launches=0)
    >>> [float(advance.seconds[0]) for advance in serial([work, view, work])]
    [2.0, 0.5, 2.0]
    """
    advances: list[Advance] = []
    now = none = _zeros(steps)
    for step in steps:
        waiting = none + step.host
        advances.append(Advance(begin=now, host_begin=now, waiting=waiting, busy=step.device))
        now = now + waiting + step.device
    return advances


def two_queues(steps: Sequence[Step], host: HostCosts) -> list[Advance]:
    """Run the calls on a host that launches kernels and a device that runs them in order.

    The host spends its time per call and per launch and goes on; the device begins a kernel once it is launched and
    the one before is done. At a sync the host waits for the device. At most `MAX_QUEUED` launches are under way. A
    stage is complete when the host has its results: it ends with a sync, and the advances add up to that time.

    Parameters
    ----------
    steps : sequence of Step
        In the order of the schedule.
    host : HostCosts
        Costs of a launch, of the way to an idle device, and of a sync.

    Examples
    --------
    The host needs 3 s per call, the device 1 s per kernel: the host decides.

    >>> slow_host = Step(host=3.0, device=np.array([1.0]))
    >>> advances = two_queues([slow_host] * 2, HostCosts(classes={}))
    >>> [(float(advance.waiting[0]), float(advance.busy[0])) for advance in advances]
    [(3.0, 1.0), (2.0, 1.0)]
    """
    advances: list[Advance] = []
    queued: list[Draws] = []  # when each kernel was done
    on_host = on_device = done = _zeros(steps)
    for step in steps:
        host_begin = on_host
        on_host = on_host + step.host
        begin = on_host
        busy = np.zeros_like(on_host)
        for kernel in range(step.launches):
            on_host = on_host + host.launch
            if len(queued) >= MAX_QUEUED:
                on_host = np.maximum(on_host, queued[-MAX_QUEUED])
            start = np.maximum(on_device, on_host + host.latency)
            begin = start if kernel == 0 else begin
            on_device = start + step.device / step.launches
            busy = busy + step.device / step.launches
            queued.append(on_device)
        if step.syncs:
            on_host = np.maximum(on_host, on_device) + host.sync
        finished = np.maximum(on_host, on_device) if step.syncs else np.maximum(done, on_device)
        moved = finished - done
        busy = np.minimum(busy, moved)
        advances.append(Advance(begin=begin, host_begin=host_begin, waiting=moved - busy, busy=busy))
        done = finished
    return _with_rest(advances, np.maximum(on_host, done) + host.sync - done)


def device_only(steps: Sequence[Step], host: HostCosts) -> list[Advance]:
    """Run the kernels back to back, as a CUDA graph does: one launch for all of them."""
    advances: list[Advance] = []
    start = _zeros(steps)
    now = start + host.launch + host.latency
    for index, step in enumerate(steps):
        waiting = now - start if index == 0 else np.zeros_like(now)
        advances.append(Advance(begin=now, host_begin=start, waiting=waiting, busy=step.device))
        now = now + step.device
    return advances


def _with_rest(advances: list[Advance], rest: Draws) -> list[Advance]:
    """Add what the host still does after the last kernel, such as views and the wait for the results, to the last."""
    if not advances:
        return advances
    last = advances[-1]
    final = Advance(begin=last.begin, host_begin=last.host_begin, waiting=last.waiting + rest, busy=last.busy)
    return [*advances[:-1], final]


def _zeros(steps: Sequence[Step]) -> Draws:
    return np.zeros_like(steps[0].device) if steps else np.zeros(1)
