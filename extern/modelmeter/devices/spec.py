"""DeviceSpec: one device's ceilings, checked when the record is made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrs import field, frozen

from modelmeter.errors import InvalidDeviceError

MATRIX_DTYPES = ("bf16", "fp16", "tf32", "fp8")
"""Types that matrix units multiply; fp16 and bf16 accumulate in fp32."""

RATIO_TOLERANCE = 0.02
"""How far rounded datasheet figures may be from the ratios that the hardware has."""

_EXPECTED_RATIO_TO_BF16 = {"fp16": 1.0, "tf32": 0.5, "fp8": 2.0}
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


def _frozen_mapping(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


@frozen(kw_only=True)
class Link:
    """A connection to other devices or the host.

    Attributes
    ----------
    name : str
        E.g. ``"NVLink4"``.
    bandwidth : float
        Bytes per second, both directions together, as vendors state it.
    """

    name: str
    bandwidth: float  # bytes per second


@frozen(kw_only=True)
class Architecture:
    """What one multiprocessor of an architecture does in a clock: the bound that unmasks sparse peaks.

    Attributes
    ----------
    name : str
        E.g. ``"hopper"``.
    fp32_flops_per_clock : int
        FLOPs per multiprocessor and clock on CUDA cores; one multiply-add is 2.
    bf16_flops_per_clock : int
        Dense FLOPs per multiprocessor and clock on matrix units, accumulating in fp32.
    source : str
        Where the two numbers come from.
    """

    name: str
    fp32_flops_per_clock: int  # FLOPs
    bf16_flops_per_clock: int  # FLOPs
    source: str


@frozen(kw_only=True)
class DeviceSpec:
    """A device's ceilings: dense rates to divide by, never times.

    Attributes
    ----------
    key : str
        The short name, e.g. ``"h100-sxm"``.
    name : str
        The full name.
    vendor : str
    architecture : Architecture
    aliases : tuple of str
        Other spellings, such as the name that a driver reports.
    matrix_flops : mapping of str to float
        Peak dense FLOP/s of the matrix units by type (bf16, fp16, tf32, fp8); a type that they do not
        multiply is absent.
    vector_fp32_flops : float
        Peak fp32 FLOP/s of the CUDA cores (or stream processors).
    memory_bytes : int
        Device memory, in bytes; a vendor's "80 GB" is 80 * 2**30.
    memory_bandwidth : float
        Peak bytes per second between device memory and chip, undiscounted.
    l2_bytes : int
        Second-level cache, in bytes.
    sm_count : int
        Streaming multiprocessors (compute units on AMD).
    tdp : float
        Board power in watts.
    links : tuple of Link
    sources : mapping of str to str
        Where each number comes from, by field name (``matrix_flops.bf16``, ``links.NVLink4``, ...).
    date : str
        Year and month in which the numbers were gathered, ``YYYY-MM``.
    note : str
        What a reader must know beside the numbers; may be empty.

    Raises
    ------
    InvalidDeviceError
        When a number is not positive and finite or has no source, the types' peaks are not in the ratio that
        dense peaks have (fp16 = bf16, tf32 = bf16 / 2, fp8 = 2 bf16), or the bf16 peak is above what the
        architecture does densely at the clock of its CUDA-core peak: the mark of a sparse figure.
    """

    key: str
    name: str
    vendor: str
    architecture: Architecture
    aliases: tuple[str, ...] = ()
    matrix_flops: Mapping[str, float] = field(converter=_frozen_mapping)  # FLOP/s
    vector_fp32_flops: float  # FLOP/s
    memory_bytes: int  # bytes
    memory_bandwidth: float  # bytes per second
    l2_bytes: int  # bytes
    sm_count: int
    tdp: float  # watts
    links: tuple[Link, ...]
    sources: Mapping[str, str] = field(converter=_frozen_mapping)
    date: str
    note: str = ""

    def __attrs_post_init__(self) -> None:
        """Refuse numbers that cannot be right."""
        numbers = self.numbers()
        self._check_positive(numbers)
        self._check_sources(numbers)
        self._check_ratios()
        self._check_dense()

    def numbers(self) -> dict[str, float]:
        """Return every sourced number by field name, in base units.

        Examples
        --------
        >>> from modelmeter.devices import load_device
        >>> load_device("h200").numbers()["sm_count"]
        132
        """
        return {
            **{f"matrix_flops.{dtype}": flops for dtype, flops in self.matrix_flops.items()},
            "vector_fp32_flops": self.vector_fp32_flops,
            "memory_bytes": self.memory_bytes,
            "memory_bandwidth": self.memory_bandwidth,
            "l2_bytes": self.l2_bytes,
            "sm_count": self.sm_count,
            "tdp": self.tdp,
            **{f"links.{link.name}": link.bandwidth for link in self.links},
        }

    def peak_flops(self, dtype: str) -> float:
        """Return the peak dense FLOP/s of matrix products in a type.

        Parameters
        ----------
        dtype : str
            ``bf16``, ``fp16``, ``tf32``, ``fp8`` on matrix units; ``fp32`` on CUDA cores.

        Raises
        ------
        InvalidDeviceError
            When the device does not multiply this type; the message lists the types it does.

        Examples
        --------
        >>> from modelmeter.devices import load_device
        >>> load_device("l4").peak_flops("bf16"), load_device("l4").peak_flops("fp32")
        (121000000000000.0, 30300000000000.0)
        """
        if dtype == "fp32":
            return self.vector_fp32_flops
        if dtype not in self.matrix_flops:
            known = ", ".join([*self.matrix_flops, "fp32"])
            raise InvalidDeviceError(f"{self.name} has no peak for {dtype!r}; it has {known}")
        return self.matrix_flops[dtype]

    def _fail(self, problem: str) -> None:
        raise InvalidDeviceError(f"device {self.key!r}: {problem}")

    def _check_positive(self, numbers: Mapping[str, float]) -> None:
        unknown = sorted(set(self.matrix_flops) - set(MATRIX_DTYPES))
        if unknown:
            known = ", ".join(MATRIX_DTYPES)
            self._fail(f"matrix_flops has unknown types {', '.join(unknown)}; known are {known}")
        if "bf16" not in self.matrix_flops:
            self._fail("matrix_flops has no bf16, the type that the others are checked against")
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._fail(f"{name} is {value!r}, not a number")
            if not math.isfinite(value) or value <= 0:
                self._fail(f"{name} is {value!r}; it must be positive and finite")

    def _check_sources(self, numbers: Mapping[str, float]) -> None:
        missing = [name for name in numbers if not self.sources.get(name, "").strip()]
        if missing:
            self._fail(f"no source for {', '.join(missing)}; name one for each number")
        if not _DATE.fullmatch(self.date):
            self._fail(f"date is {self.date!r}; write the year and month of the numbers as YYYY-MM")

    def _check_ratios(self) -> None:
        bf16 = self.matrix_flops["bf16"]
        for dtype, ratio in _EXPECTED_RATIO_TO_BF16.items():
            if dtype not in self.matrix_flops:
                continue
            actual = self.matrix_flops[dtype] / bf16
            if not math.isclose(actual, ratio, rel_tol=RATIO_TOLERANCE):
                self._fail(
                    f"{dtype} peak is {actual:.3g} times the bf16 peak, dense peaks are {ratio:g} times; "
                    "one of the two counts sparsity or another accumulator"
                )

    def _check_dense(self) -> None:
        chip = self.architecture
        per_clock = self.matrix_flops["bf16"] / self.vector_fp32_flops * chip.fp32_flops_per_clock
        dense = chip.bf16_flops_per_clock
        if per_clock > dense * (1 + RATIO_TOLERANCE):
            self._fail(
                f"the bf16 peak needs {per_clock:.0f} FLOPs per multiprocessor and clock, {chip.name} does "
                f"{dense} densely; the figure counts sparsity or fp16 accumulation"
            )
