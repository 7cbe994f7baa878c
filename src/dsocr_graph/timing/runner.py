"""Runner: a model variant with weights on one device, built once, to run single stages within its memory."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from dsocr_graph.errors import OptionError
from dsocr_graph.models.deepseek_ocr.config import MoEImplementation
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM
from dsocr_graph.models.deepseek_ocr.running import RunnableModel
from dsocr_graph.models.named_model import ModelVariant, NamedModel
from dsocr_graph.models.registry import MODELS, Variant
from dsocr_graph.timing.allocator import pin_allocator
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.memory_limits import memory_explained, require_memory
from dsocr_graph.timing.plan import Point
from dsocr_graph.timing.stage_inputs import StageInputs, total_bytes
from modelmeter import units
from modelmeter.measurement import expected_peak_bytes
from modelmeter.model import AnalyticModel, Stage


class RunTime(NamedTuple):
    """What one run took, in seconds."""

    wall: float
    cpu: float  # of the process, all threads


class StageRunner:
    """A model variant with weights on one device.

    Everything a run needs is made before its clock starts; the inputs are random and the same in every run of a point.

    Parameters
    ----------
    named, variant, moe, device, threads, seed, checkpoint, analytic, progress
        As `dsocr_graph.timing.bench.Bench` takes them.

    Raises
    ------
    OptionError, MeasurementMemoryError, DsocrGraphError
        As `Bench`.

    Examples
    --------
    >>> from dsocr_graph.models.registry import model_named
    >>> from dsocr_graph.timing.plan import Point
    >>> variant = Variant(base_size=512, dtype="fp32", attention="sdpa")
    >>> runner = StageRunner(model_named("deepseek-ocr-tiny"), variant)
    >>> decode = Point(stage="decode", bindings={"B": 1, "T": 5})
    >>> runner.run(decode).wall > 0, runner.input_bytes(decode) > 0
    (True, True)
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
        self.device = torch.device(device)
        self.named = named
        self.variant = variant
        self.moe: MoEImplementation = moe
        self._analytic = analytic
        pin_allocator()
        torch.set_num_threads(threads)
        self._seed = seed
        self._inputs = self._new_inputs()
        self.model = self._load(seed, checkpoint, progress)

    def at(self, variant: Variant, *, analytic: AnalyticModel | None = None) -> StageRunner:
        """Return a runner for another page size, on the same weights.

        Raises
        ------
        OptionError
            When the variant differs in more than the page size.
        """
        if attrs.evolve(variant, base_size=self.variant.base_size) != self.variant:
            raise OptionError(
                f"{variant.name} differs from {self.variant.name} in more than the page size; build another bench"
            )
        other = copy.copy(self)
        other.variant, other._analytic = variant, analytic
        other._runnable = runnable_of(self.named, variant, self.moe)
        other._inputs = other._new_inputs()
        return other

    def run(self, point: Point) -> RunTime:
        """Run a stage once, without instruments.

        Raises
        ------
        ModelInputError
            When the model has no such stage, or it does not run at such sizes.
        MeasurementMemoryError
            When it does not fit.
        """
        with self.guarded(point):
            inputs = self.inputs(point)
            self._wait()
            wall, cpu = time.perf_counter(), time.process_time()
            results = self.execute(point, inputs)
            self._wait()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            del results
        return RunTime(wall=wall, cpu=cpu)

    def inputs(self, point: Point) -> list[Tensor]:
        """Return the inputs of a stage, which its run may use up."""
        return self._inputs.copy(point)

    def input_bytes(self, point: Point) -> int:
        """Return the bytes of a stage's inputs."""
        return total_bytes(self._runnable.inputs(point.stage, point.bindings, device="meta", seed=0))

    def execute(self, point: Point, inputs: list[Tensor]) -> object:
        """Run a stage on inputs and return its results."""
        return self._runnable.run(self.model, point.stage, inputs)

    def stage_module(self, stage: str) -> torch.nn.Module:
        """Return the module that a stage is captured from, with weights."""
        return self._runnable.stage_module(self.model, stage)

    def analytic_stage(self, point: Point) -> Stage | None:
        """Return the stage of the compiled model; None without one."""
        stages = () if self._analytic is None else self._analytic.stages
        return next((stage for stage in stages if stage.name == point.stage), None)

    @contextmanager
    def guarded(self, point: Point) -> Generator[None]:
        """Run what follows without gradients, and explain memory that is too little for it.

        Raises
        ------
        MeasurementMemoryError
            When a stage does not fit.
        """
        needed = self._needed_bytes(point)
        what = f"{self.named.name} {self.variant.name}, {point.text}"
        if needed is not None:
            require_memory(what, needed, self.device, _SMALLER)
        with torch.no_grad(), _no_collection(), memory_explained(what, needed, self.device, _SMALLER):
            yield

    def _new_inputs(self) -> StageInputs:
        return StageInputs(
            lambda point: self._runnable.inputs(point.stage, point.bindings, device=self.device, seed=self._seed)
        )

    def _load(
        self, seed: int, checkpoint: str | Path | None, progress: Callable[[str], None]
    ) -> DeepseekOCRForCausalLM:
        named, needed = f"{self.named.name} {self.variant.name}", self._runnable.weight_bytes()
        progress(
            f"building {named} with {'random weights' if checkpoint is None else f'the weights of {checkpoint}'}, "
            f"{units.format_bytes(needed)}"
        )
        what = f"the model {named}"
        require_memory(what, needed, self.device, _OTHER_DEVICE)
        with memory_explained(what, needed, self.device, _OTHER_DEVICE):
            return self._runnable.load(device=self.device, seed=seed, checkpoint=checkpoint)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _needed_bytes(self, point: Point) -> int | None:
        """Return what running a stage still allocates, by the analytic model; None without one."""
        stage = self.analytic_stage(point)
        if stage is None:
            return None
        given = self.input_bytes(point)
        peak = expected_peak_bytes(stage, point.bindings, given)
        return peak + given * (1 if self._inputs.has(point) else 2)  # a copy of what is kept


def runnable_of(named: NamedModel, variant: ModelVariant, moe: MoEImplementation) -> RunnableModel:
    """Return how a variant of a model is run.

    Raises
    ------
    OptionError
        When the model is described for analysis only.

    Examples
    --------
    >>> from dsocr_graph.models.registry import Variant, model_named
    >>> variant = Variant(base_size=512, dtype="fp32", attention="sdpa")
    >>> runnable_of(model_named("deepseek-ocr-tiny"), variant, "loop").config.moe_implementation
    'loop'
    """
    if named.runnable is None:
        known = ", ".join(sorted(name for name, model in MODELS.items() if model.runnable is not None))
        raise OptionError(
            f"model {named.name!r} is described for analysis only and cannot be run; choose one of {known}"
        )
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
