"""Group: an op graph by nn.Module scope into a call graph, repeated modules folded; networkx lives here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import networkx as nx
from attrs import field, frozen

from dsocr_graph.ir import CapturedModel, ModuleSpec, OpCall, OpGraph, ParameterSpec, TensorRef, TensorSpec
from modelmeter.dim_text import to_text
from modelmeter.dims import Dim, product, total

_CONTAINERS = frozenset({"ModuleList", "ModuleDict"})


@frozen(kw_only=True)
class ScopeNode:
    """A module of the call graph: one module path, or several of one structure folded."""

    id: str  # path with index patterns, such as "model.layers.[1-11].mlp"; "" is the root
    class_name: str
    parent: str | None
    paths: tuple[str, ...]  # the folded module paths; the first one stands for all
    series: int  # instances in series under one parent: `for N`
    calls: Mapping[str, int]  # per stage, all instances together
    parallel: Mapping[str, int]  # calls of one instance by its caller, per stage: `parfor N`
    parameters: int  # own elements, all instances together
    parameter_bytes: int
    buffer_bytes: int  # of its own buffers, all instances together
    fan_in: int  # nodes outside it whose results it or its children read
    fan_out: int  # nodes outside it that read its or its children's results


@frozen(kw_only=True)
class ScopedCall:
    """An ATen call of a node; the same call of folded instances counts here."""

    node: str
    stage: str
    name: str  # unique among the calls of the node in the stage
    call: OpCall  # of the first instance
    indices: tuple[int, ...]  # positions of all of them in the stage's graph


@frozen(kw_only=True)
class ScopeEdge:
    """Tensors that pass between nodes."""

    stage: str
    source: str
    target: str
    tensors: int
    bytes: Dim


@frozen(kw_only=True)
class CallGraph:
    """A captured model grouped by module."""

    captured: CapturedModel = field(repr=False)
    nodes: tuple[ScopeNode, ...]  # parents before children
    calls: tuple[ScopedCall, ...]  # stage by stage, in order of first execution
    edges: tuple[ScopeEdge, ...]
    ids: Mapping[str, str] = field(repr=False)  # module path -> node id

    def node(self, identifier: str) -> ScopeNode:
        """Return a node by id.

        Raises
        ------
        KeyError
            When there is no such node.
        """
        for node in self.nodes:
            if node.id == identifier:
                return node
        raise KeyError(f"no module {identifier!r} in the call graph of {self.captured.name}")


def group_by_module(captured: CapturedModel) -> CallGraph:
    """Group the calls of a captured model by the module whose forward runs them.

    Siblings in a list are folded when their whole subtrees agree: classes, parameter shapes, and every operator with
    its shapes, in every stage. The id of a folded node says which indices it stands for.

    Parameters
    ----------
    captured : CapturedModel
        The model as captured.

    Returns
    -------
    CallGraph
        Nodes with call counts and fans, the calls of each, and the tensors between them.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from dsocr_graph.models.stage_spec import StageSpec
    >>> from dsocr_graph.tracing import capture
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    ...     stage = StageSpec(name="forward", description="", module=model, inputs=(torch.empty(2, 4),))
    >>> graph = group_by_module(capture(model, [stage], name="toy", variant={}))
    >>> [(node.id, node.series, dict(node.calls)) for node in graph.nodes]
    [('', 1, {'forward': 1}), ('[0-1]', 2, {'forward': 2})]
    """
    tree = _Tree(captured)
    ids = tree.ids()
    groups: dict[str, list[str]] = {}
    for module in captured.modules:
        groups.setdefault(ids[module.path], []).append(module.path)
    edges = tuple(edge for graph in captured.graphs for edge in _edges(graph, ids))
    fans = tree.fans(ids, edges)
    nodes = tuple(tree.node(identifier, paths, ids, groups, fans) for identifier, paths in groups.items())
    calls = tuple(call for graph in captured.graphs for call in _scoped_calls(graph, ids, groups))
    return CallGraph(captured=captured, nodes=nodes, calls=calls, edges=edges, ids=ids)


def call_graph(graph: CallGraph) -> nx.MultiDiGraph[str]:
    """Return the call graph in networkx: nodes by id, one edge per stage and pair of nodes.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from dsocr_graph.models.stage_spec import StageSpec
    >>> from dsocr_graph.tracing import capture
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    ...     stage = StageSpec(name="forward", description="", module=model, inputs=(torch.empty(2, 4),))
    >>> list(call_graph(group_by_module(capture(model, [stage], name="toy", variant={}))).edges)
    [('0', '1', 'forward')]
    """
    result: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=graph.captured.name)
    result.add_nodes_from(node.id for node in graph.nodes)
    for edge in graph.edges:
        result.add_edge(edge.source, edge.target, key=edge.stage, tensors=edge.tensors)
    return result


class _Tree:
    """The module tree with the calls of each module, and what makes two subtrees equal."""

    def __init__(self, captured: CapturedModel) -> None:
        self._captured = captured
        self._specs: dict[str, ModuleSpec] = {module.path: module for module in captured.modules}
        self._parameters: dict[str, ParameterSpec] = {item.name: item for item in captured.parameters}
        self._buffer_bytes: Counter[str] = Counter()
        for buffer in captured.buffers:
            self._buffer_bytes[buffer.name.rpartition(".")[0]] += buffer.bytes
        self._children: dict[str, list[str]] = {module.path: [] for module in captured.modules}
        for module in captured.modules:
            if module.path:
                self._children[self._parent(module.path)].append(module.path)
        self._own: dict[str, dict[str, list[OpCall]]] = {}
        self._entries: dict[str, dict[str, int]] = {}  # path -> stage -> calls
        for graph in captured.graphs:
            self._read(graph)
        self._signatures: dict[str, int] = {}
        self._interned: dict[Hashable, int] = {}

    def _parent(self, path: str) -> str:
        parent = path.rpartition(".")[0]
        while parent not in self._specs:
            parent = parent.rpartition(".")[0]
        return parent

    def _read(self, graph: OpGraph) -> None:
        for call in graph.calls:
            self._own.setdefault(call.module, {}).setdefault(graph.stage, []).append(call)
            for frame in call.scope:
                if not frame.entered and frame.class_name in _CONTAINERS:
                    continue
                counts = self._entries.setdefault(frame.path, {})
                counts[graph.stage] = max(counts.get(graph.stage, 0), frame.call + 1)

    def signature(self, path: str) -> int:
        """Return a number that two modules share when their subtrees are equal."""
        known = self._signatures.get(path)
        if known is not None:
            return known
        spec = self._specs[path]
        content: Hashable = (
            spec.class_name,
            tuple((name.rpartition(".")[2], self._parameters[name].shape) for name in spec.parameters),
            tuple(
                (stage, tuple(call_signature(call) for call in calls))
                for stage, calls in sorted(self._own.get(path, {}).items())
            ),
            tuple(sorted(self._entries.get(path, {}).items())),
            tuple((child.rpartition(".")[2], self.signature(child)) for child in self._children[path]),
        )
        number = self._interned.setdefault(content, len(self._interned))
        self._signatures[path] = number
        return number

    def ids(self) -> dict[str, str]:
        """Return the node id of every module path."""
        ids = {"": ""}
        for parent in self._specs:  # parents come before children
            children = self._children[parent]
            twins: dict[int, list[str]] = {}
            for child in children:
                if child.rpartition(".")[2].isdigit():
                    twins.setdefault(self.signature(child), []).append(child)
            for child in children:
                name = child[len(parent) + 1 :] if parent else child
                if name.isdigit():
                    group = twins[self.signature(child)]
                    name = index_pattern([int(twin.rpartition(".")[2]) for twin in group])
                ids[child] = f"{ids[parent]}.{name}" if ids[parent] else name
        return ids

    def fans(self, ids: Mapping[str, str], edges: Iterable[ScopeEdge]) -> nx.DiGraph[tuple[str, str]]:
        """Return what passes into and out of each node, its children included: edges ("in" or "out", node) -> other.

        Two ends inside a node are its own affair; a composite module that runs no operator itself has fans too.
        """
        parents = {ids[path]: ids[self._parent(path)] for path in self._specs if path}

        def around(identifier: str) -> list[str]:
            return [identifier, *(around(parents[identifier]) if identifier in parents else ())]

        fans: nx.DiGraph[tuple[str, str]] = nx.DiGraph()
        for edge in edges:
            source, target = around(edge.source), around(edge.target)
            fans.add_edges_from((("in", node), ("node", edge.source)) for node in target if node not in source)
            fans.add_edges_from((("out", node), ("node", edge.target)) for node in source if node not in target)
        return fans

    def node(
        self,
        identifier: str,
        paths: Sequence[str],
        ids: Mapping[str, str],
        groups: Mapping[str, Sequence[str]],
        fans: nx.DiGraph[tuple[str, str]],
    ) -> ScopeNode:
        spec = self._specs[paths[0]]
        parent = ids[self._parent(paths[0])] if paths[0] else None
        own = [self._parameters[name] for path in paths for name in self._specs[path].parameters]
        calls: Counter[str] = Counter()
        for path in paths:
            calls.update(self._entries.get(path, {}))
        return ScopeNode(
            id=identifier,
            class_name=spec.class_name,
            parent=parent,
            paths=tuple(paths),
            series=len(paths) // len(groups[parent]) if parent is not None else 1,
            calls=dict(calls),
            parallel={stage: count for stage, count in self._entries.get(paths[0], {}).items() if count > 1},
            parameters=sum(item.elements for item in own),
            parameter_bytes=sum(item.bytes for item in own),
            buffer_bytes=sum(self._buffer_bytes[path] for path in paths),
            fan_in=len(list(fans.successors(("in", identifier)))) if ("in", identifier) in fans else 0,
            fan_out=len(list(fans.successors(("out", identifier)))) if ("out", identifier) in fans else 0,
        )


def index_pattern(indices: Iterable[int]) -> str:
    """Write list indices as a pattern: one index plainly, several as ranges in brackets.

    Examples
    --------
    >>> index_pattern([0]), index_pattern([1, 2, 3]), index_pattern([0, 1, 3, 4, 6])
    ('0', '[1-3]', '[0-1,3-4,6]')
    """
    ordered = sorted(indices)
    if len(ordered) == 1:
        return str(ordered[0])
    ranges: list[list[int]] = []
    for index in ordered:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return "[" + ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges) + "]"


def call_signature(call: OpCall) -> Hashable:
    """Return what two calls share when they cost the same: operator, scalars, and every operand's shape and layout."""
    return (
        call.op,
        call.overload,
        call.function,
        tuple((name, _argument_text(call, value)) for name, value in call.arguments.items()),
        tuple(_tensor_text(tensor) for tensor in call.writes),
        call.is_view,
        call.assumption,
    )


def _argument_text(call: OpCall, value: object) -> str:
    if isinstance(value, TensorRef):
        return _tensor_text(call.tensors[value.id])
    if isinstance(value, tuple):
        return "(" + ",".join(_argument_text(call, item) for item in value) + ")"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, bool | float | str) or value is None:
        return repr(value)
    return to_text(value)  # pyright: ignore[reportArgumentType] - what is left is a Dim


def _tensor_text(tensor: TensorSpec) -> str:
    shape = ",".join(to_text(size) for size in tensor.shape)
    strides = ",".join(to_text(stride) for stride in tensor.strides)
    return f"{tensor.dtype.value}[{shape}|{strides}]{'w' if tensor.is_weight else ''}"


def _scoped_calls(graph: OpGraph, ids: Mapping[str, str], groups: Mapping[str, Sequence[str]]) -> Iterable[ScopedCall]:
    """Fold equal calls: those at the same place of folded instances, and those of a module called again."""
    own: dict[str, list[OpCall]] = {}
    for call in graph.calls:
        own.setdefault(call.module, []).append(call)
    folded: list[ScopedCall] = []
    for identifier, paths in groups.items():
        rows = [own.get(path, []) for path in paths]
        names: Counter[str] = Counter()
        for place in _places(rows[0]):
            call = rows[0][place[0]]
            base = call.op.partition("::")[2]
            number = names[base]
            names[base] += 1
            folded.append(
                ScopedCall(
                    node=identifier,
                    stage=graph.stage,
                    name=f"{base}.{number}" if number else base,
                    call=call,
                    indices=tuple(row[position].index for row in rows for position in place),
                )
            )
    return sorted(folded, key=lambda scoped: scoped.call.index)


def _places(calls: Sequence[OpCall]) -> list[list[int]]:
    """Return the positions of each call of a module; calls repeated by a further call of the module go together."""
    rounds: dict[int, list[int]] = {}
    for position, call in enumerate(calls):
        rounds.setdefault(call.scope[-1].call, []).append(position)
    if len(rounds) == 1:
        return [[position] for position in range(len(calls))]
    by_content: dict[Hashable, list[list[int]]] = {}
    for positions in rounds.values():
        content = tuple(call_signature(calls[position]) for position in positions)
        by_content.setdefault(content, []).append(positions)
    return [list(place) for equal in by_content.values() for place in zip(*equal, strict=True)]


def _edges(graph: OpGraph, ids: Mapping[str, str]) -> list[ScopeEdge]:
    """Return the tensors that pass from node to node in one run of a stage; views pass through."""
    flow: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    writer: dict[int, OpCall] = {}
    for call in graph.calls:
        if call.is_view:
            continue
        for tensor in call.reads:
            source = writer.get(tensor.storage)
            if source is not None and source.module != call.module:
                flow.add_edge(ids[source.module], ids[call.module], size=_bytes(tensor))
        for tensor in call.writes:
            writer[tensor.storage] = call
    sizes: dict[tuple[str, str], list[Dim]] = {}
    for source, target, size in flow.edges(data="size"):
        sizes.setdefault((source, target), []).append(size)
    return [
        ScopeEdge(stage=graph.stage, source=source, target=target, tensors=len(parts), bytes=total(parts))
        for (source, target), parts in sorted(sizes.items())
    ]


def _bytes(tensor: TensorSpec) -> Dim:
    return product((tensor.stored_elements, tensor.dtype.itemsize))
