"""The SAM image encoder: windowed attention with relative positions, a neck, two strided convolutions.

B is pictures, P patches per side (pixels / 16), h tokens per side at the end (pixels / 64), C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsocr_graph.models.deepseek_ocr.config import SamConfig
from dsocr_graph.models.deepseek_ocr.normalization import LayerNorm, LayerNorm2d


class ImageEncoderViT(nn.Module):
    """Pictures [B, 3, pixels, pixels] -> features [B, C, h, h].

    Examples
    --------
    >>> import torch
    >>> from dsocr_graph.models.deepseek_ocr import SamConfig
    >>> with torch.device("meta"):
    ...     ImageEncoderViT(SamConfig())(torch.empty(2, 3, 640, 640)).shape
    torch.Size([2, 1024, 10, 10])
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config, window_size=0 if index in config.global_attn_indexes else config.window_size)
            for index in range(config.depth)
        )
        channels = config.neck_channels
        self.neck = nn.Sequential(
            nn.Conv2d(config.embed_dim, channels, kernel_size=1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels),
        )
        middle, last = config.downsample_channels
        self.net_2 = nn.Conv2d(channels, middle, kernel_size=3, stride=2, padding=1, bias=False)
        self.net_3 = nn.Conv2d(middle, last, kernel_size=3, stride=2, padding=1, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, pixels, pixels] -> [B, C, h, h]."""
        x = self.patch_embed(pixels)
        x = x + get_abs_pos(self.pos_embed, x.shape[1])
        for block in self.blocks:
            x = block(x)
        x = self.neck(x.permute(0, 3, 1, 2))
        x = self.net_2(x)
        # The published code clones here, although nothing else reads the tensor.
        return self.net_3(x.clone())


class PatchEmbed(nn.Module):
    """Non-overlapping patches by a strided convolution."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, pixels, pixels] -> [B, P, P, C]."""
        return self.proj(pixels).permute(0, 2, 3, 1)


class Block(nn.Module):
    """A pre-norm transformer block; attention within windows unless `window_size` is 0."""

    def __init__(self, config: SamConfig, *, window_size: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = Attention(config, side=window_size or config.grid)
        self.norm2 = LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = MLPBlock(config)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, P, C] -> [B, P, P, C]; the residual stream keeps the dtype of the weights."""
        shortcut = x
        x = self.norm1(x)
        if self.window_size:
            batch, height, width, _ = x.shape
            x = self.attn(window_partition(x, self.window_size))
            x = window_unpartition(x, self.window_size, batch, height, width)
        else:
            x = self.attn(x)
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class MLPBlock(nn.Module):
    """Linear, GELU (exact), linear."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.lin2 = nn.Linear(config.mlp_dim, config.embed_dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.lin2(self.act(self.lin1(x.to(self.lin1.weight.dtype))))


class Attention(nn.Module):
    """Multi-head attention over a square of patches, with a bias from decomposed relative positions.

    The bias [B, heads, side**2, side**2] is materialised in every call and goes to the kernel as a float
    mask.
    """

    def __init__(self, config: SamConfig, *, side: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        head_dim = config.embed_dim // config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, side, side, C] -> [B, side, side, C]."""
        batch, height, width, _ = x.shape
        tokens, heads = height * width, self.num_heads
        qkv = self.qkv(x.to(self.qkv.weight.dtype)).reshape(batch, tokens, 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, -1).unbind(0)
        bias = decomposed_rel_pos_bias(q, self.rel_pos_h, self.rel_pos_w, height, width)
        x = F.scaled_dot_product_attention(
            q.view(batch, heads, tokens, -1),
            k.view(batch, heads, tokens, -1),
            v.view(batch, heads, tokens, -1),
            attn_mask=bias.view(batch, heads, tokens, tokens),
        )
        x = x.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4).reshape(batch, height, width, -1)
        return self.proj(x)


def window_partition(x: Tensor, size: int) -> Tensor:
    """Cut [B, P, P, C] into windows [B * n, size, size, C], padding with zeros at the bottom and the right.

    Examples
    --------
    >>> import torch
    >>> window_partition(torch.zeros(1, 16, 16, 8), 14).shape
    torch.Size([4, 14, 14, 8])
    """
    batch, height, width, channels = x.shape
    below, right = -height % size, -width % size
    if below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    rows, columns = (height + below) // size, (width + right) // size
    x = x.view(batch, rows, size, columns, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, channels)


def window_unpartition(windows: Tensor, size: int, batch: int, height: int, width: int) -> Tensor:
    """Put windows together again and cut the padding off: the inverse of `window_partition`."""
    rows, columns = -(-height // size), -(-width // size)
    x = windows.view(batch, rows, columns, size, size, -1)
    x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(batch, rows * size, columns * size, -1)
    if rows * size > height or columns * size > width:
        x = x[:, :height, :width, :].contiguous()
    return x


def get_abs_pos(table: Tensor, side: int) -> Tensor:
    """Return the position table [1, P, P, C] for P = `side`, resized (bicubic, float32) if need be."""
    if table.shape[1] == side:
        return table
    resized = F.interpolate(
        table.permute(0, 3, 1, 2).float(),
        size=(side, side),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    return resized.to(table.dtype).permute(0, 2, 3, 1)


def get_rel_pos(q_size: int, k_size: int, table: Tensor) -> Tensor:
    """Gather the relative position of every query to every key along one axis: [q_size, k_size, head_dim].

    A table made for another size is interpolated linearly in float32 first.

    Examples
    --------
    >>> import torch
    >>> get_rel_pos(2, 2, torch.tensor([[10.0], [20.0], [30.0]]))[..., 0]
    tensor([[20., 10.],
            [30., 20.]])
    """
    distances = 2 * max(q_size, k_size) - 1
    if table.shape[0] != distances:
        resized = F.interpolate(table.float().permute(1, 0)[None], size=distances, mode="linear")
        table = resized.to(table.dtype).reshape(-1, distances).permute(1, 0)
    q_scale, k_scale = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q_coordinates = torch.arange(q_size, device=table.device)[:, None] * q_scale
    k_coordinates = torch.arange(k_size, device=table.device)[None, :] * k_scale
    relative = (q_coordinates - k_coordinates) + (k_size - 1) * k_scale
    return table[relative.long()]


def decomposed_rel_pos_bias(q: Tensor, table_h: Tensor, table_w: Tensor, height: int, width: int) -> Tensor:
    """Bias of every query to every key, by rows plus by columns: [B * heads, tokens, height, width].

    Source: MViTv2 (arXiv:2112.01526), decomposed relative position embeddings, as in Segment Anything.
    """
    by_row = get_rel_pos(height, height, table_h)
    by_column = get_rel_pos(width, width, table_w)
    queries = q.reshape(q.shape[0], height, width, -1)
    bias_h = torch.einsum("bhwc,hkc->bhwk", queries, by_row).reshape(-1, height * width, height, 1)
    bias_w = torch.einsum("bhwc,wkc->bhwk", queries, by_column).reshape(-1, height * width, 1, width)
    return bias_h + bias_w
