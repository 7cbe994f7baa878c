"""The captured graph as ONNX: valid, complete, without weights, every call with its scope and cost."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

from dsocr_graph.emit.onnx_graph import to_onnx
from dsocr_graph.ir import CapturedModel
from dsocr_graph.lowering import lower
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import CallGraph, group_by_module
from dsocr_graph.tracing import capture
from modelmeter.dim_text import parse
from modelmeter.dims import total
from modelmeter.model import AnalyticModel

Compiled = tuple[CapturedModel, CallGraph, AnalyticModel]


class Block(nn.Module):
    """x + proj(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return x + self.proj(x)


class Toy(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 2]."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Calls(nn.Module):
    """Runs a function of tensors."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        """Run the function."""
        return self.function(*tensors)


def compiled(
    model: nn.Module,
    *inputs: Tensor,
    stages: Mapping[str, nn.Module] | None = None,
    dynamic_shapes: Any = None,
    root: str = "",
) -> Compiled:
    """Capture, group and lower a module on `meta`, one stage per module that runs it."""
    specs = [
        StageSpec(
            name=name,
            description=f"runs {name}",
            module=module,
            inputs=inputs,
            dynamic_shapes=dynamic_shapes,
            root=root,
        )
        for name, module in (stages or {"forward": model}).items()
    ]
    captured = capture(model.eval(), specs, name="toy", variant={"dtype": "fp32"})
    graph = group_by_module(captured)
    return captured, graph, lower(graph, descriptions={spec.name: spec.description for spec in specs})


def checked(parts: Compiled) -> onnx.ModelProto:
    """Return the ONNX model, having checked it in full."""
    proto = onnx.load_model_from_string(to_onnx(*parts))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def of(function: Callable[..., Any], *inputs: Tensor) -> onnx.FunctionProto:
    """Return the ONNX function of some calls on tensors."""
    with torch.device("meta"):
        proto = checked(compiled(Calls(function), *inputs))
    return proto.functions[0]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(*shape, device="meta", dtype=dtype)


def calls(function: onnx.FunctionProto) -> list[tuple[str, list[str], list[str]]]:
    """Return operator, inputs and outputs of each node."""
    return [(node.op_type, list(node.input), list(node.output)) for node in function.node]


def facts(node: onnx.NodeProto) -> dict[str, str]:
    """Return the metadata of a node."""
    return {entry.key: entry.value for entry in node.metadata_props}


@pytest.fixture(scope="module")
def toy() -> Compiled:
    """The toy with batch B left open."""
    with torch.device("meta"):
        model = Toy()
    batch = torch.export.Dim("B", min=2, max=64)
    return compiled(model, meta(8, 4), dynamic_shapes=({0: batch},))


def test_a_stage_is_a_function_that_the_main_graph_calls(toy: Compiled) -> None:
    """The main graph has one node per stage, fed by the stage's inputs and by the parameters under their names."""
    proto = checked(toy)
    (node,) = proto.graph.node
    (function,) = proto.functions
    assert (node.name, node.domain, node.op_type) == ("forward", "dsocr_graph.stage", "forward")
    assert (function.domain, function.name) == ("dsocr_graph.stage", "forward")
    parameters = ["layers.0.proj.weight", "layers.1.proj.weight", "head.weight"]
    assert list(node.input) == ["forward.x", *parameters]
    assert [value.name for value in proto.graph.input] == ["forward.x", *parameters]
    assert list(function.input) == ["x", *parameters]
    assert [value.name for value in proto.graph.output] == list(node.output) == ["forward.linear_2"]
    assert node.doc_string == "runs forward"


def test_no_weights_are_inside(toy: Compiled) -> None:
    """There is no initializer and no constant; the file holds the structure only."""
    proto = checked(toy)
    assert len(proto.graph.initializer) == 0
    assert not [node for node in proto.functions[0].node if node.op_type == "Constant"]


def test_the_nodes_of_the_toy_are_these(toy: Compiled) -> None:
    """Every ATen call is a node in order of execution, named by module and operator, in single assignment."""
    (function,) = checked(toy).functions
    assert [(node.name, node.domain, node.op_type, node.overload) for node in function.node] == [
        ("layers.0.proj/linear", "aten", "linear", "default"),
        ("layers.0/add", "aten", "add", "Tensor"),
        ("layers.1.proj/linear", "aten", "linear", "default"),
        ("layers.1/add", "aten", "add", "Tensor"),
        ("head/linear", "aten", "linear", "default"),
    ]
    assert calls(function) == [
        ("linear", ["x", "layers.0.proj.weight"], ["linear"]),
        ("add", ["x", "linear"], ["add"]),
        ("linear", ["add", "layers.1.proj.weight"], ["linear_1"]),
        ("add", ["add", "linear_1"], ["add_1"]),
        ("linear", ["add_1", "head.weight"], ["linear_2"]),
    ]


def test_a_node_says_where_it_comes_from_and_what_it_costs(toy: Compiled) -> None:
    """Scope is the module itself, module its folded node; costs are of one execution, in the dims."""
    (function,) = checked(toy).functions
    # 2 * B * 4 * 4 FLOPs; fp32: weight 4 * 4 * 4 = 64 bytes, B * 4 * 4 read and as much written
    assert facts(function.node[2]) == {
        "scope": "layers.1.proj",
        "class": "Linear",
        "module": "layers.[0-1].proj",
        "function": "forward",
        "category": "linear",
        "flops": "32*B",
        "bytes": "32*B + 64",
        "fused_bytes": "16*B + 64",  # its result is read on chip only, so it is not written
        "inputs": "input, weight",
    }
    # the sum of two [B, 4]: 4 * B FLOPs; two reads and a write of 16 * B bytes
    add = facts(function.node[1])
    assert (add["scope"], add["class"], add["module"]) == ("layers.0", "Block", "layers.[0-1]")
    assert (add["category"], add["flops"], add["bytes"]) == ("elementwise", "4*B", "48*B")
    assert add["fused_bytes"] == "32*B"  # without the read of the product


def test_costs_of_the_nodes_add_up_to_the_model(toy: Compiled) -> None:
    """The FLOPs of all nodes are the model's: 2 * (32 + 4) * B + 2 * B * 4 * 2 = 88 * B."""
    (function,) = checked(toy).functions
    assert total(parse(facts(node)["flops"]) for node in function.node) == parse("88*B")
    model = toy[2]
    expected = total(leaf.calls * leaf.layer.traffic().bytes for leaf in model.leaves)
    assert total(parse(facts(node)["bytes"]) for node in function.node) == expected


def test_values_have_types_with_open_dims(toy: Compiled) -> None:
    """Inputs, weights and results have type and shape, open dims by name, inside the function too."""
    proto = checked(toy)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.functions[0].value_info, *proto.graph.input)
    }
    assert shapes["x"] == shapes["forward.x"] == shapes["add_1"] == ["B", 4]
    assert shapes["linear_2"] == ["B", 2]
    assert shapes["head.weight"] == [2, 4]
    kinds = {value.type.tensor_type.elem_type for value in proto.functions[0].value_info}
    assert kinds == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.bfloat16, "BFLOAT16"), (torch.float16, "FLOAT16"), (torch.int64, "INT64"), (torch.bool, "BOOL")],
)
def test_element_types_are_kept(dtype: torch.dtype, kind: str) -> None:
    """A value has ONNX's type for its own."""
    function = of(lambda x: x.clone(), meta(2, 3, dtype=dtype))
    types = {value.name: value.type.tensor_type.elem_type for value in function.value_info}
    assert types["clone"] == getattr(onnx.TensorProto, kind)


def test_a_scalar_has_a_shape_without_axes() -> None:
    """A tensor of no axes is told from one of unknown shape."""
    function = of(lambda x: x.sum(), meta(2, 3))
    kind = {value.name: value.type.tensor_type for value in function.value_info}["sum_1"]
    assert kind.HasField("shape")
    assert len(kind.shape.dim) == 0


def test_free_calls_are_marked() -> None:
    """A view has no cost and says so."""
    function = of(lambda x: x.view(6).neg(), meta(2, 3))
    view, neg = (facts(node) for node in function.node)
    assert view["free"] == "true"
    assert "flops" not in view
    assert "free" not in neg


def test_operators_with_several_results_have_several_outputs() -> None:
    """Each result of topk and unbind is a value of its own, and readers read the one they mean."""
    function = of(lambda x: x.topk(2).values + x.unbind(0)[1][:2], meta(2, 3))
    nodes = {node.op_type: node for node in function.node}
    assert list(nodes["topk"].output) == ["topk.0", "topk.1"]
    assert list(nodes["unbind"].output) == ["unbind.0", "unbind.1"]
    assert list(nodes["slice"].input) == ["unbind.1"]
    assert nodes["add"].input[0] == "topk.0"


def test_an_in_place_operator_makes_a_new_value() -> None:
    """Readers after the write read its result, readers before it the old value."""

    def run(x: Tensor) -> Tensor:
        y = x.neg()
        before = y.abs()
        y.mul_(2.0)
        return y.add(before)

    assert calls(of(run, meta(2, 3))) == [
        ("neg", ["tensors_0"], ["neg"]),
        ("abs", ["neg"], ["abs_1"]),
        ("mul_", ["neg"], ["mul_"]),
        ("add", ["mul_", "abs_1"], ["add"]),
    ]


def test_a_write_through_a_view_shows_where_the_whole_is_read() -> None:
    """After a row is overwritten, the whole tensor is the old one as the write left it."""

    def run(x: Tensor) -> Tensor:
        y = x.neg()
        y[0].mul_(2.0)
        return y.abs()

    function = of(run, meta(2, 3))
    assert calls(function) == [
        ("neg", ["tensors_0"], ["neg"]),
        ("select", ["neg"], ["select"]),
        ("mul_", ["select"], ["mul_"]),
        ("after_write", ["neg", "mul_"], ["neg.after_write"]),
        ("abs", ["neg.after_write"], ["abs_1"]),
    ]
    assert function.node[3].domain == "dsocr_graph"


def test_an_output_that_was_written_through_a_view_is_the_written_one() -> None:
    """The stage returns the tensor as it is at the end."""

    def run(x: Tensor) -> Tensor:
        y = x.neg()
        y[0].mul_(2.0)
        return y

    assert list(of(run, meta(2, 3)).output) == ["neg.after_write"]


def test_outputs_are_values_of_their_own() -> None:
    """An input handed through and a result returned twice pass an Identity: no two outputs are one value."""

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x.neg()
        return x, y, y

    function = of(run, meta(2, 3))
    assert list(function.output) == ["tensors_0.output", "neg", "neg.output"]
    identities = [node for node in calls(function) if node[0] == "Identity"]
    assert identities == [("Identity", ["tensors_0"], ["tensors_0.output"]), ("Identity", ["neg"], ["neg.output"])]


def test_lists_of_tensors_and_gaps_keep_their_places() -> None:
    """A list of tensors is laid out with the names of its places; None in it is an empty input."""
    index = meta(5, dtype=torch.int64)
    function = of(lambda x, y, at: torch.cat([x, y], dim=1)[:, at], meta(2, 3), meta(2, 4), index)
    cat, pick = (node for node in function.node if node.op_type in {"cat", "index"})
    assert list(cat.input) == ["tensors_0", "tensors_1"]
    assert facts(cat)["inputs"] == "tensors[0], tensors[1]"
    assert [(attribute.name, attribute.i) for attribute in cat.attribute] == [("dim", 1)]
    assert list(pick.input)[1:] == ["", "tensors_2"]
    assert facts(pick)["inputs"] == "self, indices[0], indices[1]"


def test_scalars_are_attributes_of_their_kind() -> None:
    """Whole numbers and truth values are INT, lists of them INTS, types are text, fractions FLOAT."""
    function = of(
        lambda x: torch.softmax(x.mean(dim=[0, 1], keepdim=True), dim=-1, dtype=torch.float64).mul(0.5), meta(2, 3, 4)
    )
    found = {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for node in function.node
        for attribute in node.attribute
    }
    kinds = {attribute.name: attribute.type for node in function.node for attribute in node.attribute}
    assert found["dim"] in ([0, 1], -1)
    assert found["keepdim"] == 1
    assert found["dtype"] == b"float64"
    assert found["other"] == 0.5
    assert (kinds["keepdim"], kinds["dtype"], kinds["other"]) == (
        onnx.AttributeProto.INT,
        onnx.AttributeProto.STRING,
        onnx.AttributeProto.FLOAT,
    )


def test_sizes_with_dims_are_texts() -> None:
    """A list of sizes that holds a dim is a list of texts, in the names of the dims."""
    with torch.device("meta"):
        model = Calls(lambda x: x.neg().reshape(x.shape[0] * 2, 2))
    batch = torch.export.Dim("B", min=2, max=64)
    parts = compiled(model, meta(8, 4), dynamic_shapes=(({0: batch},),))
    (function,) = checked(parts).functions
    (shape,) = function.node[1].attribute
    assert (shape.name, list(shape.strings)) == ("shape", [b"2*B", b"2"])


def test_stages_share_their_weights() -> None:
    """A parameter that two stages read is one input of the main graph, and each stage lists what it reads."""
    with torch.device("meta"):
        model = Toy()

    class Stage(nn.Module):
        def __init__(self, *, head: bool) -> None:
            super().__init__()
            self.root, self.head = model, head

        def forward(self, x: Tensor) -> Tensor:
            return self.root.head(x) if self.head else self.root.layers[0](self.root(x).repeat(1, 2))

    parts = compiled(model, meta(8, 4), stages={"all": Stage(head=False), "end": Stage(head=True)}, root="root")
    proto = checked(parts)
    names = [value.name for value in proto.graph.input]
    assert names == ["all.x", "end.x", "layers.0.proj.weight", "layers.1.proj.weight", "head.weight"]
    assert list(proto.graph.node[1].input) == ["end.x", "head.weight"]


def test_constants_of_two_stages_stay_apart() -> None:
    """A constant belongs to its stage: torch numbers them anew in each, so equal names mean nothing."""

    class Stage(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([self.value, 0.0], device="cpu").to(x.device)

    one, two = Stage(1.0), Stage(2.0)
    proto = checked(compiled(one, meta(8, 2), stages={"one": one, "two": two}))
    assert [value.name for value in proto.graph.input] == [
        "one.x",
        "two.x",
        "one.lifted_tensor_0",
        "two.lifted_tensor_0",
    ]


def test_tied_weights_are_one_input() -> None:
    """A parameter under two names is one input, under its first name."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 4, bias=False)
            self.head = nn.Linear(4, 4, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    with torch.device("meta"):
        model = Tied()
    (function,) = checked(compiled(model, meta(2, 4))).functions
    assert list(function.input) == ["x", "embed.weight"]
    assert [inputs[1] for _, inputs, _ in calls(function)] == ["embed.weight", "embed.weight"]


def test_a_stack_of_parameters_says_which() -> None:
    """A buffer that holds the memory of several parameters is one input, described by their names."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("stacked", torch.empty(3, 4, 4), persistent=False)
            self.experts = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)])
            for expert, weight in zip(self.experts, self.stacked, strict=True):
                expert.weight = nn.Parameter(weight)

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(x, self.stacked)

    with torch.device("meta"):
        model = Experts()
    proto = checked(compiled(model, meta(2, 4)))
    stacked = proto.graph.input[1]
    assert stacked.name == "stacked"
    assert stacked.doc_string == "3 parameters: experts.[0-2].weight"


def test_the_model_says_what_it_is(toy: Compiled) -> None:
    """Name, variant, legend of the dims and versions are in the model's metadata; no path, no time."""
    proto = checked(toy)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    assert entries["model"] == "toy"
    assert entries["variant.dtype"] == "fp32"
    assert entries["dim.B"].startswith("documents")
    assert entries["provenance.torch"] == toy[0].provenance["torch"]
    assert proto.ir_version == 10


def test_node_names_are_unique() -> None:
    """Equal operators of one module are numbered."""
    function = of(lambda x: x.neg().neg().neg(), meta(2))
    assert [node.name for node in function.node] == ["neg", "neg_1", "neg_2"]


def test_equal_models_give_equal_bytes(toy: Compiled) -> None:
    """A second capture of the same model gives the same file, byte for byte; another model another."""
    with torch.device("meta"):
        model = Toy()
    batch = torch.export.Dim("B", min=2, max=64)
    again = compiled(model, meta(8, 4), dynamic_shapes=({0: batch},))
    assert to_onnx(*again) == to_onnx(*toy)
    captured, graph, lowered = toy
    assert to_onnx(evolve(captured, name="other"), graph, lowered) != to_onnx(*toy)


def test_a_broken_graph_does_not_pass_the_check(toy: Compiled) -> None:
    """The check that these tests rely on refuses a node that reads a value nobody makes."""
    proto = checked(toy)
    proto.graph.node[0].input[0] = "nobody"
    with pytest.raises(onnx.checker.ValidationError, match="nobody"):
        onnx.checker.check_model(proto, full_check=True)
