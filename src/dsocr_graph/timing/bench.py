"""Bench: a model variant with weights on one device, built once, to run and time single stages."""

from __future__ import annotations

import copy
import gc
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import torch
from torch import nn

from dsocr_graph.errors import OptionError, ReplayError
from dsocr_graph.ir import CapturedModel
from dsocr_graph.models.deepseek_ocr.config import MoEImplementation
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM
from dsocr_graph.models.deepseek_ocr.running import RunnableModel, active_experts
from dsocr_graph.models.registry import NamedModel, Variant
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing.allocator import pin_allocator
from dsocr_graph.timing.call_clocks import call_clock
from dsocr_graph.timing.launches import count_launches
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.memory_limits import memory_explained, require_memory
from dsocr_graph.timing.module_calls import compare_calls, count_module_calls
from dsocr_graph.timing.peak_memory import peak_memory
from dsocr_graph.timing.plan import Point
from dsocr_graph.timing.replay import replay
from dsocr_graph.timing.stage_inputs import StageInputs, total_bytes
from dsocr_graph.tracing import capture
from modelmeter import units
from modelmeter.measurement import CallCount, StageMeasurement, expected_peak_bytes
from modelmeter.model import AnalyticModel, Stage

REPEATS = 7
FEWEST_REPEATS = 3  # within a budget
INSTRUMENTED_PASSES = 3


class RunTime(NamedTuple):
    """What one run took, in seconds."""

    wall: float
    cpu: float  # of the process, all threads


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
        self._runnable = runnable_of(named, variant, moe)
        self.machine = this_machine(device, threads=threads)
        self._named = named
        self._variant = variant
        self._moe: MoEImplementation = moe
        self._device = torch.device(device)
        self._analytic = analytic
        self._progress = progress
        self._counted: dict[str, Counter[str]] = {}  # stage -> calls by module path
        self._graphs: dict[str, CapturedModel] = {}  # stage -> the model with the graph of that stage
        pin_allocator()
        torch.set_num_threads(threads)
        self._seed = seed
        self._inputs = self._new_inputs()
        self._model = self._load(seed, checkpoint)

    def at(self, variant: Variant, *, analytic: AnalyticModel | None = None) -> Bench:
        """Return a bench for another page size, on the same weights.

        Raises
        ------
        OptionError
            When the variant differs in more than the page size.
        """
        if attrs.evolve(variant, base_size=self._variant.base_size) != self._variant:
            raise OptionError(
                f"{variant.name} differs from {self._variant.name} in more than the page size; build another bench"
            )
        other = copy.copy(self)
        other._variant, other._analytic = variant, analytic
        other._runnable = runnable_of(self._named, variant, self._moe)
        other._counted, other._graphs = {}, {}
        other.__dict__.pop("_described", None)
        other._inputs = other._new_inputs()
        return other

    def warm_up(self, point: Point) -> tuple[dict[str, float], RunTime]:
        """Run a stage once with hooks; return the active experts by module, and what the run took.

        Raises
        ------
        ModelInputError, MeasurementMemoryError
            As in `run`.
        """
        with count_module_calls(self._model) as counted, active_experts(self._model) as experts:
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
        with self._guarded(point):
            inputs = self._inputs.copy(point)
            self._wait()
            wall, cpu = time.perf_counter(), time.process_time()
            results = self._runnable.run(self._model, point.stage, inputs)
            self._wait()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            del results
        return RunTime(wall=wall, cpu=cpu)

    def instrument(self, point: Point) -> tuple[float, ...]:
        """Run a stage once, call by call, and return the seconds of each call, in the order of its schedule.

        Raises
        ------
        OptionError
            When the experts run in a loop, which no graph holds.
        """
        if self._moe != "grouped":
            raise OptionError(
                f"moe {self._moe!r} cannot be timed call by call: its loop over experts follows the data and is in no "
                "graph; choose grouped, or measure without instrument"
            )
        (graph,) = self._captured(point.stage).graphs
        stage = self._stage(point)
        if stage is not None and len(stage.schedule) != len(graph.calls):
            raise ReplayError(
                f"stage {point.stage} has {len(stage.schedule):,} calls in the compiled model and {len(graph.calls):,} "
                "as captured now, so that times cannot be matched; compile it anew: `dsocr-graph analyze --no-cache`"
            )
        module = self._runnable.stage_module(self._model, point.stage)
        with self._guarded(point):
            inputs = self._inputs.copy(point)
            return replay(
                graph, module, inputs, point.bindings, call_clock(self._device, threads=self.machine.threads)
            ).call_seconds

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
            warmups = 1 if self._device.type == "cpu" else 3
        if warmups < 1:
            raise OptionError(
                f"warmups is {warmups}; the first run of a stage is never one that counts, so give at least 1"
            )
        experts, _ = self.warm_up(point)
        for _ in range(warmups - 1):
            self.run(point)
        runs = self._repeat(point, repeats, budget_seconds)
        wanted = INSTRUMENTED_PASSES if len(runs) == repeats else 1  # over the budget already
        passes = [self.instrument(point) for _ in range(wanted)] if instrument else []
        return StageMeasurement(
            stage=point.stage,
            bindings=dict(point.bindings),
            warmups=warmups,
            wall_seconds=tuple(run.wall for run in runs),
            # Of several threads the CPU times add up: what they are worth is the wall time.
            cpu_seconds=tuple(run.cpu for run in runs) if self._one_thread else (),
            call_seconds=tuple(map(float, np.median(passes, axis=0))) if passes else (),
            peak_bytes=self.peak_bytes(point),
            input_bytes=self.input_bytes(point),
            launches=self.launches(point),
            active_experts=experts,
        )

    def peak_bytes(self, point: Point) -> int:
        """Return the largest sum of allocations alive in one run, beyond weights and inputs; takes a run of its own.

        Raises
        ------
        ModelInputError, MeasurementMemoryError
            As in `run`.
        """
        with self._guarded(point):
            return peak_memory(
                lambda: self._inputs.copy(point),
                lambda inputs: self._runnable.run(self._model, point.stage, inputs),
                self._device,
            )

    def input_bytes(self, point: Point) -> int:
        """Return the bytes of a stage's inputs."""
        return total_bytes(self._runnable.inputs(point.stage, point.bindings, device="meta", seed=0))

    def launches(self, point: Point) -> int | None:
        """Return how many kernels one run starts, or None where nothing counts them; takes a run of its own.

        Raises
        ------
        ModelInputError, MeasurementMemoryError
            As in `run`.
        """
        with self._guarded(point):
            inputs = self._inputs.copy(point)
            return count_launches(lambda: self._runnable.run(self._model, point.stage, inputs), self._device)

    def call_counts(self) -> tuple[CallCount, ...]:
        """Return how often each module was called, beside the graph, in every stage measured so far."""
        if not self._counted:
            return ()
        parts = [self._captured(stage) for stage in self._counted]
        graph = group_by_module(attrs.evolve(parts[0], graphs=tuple(graph for part in parts for graph in part.graphs)))
        return tuple(
            count for stage, counted in self._counted.items() for count in compare_calls(graph, stage, counted)
        )

    def _new_inputs(self) -> StageInputs:
        return StageInputs(
            lambda point: self._runnable.inputs(point.stage, point.bindings, device=self._device, seed=self._seed)
        )

    def _load(self, seed: int, checkpoint: str | Path | None) -> DeepseekOCRForCausalLM:
        named, needed = f"{self._named.name} {self._variant.name}", self._runnable.weight_bytes()
        self._progress(
            f"building {named} with {'random weights' if checkpoint is None else f'the weights of {checkpoint}'}, "
            f"{units.format_bytes(needed)}"
        )
        what = f"the model {named}"
        require_memory(what, needed, self._device, _OTHER_DEVICE)
        with memory_explained(what, needed, self._device, _OTHER_DEVICE):
            return self._runnable.load(device=self._device, seed=seed, checkpoint=checkpoint)

    @property
    def _one_thread(self) -> bool:
        return self._device.type == "cpu" and self.machine.threads == 1

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _captured(self, stage: str) -> CapturedModel:
        """Return the model with the graph of one stage, captured when it is first asked for."""
        if stage not in self._graphs:
            model, specs = self._described
            self._graphs[stage] = capture(
                model,
                [spec for spec in specs if spec.name == stage],
                name=self._named.name,
                variant=self._variant.facts(),
                progress=self._progress,
            )
        return self._graphs[stage]

    @cached_property
    def _described(self) -> tuple[nn.Module, tuple[StageSpec, ...]]:
        return self._named.build(self._variant)

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

    @contextmanager
    def _guarded(self, point: Point) -> Generator[None]:
        """Run what follows without gradients, and explain memory that is too little for it."""
        needed = self._needed_bytes(point)
        what = f"{self._named.name} {self._variant.name}, {point.text}"
        if needed is not None:
            require_memory(what, needed, self._device, _SMALLER)
        with torch.no_grad(), _no_collection(), memory_explained(what, needed, self._device, _SMALLER):
            yield

    def _needed_bytes(self, point: Point) -> int | None:
        """Return what running a stage still allocates, by the analytic model; None without one."""
        stage = self._stage(point)
        if stage is None:
            return None
        given = self.input_bytes(point)
        peak = expected_peak_bytes(stage, point.bindings, given)
        return peak + given * (1 if self._inputs.has(point) else 2)  # a copy of what is kept

    def _stage(self, point: Point) -> Stage | None:
        stages = () if self._analytic is None else self._analytic.stages
        return next((stage for stage in stages if stage.name == point.stage), None)


def runnable_of(named: NamedModel, variant: Variant, moe: MoEImplementation) -> RunnableModel:
    """Return how a variant of a model is run.

    Raises
    ------
    OptionError
        When the model is described for analysis only.

    Examples
    --------
    >>> from dsocr_graph.models.registry import model_named
    >>> variant = Variant(base_size=512, dtype="fp32", attention="sdpa")
    >>> runnable_of(model_named("deepseek-ocr-tiny"), variant, "loop").config.moe_implementation
    'loop'
    """
    if named.runnable is None:
        raise OptionError(f"model {named.name!r} is described for analysis only and cannot be run; choose another")
    return named.runnable(variant, moe)


_SMALLER = "measure it at smaller sizes, in bf16, or on a device with more memory"
_OTHER_DEVICE = "end other programs, choose bf16, or a device with more memory"


@contextmanager
def _no_collection() -> Generator[None]:
    """Put off Python's collection of garbage, which would fall into one run and not into another."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
