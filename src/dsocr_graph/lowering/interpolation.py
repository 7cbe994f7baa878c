"""Resizing of maps and tables."""

from __future__ import annotations

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Approximation, lowers
from modelmeter.dims import product
from modelmeter.layers import Interpolation

_MODES = {
    "aten::_upsample_bicubic2d_aa": ("bicubic", True),
    "aten::_upsample_bilinear2d_aa": ("bilinear", True),
    "aten::upsample_bicubic2d": ("bicubic", False),
    "aten::upsample_bilinear2d": ("bilinear", False),
    "aten::upsample_nearest2d": ("nearest", False),
    "aten::upsample_linear1d": ("linear", False),
    "aten::upsample_nearest1d": ("nearest", False),
}


@lowers(*_MODES)
def interpolation(call: OpCall) -> Approximation:
    """y[B, C, Ho, Wo] = weighted neighbours of x[B, C, H, W]; a 1-d map has height 1."""
    mode, antialias = _MODES[call.op]
    x, y = call.reads[0], call.result
    spatial = 1 if "1d" in call.op else 2
    height = (x.shape[-2], y.shape[-2]) if spatial == 2 else (1, 1)
    layer = Interpolation(
        mode=mode,
        planes=product(x.shape[: len(x.shape) - spatial]),
        in_height=height[0],
        in_width=x.shape[-1],
        out_height=height[1],
        out_width=y.shape[-1],
        antialias=antialias,
        dtype=x.dtype,
    )
    return Approximation(layer=layer, note="FLOPs from the filter's nominal width; edges have fewer taps")
