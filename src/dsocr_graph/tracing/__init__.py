"""Tracing: a module and its stages to ATen graphs, through torch.export; the only package that reads fx nodes.

>>> capture.__name__
'capture'
"""

from dsocr_graph.tracing.capturing import capture

__all__ = ["capture"]
