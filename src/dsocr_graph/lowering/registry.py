"""The table of lowering rules: every ATen name has a rule, is free by name, or is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen

from dsocr_graph.ir import OpCall, TensorSpec
from modelmeter.dims import Dim, product
from modelmeter.layers import BaseLayer, Elementwise, Operand


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

_RULES: dict[str, Rule] = {}
_FREE: set[str] = set()


def lowers(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen names such as "aten::linear".

    Raises
    ------
    ValueError
        When a name already has a rule or is free.

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
            if name in _RULES or name in _FREE:
                raise ValueError(f"{name} already has a lowering; unregister it first")
            _RULES[name] = rule
        return rule

    return register


def free(*names: str) -> None:
    """Declare ATen names that never move data, such as views."""
    for name in names:
        if name in _RULES or name in _FREE:
            raise ValueError(f"{name} already has a lowering")
        _FREE.add(name)


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


def rows_of(tensor: TensorSpec, axes: int) -> Dim:
    """Return the product of all but the last `axes` axes."""
    return product(tensor.shape[: len(tensor.shape) - axes])


__all__ = [
    "Approximation",
    "Rule",
    "Unsupported",
    "free",
    "is_free",
    "known_operators",
    "lowers",
    "operand",
    "operands",
    "pointwise",
    "rows_of",
    "rule_of",
    "unregister",
]
