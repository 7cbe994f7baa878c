"""Lowering of what torch.nn and torch.fft, torch.linalg and complex arithmetic call, by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsocr_graph.lowering import lower
from dsocr_graph.scopes import group_by_module
from modelmeter.dtypes import DType
from modelmeter.layers import ConvTranspose, Recurrent
from modelmeter.model import AnalyticModel, Exactness

Lower = Callable[..., AnalyticModel]
INDEX, COMPLEX = torch.int64, torch.complex64


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data; 4 bytes an element unless told otherwise."""
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture
def lowered(captured: Callable[..., Any]) -> Lower:
    """Return a function that captures, groups and lowers a function or module."""
    return lambda what, *inputs, **options: lower(group_by_module(captured(what, *inputs, **options)))


# operator, function, inputs, FLOPs in products, FLOPs elsewhere, bytes
CASES: list[tuple[str, Callable[..., object], tuple[Tensor, ...], int, int, int]] = [
    # 2 channels of 6 x 6 to 3 x 3, windows of 4: 18*4; (72 + 18)*4
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), (meta(1, 2, 6, 6),), 0, 72, 360),
    # windows from floor(i 5/3) to ceil((i + 1) 5/3): 0-2, 1-4, 3-5, so 2 + 3 + 2 = 7 elements; (5 + 3)*4
    ("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 3), (meta(1, 1, 5),), 0, 7, 32),
    # y of 12 written as zeros and 3 over it, 3 values and 3 positions of 8 bytes read
    (
        "max_unpool2d",
        lambda x, i: F.max_unpool2d(x, i, (1, 4)),
        (meta(1, 3, 1, 1), meta(1, 3, 1, 1, dtype=INDEX)),
        0,
        0,
        96,
    ),
    # given statistics 2, weight 1, bias 1, on 24 elements; (24 + 4*2 + 24)*4
    (
        "batch_norm",
        lambda x, w: F.batch_norm(x, w, w.clone(), w, w.clone()),
        (meta(3, 2, 4), meta(2)),
        0,
        96,
        224,
    ),
    # 3 x 3 places of 2 channels, each to 4 taps of 5: 2*9*2*5*4; bias on 5*36; (18 + 40 + 5 + 180)*4
    (
        "conv_transpose2d",
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
        (meta(1, 2, 3, 3), meta(2, 5, 2, 2), meta(5)),
        720,
        180,
        972,
    ),
    # a picture without its batch axis: 2*(2*2)*5*3*9; (48 + 135 + 20)*4
    ("conv2d", F.conv2d, (meta(3, 4, 4), meta(5, 3, 3, 3)), 1080, 0, 812),
    # 2 bags of 3 rows of 4: 24 additions; 96 of rows, 6*8 of indices and 2*8 of offsets read, 32 written
    (
        "embedding_bag",
        lambda w, i: F.embedding_bag(i, w, offsets=torch.arange(2, device="meta") * 3),
        (meta(10, 4), meta(6, dtype=INDEX)),
        0,
        24,
        192,
    ),
    # 4 neighbours of each of 2*5*5 results, a multiply-add each; (32 + 50 + 50)*4
    (
        "grid_sampler",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        (meta(1, 2, 4, 4), meta(1, 5, 5, 2)),
        0,
        400,
        528,
    ),
    # 3*5 pairs of rows of 4, 3 FLOPs each; (12 + 20 + 15)*4
    ("cdist", torch.cdist, (meta(3, 4), meta(5, 4)), 0, 180, 188),
    # 8 columns of 4 additions; (32 + 32)*4
    ("col2im", lambda x: F.fold(x, (4, 4), 2, stride=2), (meta(1, 8, 4),), 0, 32, 256),
    # 3 transforms of 8 points: 3*5*8*3; 24 numbers of 8 bytes read and written
    ("fft_fft", torch.fft.fft, (meta(3, 8, dtype=COMPLEX),), 0, 360, 384),
    # half of it; 24*4 read, 3*5*8 written
    ("fft_rfft", torch.fft.rfft, (meta(3, 8),), 0, 180, 216),
    # the length of the real side counts: 3 transforms of 8 points
    ("fft_irfft", lambda x: torch.fft.irfft(x, n=8), (meta(3, 5, dtype=COMPLEX),), 0, 180, 216),
    # both axes: 24 points, 5 stages: 5*24*5
    ("fft_fft2", torch.fft.fft2, (meta(4, 6, dtype=COMPLEX),), 0, 600, 384),
    # 2 signals, 4 frames each (of 8 points, at 0, 4, 8, 12), one-sided: 8*(5*8*3)/2, windows 8*8;
    # 40 and 8 of the window read, 2*5 bins*4 frames*8 written
    (
        "stft",
        lambda x, w: torch.stft(x, 8, 4, window=w, center=False, return_complex=True),
        (meta(2, 20), meta(8)),
        0,
        544,
        512,
    ),
    # both sides where asked for, 8 bins: 8*5*8*3 and 64; 2*8*4*8 written
    (
        "stft",
        lambda x, w: torch.stft(x, 8, 4, window=w, center=False, onesided=False, return_complex=True),
        (meta(2, 20), meta(8)),
        0,
        1024,
        704,
    ),
    # a complex signal has both sides: 8*5*8*3; 40*8 read, 2*8*4*8 written
    (
        "stft",
        lambda x: torch.stft(x, 8, 4, center=False, return_complex=True),
        (meta(2, 20, dtype=COMPLEX),),
        0,
        960,
        832,
    ),
    # all 8 bins given, both sides: 8*5*8*3; window, sum and division 3*64; 2*8*4*8 and 32 read, 2*12*4 written
    (
        "istft",
        lambda x, w: torch.istft(x, 8, 4, window=w),
        (meta(2, 8, 4, dtype=COMPLEX), meta(8)),
        0,
        1152,
        640,
    ),
    # 5 bins, one side: half the transforms; 2*5*4*8 and 32 read
    (
        "istft",
        lambda x, w: torch.istft(x, 8, 4, window=w),
        (meta(2, 5, 4, dtype=COMPLEX), meta(8)),
        0,
        672,
        448,
    ),
    # 2/3 of 27 and 2*9*2; (9 + 6 + 6)*4
    ("linalg_solve", torch.linalg.solve, (meta(3, 3), meta(3, 2)), 0, 54, 84),
    # from the right, 2 rows: the same
    ("linalg_solve", lambda a, b: torch.linalg.solve(a, b, left=False), (meta(3, 3), meta(2, 3)), 0, 54, 84),
    # 4 matrices of one right-hand side [3, 2], no vectors: 4*(18 + 36); (36 + 6 + 24)*4
    ("linalg_solve", torch.linalg.solve, (meta(4, 3, 3), meta(3, 2)), 0, 216, 264),
    # one matrix of 4 right-hand sides is decomposed once: 18 + 4*36; (9 + 24 + 24)*4
    ("linalg_solve", torch.linalg.solve, (meta(3, 3), meta(4, 3, 2)), 0, 162, 228),
    # 4 vectors: 4*(18 + 18); (36 + 12 + 12)*4
    ("linalg_solve", torch.linalg.solve, (meta(4, 3, 3), meta(4, 3)), 0, 144, 240),
    # a matrix by itself: 18 + 2*9*3; 9 read once and written
    ("linalg_solve", lambda a: torch.linalg.solve(a, a), (meta(3, 3),), 0, 72, 72),
    # 9*2 from the right; (9 + 6 + 6)*4
    (
        "linalg_solve_triangular",
        lambda a, b: torch.linalg.solve_triangular(a, b, upper=True, left=False),
        (meta(3, 3), meta(2, 3)),
        0,
        18,
        84,
    ),
    # the right-hand side first: 4 matrices, 2*9*2 each; (6 + 36 + 24)*4
    ("cholesky_solve", torch.cholesky_solve, (meta(3, 2), meta(4, 3, 3)), 0, 144, 264),
    # (4 + 4)*8 read and 32 written: 2 per addition, 6 per product; 4 FLOPs of |x| and 16 written
    ("add", torch.add, (meta(4, dtype=COMPLEX), meta(4, dtype=COMPLEX)), 0, 8, 96),
    ("mul", torch.mul, (meta(4, dtype=COMPLEX), meta(4, dtype=COMPLEX)), 0, 24, 96),
    ("mul", torch.mul, (meta(4, dtype=COMPLEX), meta(4)), 0, 8, 80),
    ("abs", torch.abs, (meta(4, dtype=COMPLEX),), 0, 16, 48),
    # 8 FLOPs for each of 3*4*5 multiply-adds; (12 + 20 + 15)*8
    ("mm", torch.mm, (meta(3, 4, dtype=COMPLEX), meta(4, 5, dtype=COMPLEX)), 480, 0, 376),
    # an ellipsis of one axis: twice 2*3*4*5; (24 + 40 + 30)*4
    ("einsum", lambda a, b: torch.einsum("...ij,...jk->...ik", a, b), (meta(2, 3, 4), meta(2, 4, 5)), 240, 0, 376),
    # nothing is summed: a product per element; (3 + 4 + 12)*4
    ("einsum", lambda a, b: torch.einsum("i,j->ij", a, b), (meta(3), meta(4)), 0, 12, 76),
    ("einsum", lambda a: torch.einsum("ij->i", a), (meta(3, 4),), 0, 12, 60),
    # 3 rows of 4 with a vector: 2*3*4*1; (12 + 4 + 3)*4
    ("mv", torch.mv, (meta(3, 4), meta(4)), 24, 0, 76),
    # twice 2*3*4*5, the addend left out; (24 + 40 + 30)*4
    ("baddbmm", torch.baddbmm, (meta(2, 3, 5), meta(2, 3, 4), meta(2, 4, 5)), 240, 0, 376),
    # a sum over two axes: 2*3*(4*5)*6; (60 + 120 + 18)*4
    ("tensordot", lambda a, b: torch.tensordot(a, b, dims=2), (meta(3, 4, 5), meta(4, 5, 6)), 720, 0, 792),
    # the 5th power: two squares and a product, 2*27 each; 3*(9 + 9 + 9)*4
    ("linalg_matrix_power", lambda a: torch.linalg.matrix_power(a, 5), (meta(3, 3),), 162, 0, 324),
    # one head without its axis: 2*3*5*(4 + 4) twice; 6 per score of 15 twice; (24 + 40 + 40 + 24)*4
    (
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention,
        (meta(2, 3, 4), meta(2, 5, 4), meta(2, 5, 4)),
        480,
        180,
        512,
    ),
    ("mse_loss", F.mse_loss, (meta(3, 4), meta(3, 4)), 0, 36, 100),  # subtract, square, sum; one number written
    ("rand", lambda x: torch.rand(3, 4, device="meta"), (meta(1),), 0, 0, 48),  # nothing read
]


@pytest.mark.parametrize(
    ("op", "function", "inputs", "matmul", "vector", "moved"),
    CASES,
    ids=[f"{position}-{case[0]}" for position, case in enumerate(CASES)],
)
def test_cost_of_a_call(
    lowered: Lower,
    *,
    op: str,
    function: Callable[..., object],
    inputs: tuple[Tensor, ...],
    matmul: int,
    vector: int,
    moved: int,
) -> None:
    """One call, one layer: FLOPs in products and elsewhere, and bytes, as worked out beside the case."""
    leaf = next(leaf for leaf in lowered(function, *inputs).leaves if leaf.op == f"aten::{op}")
    assert (leaf.layer.matmul_flops(), leaf.layer.vector_flops(), leaf.layer.traffic().bytes) == (matmul, vector, moved)


@pytest.mark.parametrize(
    "function",
    [
        torch.view_as_real,
        lambda x: x.conj(),
        lambda x: x.swapaxes(0, 1),
        lambda x: x.real,
        lambda x: torch.einsum("ij->ji", x),
        lambda x: torch.einsum("ii->i", x),
    ],
)
def test_views_of_complex_numbers_are_free(lowered: Lower, function: Callable[[Tensor], Tensor]) -> None:
    """Parts, conjugates and permutations move nothing."""
    assert lowered(function, meta(4, 4, dtype=COMPLEX)).leaves == ()


def test_rotary_embedding_of_complex_numbers(lowered: Lower) -> None:
    """2 x 3 positions of 4 pairs: views, and 24 complex products, 6 FLOPs each."""

    def rotate(x: Tensor, turns: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * turns).flatten(-2)

    (leaf,) = lowered(rotate, meta(2, 3, 8), meta(3, 4, dtype=COMPLEX)).leaves
    assert (leaf.op, leaf.layer.vector_flops()) == ("aten::mul", 144)
    assert leaf.dtype is DType.COMPLEX64


def test_a_recurrent_layer_says_what_it_assumes(lowered: Lower) -> None:
    """An LSTM of 2 layers is one call, whose weights of the state are read at every step."""
    with torch.device("meta"):
        module = torch.nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True)
    leaf = lowered(module, meta(2, 5, 3)).leaves[-1]
    assert leaf.exactness is Exactness.APPROXIMATED
    assert "read at every step" in leaf.note
    assert leaf.layer == Recurrent(
        cell="lstm",
        rows=10,
        steps=5,
        batch=2,
        input_size=3,
        hidden_size=4,
        layers=2,
        directions=2,
        bias=True,
        dtype=DType.FP32,
    )


def test_transposed_convolutions_of_any_rank_are_one_layer(lowered: Lower) -> None:
    """The axes are written as one: 2*2*2 places to 3*3*3 with 8 taps."""
    (leaf,) = lowered(F.conv_transpose3d, meta(1, 2, 2, 2, 2), meta(2, 3, 2, 2, 2)).leaves
    assert leaf.layer == ConvTranspose(
        batch=1, in_channels=2, out_channels=3, in_positions=8, out_positions=27, taps=8, bias=False, dtype=DType.FP32
    )


def test_what_is_overwritten_is_not_read(lowered: Lower) -> None:
    """copy_ reads 48 bytes and writes 48 whatever made its target; fused, it saves its source's way at most."""

    def overwrite(x: Tensor) -> Tensor:
        made = x + 1
        made.copy_(x * 2)
        return made + x

    copies = [leaf for leaf in lowered(overwrite, meta(3, 4)).leaves if leaf.op == "aten::copy_"]
    assert [(leaf.layer.traffic().bytes, leaf.fused_bytes) for leaf in copies] == [(96, 0)]
