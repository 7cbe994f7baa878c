"""Recurrent layers, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.layers import Recurrent
from modelmeter.layers.base import Traffic
from modelmeter.layers.recurrent import UnknownCellError


def _recurrent(**changes: object) -> Recurrent:
    """Return one layer over 5 steps of 2 sequences, 3 to 4 elements, in fp32."""
    fields = {
        "cell": "lstm",
        "rows": 10,
        "steps": 5,
        "batch": 2,
        "input_size": 3,
        "hidden_size": 4,
        "layers": 1,
        "directions": 1,
        "bias": True,
        "dtype": DType.FP32,
    }
    return Recurrent(**(fields | changes))


@pytest.mark.parametrize(
    ("cell", "products", "elsewhere"),
    [
        ("rnn_tanh", 2 * 10 * 4 * (3 + 4), 10 * 4 * (3 + 1)),  # sum and two biases 3, tanh
        ("rnn_relu", 2 * 10 * 4 * (3 + 4), 10 * 4 * (3 + 1)),
        ("gru", 2 * 10 * 12 * (3 + 4), 10 * 4 * (9 + 13)),  # three gates
        ("lstm", 2 * 10 * 16 * (3 + 4), 10 * 4 * (12 + 18)),  # four gates
    ],
)
def test_flops_by_cell(cell: str, products: int, elsewhere: int) -> None:
    """Two products of all gates per row; a sum and two biases per gate, and the gates' functions."""
    layer = _recurrent(cell=cell)
    assert (layer.matmul_flops(), layer.vector_flops()) == (products, elsewhere)
    assert layer.tensor_core_flops() == 0  # fp32


def test_weights_of_the_state_are_read_at_every_step() -> None:
    """W_ih 16*3 and b_ih 16 once, W_hh 16*4 and b_hh 16 five times, 4 bytes each."""
    layer = _recurrent()
    assert layer.weight_bytes() == (48 + 16 + 64 + 16) * 4
    assert layer.traffic() == Traffic(
        weights_read=(64 + 5 * 80) * 4,
        # x 10*3, h before each step 10*4, both products 10*16, c 10*4
        activations_read=(30 + 40 + 160 + 160 + 40) * 4,
        written=(160 + 160 + 40 + 40) * 4,  # both products, h and c
    )


def test_a_step_reads_its_weights_once() -> None:
    """A cell is one step: what is read is what is held."""
    layer = _recurrent(rows=2, steps=1)
    assert layer.traffic().weights_read == layer.weight_bytes()


def test_layers_above_read_both_directions() -> None:
    """Two layers, two directions: 2 cells of 3 and 2 cells of 2*4 inputs, each with a state of 4."""
    layer = _recurrent(layers=2, directions=2, bias=False)
    assert layer.matmul_flops() == 2 * 10 * 16 * (2 * (3 + 4) + 2 * (8 + 4))
    assert layer.weight_bytes() == 16 * (2 * 7 + 2 * 12) * 4
    # 10 rows of both directions' 4 elements; the last h and c of 4 cells, 2 sequences of 4 elements each
    assert layer.activation_bytes() == (80 + 2 * 4 * 2 * 4) * 4


def test_a_projection_narrows_the_state() -> None:
    """4 elements projected to 2: W_hh takes 2, and 2*4 weights more per cell."""
    layer = _recurrent(projection_size=2)
    assert layer.matmul_flops() == 2 * 10 * (16 * (3 + 2) + 2 * 4)
    assert layer.weight_bytes() == (48 + 16 + 32 + 16 + 8) * 4


def test_a_packed_batch_has_fewer_rows_than_steps_times_batch() -> None:
    """7 rows of sequences of 5 and 2 steps: the products of 7, the weights of 5 steps."""
    layer = _recurrent(rows=7)
    assert layer.matmul_flops() == 2 * 7 * 16 * 7
    assert layer.traffic().weights_read == _recurrent().traffic().weights_read


def test_symbolic_lengths() -> None:
    """T steps of B sequences at 5 and 2 are the example."""
    t, b = symbol("T"), symbol("B")
    layer = _recurrent(rows=t * b, steps=t, batch=b).at(T=5, B=2)
    assert layer == _recurrent()


def test_an_unknown_cell_is_named() -> None:
    """The error lists the cells."""
    with pytest.raises(UnknownCellError, match="no recurrent cell 'sru'; known are rnn_tanh, rnn_relu, lstm, gru"):
        _recurrent(cell="sru")
