"""Fourier transforms, and those of frames of a signal."""

from __future__ import annotations

from typing import cast

from dsocr_graph.ir import OpCall, TensorSpec
from dsocr_graph.lowering.registry import Approximation, lowers, operands
from modelmeter.dims import Dim, product
from modelmeter.layers import FourierTransform

_NOTE = "5 n log2 n FLOPs in one pass over memory, as of a radix-2 transform; a library's own plan differs"
_REAL = ("rfft", "irfft", "hfft", "ihfft")  # prefixes of the names of those with a real side


@lowers(
    *(
        f"aten::fft_{kind}{axes}"
        for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
        for axes in ("", "2", "n")
    ),
    "aten::_fft_r2c",
    "aten::_fft_c2r",
    "aten::_fft_c2c",
)
def transform(call: OpCall) -> Approximation:
    """y = Fourier transform of x along one axis or several; the longer of both sides says how many points there are."""
    x, y = call.reads[0], call.result
    axes = _axes(call, x)
    real = call.op.partition("fft_")[2].startswith(_REAL) or call.op in ("aten::_fft_r2c", "aten::_fft_c2r")
    whole = x if real and not x.dtype.is_complex else y  # a complex half of a real transform has n/2 + 1 points
    layer = FourierTransform(
        op=call.op.partition("::")[2],
        transforms=product(size for axis, size in enumerate(whole.shape) if axis not in axes),
        length=product(whole.shape[axis] for axis in axes),
        real=real or not x.dtype.is_complex,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=y.dtype if y.dtype.is_complex else x.dtype,
    )
    return Approximation(layer=layer, note=_NOTE)


def _axes(call: OpCall, x: TensorSpec) -> tuple[int, ...]:
    """Return the axes that are transformed, counted from the first."""
    rank = len(x.shape)
    given = call.value("dim")
    if isinstance(given, int):
        return (given % rank,)
    if isinstance(given, tuple):
        return tuple(axis % rank for axis in cast("tuple[int, ...]", given))
    if call.op.endswith("n"):
        sizes = call.value("s")
        count = len(sizes) if isinstance(sizes, tuple) else rank
        return tuple(range(rank - count, rank))
    return tuple(range(rank - (2 if call.op.endswith("2") else 1), rank))


@lowers("aten::stft")
def stft(call: OpCall) -> Approximation:
    """y[B, F, frames] = transforms of the frames of x[B, L], each times a window of n points."""
    x, y = call.tensor("self"), call.result
    frames = y.shape[-1 if y.dtype.is_complex else -2]
    return _frames(
        call, frames=frames, batch=product(x.shape[:-1]), half=not any(z.dtype.is_complex for z in call.reads)
    )


@lowers("aten::istft")
def istft(call: OpCall) -> Approximation:
    """y[B, L] = transforms of x[B, F, frames], each times a window, added up and divided by the windows' squares."""
    x = call.tensor("self")
    bins, frames = x.shape[-2:]
    return _frames(call, frames=frames, batch=product(x.shape[:-2]), half=bins != call.integer("n_fft", 1))


def _frames(call: OpCall, *, frames: Dim, batch: Dim, half: bool) -> Approximation:
    """Return the transforms of frames; ``half`` says whether they are one-sided where the call leaves that open."""
    points = call.integer("n_fft", 1)
    windowed = 1 if call.has("window") else 0
    around = windowed if call.op == "aten::stft" else windowed + 2  # the sum of frames, and its division
    x, y = call.reads[0], call.result
    layer = FourierTransform(
        op=call.op.partition("::")[2],
        transforms=product((batch, frames)),
        length=points,
        real=bool(call.value("onesided")) if call.has("onesided") else half,  # None, as `torch.stft` passes, is open
        flops_per_point=around,
        reads=operands(call.reads),
        writes=operands(call.writes),
        dtype=y.dtype if y.dtype.is_complex else x.dtype,
    )
    return Approximation(layer=layer, note=f"{_NOTE}; frames are never written out")
