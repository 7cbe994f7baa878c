"""Signature: one operator call as a kernel sees it; operands with layouts, and scalars; symbolic or with numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from attrs import evolve, frozen

from modelmeter.dim_binding import bind_text
from modelmeter.dtypes import DType
from modelmeter.errors import ModelMeterError
from modelmeter.expert_counts import Routing, uniform_routing

Size = int | str
"""A number, or the text of an expression such as ``"B*S"``."""


class SignatureError(ModelMeterError, ValueError):
    """A document that describes no operator call."""


@frozen(kw_only=True)
class TensorArgument:
    """An operand: type, shape and layout, no data.

    Examples
    --------
    >>> TensorArgument(dtype=DType.BF16, shape=("B", 4), strides=(4, 1)).text
    'bf16[B,4]'
    """

    dtype: DType
    shape: tuple[Size, ...]  # elements per axis
    strides: tuple[Size, ...]  # elements between neighbours per axis
    weight: bool = False  # belongs to the model rather than to a run of it

    @property
    def text(self) -> str:
        """Type, shape, strides where they are not those of a contiguous tensor, and "w" for a weight."""
        shape = ",".join(map(str, self.shape))
        layout = "" if self.is_contiguous else "|" + ",".join(map(str, self.strides))
        return f"{self.dtype.value}[{shape}{layout}]{'w' if self.weight else ''}"

    @property
    def is_contiguous(self) -> bool:
        """Whether numbers say that the elements lie in order without gaps; with open sizes, whether they look so."""
        expected: Size = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size == 1:
                continue
            if stride != expected:
                return False
            expected = size * expected if isinstance(size, int) and isinstance(expected, int) else "?"
        return True

    @property
    def elements(self) -> int:
        """Elements of an operand with numbers; an expanded axis counts in full."""
        count = 1
        for size in self.shape:
            count *= cast("int", size)
        return count

    @property
    def stored_elements(self) -> int:
        """Elements that exist in memory; an expanded axis (stride 0) counts once."""
        count = 1
        for size, stride in zip(self.shape, self.strides, strict=True):
            count *= cast("int", size) if stride != 0 else 1
        return count

    @property
    def bytes(self) -> int:
        """Bytes of the elements that exist."""
        return self.stored_elements * self.dtype.itemsize


@frozen(kw_only=True)
class SizeArgument:
    """A scalar argument that follows from the dims, such as the end of a range."""

    text: str


Value = TensorArgument | SizeArgument | int | float | bool | str | None | tuple["Value", ...]


@frozen(kw_only=True)
class Signature:
    """An operator, its overload and its arguments by the names of its schema; those at their default are left out.

    Examples
    --------
    >>> x = TensorArgument(dtype=DType.FP32, shape=("B", 4), strides=(4, 1))
    >>> w = TensorArgument(dtype=DType.FP32, shape=(2, 4), strides=(4, 1), weight=True)
    >>> linear = Signature(op="aten::linear", overload="default", arguments={"input": x, "weight": w})
    >>> linear.at({"B": 3}).text
    'aten::linear.default(input=fp32[3,4], weight=fp32[2,4]w)'
    """

    op: str  # such as "aten::linear"
    overload: str  # such as "default"
    arguments: Mapping[str, Value]

    @property
    def text(self) -> str:
        """The call in one line; calls with equal texts run equal kernels."""
        inside = ", ".join(f"{name}={_text(value)}" for name, value in self.arguments.items())
        return f"{self.op}.{self.overload}({inside})"

    @property
    def tensors(self) -> tuple[TensorArgument, ...]:
        """Every operand, in the order of the arguments, those in lists included."""
        return tuple(_tensors(tuple(self.arguments.values())))

    def tensor(self, name: str) -> TensorArgument:
        """Return an operand by name.

        Raises
        ------
        SignatureError
            When the call has no such operand.
        """
        value = self.arguments.get(name)
        if not isinstance(value, TensorArgument):
            raise SignatureError(f"{self.text} has no operand {name!r}")
        return value

    def at(self, bindings: Mapping[str, int], *, routing: Routing = uniform_routing) -> Signature:
        """Return the call with a number for every dim.

        Raises
        ------
        UnboundDimError
            When a dim has no size.
        """

        def number(size: Size) -> int:
            return size if isinstance(size, int) else int(bind_text(size, bindings, routing=routing))

        def bound(value: Value) -> Value:
            if isinstance(value, TensorArgument):
                return evolve(value, shape=tuple(map(number, value.shape)), strides=tuple(map(number, value.strides)))
            if isinstance(value, SizeArgument):
                return number(value.text)
            return tuple(map(bound, value)) if isinstance(value, tuple) else value

        return evolve(self, arguments={name: bound(value) for name, value in self.arguments.items()})


def _tensors(values: tuple[Value, ...]) -> Iterator[TensorArgument]:
    for value in values:
        if isinstance(value, TensorArgument):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def _text(value: Value) -> str:
    if isinstance(value, TensorArgument | SizeArgument):
        return value.text
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_text, value)) + ")"
    return repr(value)


def signature_to_json(signature: Signature) -> dict[str, Any]:
    """Write a call in JSON's types.

    Examples
    --------
    >>> x = TensorArgument(dtype=DType.FP32, shape=("B", 4), strides=(4, 1))
    >>> signature_to_json(Signature(op="aten::exp", overload="default", arguments={"self": x}))
    {'op': 'aten::exp', 'overload': 'default', 'arguments': {'self': {'dtype': 'fp32', 'shape': ['B', 4], 'strides': [4, 1]}}}
    """  # noqa: E501 - the output is one line
    return {
        "op": signature.op,
        "overload": signature.overload,
        "arguments": {name: _value_to_json(value) for name, value in signature.arguments.items()},
    }


def _value_to_json(value: Value) -> object:
    if isinstance(value, TensorArgument):
        document: dict[str, Any] = {"dtype": value.dtype.value, "shape": list(value.shape)}
        document["strides"] = list(value.strides)
        return document | ({"weight": True} if value.weight else {})
    if isinstance(value, SizeArgument):
        return {"size": value.text}
    if isinstance(value, tuple):
        return [_value_to_json(item) for item in value]
    if isinstance(value, float) and (value.is_integer() or not math.isfinite(value)):
        return {"float": repr(value)}  # 1.0 is another argument than 1, and JSON has no infinity
    return value


def signature_from_json(document: object) -> Signature:
    """Read a call.

    Raises
    ------
    SignatureError
        When the document is not one that `signature_to_json` writes.
    """
    if not isinstance(document, dict) or document.keys() != {"op", "overload", "arguments"}:
        raise SignatureError(f"{document!r:.120} is no operator call: it has op, overload and arguments")
    fields = cast("dict[str, Any]", document)
    if not isinstance(fields["op"], str) or not isinstance(fields["overload"], str):
        raise SignatureError(f"{document!r:.120} is no operator call: op and overload are texts")
    if not isinstance(fields["arguments"], dict):
        raise SignatureError(f"{document!r:.120} is no operator call: arguments go by name")
    arguments = {name: _value_from_json(value) for name, value in fields["arguments"].items()}
    return Signature(op=fields["op"], overload=fields["overload"], arguments=arguments)


def _value_from_json(value: object) -> Value:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if fields.keys() == {"size"} and isinstance(fields["size"], str):
            return SizeArgument(text=fields["size"])
        if fields.keys() == {"float"}:
            return _float_from_json(fields["float"])
        if {"dtype", "shape", "strides"} <= fields.keys() <= {"dtype", "shape", "strides", "weight"}:
            return _tensor_from_json(fields)
        raise SignatureError(f"{value!r:.120} is neither an operand nor a size nor a float")
    if isinstance(value, list):
        return tuple(_value_from_json(item) for item in cast("list[object]", value))
    if value is None or isinstance(value, int | float | str):
        return value
    raise SignatureError(f"{value!r:.120} is no argument of an operator call")


def _float_from_json(text: object) -> float:
    if isinstance(text, str):
        with suppress(ValueError):
            return float(text)
    raise SignatureError(f"{text!r:.120} is not the text of a float, such as '1.0' or '-inf'")


def _tensor_from_json(fields: Mapping[str, Any]) -> TensorArgument:
    shape, strides = fields["shape"], fields["strides"]
    sizes = [*shape, *strides] if isinstance(shape, list) and isinstance(strides, list) else [None]
    if len(shape) != len(strides) or any(isinstance(size, bool) or not isinstance(size, int | str) for size in sizes):
        raise SignatureError(f"an operand has as many strides as axes, numbers or texts; this one has {dict(fields)!r}")
    try:
        dtype = DType(fields["dtype"])
    except ValueError:
        raise SignatureError(f"an operand has the unknown type {fields['dtype']!r}") from None
    return TensorArgument(dtype=dtype, shape=tuple(shape), strides=tuple(strides), weight=fields.get("weight") is True)


class StoredSignature:
    """A signature as a file has it, built when it is first asked for.

    Examples
    --------
    >>> StoredSignature({"op": "aten::rand", "overload": "default", "arguments": {}}).signature.text
    'aten::rand.default()'
    """

    __slots__ = ("_signature", "document")

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        """The signature itself."""
        if self._signature is None:
            self._signature = signature_from_json(self.document)
        return self._signature
