"""How many distinct experts some tokens touch: the open function in formulas, and what its value is assumed to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy

from modelmeter.dims import Dim


class distinct_experts(sympy.Function):  # noqa: N801 - named as it is written in formulas
    """Distinct experts touched by ``tokens`` tokens of ``top_k`` of ``experts`` each; kept open until bound.

    The value depends on how a router behaves, so it stays a function in every formula and a `Routing` model
    is chosen when the formula is bound. `uniform_routing` is the default.
    """

    nargs = (3,)
    is_real = True
    is_positive = True
    is_commutative = True


def experts_touched(experts: int, top_k: int, tokens: Dim) -> sympy.Expr:
    """Return the open expression for the distinct experts that ``tokens`` tokens touch.

    Examples
    --------
    >>> from modelmeter.dim_text import to_text
    >>> from modelmeter.dims import symbol
    >>> to_text(experts_touched(64, 6, symbol("B")))
    'distinct_experts(64, 6, B)'
    """
    made: Any = distinct_experts(experts, top_k, tokens)
    return made


Routing = Callable[[int, int, int], float]
"""``(experts, top_k, tokens) -> distinct experts``."""


def uniform_routing(experts: int, top_k: int, tokens: int) -> float:
    """Return the expected number of distinct experts when every token picks ``top_k`` uniformly.

    E(1 - (1 - k/E)^T): each expert is missed by one token with probability 1 - k/E, independently per token.

    Examples
    --------
    >>> uniform_routing(64, 6, 1), round(uniform_routing(64, 6, 8), 1)
    (6.0, 34.9)
    """
    if top_k == experts or tokens == 0:
        return float(experts if tokens else 0)
    return experts * -math.expm1(tokens * math.log1p(-top_k / experts))


def fewest_routing(experts: int, top_k: int, tokens: int) -> float:
    """Return the lower bound: every token picks the same experts.

    Examples
    --------
    >>> fewest_routing(64, 6, 8)
    6.0
    """
    return float(min(top_k, experts) if tokens else 0)


def most_routing(experts: int, top_k: int, tokens: int) -> float:
    """Return the upper bound: tokens share no expert while any is left.

    Examples
    --------
    >>> most_routing(64, 6, 8), most_routing(64, 6, 100)
    (48.0, 64.0)
    """
    return float(min(experts, top_k * tokens))
