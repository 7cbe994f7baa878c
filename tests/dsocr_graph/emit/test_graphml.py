"""The call graph as GraphML: read back with its attributes, typed, and the same every time."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dsocr_graph.emit.graph_figures import percent, sum_texts
from dsocr_graph.emit.graphml import to_graphml
from dsocr_graph.lowering import lower
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter.devices import load_device
from modelmeter.dim_text import parse, to_text
from modelmeter.dims import product, total
from modelmeter.evaluate import evaluate
from modelmeter.model import AnalyticModel
from modelmeter.reports import Report
from modelmeter.workload import StageRun, Workload, WorkloadItem

NAMESPACE = "{http://graphml.graphdrawing.org/xmlns}"
YED = "{http://www.yworks.com/xml/graphml}"


class Block(nn.Module):
    """x + proj(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return x + self.proj(x)


class Toy(nn.Module):
    """Two blocks and a head; a spare layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 2, bias=False)
        self.spare = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 2]."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture(scope="module")
def model() -> AnalyticModel:
    """The toy with batch B left open; fp32."""
    with torch.device("meta"):
        module, x = Toy().eval(), torch.empty(8, 4)
    batch = torch.export.Dim("B", min=2, max=64)
    stage = StageSpec(name="forward", description="", module=module, inputs=(x,), dynamic_shapes=({0: batch},))
    return lower(group_by_module(capture(module, [stage], name="toy", variant={})))


def evaluated(model: AnalyticModel, *, batch: int = 3, count: int = 2, device: str | None = None) -> Report:
    """Return the model at some executions of its one stage."""
    run = StageRun(stage="forward", count=count, bindings={"B": batch})
    item = WorkloadItem(name="page", documents=1, runs=(run,), facts={})
    workload = Workload(name="pages", items=(item,), facts={})
    return evaluate(model, workload, device=load_device(device) if device else None)


@pytest.fixture(scope="module")
def report(model: AnalyticModel) -> Report:
    """The toy at two executions of B = 3."""
    return evaluated(model)


def read(text: str) -> Any:
    """Return the graph as networkx reads it."""
    return nx.parse_graphml(text, force_multigraph=True)


def test_every_module_is_a_node_with_what_it_costs(model: AnalyticModel, report: Report) -> None:
    """FLOPs are those of the workload, for the module itself and with everything below it."""
    graph = read(to_graphml(model, report))
    # proj: 2 * B * 4 * 4 = 32 * B in each of 2 layers; sum: 4 * B in each; head: 2 * B * 4 * 2 = 16 * B
    # at B = 3, twice: proj 2 * 2 * 96 = 384, sums 2 * 2 * 12 = 48, head 2 * 48 = 96
    figures = {name: (node["flops_self"], node["flops_inclusive"]) for name, node in graph.nodes(data=True)}
    assert figures == {
        "(root)": (0, 528),
        "layers": (0, 432),
        "layers.[0-1]": (48, 432),
        "layers.[0-1]#elementwise": (48, 48),
        "layers.[0-1].proj": (384, 384),
        "head": (96, 96),
        "spare": (0, 0),
    }
    block = graph.nodes["layers.[0-1]"]
    assert block["share_flops"] == 432 / 528
    # fp32: a sum reads two of [3, 4] and writes one, 3 * 48 = 144 bytes, four times; proj reads 48 and weights
    # of 64, writes 48, four times
    assert (block["bytes_self"], block["bytes_inclusive"]) == (4 * 144.0, 4 * 144.0 + 4 * 160.0)
    assert block["fused_bytes_self"] == 4 * 96.0  # the product is not read from memory
    assert (block["class"], block["instances"], block["loop"], block["depth"]) == ("Block", 2, "for 2", 2)
    assert (block["calls_forward"], block["parameters_self"], block["parameters_inclusive"]) == (2, 0, 32)
    assert block["categories_flops"] == "linear 88.9 %, elementwise 11.1 %"  # 384 and 48 of 432


def test_a_module_with_children_shows_its_own_operators_by_category(model: AnalyticModel, report: Report) -> None:
    """The sum that a block runs itself is a node below it; a layer without children has no such node."""
    graph = read(to_graphml(model, report))
    categories = [name for name, node in graph.nodes(data=True) if node["kind"] == "category"]
    assert categories == ["layers.[0-1]#elementwise"]
    node = graph.nodes["layers.[0-1]#elementwise"]
    assert (node["module"], node["category"], node["calls_forward"]) == ("layers.[0-1]", "elementwise", 2)
    assert graph.has_edge("layers.[0-1]", "layers.[0-1]#elementwise")


def test_flops_of_one_run_are_expressions_in_the_dims(model: AnalyticModel) -> None:
    """They hold for every workload, so they are there without a report too."""
    graph = read(to_graphml(model))
    texts = {name: node["flops_per_run_forward"] for name, node in graph.nodes(data=True)}
    assert texts["(root)"] == "88*B"  # 2 * (32 + 4) + 16
    assert texts["layers.[0-1]"] == "72*B"
    assert texts["layers.[0-1]#elementwise"] == "8*B"
    assert texts["spare"] == "0"


def test_labels_tell_a_person_what_matters(model: AnalyticModel, report: Report) -> None:
    """A label has name, class, repetition and shares; what never ran says so."""
    graph = read(to_graphml(model, report))
    labels = {name: node["label"] for name, node in graph.nodes(data=True)}
    # bytes, twice: proj 2 * 160, sums 2 * 144, head 48 + 32 + 24 = 104: 712 a run; blocks 608 of it
    assert labels["layers.[0-1]"] == "[0-1]: Block, for 2, 81.8 % of FLOPs, 85.4 % of bytes"
    assert labels["spare"] == "spare: Linear, not called"
    assert labels["layers.[0-1]#elementwise"].startswith("elementwise, 9.1 % of FLOPs")
    assert read(to_graphml(model)).nodes["layers.[0-1]"]["label"] == "[0-1]: Block, for 2"


def test_edges_contain_or_carry_tensors(model: AnalyticModel, report: Report) -> None:
    """Containment makes a tree; tensors pass between modules, to a twin of the same node too."""
    graph = read(to_graphml(model, report))
    edges = {key: attributes for _, _, key, attributes in graph.edges(keys=True, data=True)}
    contained = [key for key, attributes in edges.items() if attributes["kind"] == "contains"]
    assert len(contained) == len(graph) - 1
    assert "contains:(root)->head" in contained
    # each proj hands [3, 4] of fp32 to its block: two tensors of 48 bytes a run, two runs
    product_edge = edges["forward:layers.[0-1].proj->layers.[0-1]"]
    assert (product_edge["stage"], product_edge["tensors"], product_edge["bytes_per_run"]) == ("forward", 2, "32*B")
    assert (product_edge["bytes"], product_edge["weight"]) == (192.0, 1.0)
    # the first block's sum goes to the second block: one tensor, a loop; half the heaviest edge
    loop = edges["forward:layers.[0-1]->layers.[0-1]"]
    assert (loop["bytes"], loop["weight"]) == (96.0, 0.5)
    assert graph.has_edge("layers.[0-1]", "layers.[0-1]", key="forward:layers.[0-1]->layers.[0-1]")


def test_networkx_writes_it_again_with_nothing_lost(model: AnalyticModel, report: Report, tmp_path: Path) -> None:
    """A round trip through networkx keeps every node, edge and attribute with its value and type."""
    graph = read(to_graphml(model, report))
    nx.write_graphml(graph, tmp_path / "again.graphml", named_key_ids=False)
    again = nx.read_graphml(tmp_path / "again.graphml", force_multigraph=True)
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))

    def edges(of: Any) -> list[Any]:
        return sorted((source, target, sorted(data.items())) for source, target, data in of.edges(data=True))

    assert [(source, target) for source, target, _ in edges(again)] == [(s, t) for s, t, _ in edges(graph)]
    kinds = {type(value) for _, node in again.nodes(data=True) for value in node.values()}
    assert kinds == {str, int, float, bool}


def test_each_attribute_is_declared_once_and_used_as_declared(model: AnalyticModel, report: Report) -> None:
    """Every value belongs to a declared attribute of nodes or of edges, and reads as the declared type."""
    root = ElementTree.fromstring(to_graphml(model, report))
    keys = {key.get("id"): key for key in root.iter(f"{NAMESPACE}key")}
    declared = [(key.get("for"), key.get("attr.name")) for key in keys.values() if key.get("attr.name")]
    assert len(declared) == len(set(declared))
    readers = {"string": str, "long": int, "double": float, "float": float, "boolean": {"true": 1, "false": 0}.get}
    seen = 0
    for element in (*root.iter(f"{NAMESPACE}node"), *root.iter(f"{NAMESPACE}edge")):
        for data in element.iter(f"{NAMESPACE}data"):
            key = keys[data.get("key")]
            assert key.get("for") == element.tag.removeprefix(NAMESPACE)
            if key.get("attr.type"):
                assert readers[str(key.get("attr.type"))](data.text or "") is not None
                seen += 1
    assert seen > 200
    types = {key.get("attr.name"): key.get("attr.type") for key in keys.values() if key.get("for") == "edge"}
    assert types["weight"] == "float"


def test_yed_and_gephi_read_the_same_label(model: AnalyticModel, report: Report) -> None:
    """yEd's drawing holds the label and a place; its key has an id that Gephi takes for a label, not for an error."""
    root = ElementTree.fromstring(to_graphml(model, report))
    untyped = [key.get("id") for key in root.iter(f"{NAMESPACE}key") if key.get("attr.type") is None]
    assert untyped == ["nodelabel", "edgelabel"]
    places = set()
    for node in root.iter(f"{NAMESPACE}node"):
        data = {element.get("key"): element for element in node.iter(f"{NAMESPACE}data")}
        drawing = data["nodelabel"].find(f"{YED}ShapeNode")
        assert drawing is not None
        label = drawing.findtext(f"{YED}NodeLabel")
        assert label == data["n_label"].text
        # Gephi takes all text inside as the label
        assert "".join(data["nodelabel"].itertext()).strip() == label
        geometry = drawing.find(f"{YED}Geometry")
        assert geometry is not None
        places.add((geometry.get("x"), geometry.get("y")))
        assert node.get("id")
    assert len(places) == len(list(root.iter(f"{NAMESPACE}node")))


def test_times_are_there_where_a_device_is(model: AnalyticModel, report: Report) -> None:
    """With a device, seconds of a parent are those of its own and of its children; without one there are none."""
    assert "seconds_self" not in read(to_graphml(model, report)).nodes["head"]
    graph = read(to_graphml(model, evaluated(model, device="h200")))
    block, proj = graph.nodes["layers.[0-1]"], graph.nodes["layers.[0-1].proj"]
    assert proj["seconds_self"] > 0
    assert block["seconds_inclusive"] == pytest.approx(block["seconds_self"] + proj["seconds_inclusive"])
    assert graph.nodes["(root)"]["share_seconds"] == pytest.approx(1.0)


def test_numbers_beyond_64_bits_are_floats(model: AnalyticModel) -> None:
    """FLOPs that no long holds make the column a double, so that no reader overflows."""
    batch = 2**60  # 88 * 2**60 is above 2**63
    text = to_graphml(model, evaluated(model, batch=batch, count=1))
    assert 'attr.name="flops_inclusive" attr.type="double"' in text
    assert read(text).nodes["(root)"]["flops_inclusive"] == 88 * 2.0**60


def test_names_with_markup_are_escaped(model: AnalyticModel) -> None:
    """Signs that mean something in XML come back as they were."""
    odd = 'A<b> & "c"'
    modules = tuple(evolve(node, class_name=odd) for node in model.modules)
    graph = read(to_graphml(evolve(model, name=odd, modules=modules)))
    assert {node["class"] for _, node in graph.nodes(data=True)} == {odd}


def test_equal_arguments_give_equal_text(model: AnalyticModel, report: Report) -> None:
    """Writing twice gives the same bytes, and another workload others."""
    assert to_graphml(model, report) == to_graphml(model, evaluated(model))
    assert to_graphml(model, report) != to_graphml(model, evaluated(model, batch=4))


def test_a_report_about_another_model_is_refused(model: AnalyticModel, report: Report) -> None:
    """Figures are never put on modules that they do not belong to."""
    with pytest.raises(ValueError, match="not about other"):
        to_graphml(evolve(model, name="other"), report)


def test_it_needs_neither_torch_nor_networkx() -> None:
    """A warm run writes the graph without loading either."""
    code = "import sys, dsocr_graph.emit.graphml; print(sorted({'torch', 'networkx', 'onnx'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


TERMS = st.sampled_from(["B", "S", "B*S", "B**2*S", "B*S**2", "floor(S/2 + 1)*B", "V*H/W", "1"])


@given(
    st.dictionaries(
        st.lists(st.tuples(st.integers(-50, 50), TERMS), min_size=1, max_size=4).map(tuple),
        st.integers(0, 9),
        max_size=4,
    )
)
def test_sums_of_texts_are_the_sums_of_what_they_say(parts: dict[tuple[tuple[int, str], ...], int]) -> None:
    """Adding texts gives an expression equal to the sum of the expressions."""
    counts: dict[str, int] = {}
    expected = []
    for terms, count in parts.items():
        value = total(product((factor, parse(text))) for factor, text in terms)
        counts[to_text(value)] = counts.get(to_text(value), 0) + count
        expected.append(product((count, value)))
    assert parse(sum_texts(counts)) == total(expected)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({}, "0"),
        ({"0": 7}, "0"),
        ({"2*B + 3": 2, "B": 1}, "5*B + 6"),
        ({"B*S": 1, "-B*S": 1}, "0"),
        ({"B**2": 3}, "3*B**2"),
        ({"3**2*B": 2}, "2*3**2*B"),
        ({"-B - 1": 2}, "-2*B - 2"),
    ],
)
def test_sums_of_texts_join_like_terms(counts: dict[str, int], text: str) -> None:
    """Terms of the same factors become one; nothing is written as 0."""
    assert sum_texts(counts) == text


def test_only_nothing_is_written_as_nothing() -> None:
    """A share too small to show is not shown as none."""
    assert [percent(share) for share in (0.0, 0.0001, 0.0005, 1.0)] == ["0 %", "<0.1 %", "0.1 %", "100.0 %"]


def test_predicted_times_have_their_interval_and_views(toy: ModuleType) -> None:
    """The wrapper's three views are a node of their own: 1.5 s; below it is work of 0.6 to 1.4 times 9 + 15 s."""
    predicted = evaluate(toy.scheduled_toy_model(), toy.toy_workload(), time_model=toy.ToyClock())
    graph = read(to_graphml(toy.scheduled_toy_model(), predicted))
    views = graph.nodes["model#host"]
    assert (views["seconds_self"], views["bound_by_self"], views["calls_prefill"]) == (1.5, "host", 3)
    # prefill: up 2, act 4, experts 3; decode, three steps: cat 1, up 4
    wrapper = graph.nodes["model"]
    assert wrapper["seconds_inclusive"] == 1.5 + 9 + 15
    assert wrapper["seconds_p10_inclusive"] == pytest.approx(1.5 + 0.6 * 24)
    assert wrapper["seconds_p90_inclusive"] == pytest.approx(1.5 + 1.4 * 24)
    assert graph.nodes["model.spare"]["bound_by_inclusive"] == ""
    bounded = read(
        to_graphml(toy.toy_model(), evaluate(toy.toy_model(), toy.toy_workload(), device=load_device("h200")))
    )
    assert "model#host" not in bounded
    assert "seconds_p10_self" not in bounded.nodes["model"]
