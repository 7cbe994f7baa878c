"""Roll-ups: own amounts by module and category, summed by stage, component, category and module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from modelmeter.categories import Category
from modelmeter.costs import Amount, Time
from modelmeter.model import AnalyticModel
from modelmeter.reports.report import Breakdown, ModuleAmount

Cells = Mapping[tuple[str, Category], Amount]
"""Own amounts of a stage, by module and category: what every roll-up is a sum of."""

OPENED_SHARE = 0.9
"""A child that owns more of the parameters than this is a wrapper: its children are the components."""


@frozen(kw_only=True)
class StageCells:
    """Own amounts of some executions of one stage."""

    stage: str
    executions: int
    cells: Cells


def add_cells(parts: Iterable[Cells]) -> dict[tuple[str, Category], Amount]:
    """Return the sum of cells, in order of first appearance."""
    sums: dict[tuple[str, Category], Amount] = {}
    for part in parts:
        for key, amount in part.items():
            sums[key] = sums[key] + amount if key in sums else amount
    return sums


def merge_stages(parts: Iterable[StageCells], order: Iterable[str]) -> tuple[StageCells, ...]:
    """Return one entry per stage that ran, in the given order of stages."""
    found: dict[str, list[StageCells]] = {}
    for part in parts:
        found.setdefault(part.stage, []).append(part)
    return tuple(
        StageCells(
            stage=stage,
            executions=sum(part.executions for part in found[stage]),
            cells=add_cells(part.cells for part in found[stage]),
        )
        for stage in order
        if stage in found
    )


def breakdown(model: AnalyticModel, parts: Iterable[StageCells]) -> Breakdown:
    """Return every split of the work of some runs; each adds up to the total."""
    stages = merge_stages(parts, (stage.name for stage in model.stages))
    cells = add_cells(part.cells for part in stages)
    own = own_by_module(cells)
    return Breakdown(
        total=sum_amounts(cells.values()),
        executions={part.stage: part.executions for part in stages},
        stages={part.stage: sum_amounts(part.cells.values()) for part in stages},
        components=_by_component(model, own),
        categories=by_category(cells),
        modules=module_amounts(model, own),
        module_categories=_by_module_and_category(model, cells),
    )


def sum_amounts(amounts: Iterable[Amount]) -> Amount:
    """Return the sum of amounts; nothing at all is an amount of zero."""
    return sum(amounts, Amount())


def own_by_module(cells: Cells) -> dict[str, Amount]:
    """Return the own amount of each module that ran operators itself."""
    sums: dict[str, Amount] = {}
    for (module, _), amount in cells.items():
        sums[module] = sums[module] + amount if module in sums else amount
    return sums


def by_category(cells: Cells) -> dict[Category, Amount]:
    """Return the amount of each category that occurs, in the order of the list of categories."""
    return {
        category: sum_amounts(amount for (_, found), amount in cells.items() if found is category)
        for category in Category
        if any(found is category for _, found in cells)
    }


def module_amounts(model: AnalyticModel, own: Mapping[str, Amount]) -> dict[str, ModuleAmount]:
    """Return own and inclusive amounts of the modules that ran, parents before children."""
    inclusive = dict(own)
    for node in reversed(model.modules):  # children before parents
        if node.parent is not None and node.id in inclusive:
            below = inclusive[node.id]
            inclusive[node.parent] = inclusive[node.parent] + below if node.parent in inclusive else below
    return {
        node.id: ModuleAmount(
            class_name=node.class_name,
            parent=node.parent,
            instances=node.instances,
            own=own.get(node.id, Amount(time=_no_time(inclusive[node.id]))),
            inclusive=inclusive[node.id],
        )
        for node in model.modules
        if node.id in inclusive
    }


def _no_time(like: Amount) -> Time | None:
    return None if like.time is None else like.time * 0


def _by_module_and_category(model: AnalyticModel, cells: Cells) -> dict[str, dict[Category, Amount]]:
    found: dict[str, dict[Category, Amount]] = {}
    for (module, category), amount in cells.items():
        found.setdefault(module, {})[category] = amount
    return {
        node.id: {category: found[node.id][category] for category in Category if category in found[node.id]}
        for node in model.modules
        if node.id in found
    }


def component_of(model: AnalyticModel) -> dict[str, str]:
    """Return the component that each module belongs to.

    Components are the root's children; a single child with more than 90 % of the parameters is a wrapper and its
    children take its place. What the root or a wrapper runs itself is a component of its own.
    """
    parameters = {node.id: node.parameters for node in model.modules}
    for node in reversed(model.modules):  # children before parents
        if node.parent is not None:
            parameters[node.parent] += parameters[node.id]
    with_children = {node.parent for node in model.modules}
    component: dict[str, str] = {}
    opened = {model.root.id}
    for node in model.modules:  # parents before children
        large = node.instances == 1 and parameters[node.id] > OPENED_SHARE * model.parameters
        if large and node.parent in opened and node.id in with_children:
            opened.add(node.id)
        if node.id in opened:
            component[node.id] = f"{node.id or node.class_name} (own operators)"
        elif node.parent in opened:
            component[node.id] = node.id
        else:
            component[node.id] = component[str(node.parent)]
    return component


def _by_component(model: AnalyticModel, own: Mapping[str, Amount]) -> dict[str, Amount]:
    component = component_of(model)
    sums: dict[str, Amount] = {}
    for node in model.modules:
        if node.id in own:
            name = component[node.id]
            sums[name] = sums[name] + own[node.id] if name in sums else own[node.id]
    return sums
