"""Python source of a formula: one function of its dims that needs only `math` and keeps integers exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from modelmeter.dims import Dim
from modelmeter.expert_counts import distinct_experts

_Expression = Any  # sympy's stubs say Basic where an Expr is meant
_UNIFORM_ROUTING = [
    "    def distinct_experts(experts: int, top_k: int, tokens: int) -> float:",
    "        if top_k == experts:",
    "            return experts",
    "        return experts * -math.expm1(tokens * math.log1p(-top_k / experts))",
    "",
]


def python_function(name: str, expression: Dim, dims: Sequence[str]) -> str:
    """Return the source of a function of the dims whose value is a count, such as one of FLOPs or bytes.

    Distinct experts are those expected under uniform routing, so the value is then a float. Everything else is
    computed in integers: a count divides without rest, and floor and ceiling are integer divisions.

    Parameters
    ----------
    name : str
        Of the function.
    expression : Dim
        The count.
    dims : sequence of str
        The arguments, at least the dims of the expression.

    Examples
    --------
    >>> from modelmeter.dim_text import parse
    >>> print(python_function("pairs", parse("T*(T - 1)/2 + ceiling(T/16)"), ["T"]))
    def pairs(T: int) -> int:
        return (T**2 - T + 2*(-((-T) // 16))) // 2
    """
    routed = isinstance(expression, sympy.Expr) and expression.has(distinct_experts)
    arguments = ", ".join(f"{dim}: int" for dim in dims)
    return "\n".join(
        [
            f"def {name}({arguments}) -> {'float' if routed else 'int'}:",
            *(["    import math", "", *_UNIFORM_ROUTING] if routed else []),
            f"    return {_printed(expression, divide='/' if routed else '//')}",
        ]
    )


def _printed(expression: Dim, *, divide: str) -> str:
    if not isinstance(expression, sympy.Expr):
        return str(expression)
    return _IntegerPrinter({"order": "lex"}).quotient(_with_whole_sides(expression), divide)


def _with_whole_sides(expression: _Expression) -> _Expression:
    """Write max(a/2, b) as max(a, 2*b)/2, so that quotients are outermost or below floor and ceiling."""
    return expression.replace(lambda part: isinstance(part, sympy.Max | sympy.Min), _over_one_denominator)


def _over_one_denominator(larger: _Expression) -> _Expression:
    below = sympy.ilcm(1, *(_fraction(side)[1] for side in larger.args))
    # unevaluated: comparing the sides takes sympy seconds
    return larger.func(*(sympy.expand(side * below) for side in larger.args), evaluate=False) / below


def _fraction(expression: _Expression) -> tuple[_Expression, _Expression]:
    return sympy.fraction(sympy.together(expression))


class _IntegerPrinter(StrPrinter):
    """Prints floor and ceiling as integer divisions, and the larger and the smaller by Python's names."""

    def quotient(self, expression: _Expression, divide: str) -> str:
        above, below = _fraction(expression)
        if below == 1:
            return self.doprint(above)
        sides = self.parenthesize(above, PRECEDENCE["Mul"]), self.parenthesize(below, PRECEDENCE["Pow"])
        return f" {divide} ".join(sides)

    def _print_floor(self, expression: _Expression) -> str:
        return f"({self.quotient(expression.args[0], '//')})"

    def _print_ceiling(self, expression: _Expression) -> str:
        return f"(-({self.quotient(-expression.args[0], '//')}))"

    def _print_Max(self, expression: _Expression) -> str:  # noqa: N802 - sympy dispatches by this name
        return self._call("max", expression)

    def _print_Min(self, expression: _Expression) -> str:  # noqa: N802 - sympy dispatches by this name
        return self._call("min", expression)

    def _call(self, name: str, expression: _Expression) -> str:
        return f"{name}({', '.join(sorted(self.doprint(side) for side in expression.args))})"
