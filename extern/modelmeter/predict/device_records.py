"""Device records of the package with the tables, and whether our own figures of a device agree with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from attrs import frozen

from modelmeter.devices import DeviceSpec
from modelmeter.errors import InvalidDeviceError, ModelMeterError
from modelmeter.predict.table_files import PACKAGE, TablesFormatError, read_yaml, systems_folder

SYSTEMS: Mapping[str, str] = MappingProxyType(
    {
        "a100-80gb-pcie": "a100_pcie",
        "a100-80gb-sxm": "a100_sxm",
        "b200": "b200_sxm",
        "h100-pcie": "h100_pcie",
        "h100-sxm": "h100_sxm",
        "h200": "h200_sxm",
        "l4": "l4",
        "l40s": "l40s",
    }
)
"""The package's name of each device of devices.toml that it has a record of."""

# Every figure of both may be rounded: 989.4 and 989 TFLOP/s are one peak.
_TOLERANCE = 0.01


class MissingTablesError(ModelMeterError, LookupError):
    """The installed package has no tables of a device, or none of one framework."""


@frozen(kw_only=True)
class DeviceRecord:
    """What the package says of a system: peaks, and how memory-bound kernels came out."""

    system: str
    matrix_flops: Mapping[str, float]  # dense FLOP/s by type: "bf16", "fp8"
    memory_bandwidth: float  # bytes per second
    memory_bytes: int  # as a program sees them
    power: float  # watts
    memory_efficiency: float  # share of the bandwidth that memory-bound kernels reach, by NVIDIA's observation
    kernel_latency: float  # seconds that a memory-bound kernel takes beside, by the same observation


def load_device_record(device: str) -> DeviceRecord:
    """Return the package's record of a device.

    Raises
    ------
    MissingTablesPackageError
        When the package is not installed.
    MissingTablesError
        When it has no record of the device.
    """
    folder = systems_folder()
    if device not in SYSTEMS:
        raise MissingTablesError(f"{PACKAGE} has no record of {device}; it has those of {', '.join(SYSTEMS)}")
    path = folder / f"{SYSTEMS[device]}.yaml"
    gpu = read_yaml(path).get("gpu", {})
    try:
        peaks = {"bf16": gpu["bfloat16_tc_flops"], "fp8": gpu.get("fp8_tc_flops")}
        return DeviceRecord(
            system=SYSTEMS[device],
            matrix_flops={dtype: float(peak) for dtype, peak in peaks.items() if peak is not None},
            memory_bandwidth=float(gpu["mem_bw"]),
            memory_bytes=int(gpu["mem_capacity"]),
            power=float(gpu["power"]),
            memory_efficiency=float(gpu["mem_bw_empirical_scaling_factor"]),
            kernel_latency=float(gpu["mem_empirical_constant_latency"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TablesFormatError(f"{path} has no figure {error}") from error


def check_against_tables(device: DeviceSpec) -> None:
    """Check that a device's peaks, bandwidth, memory and power agree with the installed package's record.

    Raises
    ------
    InvalidDeviceError
        When they differ by more than rounding does; for a peak that is twice the other, the message says that one of
        the two counts sparsity.
    MissingTablesPackageError, MissingTablesError
        When there is nothing to compare with.
    """
    record = load_device_record(device.key)
    pairs = {
        **{
            f"{dtype} peak": (device.matrix_flops.get(dtype, math.nan), peak)
            for dtype, peak in record.matrix_flops.items()
        },
        "bandwidth": (device.memory_bandwidth, record.memory_bandwidth),
        "power": (device.tdp, record.power),
    }
    problems = [
        f"{name} is {ours:g} here and {theirs:g} there{_sparsity_hint(ours / theirs)}"
        for name, (ours, theirs) in pairs.items()
        if not math.isclose(ours, theirs, rel_tol=_TOLERANCE)
    ]
    if not record.memory_bytes * (1 - _TOLERANCE) <= device.memory_bytes <= record.memory_bytes * 1.1:
        # what a program sees lies below what is built in: ECC and the driver take their part
        problems.append(f"memory is {device.memory_bytes} bytes here and {record.memory_bytes} there")
    if problems:
        raise InvalidDeviceError(
            f"device {device.key!r} disagrees with the record {record.system} of {PACKAGE}: {'; '.join(problems)}. "
            "Correct devices.toml, with a source for each figure"
        )


def _sparsity_hint(ratio: float) -> str:
    return ", so one of the two counts sparsity" if math.isclose(max(ratio, 1 / ratio), 2, rel_tol=_TOLERANCE) else ""
