"""Capture: a PyTorch model to ATen graphs, a stage at a time, side by side where that is safe."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

import torch
from torch import nn

from dsocr_graph.errors import CaptureError
from dsocr_graph.ir import BufferSpec, CapturedModel, ModuleSpec, OpGraph, ParameterSpec
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.tracing.call_places import all_paths
from dsocr_graph.tracing.exporting import exported
from dsocr_graph.tracing.forked import forked, most_processes
from dsocr_graph.tracing.reading import Costliest, graph_of
from dsocr_graph.tracing.torch_terms import dtype_of
from modelmeter.reports.left_out import WHY_WITHOUT


def capture(
    model: nn.Module,
    stages: Sequence[StageSpec],
    *,
    name: str,
    variant: Mapping[str, str],
    allow_partial: bool = False,
    processes: int | None = None,
    costliest: Costliest | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> CapturedModel:
    """Capture every stage of a model as an ATen graph.

    Parameters
    ----------
    model : nn.Module
        The model, in evaluation mode, usually on the `meta` device.
    stages : sequence of StageSpec
        What to run, and which dims stay symbolic.
    name : str
        Name of the model.
    variant : mapping of str to str
        What tells this variant of the model from others.
    allow_partial : bool
        Leave out stages that cannot be captured: the variant then says without which it is, the provenance why. Those
        that say themselves why they cannot (`StageSpec.left_out`) are left out in any case.
    processes : int, optional
        How many stages are captured at a time, each in a process forked for it; 1 captures them in this one, as to
        debug a model. By default one per core, where forks are safe.
    costliest : callable, optional
        Which branch of a torch.cond the graph holds, such as `dsocr_graph.lowering.higher_order.costliest`; without, a
        stage that has one is refused.
    progress : callable
        Told what is being captured.

    Raises
    ------
    CaptureError
        When torch.export cannot capture a stage, or any stage at all; the error names the module and the operator,
        and says whether there are other stages (`other_stages`).
    LostProcessError
        When a process is killed.

    Examples
    --------
    >>> stage = StageSpec(
    ...     name="forward",
    ...     description="one call",
    ...     module=nn.Linear(4, 2, device="meta"),
    ...     inputs=(torch.empty(3, 4, device="meta"),),
    ... )
    >>> captured = capture(stage.module, [stage], name="toy", variant={})
    >>> [call.op for call in captured.graphs[0].calls]
    ['aten::linear']
    """
    graphs: list[OpGraph] = []
    left_out: dict[str, str] = {}
    most = min(len(stages), _most_processes() if processes is None else processes)
    with closing(_outcomes(stages, model, most, costliest)) as outcomes:
        for stage in stages:
            progress(f"capturing {stage.name}")
            outcome = next(outcomes)
            if isinstance(outcome, OpGraph):
                graphs.append(outcome)
                continue
            others = len(left_out) + 1 < len(stages)
            if not (isinstance(outcome, CaptureError) and (allow_partial or stage.left_out) and others):
                if isinstance(outcome, CaptureError):
                    outcome.other_stages = len(stages) > 1
                raise outcome
            progress(f"left out {stage.name}: {outcome}")
            left_out[stage.name] = str(outcome)
    return CapturedModel(
        name=name,
        variant={**variant, "partial": f"without {', '.join(left_out)}"} if left_out else dict(variant),
        modules=_modules(model),
        parameters=tuple(
            ParameterSpec(name=path, shape=tuple(parameter.shape), dtype=dtype_of(parameter.dtype, path))
            for path, parameter in model.named_parameters()
        ),
        graphs=tuple(graphs),
        provenance={
            "torch": torch.__version__.split("+")[0],
            **{f"{WHY_WITHOUT}{stage}": reason for stage, reason in left_out.items()},
        },
        buffers=_buffers(model),
    )


def _most_processes() -> int:
    return 1 if torch.cuda.is_initialized() else most_processes()  # CUDA does not survive a fork


def _outcomes(
    stages: Sequence[StageSpec], model: nn.Module, processes: int, costliest: Costliest | None
) -> Generator[OpGraph | Exception]:
    """Yield each stage's graph, or why it has none."""
    if processes > 1:
        yield from forked(
            lambda number: _capture_in_fork(stages[number], model, costliest), len(stages), processes=processes
        )
        return
    for stage in stages:
        try:
            graph = _capture_stage(stage, model, costliest)
        except CaptureError as error:
            yield error
        else:
            yield graph


def _capture_in_fork(stage: StageSpec, model: nn.Module, costliest: Costliest | None) -> OpGraph:
    torch.set_num_threads(1)  # the threads of torch's pools were not copied: to wait for them would never end
    return _capture_stage(stage, model, costliest)


def _modules(model: nn.Module) -> tuple[ModuleSpec, ...]:
    owners: dict[str, list[str]] = {}
    for path, _ in model.named_parameters():
        owners.setdefault(path.rpartition(".")[0], []).append(path)
    return tuple(
        ModuleSpec(path=path, class_name=type(module).__name__, parameters=tuple(owners.get(path, ())))
        for path, module in all_paths(model)
    )


def _buffers(model: nn.Module) -> tuple[BufferSpec, ...]:
    """Return the buffers of all modules, whether a stage reads them or not; memory that several share counts once."""
    known = {_memory(parameter) for parameter in model.parameters()}
    buffers: list[BufferSpec] = []
    for path, buffer in model.named_buffers():
        memory, size = _memory(buffer), buffer.element_size()
        stored = buffer.numel() if memory is None else buffer.untyped_storage().nbytes() // size
        shared = memory is not None and memory in known
        known.add(memory)
        floating = buffer.is_floating_point()
        buffers.append(BufferSpec(name=path, elements=0 if shared else stored, itemsize=size, is_floating=floating))
    return tuple(buffers)


def _memory(tensor: torch.Tensor) -> int | None:
    """Return what tells a tensor's memory from another's, though it hold no data; None for one without a storage."""
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] - meta tensors have no address
    except NotImplementedError:  # a sparse tensor
        return None


def _capture_stage(stage: StageSpec, model: nn.Module, costliest: Costliest | None) -> OpGraph:
    if stage.left_out:
        raise CaptureError(f"stage {stage.name!r} cannot be captured: {stage.left_out}")
    return graph_of(stage, model, exported(stage, model), costliest)
