"""The captured graph as ONNX: one function per stage, one node per ATen call, costs as metadata, no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from dsocr_graph import __version__
from dsocr_graph.ir import Argument, CapturedModel, OpCall, OpGraph, Role, TensorRef, TensorSpec
from dsocr_graph.scopes import CallGraph, index_pattern
from modelmeter.dims import Dim, to_text, total
from modelmeter.dtypes import DType
from modelmeter.model import AnalyticModel, Exactness, Leaf

STAGE_DOMAIN = "dsocr_graph.stage"
"""Domain of the functions that hold the stages."""

OWN_DOMAIN = "dsocr_graph"
"""Domain of operators that are no ATen operators: the model's own kernels, and `after_write`."""

_IR_VERSION = 10  # the first with types of values inside functions, overloads and metadata
_OPSET = 21
_CONSTANT = "lifted_tensor_"  # torch.export's name of a constant: numbered anew in every stage
_ELEMENT_TYPES: Mapping[DType, int] = {
    DType.FP64: TensorProto.DOUBLE,
    DType.FP32: TensorProto.FLOAT,
    DType.BF16: TensorProto.BFLOAT16,
    DType.FP16: TensorProto.FLOAT16,
    DType.FP8_E4M3: TensorProto.FLOAT8E4M3FN,
    DType.FP8_E5M2: TensorProto.FLOAT8E5M2,
    DType.INT64: TensorProto.INT64,
    DType.INT32: TensorProto.INT32,
    DType.INT16: TensorProto.INT16,
    DType.INT8: TensorProto.INT8,
    DType.UINT8: TensorProto.UINT8,
    DType.BOOL: TensorProto.BOOL,
}
_ABOUT = """\
The ATen graph of {name} as torch.export captured it, for reading, not for running: no weights are inside.
Each stage is a function of the domain dsocr_graph.stage; the main graph calls every stage once, unconnected, because \
how often each runs, and at which sizes, depends on the pages.
Inside, one node is one ATen call: domain and name of the operator, its overload, tensors as inputs (metadata `inputs` \
names them by the operator's schema), everything else as attributes. Sizes are expressions in the dims of the model's \
metadata. An operator that writes in place yields a new value; dsocr_graph::after_write is the memory of its first \
input once its second, which shares it, was written.
Metadata of a node: scope and class of the module that runs it, module (its id in the call graph), function, \
category, and the cost of one execution: flops, bytes (every operand moved once) and fused_bytes (pointwise chains \
stay on chip); free marks calls that move nothing."""


def to_onnx(captured: CapturedModel, graph: CallGraph, model: AnalyticModel) -> bytes:
    """Return a captured model as an ONNX file without weights.

    Parameters
    ----------
    captured : CapturedModel
        The model as captured.
    graph : CallGraph
        The same, grouped by module: tells each call its node.
    model : AnalyticModel
        The same, lowered: tells each call its cost.

    Returns
    -------
    bytes
        A ModelProto of IR version 10. It depends on the captured model only, never on a workload, and equal models
        give equal bytes. Weights are inputs of the graph, named as the parameters. Float attributes have the 32
        bits that ONNX gives them.

    Examples
    --------
    >>> import onnx, torch
    >>> from dsocr_graph.lowering import lower
    >>> from dsocr_graph.scopes import group_by_module
    >>> from dsocr_graph.tracing import StageSpec, capture
    >>> with torch.device("meta"):
    ...     module, x = torch.nn.Linear(4, 2), torch.empty(3, 4)
    >>> stage = StageSpec(name="forward", description="", module=module, inputs=(x,))
    >>> captured = capture(module, [stage], name="toy", variant={})
    >>> graph = group_by_module(captured)
    >>> proto = onnx.load_model_from_string(to_onnx(captured, graph, lower(graph)))
    >>> [(node.domain, node.op_type, list(node.input)) for node in proto.functions[0].node]
    [('aten', 'linear', ['input', 'weight', 'bias'])]
    """
    metadata = _Metadata(captured, graph, model)
    stages = [_Stage(stage, captured, metadata) for stage in captured.graphs]
    descriptions = {stage.name: stage.description for stage in model.stages}
    proto = ModelProto(
        ir_version=_IR_VERSION,
        producer_name="dsocr_graph",
        producer_version=__version__,
        doc_string=_ABOUT.format(name=captured.name),
    )
    proto.graph.name = captured.name
    weights: dict[str, ValueInfoProto] = {}
    for stage in stages:
        call = NodeProto(
            name=stage.graph.stage,
            op_type=stage.graph.stage,
            domain=STAGE_DOMAIN,
            doc_string=descriptions.get(stage.graph.stage, ""),
        )
        call.input.extend(f"{stage.graph.stage}.{value.name}" for value in stage.inputs)
        call.input.extend(_shared(stage, value, weights) for value in stage.weights)
        call.output.extend(f"{stage.graph.stage}.{value.name}" for value in stage.outputs)
        proto.graph.node.append(call)
        proto.graph.input.extend(_renamed(stage, value) for value in stage.inputs)
        proto.graph.output.extend(_renamed(stage, value) for value in stage.outputs)
        proto.functions.append(stage.function(descriptions.get(stage.graph.stage, "")))
    proto.graph.input.extend(weights.values())
    domains = {call.op.partition("::")[0] for stage in captured.graphs for call in stage.calls}
    for domain in ("", *sorted({STAGE_DOMAIN, OWN_DOMAIN, *domains})):
        proto.opset_import.add(domain=domain, version=1 if domain else _OPSET)
    facts = {
        "model": captured.name,
        **{f"variant.{key}": value for key, value in sorted(captured.variant.items())},
        **{f"dim.{name}": text for name, text in sorted(model.dims.items())},
        **{f"provenance.{key}": value for key, value in sorted(captured.provenance.items())},
    }
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True)


def _renamed(stage: _Stage, value: ValueInfoProto) -> ValueInfoProto:
    """Return a value of a stage as the main graph names it."""
    result = ValueInfoProto()
    result.CopyFrom(value)
    result.name = f"{stage.graph.stage}.{value.name}"
    return result


def _shared(stage: _Stage, value: ValueInfoProto, weights: dict[str, ValueInfoProto]) -> str:
    """Return the main graph's name of a weight: one for all stages that read it."""
    if not value.name.startswith(_CONSTANT) and weights.setdefault(value.name, value).type == value.type:
        return value.name
    own = _renamed(stage, value)
    weights[own.name] = own
    return own.name


class _Metadata:
    """What each call says about itself: its module and its cost."""

    def __init__(self, captured: CapturedModel, graph: CallGraph, model: AnalyticModel) -> None:
        leaves: dict[tuple[str, str], list[Leaf]] = {}
        for leaf in model.leaves:
            leaves.setdefault((leaf.stage, leaf.id.partition("~")[0]), []).append(leaf)
        self._of: dict[tuple[str, int], dict[str, str]] = {}
        for scoped in graph.calls:
            facts = {
                "module": scoped.node or "(root)",
                "function": scoped.call.function,
                **_costs(leaves.get((scoped.stage, f"{scoped.node}/{scoped.name}"), [])),
            }
            for index in scoped.indices:
                self._of[scoped.stage, index] = facts

    def of(self, stage: str, call: OpCall) -> dict[str, str]:
        """Return the facts about one call."""
        frame = call.scope[-1]
        return {"scope": frame.path or "(root)", "class": frame.class_name, **self._of[stage, call.index]}


def _costs(leaves: Sequence[Leaf]) -> dict[str, str]:
    """Return the cost of one execution; without a leaf the call is free."""
    if not leaves:
        return {"free": "true"}
    leaf = leaves[0]
    facts = {
        "category": leaf.category.value,
        "flops": _sum_text(leaf.cost.matmul_flops.text, leaf.cost.vector_flops.text, leaf),
        "bytes": leaf.cost.bytes.text,
        # Folded instances whose neighbours differ are several leaves of one call: the first figure is the first's.
        "fused_bytes": " or ".join(dict.fromkeys(each.cost.fused_bytes.text for each in leaves)),
    }
    if leaf.exactness is not Exactness.EXACT:
        facts |= {"exactness": leaf.exactness.value, "note": leaf.note}
    return facts


def _sum_text(matmul: str, vector: str, leaf: Leaf) -> str:
    if "0" in (matmul, vector):
        return matmul if vector == "0" else vector
    return to_text(total((leaf.cost.matmul_flops.value, leaf.cost.vector_flops.value)))


class _Stage:
    """One stage as a function: values in single assignment, nodes in order of execution."""

    def __init__(self, graph: OpGraph, captured: CapturedModel, metadata: _Metadata) -> None:
        self.graph = graph
        self.inputs: list[ValueInfoProto] = []
        self.weights: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self._metadata = metadata
        self._nodes: list[NodeProto] = []
        self._values: list[ValueInfoProto] = []
        self._types: dict[tuple[DType, tuple[Dim, ...]], TypeProto] = {}
        self._taken: set[str] = set()
        self._node_names: Counter[str] = Counter()
        self._names: dict[int, str] = {}  # tensor -> its current value
        self._seen: dict[int, int] = {}  # tensor -> writes to its storage that its value includes
        self._writes: Counter[int] = Counter()  # storage -> writes so far
        self._written: dict[int, str] = {}  # storage -> value of the last write
        self._build(captured)

    def _build(self, captured: CapturedModel) -> None:
        for item in self.graph.inputs:
            tensor = self.graph.tensors[item]
            about = "KV cache" if tensor.role is Role.KV_CACHE else "input"
            self.inputs.append(self._value(self._name(tensor, tensor.name), tensor, about))
        self._add_weights(captured)
        for call in self.graph.calls:
            self._add(call)
        for item in self.graph.outputs:
            self.outputs.append(self._output(self.graph.tensors[item]))

    def function(self, description: str) -> FunctionProto:
        """Return the stage as a model-local function."""
        used = sorted({node.domain for node in self._nodes} | {""})
        result = FunctionProto(name=self.graph.stage, domain=STAGE_DOMAIN, doc_string=description)
        result.input.extend(value.name for value in (*self.inputs, *self.weights))
        result.output.extend(value.name for value in self.outputs)
        result.node.extend(self._nodes)
        for domain in used:
            result.opset_import.add(domain=domain, version=1 if domain else _OPSET)
        results = {value.name for value in self._values}
        result.value_info.extend((*self.inputs, *self.weights, *self._values))
        result.value_info.extend(value for value in self.outputs if value.name not in results)
        result.metadata_props.add(key="dims", value=", ".join(self.graph.dims))
        return result

    def _add_weights(self, captured: CapturedModel) -> None:
        """Name the weights that the stage reads; tied ones are one input."""
        paths = {module.path for module in captured.modules}
        shapes = {parameter.name: parameter.shape for parameter in captured.parameters}
        read = {tensor.id for call in self.graph.calls for tensor in call.reads}
        parameters: set[str] = set()
        for item in sorted(self.graph.weights.keys() & read):
            tensor = self.graph.tensors[item]
            owners = self.graph.weights[item]
            if len(owners) == 1 and shapes[owners[0]] == tensor.shape:
                if owners[0] in parameters:
                    self._names[item], self._seen[item] = owners[0], 0
                    continue
                parameters.add(owners[0])
                self.weights.append(self._value(self._name(tensor, owners[0]), tensor, "parameter"))
                continue
            about = f"{len(owners)} parameters: {folded_names(owners)}" if owners else "buffer"
            self.weights.append(self._value(self._name(tensor, _without_prefix(tensor.name, paths)), tensor, about))

    def _add(self, call: OpCall) -> None:
        slots = [(slot, self._read(value)) for slot, value in _slots(call)]
        domain, _, name = call.op.partition("::")
        node = self._node(call.module, domain, name, [value for _, value in slots])
        node.overload = call.overload
        node.attribute.extend(_attributes(call))
        facts = self._metadata.of(self.graph.stage, call)
        if slots:
            facts["inputs"] = ", ".join(slot for slot, _ in slots)
        for key, value in facts.items():
            node.metadata_props.add(key=key, value=value)
        written = (name.endswith("_") and not name.endswith("__")) or call.has("out")
        for tensor in call.writes:
            value = self._name(tensor, tensor.name)
            node.output.append(value)
            self._values.append(self._value(value, tensor))
            if written:
                self._writes[tensor.storage] += 1
                self._written[tensor.storage] = value
        for tensor in call.writes:
            self._seen[tensor.id] = self._writes[tensor.storage]

    def _read(self, tensor: TensorSpec | None) -> str:
        """Return the value of a tensor as it is now; "" stands for None."""
        if tensor is None:
            return ""
        if self._seen[tensor.id] < self._writes[tensor.storage]:
            # Its memory was written through another tensor since: the order must show in the graph.
            node = self._node("", OWN_DOMAIN, "after_write", [self._names[tensor.id], self._written[tensor.storage]])
            value = self._name(tensor, f"{tensor.name}.after_write")
            self._seen[tensor.id] = self._writes[tensor.storage]
            node.output.append(value)
            self._values.append(self._value(value, tensor))
        return self._names[tensor.id]

    def _output(self, tensor: TensorSpec) -> ValueInfoProto:
        name = self._read(tensor)
        if name in {value.name for value in (*self.inputs, *self.weights, *self.outputs)}:
            # An output must be a value of its own.
            node = self._node("", "", "Identity", [name])
            name = self._unique(f"{name}.output")
            node.output.append(name)
        return self._value(name, tensor, "KV cache" if tensor.role is Role.KV_CACHE else "output")

    def _node(self, path: str, domain: str, name: str, inputs: Iterable[str]) -> NodeProto:
        """Append a node named by its module and operator, numbered from the second of a name on."""
        base = f"{path}/{name}" if path else name
        number = self._node_names[base]
        self._node_names[base] += 1
        node = NodeProto(name=f"{base}_{number}" if number else base, domain=domain, op_type=name)
        node.input.extend(inputs)
        self._nodes.append(node)
        return node

    def _name(self, tensor: TensorSpec, wanted: str) -> str:
        """Give a tensor its value."""
        self._names[tensor.id] = self._unique(wanted)
        self._seen.setdefault(tensor.id, self._writes[tensor.storage])
        return self._names[tensor.id]

    def _unique(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}.{number}"
        self._taken.add(name)
        return name

    def _value(self, name: str, tensor: TensorSpec, about: str = "") -> ValueInfoProto:
        key = (tensor.dtype, tensor.shape)
        if key not in self._types:
            self._types[key] = _tensor_type(tensor)
        return ValueInfoProto(name=name, type=self._types[key], doc_string=about or None)


def _tensor_type(tensor: TensorSpec) -> TypeProto:
    kind = TypeProto()
    kind.tensor_type.elem_type = _ELEMENT_TYPES[tensor.dtype]
    kind.tensor_type.shape.SetInParent()  # a scalar has a shape of no axes, not an unknown one
    for size in tensor.shape:
        if isinstance(size, int):
            kind.tensor_type.shape.dim.add(dim_value=size)
        else:
            kind.tensor_type.shape.dim.add(dim_param=to_text(size))
    return kind


def _slots(call: OpCall) -> list[tuple[str, TensorSpec | None]]:
    """Return the tensors of a call with the names of their places; None in between keeps its place."""
    found: list[tuple[str, TensorSpec | None]] = []
    for name, value in call.arguments.items():
        if value is None:
            found.append((name, None))
        elif isinstance(value, TensorRef):
            found.append((name, call.tensors[value.id]))
        elif _holds_tensors(value):
            assert isinstance(value, tuple)
            found.extend(
                (f"{name}[{position}]", call.tensors[item.id] if isinstance(item, TensorRef) else None)
                for position, item in enumerate(value)
            )
    while found and found[-1][1] is None:
        found.pop()
    return found


def _holds_tensors(value: Argument) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, TensorRef) for item in value)


def _attributes(call: OpCall) -> list[AttributeProto]:
    """Return the arguments of a call that are no tensors; those that are None are left out."""
    return [
        _attribute(name, value)
        for name, value in call.arguments.items()
        if value is not None and not isinstance(value, TensorRef) and not _holds_tensors(value)
    ]


def _attribute(name: str, value: Argument) -> AttributeProto:
    """Return a number, a text or a list of them; what holds a dim becomes text."""
    attribute = AttributeProto(name=name)
    if isinstance(value, int):
        attribute.type, attribute.i = AttributeProto.INT, int(value)  # ONNX has no booleans
    elif isinstance(value, float):
        attribute.type, attribute.f = AttributeProto.FLOAT, value
    elif not isinstance(value, tuple):
        attribute.type, attribute.s = AttributeProto.STRING, _text(value).encode()
    elif all(isinstance(item, int) for item in value):
        attribute.type = AttributeProto.INTS
        attribute.ints.extend(int(item) for item in value if isinstance(item, int))
    elif all(isinstance(item, int | float) for item in value):
        attribute.type = AttributeProto.FLOATS
        attribute.floats.extend(item for item in value if isinstance(item, int | float))
    else:
        attribute.type = AttributeProto.STRINGS
        attribute.strings.extend(_text(item).encode() for item in value)
    return attribute


def _text(value: Argument) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return "(" + ", ".join(_text(item) for item in value) + ")"
    if value is None or isinstance(value, bool | TensorRef):
        return str(value)
    return to_text(value)


def _without_prefix(name: str, paths: set[str]) -> str:
    """Return the name of a buffer in the model: without the path of the model in the stage's module."""
    parts = name.split(".")
    for start in range(len(parts)):
        if ".".join(parts[start:-1]) in paths:
            return ".".join(parts[start:])
    return name


def folded_names(names: Sequence[str]) -> str:
    """Write names that differ in one index as one pattern, others one after the other.

    Examples
    --------
    >>> folded_names(["experts.0.weight", "experts.1.weight", "experts.2.weight"])
    'experts.[0-2].weight'
    >>> folded_names(["a.weight", "b.weight"])
    'a.weight, b.weight'
    """
    rows = [name.split(".") for name in names]
    if len({len(row) for row in rows}) == 1:
        columns = list(zip(*rows, strict=True))
        open_columns = [position for position, column in enumerate(columns) if len(set(column)) > 1]
        if len(open_columns) == 1 and all(part.isdigit() for part in columns[open_columns[0]]):
            pattern = list(rows[0])
            pattern[open_columns[0]] = index_pattern(int(part) for part in columns[open_columns[0]])
            return ".".join(pattern)
    return ", ".join(names)
