"""One stage as an ONNX function: values in single assignment, writes in place as new values, weights by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from onnx import FunctionProto, NodeProto, TypeProto, ValueInfoProto

from dsocr_graph.emit.onnx_metadata import CallMetadata
from dsocr_graph.emit.onnx_values import attributes, slots, tensor_type
from dsocr_graph.ir import CapturedModel, OpCall, OpGraph, Role, TensorSpec
from dsocr_graph.scopes import index_pattern
from modelmeter.dims import Dim
from modelmeter.dtypes import DType

STAGE_DOMAIN = "dsocr_graph.stage"
"""Domain of the functions that hold the stages."""

OWN_DOMAIN = "dsocr_graph"
"""Domain of operators that are no ATen operators: the model's own kernels, and `after_write`."""

OPSET = 21
"""Version of ONNX's own operators; every other domain has version 1."""


class StageFunction:
    """One stage as a function: values in single assignment, nodes in order of execution.

    Attributes
    ----------
    graph : OpGraph
        The stage as captured.
    inputs, weights : list of ValueInfoProto
        What the function takes, in this order.
    outputs : list of ValueInfoProto
        What it returns: values of their own, never inputs.
    """

    def __init__(self, graph: OpGraph, captured: CapturedModel, metadata: CallMetadata) -> None:
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
            result.opset_import.add(domain=domain, version=1 if domain else OPSET)
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
        places = [(slot, self._read(value)) for slot, value in slots(call)]
        domain, _, name = call.op.partition("::")
        node = self._node(call.module, domain, name, [value for _, value in places])
        node.overload = call.overload
        node.attribute.extend(attributes(call))
        facts = self._metadata.of(self.graph.stage, call)
        if places:
            facts["inputs"] = ", ".join(slot for slot, _ in places)
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
            self._types[key] = tensor_type(tensor)
        return ValueInfoProto(name=name, type=self._types[key], doc_string=about or None)


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
