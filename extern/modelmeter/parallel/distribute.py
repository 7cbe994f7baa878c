"""distribute: a workload on the devices of a layout, from the model's own layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelmeter.costs import Cost
from modelmeter.devices import DeviceSpec
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel
from modelmeter.parallel.assumptions import assumptions_of
from modelmeter.parallel.derive import plan_for
from modelmeter.parallel.exchanges import messages_of
from modelmeter.parallel.layout import Layout
from modelmeter.parallel.links import NCCL_RING, Latency, link_of
from modelmeter.parallel.parts import Part, Sharding, parts_of
from modelmeter.parallel.plan import ShardingPlan
from modelmeter.parallel.report import CollectiveReport, ParallelReport, PartReport, StageTime
from modelmeter.parallel.runs import PartRun, SharedRun, Terms, run_part, shared_runs, stage_time
from modelmeter.workload import Workload


def distribute(
    model: AnalyticModel,
    workload: Workload,
    layout: Layout,
    *,
    device: DeviceSpec,
    plan: ShardingPlan | None = None,
    routing: Routing = uniform_routing,
    fused: bool = False,
    latency: Latency = NCCL_RING,
    peaks_are_lower_bounds: bool = False,
) -> ParallelReport:
    """Return what each device of a layout does, holds and exchanges for a workload, and how long it takes.

    Layers are divided by the roles of a sharding plan and state their own costs; with one device all costs and times
    are those of `modelmeter.evaluate`.

    Parameters
    ----------
    model : AnalyticModel
    workload : Workload
        Of all replicas together: each gets an equal share of every batch.
    layout : Layout
        The degrees.
    device : DeviceSpec
        Of which every device is one.
    plan : ShardingPlan or None
        When None, that of `plan_for`; for a model under what-ifs, give that of the captured one.
    routing : Routing
        How many distinct experts some tokens touch, of all devices; expert ranks share them evenly.
    fused : bool
        Whether times count the traffic of fused chains.
    latency : Latency
        What a collective takes before bytes count.
    peaks_are_lower_bounds : bool
        Whether the model may need more memory than it says: `modelmeter.whatif.WhatIf.peaks_are_lower_bounds`.

    Raises
    ------
    LayoutError
        When a degree does not divide heads, features, experts, layers or a batch, or the model has none; the message
        names those that do.
    MissingLinkError, UnknownLinkError
        When the device has no link, or none of the layout's name.
    MissingPlanError
        When the layout cuts layers, no plan is given and none follows from the model's structure.
    UndividedLayerError
        When the plan gives a layer a role that no rule divides.

    Examples
    --------
    >>> import modelmeter
    >>> from modelmeter.workload import StageRun, WorkloadItem
    >>> step = StageRun(stage="decode", count=1, bindings={"B": 8, "T": 913})
    >>> workload = Workload(name="a step", items=(WorkloadItem(name="pages", documents=8, runs=(step,)),))
    >>> model, device = modelmeter.load("deepseek-ocr"), modelmeter.load_device("h200")
    >>> report = distribute(model, workload, Layout(tensor=2), device=device)
    >>> attention = next(each for each in report.collectives if each.what == "attention output")
    >>> attention.calls, attention.bytes == 12 * 8 * 1280 * 2
    (12, True)
    """
    sharding = Sharding(model=model, plan=plan_for(model, layout) if plan is None else plan, layout=layout)
    link = link_of(device, layout.link) if layout.devices > 1 or layout.link is not None else None
    parts = parts_of(sharding)
    messages = {part.name: messages_of(sharding, part) for part in parts}
    terms = Terms(device=device, link=link, latency=latency, routing=routing, fused=fused)
    done: list[tuple[SharedRun, tuple[PartRun, ...]]] = []
    for shared in shared_runs(sharding, workload):
        doing = [part for part in parts if shared.run.stage in part.stages]
        done.append((shared, tuple(run_part(part, messages[part.name], shared, terms) for part in doing)))
    runs = [run for _, each in done for run in each]
    return ParallelReport(
        model=model.name,
        workload=workload.name,
        device=device.name,
        layout=layout,
        link=link,
        latency=latency,
        memory_bytes=device.memory_bytes,
        parts=tuple(_part_report(sharding, part, [run for run in runs if run.part is part]) for part in parts),
        collectives=_merged(entry for run in runs for entry in run.collectives),
        stages=_by_stage(stage_time(shared, each) for shared, each in done),
        peaks_are_lower_bounds=peaks_are_lower_bounds,
        assumptions=assumptions_of(sharding.plan, layout, link, latency),
    )


def _part_report(sharding: Sharding, part: Part, runs: Sequence[PartRun]) -> PartReport:
    needs = max((run.kv_cache_bytes + run.activation_bytes for run in runs), default=0)
    return PartReport(
        name=part.name,
        encodes=part.stages == sharding.plan.encoding,
        devices=part.devices,
        cost=sum((run.cost for run in runs), Cost()),
        repeated=sum((run.repeated for run in runs), Cost()),
        weight_bytes=part.weight_bytes,
        replicated_weight_bytes=part.replicated_weight_bytes,
        buffer_bytes=part.buffer_bytes,
        kv_cache_bytes=max((run.kv_cache_bytes for run in runs), default=0),
        activation_bytes=max((run.activation_bytes for run in runs), default=0),
        peak_bytes=part.weight_bytes + part.buffer_bytes + needs,
        compute_seconds=sum(run.compute_seconds for run in runs),
        communication_seconds=sum(run.communication_seconds for run in runs),
    )


def _merged(entries: Iterable[CollectiveReport]) -> tuple[CollectiveReport, ...]:
    found: dict[object, CollectiveReport] = {}
    for entry in entries:
        key = (entry.part, entry.stage, entry.operation, entry.what)
        found[key] = found[key] + entry if key in found else entry
    return tuple(found.values())


def _by_stage(times: Iterable[StageTime]) -> tuple[StageTime, ...]:
    found: dict[str, StageTime] = {}
    for time in times:
        found[time.stage] = found[time.stage] + time if time.stage in found else time
    return tuple(found.values())
