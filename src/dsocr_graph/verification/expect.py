"""What a captured graph says of a run at given sizes: module calls, edges and the tensors that pass between modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from attrs import frozen

from dsocr_graph.ir import OpCall, OpGraph, Role, TensorSpec
from dsocr_graph.timing.operands import TORCH_DTYPES
from dsocr_graph.verification.observe import Sized
from modelmeter.dim_binding import bind


@frozen(kw_only=True)
class Boundary:
    """The tensors that pass into or out of a module, and those of them that belong to the KV cache."""

    tensors: frozenset[Sized]
    cached: frozenset[Sized] = frozenset()


@frozen(kw_only=True)
class Expected:
    """What the graph says. Modules are named by the first of their paths."""

    entered: frozenset[str]  # modules that were called while the graph was captured
    edges: Counter[tuple[str, str]]
    reads: Mapping[str, Boundary]  # made outside a module and read in it, weights left out
    leaves: Mapping[str, Boundary]  # made in a module and read outside it, or a result of the stage
    made: Mapping[str, frozenset[Sized]]  # all that is made in a module


def expect(
    graph: OpGraph, first_paths: Mapping[str, str], bindings: Mapping[str, int], *, same: Collection[int] = ()
) -> Expected:
    """Return what a graph says of a run.

    Parameters
    ----------
    graph : OpGraph
        One stage as captured.
    first_paths : mapping of str to str
        Every path of every module -> the first path of the same module.
    bindings : mapping of str to int
        A size per dim of the graph.
    same : collection of int
        Calls, by index, that return an argument itself, such as a cast to the type that a tensor has: their result is
        no tensor of its own, though the tracer gives it a name.

    Raises
    ------
    UnboundDimError
        When a dim has no size.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from dsocr_graph.models.stage_spec import StageSpec
    >>> from dsocr_graph.tracing import capture
    >>> with torch.device("meta"):
    ...     model, x = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.empty(3, 4)
    >>> stage = StageSpec(name="forward", description="", module=model, inputs=(x,))
    >>> (graph,) = capture(model, [stage], name="toy", variant={}).graphs
    >>> said = expect(graph, {"": "", "0": "0", "1": "1"}, {})
    >>> sorted(said.edges.items()), said.reads["1"].tensors
    ([(('', '0'), 1), (('', '1'), 1)], frozenset({((3, 2), 'float32')}))
    """
    chains = {call.index: called_modules(call, first_paths) for call in graph.calls}
    origins = _origins(graph, same)
    makers = {result: call for call in graph.calls if call.index not in same for result in call.results}
    passes = _Passes(graph, bindings)
    entries: set[tuple[str, str, str, int]] = set()
    for call in graph.calls:
        entries |= _entries(call, first_paths)
        for read in call.reads:
            tensor = origins[read.id]
            if not tensor.is_weight:
                maker = makers.get(tensor.id)
                passes.add(tensor, chains[maker.index] if maker else (), chains[call.index])
    for item in graph.outputs:
        tensor = origins[item]
        maker = makers.get(tensor.id)
        passes.add(tensor, chains[maker.index] if maker else (), ())
    made: dict[str, set[Sized]] = {}
    for item, call in makers.items():
        for path in chains[call.index]:
            made.setdefault(path, set()).add(passes.sized(graph.tensors[item]))
    return Expected(
        entered=frozenset(path for chain in chains.values() for path in chain),
        edges=Counter((caller, called) for caller, called, _, _ in entries),
        reads=passes.boundaries(passes.into),
        leaves=passes.boundaries(passes.out_of),
        made={path: frozenset(sizes) for path, sizes in made.items()},
    )


def called_modules(call: OpCall, first_paths: Mapping[str, str]) -> tuple[str, ...]:
    """Return the modules that were called around a call, the outermost first; those only reached into are left out."""
    return tuple(first_paths[frame.path] for frame in call.scope if frame.entered)


def _origins(graph: OpGraph, same: Collection[int]) -> dict[int, TensorSpec]:
    """Return, by the id of each tensor, the tensor that it is another name of, or itself."""
    origins = {tensor.id: tensor for tensor in graph.tensors}
    for call in graph.calls:
        if call.index in same:
            (returned, *_) = call.reads
            origins.update(dict.fromkeys(call.results, origins[returned.id]))
    return origins


def bound_sizes(tensors: Iterable[TensorSpec], bindings: Mapping[str, int]) -> tuple[Sized, ...]:
    """Return shape and type of some tensors of a graph at given sizes.

    Raises
    ------
    UnboundDimError
        When a dim has no size.
    """
    return tuple(
        (
            tuple(int(bind(size, bindings)) for size in tensor.shape),
            str(TORCH_DTYPES[tensor.dtype]).removeprefix("torch."),
        )
        for tensor in tensors
    )


def _entries(call: OpCall, first_paths: Mapping[str, str]) -> set[tuple[str, str, str, int]]:
    """Return caller, called, the path by which and number of the call, of every module around an operator."""
    entries: set[tuple[str, str, str, int]] = set()
    caller = ""
    for frame in call.scope:
        if frame.entered and frame.path:
            called = first_paths[frame.path]
            entries.add((caller, called, frame.path, frame.call))  # calls are numbered by path
            caller = called
    return entries


class _Passes:
    """Collects the tensors that pass into and out of each module."""

    def __init__(self, graph: OpGraph, bindings: Mapping[str, int]) -> None:
        self.into: dict[str, set[int]] = {}
        self.out_of: dict[str, set[int]] = {}
        self._graph = graph
        self._bindings = bindings

    def add(self, tensor: TensorSpec, source: tuple[str, ...], target: tuple[str, ...]) -> None:
        """Note that a tensor made by one module is read by another; each with what is around it."""
        for path in target:
            if path not in source:
                self.into.setdefault(path, set()).add(tensor.id)
        for path in source:
            if path not in target:
                self.out_of.setdefault(path, set()).add(tensor.id)

    def sized(self, tensor: TensorSpec) -> Sized:
        (size,) = bound_sizes((tensor,), self._bindings)
        return size

    def boundaries(self, passed: Mapping[str, set[int]]) -> dict[str, Boundary]:
        found: dict[str, Boundary] = {}
        for path, items in passed.items():
            tensors = [self._graph.tensors[item] for item in items]
            cached = frozenset(self.sized(tensor) for tensor in tensors if tensor.role is Role.KV_CACHE)
            found[path] = Boundary(tensors=frozenset(map(self.sized, tensors)), cached=cached)
        return found
