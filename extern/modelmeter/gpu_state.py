"""The state of a GPU while it was measured: clock and power, which decide how far two measurements can agree."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class GpuState:
    """Clock and power of a GPU, sampled now and then during some work."""

    samples: int
    median_clock_mhz: float  # of the multiprocessors
    least_clock_mhz: float
    median_power_watts: float
    most_power_watts: float
