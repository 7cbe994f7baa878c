"""Launches: how many kernels a run starts on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Copies and fills appear beside kernels; the driver runs them without one.
_NO_KERNEL = ("Memcpy", "Memset")


def count_launches(run: Callable[[], object], device: torch.device) -> int | None:
    """Return how many kernels a run starts, copies and fills by the driver left out; None where nothing counts them.

    Examples
    --------
    >>> count_launches(lambda: torch.ones(2), torch.device("cpu")) is None
    True
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        run()
        torch.cuda.synchronize(device)
    kineto: Any = profiler.profiler
    names = [
        event.name()
        for event in kineto.kineto_results.events()
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    ]
    # Without the right to trace the GPU the profiler sees no kernel at all.
    return sum(not name.startswith(_NO_KERNEL) for name in names) or None
