"""Dims as text and back: only arithmetic is read, so that what a file holds may be evaluated."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

import sympy

from modelmeter.dims import FUNCTIONS, Dim, simplify, symbol
from modelmeter.errors import DimError
from modelmeter.expert_counts import distinct_experts

MAX_EXPONENT = 8
"""Largest exponent in a text; a power has no power as its base, so a text cannot ask for endless digits."""

_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Constant,
    ast.Name,
    ast.Call,
    ast.Load,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.Pow,
    ast.USub,
)
_SYMBOLIC: Mapping[str, Any] = {
    "distinct_experts": distinct_experts,
    "floor": sympy.floor,
    "ceiling": sympy.ceiling,
    "Max": sympy.Max,
    "Min": sympy.Min,
    "_whole": sympy.Integer,
}


def to_text(value: Dim) -> str:
    """Write a dim as a Python expression; equal expressions give equal text.

    Examples
    --------
    >>> from modelmeter.dims import symbol
    >>> to_text(2 * symbol("S") * symbol("B")), to_text(7)
    ('2*B*S', '7')
    """
    if isinstance(value, sympy.Expr):
        return _expr_text(value)
    return str(value)


@lru_cache(maxsize=65536)
def _expr_text(expr: sympy.Expr) -> str:
    return sympy.sstr(expr, order="lex")


def parse(text: str) -> Dim:
    """Read a dim from its text form: integers, dims, ``+ - * / **`` and the known functions only.

    Raises
    ------
    DimError
        When the text is no such expression.

    Examples
    --------
    >>> from modelmeter.dims import symbol
    >>> parse("2*B*S") == 2 * symbol("B") * symbol("S"), parse("7")
    (True, 7)
    """
    return _parse(text)


@lru_cache(maxsize=65536)
def _parse(text: str) -> Dim:
    names = names_in(text)
    space: dict[str, Any] = {name: symbol(name) for name in names}
    space.update(_SYMBOLIC)
    value = evaluate_text(text, space, exact=True)
    if isinstance(value, sympy.Expr) and value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise DimError(f"{text!r} has no value: it divides by zero")
    return simplify(value)


def free_dims(value: Dim) -> frozenset[str]:
    """Return the names of the dims in a value.

    Examples
    --------
    >>> sorted(free_dims(parse("2*B*S")))
    ['B', 'S']
    """
    return names_in(to_text(value)) if isinstance(value, sympy.Expr) else frozenset()


@lru_cache(maxsize=65536)
def names_in(text: str) -> frozenset[str]:
    """Return the names of the dims in a text, having checked that it holds nothing but arithmetic.

    Raises
    ------
    DimError
        When the text is no expression as `parse` reads it.

    Examples
    --------
    >>> sorted(names_in("2*B*S + 1"))
    ['B', 'S']
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DimError(f"{text!r} is no expression in dims: {error}") from error
    names: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise DimError(f"{text!r} is no expression in dims: it uses {type(node).__name__}")
        if isinstance(node, ast.Constant) and not _is_number(node.value):
            raise DimError(f"{text!r} is no expression in dims: {node.value!r} is no number")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _is_small_power(node):
            raise DimError(
                f"{text!r} is no expression in dims: exponents are whole numbers up to {MAX_EXPONENT}, "
                "and a power has no power as its base"
            )
        if isinstance(node, ast.Call) and (
            not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords
        ):
            raise DimError(f"{text!r} calls an unknown function; known are {sorted(FUNCTIONS)}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not _arguments_fit(node):
            raise DimError(f"{text!r} calls {node.func.id} with {len(node.args)} arguments")
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            raise DimError(f"{text!r} is no expression in dims: {node.id!r} cannot name a dim")
        if isinstance(node, ast.Name) and node.id not in FUNCTIONS:
            names.add(node.id)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FUNCTIONS and id(node) not in called:
            raise DimError(f"{text!r} is no expression in dims: {node.id} is a function, not a dim")
    return frozenset(names)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_small_power(node: ast.BinOp) -> bool:
    exponent = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
    return (
        isinstance(exponent, ast.Constant)
        and isinstance(exponent.value, int)
        and exponent.value <= MAX_EXPONENT
        and not any(isinstance(part, ast.Pow) for part in ast.walk(node.left))
    )


def _arguments_fit(node: ast.Call) -> bool:
    assert isinstance(node.func, ast.Name)
    wanted = FUNCTIONS[node.func.id]
    return len(node.args) == wanted if wanted else bool(node.args)


class _WholeConstants(ast.NodeTransformer):
    """Hands whole constants to the space's ``_whole``, as Python's own 1/2 would be a float."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if not isinstance(node.value, int):
            return node
        return ast.Call(func=ast.Name(id="_whole", ctx=ast.Load()), args=[node], keywords=[])

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        if isinstance(node.op, ast.Pow):
            node.left = self.visit(node.left)  # the exponent stays a plain integer
            return node
        return self.generic_visit(node)  # pyright: ignore[reportReturnType] - a BinOp stays one


@lru_cache(maxsize=65536)
def _code(text: str, *, exact: bool) -> CodeType:
    try:
        if not exact:
            return compile(text, "<dim>", "eval")
        return compile(
            ast.fix_missing_locations(_WholeConstants().visit(ast.parse(text, mode="eval"))), "<dim>", "eval"
        )
    except RecursionError as error:
        raise DimError(f"an expression of {len(text)} characters nests too deep to evaluate") from error


def evaluate_text(text: str, space: Mapping[str, Any], *, exact: bool) -> Dim:
    """Evaluate a text that `names_in` has checked.

    Parameters
    ----------
    text : str
        The expression; unchecked text must not come here.
    space : mapping of str to object
        What its dims and functions stand for. With ``exact`` also ``_whole``, which makes a number of each whole
        constant.
    exact : bool
        Whether whole constants are handed to ``_whole``, so that 1/2 is a fraction.

    Raises
    ------
    DimError
        When the text divides by zero or nests too deep.

    Examples
    --------
    >>> evaluate_text("2*B + 1", {"B": 3}, exact=False)
    7
    """
    try:
        return eval(_code(text, exact=exact), {"__builtins__": {}}, dict(space))  # noqa: S307 - `names_in` admitted arithmetic only
    except ZeroDivisionError as error:
        raise DimError(f"{text!r} has no value: it divides by zero") from error
