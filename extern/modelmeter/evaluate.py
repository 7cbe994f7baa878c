"""evaluate: an AnalyticModel at a workload and, if one is given, a device; numbers for every leaf, rolled up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from attrs import evolve, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Amount, Cost, Number, Time
from modelmeter.devices import DeviceSpec
from modelmeter.errors import DimError, ModelMeterError, UnboundDimError
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel, Stage, UnknownStageError
from modelmeter.predict.roofline import Roofline
from modelmeter.predict.time_model import TimeModel
from modelmeter.reports.coverage import coverage_of, sum_coverage
from modelmeter.reports.expert_routing import moe_reports
from modelmeter.reports.memory import largest_by_stage, run_memory, stage_memory
from modelmeter.reports.report import (
    Breakdown,
    Coverage,
    ItemReport,
    ModelFacts,
    ModuleAmount,
    Report,
    StageMemory,
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


class EvaluationError(ModelMeterError, ValueError):
    """Arguments of an evaluation that do not go together."""


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
    time_model: TimeModel | None = None,
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
    time_model : TimeModel or None
        Predicts the times instead, such as `modelmeter.predict.Calibrated`.
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
    clock = _clock(device, time_model, fused=fused)
    run = StageRun(stage=stage, count=count, bindings=bindings, sweep=sweep)
    return _run_cost(model, run, where=f"stage {stage!r}", item="", clock=clock, routing=routing)


def evaluate(
    model: AnalyticModel,
    workload: Workload,
    *,
    device: DeviceSpec | None = None,
    time_model: TimeModel | None = None,
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
    time_model : TimeModel or None
        Predicts the times instead, such as `modelmeter.predict.Calibrated`.
    routing : Routing
        How many distinct experts some tokens touch: `uniform_routing`, `fewest_routing`, `most_routing` of
        `modelmeter.expert_counts`, or any function of (experts, experts per token, tokens).
    fused : bool
        Whether times count the traffic of fused chains; both traffics are always in the report.

    Raises
    ------
    UnknownStageError
        When a run is of a stage that the model does not have.
    UnboundStageDimError
        When a run gives no size for a dim of its stage.
    """
    clock = _clock(device, time_model, fused=fused)
    costs: dict[object, StageCost] = {}
    splits: dict[object, Breakdown] = {}
    items: list[ItemReport] = []
    all_costs: list[StageCost] = []
    for item in workload.items:
        # Pages of one size are many in a long document; what is distinct is evaluated once.
        keys = tuple((run.stage, run.count, tuple(sorted(run.bindings.items())), run.sweep) for run in item.runs)
        for key, run in zip(keys, item.runs, strict=True):
            if key not in costs:
                where = f"stage {run.stage!r} of {item.name!r} in workload {workload.name!r}"
                costs[key] = _run_cost(model, run, where=where, item=item.name, clock=clock, routing=routing)
        runs = [costs[key] for key in keys]
        all_costs += runs
        if keys not in splits:
            splits[keys] = breakdown(model, _cells_of(runs))
        items.append(
            ItemReport(
                name=item.name,
                documents=item.documents,
                facts=item.facts,
                runs=item.runs,
                breakdown=splits[keys],
                memory=tuple(
                    evolve(memory, item=item.name, live=())
                    for memory in largest_by_stage(model, (cost.memory for cost in runs))
                ),
            )
        )
    stages = merge_stages(_cells_of(all_costs), (stage.name for stage in model.stages))
    total = breakdown(model, stages)
    return Report(
        model=_model_facts(model),
        workload=workload.name,
        workload_facts=workload.facts,
        routing=getattr(routing, "__name__", type(routing).__name__),
        prediction=None if clock is None else clock.facts,
        total=total,
        module_stages={part.stage: module_amounts(model, own_by_module(part.cells)) for part in stages},
        idle_modules={
            node.id: node.parameters for node in model.modules if node.parameters and node.id not in total.modules
        },
        memory=run_memory(model, largest_by_stage(model, (cost.memory for cost in all_costs))),
        moe=moe_reports(model, workload, routing),
        coverage=sum_coverage(cost.coverage for cost in all_costs),
        items=tuple(items),
    )


def _cells_of(costs: Iterable[StageCost]) -> list[StageCells]:
    return [StageCells(stage=cost.stage, executions=cost.executions, cells=cost.cells) for cost in costs]


def _run_cost(
    model: AnalyticModel, run: StageRun, *, where: str, item: str, clock: TimeModel | None, routing: Routing
) -> StageCost:
    stage = next((stage for stage in model.stages if stage.name == run.stage), None)
    if stage is None:
        raise UnknownStageError(
            "stage", run.stage, [stage.name for stage in model.stages], f"It is asked for by {where}."
        )
    if set(stage.dims) - run.bindings.keys():
        raise UnboundStageDimError(stage, where, run.bindings)
    last = {run.sweep: run.bindings[run.sweep] + run.count - 1} if run.sweep is not None else {}
    model.require_room(where, {**run.bindings, **last})
    binding = Binding(bindings=run.bindings, count=run.count, sweep=run.sweep, routing=routing)
    sums: dict[tuple[str, Category], list[Number]] = {}
    for leaf in model.leaves_by_stage[run.stage]:
        key = (leaf.module, leaf.category)
        calls = leaf.calls
        numbers = [calls * run.count, *(calls * binding.sum(text) for text in leaf.cost.texts)]
        held = sums.get(key)
        sums[key] = numbers if held is None else [a + b for a, b in zip(held, numbers, strict=True)]
    cells = {key: Amount(cost=_cost(numbers)) for key, numbers in sums.items()}
    if clock is not None:
        times = clock.times(model, run, binding)
        none = Cost()
        cells = {
            key: Amount(cost=cells[key].cost if key in cells else none, time=times.get(key, Time()))
            for key in dict.fromkeys((*cells, *times))
        }
    return StageCost(
        stage=run.stage,
        bindings=run.bindings,
        executions=run.count,
        cells=cells,
        modules=module_amounts(model, own_by_module(cells)),
        memory=stage_memory(stage, item, binding),
        coverage=coverage_of(model, run, binding),
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


def _clock(device: DeviceSpec | None, time_model: TimeModel | None, *, fused: bool) -> TimeModel | None:
    if device is not None and time_model is not None:
        raise EvaluationError("times come from a device's roofline or from a time model, not from both; leave one out")
    return time_model if device is None else Roofline(device=device, fused=fused)
