"""Interpolation, worked by hand."""

from __future__ import annotations

import pytest

from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.layers import Interpolation
from modelmeter.layers.base import Traffic
from modelmeter.layers.interpolation import UnknownInterpolationError


def _resize(**changes: object) -> Interpolation:
    fields = {
        "mode": "bicubic",
        "planes": 2,
        "in_height": 6,
        "in_width": 4,
        "out_height": 3,
        "out_width": 8,
        "antialias": False,
        "dtype": DType.FP32,
    }
    return Interpolation(**(fields | changes))


def test_bicubic() -> None:
    """48 results of 4 rows of 4 taps, then 4 taps down: 20 multiply-adds each, 2*48*20 FLOPs."""
    layer = _resize()
    assert layer.vector_flops() == 1920
    assert layer.traffic() == Traffic(weights_read=0, activations_read=192, written=192)


def test_bilinear_linear_and_nearest() -> None:
    """2*2 + 2 = 6 multiply-adds, 2 along one axis, and a copy."""
    assert _resize(mode="bilinear").vector_flops() == 576  # 2 * 48 * 6
    assert _resize(mode="linear", in_height=1, out_height=1).vector_flops() == 64  # 2 * (2*8) * 2
    assert _resize(mode="nearest").vector_flops() == 0


def test_antialiasing_widens_by_the_scale_down_only() -> None:
    """Height 6 to 3 doubles its 4 taps to 8; width 4 to 8 keeps 4: 8*4 + 8 = 40 multiply-adds."""
    assert _resize(antialias=True).vector_flops() == 3840  # 2 * 48 * 40


def test_taps_of_an_uneven_scale_are_whole() -> None:
    """Height 7 to 3 takes ceil(4 * 7/3) = ceil(9.33) = 10 taps: 10*4 + 10 = 50."""
    assert _resize(in_height=7, antialias=True).vector_flops() == 4800


def test_symbolic_sizes_bind_to_the_same_taps() -> None:
    """At S = 7 the symbolic height gives the 4,800 of the case above."""
    layer = _resize(in_height=symbol("S"), antialias=True)
    assert layer.at(S=7).vector_flops() == 4800
    assert layer.at(S=2).vector_flops() == 1920


def test_backward_scatters_through_the_same_taps() -> None:
    """As many multiply-adds; dy is read, dx written, nothing kept."""
    layer = _resize(out_width=4)
    assert layer.backward_vector_flops() == layer.vector_flops()
    assert layer.backward_traffic() == Traffic(weights_read=0, activations_read=96, written=192)
    assert layer.backward_activation_bytes() == 0


def test_unknown_modes_are_refused() -> None:
    """The error lists the known modes, and where antialiasing exists."""
    with pytest.raises(UnknownInterpolationError, match=r"no interpolation mode 'area'; known are nearest, linear"):
        _resize(mode="area")
    with pytest.raises(ValueError, match=r"'nearest' has no antialiasing; it exists for bicubic, bilinear"):
        _resize(mode="nearest", antialias=True)
