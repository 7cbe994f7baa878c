"""The three normalisations: LayerNorm and LayerNorm2d of the vision encoders, RMSNorm of the decoder.

The published model is cast to bfloat16 and run under autocast, which computes layer norms and powers in
float32. The casts stand here in the open, so that a captured graph has them; in float32 they change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, computed and returned in float32 whatever the dtypes given.

    Examples
    --------
    >>> import torch
    >>> LayerNorm(4, dtype=torch.bfloat16)(torch.ones(1, 4, dtype=torch.bfloat16)).dtype
    torch.float32
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., C] in float32."""
        return F.layer_norm(input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [B, C, h, w], as a chain of elementwise operations.

    The result has the dtype of the weights: under autocast the convolution behind it casts its input there
    and then.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]; the variance in float32."""
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).float().pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        x = self.weight[:, None, None] * x + self.bias[:, None, None]
        return x.to(self.weight.dtype)


class DeepseekV2RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32, then the weight in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.float()
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)
