"""One stage at some sizes: run, counted and replayed, each from the same state, and everything compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from attrs import field, frozen
from torch import Tensor, nn

from dsocr_graph.errors import DsocrGraphError
from dsocr_graph.ir import OpGraph
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import CallGraph
from dsocr_graph.timing.memory_limits import memory_explained
from dsocr_graph.timing.plan import Point
from dsocr_graph.verification import compare
from dsocr_graph.verification.expect import bound_sizes, expect
from dsocr_graph.verification.flop_comparison import ModelledFlops, flops
from dsocr_graph.verification.flop_counts import CountedFlops, count_flops
from dsocr_graph.verification.fused_attention import fused_attention, holds_fused_attention, kept_from_fusing
from dsocr_graph.verification.id_ranges import ids_beyond
from dsocr_graph.verification.module_paths import ModulePaths
from dsocr_graph.verification.observe import observe
from dsocr_graph.verification.records import StageVerification, Subject
from dsocr_graph.verification.replayed import replay_observed
from dsocr_graph.verification.stage_inputs import meta_inputs, with_tensors
from dsocr_graph.verification.stage_run import BufferValues, StageRun
from dsocr_graph.verification.state import ModelState, buffer_values
from dsocr_graph.verification.torchlens_calls import Trace, torchlens_calls
from modelmeter.model import AnalyticModel

CPU = torch.device("cpu")
_HIGHER_ORDER = "higher_order::"
SMALLER = "verify a smaller model, or smaller sizes by --points"

Result = TypeVar("Result")


class NotReplayableError(DsocrGraphError, ValueError):
    """A stage that can be captured, and whose graph holds what cannot be run call by call."""


class StageRunError(DsocrGraphError, RuntimeError):
    """A stage that was captured, and fails as it runs on real tensors."""


@frozen(kw_only=True)
class StageTask:
    """A stage to run at some sizes."""

    stage: StageSpec
    graph: OpGraph = field(repr=False)
    point: Point
    tensors: Sequence[Tensor] = field(default=(), repr=False)  # real inputs, flat and in the order of the graph
    seed: int = 0  # of random operators

    def inputs(self) -> tuple[Any, ...]:
        """Return the inputs in tensors of their own: a run may change them."""
        return with_tensors(self.stage, [tensor.clone() for tensor in self.tensors])


def require_replayable(graph: OpGraph) -> None:
    """Refuse a stage with a higher-order operator, such as `flex_attention`.

    It is captured as one call without the functions that it was given, so that no replay can run it, and torch refuses
    it under the modes that watch a run: `torch._higher_order_ops.flex_attention` has no rule for them.

    Raises
    ------
    NotReplayableError
        With the operator, and where it is called.
    """
    for call in graph.calls:
        if call.op.startswith(_HIGHER_ORDER):
            name = call.op.removeprefix(_HIGHER_ORDER)
            raise NotReplayableError(
                f"stage {graph.stage!r} calls {name} in module {call.module or '(root)'}, and cannot be verified: "
                f"torch runs {name} as a whole, not operator by operator where each can be compared; verify the model "
                "with another implementation, such as scaled_dot_product_attention for attention, or other stages by "
                f"--points; `dsocr-graph analyze` counts {name}"
            )


def counted_on_meta(task: StageTask) -> CountedFlops | None:
    """Count the FLOPs of a stage on `meta`; None where it does not run there, such as by a constant on the CPU."""
    module = task.stage.module
    state = ModelState.of(module)
    try:
        if not all(parameter.is_meta for parameter in module.parameters()):
            module = copy.deepcopy(module).to("meta")
        inputs = meta_inputs(task.graph, task.stage, task.point.bindings)
        return count_flops(module, module.get_submodule(task.stage.root), inputs)
    except Exception:
        return None
    finally:
        state.restore()


def counted_flops(task: StageTask) -> CountedFlops:
    """Count the FLOPs of a stage on the CPU, where its weights are.

    Raises
    ------
    StageRunError
        When it fails.
    """
    module = task.stage.module
    return _from_state(
        task, [module], lambda: count_flops(module, module.get_submodule(task.stage.root), task.inputs())
    )


def verify_stage(
    task: StageTask,
    module: nn.Module,
    counted: CountedFlops,
    *,
    grouped: CallGraph,
    analytic: AnalyticModel,
    trace: Trace | None,
) -> StageVerification:
    """Run a stage, replay its graph on the same inputs, and compare both.

    Parameters
    ----------
    task : StageTask
        With inputs, and weights in its module.
    module : nn.Module
        What runs: the stage's module, or another one with the same paths.
    counted : CountedFlops
        By torch's counter.
    grouped : CallGraph
    analytic : AnalyticModel
        The model as captured, and as lowered.
    trace : callable or None
        TorchLens' own, to count module calls as well.

    Raises
    ------
    StageRunError
        When the stage fails.
    """
    stage, bindings = task.stage, task.point.bindings
    root = module.get_submodule(stage.root)
    paths = ModulePaths.of(root)
    modules = list({id(each): each for each in (module, stage.module)}.values())
    before = buffer_values(stage.module)
    fusing = holds_fused_attention(task.graph)
    with fused_attention(allowed=fusing):
        seen, ran = _from_state(
            task, modules, lambda: (observe(module, root, task.inputs()), buffer_values(stage.module))
        )
        lens = (
            None
            if trace is None
            else _from_state(task, modules, lambda: torchlens_calls(trace, module, stage.root, task.inputs()))
        )
    replayed, left = _from_state(
        task,
        modules,
        lambda: (
            replay_observed(
                task.graph,
                stage.module,
                [tensor.clone() for tensor in task.tensors],
                bindings,
                constants=seen.constants,
            ),
            buffer_values(stage.module),
        ),
        what="its graph is replayed",
    )
    run = StageRun(
        stage=stage.name,
        bindings=bindings,
        grouped=grouped,
        paths=paths,
        seen=seen,
        said=expect(task.graph, paths.first, bindings, same=replayed.same),
        replayed=replayed,
        same_weights=module is stage.module,
        buffers=BufferValues.changed(before, ran, left),
    )
    modelled = ModelledFlops.of(analytic, stage.name, bindings)
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
            flops(run, counted, modelled),
        ),
        decompositions=compare.decompositions(replayed),
        flops=modelled.total,
        operators=len(task.graph.calls),
        notes=tuple(filter(None, [None if fusing else kept_from_fusing(root, seen.calls)])),
    )


def _from_state(
    task: StageTask, modules: Sequence[nn.Module], run: Callable[[], Result], *, what: str = "it runs"
) -> Result:
    """Run something, and give some modules back the state that they had before; random operators begin anew."""
    states = [ModelState.of(module) for module in modules]
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            _failures_explained(task, what),
            memory_explained(task.point.text, None, CPU, SMALLER),
        ):
            torch.manual_seed(task.seed)
            return run()
    finally:
        for state in states:
            state.restore()


@contextmanager
def _failures_explained(task: StageTask, what: str) -> Generator[None]:
    try:
        yield
    except DsocrGraphError:
        raise
    except Exception as error:
        beyond = ids_beyond(task.graph, task.point.bindings, task.tensors)
        advice = (
            "give other sizes by --points, or mend the model"
            if beyond is None
            else f"{beyond}: let the model have as many rows as it has ids, those of its configuration included, such "
            "as that of an image token"
        )
        raise StageRunError(
            f"{task.point.text} was captured and fails when {what} on the CPU with random weights and inputs: "
            f"{type(error).__name__}: {error}; {advice}"
        ) from error
