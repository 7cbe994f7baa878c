"""Calibrated: a time model from one machine's calibration; kernels from tables, host and device on their queues."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import starmap

import numpy as np
from attrs import field, frozen

from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.costs import Draws, Time
from modelmeter.defaults import EXPERT_LOOP, MOE_FORMS
from modelmeter.errors import ModelMeterError
from modelmeter.expert_counts import Routing, uniform_routing
from modelmeter.model import AnalyticModel, FreeOps, Leaf, Stage
from modelmeter.predict.calibration import Calibration
from modelmeter.predict.call_steps import CallSteps
from modelmeter.predict.kernel_time import SourceShare, statement_of
from modelmeter.predict.schedule import scheduled_stage
from modelmeter.predict.sweep import sweep_points, workload_points
from modelmeter.predict.time_model import DeviceFacts, PredictionFacts
from modelmeter.predict.timeline import Advance, CallTime, Step, device_only, serial, two_queues
from modelmeter.workload import StageRun, Workload

RUNTIMES = ("eager", "cudagraph")
_LOOP_TIMES = "times of the published loop; FLOPs, bytes, memory and calls are those of the grouped form"


class RuntimeNameError(ModelMeterError, ValueError):
    """A runtime that the calibration cannot be used for."""


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
                "calibrated": ", ".join(dict.fromkeys(model.name for model in self.calibration.models)) or "no model",
                **({"experts": _LOOP_TIMES} if self.moe == EXPERT_LOOP else {}),
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
                host_seconds=float(np.ravel(step.host)[0]) + step.launches * self.calibration.host.launch,
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
        return sum(step.launches for step in self._execution(model, stage, bindings, uniform_routing).steps)

    def statement(self, model: AnalyticModel, workload: Workload) -> tuple[SourceShare, ...]:
        """Return how the device time of a workload was found, by family of operators and method."""
        return statement_of(
            (found, leaf.calls * weight)
            for stage, sizes, weight in workload_points(workload)
            for leaf, found in self._calls.kernels(model.leaves_by_stage[stage], sizes, uniform_routing)
        )

    # --- one execution

    def _execution(self, model: AnalyticModel, stage: str, bindings: Mapping[str, int], routing: Routing) -> _Execution:
        key = (id(model), stage, tuple(sorted(bindings.items())), routing)
        if key not in self._executions:
            made = self._simulate(model, scheduled_stage(model, stage), bindings, routing)
            self._executions[key] = (model, made)  # the model is kept: another one must not get its id
        return self._executions[key][1]

    def _simulate(
        self, model: AnalyticModel, stage: Stage, bindings: Mapping[str, int], routing: Routing
    ) -> _Execution:
        leaves = model.leaves_by_stage[stage.name]
        records = (*leaves, *model.free_by_stage[stage.name])
        between = self._module_seconds(model, stage)
        loops = self._calls.loops(leaves, bindings, routing)
        made = [self._calls.step(record, bindings, routing, loops.get(record.module), between) for record in records]
        bounds = [
            self._calls.bound(record, bindings, float(step.device[0]))
            for record, step in zip(records, made, strict=True)
        ]
        steps = [made[position] for position in stage.schedule]
        if self._on_cpu:
            advances = serial(steps)
        elif self.runtime == "cudagraph":
            advances = device_only(steps, self.calibration.host)
        else:
            advances = two_queues(steps, self.calibration.host)
        return _Execution(
            records=tuple(records[position] for position in stage.schedule),
            advances=tuple(advances),
            bounds=tuple(bounds[position] for position in stage.schedule),
            steps=tuple(steps),
        )

    def _module_seconds(self, model: AnalyticModel, stage: Stage) -> float:
        """Return what entering and leaving modules costs the host, spread evenly over the stage's calls."""
        entered = sum(node.calls.get(stage.name, 0) for node in model.modules)
        return entered * self.calibration.host.classes.get("module", 0.0) / len(stage.schedule)

    def _cells(self, execution: _Execution) -> dict[tuple[str, Category], Time]:
        """Return the advances by module and category, split by what bounds them."""
        sums: dict[tuple[str, Category], dict[str, Draws]] = {}  # arrays, as a stage has a thousand calls
        for record, advance, bound in zip(execution.records, execution.advances, execution.bounds, strict=True):
            cell = sums.setdefault((record.module, record.category if isinstance(record, Leaf) else Category.HOST), {})
            for name, seconds in (("host", advance.waiting), (bound, advance.busy)):
                cell[name] = cell[name] + seconds if name in cell else seconds
        return {key: sum(starmap(_bounded, cell.items()), Time()) for key, cell in sums.items()}

    @cached_property
    def _calls(self) -> CallSteps:
        return CallSteps(calibration=self.calibration, loop=self.moe == EXPERT_LOOP, physical=self.physical)


def _bounded(bound: str, seconds: Draws) -> Time:
    """Return a time that one thing bounds: its centre, and its sampled runs."""
    return Time(**{bound: float(seconds[0])}, draws=seconds[1:])  # pyright: ignore[reportArgumentType]
