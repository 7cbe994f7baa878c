"""Recurrent layers, and single cells."""

from __future__ import annotations

from dsocr_graph.ir import OpCall, TensorSpec
from dsocr_graph.lowering.registry import Approximation, lowers
from modelmeter.dims import product
from modelmeter.layers import Recurrent
from modelmeter.layers.recurrent import GATES

_NOTE = (
    "the state's weights read at every step and the gates written; a fused kernel that keeps both on chip, as cuDNN's "
    "persistent ones, moves less"
)


@lowers("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
def recurrent(call: OpCall) -> Approximation:
    """y[T, B, D*R] = D*L cells over x[T, B, I], or over rows of a packed batch x[rows, I]."""
    cell = call.op.partition("::")[2]
    parameters = call.tensor_list("params")
    state = call.tensor_list("hx")[0] if cell == "lstm" else call.tensor("hx")
    if "batch_sizes" in call.arguments:
        x = call.tensor("data")
        rows, steps = x.shape[0], call.tensor("batch_sizes").shape[0]
    else:
        x = call.tensor("input")
        rows, steps = product(x.shape[:2]), x.shape[1 if call.value("batch_first", False) else 0]
    layer = Recurrent(
        cell=cell,
        rows=rows,
        steps=steps,
        batch=state.shape[1],
        input_size=x.shape[-1],
        hidden_size=_hidden_size(cell, parameters[0]),
        projection_size=state.shape[2] if _is_projected(cell, parameters) else None,
        layers=call.integer("num_layers", 1),
        directions=2 if call.value("bidirectional", False) else 1,
        bias=bool(call.value("has_biases", True)),
        dtype=x.dtype,
    )
    return Approximation(layer=layer, note=_NOTE)


@lowers("aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell", "aten::rnn_relu_cell")
def cell(call: OpCall) -> Recurrent:
    """One step of one cell over x[B, I]."""
    kind = call.op.partition("::")[2].removesuffix("_cell")
    x, weight = call.tensor("input"), call.tensor("w_ih")
    batch = product(x.shape[:-1])
    return Recurrent(
        cell=kind,
        rows=batch,
        steps=1,
        batch=batch,
        input_size=x.shape[-1],
        hidden_size=_hidden_size(kind, weight),
        layers=1,
        directions=1,
        bias=call.has("b_ih"),
        dtype=x.dtype,
    )


def _hidden_size(cell: str, weight: TensorSpec) -> int:
    """Return H of W_ih[g*H, I]."""
    return int(weight.shape[0]) // GATES[cell]


def _is_projected(cell: str, parameters: tuple[TensorSpec, ...]) -> bool:
    """Whether W_hh[g*H, R] takes a state of another size than H."""
    return cell == "lstm" and parameters[1].shape[1] != _hidden_size(cell, parameters[0])
