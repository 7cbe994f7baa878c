"""Compiles a PyTorch model to an analytic one: capture, group by module, lower, evaluate, emit.

The names below load on first use, so that importing the package imports neither torch nor networkx.

>>> import dsocr_graph
>>> "capture" in dir(dsocr_graph)
True
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsocr_graph.lowering import lower
    from dsocr_graph.pipeline import analyze_model
    from dsocr_graph.scopes import group_by_module
    from dsocr_graph.timing.calibrate import calibrate
    from dsocr_graph.timing.measure import measure
    from dsocr_graph.tracing import capture

__version__ = "0.1.0"

__all__ = ["__version__", "analyze_model", "calibrate", "capture", "group_by_module", "lower", "measure"]

_HOME = {
    "analyze_model": "dsocr_graph.pipeline",
    "calibrate": "dsocr_graph.timing.calibrate",
    "capture": "dsocr_graph.tracing",
    "group_by_module": "dsocr_graph.scopes",
    "lower": "dsocr_graph.lowering",
    "measure": "dsocr_graph.timing.measure",
}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names with the loaded ones."""
    return sorted({*globals(), *__all__})
