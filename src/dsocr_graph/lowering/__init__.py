"""Lower: ATen calls to modelmeter layers; one file per op family, rules registered by ATen name."""

from __future__ import annotations

from dsocr_graph.lowering import (  # noqa: F401 - importing a family registers its rules
    attention,
    convolution,
    indexing,
    interpolation,
    linear,
    movement,
    normalization,
    pointwise,
    reduction,
)
from dsocr_graph.lowering.assemble import lower
from dsocr_graph.lowering.registry import Approximation, free, known_operators, lowers, unregister

__all__ = ["Approximation", "free", "known_operators", "lower", "lowers", "unregister"]
