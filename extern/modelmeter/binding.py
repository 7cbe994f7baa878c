"""Expressions at the sizes of a run: one execution, or the sum over a sweep in closed form."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
from attrs import field, frozen

from modelmeter.costs import Number
from modelmeter.dim_binding import bind_text
from modelmeter.expert_counts import Routing, uniform_routing

Array = np.ndarray[Any, np.dtype[np.float64]]


@frozen(kw_only=True)
class Binding:
    """Sizes of `count` executions; with a sweep, execution i runs at ``bindings[sweep] + i``.

    Texts repeat from leaf to leaf; each is evaluated once.

    Examples
    --------
    >>> Binding(bindings={"T": 10}, count=3, sweep="T").sum("2*T")
    66
    """

    bindings: Mapping[str, int]
    count: int = 1
    sweep: str | None = None
    routing: Routing = uniform_routing
    _sums: dict[str, Number] = field(factory=dict, init=False, eq=False, repr=False)
    _steps: dict[str, Number | Array] = field(factory=dict, init=False, eq=False, repr=False)

    def sum(self, text: str) -> Number:
        """Return the sum of an expression over all executions; exact where its values are integers."""
        if text not in self._sums:
            self._sums[text] = self._sum(text)
        return self._sums[text]

    def steps(self, text: str) -> Number | Array:
        """Return an expression at each execution: one number where it does not change, else an array."""
        if text not in self._steps:
            self._steps[text] = self._array(text)
        return self._steps[text]

    def first(self) -> Mapping[str, int]:
        """Return the sizes of the first execution."""
        return self.bindings

    def last(self) -> Mapping[str, int]:
        """Return the sizes of the last execution."""
        if self.sweep is None:
            return self.bindings
        return {**self.bindings, self.sweep: self.bindings[self.sweep] + self.count - 1}

    def _at(self, text: str, step: int) -> Number:
        if self.sweep is None:
            return bind_text(text, self.bindings, routing=self.routing)
        sizes = {**self.bindings, self.sweep: self.bindings[self.sweep] + step}
        return bind_text(text, sizes, routing=self.routing)

    def _sum(self, text: str) -> Number:
        if self.sweep is None or self.count == 1:
            return self._at(text, 0) * self.count
        degree = degree_in(text, self.sweep)
        if degree == 0:
            return self._at(text, 0) * self.count
        if degree is not None and degree + 2 < self.count:
            total = newton_sum(lambda step: self._at(text, step), degree, self.count)
            if total is not None:
                return total
        return sum(self._at(text, step) for step in range(self.count))

    def _array(self, text: str) -> Number | Array:
        degree = 0 if self.sweep is None or self.count == 1 else degree_in(text, self.sweep)
        if degree == 0:
            return self._at(text, 0)
        if degree is None:
            return np.array([self._at(text, step) for step in range(self.count)], dtype=np.float64)
        assert self.sweep is not None
        steps = self.bindings[self.sweep] + np.arange(self.count, dtype=np.float64)
        sizes = cast("Mapping[str, int]", {**self.bindings, self.sweep: steps})  # a polynomial takes arrays too
        return cast("Array", bind_text(text, sizes, routing=self.routing))


def newton_sum(value: Callable[[int], Number], degree: int, count: int) -> int | None:
    """Return the sum of ``value(0) .. value(count - 1)`` of a polynomial with integer values, exactly.

    By Newton's forward differences: f(i) = sum of D^j f(0) * C(i, j), so the sum is that of D^j f(0) * C(count, j+1).

    Returns
    -------
    int or None
        None when a value is no integer, or the difference after the last is not zero: no such polynomial.

    Examples
    --------
    >>> newton_sum(lambda i: i * i, 2, 5)
    30
    """
    values = [value(step) for step in range(degree + 2)]
    if not all(isinstance(item, int) for item in values):
        return None
    total = 0
    row = cast("list[int]", values)
    for order in range(degree + 1):
        total += row[0] * math.comb(count, order + 1)
        row = [after - before for before, after in itertools.pairwise(row)]
    return total if row == [0] else None


@lru_cache(maxsize=65536)
def degree_in(text: str, dim: str) -> int | None:
    """Return the degree of an expression in a dim, or None when it is no polynomial in it.

    The degree is of the expression as written, so an upper bound.

    Examples
    --------
    >>> degree_in("2*B*T**2 + T", "T"), degree_in("Max(T, 5)", "T"), degree_in("distinct_experts(64, 6, B)", "T")
    (2, None, 0)
    """
    if dim not in text:
        return 0
    return _degree(ast.parse(text, mode="eval").body, dim)


def _degree(node: ast.expr, dim: str) -> int | None:
    match node:
        case ast.Constant():
            return 0
        case ast.Name():
            return 1 if node.id == dim else 0
        case ast.UnaryOp():
            return _degree(node.operand, dim)
        case ast.Call():
            return 0 if all(_degree(argument, dim) == 0 for argument in node.args) else None
        case ast.BinOp():
            return _binary_degree(node, dim)
        case _:
            return None


def _binary_degree(node: ast.BinOp, dim: str) -> int | None:
    left, right = _degree(node.left, dim), _degree(node.right, dim)
    if left is None or right is None:
        return None
    match node.op:
        case ast.Add() | ast.Sub():
            return max(left, right)
        case ast.Mult():
            return left + right
        case ast.Div() if right == 0:
            return left
        case ast.Pow() if left == right == 0:
            return 0
        case ast.Pow() if isinstance(node.right, ast.Constant) and isinstance(node.right.value, int):
            return left * node.right.value
        case _:
            return None
