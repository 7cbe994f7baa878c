"""The captured graph, replayed on a run's inputs: what each of its calls dispatches, and the sizes of its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from dsocr_graph.ir import OpCall, OpGraph, TensorSpec
from dsocr_graph.timing.call_clocks import HostClock
from dsocr_graph.timing.operands import TORCH_DTYPES
from dsocr_graph.timing.replay import replay
from dsocr_graph.verification.observe import Dispatched, Sized, sized, tensors_in


@frozen(kw_only=True)
class ReplayedCall:
    """What one captured call did."""

    call: OpCall = field(repr=False)
    dispatched: Mapping[str, int]  # operators below autograd
    results: tuple[Sized, ...]


@frozen(kw_only=True)
class ReplayedGraph:
    """A graph, replayed."""

    calls: tuple[ReplayedCall, ...]
    results: tuple[Tensor, ...] = field(repr=False)
    lost_constants: tuple[str, ...]  # of the code, whose values nobody knows: zeros stood for them

    @property
    def same(self) -> frozenset[int]:
        """Indices of the calls that dispatched nothing: they return an argument itself."""
        return frozenset(item.call.index for item in self.calls if not item.dispatched)


def replay_observed(
    graph: OpGraph,
    module: nn.Module,
    inputs: list[Tensor],
    bindings: Mapping[str, int],
    *,
    constants: Sequence[Tensor] = (),
) -> ReplayedGraph:
    """Run a captured stage call by call and note what each call does.

    The decomposition of a composite operator is thereby observed, for the very operands, and needs no table.

    Parameters
    ----------
    graph : OpGraph
        One stage as captured.
    module : nn.Module
        The module that was captured, with weights.
    inputs : list of Tensor
        In the order of the stage's inputs; left empty.
    bindings : mapping of str to int
        A size per dim of the graph.
    constants : sequence of Tensor
        Those that the code made in a run, in order. A graph names its constants and does not keep their values; where
        they are as many, and of the same shapes and types, they are these.

    Raises
    ------
    ReplayError, UnboundDimError
        As `dsocr_graph.timing.replay.replay`.

    Examples
    --------
    >>> from dsocr_graph.models.stage_spec import StageSpec
    >>> from dsocr_graph.tracing import capture
    >>> x = torch.empty(3, 4, device="meta")
    >>> stage = StageSpec(name="forward", description="", module=nn.Linear(4, 2, device="meta"), inputs=(x,))
    >>> (graph,) = capture(stage.module, [stage], name="toy", variant={}).graphs
    >>> (linear,) = replay_observed(graph, nn.Linear(4, 2), [torch.ones(3, 4)], {}).calls
    >>> dict(linear.dispatched), linear.results
    ({'aten::t': 1, 'aten::addmm': 1}, (((3, 2), 'float32'),))
    """
    recorder = _Recorder()
    with _constants(graph, module, constants) as lost, recorder, Dispatched(recorder.note):
        replayed = replay(graph, module, inputs, bindings, HostClock(threads=torch.get_num_threads()))
    calls = tuple(
        ReplayedCall(call=call, dispatched=dispatched, results=results)
        for call, dispatched, results in zip(graph.calls, recorder.dispatched, recorder.results, strict=True)
    )
    return ReplayedGraph(calls=calls, results=replayed.outputs, lost_constants=lost)


class _Recorder(TorchFunctionMode):
    """Sees each call of an overload whole, and counts what is dispatched meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched: list[Counter[str]] = []
        self.results: list[tuple[Sized, ...]] = []

    def note(self, op: str, _given: Sequence[Tensor], _made: Sequence[Tensor]) -> None:
        """Count a dispatched operator for the call that runs; before the first one there is none."""
        if self.dispatched:
            self.dispatched[-1][op] += 1

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run a captured call; the replay makes no other calls of overloads."""
        if not isinstance(func, OpOverload):
            return func(*args, **(kwargs or {}))
        self.dispatched.append(Counter())
        result = func(*args, **(kwargs or {}))
        self.results.append(tuple(map(sized, tensors_in(result))))
        return result


@contextmanager
def _constants(graph: OpGraph, module: nn.Module, constants: Sequence[Tensor]) -> Generator[tuple[str, ...]]:
    """Let the module have the constants of its code, which the exporter made its own, while the context is open.

    A plain attribute is one of them, and has its value. Yields the names of those whose values are not known.
    """
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    missing = [tensor for tensor in graph.tensors if tensor.is_weight and tensor.name not in known]
    made = [tensor for tensor in missing if not hasattr(*_place(module, tensor.name))]
    fits = [_sized(tensor) for tensor in made] == list(map(sized, constants))
    values = dict(zip((tensor.name for tensor in made), constants if fits else map(_zeros, made), strict=True))
    attributes: list[tuple[nn.Module, str, Tensor]] = []
    for tensor in missing:
        owner, name = _place(module, tensor.name)
        if tensor.name not in values:
            values[tensor.name] = getattr(owner, name)
            attributes.append((owner, name, values[tensor.name]))
            delattr(owner, name)
        owner.register_buffer(name, values[tensor.name])
    try:
        yield () if fits else tuple(tensor.name for tensor in made)
    finally:
        for tensor in missing:
            delattr(*_place(module, tensor.name))
        for owner, name, value in attributes:
            setattr(owner, name, value)


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _sized(tensor: TensorSpec) -> Sized:
    return tuple(int(size) for size in tensor.shape), str(TORCH_DTYPES[tensor.dtype]).removeprefix("torch.")


def _zeros(tensor: TensorSpec) -> Tensor:
    return torch.zeros([int(size) for size in tensor.shape], dtype=TORCH_DTYPES[tensor.dtype])
