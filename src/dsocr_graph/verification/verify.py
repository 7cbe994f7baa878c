"""Verify: run a model with real tensors and compare with what was captured of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import evolve
from torch import Tensor, nn

from dsocr_graph.errors import OptionError
from dsocr_graph.ir import OpGraph
from dsocr_graph.lowering import lower
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.timing.memory_limits import memory_explained, require_memory
from dsocr_graph.timing.plan import Point
from dsocr_graph.tracing import capture
from dsocr_graph.verification import compare
from dsocr_graph.verification.records import StageVerification, UnclassifiedOperator, Verification
from dsocr_graph.verification.stage_inputs import example_bindings, random_inputs
from dsocr_graph.verification.stage_task import (
    CPU,
    SMALLER,
    StageTask,
    counted_flops,
    counted_on_meta,
    require_replayable,
    verify_stage,
)
from dsocr_graph.verification.state import ModelState
from dsocr_graph.verification.torchlens_calls import Use, torchlens_trace
from dsocr_graph.verification.weights import fill_with_random_weights
from modelmeter.layers import Unclassified
from modelmeter.model import AnalyticModel
from modelmeter.reports.left_out import left_out_stages

MakeInputs = Callable[[str, Mapping[str, int]], list[Tensor]]
"""Real inputs of a stage at given sizes, on the CPU, flat and in the order of its graph."""

FitInputs = Callable[[str, list[Tensor]], list[Tensor]]
"""The name of a stage and random inputs to inputs that it takes; flat and in the order of its graph."""


def verify_model(
    model: nn.Module,
    stages: Sequence[StageSpec],
    *,
    name: str,
    variant: Mapping[str, str],
    points: Sequence[Point] = (),
    inputs: MakeInputs | None = None,
    fit: FitInputs = lambda _, tensors: tensors,
    instead: Mapping[str, nn.Module] | None = None,
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
    torchlens: Use = "auto",
    allow_unclassified: bool = False,
    allow_partial: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Verification:
    """Capture a model, run it on the CPU with random weights, and compare both.

    Module calls, parent-child edges and the shapes of module inputs and outputs come from hooks; TorchLens counts the
    calls a second time. Operators are those dispatched below autograd, of the run and of the graph replayed call by
    call on the same inputs. FLOPs are those that torch's counter finds at the same sizes on `meta`, where attention is
    no single kernel that it cannot see into; on the CPU where the model does not run on `meta`.

    Each run begins with the same state: buffers and attributes that one changes are as before for the next.

    Parameters
    ----------
    model : nn.Module
        What of it is on `meta` gets random weights on the CPU in place.
    stages : sequence of StageSpec
        Its stages, whose modules share the model.
    name, variant
        Of the model, for the report.
    points : sequence of Point
        Stages and sizes to run at. Default: every stage, at the sizes of its example inputs, or those that the model
        has room for.
    inputs : callable, optional
        Makes real inputs for models that do not take any: see `stage_inputs.random_inputs` for those made otherwise.
    fit : callable
        Changes random inputs so that the model takes them, such as a prompt to as many image tokens as features.
    instead : mapping of str to nn.Module, optional
        By stage, what to run in place of the captured module, such as another implementation with the same paths.
    limits : mapping of str to int, optional
        The largest size of each dim that has one.
    seed : int
        Of weights and inputs.
    torchlens : {"auto", "on", "off"}
        Whether TorchLens counts as well; "auto": where it is installed.
    allow_unclassified : bool
        Compare a model with operators that have no rule, instead of raising; what these are is listed.
    allow_partial : bool
        Leave out stages that cannot be captured, instead of raising; which these are, and why, is listed.
    progress : callable
        Told what is being done.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.
    OptionError
        When a point names no stage, or the sizes of a stage are not known.
    SizeLimitError
        When a point is larger than the model has room for.
    NotReplayableError
        When a stage holds a higher-order operator, such as `flex_attention`.
    StageRunError
        When a stage fails as it runs.
    MeasurementMemoryError
        When the weights, or a stage, do not fit.
    TorchLensError
        When TorchLens is asked for and not installed, or too old.

    Examples
    --------
    >>> import torch
    >>> with torch.device("meta"):
    ...     model, x = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval(), torch.empty(3, 4)
    >>> stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    >>> found = verify_model(model, [stage], name="toy", variant={})
    >>> found.unexplained, found.stages[0].flops  # 2 * 3 * 4 * 2
    ((), 48)
    """
    asked, trace = _points(points, stages), torchlens_trace(torchlens)
    wanted = [stage for stage in stages if any(point.stage == stage.name for point in asked)] if asked else stages
    wanted = [stage for stage in wanted if not stage.left_out]
    states = [ModelState.of(stage.module) for stage in wanted]
    captured = capture(model, wanted, name=name, variant=variant, allow_partial=allow_partial, progress=progress)
    for state in states:  # a model that counts its calls has been called
        state.restore()
    for graph in captured.graphs:
        require_replayable(graph)
    grouped = group_by_module(captured)
    analytic = lower(grouped, allow_unclassified=allow_unclassified, limits=limits)
    specs = {stage.name: stage for stage in wanted}
    tasks = [
        _task(specs[graph.stage], graph, point, analytic)
        for graph in captured.graphs
        for point in ([point for point in asked if point.stage == graph.stage] or [None])
    ]
    progress("counting FLOPs on meta")
    on_meta = [counted_on_meta(task) for task in tasks]
    progress("filling the model with random weights")
    what, needed = f"the model {name}", sum(parameter.nbytes for parameter in model.parameters())
    require_memory(what, needed, CPU, SMALLER)
    with memory_explained(what, needed, CPU, SMALLER):
        for task in tasks:
            fill_with_random_weights(task.stage.module, seed=seed)
    verified: list[StageVerification] = []
    for task, counted in zip(tasks, on_meta, strict=True):
        progress(f"running {task.point.text}")
        tensors = (
            fit(task.stage.name, random_inputs(task.graph, task.stage, task.point.bindings, seed=seed))
            if inputs is None
            else inputs(task.stage.name, task.point.bindings)
        )
        ready = evolve(task, tensors=tensors, seed=seed)
        flops = counted_flops(ready) if counted is None else counted
        run = (instead or {}).get(task.stage.name, task.stage.module)
        verified.append(verify_stage(ready, run, flops, grouped=grouped, analytic=analytic, trace=trace))
    return Verification(
        model=name,
        variant=dict(captured.variant),
        torch=captured.provenance["torch"],
        parameters=compare.parameters(model, grouped),
        stages=tuple(verified),
        left_out=left_out_stages(captured.provenance),
        unclassified=tuple(
            UnclassifiedOperator(op=leaf.op, stage=leaf.stage, module=leaf.module, calls=leaf.calls)
            for leaf in analytic.leaves
            if isinstance(leaf.layer, Unclassified)
        ),
    )


def _points(points: Sequence[Point], stages: Sequence[StageSpec]) -> list[Point]:
    known = [stage.name for stage in stages]
    unknown = sorted({point.stage for point in points} - set(known))
    if unknown:
        raise OptionError(f"unknown stage {', '.join(map(repr, unknown))}; the stages are {', '.join(known)}")
    return list(points)


def _task(stage: StageSpec, graph: OpGraph, point: Point | None, analytic: AnalyticModel) -> StageTask:
    if point is None or not point.bindings:
        sizes = example_bindings(graph, stage)
        limits = analytic.limits
        point = Point(
            stage=stage.name, bindings={name: min(size, limits.get(name, size)) for name, size in sizes.items()}
        )
    if point.bindings.keys() != set(graph.dims):
        raise OptionError(
            f"stage {stage.name} has the dims {', '.join(graph.dims) or 'none'}; given are "
            f"{', '.join(sorted(point.bindings))}; name each of them once"
        )
    analytic.require_room(f"point {point.text!r}", point.bindings)
    return StageTask(stage=stage, graph=graph, point=point)
