"""evaluate: an AnalyticModel at a workload and, if one is given, a device; numbers for every leaf, rolled up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from attrs import evolve, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Amount, Cost, Number, Time
from modelmeter.devices import DeviceSpec
from modelmeter.dims import Routing, uniform_routing
from modelmeter.errors import DimError, UnboundDimError, UnknownNameError
from modelmeter.model import AnalyticModel, Exactness, Leaf, PeakPoint, Stage
from modelmeter.predict.roofline import LABEL, Roofline
from modelmeter.reports.expert_routing import moe_reports
from modelmeter.reports.report import (
    Approximation,
    Coverage,
    DeviceFacts,
    ItemReport,
    LiveBytes,
    ModelFacts,
    ModuleAmount,
    PredictionFacts,
    Report,
    RunMemory,
    Share,
    StageMemory,
    UnclassifiedOp,
)
from modelmeter.reports.rollup import (
    Cells,
    StageCells,
    breakdown,
    by_category,
    merge_stages,
    module_amounts,
    own_by_module,
    sum_amounts,
)
from modelmeter.workload import StageRun, Workload


class UnknownStageError(UnknownNameError):
    """A stage that the model does not have."""


class UnboundStageDimError(UnboundDimError):
    """A stage was to run without a size for each of its dims."""

    def __init__(self, stage: Stage, where: str, bindings: Mapping[str, int]) -> None:
        super().__init__(set(stage.dims) - bindings.keys(), stage.dims)
        given = ", ".join(f"{name}={size}" for name, size in sorted(bindings.items())) or "none"
        self.args = (
            f"{where} needs a size for dim {', '.join(self.missing)}: its dims are {', '.join(stage.dims)}, "
            f"given are {given}",
        )


@frozen(kw_only=True)
class StageCost:
    """What some executions of one stage cost.

    Attributes
    ----------
    stage : str
    bindings : mapping of str to int
        Sizes of the first execution.
    executions : int
    cells : mapping of (module id, category) to Amount
        Own amounts; everything else is a sum of them.
    modules : mapping of str to ModuleAmount
        Own and inclusive amounts of the modules that ran.
    memory : StageMemory
        At the execution that needs most.
    coverage : Coverage
    """

    stage: str
    bindings: Mapping[str, int]
    executions: int
    cells: Cells
    modules: Mapping[str, ModuleAmount]
    memory: StageMemory
    coverage: Coverage

    @cached_property
    def total(self) -> Amount:
        """The whole stage."""
        return sum_amounts(self.cells.values())

    @cached_property
    def categories(self) -> Mapping[Category, Amount]:
        """By category, those that occur."""
        return by_category(self.cells)


def evaluate_stage(
    model: AnalyticModel,
    stage: str,
    *,
    count: int = 1,
    sweep: str | None = None,
    device: DeviceSpec | None = None,
    routing: Routing = uniform_routing,
    fused: bool = False,
    **bindings: int,
) -> StageCost:
    """Return what executions of one stage cost at given sizes.

    Parameters
    ----------
    model : AnalyticModel
        The model.
    stage : str
        One of its stages.
    count : int
        Executions.
    sweep : str or None
        A dim that grows by one with each execution, from its given size on.
    device : DeviceSpec or None
        With a device, amounts carry a roofline time.
    routing : Routing
        How many distinct experts some tokens touch.
    fused : bool
        Whether times count the traffic of fused chains.
    **bindings : int
        A size per dim of the stage.

    Raises
    ------
    UnknownStageError
        When the model has no such stage.
    UnboundStageDimError
        When a dim of the stage has no size.
    DimError
        When a size is given for a dim that the model does not have.
    """
    unknown = sorted(bindings.keys() - model.dims.keys() - {dim for each in model.stages for dim in each.dims})
    if unknown:
        raise DimError(f"{model.name} has no dim {', '.join(unknown)}; its dims are {', '.join(sorted(model.dims))}")
    roofline = None if device is None else Roofline(device=device, fused=fused)
    run = StageRun(stage=stage, count=count, bindings=bindings, sweep=sweep)
    return _run_cost(model, run, where=f"stage {stage!r}", item="", roofline=roofline, routing=routing)


def evaluate(
    model: AnalyticModel,
    workload: Workload,
    *,
    device: DeviceSpec | None = None,
    routing: Routing = uniform_routing,
    fused: bool = False,
) -> Report:
    """Evaluate a model at a workload.

    FLOPs are exact integers; a decode's steps are summed in closed form. Bytes are expectations where a router
    decides which experts are read.

    Parameters
    ----------
    model : AnalyticModel
        The model.
    workload : Workload
        What runs how often at which sizes.
    device : DeviceSpec or None
        With a device, amounts carry a roofline time (`modelmeter.predict.LABEL`).
    routing : Routing
        How many distinct experts some tokens touch: `uniform_routing`, `fewest_routing`, `most_routing` of
        `modelmeter.dims`, or any function of (experts, experts per token, tokens).
    fused : bool
        Whether times count the traffic of fused chains; both traffics are always in the report.

    Raises
    ------
    UnknownStageError
        When a run is of a stage that the model does not have.
    UnboundStageDimError
        When a run gives no size for a dim of its stage.
    """
    roofline = None if device is None else Roofline(device=device, fused=fused)
    costs: dict[object, StageCost] = {}
    items: list[ItemReport] = []
    all_costs: list[StageCost] = []
    for item in workload.items:
        runs: list[StageCost] = []
        for run in item.runs:
            # Pages of one size are many in a long document; each distinct run is evaluated once.
            key = (run.stage, run.count, tuple(sorted(run.bindings.items())), run.sweep)
            if key not in costs:
                where = f"stage {run.stage!r} of {item.name!r} in workload {workload.name!r}"
                costs[key] = _run_cost(model, run, where=where, item=item.name, roofline=roofline, routing=routing)
            runs.append(costs[key])
        all_costs += runs
        items.append(
            ItemReport(
                name=item.name,
                documents=item.documents,
                facts=item.facts,
                runs=item.runs,
                breakdown=breakdown(model, _cells_of(runs)),
                memory=tuple(evolve(memory, item=item.name, live=()) for memory in _largest(model, runs)),
            )
        )
    stages = merge_stages(_cells_of(all_costs), (stage.name for stage in model.stages))
    total = breakdown(model, stages)
    return Report(
        model=_model_facts(model),
        workload=workload.name,
        workload_facts=workload.facts,
        routing=getattr(routing, "__name__", type(routing).__name__),
        prediction=None if roofline is None else _prediction_facts(roofline),
        total=total,
        module_stages={part.stage: module_amounts(model, own_by_module(part.cells)) for part in stages},
        idle_modules={
            node.id: node.parameters for node in model.modules if node.parameters and node.id not in total.modules
        },
        memory=_run_memory(model, _largest(model, all_costs)),
        moe=moe_reports(model, workload, routing),
        coverage=_sum_coverage(cost.coverage for cost in all_costs),
        items=tuple(items),
    )


def _cells_of(costs: Iterable[StageCost]) -> list[StageCells]:
    return [StageCells(stage=cost.stage, executions=cost.executions, cells=cost.cells) for cost in costs]


def _run_cost(
    model: AnalyticModel, run: StageRun, *, where: str, item: str, roofline: Roofline | None, routing: Routing
) -> StageCost:
    stage = next((stage for stage in model.stages if stage.name == run.stage), None)
    if stage is None:
        raise UnknownStageError("stage", run.stage, [stage.name for stage in model.stages], f"It is asked for by {where}.")
    if set(stage.dims) - run.bindings.keys():
        raise UnboundStageDimError(stage, where, run.bindings)
    binding = Binding(bindings=run.bindings, count=run.count, sweep=run.sweep, routing=routing)
    sums: dict[tuple[str, Category], list[Number]] = {}
    times: dict[tuple[str, Category], Time] = {}
    for leaf in model.leaves_by_stage[run.stage]:
        key = (leaf.module, leaf.category)
        calls = leaf.calls
        numbers = [calls * run.count, *(calls * binding.sum(text) for text in leaf.cost.texts)]
        held = sums.get(key)
        sums[key] = numbers if held is None else [a + b for a, b in zip(held, numbers, strict=True)]
        if roofline is not None:
            times[key] = times.get(key, Time()) + roofline.time(leaf, binding) * calls
    cells = {key: Amount(cost=_cost(numbers), time=times.get(key)) for key, numbers in sums.items()}
    return StageCost(
        stage=run.stage,
        bindings=run.bindings,
        executions=run.count,
        cells=cells,
        modules=module_amounts(model, own_by_module(cells)),
        memory=_stage_memory(stage, item, binding),
        coverage=_coverage(model, run, binding),
    )


def _cost(numbers: list[Number]) -> Cost:
    calls, matmul, vector, tensor, cuda, moved, weights, fused = numbers
    return Cost(
        calls=int(calls),
        matmul_flops=matmul,
        vector_flops=vector,
        tensor_core_flops=tensor,
        cuda_core_flops=cuda,
        bytes=moved,
        weight_bytes_read=weights,
        fused_bytes=fused,
    )


# --- memory


def _stage_memory(stage: Stage, item: str, binding: Binding) -> StageMemory:
    """Return the memory at the first or the last execution, whichever needs more."""
    first = _memory_at(stage, item, binding.first(), binding.routing)
    if binding.sweep is None or binding.count == 1:
        return first
    last = _memory_at(stage, item, binding.last(), binding.routing)
    return max(last, first, key=lambda memory: memory.peak_bytes)


def _memory_at(stage: Stage, item: str, bindings: Mapping[str, int], routing: Routing) -> StageMemory:
    def total(peak: PeakPoint) -> Number:
        return sum(peak.bytes_at(bindings, routing=routing))

    peak = max(stage.peaks, key=total, default=None)
    activation, kv_cache, inputs = (0, 0, 0) if peak is None else peak.bytes_at(bindings, routing=routing)
    live = () if peak is None else peak.live
    return StageMemory(
        stage=stage.name,
        item=item,
        bindings=bindings,
        weight_bytes=stage.weight_bytes,
        kv_cache_bytes=stage.kv_cache_bytes_at(bindings, routing=routing),
        peak_bytes=activation + kv_cache + inputs,
        peak_activation_bytes=activation,
        peak_kv_cache_bytes=kv_cache,
        peak_input_bytes=inputs,
        at="" if peak is None else peak.at,
        module="" if peak is None else peak.module,
        live=tuple(
            LiveBytes(
                name=tensor.name,
                module=tensor.module,
                op=tensor.op,
                role=tensor.role,
                bytes=tensor.bytes_at(bindings, routing=routing),
            )
            for tensor in live
        ),
    )


def _largest(model: AnalyticModel, costs: Iterable[StageCost]) -> tuple[StageMemory, ...]:
    """Return the largest memory of each stage that ran, in the model's order of stages."""
    largest: dict[str, StageMemory] = {}
    for cost in costs:
        held = largest.get(cost.stage)
        if held is None or cost.memory.peak_bytes > held.peak_bytes:
            largest[cost.stage] = cost.memory
    return tuple(largest[stage.name] for stage in model.stages if stage.name in largest)


def _run_memory(model: AnalyticModel, stages: tuple[StageMemory, ...]) -> RunMemory:
    decisive = max(stages, key=lambda memory: memory.peak_bytes)
    running = model.parameter_bytes + decisive.peak_bytes
    return RunMemory(
        weight_bytes=model.parameter_bytes,
        stage_peak_bytes=decisive.peak_bytes,
        running_bytes=running,
        load_bytes=model.load_bytes,
        peak_bytes=max(running, model.load_bytes),
        decided_by="load" if model.load_bytes > running else decisive.stage,
        stages=stages,
    )


# --- coverage


def _coverage(model: AnalyticModel, run: StageRun, binding: Binding) -> Coverage:
    shares = dict.fromkeys(Exactness, Share())
    approximations: list[Approximation] = []
    unclassified: list[UnclassifiedOp] = []
    for leaf in model.leaves_by_stage[run.stage]:
        share = _share(leaf, binding)
        shares[leaf.exactness] = _add(shares[leaf.exactness], share)
        if leaf.exactness is Exactness.APPROXIMATED:
            approximations.append(
                Approximation(op=leaf.op, note=leaf.note, calls=share.calls, flops=share.flops, bytes=share.bytes)
            )
        if leaf.exactness is Exactness.UNCLASSIFIED:
            unclassified.append(
                UnclassifiedOp(
                    op=leaf.op, stage=leaf.stage, module=leaf.module, calls=share.calls, bytes=share.bytes
                )
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
            record
            if held is None
            else evolve(held, calls=held.calls + record.calls, bytes=held.bytes + record.bytes)
        )
    return tuple(merged[key] for key in sorted(merged))


def _sum_coverage(parts: Iterable[Coverage]) -> Coverage:
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


# --- facts


def _model_facts(model: AnalyticModel) -> ModelFacts:
    return ModelFacts(
        name=model.name,
        variant=model.variant,
        parameters=model.parameters,
        parameter_bytes=model.parameter_bytes,
        load_bytes=model.load_bytes,
        dims=model.dims,
        provenance=model.provenance,
    )


def _prediction_facts(roofline: Roofline) -> PredictionFacts:
    device = roofline.device
    return PredictionFacts(
        method=LABEL,
        traffic="fused" if roofline.fused else "unfused",
        device=DeviceFacts(
            key=device.key,
            name=device.name,
            matrix_flops_per_second=dict(device.matrix_flops),
            vector_flops_per_second=device.vector_fp32_flops,
            bytes_per_second=device.memory_bandwidth,
            memory_bytes=device.memory_bytes,
        ),
    )
