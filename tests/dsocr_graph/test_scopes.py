"""Grouping: ids with index patterns, series and parallel counts, edges, and nothing lost on the way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsocr_graph.scopes import CallGraph, call_graph, group_by_module, index_pattern

Group = Callable[..., CallGraph]


@pytest.fixture
def grouped(captured: Callable[..., Any]) -> Group:
    """Return a function that captures and groups a module that `make` builds on `meta`."""

    def group(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> CallGraph:
        with torch.device("meta"):
            return group_by_module(captured(make(), *(torch.empty(shape) for shape in shapes)))

    return group


class Block(nn.Module):
    """A layer with two linear layers, the second one of a chosen width; adds its input."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, inner, bias=False), nn.Linear(inner, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x + down(up(x))."""
        return x + self.down(self.up(x))


class Stack(nn.Module):
    """Blocks in a list, run in order."""

    def __init__(self, *inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(size) for size in inner)
        self.spare = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Run every block."""
        for layer in self.layers:
            x = layer(x)
        return x


class Shared(nn.Module):
    """One layer called three times, on equal shapes or on ever fewer rows."""

    def __init__(self, *, shrink: bool) -> None:
        super().__init__()
        self.block, self.shrink = Block(8), shrink

    def forward(self, x: Tensor) -> Tensor:
        """Call the block three times."""
        for _ in range(3):
            x = self.block(x[1:] if self.shrink else x)
        return x


class Nested(nn.Module):
    """Two stacks of two blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(Stack(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Run both."""
        return self.stacks[1](self.stacks[0](x))


def test_equal_siblings_fold_and_others_do_not(grouped: Group) -> None:
    """Of four blocks the second is wider: the id says which indices it stands for, and `series` how many."""
    graph = grouped(lambda: Stack(8, 16, 8, 8), (3, 4))
    found = {node.id: (node.class_name, node.series, dict(node.calls)) for node in graph.nodes}
    assert found == {
        "": ("Stack", 1, {"forward": 1}),
        "layers": ("ModuleList", 1, {}),
        "layers.[0,2-3]": ("Block", 3, {"forward": 3}),
        "layers.[0,2-3].up": ("Linear", 1, {"forward": 3}),
        "layers.[0,2-3].down": ("Linear", 1, {"forward": 3}),
        "layers.1": ("Block", 1, {"forward": 1}),
        "layers.1.up": ("Linear", 1, {"forward": 1}),
        "layers.1.down": ("Linear", 1, {"forward": 1}),
        "spare": ("Linear", 1, {}),
    }
    # up and down of 4*8 weights each, in three instances
    assert graph.node("layers.[0,2-3].up").parameters == 3 * 32
    assert graph.node("layers.[0,2-3].up").parameter_bytes == 3 * 32 * 4
    assert graph.node("spare").parameters == 4 * 4 + 4


def test_parents_come_before_children(grouped: Group) -> None:
    """Every parent is a node that stands earlier; only the root has none."""
    graph = grouped(Nested, (3, 4))
    seen: list[str] = []
    for node in graph.nodes:
        assert node.parent in seen if node.id else node.parent is None
        seen.append(node.id)


def test_folding_is_nested(grouped: Group) -> None:
    """Two equal stacks of two equal blocks: one id for four blocks, two in series in each stack."""
    node = grouped(Nested, (3, 4)).node("stacks.[0-1].layers.[0-1]")
    assert node.paths == ("stacks.0.layers.0", "stacks.0.layers.1", "stacks.1.layers.0", "stacks.1.layers.1")
    assert (node.series, dict(node.calls)) == (2, {"forward": 4})


def test_no_call_is_lost_or_counted_twice(grouped: Group) -> None:
    """Each position of the captured graph stands in exactly one folded call, that of its module."""
    graph = grouped(lambda: Stack(8, 16, 8, 8), (3, 4))
    (stage,) = graph.captured.graphs
    indices = [index for call in graph.calls for index in call.indices]
    assert sorted(indices) == list(range(len(stage.calls)))
    assert len(stage.calls) == 4 * 3  # two products and an addition a block
    for scoped in graph.calls:
        assert {graph.ids[stage.calls[index].module] for index in scoped.indices} == {scoped.node}


def test_a_module_called_three_times_is_one_node(grouped: Group) -> None:
    """Called on equal shapes by one caller: `parfor 3`, three calls, and each operator folded to one with three."""
    graph = grouped(lambda: Shared(shrink=False), (9, 4))
    node = graph.node("block")
    assert (node.series, dict(node.parallel), dict(node.calls)) == (1, {"forward": 3}, {"forward": 3})
    assert [(call.name, len(call.indices)) for call in graph.calls if call.node == "block.up"] == [("linear", 3)]
    assert node.parameters == 0
    assert graph.node("block.up").parameters == 32  # held once, however often it runs


def test_calls_on_other_shapes_stay_apart(grouped: Group) -> None:
    """Three calls on 8, 7 and 6 rows are three folded calls with names of their own."""
    graph = grouped(lambda: Shared(shrink=True), (9, 4))
    calls = [call for call in graph.calls if call.node == "block.up"]
    assert [call.name for call in calls] == ["linear", "linear.1", "linear.2"]
    assert [call.call.result.shape[0] for call in calls] == [8, 7, 6]
    assert graph.node("block").parallel == {"forward": 3}


def test_edges_are_the_tensors_that_pass(grouped: Group) -> None:
    """up gives down 3*8 elements and down gives its block 3*4, of 4 bytes; views and a module's own calls make none."""
    graph = grouped(lambda: Stack(8), (3, 4))
    assert [(edge.source, edge.target, edge.tensors, edge.bytes) for edge in graph.edges] == [
        ("layers.0.down", "layers.0", 1, 48),
        ("layers.0.up", "layers.0.down", 1, 96),
    ]
    fans = {node.id: (node.fan_in, node.fan_out) for node in graph.nodes}
    assert fans["layers.0.up"] == (0, 1)
    assert fans["layers.0.down"] == (1, 1)
    assert fans["layers.0"] == (0, 0)  # both ends of what passes lie inside


def test_fans_count_the_nodes_on_the_other_side(grouped: Group) -> None:
    """The sum of block 0 is read by block 1's up and by its sum: block 0 feeds two nodes, block 1 reads one."""
    fans = {node.id: (node.fan_in, node.fan_out) for node in grouped(lambda: Stack(8, 16), (3, 4)).nodes}
    assert fans["layers.0"] == (0, 2)
    assert fans["layers.1"] == (1, 0)
    assert fans["layers"] == fans[""] == (0, 0)


def test_folded_edges_add_up(grouped: Group) -> None:
    """Three equal blocks: three tensors from up to down; a block feeds the next one, which is the same node's child.

    Sums of blocks 0 and 1 are read by the next up, and by the next sum, which is the node itself and no edge of it.
    """
    graph = grouped(lambda: Stack(8, 8, 8), (3, 4))
    found = {(edge.source, edge.target): (edge.tensors, edge.bytes) for edge in graph.edges}
    block = "layers.[0-2]"
    assert found[f"{block}.up", f"{block}.down"] == (3, 3 * 96)
    assert found[block, f"{block}.up"] == (2, 2 * 48)
    assert found[f"{block}.down", block] == (3, 3 * 48)


def test_networkx_graph_has_every_node_and_edge(grouped: Group) -> None:
    """The library's graph can hold cycles, as a block feeds its own children: it is no DAG and need not be."""
    import networkx as nx

    graph = grouped(lambda: Stack(8, 8), (3, 4))
    made = call_graph(graph)
    assert set(made.nodes) == {node.id for node in graph.nodes}
    assert made.number_of_edges() == len(graph.edges)
    assert not nx.is_directed_acyclic_graph(made)


def test_an_unknown_node_is_an_error(grouped: Group) -> None:
    """The message names the id and the model."""
    with pytest.raises(KeyError, match=r"no module 'layers.7' in the call graph of toy"):
        grouped(lambda: Stack(8), (3, 4)).node("layers.7")


@pytest.mark.parametrize(
    ("indices", "pattern"),
    [([7], "7"), ([1, 2], "[1-2]"), ([3, 1, 2], "[1-3]"), ([0, 2, 4], "[0,2,4]"), ([0, 1, 9, 10, 11], "[0-1,9-11]")],
)
def test_index_patterns(indices: list[int], pattern: str) -> None:
    """One index is written plainly; runs as ranges, in order."""
    assert index_pattern(indices) == pattern
