"""Verify: run a model with real tensors and compare with what was captured of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsocr_graph.errors import OptionError
from dsocr_graph.ir import OpGraph
from dsocr_graph.lowering import lower
from dsocr_graph.models.from_transformers.value_checks import values_unchecked
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import CallGraph, group_by_module
from dsocr_graph.timing.memory_limits import memory_explained, require_memory
from dsocr_graph.timing.plan import Point
from dsocr_graph.tracing import capture
from dsocr_graph.verification import compare
from dsocr_graph.verification.expect import bound_sizes, expect
from dsocr_graph.verification.observe import observe
from dsocr_graph.verification.records import StageVerification, Subject, Verification
from dsocr_graph.verification.replayed import replay_observed
from dsocr_graph.verification.stage_inputs import example_bindings, meta_inputs, random_inputs, with_tensors
from dsocr_graph.verification.stage_run import StageRun
from dsocr_graph.verification.torchlens_calls import Trace, Use, torchlens_calls, torchlens_trace
from dsocr_graph.verification.weights import fill_with_random_weights
from modelmeter.evaluate import evaluate_stage
from modelmeter.model import AnalyticModel

MakeInputs = Callable[[str, Mapping[str, int]], list[Tensor]]
"""Real inputs of a stage at given sizes, on the CPU, flat and in the order of its graph."""

FitInputs = Callable[[str, list[Tensor]], list[Tensor]]
"""The name of a stage and random inputs to inputs that it takes; flat and in the order of its graph."""

_CPU = torch.device("cpu")
_SMALLER = "verify a smaller model, or smaller sizes by --points"


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
    seed: int = 0,
    torchlens: Use = "auto",
    progress: Callable[[str], None] = lambda message: None,
) -> Verification:
    """Capture a model, run it on the CPU with random weights, and compare both.

    Module calls, parent-child edges and the shapes of module inputs and outputs come from hooks; TorchLens counts the
    calls a second time. Operators are those dispatched below autograd, of the run and of the graph replayed call by
    call on the same inputs. FLOPs are those that torch's counter finds at the same sizes on `meta`, where attention is
    no single kernel that it cannot see into.

    Parameters
    ----------
    model : nn.Module
        What of it is on `meta` gets random weights on the CPU in place.
    stages : sequence of StageSpec
        Its stages, whose modules share the model.
    name, variant
        Of the model, for the report.
    points : sequence of Point
        Stages and sizes to run at. Default: every stage, at the sizes of its example inputs.
    inputs : callable, optional
        Makes real inputs for models that do not take any: see `stage_inputs.random_inputs` for those made otherwise.
    fit : callable
        Changes random inputs so that the model takes them, such as a prompt to as many image tokens as features.
    instead : mapping of str to nn.Module, optional
        By stage, what to run in place of the captured module, such as another implementation with the same paths.
    seed : int
        Of weights and inputs.
    torchlens : {"auto", "on", "off"}
        Whether TorchLens counts as well; "auto": where it is installed.
    progress : callable
        Told what is being done.

    Raises
    ------
    CaptureError, MissingLoweringError
        When the model cannot be compiled.
    OptionError
        When a point names no stage, or the sizes of a stage are not known.
    MeasurementMemoryError
        When the weights, or a stage, do not fit.
    TorchLensError
        When TorchLens is asked for and not installed, or too old.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     model, x = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval(), torch.empty(3, 4)
    >>> stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    >>> found = verify_model(model, [stage], name="toy", variant={})
    >>> found.unexplained, found.stages[0].flops  # 2 * 3 * 4 * 2
    ((), 48)
    """
    asked, trace = _points(points, stages), torchlens_trace(torchlens)
    wanted = [stage for stage in stages if any(point.stage == stage.name for point in asked)] if asked else [*stages]
    captured = capture(model, wanted, name=name, variant=variant, progress=progress)
    grouped = group_by_module(captured)
    compiled = _Compiled(grouped=grouped, analytic=lower(grouped))
    tasks = [
        _task(stage, graph, point)
        for stage, graph in zip(wanted, captured.graphs, strict=True)
        for point in ([point for point in asked if point.stage == stage.name] or [None])
    ]
    progress("counting FLOPs on meta")
    counted = [_counted_flops(task) for task in tasks]
    progress("filling the model with random weights")
    what, needed = f"the model {name}", sum(parameter.nbytes for parameter in model.parameters())
    require_memory(what, needed, _CPU, _SMALLER)
    with memory_explained(what, needed, _CPU, _SMALLER):
        for stage in wanted:
            fill_with_random_weights(stage.module, seed=seed)
    verified: list[StageVerification] = []
    for task, flops in zip(tasks, counted, strict=True):
        progress(f"running {task.point.text}")
        tensors = (
            fit(task.stage.name, random_inputs(task.graph, task.stage, task.point.bindings, seed=seed))
            if inputs is None
            else inputs(task.stage.name, task.point.bindings)
        )
        run = (instead or {}).get(task.stage.name, task.stage.module)
        verified.append(_verify(compiled, task, tensors, run, flops, trace=trace))
    return Verification(
        model=name,
        variant=dict(variant),
        torch=captured.provenance["torch"],
        parameters=compare.parameters(model, grouped),
        stages=tuple(verified),
    )


@frozen(kw_only=True)
class _Compiled:
    grouped: CallGraph = field(repr=False)
    analytic: AnalyticModel = field(repr=False)


@frozen(kw_only=True)
class _Task:
    """A stage to run at some sizes."""

    stage: StageSpec
    graph: OpGraph = field(repr=False)
    point: Point


def _points(points: Sequence[Point], stages: Sequence[StageSpec]) -> list[Point]:
    known = [stage.name for stage in stages]
    unknown = sorted({point.stage for point in points} - set(known))
    if unknown:
        raise OptionError(f"unknown stage {', '.join(map(repr, unknown))}; the stages are {', '.join(known)}")
    return list(points)


def _task(stage: StageSpec, graph: OpGraph, point: Point | None) -> _Task:
    if point is None or not point.bindings:
        point = Point(stage=stage.name, bindings=example_bindings(graph, stage))
    if point.bindings.keys() != set(graph.dims):
        raise OptionError(
            f"stage {stage.name} has the dims {', '.join(graph.dims) or 'none'}; given are "
            f"{', '.join(sorted(point.bindings))}; name each of them once"
        )
    return _Task(stage=stage, graph=graph, point=point)


def _counted_flops(task: _Task) -> compare.FlopCounts:
    module = task.stage.module
    if not all(parameter.is_meta for parameter in module.parameters()):
        module = copy.deepcopy(module).to("meta")
    with torch.no_grad(), values_unchecked(), FlopCounterMode(display=False) as counter:
        module(*meta_inputs(task.graph, task.stage, task.point.bindings))
    # Torch names a module by the class of the outermost one and the path in it.
    prefix = ".".join(filter(None, (type(module).__name__, task.stage.root)))
    found: dict[str, int] = {}
    for called, counts in counter.get_flop_counts().items():
        if called == prefix or called.startswith(f"{prefix}."):
            found[called[len(prefix) + 1 :]] = sum(counts.values())
    return compare.FlopCounts(total=counter.get_total_flops(), modules=found)


def _verify(
    compiled: _Compiled,
    task: _Task,
    tensors: list[Tensor],
    module: nn.Module,
    counted: compare.FlopCounts,
    *,
    trace: Trace | None,
) -> StageVerification:
    bindings, stage = task.point.bindings, task.stage
    root = module.get_submodule(stage.root)
    first = {id(each): path for path, each in root.named_modules()}
    first_paths = {path: first[id(each)] for path, each in root.named_modules(remove_duplicate=False)}
    with torch.no_grad(), memory_explained(task.point.text, None, _CPU, _SMALLER):
        seen = observe(module, root, _inputs(stage, tensors))
        lens = None if trace is None else torchlens_calls(trace, module, stage.root, _inputs(stage, tensors))
        replayed = replay_observed(task.graph, stage.module, tensors, bindings)
    run = StageRun(
        stage=stage.name,
        bindings=bindings,
        grouped=compiled.grouped,
        first_paths=first_paths,
        seen=seen,
        said=expect(task.graph, first_paths, bindings, same=replayed.same),
        replayed=replayed,
        wrapped=bool(stage.root),
        same_weights=module is stage.module,
    )
    sizes: dict[str, Any] = dict(bindings)
    cost = evaluate_stage(compiled.analytic, stage.name, **sizes)
    modelled = compare.FlopCounts(
        total=int(cost.total.cost.matmul_flops),
        modules={node: int(amount.inclusive.cost.matmul_flops) for node, amount in cost.modules.items()},
    )
    return StageVerification(
        stage=stage.name,
        bindings=bindings,
        checks=(
            compare.module_calls(run, seen.calls),
            *([] if lens is None else [compare.module_calls(run, lens, subject=Subject.TORCHLENS)]),
            compare.edges(run),
            compare.shapes(run),
            compare.sizes(run, lambda item: bound_sizes(item.call.writes, bindings)),
            compare.operators(run),
            compare.results(run),
            compare.flops(run, counted, modelled),
        ),
        decompositions=compare.decompositions(replayed),
        flops=modelled.total,
        operators=len(task.graph.calls),
    )


def _inputs(stage: StageSpec, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return the inputs of a stage, in tensors of their own: a run may change them."""
    return with_tensors(stage, [tensor.clone() for tensor in tensors])
