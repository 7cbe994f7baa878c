"""Grouping: the published modules in the call graph, call counts as hooks see them, and toy models that are awkward."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from dsocr_graph.lowering import lower
from dsocr_graph.models.deepseek_ocr import StageModule, stage_inputs
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import CallGraph, ScopeNode, call_graph, group_by_module
from dsocr_graph.tracing import capture
from modelmeter.dim_binding import bind

SIZES: dict[str, dict[str, int]] = {
    "vision_global": {},
    "vision_local": {"H": 2, "W": 2},
    "prefill": {"B": 2, "S": 83, "N": 73},
    "decode": {"B": 2, "T": 83},
}


def expand(identifier: str) -> list[str]:
    """Return the module paths that a node id with index patterns stands for."""
    match = re.search(r"\[([0-9,-]+)\]", identifier)
    if match is None:
        return [identifier]
    indices: list[int] = []
    for part in match.group(1).split(","):
        low, _, high = part.partition("-")
        indices.extend(range(int(low), int(high or low) + 1))
    return [path for index in indices for path in expand(identifier.replace(match.group(0), str(index), 1))]


@pytest.fixture(scope="module")
def published(compile_stages: Any) -> CallGraph:
    """Return the call graph of the variant whose modules the published list names."""
    return compile_stages("vision_global", "prefill", attention="flash_attention_2").grouped


@pytest.fixture(scope="module")
def complete(compile_stages: Any) -> CallGraph:
    """Return the call graph of all four stages."""
    return compile_stages(*SIZES).grouped


TARGETS = json.loads((Path(__file__).parent.parent / "data" / "target_operators.json").read_text(encoding="utf-8"))


def _class_name(node: ScopeNode) -> str:
    # The list of experts is a subclass of ModuleList that runs them in one kernel.
    return "ModuleList" if node.class_name == "DeepseekV2Experts" else node.class_name


def _around(graph: CallGraph, node: ScopeNode) -> set[str]:
    """Return the classes above a node, up to DeepseekOCRModel."""
    found: set[str] = set()
    while node.parent:
        node = graph.node(node.parent)
        found.add(_class_name(node))
    return found


def test_the_published_list_has_29_classes() -> None:
    """The list that the call graph is held against has 29 classes."""
    assert len(TARGETS["classes"]) == 29


@pytest.mark.parametrize("target", TARGETS["classes"], ids=lambda target: target["class_name"])
def test_published_modules_are_in_the_call_graph(target: dict[str, Any], published: CallGraph) -> None:
    """Every published class is there at its paths, below and above the classes that the published list names."""
    of_class = [node for node in published.nodes if _class_name(node) == target["class_name"]]
    paths = {path for node in of_class for path in node.paths}
    wanted = {f"model.{path}" if path else "model" for path in target["paths"]}
    assert wanted <= paths
    above = set[str]().union(*(_around(published, node) for node in of_class))
    below = {_class_name(node) for node in published.nodes if any(node.id.startswith(f"{one.id}.") for one in of_class)}
    # The published list names no parent or child that runs nothing, and leaves out some lists.
    assert set(target["parents"]) <= above
    assert set(target["children"]) <= below


def test_ids_are_unique_and_expand_to_their_paths(complete: CallGraph) -> None:
    """A node's id says exactly which module paths it stands for, and every module is in one node."""
    identifiers = [node.id for node in complete.nodes]
    assert len(set(identifiers)) == len(identifiers)
    for node in complete.nodes:
        assert sorted(expand(node.id)) == sorted(node.paths)
    paths = [path for node in complete.nodes for path in node.paths]
    assert sorted(paths) == sorted(module.path for module in complete.captured.modules)


def test_ids_are_those_that_reports_rely_on(complete: CallGraph) -> None:
    """Decoder layers fold to the dense one and eleven; SAM's blocks to windowed and global; CLIP's to one."""
    identifiers = {node.id: node for node in complete.nodes}
    for identifier, instances, series in (
        ("model.layers.0", 1, 1),
        ("model.layers.[1-11]", 11, 11),
        ("model.layers.[1-11].mlp.experts", 11, 1),
        ("model.sam_model.blocks.[0-1,3-4,6-7,9-10]", 8, 8),
        ("model.sam_model.blocks.[2,5,8,11]", 4, 4),
        ("model.sam_model.neck.[1,3]", 2, 2),
        ("model.vision_model.transformer.layers.[0-23]", 24, 24),
        ("lm_head", 1, 1),
    ):
        node = identifiers[identifier]
        assert (len(node.paths), node.series) == (instances, series), identifier


def test_grouping_is_stable(complete: CallGraph) -> None:
    """Grouping the same capture again gives the same nodes, calls and edges in the same order."""
    again = group_by_module(complete.captured)
    assert again.nodes == complete.nodes
    assert again.edges == complete.edges
    assert [(call.node, call.stage, call.name, call.indices) for call in again.calls] == [
        (call.node, call.stage, call.name, call.indices) for call in complete.calls
    ]


def test_every_call_is_in_exactly_one_leaf(complete: CallGraph) -> None:
    """The folded calls of a stage are its calls, each once."""
    for graph in complete.captured.graphs:
        indices = [index for call in complete.calls if call.stage == graph.stage for index in call.indices]
        assert sorted(indices) == list(range(len(graph.calls)))
        for call in complete.calls:
            if call.stage == graph.stage:
                assert {graph.calls[index].op for index in call.indices} == {call.call.op}


@pytest.mark.parametrize("stage", SIZES)
def test_call_counts_are_those_that_hooks_see(stage: str, complete: CallGraph, full_size: Any) -> None:
    """A module is called as often as its forward hook fires when the stage runs on meta."""
    model = full_size()
    seen: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, path=path: seen.update([path]))
        for path, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            StageModule(model, stage)(*stage_inputs(model.config, stage, **SIZES[stage]))
    finally:
        for handle in handles:
            handle.remove()
    for node in complete.nodes:
        # The vision stages enter the root by a method, which fires no hook.
        expected = sum(seen[path] for path in node.paths) or (1 if node.id == "" else 0)
        assert node.calls.get(stage, 0) == expected, node.id


def test_edges_join_nodes_and_carry_bytes(complete: CallGraph) -> None:
    """Every edge joins two nodes of the graph and carries at least one tensor of positive size."""
    identifiers = {node.id for node in complete.nodes}
    sizes = {"B": 2, "S": 83, "N": 73, "T": 83, "V": 4, "H": 2}
    assert complete.edges
    for edge in complete.edges:
        assert {edge.source, edge.target} <= identifiers
        assert edge.tensors >= 1
        assert bind(edge.bytes, sizes) > 0
    pairs = {(edge.source, edge.target) for edge in complete.edges if edge.stage == "prefill"}
    assert ("model.layers.[1-11].mlp.gate", "model.layers.[1-11].mlp.experts") in pairs
    assert ("model.norm", "lm_head") in pairs
    assert ("lm_head", "model.norm") not in pairs


# --- toy models -----------------------------------------------------------------------------------------------


def _grouped(module: nn.Module, *shapes: tuple[int, ...]) -> CallGraph:
    inputs = tuple(torch.empty(shape, device="meta") for shape in shapes or ((3, 4),))
    stage = StageSpec(name="run", description="", module=module, inputs=inputs)
    return group_by_module(capture(module, [stage], name="toy", variant={}))


def _flops(graph: CallGraph) -> dict[str, int]:
    found: Counter[str] = Counter()
    for leaf in lower(graph).leaves:
        found[leaf.module] += leaf.calls * leaf.layer.matmul_flops()
    return dict(found)


def _linear() -> nn.Linear:
    return nn.Linear(4, 4, device="meta")


class Twice(nn.Module):
    """Calls one module twice with equal shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = _linear()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to its own result."""
        return self.lin(self.lin(x))


def test_a_module_called_twice_is_one_node_called_twice() -> None:
    """`parfor 2`: one node, two calls, one leaf of two executions; 2 * 2 * 3 * 4 * 4 = 192 FLOPs."""
    graph = _grouped(Twice())
    node = graph.node("lin")
    assert (dict(node.calls), dict(node.parallel), node.series) == ({"run": 2}, {"run": 2}, 1)
    (call,) = [call for call in graph.calls if call.node == "lin"]
    assert len(call.indices) == 2
    assert _flops(graph) == {"lin": 192}


class Ragged(nn.Module):
    """Calls one module three times, once with another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = _linear()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the layer to all rows, to one, and to all again."""
        return self.lin(x), self.lin(x[:1]), self.lin(x)


def test_calls_of_other_shapes_are_leaves_of_their_own() -> None:
    """Three rows twice and one row once: 2 * 96 + 32 = 224 FLOPs in two leaves of one node."""
    graph = _grouped(Ragged())
    assert dict(graph.node("lin").calls) == {"run": 3}
    assert [(call.name, len(call.indices)) for call in graph.calls if call.node == "lin"] == [
        ("linear", 2),
        ("linear.1", 1),
    ]
    assert _flops(graph)["lin"] == 224


class Nested(nn.Module):
    """Two lists of three layers within a list."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList(nn.ModuleList(_linear() for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers in series."""
        for group in self.groups:
            for layer in group:  # pyright: ignore[reportGeneralTypeIssues]
                x = layer(x)
        return x


def test_nested_lists_fold_at_every_level() -> None:
    """Six equal layers are one node: `for 3` within `for 2`; lists are not called."""
    graph = _grouped(Nested())
    assert [node.id for node in graph.nodes] == ["", "groups", "groups.[0-1]", "groups.[0-1].[0-2]"]
    inner, outer = graph.node("groups.[0-1].[0-2]"), graph.node("groups.[0-1]")
    assert (len(inner.paths), inner.series, outer.series) == (6, 3, 2)
    assert dict(inner.calls) == {"run": 6}
    assert not outer.calls
    assert _flops(graph) == {"groups.[0-1].[0-2]": 6 * 96}


def test_layers_of_different_width_do_not_fold() -> None:
    """Siblings fold only when shapes agree: 4 -> 4, 4 -> 4 and 4 -> 8 are two nodes."""
    graph = _grouped(nn.Sequential(_linear(), _linear(), nn.Linear(4, 8, device="meta")))
    assert [node.id for node in graph.nodes] == ["", "[0-1]", "2"]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False, device="meta")
        self.second = nn.Linear(4, 4, bias=False, device="meta")
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.second(self.first(x))


def test_tied_weights_count_once() -> None:
    """The weight belongs to its first owner; the stage holds its 16 * 4 bytes once, both layers compute."""
    graph = _grouped(Tied())
    assert (graph.node("first").parameters, graph.node("second").parameters) == (16, 0)
    model = lower(graph)
    assert (model.parameters, model.stages[0].weight_bytes) == (16, 64)
    assert _flops(graph) == {"first": 96, "second": 96}


class User(nn.Module):
    """Calls a module that it was given."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """Apply it and add one."""
        return self.shared(x) + 1


class Sharing(nn.Module):
    """Two parents of one module."""

    def __init__(self) -> None:
        super().__init__()
        shared = _linear()
        self.a, self.b = User(shared), User(shared)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both parents."""
        return self.b(self.a(x))


def test_a_shared_module_is_attributed_to_its_caller() -> None:
    """Each parent has the shared module's work of its own call; the parameters count once: 4 * 4 + 4 = 20."""
    graph = _grouped(Sharing())
    assert _flops(graph) == {"a": 0, "a.shared": 96, "b": 0, "b.shared": 96}
    assert dict(graph.node("a.shared").calls) == dict(graph.node("b.shared").calls) == {"run": 1}
    assert sum(node.parameters for node in graph.nodes) == lower(graph).parameters == 20


class Around(nn.Module):
    """Runs operators itself before and after its child."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = _linear()

    def forward(self, x: Tensor) -> Tensor:
        """Double, apply, triple."""
        return self.lin(x * 2) * 3


def test_cycles_of_the_quotient_graph_break_nothing() -> None:
    """A parent that runs operators on both sides of its child makes a cycle; sums and fans stay right."""
    graph = _grouped(nn.Sequential(Around(), Around()))
    pairs = {(edge.source, edge.target) for edge in graph.edges}
    assert pairs == {("[0-1]", "[0-1].lin"), ("[0-1].lin", "[0-1]"), ("[0-1]", "[0-1]")}
    assert not nx.is_directed_acyclic_graph(call_graph(graph))
    lin = graph.node("[0-1].lin")
    assert (lin.fan_in, lin.fan_out) == (1, 1)
    assert _flops(graph) == {"[0-1]": 0, "[0-1].lin": 192}


class Fork(nn.Module):
    """Three readers of one result and a module that joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _linear()
        self.readers = nn.ModuleList([_linear(), nn.Linear(4, 4, bias=False, device="meta"), nn.Tanh()])
        self.last = _linear()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the readers to one result and join theirs."""
        x = self.first(x)
        first, second, third = self.readers
        return self.last(first(x) + second(x) + third(x))


def test_fans_count_the_other_nodes() -> None:
    """One result read by three modules, three read by the root's additions; a list has the fans of its items."""
    graph = _grouped(Fork())
    fans = {node.id: (node.fan_in, node.fan_out) for node in graph.nodes}
    assert fans == {
        "": (0, 0),  # nothing passes in or out but the stage's own input and result
        "first": (0, 3),
        "readers": (1, 1),  # reads `first`, read by the root's additions
        "readers.0": (1, 1),
        "readers.1": (1, 1),
        "readers.2": (1, 1),
        "last": (1, 0),
    }


class Delegating(nn.Module):
    """Has its work done by a method of a child that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Around()

    def forward(self, x: Tensor) -> Tensor:
        """Reach into the child."""
        return Around.forward(self.child, x)


def test_a_method_belongs_to_the_module_it_is_of() -> None:
    """Operators of a child's method are the child's although the child is not called."""
    graph = _grouped(Delegating())
    assert {call.node for call in graph.calls} == {"child", "child.lin"}
    assert dict(graph.node("child").calls) == {"run": 1}
