"""The captured graph as ONNX: one function per stage, one node per ATen call, costs as metadata, no weights."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, ValueInfoProto

from dsocr_graph import __version__
from dsocr_graph.emit.onnx_metadata import CallMetadata
from dsocr_graph.emit.onnx_stage import OPSET, OWN_DOMAIN, STAGE_DOMAIN, StageFunction
from dsocr_graph.ir import CapturedModel
from dsocr_graph.scopes import CallGraph
from modelmeter.model import AnalyticModel

_IR_VERSION = 10  # the first with types of values inside functions, overloads and metadata
_CONSTANT = "lifted_tensor_"  # torch.export's name of a constant: numbered anew in every stage
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
    >>> from dsocr_graph.models.stage_spec import StageSpec
    >>> from dsocr_graph.tracing import capture
    >>> with torch.device("meta"):
    ...     module, x = torch.nn.Linear(4, 2), torch.empty(3, 4)
    >>> stage = StageSpec(name="forward", description="", module=module, inputs=(x,))
    >>> captured = capture(module, [stage], name="toy", variant={})
    >>> graph = group_by_module(captured)
    >>> proto = onnx.load_model_from_string(to_onnx(captured, graph, lower(graph)))
    >>> [(node.domain, node.op_type, list(node.input)) for node in proto.functions[0].node]
    [('aten', 'linear', ['input', 'weight', 'bias'])]
    """
    metadata = CallMetadata(graph, model)
    stages = [StageFunction(stage, captured, metadata) for stage in captured.graphs]
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
        proto.opset_import.add(domain=domain, version=1 if domain else OPSET)
    facts = {
        "model": captured.name,
        **{f"variant.{key}": value for key, value in sorted(captured.variant.items())},
        **{f"dim.{name}": text for name, text in sorted(model.dims.items())},
        **{f"provenance.{key}": value for key, value in sorted(captured.provenance.items())},
    }
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True)


def _renamed(stage: StageFunction, value: ValueInfoProto) -> ValueInfoProto:
    """Return a value of a stage as the main graph names it."""
    result = ValueInfoProto()
    result.CopyFrom(value)
    result.name = f"{stage.graph.stage}.{value.name}"
    return result


def _shared(stage: StageFunction, value: ValueInfoProto, weights: dict[str, ValueInfoProto]) -> str:
    """Return the main graph's name of a weight: one for all stages that read it."""
    if not value.name.startswith(_CONSTANT) and weights.setdefault(value.name, value).type == value.type:
        return value.name
    own = _renamed(stage, value)
    weights[own.name] = own
    return own.name
