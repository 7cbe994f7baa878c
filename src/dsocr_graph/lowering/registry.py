"""The table of lowering rules: every ATen name has a rule, is free by name, or is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen

from dsocr_graph.errors import LoweringRuleError
from dsocr_graph.ir import OpCall, TensorSpec
from modelmeter.dims import Dim, product
from modelmeter.layers import BaseLayer, Combination, Elementwise, Operand


@frozen(kw_only=True)
class Approximation:
    """A layer whose cost rests on an assumption."""

    layer: BaseLayer
    note: str


@frozen(kw_only=True)
class Unsupported:
    """A call of a known operator in a form that its rule does not know: counts as missing."""

    reason: str


Rule = Callable[[OpCall], BaseLayer | Approximation | Unsupported | None]
"""Maps a call to its layer; None says that this call moves nothing."""

NO_RULE = "no lowering rule"
"""The reason of `Unsupported` for operators that have none."""

_RULES: dict[str, Rule] = {}
_FREE: set[str] = set()


def lowers(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen names such as "aten::linear", all overloads of each: `OpCall.overload` tells them apart.

    Raises
    ------
    ValueError
        When a name already has a rule or is free, is of one overload, or has no namespace.

    Examples
    --------
    >>> @lowers("example::double")
    ... def double(call: OpCall) -> BaseLayer:
    ...     return pointwise(call, flops_per_element=1)
    >>> "example::double" in known_operators()
    True
    """

    def register(rule: Rule) -> Rule:
        for name in names:
            _require_operator(name)
            if name in _RULES or name in _FREE:
                raise ValueError(f"{name} already has a lowering; unregister it first")
            _RULES[name] = rule
        return rule

    return register


def free(*names: str) -> None:
    """Declare ATen names that never move data, such as views."""
    for name in names:
        _require_operator(name)
        if name in _RULES or name in _FREE:
            raise ValueError(f"{name} already has a lowering")
        _FREE.add(name)


def _require_operator(name: str) -> None:
    """Refuse a name that no call has: calls are named namespace::operator, without their overload."""
    namespace, _, operator = name.partition("::")
    if not namespace or not operator:
        raise ValueError(f"{name!r} names no operator; write namespace::operator, such as aten::linear")
    if "." in operator:
        plain = name.partition(".")[0]
        raise ValueError(
            f"{name!r} names one overload; a rule is for all overloads of an operator: write {plain!r}, and ask "
            "call.overload where they differ"
        )


def unregister(name: str) -> None:
    """Forget a rule, so that another can take its place.

    Raises
    ------
    KeyError
        When the name has no rule.
    """
    del _RULES[name]


def known_operators() -> frozenset[str]:
    """Return every ATen name that is not missing."""
    return frozenset(_RULES) | _FREE


def is_free(call: OpCall) -> bool:
    """Whether a call is free by name."""
    return call.op in _FREE


def rule_of(name: str) -> Rule | None:
    """Return the rule of an ATen name, or None where there is none."""
    return _RULES.get(name)


def layer_of(call: OpCall) -> BaseLayer | Approximation | Unsupported | None:
    """Return what a call's rule makes of it, or why there is no rule; None when it moves nothing.

    Raises
    ------
    LoweringRuleError
        When the rule raises anything, or returns something else than a rule may.
    """
    rule = rule_of(call.op)
    if rule is None:
        return Unsupported(reason=NO_RULE)
    where = f"the lowering rule of {call.op} ({getattr(rule, '__module__', '')}.{getattr(rule, '__qualname__', rule)})"
    module = call.module or "(root)"
    try:
        made: object = rule(call)
    except Exception as error:
        raise LoweringRuleError(
            f"{where} fails on a call in {module}: {type(error).__name__}: {error}; mend the rule, or return "
            "Unsupported(reason=...) for calls that it does not know"
        ) from error
    layer = made.layer if isinstance(made, Approximation) else made
    if isinstance(layer, BaseLayer) or isinstance(made, Unsupported) or made is None:
        return made  # pyright: ignore[reportReturnType] - one of these by what was asked
    inside = "an Approximation of " if made is not layer else ""
    raise LoweringRuleError(
        f"{where} returns {inside}{layer!r}, of type {type(layer).__name__}, for a call in {module}; return a layer of "
        "modelmeter.layers, an Approximation of one, Unsupported(reason=...), or None for a call that moves nothing"
    )


def operand(tensor: TensorSpec) -> Operand:
    """Return a tensor as the operand of a kernel that touches each stored element once."""
    return Operand(elements=tensor.stored_elements, dtype=tensor.dtype, weight=tensor.is_weight)


def operands(tensors: Iterable[TensorSpec]) -> tuple[Operand, ...]:
    """Return several tensors as operands."""
    return tuple(operand(tensor) for tensor in tensors)


def pointwise(call: OpCall, *, flops_per_element: int) -> BaseLayer:
    """Return the layer of a call that computes each element of its result from one element per operand."""
    results = call.writes
    return Elementwise(
        op=call.op.partition("::")[2],
        elements=results[0].elements,
        flops_per_element=flops_per_element,
        reads=operands(call.reads),
        writes=operands(results),
        dtype=results[0].dtype,
    )


def combination(call: OpCall, *, elements: Dim | None = None, taps: Dim = 1, flops_per_tap: int) -> Combination:
    """Return the layer of a call whose results take several elements of its operands into account.

    Without `elements`, those of the first operand are what the FLOPs count for.
    """
    x = call.reads[0]
    return Combination(
        op=call.op.partition("::")[2],
        elements=x.elements if elements is None else elements,
        taps=taps,
        flops_per_tap=flops_per_tap,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=x.dtype,
    )


def rows_of(tensor: TensorSpec, axes: int) -> Dim:
    """Return the product of all but the last `axes` axes."""
    return product(tensor.shape[: len(tensor.shape) - axes])


__all__ = [
    "NO_RULE",
    "Approximation",
    "Rule",
    "Unsupported",
    "combination",
    "free",
    "is_free",
    "known_operators",
    "layer_of",
    "lowers",
    "operand",
    "operands",
    "pointwise",
    "rows_of",
    "rule_of",
    "unregister",
]
