"""Launches: how many kernels runs start on a GPU, one run or many of them in one session of the profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Copies and fills appear beside kernels; the driver runs them without one.
_NO_KERNEL = ("Memcpy", "Memset")
_MARK = "spin_kernel"  # of torch.cuda._sleep; no operator of a model starts it


def count_launches(run: Callable[[], object], device: torch.device) -> int | None:
    """Return how many kernels a run starts, copies and fills by the driver left out; None where nothing counts them.

    Examples
    --------
    >>> count_launches(lambda: torch.ones(2), torch.device("cpu")) is None
    True
    """
    if device.type != "cuda":
        return None
    # Without the right to trace the GPU the profiler sees no kernel at all.
    return sum(map(_is_kernel, _names_on_device(run, device))) or None


def count_launches_of_each(runs: Iterable[Callable[[], object]], device: torch.device) -> tuple[int, ...] | None:
    """Return how many kernels each of some runs starts, seen in one session of the profiler.

    A kernel that does nothing marks where a run begins and where it ends, on the device itself, so that no clock of the
    host has to agree with that of the device.

    Parameters
    ----------
    runs : iterable of callable
        Taken one after the other. What an iterator does to prepare the next one is not counted.
    device : torch.device
        A CUDA device; the runs start their kernels on its current stream.

    Returns
    -------
    tuple of int or None
        None where the profiler did not see every mark, or there is nothing that counts kernels.

    Examples
    --------
    >>> count_launches_of_each([lambda: torch.ones(2)], torch.device("cpu")) is None
    True
    """
    if device.type != "cuda":
        return None
    taken = 0

    def marked() -> None:
        nonlocal taken
        for run in runs:
            _mark(device)
            run()
            _mark(device)
            taken += 1

    counts = kernels_between_marks(_names_on_device(marked, device))
    return counts if counts is not None and len(counts) == taken else None


def kernels_between_marks(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return how many kernels lie from each opening mark to its closing one; None when a mark has no partner.

    Parameters
    ----------
    names : sequence of str
        Of what ran on the device, in the order in which it began.

    Examples
    --------
    Two kernels and a copy in the first run, none in the second; one between them belongs to neither.

    >>> mark = "at::cuda::spin_kernel(long)"
    >>> kernels_between_marks([mark, "gemm", "Memcpy DtoD", "add", mark, "rand", mark, mark])
    (2, 0)
    """
    marks = [position for position, name in enumerate(names) if _MARK in name]
    if len(marks) % 2:
        return None
    return tuple(
        sum(map(_is_kernel, names[begin + 1 : end])) for begin, end in zip(marks[::2], marks[1::2], strict=True)
    )


def _is_kernel(name: str) -> bool:
    return not name.startswith(_NO_KERNEL)


def _mark(device: torch.device) -> None:
    with torch.cuda.device(device):
        torch.cuda._sleep(1)  # pyright: ignore[reportPrivateUsage] - torch's only kernel that does nothing else


def _names_on_device(run: Callable[[], object], device: torch.device) -> list[str]:
    """Return what a run has the device do, by name, in the order in which it began."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        run()
        torch.cuda.synchronize(device)
    kineto: Any = profiler.profiler
    events = [
        event
        for event in kineto.kineto_results.events()
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    ]
    return [event.name() for event in sorted(events, key=lambda event: event.start_ns())]
