"""Three custom operators of models in blocks of fp8, with FLOP formulas: quantise rows, and multiply what is quantised.

They stand for the kernels that transformers loads for a GPU, of DeepGEMM or Triton (its `integrations/deepgemm.py` and
`integrations/finegrained_fp8.py`): one that quantises activations, one that multiplies. Here they run on a CPU, for
their values and not for speed, and have shape-only kernels, so that a model can be captured on `meta`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from dsocr_graph.errors import ModelInputError

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448

_LIBRARY = torch.library.Library("dsocr_graph", "FRAGMENT")
_LIBRARY.define("quantize_rows(Tensor input, int block) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    "block_scaled_linear(Tensor input, Tensor input_scale, Tensor weight, Tensor weight_scale, int[] block, "
    "ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "block_scaled_grouped_linear(Tensor input, Tensor input_scale, Tensor weight, Tensor weight_scale, "
    "Tensor offsets, int[] block, int experts_per_token, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def quantize_rows(rows: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
    """Quantise each run of `block` elements of a row to fp8: by its largest absolute value, which becomes 448.

    Shapes: rows [..., K] -> [..., K] in fp8 (e4m3) and scales [..., ceil(K / block)] in fp32. An element is its fp8
    value times its run's scale. Source: DeepSeek-AI 2024 (DeepSeek-V3), section 3.3.2; `act_quant` in
    deepseek-ai/DeepSeek-V3, inference/kernel.py.

    Examples
    --------
    >>> quantized, scales = quantize_rows(torch.tensor([[1.0, -4.0, 0.0, 0.5]]), block=2)
    >>> quantized.float(), scales * 448
    (tensor([[ 112., -448.,    0.,  448.]]), tensor([[4.0000, 0.5000]]))
    """
    return torch.ops.dsocr_graph.quantize_rows(rows, block)


def block_scaled_linear(
    rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, *, block: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Multiply quantised rows by a quantised weight: `y = (x * scale) @ (w * scale).T`.

    Shapes: rows [..., K] and weight [N, K] in fp8, row_scale [..., ceil(K / k)] and weight_scale [ceil(N / n),
    ceil(K / k)] in fp32, for blocks of [n, k] -> [..., N]. There is no backward formula.

    Parameters
    ----------
    rows, row_scale
        As `quantize_rows` returns them.
    weight, weight_scale
        The weight, and what the elements of each of its blocks are multiplied by.
    block
        Rows and columns of a block of the weight.
    dtype
        Type of the result.

    Raises
    ------
    ModelInputError
        When the shapes or types do not go together.

    Examples
    --------
    >>> x, w = quantize_rows(torch.ones(1, 4), block=2), torch.tensor([[1.0, 2.0, 3.0, 4.0]]).to(FP8)
    >>> block_scaled_linear(*x, w, torch.tensor([[1.0, 10.0]]), block=(1, 2), dtype=torch.float32)
    tensor([[73.]])
    """
    return torch.ops.dsocr_graph.block_scaled_linear(rows, row_scale, weight, weight_scale, block, dtype)


def block_scaled_grouped_linear(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor,
    *,
    block: Sequence[int],
    experts_per_token: int,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply each group of quantised rows by its own quantised weight.

    `grouped_linear` in blocks of fp8: rows [M, K], weight [E, N, K], weight_scale [E, ceil(N / n), ceil(K / k)],
    offsets [E] int32 -> [M, N]. Otherwise as `block_scaled_linear`.

    Raises
    ------
    ModelInputError
        When the shapes or types do not go together.

    Examples
    --------
    >>> x, w = quantize_rows(torch.ones(3, 2), block=2), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]).to(FP8)
    >>> ends, scales = torch.tensor([1, 3], dtype=torch.int32), torch.ones(2, 1, 1)
    >>> block_scaled_grouped_linear(
    ...     *x, w, scales, ends, block=(1, 2), experts_per_token=1, dtype=torch.float32
    ... ).flatten()
    tensor([3., 7., 7.])
    """
    return torch.ops.dsocr_graph.block_scaled_grouped_linear(
        rows, row_scale, weight, weight_scale, offsets, block, experts_per_token, dtype
    )


# --- on real tensors


def _quantize_rows_real(rows: Tensor, block: int) -> tuple[Tensor, Tensor]:
    width = rows.shape[-1]
    runs = F.pad(rows.float(), (0, -width % block)).unflatten(-1, (-1, block))
    largest = runs.abs().amax(dim=-1)
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)  # a run of zeros stays one
    quantized = (runs / scale.unsqueeze(-1)).to(FP8).flatten(-2)
    return quantized[..., :width].contiguous(), scale


def _block_scaled_linear_real(  # noqa: PLR0917 - called with the operator's positions
    rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, block: Sequence[int], dtype: torch.dtype
) -> Tensor:
    return (_scaled(rows, row_scale, block[1]) @ _scaled_blocks(weight, weight_scale, block).t()).to(dtype)


def _block_scaled_grouped_linear_real(  # noqa: PLR0917 - called with the operator's positions
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor,
    block: Sequence[int],
    experts_per_token: int,
    dtype: torch.dtype,
) -> Tensor:
    result = rows.new_empty(rows.shape[0], weight.shape[1], dtype=dtype)
    begin = 0
    for expert, end in enumerate(offsets.tolist()):
        result[begin:end] = _block_scaled_linear_real(
            rows[begin:end], row_scale[begin:end], weight[expert], weight_scale[expert], block, dtype
        )
        begin = end
    return result


def _scaled(rows: Tensor, scale: Tensor, block: int) -> Tensor:
    return rows.float() * scale.repeat_interleave(block, dim=-1)[..., : rows.shape[-1]]


def _scaled_blocks(weight: Tensor, scale: Tensor, block: Sequence[int]) -> Tensor:
    return _scaled(weight, scale.repeat_interleave(block[0], dim=0)[: weight.shape[0]], block[1])


# --- shapes alone


def _quantize_rows_shape(rows: Tensor, block: int) -> tuple[Tensor, Tensor]:
    scales = rows.new_empty(*rows.shape[:-1], -(-rows.shape[-1] // block), dtype=torch.float32)
    return rows.new_empty(rows.shape, dtype=FP8), scales


def _block_scaled_linear_shape(  # noqa: PLR0917 - called with the operator's positions
    rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, block: Sequence[int], dtype: torch.dtype
) -> Tensor:
    _check_operands(rows, row_scale, weight, weight_scale, block)
    return rows.new_empty(*rows.shape[:-1], weight.shape[0], dtype=dtype)


def _block_scaled_grouped_linear_shape(  # noqa: PLR0917 - called with the operator's positions
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor,
    block: Sequence[int],
    experts_per_token: int,
    dtype: torch.dtype,
) -> Tensor:
    _check_operands(rows, row_scale, weight, weight_scale, block)
    return rows.new_empty(rows.shape[0], weight.shape[1], dtype=dtype)


def _check_operands(
    rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, block: Sequence[int]
) -> None:
    outputs, inputs = weight.shape[-2:]
    scales = (-(-outputs // block[0]), -(-inputs // block[1]))
    fitting = rows.shape[-1] == inputs and row_scale.shape[-1] == scales[1] and weight_scale.shape[-2:] == scales
    if not fitting or rows.dtype is not FP8 or weight.dtype is not FP8:
        raise ModelInputError(
            f"a product in blocks of {list(block)} takes rows [..., K] and a weight [..., N, K] in {FP8}, and their "
            f"scales [..., ceil(K / {block[1]})] and [..., ceil(N / {block[0]}), ceil(K / {block[1]})]; got "
            f"{list(rows.shape)} {rows.dtype}, {list(weight.shape)} {weight.dtype}, {list(row_scale.shape)} and "
            f"{list(weight_scale.shape)}. Quantise the rows by quantize_rows with the width of the weight's blocks"
        )


for _name, _real, _shape in (
    ("quantize_rows", _quantize_rows_real, _quantize_rows_shape),
    ("block_scaled_linear", _block_scaled_linear_real, _block_scaled_linear_shape),
    ("block_scaled_grouped_linear", _block_scaled_grouped_linear_real, _block_scaled_grouped_linear_shape),
):
    _LIBRARY.impl(_name, _real, "CPU")
    torch.library.register_fake(f"dsocr_graph::{_name}", _shape, lib=_LIBRARY)


# Registered for the overload packets, as torch's own formulas are. One multiply-add is two FLOPs.
@register_flop_formula([torch.ops.dsocr_graph.block_scaled_linear, torch.ops.dsocr_graph.block_scaled_grouped_linear])
def _block_scaled_flops(
    rows_shape: torch.Size,
    row_scale_shape: torch.Size,
    weight_shape: torch.Size,
    *_: object,
    out_shape: object = None,
    **__: object,
) -> int:
    """[..., K] by [N, K], or by the one of [E, N, K] that each row belongs to."""
    return 2 * math.prod(rows_shape) * weight_shape[-2]
