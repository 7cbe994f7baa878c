"""The decoder: DeepSeek-V2 layers with Llama's multi-head attention, dense first, then mixtures of experts.

B is documents, S new tokens, T cached tokens, H the hidden size, D channels per head, E experts, k experts
per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsocr_graph.models.deepseek_ocr.cache import KVCache
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
from dsocr_graph.models.deepseek_ocr.experts import DeepseekV2Experts, DeepseekV2MLP
from dsocr_graph.models.deepseek_ocr.normalization import DeepseekV2RMSNorm
from dsocr_graph.models.deepseek_ocr.ops import flash_attention


class LlamaRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary positions, computed in float32 in every call.

    The inverse frequencies are a buffer that `model.to(dtype)` casts like everything else: in bfloat16 they
    are rounded, as in the published script.
    """

    inv_freq: Tensor

    def __init__(self, config: DeepseekOCRConfig) -> None:
        super().__init__()
        self.dim = config.head_dim
        self.theta = config.rope_theta
        self.attention_scaling = 1.0
        self.register_buffer("inv_freq", self._frequencies(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [1, S] -> cosines and sines [1, S, D] in the dtype of `x`."""
        frequencies = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        angles = (frequencies @ position_ids[:, None, :].float()).transpose(1, 2)
        angles = torch.cat((angles, angles), dim=-1)
        # Llama's code multiplies by a scaling of 1 here; it costs a kernel each.
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    def _frequencies(self, device: torch.device) -> Tensor:
        exponents = torch.arange(0, self.dim, 2, dtype=torch.int64, device=device).float() / self.dim
        return 1.0 / (self.theta**exponents)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        was_meta = self.inv_freq.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.inv_freq.is_meta:
            # to_empty leaves garbage, and no checkpoint holds the buffer.
            self.inv_freq.copy_(self._frequencies(self.inv_freq.device))
        return self


class LlamaAttention(nn.Module):
    """Multi-head attention with rotary positions; scores materialised, softmax in float32 ("eager").

    The subclasses compute the same by other kernels.
    """

    def __init__(self, config: DeepseekOCRConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.head_dim = config.head_dim
        width = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.rotary_emb = LlamaRotaryEmbedding(config)

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        cache: KVCache,
        *,
        causal: bool,
    ) -> Tensor:
        """[B, S, H] -> [B, S, H]; appends to `cache`.

        Parameters
        ----------
        hidden_states, position_ids
            [B, S, H] and [1, S].
        attention_mask
            [B, 1, S, T + S], added to the scores (or boolean for sdpa), or None.
        cache
            The T tokens before.
        causal
            Whether the kernel itself has to hide later tokens; meaningless with a mask.
        """
        batch, new, _ = hidden_states.shape
        heads = (batch, new, -1, self.head_dim)
        q = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        k = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        v = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        cos, sin = self.rotary_emb(v, position_ids)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = cache.update(self.layer_index, k, v)
        return self.o_proj(self.attend(q, k, v, attention_mask, causal=causal).reshape(batch, new, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, *, causal: bool) -> Tensor:
        """Queries [B, heads, S, D], k and v [B, heads, T + S, D] -> [B, S, heads, D]."""
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.head_dim)
        if attention_mask is not None:
            scores = scores + attention_mask
        scores = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(scores, v).transpose(1, 2).contiguous()


class LlamaSdpaAttention(LlamaAttention):
    """The same by `scaled_dot_product_attention`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, *, causal: bool) -> Tensor:
        """Queries [B, heads, S, D], k and v [B, heads, T + S, D] -> [B, S, heads, D]."""
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attention_mask, is_causal=causal and attention_mask is None
        )
        return attended.transpose(1, 2).contiguous()


class LlamaFlashAttention2(LlamaAttention):
    """The same by the flash-attn package (CUDA, bfloat16 or float16)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, *, causal: bool) -> Tensor:
        """Queries [B, heads, S, D], k and v [B, heads, T + S, D] -> [B, S, heads, D]."""
        return flash_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            causal=causal,
            scale=1.0 / math.sqrt(self.head_dim),
        )


ATTENTION_CLASSES = {
    "eager": LlamaAttention,
    "sdpa": LlamaSdpaAttention,
    "flash_attention_2": LlamaFlashAttention2,
}


class MoEGate(nn.Module):
    """Scores every expert for every token in float32 and picks k, without renormalising their weights."""

    def __init__(self, config: DeepseekOCRConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[T, H] -> indices [T, k] (int64, in no order) and weights [T, k] (float32)."""
        scores = F.linear(hidden_states.float(), self.weight.float()).softmax(dim=-1, dtype=torch.float32)
        topk_weight, topk_idx = torch.topk(scores, k=self.top_k, dim=-1, sorted=False)
        return topk_idx, topk_weight * self.routed_scaling_factor


class DeepseekV2MoE(nn.Module):
    """Routed experts plus the shared ones, which every token meets."""

    def __init__(self, config: DeepseekOCRConfig) -> None:
        super().__init__()
        self.experts = DeepseekV2Experts(config)
        self.gate = MoEGate(config)
        self.shared_experts = DeepseekV2MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        topk_idx, topk_weight = self.gate(rows)
        routed = self.experts(rows, topk_idx, topk_weight).view(hidden_states.shape)
        return routed + self.shared_experts(hidden_states)


class DeepseekV2DecoderLayer(nn.Module):
    """Attention, then a dense MLP or a mixture of experts; both behind a norm and added to the residual."""

    def __init__(self, config: DeepseekOCRConfig, layer_index: int) -> None:
        super().__init__()
        self.self_attn = ATTENTION_CLASSES[config.attn_implementation](config, layer_index)
        self.mlp = (
            DeepseekV2MLP(config.hidden_size, config.intermediate_size)
            if layer_index < config.first_k_dense_replace
            else DeepseekV2MoE(config)
        )
        self.input_layernorm = DeepseekV2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        cache: KVCache,
        *,
        causal: bool,
    ) -> Tensor:
        """[B, S, H] -> [B, S, H]; parameters as in `LlamaAttention`."""
        hidden_states = hidden_states + self.self_attn(
            self.input_layernorm(hidden_states), position_ids, attention_mask, cache, causal=causal
        )
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q and k [B, heads, S, D] by the angles [1, S, D] of their positions."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


def rotate_half(x: Tensor) -> Tensor:
    """Return (-second half, first half) of the last axis.

    Examples
    --------
    >>> import torch
    >>> rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([-3., -4.,  1.,  2.])
    """
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def additive_mask(batch: int, new: int, past: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask [B, 1, S, T + S] added to materialised scores: 0 where a token sees, else the lowest.

    The steps are those of transformers 4.46 for a batch without padding: a causal mask for several new
    tokens, expanded and combined with the (all ones) mask of the batch; the latter alone for one new token.
    """
    lowest = torch.finfo(dtype).min
    attended = torch.ones(batch, past + new, dtype=torch.int64, device=device)
    hidden = 1.0 - attended[:, None, None, :].expand(batch, 1, new, past + new).to(dtype)
    hidden = hidden.masked_fill(hidden.to(torch.bool), lowest)
    if new == 1:
        return hidden
    columns = torch.arange(new, device=device)
    causal = torch.full((new, new), lowest, device=device)
    causal = causal.masked_fill_(columns < (columns + 1).view(new, 1), 0).to(dtype)
    if past:
        causal = torch.cat([torch.zeros(new, past, dtype=dtype, device=device), causal], dim=-1)
    return causal[None, None].expand(batch, 1, new, past + new).masked_fill(hidden.to(torch.bool), lowest)
