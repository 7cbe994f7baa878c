"""The decoder: against transformers' Llama, caches, masks, and equal results of the attention kernels."""

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dsocr_graph.errors import MissingKernelError, ModelInputError
from dsocr_graph.models.deepseek_ocr.cache import KVCache, PreallocatedKVCache
from dsocr_graph.models.deepseek_ocr.config import DeepseekOCRConfig
from dsocr_graph.models.deepseek_ocr.decoder import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    LlamaSdpaAttention,
    additive_mask,
)
from dsocr_graph.models.deepseek_ocr.modeling import DeepseekOCRForCausalLM
from dsocr_graph.models.deepseek_ocr.normalization import DeepseekV2RMSNorm, LayerNorm2d

MakeModel = Callable[..., DeepseekOCRForCausalLM]


def _ids(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_transformers_llama_attention() -> None:
    """Projections, rotate-half positions and causal softmax equal transformers' LlamaAttention."""
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    config = DeepseekOCRConfig.tiny(attn_implementation="eager")
    ours = LlamaAttention(config, 0).eval()
    llama = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    llama._attn_implementation = "eager"
    theirs = modeling_llama.LlamaAttention(llama, 0).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(9)[None]
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1)[None, None]
    rotary = modeling_llama.LlamaRotaryEmbedding(llama)(x, positions)
    expected = theirs(x, position_embeddings=rotary, attention_mask=mask)[0]
    actual = ours(x, positions, additive_mask(2, 9, 0, x.dtype, x.device), KVCache(), causal=True)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_is_transformers_rms_norm() -> None:
    """In bfloat16: float32 inside, the weight applied after the cast back."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    ours, theirs = DeepseekV2RMSNorm(32).bfloat16(), LlamaRMSNorm(32).bfloat16()
    weight = torch.randn(32, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours.weight.copy_(weight)
    theirs.weight.copy_(weight)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(ours(x), theirs(x))


def test_layer_norm_2d_is_layer_norm_over_channels() -> None:
    """The elementwise chain equals F.layer_norm with the channels moved to the end."""
    norm = LayerNorm2d(6)
    norm.weight.copy_(torch.arange(6.0))
    norm.bias.copy_(torch.arange(6.0) - 3)
    x = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)


def test_rotary_angles_by_hand() -> None:
    """Head size 16, theta 10000: frequency i is 10000^(-i/8), so channel 1 at position 3 turns 3 * 0.316228."""
    rotary = LlamaRotaryEmbedding(DeepseekOCRConfig.tiny())
    cos, sin = rotary(torch.zeros(1), torch.tensor([[0, 3]]))
    assert cos.shape == (1, 2, 16)
    assert cos[0, 0].eq(1).all()
    assert sin[0, 0].eq(0).all()
    angle = 3 * 10000 ** (-1 / 8)
    for channel in (1, 9):  # both halves turn by the same angle
        assert cos[0, 1, channel].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert sin[0, 1, channel].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_casting_the_model_rounds_the_inverse_frequencies() -> None:
    """Like the published script: at position 900 one channel turns 1.1 rad too far.

    Frequency 1 is 10000^(-1/64) = 0.865964; bfloat16 numbers there lie 2^-8 apart: 221.687 of them round to
    222 * 2^-8 = 0.8671875, which is 0.0012235 more, times 900 is 1.1011.
    """
    exact = LlamaRotaryEmbedding(DeepseekOCRConfig())
    rounded = LlamaRotaryEmbedding(DeepseekOCRConfig()).bfloat16()
    assert rounded.inv_freq.dtype is torch.bfloat16
    error = (rounded.inv_freq.float() - exact.inv_freq) * 900
    assert error[1].item() == pytest.approx(1.1011, abs=1e-3)


@pytest.mark.parametrize("new", [1, 6])
def test_materialised_mask_hides_later_tokens_only(new: int) -> None:
    """With 3 cached tokens, new token i sees the cached ones and the new ones up to itself."""
    mask = additive_mask(2, new, 3, torch.float32, torch.device("cpu"))
    assert mask.shape == (2, 1, new, 3 + new)
    lowest = torch.finfo(torch.float32).min
    for query in range(new):
        expected = [0.0] * (3 + query + 1) + [lowest] * (new - query - 1)
        assert mask[1, 0, query].tolist() == expected


def test_sdpa_equals_eager(make_model: MakeModel) -> None:
    """Both attentions give the same logits in prefill and in decode."""
    sdpa, eager = make_model(), make_model(attn_implementation="eager")
    ids = _ids(2, 11)
    caches = KVCache(), KVCache()
    torch.testing.assert_close(sdpa(ids, cache=caches[0]), eager(ids, cache=caches[1]), rtol=1e-3, atol=1e-3)
    step = _ids(2, 1, seed=4)
    torch.testing.assert_close(sdpa(step, cache=caches[0]), eager(step, cache=caches[1]), rtol=1e-3, atol=1e-3)


def test_flash_attention_is_called_in_its_own_layout(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for flash-attn, taking [B, S, heads, D], gives sdpa's logits: causal and bottom-right aligned."""

    def flash_attn_func(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, softmax_scale: float, causal: bool
    ) -> torch.Tensor:
        visible = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        if causal:
            visible = visible.tril(k.shape[1] - q.shape[1])
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    flash, sdpa = make_model(attn_implementation="flash_attention_2"), make_model()
    caches = KVCache(), KVCache()
    for ids in (_ids(2, 7), _ids(2, 1, seed=5), _ids(2, 3, seed=6)):  # prefill, one step, several at once
        torch.testing.assert_close(flash(ids, cache=caches[0]), sdpa(ids, cache=caches[1]), rtol=1e-3, atol=1e-3)


def test_flash_attention_without_its_package_says_so(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flash-attn the error names the package and the other implementations."""
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(MissingKernelError, match=r"flash-attn.*'sdpa' or 'eager'"):
        make_model(attn_implementation="flash_attention_2")(_ids(1, 3))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("preallocated", [False, True])
def test_prefill_and_decode_equal_one_full_forward(make_model: MakeModel, attention: str, preallocated: bool) -> None:
    """Logits of tokens read one by one or three at once equal those of the whole sequence."""
    model = make_model(attn_implementation=attention)
    ids = _ids(2, 12)
    whole = model(ids)
    cache = PreallocatedKVCache(12) if preallocated else KVCache()
    pieces = [model(part, cache=cache) for part in ids.split([6, 1, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-3, atol=1e-3)
    assert cache.length == 12
    # 2 * 3 layers * 4 heads * 16 channels * 4 bytes = 1,536 per token; 2 documents of 12
    assert cache.nbytes == 1536 * 24


def test_one_token_prompts_work(make_model: MakeModel) -> None:
    """A prompt of one token gives the first row of the logits of two."""
    model = make_model()
    torch.testing.assert_close(model(_ids(1, 2)[:, :1]), model(_ids(1, 2))[:, :1], rtol=1e-4, atol=1e-4)


def test_later_tokens_change_no_earlier_logits(tiny: DeepseekOCRForCausalLM) -> None:
    """Causality: changing the last id changes the last logits only."""
    ids = _ids(1, 8)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 255
    before, after = tiny(ids), tiny(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_logits_are_float32_in_bfloat16(make_model: MakeModel) -> None:
    """The head runs in bfloat16 and its logits are copied to float32; the cache stays bfloat16."""
    model = make_model(dtype=torch.bfloat16)
    cache = KVCache()
    assert model(_ids(1, 4), cache=cache).dtype is torch.float32
    assert {tensor.dtype for tensor in cache.tensors()} == {torch.bfloat16}


def test_bfloat16_is_near_float32(make_model: MakeModel) -> None:
    """With one layer, logits in bfloat16 lie within some per cent of the largest float32 logit."""
    small = {"num_hidden_layers": 1, "initializer_range": 0.05}
    exact = make_model(**small)(_ids(1, 6))
    rounded = make_model(dtype=torch.bfloat16, **small)(_ids(1, 6))
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_image_features_go_where_the_mask_says(tiny: DeepseekOCRForCausalLM) -> None:
    """The first layer sees text embeddings and, in order, each document's own features."""
    seen = []
    layer: Any = tiny.model.layers[0]
    layer.input_layernorm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    ids = torch.tensor([[0, 255, 255, 9], [0, 255, 255, 9]])
    features = torch.arange(4.0).view(2, 2, 1).expand(2, 2, 64)
    tiny.prefill(ids, features.contiguous(), ids == 255)
    assert seen[0][:, 1:3, 0].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    table = tiny.model.embed_tokens.weight
    assert torch.equal(seen[0][1, 0], table[0])
    assert torch.equal(seen[0][1, 3], table[9])


def test_embedding_table_survives_a_prefill(tiny: DeepseekOCRForCausalLM) -> None:
    """Features are written into a copy: the table is the same after a prefill with an image."""
    before = tiny.model.embed_tokens.weight.clone()
    ids = torch.tensor([[0, 255, 9]])
    tiny.prefill(ids, torch.ones(1, 1, 64), ids == 255)
    assert torch.equal(before, tiny.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("ids", "features", "mask", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), None, None, r"\[documents, tokens\]"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 1, 64), None, "both"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 1, 64), torch.zeros(1, 2).bool(), "images_mask"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 1, 32), torch.zeros(1, 3).bool(), "64"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(
    tiny: DeepseekOCRForCausalLM,
    ids: torch.Tensor,
    features: torch.Tensor | None,
    mask: torch.Tensor | None,
    message: str,
) -> None:
    """Wrong ranks and sizes are one clear error before anything runs."""
    with pytest.raises(ModelInputError, match=message):
        tiny.prefill(ids, features, mask)


def test_concatenating_cache_copies_and_the_preallocated_one_does_not() -> None:
    """A step of KVCache gives new storage for all tokens; PreallocatedKVCache keeps its own."""
    old, new = torch.zeros(1, 2, 5, 4), torch.ones(1, 2, 1, 4)
    for cache, moves in ((KVCache(), True), (PreallocatedKVCache(6), False)):
        before = cache.update(0, old, old)[0].untyped_storage().data_ptr()
        cache.update(0, new, new)
        again = cache.update(0, new[:, :, :0], new[:, :, :0])[0]
        assert again[0, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 1]
        assert (again.untyped_storage().data_ptr() != before) is moves


def test_a_full_or_misused_cache_is_refused() -> None:
    """Too many tokens, a layer out of turn and half a pair are errors with the numbers."""
    k = torch.zeros(1, 2, 5, 4)
    with pytest.raises(ModelInputError, match="4 tokens cannot hold 5"):
        PreallocatedKVCache(4).update(0, k, k)
    with pytest.raises(ModelInputError, match=r"layer 1 .* before layer 0"):
        KVCache().update(1, k, k)
    with pytest.raises(ModelInputError, match="3 tensors"):
        KVCache.from_tensors([k, k, k])


def test_sdpa_reads_no_mask_where_its_own_flag_is_right() -> None:
    """Causal attention by the flag equals attention by the explicit mask."""
    attention = LlamaSdpaAttention(DeepseekOCRConfig.tiny(), 0)
    x = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(6)[None]
    by_flag = attention(x, positions, None, KVCache(), causal=True)
    by_mask = attention(x, positions, additive_mask(1, 6, 0, x.dtype, x.device), KVCache(), causal=True)
    torch.testing.assert_close(by_flag, by_mask, rtol=1e-5, atol=1e-5)
