"""Names, shapes and counts of the published model."""

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsocr_graph.models.deepseek_ocr import DeepseekOCRConfig, DeepseekOCRForCausalLM, stage_inputs
from dsocr_graph.models.deepseek_ocr.stages import StageModule


@pytest.fixture(scope="module")
def full() -> DeepseekOCRForCausalLM:
    """Return the published model without storage."""
    with torch.device("meta"):
        return DeepseekOCRForCausalLM(DeepseekOCRConfig())


def test_names_and_shapes_are_the_checkpoints(full: DeepseekOCRForCausalLM, repo_root: Path) -> None:
    """All 2,710 tensors of the published checkpoint, no other, in names and shapes."""
    text = gzip.decompress((repo_root / "tests/data/deepseek_ocr_checkpoint.tsv.gz").read_bytes()).decode()
    published = {}
    for line in text.splitlines()[1:]:
        name, shape = line.split("\t")
        published[name] = tuple(int(size) for size in shape.split("x"))
    assert len(published) == 2710
    assert {name: tuple(value.shape) for name, value in full.named_parameters()} == published
    assert set(full.state_dict()) == set(published)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_per_component(full: DeepseekOCRForCausalLM) -> None:
    """Each component has the published number of parameters, and together 3,336,106,240."""
    model = full.model
    assert _count(model.embed_tokens) == 129280 * 1280  # 165,478,400
    # attention 4 * 1280 * 1280 and two norms of 1280 per layer; one dense MLP 3 * 6848 * 1280;
    # per MoE layer 64 experts of 3 * 896 * 1280, a gate of 64 * 1280 and a shared MLP of 3 * 1792 * 1280
    attention, dense = 4 * 1280 * 1280 + 2 * 1280, 3 * 6848 * 1280
    moe = 64 * 3 * 896 * 1280 + 64 * 1280 + 3 * 1792 * 1280
    assert _count(model.layers) == 12 * attention + dense + 11 * moe == 2_603_776_000
    assert _count(model.norm) == 1280
    assert _count(model.sam_model) == 95_569_152
    assert _count(model.vision_model) == 303_177_728
    assert _count(model.projector) == 2048 * 1280 + 1280  # 2,622,720
    assert model.image_newline.numel() + model.view_seperator.numel() == 2560
    assert _count(full.lm_head) == 165_478_400
    assert _count(full) == 3_336_106_240


def test_stacked_expert_weights_are_no_parameters_and_no_state(full: DeepseekOCRForCausalLM) -> None:
    """The stacked buffers alias the experts' parameters: 64 * 3 * 896 * 1280 elements per MoE layer, once."""
    layer: Any = full.model.layers[1]
    experts = layer.mlp.experts
    stacked = [experts.gate_weight, experts.up_weight, experts.down_weight]
    assert sum(weight.numel() for weight in stacked) == 64 * 3 * 896 * 1280
    assert not any(name.endswith(("gate_weight", "up_weight", "down_weight")) for name in full.state_dict())


def test_class_names_are_the_published_ones(full: DeepseekOCRForCausalLM) -> None:
    """The modules carry the class names of the published code, as often as the published model has them."""
    counts = Counter(type(module).__name__ for module in full.modules())
    expected = {
        "ImageEncoderViT": 1,
        "Block": 12,
        "Attention": 12,
        "MLPBlock": 12,
        "LayerNorm2d": 2,
        "PatchEmbed": 1,
        "VitModel": 1,
        "CLIPVisionEmbeddings": 1,
        "NoTPTransformer": 1,
        "NoTPTransformerBlock": 24,
        "NoTPAttention": 24,
        "NoTPFeedForward": 24,
        "MlpProjector": 1,
        "DeepseekOCRModel": 1,
        "DeepseekOCRForCausalLM": 1,
        "DeepseekV2DecoderLayer": 12,
        "DeepseekV2MLP": 1 + 11 * (64 + 1),  # dense, then experts and shared ones
        "DeepseekV2MoE": 11,
        "MoEGate": 11,
        "DeepseekV2RMSNorm": 2 * 12 + 1,
        "LlamaSdpaAttention": 12,
        "LlamaRotaryEmbedding": 12,
        "LayerNorm": 2 * 12 + 2 * 24 + 1,
        "GELU": 12,
        "Conv2d": 1 + 2 + 2 + 1,  # patches, neck, strided, CLIP's unused one
        "Embedding": 2,
    }
    assert {name: counts[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("implementation", "name"),
    [("eager", "LlamaAttention"), ("sdpa", "LlamaSdpaAttention"), ("flash_attention_2", "LlamaFlashAttention2")],
)
def test_attention_class_follows_the_implementation(implementation: str, name: str) -> None:
    """Each attention implementation has the class name it has in transformers."""
    with torch.device("meta"):
        model = DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny(attn_implementation=implementation))
    assert {type(layer.self_attn).__name__ for layer in model.model.layers} == {name}


def test_kv_cache_is_61440_bytes_per_token_in_bf16(full: DeepseekOCRForCausalLM) -> None:
    """2 (keys, values) * 12 layers * 10 heads * 128 * 2 bytes = 61,440 per token; a step adds one token."""
    config = full.config
    _, cache = StageModule(full, "decode")(*stage_inputs(config, "decode", dtype=torch.float32, B=3, T=10))
    assert sum(tensor.numel() for tensor in cache) * 2 == 61_440 * 3 * 11
    assert config.kv_cache_elements_per_token * 2 == 61_440


@pytest.mark.parametrize(
    ("base", "tokens"),
    [(512, 73), (640, 111), (1024, 273), (1280, 421)],  # h * (h + 1) + 1, h = base / 64
)
def test_full_model_encodes_every_published_size(full: DeepseekOCRForCausalLM, base: int, tokens: int) -> None:
    """Tiny, Small, Base and Large give 73, 111, 273 and 421 image tokens."""
    pixels = torch.empty(1, 3, base, base, device="meta")
    assert full.encode_global(pixels).shape == (tokens, 1280)
