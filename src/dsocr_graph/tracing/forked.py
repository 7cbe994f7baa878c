"""Forked processes: pieces of work done side by side by copies of this process, their outcomes handed back in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import TypeVar, cast

from dsocr_graph.errors import DsocrGraphError

Result = TypeVar("Result")


class LostProcessError(DsocrGraphError, RuntimeError):
    """A process that ended before it handed back what it was asked for."""


def most_processes() -> int:
    """Return how many processes of this one's kind can work side by side: one per core, or 1 where forks are not safe.

    A fork copies the memory but only the thread that forks: a lock that another Python thread holds would stay locked
    in the copy for good. Outside Linux, the system's own libraries do not survive a fork. Daemonic processes may have
    no children.

    Examples
    --------
    >>> most_processes() >= 1
    True
    """
    if sys.platform != "linux" or threading.active_count() > 1 or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


def forked(work: Callable[[int], Result], count: int, *, processes: int) -> Generator[Result | Exception]:
    """Yield what `work(0)`, `work(1)`, ... return or raise, each run by a copy of this process as it is then.

    Parameters
    ----------
    work : callable
        What to do for a number below `count`. What it returns or raises is pickled; what it changes in memory is lost.
        An exception carries the traceback in its process as a note.
    count : int
        Number of calls.
    processes : int
        Most processes at a time, at least 1. Those still at work are killed when the iterator is closed.

    Raises
    ------
    LostProcessError
        When a process ends without handing anything back.

    Examples
    --------
    >>> list(forked(lambda number: 6 // number, 3, processes=2))
    [ZeroDivisionError('integer division or modulo by zero'), 6, 3]
    """
    unstarted = iter(range(count))
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    outcomes: dict[int, Result | Exception] = {}
    try:
        for turn in range(count):
            while turn not in outcomes:
                for number in islice(unstarted, processes - len(running)):
                    connection, process = _started(work, number)
                    running[connection] = number, process
                for ready in wait(list(running)):
                    connection = cast("Connection", ready)
                    number, process = running[connection]
                    outcomes[number] = cast("Result | Exception", _received(connection, process))
                    del running[connection]
            yield outcomes.pop(turn)
    finally:
        for connection, (_, process) in running.items():
            process.kill()
            process.join()
            connection.close()


def _started(work: Callable[[int], object], number: int) -> tuple[Connection, ForkProcess]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(work, number, sender), daemon=True)
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads in native code too; torch's own hold no lock between two operators.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        process.start()
    sender.close()  # else the end of the process would not end the pipe
    return receiver, process


def _run(work: Callable[[int], object], number: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle; it kills its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = work(number)
    except Exception as error:
        error.add_note(f"in process {os.getpid()}:\n{traceback.format_exc()}")
        outcome = error
    sender.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _received(connection: Connection, process: ForkProcess) -> object:
    try:
        outcome = connection.recv()
    except EOFError:
        process.join()
        raise LostProcessError(
            f"process {process.pid} ended with exit code {process.exitcode} before it handed back its result; a "
            "negative code is the signal that killed it, -9 most often for want of memory. Free memory, or use one "
            "process (processes=1)"
        ) from None
    process.join()
    connection.close()
    return outcome
