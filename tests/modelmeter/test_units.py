"""Units: conversions by hand, exactness, and text."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from modelmeter import units


def test_a_tflop_is_1e12_flops() -> None:
    """2.5e12 FLOPs are 2.5 TFLOPs, and back."""
    assert units.flops_to_tflops(2_500_000_000_000) == 2.5
    assert units.tflops_to_flops(2.5) == 2_500_000_000_000


def test_a_terabit_is_1e12_bits() -> None:
    """1e9 bytes are 8e9 bits = 0.008 Tb."""
    assert units.bytes_to_terabits(1_000_000_000) == 0.008
    assert units.terabits_to_bytes(0.008) == 1_000_000_000
    assert units.bytes_to_bits(5) == 40


def test_the_contracts_gb_is_binary() -> None:
    """3 * 2**29 bytes are 1.5 GB, while 1e9 bytes are less than one."""
    assert units.bytes_to_gb(1_610_612_736) == 1.5
    assert units.bytes_to_gb(1_000_000_000) == 0.931322574615478515625  # 1e9 / 1073741824
    assert units.gb_to_bytes(2) == 2_147_483_648


def test_datasheet_units_are_told_apart() -> None:
    """Bandwidth's GB is 1e9 bytes, a cache's MiB 1,048,576 bytes."""
    assert units.si_gb_to_bytes(3) == 3_000_000_000
    assert units.mib_to_bytes(3) == 3_145_728


def test_expressions_stay_exact() -> None:
    """A conversion holds rationals, no floats: 3*B bytes are 24*B/10**12 = 3*B/125000000000 Tb."""
    batch = sympy.Symbol("B", integer=True, positive=True)
    terabits = units.bytes_to_terabits(3 * batch)
    assert terabits == sympy.Rational(3, 125_000_000_000) * batch
    assert not terabits.atoms(sympy.Float)


def test_fractions_stay_exact() -> None:
    """A third of a FLOP is 1/(3e12) TFLOP as a fraction."""
    assert units.flops_to_tflops(Fraction(1, 3)) == Fraction(1, 3_000_000_000_000)


@given(st.integers(min_value=0, max_value=2**80))
def test_each_conversion_and_its_inverse_cancel(amount: int) -> None:
    """Converting an exact amount forth and back gives the same amount."""
    exact = Fraction(amount)
    assert units.tflops_to_flops(units.flops_to_tflops(exact)) == exact
    assert units.terabits_to_bytes(units.bytes_to_terabits(exact)) == exact
    assert units.gb_to_bytes(units.bytes_to_gb(exact)) == exact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_flops(1_234_500_000_000), "1.23 TFLOP"),
        (units.format_flops(0), "0 FLOP"),
        (units.format_flops(12), "12 FLOP"),
        (units.format_flops(999_500), "1.00 MFLOP"),  # rounds to 1000 kFLOP, which is written as 1.00 MFLOP
        (units.format_flops(-2.5e9), "-2.50 GFLOP"),
        (units.format_flops(1.2345e12, digits=5), "1.2345 TFLOP"),
        (units.format_flop_rate(989.4e12), "989 TFLOP/s"),
        (units.format_bytes(403_000_000), "403 MB"),
        (units.format_bytes(6_672_212_480), "6.67 GB"),
        (units.format_bytes(999), "999 B"),
        (units.format_binary_bytes(6_672_212_480), "6.21 GiB"),  # 6672212480 / 1073741824 = 6.2139...
        (units.format_binary_bytes(1024), "1.00 KiB"),
        (units.format_binary_bytes(1023 * 1024), "1023 KiB"),  # rounded to a whole number, never cut to 1020
        (units.format_seconds(75), "75.0 s"),
        (units.format_seconds(0.9999), "1.00 s"),
        (units.format_seconds(0.0123), "12.3 ms"),
        (units.format_seconds(2.4e-6), "2.40 µs"),
        (units.format_seconds(5e-12), "0.00500 ns"),
        (units.format_seconds(0), "0 s"),
        (units.format_count(2710), "2,710"),
        (units.format_count(12.3456), "12.3"),
        (units.format_count(3_336_106_240), "3.34 billion"),
        (units.format_flops(sympy.Integer(5_000)), "5.00 kFLOP"),
    ],
)
def test_amounts_as_text(text: str, expected: str) -> None:
    """An amount is written with three significant digits in the largest fitting unit."""
    assert text == expected


@given(st.floats(min_value=1e-9, max_value=1e18))
def test_written_amounts_keep_their_size(amount: float) -> None:
    """A written amount read back is within 0.51 % (half of the third digit at 1.00)."""
    number, unit = units.format_flops(amount).split()
    scale = {"FLOP": 0, "kFLOP": 3, "MFLOP": 6, "GFLOP": 9, "TFLOP": 12, "PFLOP": 15, "EFLOP": 18}[unit]
    assert float(number) * 10**scale == pytest.approx(amount, rel=0.0051)


def test_an_unbound_expression_has_no_text() -> None:
    """Writing B FLOPs without a size for B is an error that says to bind it."""
    with pytest.raises(TypeError, match="bind its dims"):
        units.format_flops(sympy.Symbol("B"))  # pyright: ignore[reportArgumentType] - the mistake under test


@pytest.mark.parametrize("amount", [float("nan"), float("inf")])
def test_amounts_that_are_not_finite_have_no_text(amount: float) -> None:
    """NaN and infinity are refused instead of written into a report."""
    with pytest.raises(ValueError, match="not a finite number"):
        units.format_bytes(amount)
