"""Lower: ATen calls to modelmeter layers; one file per op family, rules registered by ATen name."""

from __future__ import annotations

from importlib import import_module

from dsocr_graph.lowering.assemble import lower
from dsocr_graph.lowering.registry import Approximation, Unsupported, free, known_operators, lowers, unregister

_FAMILIES = (
    "attention",
    "checks",
    "conv3d",
    "convolution",
    "fp8",
    "higher_order",
    "indexing",
    "interpolation",
    "layouts",
    "linear",
    "linear_algebra",
    "losses",
    "movement",
    "normalization",
    "pointwise",
    "pooling",
    "products",
    "random",
    "recurrent",
    "reduction",
    "sampling",
    "transforms",
)
for _family in _FAMILIES:
    import_module(f"dsocr_graph.lowering.{_family}")  # importing a family registers its rules

__all__ = ["Approximation", "Unsupported", "free", "known_operators", "lower", "lowers", "unregister"]
