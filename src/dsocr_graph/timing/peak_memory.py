"""Peak memory of a run, as the allocator of the device saw it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Given = TypeVar("Given")

_BEGIN = "dsocr_graph: the run begins"
_ALLOCATION = "[memory]"  # torch's name of the events of its CPU allocator


def peak_memory(prepare: Callable[[], Given], run: Callable[[Given], object], device: torch.device | str) -> int:
    """Return the largest sum of allocations alive during a run, beyond those alive when it began. Unit: bytes.

    What the run frees counts: a run that replaces what it was given, as a decode step replaces its KV cache, has that
    memory to use again.

    Parameters
    ----------
    prepare : callable
        Makes what the run takes, such as the inputs of a stage; what it allocates is there before the run begins.
    run : callable
        Takes that and returns its results, which stay alive until the end.
    device : torch.device or str
        Whose allocator is asked. On a CPU it is torch's own, which sees neither Python's objects nor the scratch
        memory of libraries.

    Examples
    --------
    >>> peak_memory(lambda: torch.ones(1000), lambda x: x.neg().exp(), "cpu")  # two results of 4,000 bytes
    8000
    """
    gc.collect()
    if torch.device(device).type == "cpu":
        return _peak_on_cpu(prepare, run)
    return _peak_on_cuda(prepare, run, torch.device(device))


def _peak_on_cuda(prepare: Callable[[], Given], run: Callable[[Given], object], device: torch.device) -> int:
    given = prepare()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    results = run(given)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del results
    return max(0, peak - before)


def _peak_on_cpu(prepare: Callable[[], Given], run: Callable[[Given], object]) -> int:
    # Both inside: the profiler knows the size of a block that is freed only if it saw it allocated.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        given = prepare()
        with record_function(_BEGIN):
            pass
        results = run(given)
    del results
    kineto: Any = profiler.profiler
    sizes: list[int] = []
    for event in sorted(kineto.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == _BEGIN:
            sizes = []
        elif event.name() == _ALLOCATION:
            sizes.append(event.nbytes())
    return max(accumulate(sizes), default=0)
