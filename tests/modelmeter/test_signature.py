"""Signatures: what a call is in text and JSON, with open sizes and with numbers; what is no call is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dtypes import DType
from modelmeter.errors import UnboundDimError
from modelmeter.json_text import read_schema, whole
from modelmeter.signature import (
    Signature,
    SignatureError,
    SizeArgument,
    StoredSignature,
    TensorArgument,
    Value,
    signature_from_json,
    signature_to_json,
)

X = TensorArgument(dtype=DType.BF16, shape=("B", 4), strides=(4, 1))
WEIGHT = TensorArgument(dtype=DType.BF16, shape=(2, 4), strides=(4, 1), weight=True)
SLICED = TensorArgument(dtype=DType.FP32, shape=("B", 1, 4), strides=("4*S", 4, 1))


def _call(**arguments: Value) -> Signature:
    return Signature(op="aten::op", overload="default", arguments=arguments)


def test_a_text_shows_types_shapes_weights_and_odd_layouts() -> None:
    """Strides are written where they are not those of a tensor without gaps; a weight has a "w"."""
    call = _call(input=X, weight=WEIGHT, other=SLICED, dims=(0, -1), causal=True, scale=None, mode="none", eps=1e-6)
    assert call.text == (
        "aten::op.default(input=bf16[B,4], weight=bf16[2,4]w, other=fp32[B,1,4|4*S,4,1], dims=(0, -1), causal=True, "
        "scale=None, mode='none', eps=1e-06)"
    )


@pytest.mark.parametrize(
    ("shape", "strides", "contiguous"),
    [
        ((3, 4), (4, 1), True),
        ((3, 4), (1, 3), False),  # transposed
        ((3, 4), (8, 1), False),  # every second row
        ((3, 4), (0, 1), False),  # expanded
        ((1, 4), (99, 1), True),  # the stride of an axis of one element means nothing
        ((3, 1, 4), (4, 7, 1), True),
        ((), (), True),
    ],
)
def test_contiguous_means_in_order_without_gaps(
    shape: tuple[int, ...], strides: tuple[int, ...], contiguous: bool
) -> None:
    """Axes of one element do not count."""
    assert TensorArgument(dtype=DType.FP32, shape=shape, strides=strides).is_contiguous is contiguous


def test_an_expanded_axis_is_stored_once() -> None:
    """5 x 4 elements of which 4 exist: 4 * 2 bytes."""
    row = TensorArgument(dtype=DType.BF16, shape=(5, 4), strides=(0, 1))
    assert (row.elements, row.stored_elements, row.bytes) == (20, 4, 8)


def test_at_puts_numbers_for_dims_everywhere() -> None:
    """Operands, lists of them and sizes among the scalars, at B = 3 and S = 7: 4 * 7 = 28 and 3 * 7 + 1 = 22."""
    call = _call(input=SLICED, tensors=(X, WEIGHT), end=SizeArgument(text="B*S + 1"), dim=2)
    assert call.at({"B": 3, "S": 7}).text == (
        "aten::op.default(input=fp32[3,1,4|28,4,1], tensors=(bf16[3,4], bf16[2,4]w), end=22, dim=2)"
    )


def test_a_dim_without_a_size_is_named() -> None:
    """The error is that of expressions."""
    with pytest.raises(UnboundDimError, match="no size for dim S"):
        _call(input=SLICED).at({"B": 3})


def test_tensors_are_found_in_lists_and_by_name() -> None:
    """Operands come in the order of the arguments; only operands have names to be asked for."""
    call = _call(tensors=(X, None, (WEIGHT,)), other=SLICED, dim=1)
    assert call.tensors == (X, WEIGHT, SLICED)
    assert call.tensor("other") is SLICED
    with pytest.raises(SignatureError, match=r"aten::op\.default\(.*\) has no operand 'dim'"):
        call.tensor("dim")


DEFINITIONS = read_schema("model")["$defs"]
VALIDATOR = jsonschema.Draft202012Validator({**DEFINITIONS["signature"], "$defs": DEFINITIONS})

sizes = st.integers(0, 4096) | st.sampled_from(["B", "4*S", "B*S - 1"])


@st.composite
def tensor_arguments(draw: st.DrawFn) -> TensorArgument:
    """Return any operand: as many strides as axes."""
    axes = draw(st.lists(st.tuples(sizes, sizes), max_size=4))
    return TensorArgument(
        dtype=draw(st.sampled_from(DType)),
        shape=tuple(size for size, _ in axes),
        strides=tuple(stride for _, stride in axes),
        weight=draw(st.booleans()),
    )


scalars = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=5)
values = st.recursive(
    tensor_arguments() | scalars | st.builds(SizeArgument, text=st.sampled_from(["S", "B*S"])),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@given(st.dictionaries(st.text("abc", min_size=1), values, max_size=4))
def test_json_keeps_the_call(arguments: dict[str, Value]) -> None:
    """Law: read from JSON as files have it, a call equals the one written, and 1.0 does not become 1."""
    call = _call(**arguments)
    document = json.loads(json.dumps(whole(signature_to_json(call)), allow_nan=False))
    again = signature_from_json(document)
    assert again == call
    assert again.text == call.text
    VALIDATOR.validate(document)


@given(tensor_arguments(), st.integers(1, 9), st.integers(1, 9))
def test_numbers_stay_where_there_are_no_dims(argument: TensorArgument, batch: int, tokens: int) -> None:
    """Law: a call with numbers is the same at any sizes."""
    bound = _call(x=argument).at({"B": batch, "S": tokens})
    assert bound.at({"B": batch + 1, "S": tokens + 1}) == bound


OPERAND = {"dtype": "bf16", "shape": ["B", 4], "strides": [4, 1]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is no operator call: it has op, overload and arguments"),
        ({"op": "aten::exp", "arguments": {}}, "is no operator call: it has op, overload and arguments"),
        ({"op": 1, "overload": "", "arguments": {}}, "op and overload are texts"),
        ({"op": "aten::exp", "overload": "", "arguments": [OPERAND]}, "arguments go by name"),
        ({**OPERAND, "strides": [1]}, "as many strides as axes"),
        ({**OPERAND, "shape": [True, 4]}, "numbers or texts"),
        ({**OPERAND, "shape": "B4"}, "as many strides as axes"),
        ({**OPERAND, "dtype": "bf17"}, "unknown type 'bf17'"),
        ({**OPERAND, "colour": "red"}, "neither an operand nor a size nor a float"),
        ({"size": 3}, "neither an operand nor a size nor a float"),
        ({"float": "many"}, "'many' is not the text of a float"),
        ({"float": 1.0}, "1.0 is not the text of a float"),
        ({1, 2}, "is no argument of an operator call"),
    ],
)
def test_what_is_no_call_is_refused(document: Any, message: str) -> None:
    """Each defect has a message that shows it; an argument's is found in a list too."""
    wrapped = {"op": "aten::exp", "overload": "", "arguments": {"self": [document]}}
    whole_call = isinstance(document, list) or "arguments" in document
    with pytest.raises(SignatureError, match=message) as caught:
        signature_from_json(document if whole_call else wrapped)
    assert isinstance(caught.value, ValueError)


def test_a_stored_signature_is_built_once_and_late() -> None:
    """A wrong document is an error when it is asked for, not before."""
    stored = StoredSignature({"op": "aten::rand", "overload": "", "arguments": {}})
    assert stored.signature is stored.signature
    wrong = StoredSignature({"op": "aten::rand"})
    with pytest.raises(SignatureError):
        _ = wrong.signature
