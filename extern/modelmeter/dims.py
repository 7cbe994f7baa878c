"""Dims: the only place that makes symbols, and the arithmetic of expressions in them."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, cast

import sympy

from modelmeter.errors import DimError

Dim = int | float | sympy.Expr
"""A size or a cost: a number, or an expression in named dims."""

LEGEND: Mapping[str, str] = {
    "B": "documents processed together (batch)",
    "S": "sequence length in tokens of a prefill (image and text tokens)",
    "T": "tokens already in the KV cache at a decode step",
    "N": "image tokens per document",
    "V": "local views (crops) per document",
    "H": "rows of the crop grid",
    "W": "columns of the crop grid",
    "P": "tokens that a decoder starts with",
}
"""The dims of the shipped models, by name."""

LEGEND_WITHOUT_CACHE: Mapping[str, str] = {**LEGEND, "S": "sequence length in tokens"}
"""The same for models that keep no keys and values, and so have no prefill."""

FUNCTIONS: Mapping[str, int | None] = {
    "distinct_experts": 3,
    "floor": 1,
    "ceiling": 1,
    "Max": None,
    "Min": None,
}
"""The functions that expressions may hold, with their number of arguments; None is one or more. No dim has the name."""


def symbol(name: str) -> sympy.Symbol:
    """Return the symbol of a dim: always the same object, a positive integer.

    Examples
    --------
    >>> symbol("B") is symbol("B")
    True
    """
    if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name) or name in FUNCTIONS:
        raise DimError(
            f"{name!r} cannot name a dim: use an identifier that starts with a letter, is no Python keyword "
            f"and none of {sorted(FUNCTIONS)}"
        )
    return _symbol(name)


@cache
def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


def simplify(value: Dim) -> Dim:
    """Return a dim in normal form: numbers as Python numbers, expressions expanded.

    Examples
    --------
    >>> from modelmeter.dim_text import to_text
    >>> to_text(simplify((symbol("B") + 1) * 2))
    '2*B + 2'
    """
    if not isinstance(value, sympy.Expr):
        return value
    expanded = _expand(value)
    if isinstance(expanded, sympy.Number):
        return int(expanded) if expanded.is_integer else float(expanded)
    return expanded


@lru_cache(maxsize=65536)
def _expand(expr: sympy.Expr) -> sympy.Expr:
    return sympy.expand(expr)


def total(values: Iterable[Dim]) -> Dim:
    """Return the sum of many dims, in normal form; quick because the terms are collected once.

    Examples
    --------
    >>> from modelmeter.dim_text import to_text
    >>> to_text(total([symbol("B"), 3, symbol("B")]))
    '2*B + 3'
    """
    number: int | float = 0
    terms: list[sympy.Expr] = []
    for value in values:
        if isinstance(value, sympy.Expr):
            terms.append(value)
        else:
            number += value
    return simplify(sympy.Add(*terms, number)) if terms else number


def product(values: Iterable[Dim]) -> Dim:
    """Return the product of many dims.

    Examples
    --------
    >>> from modelmeter.dim_text import to_text
    >>> to_text(product((symbol("B"), 2, symbol("S"))))
    '2*B*S'
    """
    number: int | float = 1
    terms: list[sympy.Expr] = []
    for value in values:
        if isinstance(value, sympy.Expr):
            terms.append(value)
        else:
            number *= value
    return simplify(sympy.Mul(*terms, number)) if terms and number else number


def never_negative(value: Dim) -> bool:
    """Whether a polynomial is at least 0 for every choice of its dims, as far as its coefficients show.

    Dims are at least 1, so each is written as 1 + t with t >= 0; no negative coefficient is then a proof.

    Examples
    --------
    >>> from modelmeter.dim_text import parse
    >>> never_negative(parse("B*S - S")), never_negative(parse("S - B"))
    (True, False)
    """
    return all(factor >= 0 for factor in shifted_terms(value).values())


def shifted_terms(value: Dim) -> Mapping[sympy.Expr, Any]:
    """Return the coefficients of a polynomial in t = dim - 1, by monomial; every t is at least 0.

    Examples
    --------
    >>> from modelmeter.dim_text import parse
    >>> [int(factor) for factor in shifted_terms(parse("2*B + 3")).values()]
    [5, 2]
    """
    if not isinstance(value, sympy.Expr):
        return {sympy.S.One: sympy.sympify(value)} if value else {}
    return _shifted_terms(value)


@lru_cache(maxsize=65536)
def _shifted_terms(expr: sympy.Expr) -> Mapping[sympy.Expr, Any]:
    moved: Any = expr.subs({name: cast("sympy.Expr", name) + 1 for name in expr.free_symbols}, simultaneous=True)
    return dict(sympy.expand(moved).as_coefficients_dict())
