"""How the choice of experts moves weight traffic: the same stage under several routings."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import lru_cache

from attrs import evolve, frozen

from modelmeter.binding import Binding
from modelmeter.costs import Number
from modelmeter.dim_binding import bind_text
from modelmeter.expert_counts import Routing, fewest_routing, most_routing, uniform_routing
from modelmeter.model import AnalyticModel, Leaf
from modelmeter.reports.report import MoEReport, Routings
from modelmeter.workload import StageRun, Workload


@frozen(kw_only=True)
class _Choice:
    """The arguments of `distinct_experts` as they stand in a cost."""

    experts: str
    top_k: str
    tokens: str


@lru_cache(maxsize=65536)
def _choices(text: str) -> tuple[_Choice, ...]:
    if "distinct_experts" not in text:
        return ()
    return tuple(
        _Choice(experts=ast.unparse(node.args[0]), top_k=ast.unparse(node.args[1]), tokens=ast.unparse(node.args[2]))
        for node in ast.walk(ast.parse(text, mode="eval"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "distinct_experts"
    )


def moe_reports(model: AnalyticModel, workload: Workload, routing: Routing) -> tuple[MoEReport, ...]:
    """Return, for each page and stage that routes tokens to experts, the figures under each routing.

    The leaves meant are those whose cost depends on `distinct_experts`; of a stage swept over a dim, the tokens are
    those of the first execution.
    """
    distinct: dict[object, list[MoEReport]] = {}
    reports: list[MoEReport] = []
    for item in workload.items:
        for run in item.runs:
            # Pages of one size are many in a long document; each distinct run is worked out once.
            key = (run.stage, run.count, tuple(sorted(run.bindings.items())), run.sweep)
            if key not in distinct:
                distinct[key] = _run_reports(model, item.name, run, routing)
            reports += [evolve(report, item=item.name) for report in distinct[key]]
    return tuple(reports)


def _run_reports(model: AnalyticModel, item: str, run: StageRun, routing: Routing) -> list[MoEReport]:
    routed: dict[_Choice, list[Leaf]] = {}
    for leaf in model.leaves_by_stage[run.stage]:
        for choice in _choices(leaf.cost.weight_bytes_read.text):
            routed.setdefault(choice, []).append(leaf)
    return [
        _report(model, item, run, choice=choice, leaves=leaves, routing=routing) for choice, leaves in routed.items()
    ]


def _report(
    model: AnalyticModel, item: str, run: StageRun, *, choice: _Choice, leaves: list[Leaf], routing: Routing
) -> MoEReport:
    experts, top_k, tokens = (
        int(bind_text(text, run.bindings)) for text in (choice.experts, choice.top_k, choice.tokens)
    )

    def moved(leaves: tuple[Leaf, ...] | list[Leaf], field: str) -> Callable[[Routing], Number]:
        def under(routing: Routing) -> Number:
            binding = Binding(bindings=run.bindings, count=run.count, sweep=run.sweep, routing=routing)
            return sum(leaf.calls * binding.sum(getattr(leaf.cost, field).text) for leaf in leaves)

        return under

    return MoEReport(
        item=item,
        stage=run.stage,
        experts=experts,
        top_k=top_k,
        tokens=tokens,
        executions=run.count,
        distinct_experts=_each(lambda each: each(experts, top_k, tokens), routing),
        expert_weight_bytes_read=_each(moved(leaves, "weight_bytes_read"), routing),
        stage_bytes=_each(moved(model.leaves_by_stage[run.stage], "bytes"), routing),
    )


def _each(figure: Callable[[Routing], Number], routing: Routing) -> Routings:
    return Routings(
        selected=figure(routing),
        uniform=figure(uniform_routing),
        fewest=figure(fewest_routing),
        most=figure(most_routing),
    )
