"""Types, tensors and arguments of calls in ONNX's terms."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import AttributeProto, TensorProto, TypeProto

from dsocr_graph.ir import Argument, OpCall, TensorRef, TensorSpec
from modelmeter.dim_text import to_text
from modelmeter.dtypes import DType

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
    DType.COMPLEX128: TensorProto.COMPLEX128,
    DType.COMPLEX64: TensorProto.COMPLEX64,
}


def tensor_type(tensor: TensorSpec) -> TypeProto:
    """Return the type of a tensor: its elements, and its sizes as numbers or expressions in dims.

    Examples
    --------
    >>> from dsocr_graph.ir import Role
    >>> from modelmeter.dims import symbol
    >>> x = TensorSpec(
    ...     id=0, name="x", shape=(3 * symbol("B"), 2), strides=(2, 1), dtype=DType.BF16, role=Role.INPUT,
    ...     storage=0, storage_bytes=12 * symbol("B"),
    ... )
    >>> [size.dim_param or size.dim_value for size in tensor_type(x).tensor_type.shape.dim]
    ['3*B', 2]
    """
    kind = TypeProto()
    kind.tensor_type.elem_type = _ELEMENT_TYPES[tensor.dtype]
    kind.tensor_type.shape.SetInParent()  # a scalar has a shape of no axes, not an unknown one
    for size in tensor.shape:
        if isinstance(size, int):
            kind.tensor_type.shape.dim.add(dim_value=size)
        else:
            kind.tensor_type.shape.dim.add(dim_param=to_text(size))
    return kind


def slots(call: OpCall) -> list[tuple[str, TensorSpec | None]]:
    """Return the tensors of a call with the names of their places; None in between keeps its place.

    A list of tensors has a place per item, named by its position: ``tensors[0]``, ``tensors[1]``. Places at the end
    that hold None are left out.

    Examples
    --------
    >>> call = OpCall(
    ...     index=0, op="aten::clamp", overload="Tensor", arguments={"min": None, "max": None, "dim": 1},
    ...     results=(), scope=(), function="forward", tensors=(),
    ... )
    >>> slots(call)
    []
    """
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


def attributes(call: OpCall) -> list[AttributeProto]:
    """Return the arguments of a call that are no tensors; those that are None are left out.

    Numbers, texts and lists of them have ONNX's own types; what holds a dim is text.

    Examples
    --------
    >>> from modelmeter.dims import symbol
    >>> call = OpCall(
    ...     index=0, op="aten::view", overload="default", arguments={"size": (symbol("B"), 64), "other": None},
    ...     results=(), scope=(), function="forward", tensors=(),
    ... )
    >>> [(attribute.name, list(attribute.strings)) for attribute in attributes(call)]
    [('size', [b'B', b'64'])]
    """
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
