"""Bench: a real model measured stage by stage; times of runs and calls, memory, experts, launches, calls of modules."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import attrs
from torch import nn

from dsocr_graph.errors import OptionError, ReplayError
from dsocr_graph.ir import CapturedModel
from dsocr_graph.models.deepseek_ocr.config import MoEImplementation
from dsocr_graph.models.deepseek_ocr.running import active_experts
from dsocr_graph.models.named_model import NamedModel
from dsocr_graph.models.registry import Variant
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing.launches import count_launches
from dsocr_graph.timing.module_calls import compare_calls, count_module_calls
from dsocr_graph.timing.nvml import GpuWatch, gpu_reader
from dsocr_graph.timing.peak_memory import peak_memory
from dsocr_graph.timing.plan import Point
from dsocr_graph.timing.runner import RunTime, StageRunner
from dsocr_graph.timing.timed_calls import CallTimes, median_times, time_calls
from dsocr_graph.tracing import capture
from modelmeter import units
from modelmeter.machine import Machine
from modelmeter.measurement import CallCount, StageMeasurement
from modelmeter.model import AnalyticModel

REPEATS = 7
FEWEST_REPEATS = 3  # within a budget
INSTRUMENTED_PASSES = 3


class Bench:
    """A model variant with weights on one device.

    Everything a run needs is made before its clock starts; the inputs are random and the same in every run of a point.

    Parameters
    ----------
    named : NamedModel
        The model.
    variant : Variant
        Which of its variants.
    moe : "grouped" or "loop"
        How the experts run. The loop follows the data: it cannot be captured, so its calls cannot be timed.
    device : str
        "cpu", or a CUDA device.
    threads : int
        Of torch, within an operator.
    seed : int
        Of random weights and of the inputs.
    checkpoint : str or Path, optional
        A directory with weights, instead of random ones.
    analytic : AnalyticModel, optional
        The compiled model: what does not fit is refused before it runs, and the message says what it needs.
    progress : callable
        Told what is being done.

    Raises
    ------
    OptionError
        When the model cannot be run.
    MeasurementMemoryError
        When the weights do not fit.
    DsocrGraphError
        When the device or the checkpoint is not there.

    Examples
    --------
    >>> from dsocr_graph.models.registry import model_named
    >>> from dsocr_graph.timing.plan import Point
    >>> variant = Variant(base_size=512, dtype="fp32", attention="sdpa")
    >>> bench = Bench(model_named("deepseek-ocr-tiny"), variant)
    >>> wall, cpu = bench.run(Point(stage="decode", bindings={"B": 1, "T": 5}))
    >>> wall > 0 and cpu > 0
    True
    """

    def __init__(
        self,
        named: NamedModel,
        variant: Variant,
        *,
        moe: MoEImplementation = "grouped",
        device: str = "cpu",
        threads: int = 1,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        analytic: AnalyticModel | None = None,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._runner = StageRunner(
            named,
            variant,
            moe=moe,
            device=device,
            threads=threads,
            seed=seed,
            checkpoint=checkpoint,
            analytic=analytic,
            progress=progress,
        )
        self._progress = progress
        self._counted: dict[str, Counter[str]] = {}  # stage -> calls by module path
        self._graphs: dict[str, CapturedModel] = {}  # stage -> the model with the graph of that stage

    @property
    def machine(self) -> Machine:
        """What is measured on."""
        return self._runner.machine

    def at(self, variant: Variant, *, analytic: AnalyticModel | None = None) -> Bench:
        """Return a bench for another page size, on the same weights.

        Raises
        ------
        OptionError
            When the variant differs in more than the page size.
        """
        other = copy.copy(self)
        other._runner = self._runner.at(variant, analytic=analytic)
        other._counted, other._graphs = {}, {}
        other.__dict__.pop("_described", None)
        return other

    def warm_up(self, point: Point) -> tuple[dict[str, float], RunTime]:
        """Run a stage once with hooks; return the active experts by module, and what the run took.

        Raises
        ------
        ModelInputError, MeasurementMemoryError
            As in `run`.
        """
        with count_module_calls(self._runner.model) as counted, active_experts(self._runner.model) as experts:
            run = self.run(point)
        self._counted.setdefault(point.stage, counted)
        return experts, run

    def run(self, point: Point) -> RunTime:
        """Run a stage once, without instruments.

        Raises
        ------
        ModelInputError
            When the model has no such stage, or it does not run at such sizes.
        MeasurementMemoryError
            When it does not fit.
        """
        return self._runner.run(point)

    def call_times(self, point: Point) -> CallTimes:
        """Run a stage call by call and return what is told of each call, in the order of its schedule.

        On a CPU it runs once, on a GPU twice: for the times of the device and for those of the host.

        Raises
        ------
        OptionError
            When the experts run in a loop, which no graph holds.
        ReplayError
            When the compiled model has other calls.
        """
        runner = self._runner
        if runner.moe != "grouped":
            raise OptionError(
                f"moe {runner.moe!r} cannot be timed call by call: its loop over experts follows the data and is in no "
                "graph; choose grouped, or measure without instrument"
            )
        (graph,) = self._captured(point.stage).graphs
        stage = runner.analytic_stage(point)
        if stage is not None and len(stage.schedule) != len(graph.calls):
            raise ReplayError(
                f"stage {point.stage} has {len(stage.schedule):,} calls in the compiled model and {len(graph.calls):,} "
                "as captured now, so that times cannot be matched; compile it anew: `dsocr-graph analyze --no-cache`"
            )
        with runner.guarded(point):
            return time_calls(
                graph,
                runner.stage_module(point.stage),
                lambda: runner.inputs(point),
                point.bindings,
                device=runner.device,
                threads=self.machine.threads,
            )

    def measure(
        self,
        point: Point,
        *,
        repeats: int = REPEATS,
        warmups: int | None = None,
        instrument: bool = True,
        budget_seconds: float | None = None,
    ) -> StageMeasurement:
        """Measure a stage: uninstrumented runs, timed calls, peak memory, experts and launches.

        Parameters
        ----------
        point : Point
            The stage and its sizes.
        repeats : int
            Uninstrumented runs that count.
        warmups : int, optional
            Runs before them; 1 on a CPU, 3 on a GPU. The first also counts calls and experts.
        instrument : bool
            Also time every call.
        budget_seconds : float, optional
            Once the runs that count have taken this long, no further one begins, after 3 at the earliest.

        Raises
        ------
        OptionError
            When there is no run to count, or calls cannot be timed.
        ModelInputError, MeasurementMemoryError
            As in `run`.
        """
        if repeats < 1:
            raise OptionError(f"repeats is {repeats}; measure each stage at least once, better {REPEATS} times")
        if warmups is None:
            warmups = 1 if self._runner.device.type == "cpu" else 3
        if warmups < 1:
            raise OptionError(
                f"warmups is {warmups}; the first run of a stage is never one that counts, so give at least 1"
            )
        experts, _ = self.warm_up(point)
        for _ in range(warmups - 1):
            self.run(point)
        with GpuWatch(gpu_reader(self._runner.device)) as watch:
            runs = self._repeat(point, repeats, budget_seconds)
        wanted = INSTRUMENTED_PASSES if len(runs) == repeats else 1  # over the budget already
        calls = median_times([self.call_times(point) for _ in range(wanted)] if instrument else [])
        return StageMeasurement(
            stage=point.stage,
            bindings=dict(point.bindings),
            warmups=warmups,
            wall_seconds=tuple(run.wall for run in runs),
            # Of several threads the CPU times add up: what they are worth is the wall time.
            cpu_seconds=tuple(run.cpu for run in runs) if self._one_thread else (),
            call_seconds=calls.seconds,
            device_seconds=calls.device_seconds,
            peak_bytes=self.peak_bytes(point),
            input_bytes=self.input_bytes(point),
            launches=self.launches(point),
            active_experts=experts,
            gpu=watch.state(),
        )

    def peak_bytes(self, point: Point) -> int:
        """Return the largest sum of allocations alive in one run, beyond weights and inputs; takes a run of its own.

        Raises
        ------
        ModelInputError, MeasurementMemoryError
            As in `run`.
        """
        runner = self._runner
        with runner.guarded(point):
            return peak_memory(
                lambda: runner.inputs(point), lambda inputs: runner.execute(point, inputs), runner.device
            )

    def input_bytes(self, point: Point) -> int:
        """Return the bytes of a stage's inputs."""
        return self._runner.input_bytes(point)

    def launches(self, point: Point) -> int | None:
        """Return how many kernels one run starts, or None where nothing counts them; takes a run of its own.

        Raises
        ------
        ModelInputError, MeasurementMemoryError
            As in `run`.
        """
        runner = self._runner
        with runner.guarded(point):
            inputs = runner.inputs(point)
            return count_launches(lambda: runner.execute(point, inputs), runner.device)

    def call_counts(self) -> tuple[CallCount, ...]:
        """Return how often each module was called, beside the graph, in every stage measured so far."""
        if not self._counted:
            return ()
        parts = [self._captured(stage) for stage in self._counted]
        graph = group_by_module(attrs.evolve(parts[0], graphs=tuple(graph for part in parts for graph in part.graphs)))
        return tuple(
            count for stage, counted in self._counted.items() for count in compare_calls(graph, stage, counted)
        )

    @property
    def _one_thread(self) -> bool:
        return self._runner.device.type == "cpu" and self.machine.threads == 1

    def _captured(self, stage: str) -> CapturedModel:
        """Return the model with the graph of one stage, captured when it is first asked for."""
        if stage not in self._graphs:
            model, specs = self._described
            self._graphs[stage] = capture(
                model,
                [spec for spec in specs if spec.name == stage],
                name=self._runner.named.name,
                variant=self._runner.variant.facts(),
                progress=self._progress,
            )
        return self._graphs[stage]

    @cached_property
    def _described(self) -> tuple[nn.Module, tuple[StageSpec, ...]]:
        return self._runner.named.build(self._runner.variant)

    def _repeat(self, point: Point, repeats: int, budget_seconds: float | None) -> list[RunTime]:
        runs: list[RunTime] = []
        begin = time.perf_counter()
        for _ in range(repeats):
            spent = time.perf_counter() - begin
            if budget_seconds is not None and len(runs) >= FEWEST_REPEATS and spent >= budget_seconds:
                self._progress(
                    f"{point.text}: {len(runs)} runs of {repeats} took {units.format_seconds(spent)}, over the "
                    f"budget of {units.format_seconds(budget_seconds)}; no more are made"
                )
                break
            runs.append(self.run(point))
        return runs
