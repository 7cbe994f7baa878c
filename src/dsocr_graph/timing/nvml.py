"""NVML: a GPU's clock and power while something runs on it, where the package nvidia-ml-py is there to ask."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple, Self

import torch

from modelmeter.gpu_state import GpuState

SECONDS_APART = 0.1
"""Between samples: each takes the host some ten microseconds, a ten-thousandth of its time at this rate."""


class Reading(NamedTuple):
    """One sample."""

    clock_mhz: float
    power_watts: float


class GpuWatch(AbstractContextManager["GpuWatch"]):
    """Samples a GPU in the background while its block runs.

    Parameters
    ----------
    read : callable or None
        Returns the state now, or None where it cannot be told; `gpu_reader` makes one. None samples nothing.
    seconds_apart : float
        Between samples.

    Examples
    --------
    >>> with GpuWatch(lambda: Reading(clock_mhz=1980.0, power_watts=700.0)) as watch:
    ...     pass
    >>> watch.state().median_clock_mhz
    1980.0
    """

    def __init__(self, read: Callable[[], Reading | None] | None, *, seconds_apart: float = SECONDS_APART) -> None:
        self._read = read
        self._apart = seconds_apart
        self._readings: list[Reading] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="nvml", daemon=True)

    def __enter__(self) -> Self:
        """Begin to sample."""
        if self._read is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more samples; what was sampled stays."""
        self._over.set()
        if self._read is not None:
            self._thread.join()

    def state(self) -> GpuState | None:
        """Return what was sampled so far, or None where nothing could be."""
        readings = list(self._readings)
        if not readings:
            return None
        clocks, powers = zip(*readings, strict=True)
        return GpuState(
            samples=len(readings),
            median_clock_mhz=statistics.median(clocks),
            least_clock_mhz=min(clocks),
            median_power_watts=statistics.median(powers),
            most_power_watts=max(powers),
        )

    def _sample(self) -> None:
        assert self._read is not None
        while True:
            reading = self._read()
            if reading is not None:
                self._readings.append(reading)
            if self._over.wait(self._apart):
                return


def gpu_reader(device: torch.device) -> Callable[[], Reading | None] | None:
    """Return what reads the state of a device; None for a CPU, or where NVML cannot be asked about it.

    Examples
    --------
    >>> gpu_reader(torch.device("cpu")) is None
    True
    """
    if device.type != "cuda":
        return None
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:  # the package is optional
        return None
    # CUDA's order of devices is not the driver's.
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(name)
    except nvml.NVMLError:  # no driver library, or a part of a GPU
        return None

    def read() -> Reading | None:
        try:
            clock = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
            milliwatts = nvml.nvmlDeviceGetPowerUsage(handle)
        except nvml.NVMLError:  # not known right now, or not to this user
            return None
        return Reading(clock_mhz=float(clock), power_watts=milliwatts / 1000)

    return read
