"""Does it fit: the memory of a run against a device's, what decides it, and the largest batch that has room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from attrs import frozen

from modelmeter import units
from modelmeter.capacity.checks import require_count, require_fraction
from modelmeter.capacity.errors import CapacityError, DoesNotFitError
from modelmeter.costs import Number
from modelmeter.defaults import USABLE
from modelmeter.devices import DeviceSpec
from modelmeter.predict.time_model import DeviceFacts
from modelmeter.reports.report import RunMemory, StageMemory

MOST = 4096
"""Largest batch that a search tries."""


@frozen(kw_only=True)
class Fit:
    """What a run needs of a device's memory, and what it may have."""

    device: str  # key
    memory: RunMemory  # bytes, by stage
    device_bytes: Number  # bytes, all of the device
    usable: float  # fraction of them that the run may take
    lower_bound: bool = False  # whether the run may need more than `memory` says, as under some what-ifs

    @property
    def usable_bytes(self) -> int:
        """Bytes that the run may take."""
        return int(self.device_bytes * self.usable)

    @property
    def spare_bytes(self) -> Number:
        """Bytes left over; below zero, bytes that are missing."""
        return self.usable_bytes - self.memory.peak_bytes

    @property
    def fits(self) -> bool:
        """Whether the run has room; of a lower bound, whether it may have."""
        return self.spare_bytes >= 0

    @property
    def decisive(self) -> StageMemory | None:
        """The stage whose peak decides, with its allocation and what lives beside it; None where loading decides."""
        return next((stage for stage in self.memory.stages if stage.stage == self.memory.decided_by), None)

    @property
    def reason(self) -> str:
        """What decides, in one sentence."""
        stage, memory = self.decisive, self.memory
        buffers = " and buffers" if memory.buffer_bytes else ""
        decided = (
            f"loading in fp32 before the cast, {_exact(memory.load_bytes)}"
            if stage is None
            else f"stage {stage.stage} at {stage.at} in {stage.module or 'the model itself'}, "
            f"{_exact(stage.peak_bytes)} beside {_exact(memory.held_bytes)} of weights{buffers}"
        )
        needed = _exact(memory.peak_bytes)
        if self.lower_bound:
            needed = f"at least {needed} (a lower bound)"
        return (
            f"needs {needed} of {_exact(self.usable_bytes)}, {self.usable:.4g} of {self.device}'s memory; decided by "
            f"{decided}"
        )


def _exact(amount: Number) -> str:
    """Write bytes with the digits that tell a batch from the next."""
    return units.format_bytes(amount, digits=5)


@frozen(kw_only=True)
class LargestBatch:
    """The largest batch that fits."""

    batch: int
    limit: int  # largest that was allowed
    fit: Fit  # at that batch
    over: Fit | None  # at one more, which has no room; None where the limit stopped the search


def fit(
    memory: RunMemory, *, device: DeviceSpec | DeviceFacts, usable: float = USABLE, lower_bound: bool = False
) -> Fit:
    """Return whether a run fits a device, and the stage and allocation that decide.

    Parameters
    ----------
    memory : RunMemory
        Of a batch, by `Service.memory` or `continuous_memory`.
    device : DeviceSpec or DeviceFacts
    usable : float
        Fraction of device memory that the run may take; see `USABLE`.
    lower_bound : bool
        Whether the run may need more than is known: `WhatIf.peaks_are_lower_bounds`.

    Raises
    ------
    CapacityError
        When `usable` is no fraction above 0.

    Examples
    --------
    >>> from modelmeter.devices import load_device
    >>> memory = RunMemory(
    ...     weight_bytes=6_672_547_840,
    ...     stage_peak_bytes=10**10,
    ...     running_bytes=16_672_547_840,
    ...     load_bytes=13_344_424_960,
    ...     peak_bytes=16_672_547_840,
    ...     decided_by="decode",
    ...     stages=(),
    ... )
    >>> fit(memory, device=load_device("l4")).fits, fit(memory, device=load_device("l4"), usable=0.5).fits
    (True, False)
    """
    require_fraction(usable, "usable")
    return Fit(
        device=device.key, memory=memory, device_bytes=device.memory_bytes, usable=usable, lower_bound=lower_bound
    )


def largest_batch(
    memory_of: Callable[[int], RunMemory],
    *,
    device: DeviceSpec | DeviceFacts,
    usable: float = USABLE,
    lower_bound: bool = False,
    limit: int = MOST,
) -> LargestBatch:
    """Return the largest batch that fits a device: by doubling, then bisection, on whole numbers.

    Parameters
    ----------
    memory_of : callable
        Batch -> memory, such as ``service.memory``; it must not fall as the batch grows.
    device, usable, lower_bound
        As in `fit`; of lower bounds, the batch is the largest that may fit.
    limit : int
        Largest batch to try.

    Raises
    ------
    DoesNotFitError
        When one request has no room.
    CapacityError
        When the limit is no whole number from 1 up, or the memory falls between two batches that were tried.
    """
    require_count(limit, "limit")
    tried: dict[int, Fit] = {}

    def at(batch: int) -> Fit:
        if batch not in tried:
            tried[batch] = fit(memory_of(batch), device=device, usable=usable, lower_bound=lower_bound)
        return tried[batch]

    if not at(1).fits:
        raise DoesNotFitError(
            f"one request does not fit {device.name}: it {at(1).reason}. Choose a device with more memory, a smaller "
            "page mode, or fewer new tokens"
        )
    low, high = 1, 1
    while high < limit and at(high).fits:
        low, high = high, min(2 * high, limit)
    if at(high).fits:
        _check_monotone(tried)
        return LargestBatch(batch=high, limit=limit, fit=at(high), over=None)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).fits else (low, middle)
    _check_monotone(tried)
    return LargestBatch(batch=low, limit=limit, fit=at(low), over=at(high))


def _check_monotone(tried: Mapping[int, Fit]) -> None:
    """Refuse an answer by bisection where it may be wrong."""
    for (small, less), (large, more) in pairwise(sorted(tried.items())):
        if more.memory.peak_bytes < less.memory.peak_bytes:
            raise CapacityError(
                f"memory falls from {less.memory.peak_bytes:,} bytes at batch {small} to {more.memory.peak_bytes:,} at "
                f"batch {large}, so no bisection finds the largest that fits; ask for single batches with `fit`"
            )
