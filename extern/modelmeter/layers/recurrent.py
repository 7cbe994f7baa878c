"""Recurrent: stacks of RNN, LSTM and GRU cells over a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import attrs
from attrs import converters, field, frozen

from modelmeter.categories import Category
from modelmeter.dims import Dim, product, total
from modelmeter.dtypes import DType
from modelmeter.errors import ModelMeterError
from modelmeter.layers.base import NOT_CAPTURED, BaseLayer, Traffic, as_dim
from modelmeter.layers.pointwise_flops import flops_per_element

GATES: Mapping[str, int] = MappingProxyType({"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3})
"""Rows of the input's and the state's matrix per element of the state, by cell."""

_STATES: Mapping[str, int] = MappingProxyType({"rnn_tanh": 0, "rnn_relu": 0, "lstm": 1, "gru": 1})
"""States of the hidden size that the kernel of the gates reads, by cell: c of an LSTM, h of a GRU."""


class UnknownCellError(ModelMeterError, ValueError):
    """No such recurrent cell."""


def _known_cell(_layer: object, _attribute: attrs.Attribute[str], cell: str) -> None:
    if cell not in GATES:
        raise UnknownCellError(f"no recurrent cell {cell!r}; known are {', '.join(GATES)}")


@frozen(kw_only=True)
class Recurrent(BaseLayer):
    """Layers of recurrent cells over a sequence: gates of W_ih x_t + b_ih + W_hh h_(t-1) + b_hh, step by step.

    FLOPs in products, per layer and direction, with g gates (1, LSTM 4, GRU 3) of H elements each, an input of I and a
    state of R elements: ``2*rows*g*H*(I + R)``, and ``2*rows*R*H`` where an LSTM projects its state from H to R. I is
    ``input_size`` in the first layer and ``directions*R`` in the others. Elsewhere, per row and element of H: one
    addition per gate to join the two products, two for the biases, and the gates' functions (`pointwise_flops`).

    Traffic is that of an implementation which takes the input's product out of the loop: W_ih and b_ih are read once
    for the whole sequence, W_hh, b_hh and the projection once per step. The product of the input is written and read
    again, that of the state too; one pointwise kernel per step computes the gates and the new state. A fused kernel
    moves less: cuDNN's persistent kernels keep W_hh on chip over all steps where it fits, so that it is read once
    instead of ``steps`` times, and the gates never leave the chip; layers then run as a wavefront. Its FLOPs are the
    same.

    A cell (`torch.nn.LSTMCell`) is one step of one layer. Backward: two products per product, the default; the gates of
    all steps are kept.

    Sources: Hochreiter and Schmidhuber 1997, Gers et al. 2000 (LSTM with a forget gate); Cho et al. 2014 (GRU); Sak et
    al. 2014, section 2.2 (projection); Appleyard et al. 2016 (cuDNN); ``aten::lstm.input``, ``aten::gru.input``,
    ``aten::rnn_tanh.input``.

    Attributes
    ----------
    cell : str
        "rnn_tanh", "rnn_relu", "lstm" or "gru".
    rows : Dim
        Steps of all sequences together: steps times batch, less what a packed batch lacks.
    steps : Dim
        Steps of the longest sequence: how often the weights of the state are read.
    batch : Dim
        Sequences.
    input_size, hidden_size : Dim
        I of the first layer, and H.
    projection_size : Dim or None
        R of an LSTM that projects its state; None where R is H.
    layers : int
        Cells on top of each other.
    directions : int
        2 for a bidirectional stack.
    bias : bool
        Whether there are b_ih and b_hh.
    dtype : DType
        Type of all tensors, and of the products.
    parameter_dtype : DType or None
        Type of the parameters; `dtype` when None.

    Raises
    ------
    UnknownCellError
        On an unknown cell.

    Examples
    --------
    >>> lstm = Recurrent(
    ...     cell="lstm", rows=10, steps=5, batch=2, input_size=3, hidden_size=4, layers=1, directions=1, bias=True,
    ...     dtype=DType.FP32,
    ... )
    >>> lstm.matmul_flops() == 2 * 10 * (4 * 4) * (3 + 4)
    True
    >>> lstm.weight_bytes(), lstm.traffic().weights_read  # the state's 256 bytes of matrix and 64 of bias five times
    (576, 1856)
    """

    category: ClassVar[Category] = Category.LINEAR

    cell: str = field(validator=_known_cell)
    rows: Dim = field(converter=as_dim)
    steps: Dim = field(converter=as_dim)
    batch: Dim = field(converter=as_dim)
    input_size: Dim = field(converter=as_dim)  # elements
    hidden_size: Dim = field(converter=as_dim)  # elements
    projection_size: Dim | None = field(default=None, converter=converters.optional(as_dim))  # elements
    layers: int
    directions: int
    bias: bool
    dtype: DType
    parameter_dtype: DType | None = field(default=None, metadata=NOT_CAPTURED)

    def matmul_flops(self) -> Dim:
        """2*rows*weights of the three matrices, over layers and directions. Unit: FLOPs."""
        return product((2, self.rows, total((self._input_weights(), self._state_weights()))))

    def vector_flops(self) -> Dim:
        """The sums of the products, the biases and the gates' functions. Unit: FLOPs."""
        joined = GATES[self.cell] * (3 if self.bias else 1)
        return product((joined + flops_per_element(f"{self.cell}_gates"), self._cells(), self.rows, self.hidden_size))

    def weight_bytes(self) -> Dim:
        """Bytes of all matrices and biases."""
        return total((self._once_bytes(), self._each_step_bytes()))

    def traffic(self) -> Traffic:
        """Weights of the input once, those of the state once per step; every product written and read again."""
        elements = self._gate_elements()
        states = product((_STATES[self.cell], self._cells(), self.rows, self.hidden_size))
        states_kept = states if self.cell == "lstm" else 0  # c is written too; a GRU's h is the result
        made = product((self._cells(), self.rows, self.hidden_size))
        projected = 0 if self.projection_size is None else product((self._cells(), self.rows, self.projection_size))
        between = 0 if self.projection_size is None else made  # read again by the projection
        inputs = product((self.rows, self._input_elements()))
        previous = product((self._cells(), self.rows, self._state_size()))
        return Traffic(
            weights_read=total((self._once_bytes(), product((self.steps, self._each_step_bytes())))),
            activations_read=self._bytes(inputs, previous, elements, elements, states, between),
            written=self._bytes(elements, elements, made, states_kept, projected),
        )

    def activation_bytes(self) -> Dim:
        """Bytes of the last layer's states at all steps, and of the last states of all layers."""
        last = product((self._cells(), self.batch, self._state_size()))
        cell_state = product((self._cells(), self.batch, self.hidden_size)) if self.cell == "lstm" else 0
        return self._bytes(product((self.directions, self.rows, self._state_size())), last, cell_state)

    def backward_activation_bytes(self) -> Dim:
        """Bytes of the input, and of the states and the gates of all layers and steps."""
        states = product((self._cells(), self.rows, total((self._state_size(), self.hidden_size))))
        return self._bytes(product((self.rows, self.input_size)), states, self._gate_elements())

    def _cells(self) -> int:
        return self.layers * self.directions

    def _state_size(self) -> Dim:
        return self.hidden_size if self.projection_size is None else self.projection_size

    def _gate_width(self) -> Dim:
        return product((GATES[self.cell], self.hidden_size))

    def _gate_elements(self) -> Dim:
        """Elements of one product, over layers, directions and rows."""
        return product((self._cells(), self.rows, self._gate_width()))

    def _input_elements(self) -> Dim:
        """Elements that the inputs of all cells have per row."""
        above = product((self.layers - 1, self.directions, self.directions, self._state_size()))
        return total((product((self.directions, self.input_size)), above))

    def _input_weights(self) -> Dim:
        """Elements of all W_ih."""
        return product((self._gate_width(), self._input_elements()))

    def _state_weights(self) -> Dim:
        """Elements of all W_hh and projections."""
        rows = self._gate_width() if self.projection_size is None else total((self._gate_width(), self.hidden_size))
        return product((self._cells(), rows, self._state_size()))

    def _bias_elements(self) -> Dim:
        return product((self._cells(), self._gate_width())) if self.bias else 0

    def _once_bytes(self) -> Dim:
        """Bytes of what is read once for a sequence."""
        return product((total((self._input_weights(), self._bias_elements())), self._parameter_size()))

    def _each_step_bytes(self) -> Dim:
        """Bytes of what is read at every step."""
        return product((total((self._state_weights(), self._bias_elements())), self._parameter_size()))

    def _parameter_size(self) -> int:
        return (self.parameter_dtype or self.dtype).itemsize

    def _bytes(self, *elements: Dim) -> Dim:
        return product((total(elements), self.dtype.itemsize))
