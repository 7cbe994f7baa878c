"""Why a part is on one side alone: its stages are not run, there is no such part, or it is elsewhere in the stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modelmeter.compare.group import Group, same_model
from modelmeter.compare.metrics import Metric
from modelmeter.compare.operator_work import OperatorWork, amount, name_of, operator_work
from modelmeter.compare.roles import Tower
from modelmeter.compare.words import arrow
from modelmeter.model import Leaf

SHOWN_MODULES, SHOWN_OPERATORS = 2, 3

_SMALL = 0.1
"""Of the largest operator's work: those that do less are not worth a word."""

_ALIKE = 0.5
"""Of an operator's work: as much of it elsewhere, or as little more, is taken for the same work."""


def why_absent(old: Group, new: Group, metric: Metric) -> tuple[str, ...]:
    """Return why only one of two groups has any of a metric."""
    present, absent = (old, new) if old.total(metric) else (new, old)
    unrun = not any(stage in absent.side.stages for stage in present.stages)
    if present.stages and same_model(old.side, new.side) and unrun:
        return tuple(executions(old, new, stage) for stage in present.stages)
    largest = max(present.pieces, key=lambda piece: present.side.work[piece].get(metric, 0))
    node = present.side.nodes.get(largest.module)
    example = "" if node is None else f": {_module(node.id)} ({node.class_name})"
    return f"only in {present.side.label}{example}", *_elsewhere(present, absent, metric)


def executions(old: Group, new: Group, stage: str) -> str:
    """Say how often a stage runs on both sides."""
    counts = [group.side.stages[stage].executions if stage in group.side.stages else 0 for group in (old, new)]
    return f"{stage} executions {arrow(*counts)}"


def _elsewhere(present: Group, absent: Group, metric: Metric) -> Iterator[str]:
    """Yield where the other side does the work of the same operators in a stage of the same name, or that it does not.

    Which module makes a call can be a matter of the code alone, and a stage may end before what comes last in another.
    """
    for stage in present.stages:
        yield from counterparts(present, absent, stage, present.leaves(stage), metric)


def counterparts(present: Group, absent: Group, stage: str, leaves: Sequence[Leaf], metric: Metric) -> Iterator[str]:
    """Yield where the other side does the work of the operators of some leaves, the largest first."""
    setup, other = present.side.setup, absent.side.setup
    if setup is None or other is None or stage not in other.stages or stage not in setup.stages:
        return
    mine = operator_work(setup, leaves, metric)
    here = operator_work(setup, setup.model.leaves_by_stage[stage], metric)
    there = operator_work(other, other.model.leaves_by_stage[stage], metric)
    enough = max((work.work for work in mine.values()), default=0) * _SMALL
    largest = sorted((name for name in mine if mine[name].work > enough), key=lambda name: -mine[name].work)
    around = {present.side.roles[leaf.module].tower for leaf in leaves} == {Tower.WHOLE}
    for name in largest[:SHOWN_OPERATORS]:
        extra = there.get(name, OperatorWork()).work - (here[name].work - mine[name].work)
        a, b = (_modules(model.leaves_by_stage[stage], name) for model in (setup.model, other.model))
        said = _where([module for module in b if module not in a] or b, extra / mine[name].work, around=around)
        if said:
            yield f"{name} ({amount(metric, mine[name].work)}) is {said} in {stage} of {absent.side.label}"


def _modules(leaves: Sequence[Leaf], operator: str) -> list[str]:
    return [*dict.fromkeys(leaf.module for leaf in leaves if name_of(leaf) == operator)]


def _where(modules: list[str], share: float, *, around: bool) -> str:
    """Say whether other modules do as much more of an operator as a part does on the other side alone.

    Of what runs around the towers it is said too when nothing else does: a stage may be captured without it.
    """
    if share < _ALIKE:
        return "" if not around else "in no other module" if modules else "not captured as part of any module"
    if share > 1 / _ALIKE:  # other modules do more of it for reasons of their own
        return ""
    more = len(modules) - SHOWN_MODULES
    return "in " + ", ".join(map(_module, modules[:SHOWN_MODULES])) + (f" and {more} more" if more > 0 else "")


def _module(name: str) -> str:
    return f"`{name}`" if name else "the model itself"
