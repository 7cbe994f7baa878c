"""Coverage: the state of every operator name, which layers its rule makes, and who calls it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from types import FunctionType

from attrs import field, frozen

from dsocr_graph.lowering.registry import Approximation, Unsupported, known_operators, rule_of
from modelmeter.layers import LAYERS
from modelmeter.model import AnalyticModel, Exactness

_PACKAGE = __name__.rpartition(".")[0]


class State(StrEnum):
    """The three states of an operator name."""

    RULE = "rule"
    FREE = "free"
    MISSING = "missing"


@frozen(kw_only=True)
class OperatorState:
    """What becomes of the calls of one operator."""

    name: str  # such as "aten::linear"
    state: State
    family: str = ""  # file of its rule
    layers: tuple[str, ...] = ()  # that its rule can make, by class name
    approximated: bool = False  # whether its rule can make a layer whose cost rests on an assumption
    sometimes_free: bool = False  # whether its rule finds some calls to move nothing
    sometimes_refused: bool = False  # whether its rule knows not all forms of the operator
    uses: Mapping[str, Mapping[str, int]] = field(factory=dict)  # model -> stage -> calls
    notes: tuple[str, ...] = ()  # assumptions behind the calls of these models


def operator_states(names: Collection[str], models: Iterable[AnalyticModel] = ()) -> tuple[OperatorState, ...]:
    """Return the state of every operator: those named, those that models call, and those of other namespaces.

    Parameters
    ----------
    names : collection of str
        All that there are in their namespaces, such as those of one torch release in ATen.
    models : iterable of AnalyticModel
        Whose calls to count.

    Examples
    --------
    >>> names = {"aten::linear", "aten::lu_solve", "aten::view"}
    >>> states = {each.name: each for each in operator_states(names)}
    >>> states["aten::lu_solve"].state.value, states["aten::view"].state.value, states["aten::linear"].layers
    ('missing', 'free', ('Linear',))
    """
    uses, notes = _uses(models)
    namespaces = {_namespace(name) for name in names}
    custom = {name for name in known_operators() if _namespace(name) not in namespaces}
    return tuple(
        _state(name, uses.get(name, {}), tuple(sorted(notes.get(name, ()))))
        for name in sorted({*names, *custom, *uses})
    )


def _namespace(name: str) -> str:
    return name.partition("::")[0]


def _state(name: str, uses: Mapping[str, Mapping[str, int]], notes: tuple[str, ...]) -> OperatorState:
    rule = rule_of(name)
    if rule is None:
        state = State.FREE if name in known_operators() else State.MISSING
        return OperatorState(name=name, state=state, uses=uses, notes=notes)
    function = inspect.unwrap(rule)
    assert isinstance(function, FunctionType), f"the rule of {name} is no plain function"
    names = frozenset(_names(function, set()))
    return OperatorState(
        name=name,
        state=State.RULE,
        family=function.__module__.rpartition(".")[2],
        layers=tuple(sorted(names & LAYERS.keys())),
        approximated=Approximation.__name__ in names,
        sometimes_free="None" in str(function.__annotations__.get("return", "")),
        sometimes_refused=Unsupported.__name__ in names,
        uses=uses,
        notes=notes,
    )


def _names(function: FunctionType, seen: set[FunctionType]) -> Iterator[str]:
    """Yield the names that a rule's code uses, and those of the functions of this package that it calls."""
    seen.add(function)
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        yield name
        if isinstance(called, FunctionType) and called.__module__.startswith(_PACKAGE) and called not in seen:
            yield from _names(called, seen)


def _uses(models: Iterable[AnalyticModel]) -> tuple[dict[str, dict[str, Counter[str]]], dict[str, set[str]]]:
    """Return calls by operator, model and stage, and the notes of approximated ones."""
    uses: dict[str, dict[str, Counter[str]]] = {}
    notes: dict[str, set[str]] = {}
    for model in models:
        for record in (*model.leaves, *model.free):
            by_model = uses.setdefault(record.op, {})
            by_model.setdefault(model.name, Counter())[record.stage] += record.calls
        for leaf in model.leaves:
            if leaf.exactness is Exactness.APPROXIMATED:
                notes.setdefault(leaf.op, set()).add(leaf.note)
    return uses, notes
