"""Texts of dims as sums of products: what can be added up before any size is known."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache

from modelmeter.dim_text import MAX_EXPONENT
from modelmeter.errors import DimError
from modelmeter.sweeps.errors import SweepFormulaError

Monomial = tuple[str, ...]
"""Factors in order, a square twice: dims, and calls such as ``distinct_experts(64, 6, B)``; () is the constant 1."""

Polynomial = Mapping[Monomial, int | Fraction]
"""Coefficients by monomial, none of them 0; whole ones are ints, as fractions take long to add."""

_ONE: Monomial = ()
_ARITY: Mapping[str, int | None] = {"distinct_experts": 3, "floor": 1, "ceiling": 1, "Max": None, "Min": None}


@lru_cache(maxsize=65536)
def polynomial(text: str) -> Polynomial:
    """Return the expanded form of a text; calls of functions stay whole, as factors.

    Raises
    ------
    SweepFormulaError
        When the text divides by a dim or calls an unknown function.
    DimError
        When it is no expression at all.

    Examples
    --------
    >>> {key: int(value) for key, value in polynomial("2*B*(T + 1) + B*T").items()}
    {('B', 'T'): 3, ('B',): 2}
    >>> list(polynomial("7*distinct_experts(64, 6, B*S)"))
    [('distinct_experts(64, 6, B * S)',)]
    """
    return _expanded(_parsed(text), text)


@lru_cache(maxsize=65536)
def arguments(call: str) -> tuple[str, tuple[str, ...]]:
    """Return function and arguments of a factor that is a call.

    Examples
    --------
    >>> arguments("Max(B * S, 5)")
    ('Max', ('B * S', '5'))
    """
    node = _parsed(call)
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return node.func.id, tuple(ast.unparse(argument) for argument in node.args)


@lru_cache(maxsize=65536)
def dims_of(factor: str) -> frozenset[str]:
    """Return the dims that a factor depends on.

    Examples
    --------
    >>> sorted(dims_of("distinct_experts(64, 6, B * S)")), sorted(dims_of("T"))
    (['B', 'S'], ['T'])
    """
    if "(" not in factor:
        return frozenset((factor,))
    _, texts = arguments(factor)
    return frozenset(dim for text in texts for key in polynomial(text) for part in key for dim in dims_of(part))


@lru_cache(maxsize=65536)
def is_whole(factor: str) -> bool:
    """Whether a factor is an integer at whatever sizes; the experts that a router touches are an expectation.

    Examples
    --------
    >>> [is_whole(factor) for factor in ("B", "ceiling(T/16)", "Max(B/2, 1)", "distinct_experts(64, 6, B)")]
    [True, True, False, False]
    """
    if "(" not in factor:
        return True
    function, texts = arguments(factor)
    if function in {"floor", "ceiling"}:
        return True
    return function != "distinct_experts" and all(has_whole_values(polynomial(text)) for text in texts)


def has_whole_values(terms: Polynomial) -> bool:
    """Whether a polynomial is an integer at whatever sizes.

    Examples
    --------
    >>> [has_whole_values(polynomial(text)) for text in ("2*B + 1", "B/2", "ceiling(B/2)")]
    [True, False, True]
    """
    return all(value.denominator == 1 and all(map(is_whole, key)) for key, value in terms.items())


def weighted_sum(parts: Iterable[tuple[Polynomial, int]]) -> Polynomial:
    """Return the sum of polynomials, each so many times.

    Examples
    --------
    >>> {key: int(value) for key, value in weighted_sum([(polynomial("B"), 2), (polynomial("B + 1"), 3)]).items()}
    {('B',): 5, (): 3}
    """
    found: dict[Monomial, int | Fraction] = {}
    for terms, count in parts:
        for key, value in terms.items():
            found[key] = found.get(key, 0) + value * count
    return {key: value for key, value in found.items() if value}


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DimError(f"{text!r} is no expression in dims: {error}") from error


def _expanded(node: ast.expr, text: str) -> Polynomial:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as value) if math.isfinite(value):
            return {_ONE: _plain(Fraction(value))} if value else {}
        case ast.Name(id=name) if name not in _ARITY:
            return {(name,): 1}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return weighted_sum([(_expanded(operand, text), -1)])
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return weighted_sum([(_expanded(left, text), 1), (_expanded(right, text), 1)])
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return weighted_sum([(_expanded(left, text), 1), (_expanded(right, text), -1)])
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product(_expanded(left, text), _expanded(right, text))
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _quotient(_expanded(left, text), _expanded(right, text), text)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)) if 0 < power <= MAX_EXPONENT:
            return _power(_expanded(left, text), power)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _ARITY:
            return _call(name, args, text)
        case _:
            pass
    raise SweepFormulaError(
        f"a sweep cannot evaluate {ast.unparse(node)!r} of {text!r}: it takes sums, products, whole powers up to "
        f"{MAX_EXPONENT} and the functions {', '.join(_ARITY)}. Evaluate the points one by one with "
        "modelmeter.evaluate"
    )


def _plain(value: Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    found: dict[Monomial, int | Fraction] = {}
    for (one, a), (two, b) in itertools.product(left.items(), right.items()):
        key = tuple(sorted((*one, *two)))
        found[key] = found.get(key, 0) + a * b
    return {key: value for key, value in found.items() if value}


def _power(base: Polynomial, exponent: int) -> Polynomial:
    found = base
    for _ in range(exponent - 1):
        found = _product(found, base)
    return found


def _quotient(left: Polynomial, right: Polynomial, text: str) -> Polynomial:
    if not right:
        raise DimError(f"{text!r} has no value: it divides by zero")
    if set(right) != {_ONE}:
        raise SweepFormulaError(
            f"a sweep cannot evaluate {text!r}: it divides by a dim. Evaluate the points one by one with "
            "modelmeter.evaluate"
        )
    return {key: _plain(Fraction(value) / right[_ONE]) for key, value in left.items()}


def _call(name: str, args: list[ast.expr], text: str) -> Polynomial:
    wanted = _ARITY[name]
    if len(args) != (wanted or len(args)) or not args:
        raise DimError(f"{text!r} calls {name} with {len(args)} arguments")
    for argument in args:
        _expanded(argument, text)  # checked now, not at the first point
    inner = ", ".join(ast.unparse(argument) for argument in args)
    return {(f"{name}({inner})",): 1}
