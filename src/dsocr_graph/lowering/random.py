"""Random numbers: written, and drawn by integer arithmetic that counts as none."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Approximation, lowers, operands
from modelmeter.layers import DataMovement

_NOTE = "random numbers as written; drawing them counts as no FLOPs"
_FILLS = ("uniform_", "normal_", "exponential_", "log_normal_", "cauchy_", "geometric_", "bernoulli_", "random_")


@lowers(
    *(f"aten::{name}{suffix}" for name in ("rand", "randn", "randint") for suffix in ("", "_like")),
    "aten::randperm",
    *(f"aten::{name}" for name in _FILLS),
)
def draw(call: OpCall) -> Approximation:
    """y = numbers of a distribution; what y held or looks like is not read."""
    layer = DataMovement(op=call.op.partition("::")[2], reads=(), writes=operands(call.writes))
    return Approximation(layer=layer, note=_NOTE)


@lowers("aten::normal", "aten::bernoulli", "aten::poisson", "aten::multinomial", "aten::binomial")
def draw_by(call: OpCall) -> Approximation:
    """y = numbers of distributions whose means or probabilities are read."""
    layer = DataMovement(op=call.op.partition("::")[2], reads=operands(call.reads), writes=operands(call.writes))
    return Approximation(layer=layer, note=_NOTE)
