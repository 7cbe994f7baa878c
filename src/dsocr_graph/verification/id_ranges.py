"""Within what the ids in a stage's inputs must lie: the rows, places or classes of what operators read by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import frozen
from torch import Tensor

from dsocr_graph.ir import OpCall, OpGraph
from modelmeter.dim_binding import bind
from modelmeter.dims import Dim


@frozen(kw_only=True)
class IdRange:
    """What the ids of an input point into."""

    op: str  # that reads by them
    size: int  # ids are 0 to size - 1
    table: bool  # whether that is an embedding's table, any rows of which will do


@frozen(kw_only=True)
class _Reader:
    ids: str  # argument of the operator
    size: Callable[[OpCall], Dim]


def _rows(call: OpCall) -> Dim:
    return call.tensor("weight").shape[0]


def _along_axis(call: OpCall) -> Dim:
    shape = call.tensor("self").shape
    return shape[call.integer("dim", 0)] if shape else 1


def _classes(call: OpCall) -> Dim:
    shape = call.tensor("self").shape
    return shape[min(1, len(shape) - 1)]


_TABLES = frozenset({"aten::embedding", "aten::embedding_bag", "aten::_embedding_bag"})

# By the schemas of ATen; a loss has its classes in the second axis, or the only one (torch.nn.CrossEntropyLoss).
_READERS: Mapping[str, _Reader] = {
    **dict.fromkeys(_TABLES, _Reader(ids="indices", size=_rows)),
    **dict.fromkeys(("aten::index_select", "aten::gather"), _Reader(ids="index", size=_along_axis)),
    **dict.fromkeys(
        ("aten::cross_entropy_loss", "aten::nll_loss_nd", "aten::nll_loss"), _Reader(ids="target", size=_classes)
    ),
}


def id_ranges(graph: OpGraph, bindings: Mapping[str, int]) -> dict[int, IdRange]:
    """Return, by storage, the narrowest range that operators allow the ids in it.

    Ids that an operator computes from others have a storage of their own, and say nothing of these.

    Raises
    ------
    UnboundDimError
        When a dim has no size.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.user_model import user_model
    >>> from dsocr_graph.tracing import capture
    >>> given = user_model(torch.nn.Embedding(3, 4), torch.zeros(7, dtype=torch.int64))
    >>> (graph,) = capture(given.module, given.stages, name="toy", variant={}).graphs
    >>> list(id_ranges(graph, {}).values())
    [IdRange(op='aten::embedding', size=3, table=True)]
    """
    found: dict[int, IdRange] = {}
    for call in graph.calls:
        reader = _READERS.get(call.op)
        if reader is None:
            continue
        ids = call.tensor(reader.ids)
        if ids.dtype.is_floating:  # the probabilities of classes, which a loss takes as well
            continue
        storage = ids.storage
        size = int(bind(reader.size(call), bindings))
        if storage not in found or size < found[storage].size:
            found[storage] = IdRange(op=call.op, size=size, table=call.op in _TABLES)
    return found


def ids_beyond(graph: OpGraph, bindings: Mapping[str, int], tensors: Sequence[Tensor]) -> str | None:
    """Return in words which of a stage's inputs hold ids past their range; None where none does.

    Parameters
    ----------
    graph : OpGraph
        The stage as captured.
    bindings : mapping of str to int
        A size per dim of the graph.
    tensors : sequence of Tensor
        The inputs, flat and in the order of the graph.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.user_model import user_model
    >>> from dsocr_graph.tracing import capture
    >>> given = user_model(torch.nn.Embedding(3, 4), torch.zeros(7, dtype=torch.int64))
    >>> (graph,) = capture(given.module, given.stages, name="toy", variant={}).graphs
    >>> ids_beyond(graph, {}, [torch.tensor([0, 3])])
    'input holds 3, and aten::embedding takes ids from 0 to 2 there'
    >>> ids_beyond(graph, {}, [torch.tensor([0, 2])]) is None
    True
    """
    ranges = id_ranges(graph, bindings)
    found: list[str] = []
    for item, tensor in zip(graph.inputs, tensors, strict=True):
        spec = graph.tensors[item]
        allowed = ranges.get(spec.storage)
        if allowed is not None and tensor.numel() and int(tensor.max()) >= allowed.size:
            found.append(
                f"{spec.name} holds {int(tensor.max())}, and {allowed.op} takes ids from 0 to {allowed.size - 1} there"
            )
    return "; ".join(found) or None
