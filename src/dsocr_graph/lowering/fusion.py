"""Fused traffic: what is left when chains of pointwise operators and their producers keep intermediates on chip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dsocr_graph.ir import OpCall, OpGraph, TensorSpec
from modelmeter.dims import Dim, product, total
from modelmeter.layers import Activation, BaseLayer, DataMovement, Elementwise

_POINTWISE_MOVES = frozenset({"cast", "copy"})


def fused_bytes(graph: OpGraph, layers: Mapping[int, BaseLayer]) -> dict[int, Dim]:
    """Return the bytes that each call still moves once pointwise chains are fused.

    A pointwise call joins the kernel of the latest call that produced one of its operands, when the element counts
    agree, both belong to the same repeated unit of the model (such as one decoder layer), and every other operand
    existed before that kernel began. A tensor read inside the kernel that made it is not read from memory; one that
    no other kernel reads, and that is no result of the stage, is not written either.

    Parameters
    ----------
    graph : OpGraph
        One stage.
    layers : mapping of int to BaseLayer
        The layer of each call that moves data, by call index.

    Returns
    -------
    dict of int to Dim
        Bytes per call index.
    """
    producer: dict[int, int] = {}  # storage -> index of the call that wrote it last
    readers: dict[int, list[tuple[int, int, TensorSpec]]] = {}  # producing call -> (reader, storage, tensor)
    group: dict[int, int] = {}  # call -> first call of its kernel
    made: dict[int, TensorSpec] = {}  # call -> its first result
    for call in graph.calls:
        if call.index not in layers:
            continue
        reads = [(producer.get(tensor.storage), tensor) for tensor in call.reads]
        group[call.index] = call.index
        if _is_pointwise(layers[call.index]):
            home = _home(call, reads, group, made, graph.calls)
            group[call.index] = call.index if home is None else group[home]
        for source, tensor in reads:
            if source is not None:
                readers.setdefault(source, []).append((call.index, tensor.storage, tensor))
        for tensor in call.writes:
            producer[tensor.storage] = call.index
        made[call.index] = call.writes[0]
    kept = {graph.tensors[tensor].storage for tensor in graph.outputs}
    saved: dict[int, list[Dim]] = {}
    for source, uses in readers.items():
        _save(graph.calls[source], uses, group, kept, saved)
    return {
        index: total((layer.traffic().bytes, *(product((-1, part)) for part in _at_most(saved.get(index, []), layer))))
        for index, layer in layers.items()
    }


def _at_most(parts: Sequence[Dim], layer: BaseLayer) -> Sequence[Dim]:
    """Return no more parts than a copy has operands: copy_ names its target, which it overwrites and does not read."""
    return parts[: len(layer.reads) + len(layer.writes)] if isinstance(layer, DataMovement) else parts


def _is_pointwise(layer: BaseLayer) -> bool:
    if isinstance(layer, DataMovement):
        return layer.op in _POINTWISE_MOVES
    return isinstance(layer, Elementwise | Activation)


def _home(
    call: OpCall,
    reads: Iterable[tuple[int | None, TensorSpec]],
    group: Mapping[int, int],
    made: Mapping[int, TensorSpec],
    calls: Sequence[OpCall],
) -> int | None:
    """Return the producer whose kernel a pointwise call joins, if any."""
    sources = [source for source, _ in reads if source is not None]
    fitting = [
        source
        for source in sources
        if made[source].elements == call.writes[0].elements and _unit(calls[source]) == _unit(call)
    ]
    if not fitting:
        return None
    home = max(fitting)
    start = group[home]
    if any(group[source] != start and source >= start for source in sources):
        return None  # an operand is made after the kernel began, perhaps from its results
    return home


def _unit(call: OpCall) -> str:
    """Return the path of the innermost list item around a call: what a model repeats."""
    parts = call.module.split(".")
    last = max((position for position, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[: last + 1])


def _save(
    source: OpCall,
    uses: Sequence[tuple[int, int, TensorSpec]],
    group: Mapping[int, int],
    kept: set[int],
    saved: dict[int, list[Dim]],
) -> None:
    inside = [use for use in uses if group[use[0]] == group[source.index]]
    for reader, _, tensor in inside:
        saved.setdefault(reader, []).append(product((tensor.stored_elements, tensor.dtype.itemsize)))
    for tensor in source.writes:
        mine = [use for use in uses if use[1] == tensor.storage]
        if (
            mine
            and len(mine) == len([use for use in inside if use[1] == tensor.storage])
            and tensor.storage not in kept
        ):
            saved.setdefault(source.index, []).append(product((tensor.stored_elements, tensor.dtype.itemsize)))
