"""Dims bound to numbers: the value of an expression at given sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import sympy

from modelmeter.dim_text import evaluate_text, free_dims, names_in, to_text
from modelmeter.dims import Dim
from modelmeter.errors import DimError, UnboundDimError
from modelmeter.expert_counts import Routing, uniform_routing

_NUMERIC: Mapping[str, Any] = {
    "floor": math.floor,
    "ceiling": math.ceil,
    "Max": max,
    "Min": min,
    "_whole": Fraction,
}


def bind(value: Dim, bindings: Mapping[str, int], *, routing: Routing = uniform_routing) -> int | float:
    """Evaluate a dim at given sizes.

    Parameters
    ----------
    value : Dim
        A number or an expression.
    bindings : mapping of str to int
        A positive size per dim; others than the value's own are ignored.
    routing : Routing
        How many distinct experts some tokens touch.

    Raises
    ------
    UnboundDimError
        When a dim of the value has no binding; the error names every one.
    DimError
        When the size of a dim is no positive integer.

    Examples
    --------
    >>> from modelmeter.dim_text import parse
    >>> bind(parse("2*B*S"), {"B": 4, "S": 913})
    7304
    """
    if not isinstance(value, sympy.Expr):
        return value
    text = to_text(value)
    for name in sorted(names_in(text) & bindings.keys()):
        size: object = bindings[name]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DimError(f"size of dim {name} is {size!r}; it must be a positive integer")
    return bind_text(text, bindings, routing=routing)


def bind_text(text: str, bindings: Mapping[str, int], *, routing: Routing = uniform_routing) -> int | float:
    """Evaluate the text form of a dim, without building an expression.

    Quotients are exact: a cost above 2**53 keeps its last digit.

    Examples
    --------
    >>> bind_text("2*B*S", {"B": 4, "S": 913})
    7304
    >>> bind_text("B/2", {"B": 2**60 + 2}) == 2**59 + 1
    True
    """
    missing = names_in(text) - bindings.keys()
    if missing:
        raise UnboundDimError(missing, names_in(text))
    sizes: Mapping[str, Any] = bindings
    exact = "/" in text and all(isinstance(bindings[name], int) for name in names_in(text))
    if exact:
        sizes = {name: Fraction(bindings[name]) for name in names_in(text)}
    space: dict[str, Any] = {**sizes, **_NUMERIC, "distinct_experts": _with_whole_numbers(routing)}
    result = cast("int | float | Fraction", evaluate_text(text, space, exact=exact))
    if isinstance(result, Fraction):
        return result.numerator if result.denominator == 1 else float(result)
    return int(result) if isinstance(result, float) and result.is_integer() else result


def _with_whole_numbers(routing: Routing) -> Routing:
    def route(experts: int, top_k: int, tokens: int) -> float:
        sizes = (experts, top_k, tokens)
        return routing(*(int(size) if isinstance(size, Fraction) and size.denominator == 1 else size for size in sizes))

    return route


def settle(value: Dim) -> Dim:
    """Return a dim without open ends as a number: routing that has its sizes counts as uniform.

    An expression with dims stays as it is, to be bound later under the routing of the caller's choice.

    Examples
    --------
    >>> from modelmeter.dim_text import to_text
    >>> from modelmeter.dims import symbol
    >>> from modelmeter.expert_counts import distinct_experts
    >>> settle(distinct_experts(64, 6, 1)), to_text(settle(distinct_experts(64, 6, symbol("B"))))
    (6, 'distinct_experts(64, 6, B)')
    """
    if isinstance(value, sympy.Expr) and not free_dims(value):
        return bind(value, {})
    return value
