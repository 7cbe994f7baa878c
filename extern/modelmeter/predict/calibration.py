"""Calibration: measured times of operator calls on one machine, as a record and as a file."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cattrs
import numpy as np
from attrs import field, frozen

from modelmeter.errors import ModelMeterError
from modelmeter.gpu_state import GpuState
from modelmeter.json_text import dump_json, read_bytes, register_plain, structure_text, write_again
from modelmeter.machine import Machine
from modelmeter.signature import Signature, signature_from_json, signature_to_json

if TYPE_CHECKING:
    from attrs import Attribute

CALIBRATION_SCHEMA_VERSION = 1
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_GZIP_MAGIC = b"\x1f\x8b"


class CalibrationFileError(ModelMeterError, ValueError):
    """A file that is no calibration, or one of another schema version."""


class MissingCalibrationError(CalibrationFileError, FileNotFoundError):
    """A calibration file that cannot be read at all."""


class CalibrationMismatchError(ModelMeterError, ValueError):
    """A calibration of another machine, or of other software, than the one it is to be used for."""


def _checked_seconds(sample: Sample, _attribute: Attribute[tuple[float, ...]], value: tuple[float, ...]) -> None:
    if not value or not all(0 < seconds < float("inf") for seconds in value):
        raise CalibrationFileError(f"{sample.signature.text} has the times {value}; they are positive seconds")


def _checked_date(_owner: object, _attribute: Attribute[str], value: str) -> None:
    if not _DATE.fullmatch(value):
        raise CalibrationFileError(f"the date of a calibration is {value!r}; write YYYY-MM-DD")


def _checked_unique(_owner: object, _attribute: Attribute[Any], value: tuple[Sample, ...]) -> None:
    twice = [key for key, count in Counter(sample.key for sample in value).items() if count > 1]
    if twice:
        raise CalibrationFileError(
            f"more than one sample of {len(twice):,} of the calls, first {twice[0]}; a call has one, of all passes"
        )


def _positive(owner: object, attribute: Attribute[Any], value: float) -> None:
    if not 0 < value < float("inf"):
        raise CalibrationFileError(f"{_place(owner, attribute)} is {value}; it is positive and finite")


def _not_negative(owner: object, attribute: Attribute[Any], value: float) -> None:
    if not 0 <= value < float("inf"):
        raise CalibrationFileError(f"{_place(owner, attribute)} is {value}; it is finite and not negative")


def _each(
    check: Callable[[object, Attribute[Any], float], None],
) -> Callable[[object, Attribute[Any], Mapping[str, float]], None]:
    """Return a validator that checks every figure of a mapping."""

    def checked(owner: object, attribute: Attribute[Any], value: Mapping[str, float]) -> None:
        for name, figure in value.items():
            check(owner, attribute.evolve(name=f"{attribute.name}.{name}"), figure)

    return checked


def _place(owner: object, attribute: Attribute[Any]) -> str:
    whose = f" of {owner.signature.text}" if isinstance(owner, Sample) else ""
    return f"{type(owner).__name__}.{attribute.name}{whose}"


@frozen(kw_only=True)
class Sample:
    """One operator call, timed in several passes over all calls.

    Attributes
    ----------
    signature : Signature
        The call, with numbers.
    seconds : tuple of float
        Time of one execution on the device, one figure a pass; on a CPU the time of the call.
    launches : int
        Kernels that the call starts; 0 where nothing runs on a device. On a CPU 0.
    conditions : mapping of str to int
        What else the time depends on: ``active_experts`` of a grouped product.

    Examples
    --------
    >>> sample = Sample(signature=Signature(op="aten::rand", overload="", arguments={}), seconds=(3.0, 1.0, 2.0))
    >>> sample.quantile(0.25)
    1.5
    """

    signature: Signature
    seconds: tuple[float, ...] = field(validator=_checked_seconds)
    launches: int = field(default=0, validator=_not_negative)
    conditions: Mapping[str, int] = field(factory=dict[str, int], validator=_each(_not_negative))
    flops: float = field(default=0.0, validator=_not_negative)  # FLOPs of one execution, as the layer states them
    bytes: float = field(default=0.0, validator=_not_negative)  # bytes of one execution, unfused, as the layer states

    def quantile(self, share: float) -> float:
        """Return a quantile of the passes. Unit: seconds."""
        return float(np.quantile(self.seconds, share))

    @cached_property
    def key(self) -> str:
        """The call and its conditions in one line, unique in a calibration."""
        return sample_key(self.signature, self.conditions)


def sample_key(signature: Signature, conditions: Mapping[str, int]) -> str:
    """Return what tells two timed calls apart."""
    return signature.text + "".join(f" {name}={value}" for name, value in sorted(conditions.items()))


@frozen(kw_only=True)
class HostCosts:
    """What the host spends per operator call and around it, in seconds.

    Attributes
    ----------
    classes : mapping of str to float
        Host time of one call by the class of its operator (`modelmeter.predict.host.HOST_CLASSES`), launches left out.
        On a CPU only "view", "module" and "turn" count: the time of any other call contains its own.
    launch : float
        Of each kernel that is started.
    latency : float
        From the launch of a kernel until it runs on an idle device.
    sync : float
        Of waiting for the device, once it is done.
    """

    classes: Mapping[str, float] = field(validator=_each(_not_negative))
    launch: float = field(default=0.0, validator=_not_negative)
    latency: float = field(default=0.0, validator=_not_negative)
    sync: float = field(default=0.0, validator=_not_negative)


@frozen(kw_only=True)
class Peaks:
    """The best rates seen on the machine: what measured times are compared with, never times themselves."""

    matrix_flops: Mapping[str, float] = field(validator=_each(_positive))  # FLOP/s of large products, by type: "bf16"
    vector_flops: float = field(validator=_positive)  # fp32 FLOP/s outside matrix products
    bandwidth: float = field(validator=_positive)  # bytes/s read and written by a large copy


@frozen(kw_only=True)
class Sentinel:
    """One timing of a fixed call, repeated through a calibration to show drift."""

    elapsed: float = field(validator=_not_negative)  # seconds since the calibration began
    name: str
    seconds: float = field(validator=_positive)


@frozen(kw_only=True)
class CalibratedModel:
    """A model variant whose calls a calibration covers, and the sizes that it was planned for."""

    name: str
    variant: Mapping[str, str]
    points: tuple[tuple[str, Mapping[str, int]], ...]  # stage and sizes


@frozen(kw_only=True)
class Calibration:
    """Times of operator calls on one machine, with what the host spends.

    Every pass of every call is kept: which of them counts is decided when they are used. Two things are done to a
    figure before: what timing itself takes is subtracted (on a CPU the detour by an operator's name, on a GPU that of
    two events with nothing between them), and it is rounded to four digits.
    """

    machine: Machine
    date: str = field(validator=_checked_date)  # YYYY-MM-DD
    models: tuple[CalibratedModel, ...]
    peaks: Peaks
    host: HostCosts
    samples: tuple[Sample, ...] = field(validator=_checked_unique)
    sentinels: tuple[Sentinel, ...] = ()
    gpu: tuple[GpuState, ...] = ()  # of the GPU, one a pass; none on a CPU, or without the driver's library to ask

    @property
    def drift(self) -> float:
        """How far sentinels are from their own median: the median distance, as a share, of the worst sentinel."""
        by_name: dict[str, list[float]] = {}
        for sentinel in self.sentinels:
            by_name.setdefault(sentinel.name, []).append(sentinel.seconds)
        distances = (np.abs(np.array(times) / np.median(times) - 1) for times in by_name.values())
        return max((float(np.median(each)) for each in distances), default=0.0)

    def require(self, machine: Machine) -> None:
        """Refuse to be used for another machine.

        Raises
        ------
        CalibrationMismatchError
            When a device, driver, thread count or torch version differs; the message names each.
        """
        differences = self.machine.differences(machine)
        if differences:
            raise CalibrationMismatchError(
                f"the calibration of {self.date} is of another machine: {'; '.join(differences)}. "
                "Calibrate this one with `dsocr-graph calibrate`, or go back to what was calibrated"
            )


def calibration_to_json(calibration: Calibration) -> str:
    """Write a calibration as JSON, one sample a line; ends with a newline."""
    document = {"schema_version": CALIBRATION_SCHEMA_VERSION, **_converter().unstructure(calibration)}
    return dump_json(document, depths={"models": 3})


def calibration_from_json(text: str | bytes, *, source: str = "the text") -> Calibration:
    """Read a calibration from JSON.

    Raises
    ------
    CalibrationFileError
        When the text is cut off, no JSON, of another schema version or no calibration.
    """
    return structure_text(
        text,
        Calibration,
        _converter(),
        source=source,
        kind="calibration",
        version=CALIBRATION_SCHEMA_VERSION,
        error=CalibrationFileError,
    )


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file, gzip or plain.

    Raises
    ------
    MissingCalibrationError
        When the file cannot be read.
    CalibrationFileError
        When its content is no calibration.
    """
    data = read_bytes(
        path, kind="calibration", error=MissingCalibrationError, advice="; `dsocr-graph calibrate` makes one"
    )
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise CalibrationFileError(
                f"{path} is cut off or damaged: {error}; {write_again('calibration')}"
            ) from error
    return calibration_from_json(data, source=str(path))


@lru_cache(maxsize=1)
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    register_plain(converter)
    converter.register_structure_hook(Signature, lambda value, _: signature_from_json(value))
    converter.register_unstructure_hook(Signature, signature_to_json)
    return converter
