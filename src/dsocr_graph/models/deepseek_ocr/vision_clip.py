"""The CLIP encoder, whose patch embeddings are SAM's features, and the projector to the decoder's width.

B is pictures, h tokens per side, N = h * h + 1 with the class token, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsocr_graph.models.deepseek_ocr.config import ClipConfig
from dsocr_graph.models.deepseek_ocr.normalization import LayerNorm


class VitModel(nn.Module):
    """SAM's features [B, C, h, h] -> class token and patches [B, N, C] in float32; no norm at the end.

    The patch convolution of CLIP is a parameter of the checkpoint and runs only without SAM's features.

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.deepseek_ocr import ClipConfig
    >>> with torch.device("meta"):
    ...     VitModel(ClipConfig())(torch.empty(1, 3, 640, 640), torch.empty(1, 1024, 10, 10)).shape
    torch.Size([1, 101, 1024])
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.transformer = NoTPTransformer(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, eps=1e-5)

    def forward(self, pixels: Tensor, patch_embeds: Tensor | None = None) -> Tensor:
        """[B, 3, pixels, pixels] and [B, C, h, h] -> [B, N, C]."""
        return self.transformer(self.pre_layrnorm(self.embeddings(pixels, patch_embeds)))


class CLIPVisionEmbeddings(nn.Module):
    """Class token before the patches, plus positions."""

    position_ids: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)
        # No checkpoint holds it, so it is no part of the state.
        self.register_buffer("position_ids", torch.arange(config.num_positions).expand(1, -1), persistent=False)

    def forward(self, pixels: Tensor, patch_embeds: Tensor | None = None) -> Tensor:
        """[B, 3, pixels, pixels] and [B, C, h, h] -> [B, N, C]."""
        patches: Tensor = self.patch_embedding(pixels) if patch_embeds is None else patch_embeds
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = torch.cat([class_token, patches], dim=1)
        return x + get_abs_pos(self.position_embedding(self.position_ids), x.shape[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        was_meta = self.position_ids.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.position_ids.is_meta:
            positions = self.position_ids
            self.position_ids = torch.arange(positions.shape[1], device=positions.device).expand(1, -1)
        return self


class NoTPTransformer(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NoTPTransformerBlock(config) for _ in range(config.num_layers))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class NoTPTransformerBlock(nn.Module):
    """A pre-norm transformer block; the residual stream is float32, as the first norm leaves it."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = NoTPAttention(config)
        self.mlp = NoTPFeedForward(config)
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=1e-5)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class NoTPAttention(nn.Module):
    """Full multi-head attention with one projection for queries, keys and values."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.hidden_size // config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        batch, tokens, _ = x.shape
        qkv = self.qkv_proj(x.to(self.qkv_proj.weight.dtype))
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.permute(0, 2, 1, 3).reshape(batch, tokens, -1))


class NoTPFeedForward(nn.Module):
    """Linear, quick GELU, linear."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.fc2 = nn.Linear(config.ffn_hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(quick_gelu(self.fc1(x.to(self.fc1.weight.dtype))))


class MlpProjector(nn.Module):
    """One linear layer from CLIP's and SAM's channels to the decoder's width."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h * h, 2 C] -> [B, h * h, hidden]."""
        return self.layers(x.to(self.layers.weight.dtype))


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def get_abs_pos(table: Tensor, tokens: int) -> Tensor:
    """Return the position table [1, N, C] for N = `tokens`, patches resized (bicubic, float32) if need be."""
    rows, channels = table.shape[1], table.shape[2]
    old, new = math.isqrt(rows - 1), math.isqrt(tokens - 1)
    if old == new:
        return table
    table = table.squeeze(0)
    patches = table[1:].view(1, old, old, channels).permute(0, 3, 1, 2).contiguous().float()
    patches = F.interpolate(patches, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    patches = patches.to(table.dtype).permute(0, 2, 3, 1).reshape(new * new, channels)
    return torch.cat([table[:1], patches], dim=0).view(1, new * new + 1, channels)
