"""Dims: their symbols and their normal form."""

from __future__ import annotations

import pytest
import sympy

from modelmeter.dim_text import parse
from modelmeter.dims import product, simplify, symbol, total
from modelmeter.errors import DimError


def test_numbers_are_plain_python_numbers() -> None:
    """A constant leaves as int or float, never as a sympy number."""
    assert type(simplify(sympy.Integer(7))) is int
    assert type(simplify(sympy.Rational(1, 2))) is float
    assert type(product((symbol("B"), 0))) is int
    assert type(total(())) is int


def test_a_symbol_made_elsewhere_is_another_symbol() -> None:
    """The identity trap: a bare Symbol("B") is not the dim B, so symbols come from `symbol` alone."""
    assert symbol("B") is symbol("B")
    assert sympy.Symbol("B") != symbol("B")
    assert (2 * symbol("B")).subs({sympy.Symbol("B"): 1}) == 2 * symbol("B")
    assert parse("2*B") == 2 * symbol("B")


@pytest.mark.parametrize("name", ["", "2B", "a b", "lambda", "Max", "distinct_experts", "B.real", "_whole"])
def test_names_that_cannot_be_dims_are_refused(name: str) -> None:
    """A dim is an identifier, no keyword and no function of the text form."""
    with pytest.raises(DimError, match="cannot name a dim"):
        symbol(name)
