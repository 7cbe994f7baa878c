"""Dims: the only place that makes symbols, writes them as text, reads them back and binds them to numbers."""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import cache, lru_cache
from types import CodeType
from typing import Any, cast

import sympy

from modelmeter.errors import DimError, UnboundDimError

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


def symbol(name: str) -> sympy.Symbol:
    """Return the symbol of a dim: always the same object, a positive integer.

    Examples
    --------
    >>> symbol("B") is symbol("B")
    True
    """
    if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name) or name in _FUNCTIONS:
        raise DimError(
            f"{name!r} cannot name a dim: use an identifier that starts with a letter, is no Python keyword "
            f"and none of {sorted(_FUNCTIONS)}"
        )
    return _symbol(name)


@cache
def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


def to_text(value: Dim) -> str:
    """Write a dim as a Python expression; equal expressions give equal text.

    Examples
    --------
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
    >>> parse("2*B*S") == 2 * symbol("B") * symbol("S"), parse("7")
    (True, 7)
    """
    return _parse(text)


@lru_cache(maxsize=65536)
def _parse(text: str) -> Dim:
    names = _names(text)
    space: dict[str, Any] = {name: symbol(name) for name in names}
    space.update(_SYMBOLIC)
    value = _evaluate(text, space, exact=True)
    if isinstance(value, sympy.Expr) and value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise DimError(f"{text!r} has no value: it divides by zero")
    return simplify(value)


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


MAX_EXPONENT = 8
"""Largest exponent in a text; a power has no power as its base, so a text cannot ask for endless digits."""


@lru_cache(maxsize=65536)
def _names(text: str) -> frozenset[str]:
    """Return the dims in a text, having checked that it holds nothing but arithmetic."""
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
            not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords
        ):
            raise DimError(f"{text!r} calls an unknown function; known are {sorted(_FUNCTIONS)}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not _arguments_fit(node):
            raise DimError(f"{text!r} calls {node.func.id} with {len(node.args)} arguments")
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            raise DimError(f"{text!r} is no expression in dims: {node.id!r} cannot name a dim")
        if isinstance(node, ast.Name) and node.id not in _FUNCTIONS:
            names.add(node.id)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _FUNCTIONS and id(node) not in called:
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
    wanted = _ARGUMENTS[node.func.id]
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


def _evaluate(text: str, space: Mapping[str, Any], *, exact: bool) -> Dim:
    try:
        return eval(_code(text, exact=exact), {"__builtins__": {}}, dict(space))  # noqa: S307 - `_names` admitted arithmetic only
    except ZeroDivisionError as error:
        raise DimError(f"{text!r} has no value: it divides by zero") from error


def simplify(value: Dim) -> Dim:
    """Return a dim in normal form: numbers as Python numbers, expressions expanded.

    Examples
    --------
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
    >>> never_negative(parse("B*S - S")), never_negative(parse("S - B"))
    (True, False)
    """
    return all(factor >= 0 for factor in shifted_terms(value).values())


def shifted_terms(value: Dim) -> Mapping[sympy.Expr, Any]:
    """Return the coefficients of a polynomial in t = dim - 1, by monomial; every t is at least 0.

    Examples
    --------
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


def free_dims(value: Dim) -> frozenset[str]:
    """Return the names of the dims in a value.

    Examples
    --------
    >>> sorted(free_dims(parse("2*B*S")))
    ['B', 'S']
    """
    return _names(to_text(value)) if isinstance(value, sympy.Expr) else frozenset()


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
    >>> bind(parse("2*B*S"), {"B": 4, "S": 913})
    7304
    """
    if not isinstance(value, sympy.Expr):
        return value
    for name in sorted(free_dims(value) & bindings.keys()):
        size: object = bindings[name]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DimError(f"size of dim {name} is {size!r}; it must be a positive integer")
    return bind_text(_expr_text(value), bindings, routing=routing)


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
    missing = _names(text) - bindings.keys()
    if missing:
        raise UnboundDimError(missing, _names(text))
    sizes: Mapping[str, Any] = bindings
    exact = "/" in text and all(isinstance(bindings[name], int) for name in _names(text))
    if exact:
        sizes = {name: Fraction(bindings[name]) for name in _names(text)}
    space: dict[str, Any] = {**sizes, **_NUMERIC, "distinct_experts": _with_whole_numbers(routing)}
    result = cast("int | float | Fraction", _evaluate(text, space, exact=exact))
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
    >>> settle(distinct_experts(64, 6, 1)), to_text(settle(distinct_experts(64, 6, symbol("B"))))
    (6, 'distinct_experts(64, 6, B)')
    """
    if isinstance(value, sympy.Expr) and not free_dims(value):
        return bind(value, {})
    return value


_ARGUMENTS: Mapping[str, int | None] = {
    "distinct_experts": 3,
    "floor": 1,
    "ceiling": 1,
    "Max": None,
    "Min": None,
}
_FUNCTIONS = frozenset(_ARGUMENTS)
_SYMBOLIC: Mapping[str, Any] = {
    "distinct_experts": distinct_experts,
    "floor": sympy.floor,
    "ceiling": sympy.ceiling,
    "Max": sympy.Max,
    "Min": sympy.Min,
    "_whole": sympy.Integer,
}
_NUMERIC: Mapping[str, Any] = {
    "floor": math.floor,
    "ceiling": math.ceil,
    "Max": max,
    "Min": min,
    "_whole": Fraction,
}
