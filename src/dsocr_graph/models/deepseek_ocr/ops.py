"""Two custom operators, `dsocr_graph::grouped_linear` and `dsocr_graph::flash_attention`, with FLOP formulas.

Both run on real tensors and have a shape-only kernel, so that a model that uses them can be captured on
`meta`. They are registered with `torch.library.Library` and not `custom_op`: a decode step calls them dozens
of times, and the plain dispatcher entry costs a few microseconds less per call.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from dsocr_graph.errors import MissingKernelError, ModelInputError

_LIBRARY = torch.library.Library("dsocr_graph", "DEF")
_LIBRARY.define(
    "grouped_linear(Tensor input, Tensor weight, Tensor offsets, int experts_per_token) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "flash_attention(Tensor q, Tensor k, Tensor v, bool causal, float scale) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def grouped_linear(rows: Tensor, weight: Tensor, offsets: Tensor, *, experts_per_token: int) -> Tensor:
    """Multiply each group of rows by its own weight: `y[m] = x[m] @ weight[e].T` for the rows m of group e.

    Shapes: rows [M, K], weight [E, N, K], offsets [E] int32 -> [M, N]. Group e is the rows from `offsets[e -
    1]` (0 for the first) up to `offsets[e]`; `offsets[-1]` must be M. Nothing is copied to the host on a GPU
    that has the grouped kernel. There is no backward formula.

    Parameters
    ----------
    rows, weight, offsets
        Operands, on one device; `rows` and `weight` of one dtype.
    experts_per_token
        How many of the M rows belong to one token. It changes no result; it travels with the call so that an
        analysis knows the number of tokens.

    Examples
    --------
    >>> import torch
    >>> x, w = torch.eye(2).repeat(2, 1), torch.stack([torch.eye(2), 3 * torch.eye(2)])
    >>> grouped_linear(x, w, torch.tensor([3, 4], dtype=torch.int32), experts_per_token=2)[:, 1]
    tensor([0., 1., 0., 3.])
    """
    return torch.ops.dsocr_graph.grouped_linear(rows, weight, offsets, experts_per_token)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Attention by the flash-attn package, without materialised scores.

    Shapes: q [B, Sq, heads, dim], k and v [B, Sk, heads, dim] -> [B, Sq, heads, dim]. With Sq < Sk the
    causal mask is aligned to the bottom right: the last query sees every key.

    Raises
    ------
    MissingKernelError
        On real tensors when the package flash-attn is not installed.
    """
    return torch.ops.dsocr_graph.flash_attention(q, k, v, causal, scale)


def _has_grouped_kernel(rows: Tensor, weight: Tensor) -> bool:
    # torch asks for rows that begin at multiples of 16 bytes, of the operands and of the result.
    if weight.shape[-1] * rows.itemsize % 16 or weight.shape[-2] * rows.itemsize % 16:
        return False
    if rows.device.type == "cpu":
        return True
    # The CUDA kernel runs on tensor cores of compute capability 8.0 and later.
    return rows.dtype is torch.bfloat16 and torch.cuda.get_device_capability(rows.device) >= (8, 0)


def _grouped_linear_real(rows: Tensor, weight: Tensor, offsets: Tensor, experts_per_token: int) -> Tensor:
    if _has_grouped_kernel(rows, weight):
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=offsets)
    result = rows.new_empty(rows.shape[0], weight.shape[1])
    begin = 0
    for expert, end in enumerate(offsets.tolist()):
        if end > begin:
            torch.mm(rows[begin:end], weight[expert].t(), out=result[begin:end])
        begin = end
    return result


def _grouped_linear_shape(rows: Tensor, weight: Tensor, offsets: Tensor, experts_per_token: int) -> Tensor:
    if rows.dim() != 2 or weight.dim() != 3 or offsets.shape != weight.shape[:1] or rows.dtype != weight.dtype:
        raise ModelInputError(
            "grouped_linear takes rows [M, K], weight [E, N, K] of the same dtype and offsets [E]; got "
            f"{list(rows.shape)} {rows.dtype}, {list(weight.shape)} {weight.dtype}, {list(offsets.shape)}"
        )
    return rows.new_empty(rows.shape[0], weight.shape[1])


def _flash_attention_real(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingKernelError(
            "attn_implementation 'flash_attention_2' needs the package flash-attn, which is not installed; "
            "install it (CUDA only), or use 'sdpa' or 'eager'"
        ) from error
    return flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)


def _flash_attention_shape(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("grouped_linear", _grouped_linear_real, _key)
    _LIBRARY.impl("flash_attention", _flash_attention_real, _key)
torch.library.register_fake("dsocr_graph::grouped_linear", _grouped_linear_shape, lib=_LIBRARY)
torch.library.register_fake("dsocr_graph::flash_attention", _flash_attention_shape, lib=_LIBRARY)


# Registered for the overload packet, as torch's own formulas are. One multiply-add is two FLOPs.
@register_flop_formula(torch.ops.dsocr_graph.grouped_linear)
def _grouped_linear_flops(
    rows_shape: torch.Size, weight_shape: torch.Size, *_: object, out_shape: object = None, **__: object
) -> int:
    """[M, K] by the matching [N, K]: every row meets exactly one weight."""
    rows, inner = rows_shape
    return 2 * rows * inner * weight_shape[1]


@register_flop_formula(torch.ops.dsocr_graph.flash_attention)
def _flash_attention_flops(
    q_shape: torch.Size, k_shape: torch.Size, *_: object, out_shape: object = None, **__: object
) -> int:
    """Two matmuls of [Sq, dim] and [Sk, dim] per head, in full: causal masking saves nothing here."""
    batch, queries, heads, dim = q_shape
    return 2 * 2 * batch * heads * queries * k_shape[1] * dim
