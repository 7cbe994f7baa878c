"""Dims bound to numbers: values, exact quotients, sizes that are refused."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dim_binding import bind, bind_text, settle
from modelmeter.dim_text import parse, to_text
from modelmeter.dims import Dim, product, simplify, symbol, total
from modelmeter.errors import DimError, ModelMeterError, UnboundDimError
from modelmeter.expert_counts import distinct_experts, uniform_routing

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


def test_settle_closes_what_has_no_dims() -> None:
    """A routing whose sizes are all known counts as uniform; one with dims stays open; numbers pass."""
    assert settle(distinct_experts(64, 6, 1)) == 6
    assert settle(parse("distinct_experts(64, 6, B)")) == parse("distinct_experts(64, 6, B)")
    assert settle(5) == 5
