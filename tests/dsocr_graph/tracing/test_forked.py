"""Forked processes: outcomes in order, so many at a time, errors with their traceback, no process left behind."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dsocr_graph.tracing.forked import LostProcessError, forked, most_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux only")


def test_outcomes_come_in_order() -> None:
    """The first piece ends last: its result still comes first, and each was made in a process of its own."""

    def work(number: int) -> tuple[int, int]:
        time.sleep(0.2 if number == 0 else 0)
        return number, os.getpid()

    outcomes = [outcome for outcome in forked(work, 4, processes=2) if isinstance(outcome, tuple)]
    assert [number for number, _ in outcomes] == [0, 1, 2, 3]
    assert len({process for _, process in outcomes} | {os.getpid()}) == 5


@pytest.mark.parametrize(("processes", "most"), [(1, 1), (2, 2)])
def test_so_many_work_at_a_time(tmp_path: Path, processes: int, most: int) -> None:
    """Each piece counts the marks of those at work with it, its own included."""

    def work(number: int) -> int:
        mark = tmp_path / str(number)
        mark.touch()
        time.sleep(0.1)
        seen = len(list(tmp_path.iterdir()))
        mark.unlink()
        return seen

    seen = [outcome for outcome in forked(work, 4, processes=processes) if isinstance(outcome, int)]
    assert len(seen) == 4
    assert max(seen) == most


def test_an_error_is_an_outcome() -> None:
    """The error keeps its class and message, carries its traceback as a note, and the pieces after it go on."""

    def failing(number: int) -> int:
        if number == 0:
            raise KeyError("absent")
        return number

    error, result = forked(failing, 2, processes=2)
    assert isinstance(error, KeyError)
    assert error.args == ("absent",)
    assert "in failing" in "".join(error.__notes__)
    assert result == 1


def test_a_killed_process_is_reported() -> None:
    """As by the kernel for want of memory: the signal is named, the other process is stopped."""

    def work(number: int) -> None:
        if number == 1:
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(LostProcessError, match=r"exit code -9 before .* use one process \(processes=1\)"):
        list(forked(work, 2, processes=2))
    assert multiprocessing.active_children() == []


def test_closing_stops_what_is_at_work() -> None:
    """After the first outcome the rest is not waited for."""
    outcomes = forked(lambda number: time.sleep(60 * number), 3, processes=2)
    start = time.monotonic()
    next(outcomes)
    outcomes.close()
    assert time.monotonic() - start < 30  # seconds; well below 1 on an idle machine
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_ends_with_its_parent() -> None:
    """A parent that is killed, and so cannot stop its processes, leaves none at work."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        list(forked(lambda number: time.sleep(60), 2, processes=2))
        os._exit(0)
    os.close(writer)
    time.sleep(0.3)  # until it has forked
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    start = time.monotonic()
    assert os.read(reader, 1) == b""  # every holder of the other end is gone
    os.close(reader)
    assert time.monotonic() - start < 30  # seconds; at once on an idle machine


def test_no_fork_where_another_thread_could_hold_a_lock() -> None:
    """One process while a second Python thread runs, at most one per core after it."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert most_processes() == 1
    over.set()
    thread.join()
    assert 1 <= most_processes() <= len(os.sched_getaffinity(0))


def test_no_fork_in_a_process_that_may_have_no_children() -> None:
    """The forked processes themselves are such."""
    assert list(forked(lambda number: most_processes(), 1, processes=1)) == [1]
