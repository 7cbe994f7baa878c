"""The clock of a CPU: what it counts, what it leaves out."""

import subprocess
import sys
import time

import pytest

from dsocr_graph.timing import clocks
from dsocr_graph.timing.clocks import CpuClock


def busy(seconds: float) -> None:
    """Use the processor for some time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture(scope="module")
def clock() -> CpuClock:
    """Return the clock of one thread."""
    return CpuClock(threads=1)


def test_a_window_returns_the_time_of_one_execution(clock: CpuClock) -> None:
    """Five executions of 4 ms each take 4 ms each."""

    def run(repeats: int) -> None:
        for _ in range(repeats):
            busy(0.004)

    assert clock.window(run, 5)() == pytest.approx(0.004, rel=0.1)


def test_one_thread_counts_work_and_not_waiting(clock: CpuClock) -> None:
    """What another process takes from the machine passes as a wait."""
    assert clock.window(lambda _: time.sleep(0.05), 1)() < 0.02


def test_several_threads_are_timed_by_the_wall() -> None:
    """Their CPU times would add up to more than what a caller waits for."""
    assert CpuClock(threads=2).window(lambda _: time.sleep(0.05), 1)() >= 0.04


def test_the_detour_of_calls_by_overload_is_some_microseconds(clock: CpuClock) -> None:
    """An execution of nothing is shorter than the detour and still takes some time."""
    assert 0 <= clock._detour < 1e-4
    assert clock.window(lambda _: None, 1)() > 0


def test_a_window_in_which_memory_was_handed_out_is_timed_anew(
    clock: CpuClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 first writes to a page beside 2 ms of work, once: the second attempt counts."""
    faults = iter([0, 10_000, 10_000, 10_000])
    monkeypatch.setattr(clocks, "_page_faults", lambda: next(faults))
    attempts: list[int] = []

    def run(repeats: int) -> None:
        attempts.append(repeats)
        busy(0.01 if len(attempts) == 1 else 0.002)

    assert clock.window(run, 1)() == pytest.approx(0.002, rel=0.1)
    assert attempts == [1, 1]


def test_a_call_that_always_asks_for_memory_is_timed_with_it(clock: CpuClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three attempts the last one counts."""
    faults = iter(range(0, 10**9, 10_000))
    monkeypatch.setattr(clocks, "_page_faults", lambda: next(faults))
    attempts: list[int] = []
    assert clock.window(attempts.append, 1)() > 0
    assert attempts == [1, 1, 1]


def test_memory_that_was_freed_is_reused_without_page_faults() -> None:
    """With the allocator pinned, the second tensor of 64 MB costs next to none of its 16,384 pages."""
    code = (
        "import torch\n"
        "from dsocr_graph.timing import clocks\n"
        "from dsocr_graph.timing.allocator import pin_allocator, warm_heap\n"
        "pinned = pin_allocator()\n"
        "warm_heap(80 * 2**20)\n"
        "before = clocks._page_faults()\n"
        "torch.zeros(2**24)\n"
        "print(clocks._page_faults() - before if pinned else -1)\n"
    )  # in a process of its own: what other tests left in the heap would count
    faults = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    if faults < 0:
        pytest.skip("only glibc can be told to keep what is freed")
    assert faults < 1000
