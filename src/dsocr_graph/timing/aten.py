"""ATen by name: the operator that a captured call names, and its plain arguments as torch takes them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch._ops import OpOverload

import dsocr_graph.models.deepseek_ocr.ops  # noqa: F401  # pyright: ignore[reportUnusedImport] - it registers them
from dsocr_graph.errors import OperatorArgumentError, UnknownOperatorError

# What the graphs are captured on; it stands for the device of the run.
_CAPTURE_DEVICE = "meta"


def overload_of(op: str, overload: str) -> OpOverload:
    """Return an operator by its name and overload, those of this package included.

    Raises
    ------
    UnknownOperatorError
        When this torch has no such operator, or not this overload of it; the error lists the overloads there are.

    Examples
    --------
    >>> overload_of("aten::linear", "default")
    <OpOverload(op='aten.linear', overload='default')>
    >>> overload_of("dsocr_graph::grouped_linear", "default").namespace
    'dsocr_graph'
    """
    namespace, _, name = op.partition("::")
    try:
        packet = getattr(getattr(torch.ops, namespace), name)
    except (AttributeError, RuntimeError):
        raise UnknownOperatorError(
            f"operator {op!r} does not exist in torch {torch.__version__}: it is written NAMESPACE::NAME, such as "
            "aten::linear, and one outside aten needs its library imported; use the torch release that the model was "
            "captured with, or capture it again with this one"
        ) from None
    known = cast("list[str]", packet.overloads())
    if overload not in known:
        raise UnknownOperatorError(
            f"operator {op!r} has no overload {overload!r} in torch {torch.__version__}; it has {', '.join(known)}; "
            "use the torch release that the model was captured with, or capture it again with this one"
        )
    return cast("OpOverload", getattr(packet, overload))


def plain_argument(overload: OpOverload, name: str, value: object, device: torch.device | str) -> object:
    """Return an argument that is no tensor as torch takes it: texts that name torch's objects become those.

    Parameters
    ----------
    overload : OpOverload
        The operator; its schema says what a text stands for.
    name : str
        Of the argument, in the schema.
    value : object
        A number, a text, None or a tuple of these, as captured graphs and signatures hold them.
    device : torch.device or str
        Where the operator runs; it takes the place of the device that the graph was captured on.

    Raises
    ------
    OperatorArgumentError
        When the operator has no such argument, or the text names no dtype, device, layout or memory format.

    Examples
    --------
    >>> arange = overload_of("aten::arange", "default")
    >>> plain_argument(arange, "dtype", "int64", "cpu"), plain_argument(arange, "device", "meta", "cpu")
    (torch.int64, device(type='cpu'))
    >>> plain_argument(arange, "end", 7, "cpu")
    7
    """
    if not isinstance(value, str):
        return value
    kind = _argument_type(overload, name)
    if kind == "Device":
        return _device(overload, name, value, device)
    if kind not in _NAMED:
        return value
    found = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(found, _NAMED[kind]):
        raise OperatorArgumentError(
            f"{overload}: argument {name!r} is {value!r}, which is no {_NAMED[kind].__name__} of torch "
            f"{torch.__version__}; write it as torch does, such as {_EXAMPLES[kind]}"
        )
    return found


# Type in the schema -> class of the objects, which torch holds under their names.
_NAMED: dict[str, type] = {"ScalarType": torch.dtype, "Layout": torch.layout, "MemoryFormat": torch.memory_format}
_EXAMPLES = {"ScalarType": "bfloat16", "Layout": "torch.strided", "MemoryFormat": "torch.contiguous_format"}


def _argument_type(overload: OpOverload, name: str) -> str:
    """Return the type of an argument, without Optional."""
    schema: Any = overload._schema  # pyright: ignore[reportPrivateUsage] - torch has no public name
    arguments = schema.arguments
    for argument in arguments:
        if argument.name == name:
            return str(argument.real_type).removeprefix("Optional[").removesuffix("]")
    raise OperatorArgumentError(
        f"{overload} has no argument {name!r}; it has {', '.join(argument.name for argument in arguments)}; use the "
        "torch release that the model was captured with, or capture it again with this one"
    )


def _device(overload: OpOverload, name: str, value: str, device: torch.device | str) -> torch.device:
    if value == _CAPTURE_DEVICE:
        return torch.device(device)
    try:
        return torch.device(value)
    except RuntimeError:
        raise OperatorArgumentError(
            f"{overload}: argument {name!r} is {value!r}, which is no device; it is cpu, cuda, or {_CAPTURE_DEVICE} "
            "for the device of the run"
        ) from None
