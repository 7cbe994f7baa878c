"""Torch's fused attention, which `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` run outside of training."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager

import torch
from torch import nn

from dsocr_graph.ir import OpGraph

FUSED = frozenset({"aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd"})
"""The operators that such a module runs as a whole, or all but the rest of a layer."""


def holds_fused_attention(graph: OpGraph) -> bool:
    """Whether a graph has such an operator: whether it was captured where torch chose it."""
    return any(call.op in FUSED for call in graph.calls)


def kept_from_fusing(root: nn.Module, called: Collection[str]) -> str | None:
    """Return in words which modules of a model torch may run fused, of those that a run calls; None without one.

    Examples
    --------
    >>> kept_from_fusing(nn.MultiheadAttention(8, 2).eval(), [""])
    "torch's fused attention is off, as when the model was captured; else torch may choose it for MultiheadAttention"
    >>> kept_from_fusing(nn.Linear(8, 2), [""]) is None
    True
    """
    kinds = nn.MultiheadAttention, nn.TransformerEncoderLayer
    found = {
        type(each).__name__
        for path, each in root.named_modules()
        if path in called and isinstance(each, kinds) and not each.training
    }
    if not found:
        return None
    return (
        "torch's fused attention is off, as when the model was captured; else torch may choose it for "
        f"{', '.join(sorted(found))}"
    )


@contextmanager
def fused_attention(*, allowed: bool) -> Generator[None]:
    """Let torch choose it inside, or not.

    Examples
    --------
    >>> with fused_attention(allowed=False):
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(allowed)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
