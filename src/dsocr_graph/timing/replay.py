"""Replay: a captured stage run call by call on real tensors, each call timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import sympy
import torch
from attrs import frozen
from torch import Tensor, nn
from torch._ops import OpOverload

from dsocr_graph.errors import ReplayError
from dsocr_graph.ir import Argument, OpCall, OpGraph, TensorRef
from dsocr_graph.liveness import lifetimes
from dsocr_graph.timing.aten import overload_of, plain_argument
from dsocr_graph.timing.call_clocks import CallClock
from modelmeter.dim_binding import bind

_Tensors = list[Tensor | None]  # by id; None before a tensor is made and after it is dropped


@frozen(kw_only=True)
class Replayed:
    """What a replay yields."""

    outputs: tuple[Tensor, ...]  # in the order of `OpGraph.outputs`
    call_seconds: tuple[float, ...]  # in the order of `OpGraph.calls`


@torch.no_grad()
def replay(
    graph: OpGraph, stage_module: nn.Module, inputs: list[Tensor], bindings: Mapping[str, int], clock: CallClock
) -> Replayed:
    """Run a captured stage call by call.

    The same operators meet the same operands in the same order as in the stage's own code, and every tensor is dropped
    when that code lets go of it, so that the results are equal and the allocator sees the same requests.

    Parameters
    ----------
    graph : OpGraph
        One stage as captured.
    stage_module : nn.Module
        The module that was captured, with real weights.
    inputs : list of Tensor
        In the order of the stage's inputs, on the device of the weights. The list is left empty: the replay alone
        decides when an input is freed.
    bindings : mapping of str to int
        A size per dim of the graph, those of `inputs`.
    clock : CallClock
        Told when each call begins.

    Raises
    ------
    ReplayError
        When the module has no tensor of a name in the graph, or the inputs are not those of the stage.
    UnknownOperatorError, OperatorArgumentError
        When this torch does not have an operator of the graph.
    UnboundDimError
        When a dim has no size.

    Examples
    --------
    >>> from dsocr_graph.models.stage_spec import StageSpec
    >>> from dsocr_graph.timing.call_clocks import HostClock
    >>> from dsocr_graph.tracing import capture
    >>> x = torch.empty(3, 4, device="meta")
    >>> stage = StageSpec(name="forward", description="", module=nn.Linear(4, 2, device="meta"), inputs=(x,))
    >>> (graph,) = capture(stage.module, [stage], name="toy", variant={}).graphs
    >>> real, x = nn.Linear(4, 2), torch.ones(3, 4)
    >>> replayed = replay(graph, real, [x], {}, HostClock(threads=1))
    >>> torch.equal(replayed.outputs[0], real(x)), len(replayed.call_seconds)
    (True, 1)
    """
    tensors = _place(graph, stage_module, inputs)
    steps = _steps(graph, bindings, clock.device)
    for step in steps:
        clock.begin()
        step.run(tensors)
    seconds = clock.end()
    return Replayed(outputs=tuple(cast("Tensor", tensors[item]) for item in graph.outputs), call_seconds=seconds)


_Operand = int | tuple[int | None, ...]  # id of a tensor, or of those of a list


@frozen(kw_only=True)
class _Step:
    """One call, ready but for its tensors."""

    function: OpOverload
    plain: Mapping[str, object]
    operands: Mapping[str, _Operand]
    results: tuple[int, ...]
    dropped: tuple[int, ...]  # tensors that nothing holds after the call

    def run(self, tensors: _Tensors) -> None:
        arguments = dict(self.plain)
        for name, operand in self.operands.items():
            if isinstance(operand, tuple):
                arguments[name] = [None if item is None else tensors[item] for item in operand]
            else:
                arguments[name] = tensors[operand]
        made: Any = self.function(**arguments)
        del arguments  # before the clock goes on: what is freed here is freed by the call
        if isinstance(made, Tensor):
            made = (made,)
        for item, tensor in zip(self.results, (part for part in made if part is not None), strict=True):
            tensors[item] = tensor
        del made
        for item in self.dropped:
            tensors[item] = None


def _steps(graph: OpGraph, bindings: Mapping[str, int], device: torch.device) -> list[_Step]:
    deaths = {life.tensor.storage: life.death for life in lifetimes(graph)}
    dropped: dict[int, list[int]] = {}
    for tensor in graph.tensors:
        if tensor.storage in deaths:  # weights are not, and stay
            dropped.setdefault(deaths[tensor.storage], []).append(tensor.id)
    return [_step(call, bindings, device, tuple(dropped.get(call.index, ()))) for call in graph.calls]


def _step(call: OpCall, bindings: Mapping[str, int], device: torch.device, dropped: tuple[int, ...]) -> _Step:
    function = overload_of(call.op, call.overload)
    operands = {name: ids for name, value in call.arguments.items() if (ids := _operand(value)) is not None}
    return _Step(
        function=function,
        plain={
            name: plain_argument(function, name, _bound(value, bindings), device)
            for name, value in call.arguments.items()
            if name not in operands
        },
        operands=operands,
        results=call.results,
        dropped=dropped,
    )


def _operand(value: Argument) -> _Operand | None:
    """Return the tensors that an argument stands for; None for a plain one."""
    if isinstance(value, TensorRef):
        return value.id
    if isinstance(value, tuple) and any(isinstance(item, TensorRef) for item in value):
        return tuple(item.id if isinstance(item, TensorRef) else None for item in value)
    return None


def _bound(value: Argument, bindings: Mapping[str, int]) -> object:
    if isinstance(value, tuple):
        return tuple(_bound(item, bindings) for item in value)
    return int(bind(value, bindings)) if isinstance(value, sympy.Expr) else value


def _place(graph: OpGraph, stage_module: nn.Module, inputs: list[Tensor]) -> _Tensors:
    """Return the weights and inputs by tensor id; the inputs move over."""
    if len(inputs) != len(graph.inputs):
        raise ReplayError(
            f"stage {graph.stage!r} takes {len(graph.inputs)} inputs, given are {len(inputs)}; give those that the "
            "stage was captured with, in the same order"
        )
    tensors: _Tensors = [None] * len(graph.tensors)
    weights: dict[str, Tensor] = {
        **dict(stage_module.named_parameters(remove_duplicate=False)),
        **dict(stage_module.named_buffers(remove_duplicate=False)),
    }
    for tensor in graph.tensors:
        if not tensor.is_weight:
            continue
        if tensor.name not in weights:
            raise ReplayError(
                f"stage {graph.stage!r} reads {tensor.name}, which {type(stage_module).__name__} does not have; give "
                "the module that was captured, of the same configuration"
            )
        tensors[tensor.id] = weights[tensor.name]
    for item in reversed(graph.inputs):
        tensors[item] = inputs.pop()
    return tensors
