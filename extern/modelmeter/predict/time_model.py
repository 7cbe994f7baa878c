"""TimeModel: what turns the runs of a stage into seconds, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

from attrs import field, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Number, Time
from modelmeter.devices import DeviceSpec
from modelmeter.model import AnalyticModel
from modelmeter.workload import StageRun


@frozen(kw_only=True)
class DeviceFacts:
    """The peaks of a device."""

    key: str
    name: str
    matrix_flops_per_second: Mapping[str, float]  # dense, by type
    vector_flops_per_second: Number  # fp32
    bytes_per_second: Number
    memory_bytes: Number

    @classmethod
    def of(cls, device: DeviceSpec) -> Self:
        """Return the peaks of a device of the table."""
        return cls(
            key=device.key,
            name=device.name,
            matrix_flops_per_second=dict(device.matrix_flops),
            vector_flops_per_second=device.vector_fp32_flops,
            bytes_per_second=device.memory_bandwidth,
            memory_bytes=device.memory_bytes,
        )


@frozen(kw_only=True)
class PredictionFacts:
    """How times were predicted."""

    method: str
    traffic: str  # "unfused", "fused" or "measured"
    device: DeviceFacts
    runtime: str = "none"  # "eager", "cudagraph" or "engine"; "none": kernels only
    source: Mapping[str, str] = field(factory=dict[str, str])  # of the measurements: device, versions, date


class TimeModel(Protocol):
    """Predicts the time of a stage's runs.

    `modelmeter.predict.Roofline` is one: a bound. `modelmeter.predict.Calibrated` predicts from measurements.
    """

    @property
    def facts(self) -> PredictionFacts:
        """What the times are and where they come from."""
        ...

    def times(self, model: AnalyticModel, run: StageRun, binding: Binding) -> Mapping[tuple[str, Category], Time]:
        """Return the time of all executions of a run, by module id and category; they add up to the run's time."""
        ...
