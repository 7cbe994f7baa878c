"""Module calls: which calls of modules a stage's schedule passes through, from the modules of consecutive operators."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from modelmeter.model import AnalyticModel, FreeOps, Leaf, ModuleNode, Stage


@frozen(kw_only=True)
class ModuleCall:
    """One call of a module: the operator calls of a schedule that it runs, those of its children included."""

    module: str
    depth: int  # of the module in the tree; the root is 0
    first: int  # position in the schedule
    last: int  # the same, included


@frozen(kw_only=True)
class _Open:
    """A module call that is not over yet, and how often each record ran in it."""

    node: ModuleNode
    first: int
    seen: Counter[int] = field(factory=Counter)

    def is_full(self, position: int, calls: int, stage: str) -> bool:
        """Tell whether one more of a record's calls would be more than one call of the module runs."""
        times = self.node.calls.get(stage, 0)
        return times > 1 and self.seen[position] + 1 > math.ceil(calls / times)


def records_of(model: AnalyticModel, stage: Stage) -> tuple[Leaf | FreeOps, ...]:
    """Return what the positions of a stage's schedule stand for."""
    return (*model.leaves_by_stage[stage.name], *model.free_by_stage[stage.name])


def module_calls(model: AnalyticModel, stage: Stage) -> tuple[ModuleCall, ...]:
    """Return the calls of modules in a stage's schedule, outer ones before those inside them.

    Instances folded into one id are told apart by their operators: a module call ends before an operator that it
    already ran as often as one of its calls does. Modules that run no operator, themselves or below, do not show.

    Examples
    --------
    >>> import modelmeter
    >>> model = modelmeter.load("deepseek-ocr")
    >>> prefill = model.stage("prefill")
    >>> sum(call.module == "model.layers.[1-11].mlp" for call in module_calls(model, prefill))
    11
    """
    nodes = {node.id: node for node in model.modules}
    records = records_of(model, stage)
    paths = {record.module: _path(nodes, record.module) for record in records}
    opened: list[_Open] = []
    found: list[ModuleCall] = []

    def close(keep: int, last: int) -> None:
        while len(opened) > keep:
            over = opened.pop()
            found.append(ModuleCall(module=over.node.id, depth=len(opened), first=over.first, last=last))

    for index, position in enumerate(stage.schedule):
        record = records[position]
        path = paths[record.module]
        close(_shared(opened, path, position, record.calls, stage.name), index - 1)
        opened += [_Open(node=node, first=index) for node in path[len(opened) :]]
        for scope in opened:
            scope.seen[position] += 1
    close(0, len(stage.schedule) - 1)
    return tuple(sorted(found, key=lambda call: (call.first, call.depth)))


def _shared(opened: Sequence[_Open], path: Sequence[ModuleNode], position: int, calls: int, stage: str) -> int:
    """Return how many of the open module calls an operator is still in."""
    for level, scope in enumerate(opened):
        if level >= len(path) or scope.node is not path[level] or scope.is_full(position, calls, stage):
            return level
    return len(opened)


def _path(nodes: Mapping[str, ModuleNode], module: str) -> tuple[ModuleNode, ...]:
    """Return a module and all above it, the root first."""
    node = nodes[module]
    return (node,) if node.parent is None else (*_path(nodes, node.parent), node)
