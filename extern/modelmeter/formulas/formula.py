"""Formula: one quantity in closed form, as text, LaTeX, Python source and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import sympy
from attrs import field, frozen

from modelmeter.dim_binding import bind
from modelmeter.dim_text import free_dims, parse, to_text
from modelmeter.dims import Dim, simplify, symbol
from modelmeter.errors import DimError
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.formulas.python_source import python_function
from modelmeter.layers.base import as_dim

STEPS = "n"
"""Name of the dim that counts the executions of a sum, each one dim longer than the one before."""

_READ_BACK = ("quantity", "unit", "expression")


@frozen(kw_only=True)
class Formula:
    r"""A quantity in closed form.

    Where a router decides which experts are read, the expression holds the open function
    ``distinct_experts(experts, experts per token, tokens)``; a routing model is chosen when the formula is evaluated.

    Attributes
    ----------
    quantity : str
        What it is of, such as "tensor_core_flops".
    unit : str
        "FLOPs" or "bytes".
    expression : Dim
        Expanded: a number, or a sum of products of dims.

    Examples
    --------
    >>> B, S = symbol("B"), symbol("S")
    >>> formula = Formula(quantity="bytes", unit="bytes", expression=2 * B * S**2 + 6 * B * S)
    >>> formula.text, formula.at({"B": 2, "S": 10})
    ('2*B*S*(S + 3)', 520)
    >>> formula.latex
    '2 \\cdot B \\cdot S \\cdot \\left(S + 3\\right)'
    """

    quantity: str
    unit: str
    expression: Dim = field(converter=as_dim)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Formula:
        """Read a formula back from what `document` returns.

        Raises
        ------
        DimError
            When a field is missing, or the expression is none.

        Examples
        --------
        >>> formula = Formula(quantity="bytes", unit="bytes", expression=2 * symbol("B"))
        >>> Formula.from_document(formula.document()) == formula
        True
        """
        missing = [name for name in _READ_BACK if name not in document]
        if missing:
            raise DimError(
                f"a formula in JSON has no {', '.join(missing)}; it needs {', '.join(_READ_BACK)}: write it by "
                "Formula.document or `dsocr-graph formulas --format json`"
            )
        quantity, unit, expression = (str(document[name]) for name in _READ_BACK)
        return cls(quantity=quantity, unit=unit, expression=parse(expression))

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of its dims, in alphabetical order."""
        return tuple(sorted(free_dims(self.expression)))

    @cached_property
    def factored(self) -> Dim:
        """The shorter of the expanded and the factored form."""
        if not isinstance(self.expression, sympy.Expr):
            return self.expression
        factored = cast("sympy.Expr", sympy.factor(self.expression))
        return min(self.expression, factored, key=lambda form: len(to_text(form)))

    @cached_property
    def text(self) -> str:
        """The shorter form as a Python expression."""
        return to_text(self.factored)

    @cached_property
    def latex(self) -> str:
        """The shorter form as LaTeX; every product has its dot."""
        if not isinstance(self.factored, sympy.Expr):
            return str(self.factored)
        names = {symbol(name): name for name in self.dims}
        printed: str = sympy.latex(self.factored, mul_symbol="dot", symbol_names=names)
        return printed.replace(r"\operatorname{distinct}_{experts}", r"\operatorname{distinct\_experts}")

    def at(self, bindings: Mapping[str, int], *, routing: Routing = uniform_routing) -> int | float:
        """Return the number at some sizes.

        Raises
        ------
        UnboundDimError
            When a dim has no size.
        """
        return bind(self.expression, bindings, routing=routing)

    def python(self, name: str) -> str:
        """Return the source of a function of the dims, which needs nothing but Python's `math`.

        Distinct experts are those expected under uniform routing; integers stay exact everywhere else.

        Examples
        --------
        >>> print(Formula(quantity="bytes", unit="bytes", expression=2 * symbol("B")).python("cache"))
        def cache(B: int) -> int:
            return 2*B
        """
        return python_function(name, self.factored, self.dims)

    def document(self) -> dict[str, Any]:
        """Return the formula in JSON's types; `from_document` reads it back."""
        return {
            "quantity": self.quantity,
            "unit": self.unit,
            "dims": list(self.dims),
            "expression": to_text(self.expression),
            "factored": self.text,
            "latex": self.latex,
        }

    def summed(self, dim: str) -> Formula:
        """Return the sum over `STEPS` executions, the first at the dim's size, each further one at one more.

        Raises
        ------
        DimError
            When the expression is no polynomial in the dim.

        Examples
        --------
        T + (T + 1) + ... + (T + n - 1) = n*T + n*(n - 1)/2:

        >>> formula = Formula(quantity="bytes", unit="bytes", expression=symbol("T")).summed("T")
        >>> formula.text, formula.at({"T": 10, "n": 3})
        ('n*(2*T + n - 1)/2', 33)
        """
        return Formula(quantity=self.quantity, unit=self.unit, expression=_sum_of_steps(self.expression, dim))


def _sum_of_steps(expression: Dim, dim: str) -> Dim:
    """Sum f(dim), f(dim + 1), ... over n terms, by Faulhaber's formulas for the powers of the step."""
    steps = symbol(STEPS)
    if dim not in free_dims(expression):
        return simplify(expression * steps)
    assert isinstance(expression, sympy.Expr)
    step = sympy.Dummy("i", integer=True, nonnegative=True)
    moved: Any = expression.subs(symbol(dim), symbol(dim) + step)
    if not moved.is_polynomial(step):
        raise DimError(f"{to_text(expression)} is no polynomial in {dim}: its sum over {dim} has no closed form here")
    powers = sympy.Poly(moved, step).terms()
    total = sympy.Add(
        *(factor * sympy.summation(step**exponent, (step, 0, steps - 1)) for (exponent,), factor in powers)
    )
    return simplify(total)
