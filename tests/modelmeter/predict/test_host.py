"""Classes of host time: every operator in one, none by default."""

import pickle

import pytest

from modelmeter.predict.host import HOST_CLASSES, UnknownOperatorError, host_class


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("aten::view", "view"),
        ("aten::mul", "elementwise"),
        ("aten::softmax", "reduction"),
        ("aten::conv2d", "gemm"),
        ("dsocr_graph::flash_attention", "attention"),
        ("aten::topk", "indexing"),
        ("aten::cat", "allocating"),
    ],
)
def test_an_operator_has_the_class_of_its_kind(op: str, expected: str) -> None:
    """One operator of every class that operators have."""
    assert host_class(op) == expected


def test_an_operator_in_place_costs_the_host_what_it_costs_out_of_place() -> None:
    """mul_ is mul, index_put_ is index_put; __and__ is no in-place form of __and_."""
    assert host_class("aten::mul_") == host_class("aten::mul")
    assert host_class("aten::index_put_") == host_class("aten::index_put")
    assert host_class("aten::__and__") == "elementwise"


def test_every_operator_that_can_be_lowered_has_a_class() -> None:
    """No compiled model holds an operator whose host time is unknown."""
    from dsocr_graph.lowering.registry import known_operators

    classes = {op: host_class(op) for op in known_operators() if not op.startswith("example::")}
    assert len(classes) > 200
    assert set(classes.values()) == set(HOST_CLASSES) - {"module", "turn"}


def test_an_unknown_operator_is_an_error_that_says_where_to_add_it() -> None:
    """There is no default class; the error survives the way out of a worker process."""
    with pytest.raises(
        UnknownOperatorError, match=r"unknown operator 'aten::fft'.*modelmeter/predict/host.py"
    ) as caught:
        host_class("aten::fft")
    assert isinstance(caught.value, KeyError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
