"""Dims: text form and back, binding, and what is refused."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dims import (
    Dim,
    bind,
    bind_text,
    distinct_experts,
    fewest_routing,
    free_dims,
    most_routing,
    parse,
    product,
    settle,
    simplify,
    symbol,
    to_text,
    total,
    uniform_routing,
)
from modelmeter.errors import DimError, ModelMeterError, UnboundDimError

NAMES = ("B", "S", "T", "V")
SIZES = st.fixed_dictionaries({name: st.integers(1, 5000) for name in NAMES})


def _combined(children: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(total),
        pairs.map(product),
        pairs.map(lambda pair: simplify(sympy.Max(*pair))),
        st.tuples(children, st.integers(2, 9)).map(
            lambda pair: simplify(sympy.ceiling(pair[0] / sympy.Integer(pair[1])))
        ),
    )


LEAVES = st.one_of(st.integers(1, 100), st.sampled_from([symbol(name) for name in NAMES]))
DIMS = st.recursive(LEAVES, _combined, max_leaves=5)


@given(DIMS, SIZES)
def test_text_keeps_the_value(dim: Dim, sizes: dict[str, int]) -> None:
    """A dim, its text and the dim read from the text have one value."""
    again = parse(to_text(dim))
    assert to_text(again) == to_text(dim)
    assert bind(again, sizes) == bind(dim, sizes) == bind_text(to_text(dim), sizes)


@given(DIMS, SIZES)
def test_binding_is_what_sympy_substitutes(dim: Dim, sizes: dict[str, int]) -> None:
    """Fast evaluation of the text agrees with sympy's exact substitution."""
    exact = sympy.sympify(dim).subs({symbol(name): size for name, size in sizes.items()})
    assert bind(dim, sizes) == exact


def test_order_of_building_does_not_show_in_the_text() -> None:
    """Equal expressions give equal text: B*S + B*S + 2 and 2*(1 + S*B) are both 2*B*S + 2."""
    B, S = symbol("B"), symbol("S")
    assert to_text(total((B * S, 2, S * B))) == to_text(simplify(2 * (1 + S * B))) == "2*B*S + 2"


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


def test_division_by_zero_at_some_size_is_an_error() -> None:
    """1/(B - 1) is fine as text and has no value at B = 1."""
    dim = parse("1/(B - 1)")
    assert bind(dim, {"B": 3}) == 0.5
    with pytest.raises(DimError, match="divides by zero"):
        bind(dim, {"B": 1})


def test_very_long_sums_are_refused_clearly() -> None:
    """A text that Python cannot compile for its depth is an error of dims."""
    with pytest.raises(DimError):
        bind_text("+".join(["B"] * 100_000), {"B": 1})


def test_unbound_error_names_every_missing_dim() -> None:
    """Both missing dims are named, and the dims that the expression has."""
    with pytest.raises(UnboundDimError, match=r"no size for dim S, T: the expression is in B, S, T") as caught:
        bind(parse("B*S + T"), {"B": 1})
    assert caught.value.missing == ("S", "T")
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ModelMeterError)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "3", None, float("nan")])
def test_sizes_are_positive_integers(size: object) -> None:
    """Anything else is refused: "3" would repeat text, True would count as 1."""
    with pytest.raises(DimError, match="size of dim B"):
        bind(parse("2*B"), {"B": size})


def test_quotients_are_exact() -> None:
    """(2**60 + 2)/2 + 1/2 + 1/2 is 2**59 + 2: no float in between would keep the last digit."""
    assert bind_text("B/2 + 1/2 + 1/2", {"B": 2**60 + 2}) == 2**59 + 2
    assert bind_text("B/2", {"B": 3}) == 1.5
    assert bind_text("distinct_experts(64, 6, B*S/2)", {"B": 8, "S": 2}) == uniform_routing(64, 6, 8)


def test_bindings_of_other_dims_are_ignored() -> None:
    """A stage binds all of its dims; each cost takes those it has."""
    assert bind(parse("2*B"), {"B": 3, "S": -1}) == 6
    assert bind(7, {}) == 7


@pytest.mark.parametrize("name", ["", "2B", "a b", "lambda", "Max", "distinct_experts", "B.real", "_whole"])
def test_names_that_cannot_be_dims_are_refused(name: str) -> None:
    """A dim is an identifier, no keyword and no function of the text form."""
    with pytest.raises(DimError, match="cannot name a dim"):
        symbol(name)


def test_free_dims_are_the_names_in_an_expression() -> None:
    """Names inside functions count, functions do not."""
    assert free_dims(parse("Max(B, 2) + distinct_experts(64, 6, B*S)")) == {"B", "S"}
    assert free_dims(5) == frozenset()


@pytest.mark.parametrize(
    ("tokens", "experts"), [(1, 6.0), (2, 11.4), (4, 20.8), (8, 34.9), (16, 50.8), (32, 61.3), (64, 63.9)]
)
def test_distinct_experts_of_64_choose_6(tokens: int, experts: float) -> None:
    """64*(1 - (58/64)^T): T = 2 is 64*(1 - 0.8213) = 11.4; the published table for doubling T."""
    dim = distinct_experts(64, 6, symbol("T"))
    assert round(bind(dim, {"T": tokens}), 1) == experts


def test_distinct_experts_under_other_routings() -> None:
    """8 tokens of 6: at least 6 experts, at most 48 of 64; 20 tokens at most all 64."""
    dim = parse("2*distinct_experts(64, 6, T)")
    assert bind(dim, {"T": 8}, routing=fewest_routing) == 12
    assert bind(dim, {"T": 8}, routing=most_routing) == 96
    assert bind(dim, {"T": 20}, routing=most_routing) == 128


@given(st.integers(1, 200), st.data(), st.integers(0, 10_000))
def test_routing_expectation_lies_in_its_bounds(experts: int, data: st.DataObject, tokens: int) -> None:
    """Min(k, E) <= expectation <= Min(E, k*T), and it grows with the tokens."""
    top_k = data.draw(st.integers(1, experts))
    expected = uniform_routing(experts, top_k, tokens)
    slack = 1e-9 * experts
    assert fewest_routing(experts, top_k, tokens) - slack <= expected
    assert expected <= most_routing(experts, top_k, tokens) + slack
    assert expected <= uniform_routing(experts, top_k, tokens + 1) + slack


def test_settle_closes_what_has_no_dims() -> None:
    """A routing whose sizes are all known counts as uniform; one with dims stays open; numbers pass."""
    assert settle(distinct_experts(64, 6, 1)) == 6
    assert settle(parse("distinct_experts(64, 6, B)")) == parse("distinct_experts(64, 6, B)")
    assert settle(5) == 5
