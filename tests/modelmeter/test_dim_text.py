"""Text of dims: form and back, and what is refused."""

from __future__ import annotations

import pytest

from modelmeter.dim_binding import bind_text
from modelmeter.dim_text import free_dims, parse, to_text
from modelmeter.dims import simplify, symbol, total
from modelmeter.errors import DimError


def test_order_of_building_does_not_show_in_the_text() -> None:
    """Equal expressions give equal text: B*S + B*S + 2 and 2*(1 + S*B) are both 2*B*S + 2."""
    B, S = symbol("B"), symbol("S")
    assert to_text(total((B * S, 2, S * B))) == to_text(simplify(2 * (1 + S * B))) == "2*B*S + 2"


@pytest.mark.parametrize(
    "text",
    [
        "().__class__",
        "B.real",
        "__import__('os')",
        "open(B)",
        "(lambda: 1)()",
        "lambda: B",
        "'B'",
        "b'B'",
        "f'{B}'",
        "[B]",
        "B[0]",
        "{B: 1}",
        "B if S else T",
        "B == S",
        "B and S",
        "B // 2",
        "B % 2",
        "True",
        "None",
        "...",
        "1j",
        "1e999",
        "(B := 2)",
        "Max(*B)",
        "Max(key=B)",
        "Max",
        "Max()",
        "floor(B, S)",
        "distinct_experts(64, 6)",
        "B; S",
        "B B",
        "",
        " ",
        "2*",
        "_whole(2)",
        "_whole*2",
        "\0",
    ],
)
def test_text_that_is_no_arithmetic_is_refused(text: str) -> None:
    """Attributes, calls of other functions, lambdas, strings and the rest never reach evaluation."""
    with pytest.raises(DimError):
        parse(text)
    with pytest.raises(DimError):
        bind_text(text, {"B": 1, "S": 2, "T": 3})


@pytest.mark.parametrize("text", ["9**9**9", "(9**8)**8", "2**B", "B**9", "2**0.5", "B**(1 + 1)", "((9**8)*B)**8"])
def test_powers_that_could_run_away_are_refused(text: str) -> None:
    """Exponents are whole numbers up to 8 and a power has no power as its base."""
    with pytest.raises(DimError, match="exponent"):
        parse(text)


def test_small_powers_are_read() -> None:
    """T squared and a reciprocal are written by costs, so they read back."""
    assert parse("T**2") == symbol("T") ** 2
    assert bind_text("8*B**-1 + T**8", {"B": 4, "T": 2}) == 2 + 256


@pytest.mark.parametrize("text", ["1/0", "B/0", "B/(2 - 2)"])
def test_division_by_zero_has_no_value(text: str) -> None:
    """A text that divides by zero is an error of dims, not of Python."""
    with pytest.raises(DimError, match="divides by zero"):
        parse(text)


def test_free_dims_are_the_names_in_an_expression() -> None:
    """Names inside functions count, functions do not."""
    assert free_dims(parse("Max(B, 2) + distinct_experts(64, 6, B*S)")) == {"B", "S"}
    assert free_dims(5) == frozenset()
