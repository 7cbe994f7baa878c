"""Fourier transforms, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmeter.dim_binding import bind
from modelmeter.dims import symbol
from modelmeter.dtypes import DType
from modelmeter.layers import FourierTransform, Operand
from modelmeter.layers.fourier import stages


def _transform(transforms: int, length: int, *, real: bool = False, around: int = 0) -> FourierTransform:
    x = Operand(elements=transforms * length, dtype=DType.FP32 if real else DType.COMPLEX64)
    y = Operand(elements=transforms * (length // 2 + 1 if real else length), dtype=DType.COMPLEX64)
    return FourierTransform(
        op="fft",
        transforms=transforms,
        length=length,
        real=real,
        flops_per_point=around,
        reads=(x,),
        writes=(y,),
        dtype=DType.COMPLEX64,
    )


def test_a_transform_of_16_points() -> None:
    """3 transforms: 3*5*16*4 FLOPs; 48 numbers of 8 bytes read and written."""
    layer = _transform(3, 16)
    assert (layer.vector_flops(), layer.traffic().bytes) == (960, 768)
    assert layer.backward_vector_flops() == 960


def test_a_real_transform_takes_half() -> None:
    """3*5*16*4/2 = 480; a window and its like once per point: 48 more."""
    assert _transform(3, 16, real=True).vector_flops() == 480
    assert _transform(3, 16, real=True, around=1).vector_flops() == 528
    assert _transform(3, 16, real=True).traffic().written == 3 * 9 * 8


def test_two_axes_are_one_transform_of_their_product() -> None:
    """4 x 8: 8 transforms of 4 and 4 of 8 points are 5*32*2 + 5*32*3 = 5*32*5 FLOPs."""
    apart = _transform(8, 4).vector_flops() + _transform(4, 8).vector_flops()
    assert _transform(1, 32).vector_flops() == apart == 800


@pytest.mark.parametrize(("length", "expected"), [(1, 0), (2, 1), (3, 2), (1024, 10), (1025, 11)])
def test_stages(length: int, expected: int) -> None:
    """The smallest power of two that holds the points."""
    assert stages(length) == expected


@given(st.integers(1, 2**24))
def test_stages_of_an_open_length_are_those_of_the_number(length: int) -> None:
    """The expression gives at any length what the number gives."""
    assert bind(stages(symbol("S")), {"S": length}) == stages(length)
