"""Higher-order operators: attention with functions of the user's in it, and which branch of a condition counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dsocr_graph.ir import OpCall
from dsocr_graph.lowering.registry import Approximation, Unsupported, is_free, layer_of, lowers
from modelmeter.dim_binding import bind
from modelmeter.dims import total
from modelmeter.layers import ScaledDotProductAttention


@lowers("higher_order::flex_attention")
def flex_attention(call: OpCall) -> Approximation:
    """y[B, H, Sq, Dv] = softmax(score_mod(q[B, H, Sq, D] @ k[B, Hkv, Sk, D].T * scale)) @ v[B, Hkv, Sk, Dv].

    As the fused kernel runs it that torch.compile makes: scores stay on chip. A block mask says in its values which
    blocks are left out, so that all are counted: an upper bound.
    """
    q, k, v = call.tensor("query"), call.tensor("key"), call.tensor("value")
    layer = ScaledDotProductAttention(
        batch=q.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        query_length=q.shape[2],
        key_length=k.shape[2],
        head_dim=q.shape[3],
        value_head_dim=v.shape[3],
        causal=False,
        dtype=q.dtype,
    )
    return Approximation(
        layer=layer,
        note="flex_attention as one fused kernel over all blocks of keys, those that its block mask skips included; "
        "what score_mod and mask_mod compute is left out",
    )


def costliest(branches: Sequence[Sequence[OpCall]], sizes: Mapping[str, int]) -> int:
    """Return which of several branches costs most, by its position: by FLOPs, where these are equal by bytes.

    A branch with a call that no rule knows comes before all others, so that the call is reported.

    Parameters
    ----------
    branches : sequence of sequence of OpCall
        The calls of each.
    sizes : mapping of str to int
        Of every dim in the shapes.

    Examples
    --------
    >>> costliest([[], []], {})
    0
    """
    costs = [_cost(branch, sizes) for branch in branches]
    return costs.index(max(costs))


def _cost(calls: Sequence[OpCall], sizes: Mapping[str, int]) -> tuple[float, float]:
    flops, moved = 0.0, 0.0
    for call in calls:
        made = None if is_free(call) else layer_of(call)
        if isinstance(made, Unsupported):
            return math.inf, math.inf
        layer = made.layer if isinstance(made, Approximation) else made
        if layer is not None:
            flops += bind(total((layer.matmul_flops(), layer.vector_flops())), sizes)
            moved += bind(layer.traffic().bytes, sizes)
    return flops, moved
