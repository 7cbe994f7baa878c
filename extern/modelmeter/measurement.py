"""Measurement: how long the stages of a real model took on one machine, as a record and as a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import cattrs
import numpy as np
from attrs import field, frozen

from modelmeter.errors import ModelMeterError
from modelmeter.gpu_state import GpuState
from modelmeter.json_text import dump_json, read_bytes, register_plain, structure_text
from modelmeter.machine import Machine
from modelmeter.model import Stage

MEASUREMENT_SCHEMA_VERSION = 1


class MeasurementFileError(ModelMeterError, ValueError):
    """A file that is no measurement, or one of another schema version."""


class MissingMeasurementError(MeasurementFileError, FileNotFoundError):
    """A measurement file that cannot be read at all."""


@frozen(kw_only=True)
class StageMeasurement:
    """One stage at some sizes: uninstrumented runs, and a run that times every call.

    Attributes
    ----------
    wall_seconds, cpu_seconds : tuple of float
        Of each uninstrumented run after the warm-ups, from before its first call until its results are there. CPU time
        is of the process, all threads; it is empty where a GPU does the work.
    call_seconds : tuple of float
        Of each call of an instrumented run, in the order of the stage's schedule (`modelmeter.model.Stage.schedule`):
        on a CPU from its beginning to that of the next, so that the Python between two calls counts to the first; on a
        GPU its kernels and what the device waits while the host is in the call. The median where there were several
        such runs. Not scaled.
    device_seconds : tuple of float
        On a GPU, of each call's kernels alone; empty where nothing told them apart.
    beside_seconds : tuple of float
        Of uninstrumented runs that took turns with those whose calls were timed, where the runs that count were made at
        another time: a machine may be faster by then. Of the kind that `seconds` is of; empty: the runs that count.
    peak_bytes : int or None
        Largest sum of allocations alive beyond what was there before, by the allocator, inputs not included; None where
        it was not measured.
    input_bytes : int
        Of the stage's inputs.
    launches : int or None
        Kernels started on the device; None where nothing counts them.
    active_experts : mapping of str to float
        Distinct experts that the run touched, by the path of the module with experts.
    gpu : GpuState or None
        Of the GPU during the runs that count; None on a CPU, and where the driver's library was not there to ask.
    """

    stage: str
    bindings: Mapping[str, int]
    warmups: int
    wall_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...] = ()
    call_seconds: tuple[float, ...] = ()
    device_seconds: tuple[float, ...] = ()
    beside_seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    input_bytes: int = 0
    launches: int | None = None
    active_experts: Mapping[str, float] = field(factory=dict[str, float])
    gpu: GpuState | None = None

    @property
    def seconds(self) -> float:
        """The time to compare predictions with: the median CPU time where there is one, else the median wall time."""
        return float(np.median(self.cpu_seconds or self.wall_seconds))

    @property
    def spread(self) -> float:
        """Half the range between the quartiles, as a share of the median."""
        low, middle, high = np.quantile(self.cpu_seconds or self.wall_seconds, (0.25, 0.5, 0.75))
        return float((high - low) / 2 / middle)

    @property
    def attributed(self) -> float:
        """The timed calls together over the run beside them, as it is.

        Below 1 the rest runs between calls; above 1, timing call by call costs more than it attributes, or
        the run was the faster of the two.
        """
        return float(np.sum(self.call_seconds)) / self._run_beside

    @property
    def scaled_call_seconds(self) -> tuple[float, ...]:
        """The calls' times as shares of `seconds`: together `attributed` of it, or all of it where that is above 1."""
        return tuple(seconds * self._scale for seconds in self.call_seconds)

    @property
    def scaled_waiting_seconds(self) -> tuple[float, ...]:
        """What of `scaled_call_seconds` the device waits for the host; nothing where kernels were not told apart."""
        if not self.device_seconds:
            return (0.0,) * len(self.call_seconds)
        both = zip(self.call_seconds, self.device_seconds, strict=True)
        return tuple(max(0.0, whole - kernels) * self._scale for whole, kernels in both)

    @property
    def _scale(self) -> float:
        return self.seconds / max(self._run_beside, float(np.sum(self.call_seconds)))

    @property
    def _run_beside(self) -> float:
        """The run that timed calls took turns with. Unit: seconds."""
        return float(np.median(self.beside_seconds)) if self.beside_seconds else self.seconds


def expected_peak_bytes(stage: Stage, bindings: Mapping[str, int], input_bytes: int) -> int:
    """Return what `StageMeasurement.peak_bytes` is by the analytic model: the peak of a stage less its inputs."""
    return int(max((sum(peak.bytes_at(bindings)) for peak in stage.peaks), default=0)) - input_bytes


@frozen(kw_only=True)
class CallCount:
    """How often a module was called, by hooks in a real run and by the captured graph."""

    stage: str
    module: str  # id in the analytic model
    counted: int
    expected: int


@frozen(kw_only=True)
class Measurement:
    """A model variant measured on one machine."""

    machine: Machine
    date: str  # YYYY-MM-DD
    model: str
    variant: Mapping[str, str]
    weights: str  # "random", or the checkpoint's name
    stages: tuple[StageMeasurement, ...]
    calls: tuple[CallCount, ...] = ()

    @property
    def miscounted(self) -> tuple[CallCount, ...]:
        """Modules whose calls the graph gets wrong."""
        return tuple(count for count in self.calls if count.counted != count.expected)


def measurement_to_json(measurement: Measurement) -> str:
    """Write a measurement as JSON, one stage a line; ends with a newline."""
    document = {"schema_version": MEASUREMENT_SCHEMA_VERSION, **_converter().unstructure(measurement)}
    return dump_json(document, depths={})


def measurement_from_json(text: str | bytes, *, source: str = "the text") -> Measurement:
    """Read a measurement from JSON.

    Raises
    ------
    MeasurementFileError
        When the text is cut off, no JSON, of another schema version or no measurement.
    """
    return structure_text(
        text,
        Measurement,
        _converter(),
        source=source,
        kind="measurement",
        version=MEASUREMENT_SCHEMA_VERSION,
        error=MeasurementFileError,
    )


def read_measurement(path: str | Path) -> Measurement:
    """Read a measurement file.

    Raises
    ------
    MissingMeasurementError
        When the file cannot be read.
    MeasurementFileError
        When its content is no measurement.
    """
    data = read_bytes(
        path, kind="measurement", error=MissingMeasurementError, advice="; `dsocr-graph measure` makes one"
    )
    return measurement_from_json(data, source=str(path))


@lru_cache(maxsize=1)
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    register_plain(converter)
    return converter
