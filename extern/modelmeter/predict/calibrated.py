"""Calibrated: a time model from one machine's calibration; kernels from tables, host and device on their queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import starmap

import numpy as np
from attrs import field, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Draws, Time
from modelmeter.dims import Routing, uniform_routing
from modelmeter.errors import ModelMeterError
from modelmeter.model import AnalyticModel, FreeOps, Leaf, Stage
from modelmeter.predict.calibration import Calibration
from modelmeter.predict.draws import log_errors
from modelmeter.predict.expert_draws import active_expert_draws
from modelmeter.predict.expert_loop import (
    GROUPED,
    Routed,
    calls_in_loop,
    loop_work,
    routing_sizes,
    spread_evenly,
    waits_for_host,
)
from modelmeter.predict.host import host_class
from modelmeter.predict.kernel_table import KernelTable
from modelmeter.predict.kernel_time import KernelTime, SourceShare, Work
from modelmeter.predict.sweep import sweep_points
from modelmeter.predict.time_model import DeviceFacts, PredictionFacts
from modelmeter.predict.timeline import Advance, CallTime, Step, device_only, serial, two_queues
from modelmeter.signature import Signature
from modelmeter.workload import StageRun, Workload

RUNTIMES = ("eager", "cudagraph")
MOE_FORMS = ("grouped", "loop")
_HOST_SPREAD = 0.06  # of the host's time as a whole: its clock, and what else it does
_BASE_SPREAD = 0.05  # of a machine as a whole, from one process to the next: where its memory lies, who shares it


class RuntimeNameError(ModelMeterError, ValueError):
    """A runtime that the calibration cannot be used for."""


class UnscheduledModelError(ModelMeterError, ValueError):
    """A model that says nothing of its calls' operands or order, such as one written by hand."""


def _known_runtime(owner: Calibrated, _attribute: object, value: str) -> None:
    if value not in RUNTIMES:
        raise RuntimeNameError(
            f"runtime {value!r} is not known to a calibration; known are {', '.join(RUNTIMES)}, and 'engine' from "
            "tables of measured engines (modelmeter.predict.Engine)"
        )
    machine = owner.calibration.machine
    if value == "cudagraph" and machine.kind == "cpu":
        raise RuntimeNameError(f"runtime 'cudagraph' needs a GPU, the calibration is of {machine.device}; use 'eager'")


def _known_form(_owner: Calibrated, _attribute: object, value: str) -> None:
    if value not in MOE_FORMS:
        raise RuntimeNameError(f"moe {value!r} is not known; choose one of {', '.join(MOE_FORMS)}")


@frozen(kw_only=True)
class _Execution:
    """One execution of a stage, per scheduled call; column 0 of an array is the centre, the others sampled runs."""

    records: tuple[Leaf | FreeOps, ...]
    advances: tuple[Advance, ...]
    bounds: tuple[str, ...]
    steps: tuple[Step, ...]


@frozen(kw_only=True)
class Calibrated:
    """Predicts from a calibration: what it was measured on is what it predicts.

    Device times come from the calibration's samples (`modelmeter.predict.kernel_table.KernelTable`), host times from
    its host costs; a simulation of the two queues says how long a stage takes (`modelmeter.predict.timeline`). On a CPU
    there is one queue. Which experts a router picks is drawn under uniform routing; under another routing there are as
    many as it says.

    Attributes
    ----------
    calibration : Calibration
    runtime : str
        "eager": as PyTorch runs the model, every call from Python; "cudagraph": kernels back to back, one launch a
        stage.
    moe : str
        "grouped": the experts' products in one kernel, as captured; "loop": expert after expert with a copy to the host
        in each layer, as the published code runs.
    physical : bool
        Allow peak rates for calls that have no measured relative; they are labelled.

    Raises
    ------
    RuntimeNameError
        For an unknown runtime, or "cudagraph" on a CPU.
    """

    calibration: Calibration
    runtime: str = field(default="eager", validator=_known_runtime)
    moe: str = field(default="grouped", validator=_known_form)
    physical: bool = False
    _executions: dict[object, tuple[AnalyticModel, _Execution]] = field(factory=dict, init=False, eq=False, repr=False)

    @property
    def _on_cpu(self) -> bool:
        return self.calibration.machine.kind == "cpu"

    @property
    def facts(self) -> PredictionFacts:
        """The calibrated machine, its peaks as measured, and when."""
        machine, peaks = self.calibration.machine, self.calibration.peaks
        return PredictionFacts(
            method="calibration",
            traffic="measured",
            device=DeviceFacts(
                key=machine.kind,
                name=machine.device,
                matrix_flops_per_second=peaks.matrix_flops,
                vector_flops_per_second=peaks.vector_flops,
                bytes_per_second=peaks.bandwidth,
                memory_bytes=machine.memory_bytes,
            ),
            runtime=self.runtime,
            source={
                "date": self.calibration.date,
                "torch": machine.torch,
                "driver": machine.driver,
                "threads": str(machine.threads),
                "samples": str(len(self.calibration.samples)),
                "drift": f"{self.calibration.drift:.3f}",
            },
        )

    def times(self, model: AnalyticModel, run: StageRun, binding: Binding) -> Mapping[tuple[str, Category], Time]:
        """Return the time of all executions of a run, by module and category.

        A sweep is evaluated at a few of its steps; the others lie linearly between them.

        Raises
        ------
        MissingKernelTimeError
            When a call has no measured relative.
        UnscheduledModelError
            When the model carries no schedule.
        """
        times: dict[tuple[str, Category], Time] = {}
        for sizes, weight in sweep_points(run):
            for key, time in self._cells(self._execution(model, run.stage, sizes, binding.routing)).items():
                times[key] = times.get(key, Time()) + time * weight
        return times

    def calls(
        self, model: AnalyticModel, stage: str, bindings: Mapping[str, int], routing: Routing = uniform_routing
    ) -> tuple[CallTime, ...]:
        """Return every call of one execution of a stage, in the order of its schedule.

        Raises
        ------
        MissingKernelTimeError, UnscheduledModelError
            As `times`.
        """
        execution = self._execution(model, stage, bindings, routing)
        return tuple(
            CallTime(
                begin=float(advance.begin[0]),
                seconds=float(advance.seconds[0]),
                host_begin=float(advance.host_begin[0]),
                host_seconds=_centre(step.host) + step.launches * self.calibration.host.launch,
                device_seconds=float(step.device[0]),
                bound_by="host" if advance.waiting[0] > advance.busy[0] else bound.replace("_", " "),
            )
            for advance, step, bound in zip(execution.advances, execution.steps, execution.bounds, strict=True)
        )

    def seconds(
        self, model: AnalyticModel, stage: str, bindings: Mapping[str, int], routing: Routing = uniform_routing
    ) -> Time:
        """Return the time of one execution of a stage."""
        return sum(self._cells(self._execution(model, stage, bindings, routing)).values(), Time())

    def launches(self, model: AnalyticModel, stage: str, bindings: Mapping[str, int]) -> int:
        """Return how many kernels one execution of a stage starts; 0 on a CPU."""
        execution = self._execution(model, stage, bindings, uniform_routing)
        return 0 if self._on_cpu else sum(step.launches for step in execution.steps)

    def statement(self, model: AnalyticModel, workload: Workload) -> tuple[SourceShare, ...]:
        """Return how the device time of a workload was found, by family of operators and method."""
        shares: dict[tuple[str, object], list[float]] = {}
        for run in (run for item in workload.items for run in item.runs):
            for sizes, weight in sweep_points(run):
                leaves = model.leaves_by_stage[run.stage]
                loops = self._loops(leaves, sizes, uniform_routing)
                for leaf in leaves:
                    for found in self._kernels(leaf, sizes, loops.get(leaf.module)):
                        share = shares.setdefault((found.family, found.method), [0.0, 0.0])
                        share[0] += found.seconds * leaf.calls * weight
                        share[1] += leaf.calls * weight
        return tuple(
            SourceShare(family=family, method=method, seconds=seconds, calls=round(calls))  # pyright: ignore[reportArgumentType]
            for (family, method), (seconds, calls) in sorted(shares.items(), key=lambda item: -item[1][0])
        )

    # --- one execution

    def _kernels(self, leaf: Leaf, bindings: Mapping[str, int], routed: Routed | None) -> list[KernelTime]:
        """Return what stands for one call: itself, or the calls of the loop over experts."""
        if routed is None:
            return [self._kernel(leaf, bindings, self._expert_counts(leaf, bindings, uniform_routing)[0])]
        return [self._table.time(each, loop_work(each)) for each in calls_in_loop(_signature(leaf, bindings), routed)]

    def _execution(self, model: AnalyticModel, stage: str, bindings: Mapping[str, int], routing: Routing) -> _Execution:
        key = (id(model), stage, tuple(sorted(bindings.items())), routing)
        if key not in self._executions:
            made = self._simulate(model, _scheduled(model, stage), bindings, routing)
            self._executions[key] = (model, made)  # the model is kept: another one must not get its id
        return self._executions[key][1]

    def _simulate(
        self, model: AnalyticModel, stage: Stage, bindings: Mapping[str, int], routing: Routing
    ) -> _Execution:
        leaves = model.leaves_by_stage[stage.name]
        records = (*leaves, *model.free_by_stage[stage.name])
        between = self._module_seconds(model, stage)
        loops = self._loops(leaves, bindings, routing)
        made = [self._step(record, bindings, routing, between, loops.get(record.module)) for record in records]
        steps = [made[position][0] for position in stage.schedule]
        if self._on_cpu:
            advances = serial(steps)
        elif self.runtime == "cudagraph":
            advances = device_only(steps, self.calibration.host)
        else:
            advances = two_queues(steps, self.calibration.host)
        return _Execution(
            records=tuple(records[position] for position in stage.schedule),
            advances=tuple(advances),
            bounds=tuple(made[position][1] for position in stage.schedule),
            steps=tuple(steps),
        )

    def _module_seconds(self, model: AnalyticModel, stage: Stage) -> float:
        """Return what entering and leaving modules costs the host, spread evenly over the stage's calls."""
        entered = sum(node.calls.get(stage.name, 0) for node in model.modules)
        return entered * self.calibration.host.classes.get("module", 0.0) / len(stage.schedule)

    def _loops(self, leaves: Sequence[Leaf], bindings: Mapping[str, int], routing: Routing) -> dict[str, Routed]:
        """Return how rows are spread over experts, by the module that loops over them; none where nothing does."""
        loops: dict[str, Routed] = {}
        for leaf in leaves if self.moe == "loop" else ():
            if leaf.op == GROUPED:
                experts, per_token, tokens = routing_sizes(_signature(leaf, bindings))
                active = self._expert_counts(leaf, bindings, routing)[0]
                assert active is not None
                loops[leaf.module] = spread_evenly(tokens, per_token, experts, active)
        return loops

    def _step(
        self,
        record: Leaf | FreeOps,
        bindings: Mapping[str, int],
        routing: Routing,
        between: float,
        routed: Routed | None,
    ) -> tuple[Step, str]:
        classes = self.calibration.host.classes
        if isinstance(record, FreeOps):
            host = (classes.get("view", 0.0) + between) * self._host_errors
            return Step(host=host, device=np.zeros(_columns()), launches=0), "host"
        if routed is not None:
            return self._loop_step(record, bindings, between, routed), self._bound(record, bindings)
        device = self._device_draws(record, bindings, routing)
        if self._on_cpu:
            return Step(host=between * self._host_errors, device=device), self._bound(record, bindings)
        # A copy that the driver makes is no kernel, but it is queued and runs like one.
        launches = max(1, self._table.launches(_signature(record, bindings)))
        host = (classes[host_class(record.op)] + between) * self._host_errors
        return Step(host=host, device=device, launches=launches), self._bound(record, bindings)

    def _loop_step(self, leaf: Leaf, bindings: Mapping[str, int], between: float, routed: Routed) -> Step:
        """Return the calls of the loop over experts that stand where the grouped form has one, as one step."""
        call = _signature(leaf, bindings)
        device, host, launches = np.zeros(_columns()), between, 0
        for each in calls_in_loop(call, routed):
            found = self._table.time(each, loop_work(each))
            device = device + found.seconds * _errors(found.group, found.log_spread) * self._common_errors
            if not self._on_cpu:
                host += self.calibration.host.classes[host_class(each.op)]
                launches += max(1, self._table.launches(each))
        return Step(host=host * self._host_errors, device=device, launches=launches, syncs=waits_for_host(call))

    def _device_draws(self, leaf: Leaf, bindings: Mapping[str, int], routing: Routing) -> Draws:
        """Return the seconds of one call: the centre, then the sampled runs."""
        counts = self._expert_counts(leaf, bindings, routing)
        found = [self._kernel(leaf, bindings, count) for count in dict.fromkeys(counts)]
        by_count = {count: time.seconds for count, time in zip(dict.fromkeys(counts), found, strict=True)}
        seconds = np.array([by_count[count] for count in counts])
        return seconds * _errors(found[0].group, found[0].log_spread) * self._common_errors

    def _kernel(self, leaf: Leaf, bindings: Mapping[str, int], experts: int | None) -> KernelTime:
        conditions = {} if experts is None else {"active_experts": experts}
        routing: Routing = uniform_routing if experts is None else lambda *_: float(experts)
        work = Work(
            flops=leaf.cost.matmul_flops.at(bindings) + leaf.cost.vector_flops.at(bindings),
            bytes=leaf.cost.bytes.at(bindings, routing=routing),
        )
        return self._table.time(_signature(leaf, bindings), work, conditions)

    def _expert_counts(self, leaf: Leaf, bindings: Mapping[str, int], routing: Routing) -> Sequence[int | None]:
        """Return how many experts a grouped product touches: the expectation, then the sampled runs.

        Runs are sampled under uniform routing; another routing says itself how many there are.
        """
        if leaf.op != GROUPED:
            return (None,) * _columns()
        experts, per_token, tokens = routing_sizes(_signature(leaf, bindings))
        if routing is not uniform_routing:
            return (round(routing(experts, per_token, tokens)),) * _columns()
        return active_expert_draws(experts, per_token, tokens, layers=leaf.calls)

    def _bound(self, leaf: Leaf, bindings: Mapping[str, int]) -> str:
        peaks, cost = self.calibration.peaks, leaf.cost
        dtype = leaf.dtype.value if leaf.dtype is not None else ""
        matrix = cost.matmul_flops.at(bindings) / peaks.matrix_flops.get(dtype, max(peaks.matrix_flops.values()))
        vector = cost.vector_flops.at(bindings) / peaks.vector_flops
        memory = cost.bytes.at(bindings) / peaks.bandwidth
        return max({"matrix_units": matrix, "vector_units": vector, "memory": memory}.items(), key=lambda it: it[1])[0]

    def _cells(self, execution: _Execution) -> dict[tuple[str, Category], Time]:
        """Return the advances by module and category, split by what bounds them."""
        sums: dict[tuple[str, Category], dict[str, Draws]] = {}  # arrays, as a stage has a thousand calls
        for record, advance, bound in zip(execution.records, execution.advances, execution.bounds, strict=True):
            cell = sums.setdefault((record.module, record.category if isinstance(record, Leaf) else Category.HOST), {})
            for name, seconds in (("host", advance.waiting), (bound, advance.busy)):
                cell[name] = cell[name] + seconds if name in cell else seconds
        return {key: sum(starmap(_bounded, cell.items()), Time()) for key, cell in sums.items()}

    @cached_property
    def _table(self) -> KernelTable:
        return KernelTable(calibration=self.calibration, physical=self.physical)

    @cached_property
    def _host_errors(self) -> Draws:
        return _errors("the host", _HOST_SPREAD)

    @cached_property
    def _common_errors(self) -> Draws:
        return _errors("the machine", max(_BASE_SPREAD, self.calibration.drift))


def _bounded(bound: str, seconds: Draws) -> Time:
    """Return a time that one thing bounds: its centre, and its sampled runs."""
    return Time(**{bound: float(seconds[0])}, draws=seconds[1:])  # pyright: ignore[reportArgumentType]


def _centre(seconds: Draws | float) -> float:
    return float(seconds[0]) if isinstance(seconds, np.ndarray) else float(seconds)


def _columns() -> int:
    return 1 + len(log_errors(""))


def _errors(group: str, log_spread: float) -> Draws:
    """Return factors of error: 1 for the centre, then one per sampled run, equal for all calls of a group."""
    return np.exp(np.concatenate(([0.0], log_spread * log_errors(group))))


def _signature(leaf: Leaf, bindings: Mapping[str, int]) -> Signature:
    signature = leaf.signature
    if signature is None:
        raise UnscheduledModelError(
            f"leaf {leaf.id!r} does not say which operands it takes; predict from a calibration only models that were "
            "compiled by dsocr_graph, and others by a roofline"
        )
    return signature.at(bindings)


def _scheduled(model: AnalyticModel, name: str) -> Stage:
    stage = model.stage(name)
    if not stage.schedule:
        raise UnscheduledModelError(
            f"stage {name!r} of {model.name} does not say in which order its calls run; predict from a calibration "
            "only models that were compiled by dsocr_graph, and others by a roofline"
        )
    return stage
