"""Coverage: how much of the work is exact, approximated, free or unclassified."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve

from modelmeter.binding import Binding
from modelmeter.expert_counts import fewest_routing, most_routing
from modelmeter.model import AnalyticModel, Exactness, Leaf
from modelmeter.reports.report import Approximation, Coverage, Share, UnclassifiedOp
from modelmeter.workload import StageRun


def coverage_of(model: AnalyticModel, run: StageRun, binding: Binding) -> Coverage:
    """Return how much of a run's work is known how well."""
    shares = dict.fromkeys(Exactness, Share())
    approximations: list[Approximation] = []
    unclassified: list[UnclassifiedOp] = []
    for leaf in model.leaves_by_stage[run.stage]:
        share = _share(leaf, binding)
        if leaf.exactness is Exactness.EXACT and _depends_on_routing(leaf, binding):
            moved = Share(calls=share.calls, bytes=share.bytes)
            shares[Exactness.APPROXIMATED] = _add(shares[Exactness.APPROXIMATED], moved)
            approximations.append(
                Approximation(op=leaf.op, note=_ROUTED, calls=moved.calls, flops=0, bytes=moved.bytes)
            )
            share = Share(flops=share.flops)  # its FLOPs do not depend on the experts chosen
        shares[leaf.exactness] = _add(shares[leaf.exactness], share)
        if leaf.exactness is Exactness.APPROXIMATED:
            approximations.append(
                Approximation(op=leaf.op, note=leaf.note, calls=share.calls, flops=share.flops, bytes=share.bytes)
            )
        if leaf.exactness is Exactness.UNCLASSIFIED:
            unclassified.append(
                UnclassifiedOp(op=leaf.op, stage=leaf.stage, module=leaf.module, calls=share.calls, bytes=share.bytes)
            )
    free = sum(record.calls for record in model.free if record.stage == run.stage)
    return Coverage(
        exact=shares[Exactness.EXACT],
        approximated=shares[Exactness.APPROXIMATED],
        free=Share(calls=free * run.count),
        unclassified=shares[Exactness.UNCLASSIFIED],
        approximations=_merge_approximations(approximations),
        unclassified_ops=_merge_unclassified(unclassified),
    )


_ROUTED = "bytes are the expectation for the assumed choice of experts; FLOPs are exact"


def _depends_on_routing(leaf: Leaf, binding: Binding) -> bool:
    """Whether the bytes of a leaf differ between the bounds of what a router may choose, at these sizes."""
    text = leaf.cost.bytes.text
    if "distinct_experts" not in text:
        return False
    fewest, most = (evolve(binding, routing=routing) for routing in (fewest_routing, most_routing))
    return fewest.sum(text) != most.sum(text)


def _share(leaf: Leaf, binding: Binding) -> Share:
    cost = leaf.cost
    flops = binding.sum(cost.matmul_flops.text) + binding.sum(cost.vector_flops.text)
    return Share(
        calls=leaf.calls * binding.count, flops=leaf.calls * flops, bytes=leaf.calls * binding.sum(cost.bytes.text)
    )


def _add(a: Share, b: Share) -> Share:
    return Share(calls=a.calls + b.calls, flops=a.flops + b.flops, bytes=a.bytes + b.bytes)


def _merge_approximations(records: Iterable[Approximation]) -> tuple[Approximation, ...]:
    merged: dict[tuple[str, str], Approximation] = {}
    for record in records:
        held = merged.get((record.op, record.note))
        merged[record.op, record.note] = (
            record
            if held is None
            else evolve(
                held,
                calls=held.calls + record.calls,
                flops=held.flops + record.flops,
                bytes=held.bytes + record.bytes,
            )
        )
    return tuple(merged[key] for key in sorted(merged))


def _merge_unclassified(records: Iterable[UnclassifiedOp]) -> tuple[UnclassifiedOp, ...]:
    merged: dict[tuple[str, str], UnclassifiedOp] = {}
    for record in records:
        held = merged.get((record.op, record.stage))
        merged[record.op, record.stage] = (
            record if held is None else evolve(held, calls=held.calls + record.calls, bytes=held.bytes + record.bytes)
        )
    return tuple(merged[key] for key in sorted(merged))


def sum_coverage(parts: Iterable[Coverage]) -> Coverage:
    """Return the coverage of several runs together."""
    parts = list(parts)
    states: dict[str, Share] = {}
    for name in ("exact", "approximated", "free", "unclassified"):
        total = Share()
        for part in parts:
            total = _add(total, getattr(part, name))
        states[name] = total
    return Coverage(
        **states,
        approximations=_merge_approximations(record for part in parts for record in part.approximations),
        unclassified_ops=_merge_unclassified(record for part in parts for record in part.unclassified_ops),
    )
