"""The two queues, by hand; one unit is a second."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.predict.calibration import HostCosts
from modelmeter.predict.timeline import MAX_QUEUED, Advance, Step, device_only, serial, two_queues


def step(host: float, device: float, *, launches: int = 1, syncs: bool = False) -> Step:
    """Return a call in seconds of host and device."""
    return Step(host=host, device=np.array([device]), launches=launches, syncs=syncs)


def total(advances: list[Advance]) -> float:
    """Return when the stage is complete."""
    return float(sum(advance.seconds[0] for advance in advances))


NO_COSTS = HostCosts(classes={})


def test_a_fast_host_hides_behind_the_device() -> None:
    """Launched at 1, 2, 3; the device runs 1-6, 6-11, 11-16."""
    advances = two_queues([step(1, 5)] * 3, NO_COSTS)
    assert [float(advance.begin[0]) for advance in advances] == [1, 6, 11]
    assert total(advances) == 16


def test_a_slow_host_leaves_the_device_waiting() -> None:
    """Launched at 5, 10, 15; each kernel is done at once: 16 in all, 13 of them waiting."""
    advances = two_queues([step(5, 1)] * 3, NO_COSTS)
    assert total(advances) == 16
    assert sum(float(advance.waiting[0]) for advance in advances) == 13


def test_a_sync_in_the_middle_costs_more_than_the_maximum_of_the_sums() -> None:
    """Device-heavy, sync, then host-heavy: host 2 + 8, device 8 + 2; the sync makes it 1 + 8, then 8 + 1 = 18."""
    steps = [step(1, 8, syncs=True), step(8, 1)]
    assert total(two_queues(steps, NO_COSTS)) == 18
    free = [step(1, 8), step(8, 1)]
    assert total(two_queues(free, NO_COSTS)) == 10


def test_views_cost_the_host_alone_and_the_last_ones_count() -> None:
    """Host 1, kernel 1-2, then three views of 1 s each: the host is done at 4."""
    advances = two_queues([step(1, 1), *[step(1, 0, launches=0)] * 3], NO_COSTS)
    assert total(advances) == 4


def test_each_kernel_of_a_call_is_launched() -> None:
    """Three launches of 2 s, kernels of 1 s each, 6 s apart from the host's own 1: begun at 3, 5, 7, done at 8."""
    advances = two_queues([step(1, 3, launches=3)], HostCosts(classes={}, launch=2))
    assert total(advances) == 8


def test_the_host_stops_when_the_queue_is_full() -> None:
    """With the device at 1 s a kernel and the host at 0, launch 1,025 waits for kernel 1."""
    advances = two_queues([step(0, 1)] * (MAX_QUEUED + 10), NO_COSTS)
    assert float(advances[MAX_QUEUED - 1].host_begin[0]) == 0
    assert float(advances[-1].host_begin[0]) == 9


def test_a_graph_has_one_launch() -> None:
    """Launch 2 and latency 1 once, then 3 kernels of 5 s."""
    assert total(device_only([step(9, 5)] * 3, HostCosts(classes={}, launch=2, latency=1))) == 18


seconds = st.floats(min_value=0, max_value=10)
steps = st.lists(st.builds(step, seconds, seconds, syncs=st.booleans()), min_size=1, max_size=30)


@given(steps)
def test_the_total_lies_between_the_maximum_and_the_sum(calls: list[Step]) -> None:
    """max(host, device) <= two queues <= host + device, and the advances are never negative."""
    advances = two_queues(calls, NO_COSTS)
    host, device = sum(call.host for call in calls), sum(float(call.device[0]) for call in calls)
    assert max(host, device) - 1e-9 <= total(advances) <= host + device + 1e-9
    assert all(advance.waiting[0] >= -1e-12 and advance.busy[0] >= -1e-12 for advance in advances)


@given(steps)
def test_one_thread_takes_the_sum(calls: list[Step]) -> None:
    """On a CPU nothing overlaps."""
    assert total(serial(calls)) == pytest.approx(sum(call.host + float(call.device[0]) for call in calls))
