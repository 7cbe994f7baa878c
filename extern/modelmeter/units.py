"""Units: the only place where FLOPs become TFLOPs and bytes become Tb or GB, and where amounts become text.

Inside the packages everything is FLOPs, bytes and seconds. Conversions work on numbers and on sympy
expressions and stay exact where the amount is exact (a `fractions.Fraction` or an expression); a division of
plain numbers gives a float.

The contract's GB is 2**30 bytes (`bytes_to_gb`). Text for people says what it means: `format_bytes` writes SI
units (1 GB = 1e9 bytes), `format_binary_bytes` writes KiB, MiB, GiB (1 GiB = 2**30 bytes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import sympy

FLOPS_PER_TFLOP = 10**12
"""FLOPs in a TFLOP; an integer, so that exact amounts stay exact."""

BITS_PER_BYTE = 8
BITS_PER_TERABIT = 10**12
BYTES_PER_GB = 2**30
"""Bytes in the contract's GB, which is a GiB."""

BYTES_PER_MIB = 2**20
BYTES_PER_SI_GB = 10**9
"""Bytes in the GB of datasheet bandwidths (GB/s)."""

Amount = TypeVar("Amount", float, Fraction, "sympy.Expr", "float | sympy.Expr")
"""What conversions take and give back: a number, a fraction or an expression, each giving its own kind."""


def flops_to_tflops(flops: Amount) -> Amount:
    """Convert FLOPs to TFLOPs (1e12), the unit of the layer contract.

    Examples
    --------
    >>> flops_to_tflops(2_500_000_000_000)
    2.5
    """
    return flops / FLOPS_PER_TFLOP


def tflops_to_flops(tflops: Amount) -> Amount:
    """Convert TFLOPs to FLOPs, or TFLOP/s to FLOP/s.

    Examples
    --------
    >>> tflops_to_flops(989.0)
    989000000000000.0
    """
    return tflops * FLOPS_PER_TFLOP


def bytes_to_bits(amount: Amount) -> Amount:
    """Convert bytes to bits; arithmetic intensity in the contract is FLOPs per bit.

    Examples
    --------
    >>> bytes_to_bits(3)
    24
    """
    return amount * BITS_PER_BYTE


def bytes_to_terabits(amount: Amount) -> Amount:
    """Convert bytes to Tb (1e12 bits), the contract's unit of I/O.

    Examples
    --------
    >>> bytes_to_terabits(125_000_000_000)
    1.0
    """
    return amount * BITS_PER_BYTE / BITS_PER_TERABIT


def terabits_to_bytes(terabits: Amount) -> Amount:
    """Convert Tb (1e12 bits) to bytes.

    Examples
    --------
    >>> terabits_to_bytes(1)
    125000000000.0
    """
    return terabits * BITS_PER_TERABIT / BITS_PER_BYTE


def bytes_to_gb(amount: Amount) -> Amount:
    """Convert bytes to the contract's GB (2**30 bytes).

    Examples
    --------
    >>> bytes_to_gb(3 * 2**29)
    1.5
    """
    return amount / BYTES_PER_GB


def gb_to_bytes(gb: Amount) -> Amount:
    """Convert the contract's GB (2**30 bytes) to bytes.

    Examples
    --------
    >>> gb_to_bytes(80)
    85899345920
    """
    return gb * BYTES_PER_GB


def mib_to_bytes(mib: Amount) -> Amount:
    """Convert MiB (2**20 bytes, what cache sizes are given in) to bytes.

    Examples
    --------
    >>> mib_to_bytes(50)
    52428800
    """
    return mib * BYTES_PER_MIB


def si_gb_to_bytes(gb: Amount) -> Amount:
    """Convert SI GB to bytes, or a datasheet's GB/s (1e9) to bytes per second.

    Examples
    --------
    >>> si_gb_to_bytes(4800)
    4800000000000
    """
    return gb * BYTES_PER_SI_GB


_SI_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_COUNT_SUFFIXES = ("", " thousand", " million", " billion", " trillion")
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SECOND_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def format_flops(flops: float, *, digits: int = 3) -> str:
    """Write an amount of FLOPs with an SI prefix.

    Parameters
    ----------
    flops : float
        FLOPs; negative amounts (differences) keep their sign.
    digits : int
        Significant digits.

    Examples
    --------
    >>> format_flops(1.2345e12), format_flops(0), format_flops(999_999)
    ('1.23 TFLOP', '0 FLOP', '1.00 MFLOP')
    """
    return _scaled(flops, 1000, [f"{prefix}FLOP" for prefix in _SI_PREFIXES], digits)


def format_flop_rate(flops_per_second: float, *, digits: int = 3) -> str:
    """Write a rate in FLOP/s with an SI prefix.

    Examples
    --------
    >>> format_flop_rate(989.4e12)
    '989 TFLOP/s'
    """
    return _scaled(flops_per_second, 1000, [f"{prefix}FLOP/s" for prefix in _SI_PREFIXES], digits)


def format_bytes(amount: float, *, digits: int = 3) -> str:
    """Write an amount of bytes in SI units: 1 kB = 1e3, 1 MB = 1e6, 1 GB = 1e9 bytes.

    Examples
    --------
    >>> format_bytes(403_000_000), format_bytes(61_440), format_bytes(512)
    ('403 MB', '61.4 kB', '512 B')
    """
    return _scaled(amount, 1000, [f"{prefix}B" for prefix in _SI_PREFIXES], digits)


def format_binary_bytes(amount: float, *, digits: int = 3) -> str:
    """Write an amount of bytes in binary units: 1 KiB = 2**10, 1 MiB = 2**20, 1 GiB = 2**30 bytes.

    Examples
    --------
    >>> format_binary_bytes(6_672_212_480), format_binary_bytes(1023)
    ('6.21 GiB', '1023 B')
    """
    return _scaled(amount, 1024, _BINARY_UNITS, digits)


def format_seconds(seconds: float, *, digits: int = 3) -> str:
    """Write a time in s, ms, µs or ns, whichever gives a number of at least 1.

    Examples
    --------
    >>> format_seconds(0.01234), format_seconds(75), format_seconds(2.4e-6)
    ('12.3 ms', '75.0 s', '2.40 µs')
    """
    value = _finite(seconds)
    if value == 0:
        return "0 s"
    for size, unit in _SECOND_UNITS:
        # Rounded first, so that 0.9999 ms is written as the 1.00 ms it rounds to, not as 1000 µs.
        if abs(float(_significant(value / size, digits))) >= 1:
            return f"{_significant(value / size, digits)} {unit}"
    return f"{_significant(value / 1e-9, digits)} ns"


def format_count(count: float, *, digits: int = 3) -> str:
    """Write a count: as it is below a million, in words above.

    Examples
    --------
    >>> format_count(2710), format_count(3_336_106_240)
    ('2,710', '3.34 billion')
    """
    value = _finite(count)
    if abs(value) < 1_000_000:
        return f"{round(value):,}" if value == round(value) else f"{value:,.{digits}g}"
    return _scaled(value, 1000, _COUNT_SUFFIXES, digits, separator="")


def _scaled(amount: float, base: int, units: Sequence[str], digits: int, *, separator: str = " ") -> str:
    """Write an amount in the largest unit that leaves a number of at least 1 after rounding."""
    value = _finite(amount)
    if value == 0:
        return f"0{separator}{units[0]}"
    step = 0
    while step + 1 < len(units) and abs(float(_significant(value / base**step, digits))) >= base:
        step += 1
    if step == 0 and value == round(value):
        return f"{round(value)}{separator}{units[0]}"
    return f"{_significant(value / base**step, digits)}{separator}{units[step]}"


def _significant(value: float, digits: int) -> str:
    """Write a number to some significant digits without an exponent, zeros kept: 1.00, 12.0, 1023."""
    rounded = float(f"{value:.{digits}g}")
    magnitude = math.floor(math.log10(abs(rounded))) if rounded else 0
    if magnitude >= digits:
        return f"{round(value)}"
    return f"{rounded:.{max(digits - 1 - magnitude, 0)}f}"


def _finite(amount: float) -> float:
    """Return an amount as a float; a sympy number is one, an expression with free dims is a mistake."""
    try:
        value = float(amount)
    except TypeError as error:
        raise TypeError(f"cannot write {amount} as text: bind its dims to numbers first") from error
    if not math.isfinite(value):
        raise ValueError(f"cannot write {amount} as text: it is not a finite number")
    return value
