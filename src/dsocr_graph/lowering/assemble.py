"""Lower a call graph: every call to a layer, the layers to an AnalyticModel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import sympy
from attrs import frozen

from dsocr_graph.errors import MissingLoweringError
from dsocr_graph.ir import Argument, CapturedModel, OpCall, OpGraph, Role, TensorRef
from dsocr_graph.liveness import peaks
from dsocr_graph.lowering.category import category_of
from dsocr_graph.lowering.fusion import fused_bytes
from dsocr_graph.lowering.registry import NO_RULE, Approximation, Unsupported, is_free, layer_of, operands
from dsocr_graph.scopes import CallGraph, ScopedCall, call_signature
from modelmeter.dim_text import to_text
from modelmeter.dims import LEGEND, LEGEND_WITHOUT_CACHE, Dim, total
from modelmeter.dtypes import DType
from modelmeter.layers import BaseLayer, Unclassified
from modelmeter.model import AnalyticModel, Edge, Exactness, FreeOps, Leaf, ModuleNode, Stage
from modelmeter.signature import Signature, Size, SizeArgument, TensorArgument, Value

Record = TypeVar("Record", Leaf, FreeOps)


@frozen(kw_only=True)
class Lowered:
    """What became of one call."""

    layer: BaseLayer | None  # None: the call moves nothing
    exactness: Exactness
    note: str = ""


@frozen(kw_only=True)
class Placed(Generic[Record]):
    """A record of the model, and the positions of its calls in the stage's graph."""

    record: Record
    indices: tuple[int, ...]


def lower(
    graph: CallGraph,
    *,
    allow_unclassified: bool = False,
    descriptions: Mapping[str, str] | None = None,
    load_dtype: DType | None = None,
    limits: Mapping[str, int] | None = None,
) -> AnalyticModel:
    """Lower every call of a call graph to an analytic layer.

    Parameters
    ----------
    graph : CallGraph
        A captured model grouped by module.
    allow_unclassified : bool
        Keep calls without a rule as `unclassified` layers with their bytes, instead of raising.
    descriptions : mapping of str to str
        What each stage does, by name.
    load_dtype : DType, optional
        Type that all weights are in while the model is loaded, before they are cast. None: each in its own.
    limits : mapping of str to int
        The largest size of each dim that has one.

    Raises
    ------
    MissingLoweringError
        When calls have no rule; the error lists every operator, its count and where it comes first.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.scopes import group_by_module
    >>> from dsocr_graph.models.stage_spec import StageSpec
    >>> from dsocr_graph.tracing import capture
    >>> with torch.device("meta"):
    ...     module, x = torch.nn.Linear(4, 2), torch.empty(3, 4)
    >>> stage = StageSpec(name="forward", description="", module=module, inputs=(x,))
    >>> model = lower(group_by_module(capture(module, [stage], name="toy", variant={})))
    >>> [(leaf.op, leaf.layer.matmul_flops()) for leaf in model.leaves]
    [('aten::linear', 48)]
    """
    captured = graph.captured
    lowered = _lower_calls(captured, allow_unclassified=allow_unclassified)
    fused = {
        stage.stage: fused_bytes(
            stage, {index: item.layer for index, item in lowered[stage.stage].items() if item.layer is not None}
        )
        for stage in captured.graphs
    }
    leaves: list[Placed[Leaf]] = []
    views: dict[tuple[str, str, str], list[int]] = {}  # module, stage and operator -> positions
    for scoped in graph.calls:
        result = lowered[scoped.stage][scoped.call.index]
        if result.layer is None:
            views.setdefault((scoped.node, scoped.stage, scoped.call.op), []).extend(scoped.indices)
        else:
            leaves.extend(_leaves(scoped, result, fused[scoped.stage]))
    free = [
        Placed(record=FreeOps(module=module, stage=stage, op=op, calls=len(indices)), indices=tuple(indices))
        for (module, stage, op), indices in views.items()
    ]
    parameter_bytes = sum(parameter.bytes for parameter in captured.parameters)
    elements = sum(parameter.elements for parameter in captured.parameters)
    loaded = parameter_bytes if load_dtype is None else elements * load_dtype.itemsize
    stages = tuple(
        _stage(stage, graph, (descriptions or {}).get(stage.stage, ""), _schedule(stage.stage, [*leaves, *free]))
        for stage in captured.graphs
    )
    legend = LEGEND if any(stage.kv_cache_text != "0" for stage in stages) else LEGEND_WITHOUT_CACHE
    return AnalyticModel(
        name=captured.name,
        variant=captured.variant,
        dims={name: legend.get(name, "size") for stage in captured.graphs for name in stage.dims},
        parameters=elements,
        parameter_bytes=parameter_bytes,
        load_bytes=loaded + sum(buffer.bytes_in(load_dtype) for buffer in captured.buffers),
        stages=stages,
        modules=tuple(_module(graph)),
        leaves=tuple(placed.record for placed in leaves),
        free=tuple(placed.record for placed in free),
        edges=tuple(
            Edge(stage=edge.stage, source=edge.source, target=edge.target, tensors=edge.tensors, bytes=edge.bytes)
            for edge in graph.edges
        ),
        provenance=captured.provenance,
        limits=dict(limits or {}),
    )


def _lower_calls(captured: CapturedModel, *, allow_unclassified: bool) -> dict[str, dict[int, Lowered]]:
    """Lower every call of every stage; equal calls once."""
    known: dict[Hashable, Lowered] = {}
    missing: dict[tuple[str, str], list[OpCall]] = {}  # by operator and reason
    result: dict[str, dict[int, Lowered]] = {}
    for graph in captured.graphs:
        stage = result.setdefault(graph.stage, {})
        for call in graph.calls:
            key = call_signature(call)
            if key not in known:
                known[key] = _lower_call(call)
            item = known[key]
            if item.exactness is Exactness.UNCLASSIFIED:
                missing.setdefault((call.op, item.note), []).append(call)
            stage[call.index] = item
    if missing and not allow_unclassified:
        raise MissingLoweringError(_missing_message(missing))
    return result


def _missing_message(missing: Mapping[tuple[str, str], list[OpCall]]) -> str:
    rows = [
        f"  {op}  x{len(calls)}, first in {calls[0].module or '(root)'}" + ("" if reason == NO_RULE else f": {reason}")
        for (op, reason), calls in sorted(missing.items())
    ]
    count = len({op for op, _ in missing})
    return "\n".join(
        [
            f"no lowering for {count} op{'s' if count > 1 else ''}:",
            *rows,
            'add a rule: a function with @dsocr_graph.lowering.lowers("NAME"), in dsocr_graph/lowering/ or in the file '
            "of your model; or run with --allow-unclassified to report them with their bytes and without FLOPs",
        ]
    )


def _lower_call(call: OpCall) -> Lowered:
    if is_free(call):
        return Lowered(layer=None, exactness=Exactness.EXACT)
    made = layer_of(call)
    if isinstance(made, Unsupported):  # its bytes are known, its FLOPs are not
        op = call.op.partition("::")[2]
        layer = Unclassified(op=op, reads=operands(call.reads), writes=operands(call.writes))
        return Lowered(layer=layer, exactness=Exactness.UNCLASSIFIED, note=made.reason)
    note = made.note if isinstance(made, Approximation) else ""
    layer = made.layer if isinstance(made, Approximation) else made
    note = "; ".join(filter(None, (note, call.assumption if layer is not None else "")))
    return Lowered(layer=layer, exactness=Exactness.APPROXIMATED if note else Exactness.EXACT, note=note)


def _leaves(scoped: ScopedCall, lowered: Lowered, fused: Mapping[int, Dim]) -> list[Placed[Leaf]]:
    """Return one leaf per distinct fused traffic of a folded call; as a rule there is one."""
    layer = lowered.layer
    assert layer is not None
    counts: dict[str, list[int]] = {}
    for index in scoped.indices:
        counts.setdefault(to_text(fused[index]), []).append(index)
    signature = signature_of(scoped.call)
    return [
        Placed(
            record=Leaf(
                id=f"{scoped.node}/{scoped.name}" + (f"~{number}" if number else ""),
                module=scoped.node,
                stage=scoped.stage,
                op=scoped.call.op,
                function=scoped.call.function,
                category=category_of(layer, scoped.call),
                layer=layer,
                calls=len(indices),
                fused_bytes=fused[indices[0]],
                exactness=lowered.exactness,
                note=lowered.note,
                signature=signature,
            ),
            indices=tuple(indices),
        )
        for number, indices in enumerate(counts.values())
    ]


def signature_of(call: OpCall) -> Signature:
    """Return a call as a kernel sees it, its dims as text.

    Sizes that a call was given as arguments, such as the end of a range, are kept as text too.
    """
    return Signature(
        op=call.op,
        overload=call.overload,
        arguments={name: _argument(call, value) for name, value in call.arguments.items()},
    )


def _argument(call: OpCall, value: Argument) -> Value:
    if isinstance(value, TensorRef):
        tensor = call.tensors[value.id]
        return TensorArgument(
            dtype=tensor.dtype,
            shape=tuple(map(_size, tensor.shape)),
            strides=tuple(map(_size, tensor.strides)),
            weight=tensor.is_weight,
        )
    if isinstance(value, tuple):
        return tuple(_argument(call, item) for item in value)
    return SizeArgument(text=to_text(value)) if isinstance(value, sympy.Expr) else value


def _size(size: Dim) -> Size:
    return to_text(size) if isinstance(size, sympy.Expr) else int(size)


def _schedule(stage: str, records: Sequence[Placed[Leaf] | Placed[FreeOps]]) -> tuple[int, ...]:
    """Return which record each call of a stage belongs to, in the order of the calls."""
    own = [placed.indices for placed in records if placed.record.stage == stage]
    by_call = {index: position for position, indices in enumerate(own) for index in indices}
    return tuple(by_call[index] for index in sorted(by_call))


def _module(graph: CallGraph) -> list[ModuleNode]:
    return [
        ModuleNode(
            id=node.id,
            class_name=node.class_name,
            parent=node.parent,
            instances=len(node.paths),
            series=node.series,
            parallel=node.parallel,
            calls=node.calls,
            parameters=node.parameters,
            parameter_bytes=node.parameter_bytes,
            buffer_bytes=node.buffer_bytes,
            fan_in=node.fan_in,
            fan_out=node.fan_out,
        )
        for node in graph.nodes
    ]


def _stage(stage: OpGraph, graph: CallGraph, description: str, schedule: tuple[int, ...]) -> Stage:
    parameters = {parameter.name: parameter for parameter in graph.captured.parameters}
    used = {tensor.id for call in stage.calls for tensor in call.reads}
    names = {name for tensor, owners in stage.weights.items() if tensor in used for name in owners}
    cached = {stage.tensors[item].storage: stage.tensors[item] for item in stage.outputs}
    return Stage(
        name=stage.stage,
        description=description,
        dims=stage.dims,
        weight_bytes=sum(parameters[name].bytes for name in names),
        kv_cache_bytes=total(tensor.storage_bytes for tensor in cached.values() if tensor.role is Role.KV_CACHE),
        peaks=peaks(stage, lambda path: graph.ids[path]),
        schedule=schedule,
    )
