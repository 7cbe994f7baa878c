"""measure: a real model with weights, run stage by stage, as a record of times, memory and calls."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from dsocr_graph.errors import OptionError
from dsocr_graph.models.deepseek_ocr.config import MoEImplementation
from dsocr_graph.models.registry import Variant, model_named
from dsocr_graph.timing.bench import REPEATS, Bench
from dsocr_graph.timing.machine import this_machine
from dsocr_graph.timing.plan import Point
from dsocr_graph.timing.runner import runnable_of
from dsocr_graph.workloads.modes import mode_named
from modelmeter import units
from modelmeter.measurement import Measurement, StageMeasurement
from modelmeter.model import AnalyticModel


def measure(
    model: str = "deepseek-ocr",
    *,
    points: Sequence[Point],
    mode: str = "Gundam",
    dtype: str = "bf16",
    attention: str = "sdpa",
    moe: MoEImplementation = "grouped",
    device: str = "cpu",
    threads: int = 1,
    repeats: int = REPEATS,
    warmups: int | None = None,
    instrument: bool = True,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    budget_seconds: float | None = None,
    analytic: Callable[[], AnalyticModel] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Measurement:
    """Measure a model with weights on this machine.

    The times are of the real model without instruments. What they are attributed to comes from the captured graph, run
    call by call on the same weights; peak memory, calls of modules and active experts come from runs of their own.

    Parameters
    ----------
    model : str
        A model by name.
    points : sequence of Point
        Stages and the sizes to run them at.
    mode : str
        Tiny, Small, Base, Large or Gundam; it decides the size of the global view.
    dtype : str
        "bf16" or "fp32".
    attention : str
        "sdpa", "eager" or "flash_attention_2", in the decoder.
    moe : str
        "grouped" or "loop"; the loop cannot be timed call by call.
    device : str
        "cpu", "cuda" or "cuda:INDEX".
    threads : int
        Of torch, within an operator.
    repeats : int
        Uninstrumented runs of each point.
    warmups : int, optional
        Runs before them; 1 on a CPU, 3 on a GPU.
    instrument : bool
        Time every call and count the calls of modules; needs the stages captured, which takes some ten seconds each.
    checkpoint : str or Path, optional
        A directory with config.json and safetensors files; random weights by default. Random weights route tokens to
        experts about uniformly, trained ones do not.
    seed : int
        Of random weights and of the inputs.
    budget_seconds : float, optional
        For the uninstrumented runs of all points together, 0 or more; slow stages are then run fewer times, never below
        3.
    analytic : callable, optional
        Returns the compiled model; called once the weights are there. What does not fit into memory is then refused
        before it runs.
    progress : callable
        Told what is being done.

    Raises
    ------
    OptionError
        When there is no point to measure, the budget is negative, or options do not go together.
    UnknownModelError, ModelConfigError
        For a model or variant that does not exist.
    MissingDeviceError
        When CUDA is asked for and absent.
    ModelInputError
        For a stage that the model does not have, or sizes that it does not run at.
    CheckpointNotFoundError, CheckpointError
        When the checkpoint is not there or does not fit.
    MeasurementMemoryError
        When a point, or the model itself, does not fit into memory.

    Examples
    --------
    >>> from dsocr_graph.timing.plan import Point
    >>> decode = Point(stage="decode", bindings={"B": 2, "T": 9})
    >>> measured = measure("deepseek-ocr-tiny", points=[decode], repeats=3, instrument=False)
    >>> measured.stages[0].stage, len(measured.stages[0].cpu_seconds), measured.weights
    ('decode', 3, 'random')
    """
    if not points:
        raise OptionError("nothing to measure: give at least one point, such as decode at B=1, T=913")
    if budget_seconds is not None and not budget_seconds >= 0:
        raise OptionError(f"budget_seconds is {budget_seconds}; give a time of 0 or more, or leave it out for no limit")
    named = model_named(model)
    variant = Variant(base_size=mode_named(mode).base_size, dtype=dtype, attention=attention)
    runnable = runnable_of(named, variant, moe)
    this_machine(device, threads=threads)
    for point in points:  # before the weights are made, which takes much longer
        runnable.inputs(point.stage, point.bindings, device="meta", seed=seed)
    bench = Bench(
        named,
        variant,
        moe=moe,
        device=device,
        threads=threads,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    if analytic is not None:
        bench = bench.at(variant, analytic=analytic())
    if instrument and moe != "grouped":
        progress("calls are not timed: the loop over experts follows the data and is in no graph")
    stages: list[StageMeasurement] = []
    for number, point in enumerate(points, start=1):
        progress(f"measuring {number} of {len(points)}: {point.text}")
        stages.append(
            bench.measure(
                point,
                repeats=repeats,
                warmups=warmups,
                instrument=instrument and moe == "grouped",
                budget_seconds=None if budget_seconds is None else budget_seconds / len(points),
            )
        )
        progress(f"  {units.format_seconds(stages[-1].seconds)}, spread {stages[-1].spread:.1%}")
    return Measurement(
        machine=bench.machine,
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        model=named.name,
        variant={**variant.facts(), "moe": moe},
        weights="random" if checkpoint is None else Path(checkpoint).name,
        stages=tuple(stages),
        calls=bench.call_counts() if instrument else (),
    )
