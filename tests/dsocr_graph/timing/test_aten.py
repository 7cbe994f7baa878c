"""Operators by name, and texts as torch's objects."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.errors import OperatorArgumentError, UnknownOperatorError
from dsocr_graph.timing.aten import overload_of, plain_argument


def test_an_operator_is_found_by_name_and_overload() -> None:
    """aten::add.Tensor is the very operator that torch.ops holds."""
    assert overload_of("aten::add", "Tensor") is torch.ops.aten.add.Tensor


def test_operators_of_this_package_are_registered() -> None:
    """Naming grouped_linear is enough; no other import is needed."""
    grouped = overload_of("dsocr_graph::grouped_linear", "default")
    rows, weight = torch.eye(2), torch.ones(1, 3, 2)
    made = grouped(rows, weight, torch.tensor([2], dtype=torch.int32), 1)
    assert made.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("op", "overload", "message"),
    [
        ("aten::no_such", "default", r"operator 'aten::no_such' does not exist in torch \d.*capture it again"),
        ("nowhere::add", "default", "operator 'nowhere::add' does not exist"),
        ("aten::linear", "Tensor", "operator 'aten::linear' has no overload 'Tensor' .*; it has default"),
        ("linear", "default", "operator 'linear' does not exist .*: it is written NAMESPACE::NAME"),
    ],
)
def test_an_unknown_operator_is_named(op: str, overload: str, message: str) -> None:
    """The message says what is missing, what there is, and what to do."""
    with pytest.raises(UnknownOperatorError, match=message):
        overload_of(op, overload)


@pytest.mark.parametrize(
    ("op", "overload", "name", "text", "expected"),
    [
        ("aten::to", "dtype", "dtype", "bfloat16", torch.bfloat16),
        ("aten::softmax", "int", "dtype", "float32", torch.float32),
        ("aten::arange", "default", "layout", "torch.strided", torch.strided),
        ("aten::clone", "default", "memory_format", "torch.contiguous_format", torch.contiguous_format),
        ("aten::arange", "default", "device", "meta", torch.device("cuda", 3)),
        ("aten::arange", "default", "device", "cpu", torch.device("cpu")),
        ("aten::einsum", "default", "equation", "ij,jk->ik", "ij,jk->ik"),  # a text that is one
    ],
)
def test_texts_become_what_the_schema_says(op: str, overload: str, name: str, text: str, expected: object) -> None:
    """The type in the operator's schema decides; the device of the capture becomes that of the run."""
    assert plain_argument(overload_of(op, overload), name, text, "cuda:3") == expected


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.tuples(st.integers())))
def test_other_values_stay(value: object) -> None:
    """Numbers, None and tuples are what torch takes already."""
    assert plain_argument(torch.ops.aten.arange.default, "end", value, "cpu") is value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dtype", "bfloat17", "argument 'dtype' is 'bfloat17', which is no dtype of torch .*such as bfloat16"),
        ("dtype", "nn", "argument 'dtype' is 'nn', which is no dtype"),  # torch.nn exists and is something else
        ("device", "abacus", "argument 'device' is 'abacus', which is no device; it is cpu, cuda, or meta"),
        ("colour", "red", "has no argument 'colour'; it has end, dtype, layout, device, pin_memory"),
    ],
)
def test_a_text_that_names_nothing_is_refused(name: str, text: str, message: str) -> None:
    """The message names the operator's argument, the text and how to write it."""
    with pytest.raises(OperatorArgumentError, match=message):
        plain_argument(torch.ops.aten.arange.default, name, text, "cpu")
