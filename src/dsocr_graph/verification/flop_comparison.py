"""FLOPs of a run, as torch's counter has them, beside those of the analytic model; why they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from dsocr_graph.scopes import ScopeNode
from dsocr_graph.verification.flop_counts import CountedFlops, counted_operators
from dsocr_graph.verification.reasons import why_fused
from dsocr_graph.verification.records import Check, Difference, Reason, Subject
from dsocr_graph.verification.stage_run import StageRun
from modelmeter.dim_binding import bind
from modelmeter.dtypes import DType
from modelmeter.evaluate import evaluate_stage
from modelmeter.layers import Unclassified
from modelmeter.model import AnalyticModel

_CONVOLUTION = "aten::convolution"


@frozen(kw_only=True)
class ModelledFlops:
    """FLOPs of matrix products of one run, as the analytic model has them. Modules are named by node id."""

    total: int
    modules: Mapping[str, int]  # those below included
    operators: Mapping[tuple[str, str], int] = field(factory=dict)  # by module and captured operator
    complex_operators: Mapping[tuple[str, str], int] = field(factory=dict)  # those of them on complex numbers
    unclassified: frozenset[str] = frozenset()  # modules with operators without a rule

    @classmethod
    def of(cls, model: AnalyticModel, stage: str, bindings: Mapping[str, int]) -> ModelledFlops:
        """Return what a model says of a stage at some sizes."""
        sizes: dict[str, Any] = dict(bindings)
        cost = evaluate_stage(model, stage, **sizes)
        leaves = model.leaves_by_stage[stage]
        operators: Counter[tuple[str, str]] = Counter()
        complex_operators: Counter[tuple[str, str]] = Counter()
        for leaf in leaves:
            flops = int(bind(leaf.layer.matmul_flops(), bindings)) * leaf.calls
            operators[leaf.module, leaf.op] += flops
            if getattr(leaf.layer, "dtype", DType.FP32).is_complex:
                complex_operators[leaf.module, leaf.op] += flops
        return cls(
            total=int(cost.total.cost.matmul_flops),
            modules={node: int(amount.inclusive.cost.matmul_flops) for node, amount in cost.modules.items()},
            operators=operators,
            complex_operators=complex_operators,
            unclassified=frozenset(leaf.module for leaf in leaves if isinstance(leaf.layer, Unclassified)),
        )


def flops(run: StageRun, counted: CountedFlops, modelled: ModelledFlops) -> Check:
    """Compare FLOPs by torch's counter with those of the analytic model, in all and of each module that is called.

    Nodes that a shared module joins are compared together, under the first of them.
    """
    rows = [_Row(nodes=(), what="in all", ran=counted.total, filed=counted.total, said=modelled.total)]
    for nodes in run.paths.groups(run.grouped):
        modules = run.paths.modules_of(nodes)
        if any(module in counted.called for module in modules):
            rows.append(
                _Row(
                    nodes=nodes,
                    what="in the module",
                    ran=sum(counted.called.get(module, 0) for module in modules),
                    filed=sum(counted.filed.get(module, 0) for module in modules),
                    said=sum(modelled.modules.get(node.id, 0) for node in nodes),
                )
            )
    found = tuple(
        Difference(
            subject=Subject.FLOPS,
            module=row.nodes[0].id if row.nodes else "",
            what=row.what,
            run=f"{row.ran:,}",
            graph=f"{row.said:,}",
            reason=_why(run, row, modelled),
        )
        for row in rows
        if row.ran != row.said
    )
    return Check(subject=Subject.FLOPS, compared=len(rows), unit="modules", differences=found)


@frozen(kw_only=True)
class _Row:
    """FLOPs of some nodes together, or of all where there are none."""

    nodes: tuple[ScopeNode, ...]
    what: str
    ran: int  # during the calls of their modules
    filed: int  # of what these contain, wherever it was called from
    said: int  # by the model


def _why(run: StageRun, row: _Row, modelled: ModelledFlops) -> Reason | None:
    if row.said == row.filed:
        return Reason.ELSEWHERE
    below = _below(run, row.nodes)
    uncounted, saved = _uncounted(run, modelled, below), _saved(run, modelled, below)
    if saved and row.said - saved in {row.ran, row.filed}:
        return Reason.THREE_PRODUCTS
    # Where a convolution spares a product as well, the row of its own module says so.
    if uncounted and row.said - saved - uncounted in {row.ran, row.filed}:
        return Reason.UNCOUNTED
    if row.said < row.ran and not modelled.unclassified.isdisjoint(below):
        return Reason.UNCLASSIFIED
    return why_fused(run, run.paths.modules_of(row.nodes)) if row.nodes else None


def _below(run: StageRun, nodes: Sequence[ScopeNode]) -> frozenset[str]:
    """Return the ids of some nodes and of all below them; of all nodes where there are none."""
    found = {node.id for node in nodes or run.grouped.nodes}
    for node in run.grouped.nodes:  # parents come before children
        if node.parent in found:
            found.add(node.id)
    return frozenset(found)


def _uncounted(run: StageRun, modelled: ModelledFlops, nodes: Collection[str]) -> int:
    """Return the FLOPs of the captured operators that run as nothing which torch's counter has a formula for."""
    formulas = counted_operators()
    seen = {item.call.op for item in run.replayed.calls if not formulas.isdisjoint({item.call.op, *item.dispatched})}
    return sum(flops for (node, op), flops in modelled.operators.items() if node in nodes and op not in seen)


def _saved(run: StageRun, modelled: ModelledFlops, nodes: Collection[str]) -> int:
    """Return the FLOPs that the model counts and no run has, of complex convolutions that run as three real ones.

    Source: `complex_convolution` in ATen/native/Convolution.cpp, which is Gauss' product: the fourth of four is spared.
    """
    complex_calls = [item for item in run.replayed.calls if any(made.dtype.is_complex for made in item.call.writes)]
    runs_as = {(item.call.op, item.dispatched.get(_CONVOLUTION, 0)) for item in complex_calls}
    three = {op for op, products in runs_as if products == 3} - {op for op, products in runs_as if products != 3}
    return sum(flops // 4 for (node, op), flops in modelled.complex_operators.items() if node in nodes and op in three)
