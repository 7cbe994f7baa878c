"""Configuration files as users have them, to an analytic model whose FLOPs are those that torch counts.

The counter runs the same stage on `meta` at concrete sizes; see test_language_models_against_torch.py.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsocr_graph import analyze_model
from dsocr_graph.errors import ModelConfigError, OptionError
from dsocr_graph.lowering import lower
from dsocr_graph.models.from_transformers import TransformersVariant, model_from_config
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from dsocr_graph.verification.stage_inputs import meta_inputs
from modelmeter.evaluate import evaluate_stage

BERT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 600,
}
GROUPED = {**BERT, "num_key_value_heads": 2, "head_dim": 16}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 128,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"], **BERT},
    "modernbert": {
        "model_type": "modernbert",
        **BERT,
        "num_hidden_layers": 4,
        "local_attention": 16,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "roberta": {"model_type": "roberta", **BERT},
    "clip": {"model_type": "clip_vision_model", **VISION},
    "vit": {"model_type": "vit", "architectures": ["ViTForImageClassification"], **VISION},
    "dinov2": {"model_type": "dinov2", "architectures": ["Dinov2Model"], **VISION},
    **{
        f"{name} of both": {
            "model_type": name,
            "architectures": [architecture],
            "vision_config": VISION,
            "text_config": {**BERT, "bos_token_id": 1, "eos_token_id": 2},
            **({"projection_dim": 64} if name == "clip" else {}),
        }
        for name, architecture in (("clip", "CLIPModel"), ("siglip", "SiglipModel"))
    },
    "clip that classifies": {
        "model_type": "clip",
        "architectures": ["CLIPForImageClassification"],
        "vision_config": VISION,
        "text_config": BERT,
    },
    "siglip that classifies": {
        "model_type": "siglip",
        "architectures": ["SiglipForImageClassification"],
        "vision_config": VISION,
        "text_config": BERT,
    },
    "llava": {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "text_config": {"model_type": "llama", **GROUPED},
        "image_token_id": 127,
    },
    "paligemma": {
        "model_type": "paligemma",
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
        "text_config": {"model_type": "gemma", **GROUPED},
        "image_token_index": 127,
        "projection_dim": 64,
    },
    "internvl": {
        "model_type": "internvl",
        "vision_config": {"model_type": "internvl_vision", **VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        "text_config": {"model_type": "qwen2", **GROUPED},
        "image_token_id": 127,
    },
    "bert that writes": {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True, **BERT},
    "dynamic rope": {
        "model_type": "llama",
        **GROUPED,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    },
    "t5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **T5},
    "t5 gated": {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 1},
    "bart": {"model_type": "bart", **BART},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 128},
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **GROUPED},
    "mixtral": {"model_type": "mixtral", **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}
ENCODED_TEXT = {"encode": [{"B": 1, "S": 7}, {"B": 2, "S": 50}]}
IMAGES = {"encode": [{"B": 1}, {"B": 5}]}
OF_BOTH = {"encode_images": IMAGES["encode"], "encode_texts": ENCODED_TEXT["encode"]}
WRITTEN = {"prefill": [{"B": 1, "S": 2}, {"B": 2, "S": 50}], "decode": [{"B": 1, "T": 5}, {"B": 3, "T": 500}]}
ABOUT_IMAGES = {"prefill": [{"B": 2, "S": 50, "N": 16}], "decode": WRITTEN["decode"]}
OF_IMAGES_SEEN = {"vision": [{}], **ABOUT_IMAGES}
READ_AND_WRITTEN = {
    **ENCODED_TEXT,
    "prefill": [{"B": 1, "S": 7, "P": 1}, {"B": 2, "S": 50, "P": 3}],
    "decode": [{"B": 1, "S": 7, "T": 1}, {"B": 2, "S": 50, "T": 33}],
}
SIZES: Mapping[str, Mapping[str, list[dict[str, int]]]] = {
    **dict.fromkeys(("bert", "modernbert", "roberta"), ENCODED_TEXT),
    **dict.fromkeys(("clip", "vit", "dinov2", "clip that classifies", "siglip that classifies"), IMAGES),
    **dict.fromkeys(("clip of both", "siglip of both"), OF_BOTH),
    **dict.fromkeys(("llava", "paligemma"), OF_IMAGES_SEEN),
    "internvl": ABOUT_IMAGES,  # its vision is left out
    **dict.fromkeys(("t5", "t5 gated", "bart"), READ_AND_WRITTEN),
    **dict.fromkeys(("gpt2", "llama", "mixtral", "bert that writes", "dynamic rope"), WRITTEN),
}
QUICK = ("clip", "clip of both", "paligemma", "bert that writes")


@contextmanager
def unchecked_image_tokens() -> Generator[None]:
    """Let a prefill run on `meta`: whether there are as many image tokens as features cannot be asked there."""
    from transformers.models.internvl import modeling_internvl
    from transformers.models.llava import modeling_llava
    from transformers.models.paligemma import modeling_paligemma

    with pytest.MonkeyPatch.context() as patch:
        for module in (modeling_internvl, modeling_llava, modeling_paligemma):
            patch.setattr(module, "torch_compilable_check", lambda *check: None)
        yield


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_flops_of_a_configuration_are_those_that_torch_counts(tmp_path: Path, name: str) -> None:
    """Each stage that its family has, exactly, at every size; an operator without a rule would raise."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SETTINGS[name]), encoding="utf-8")
    model, stages = model_from_config(file).build(TransformersVariant())
    captured = capture(model, stages, name=name, variant={})
    analytic = lower(group_by_module(captured))
    assert {graph.stage for graph in captured.graphs} == set(SIZES[name])
    of_name = {stage.name: stage for stage in stages}
    for graph in captured.graphs:
        stage = of_name[graph.stage]
        for sizes in SIZES[name][stage.name]:
            ours = evaluate_stage(analytic, stage.name, **sizes).total.cost.matmul_flops
            with torch.no_grad(), unchecked_image_tokens(), FlopCounterMode(display=False) as counter:
                stage.module(*meta_inputs(graph, stage, sizes))
            assert ours == counter.get_total_flops() > 0, (stage.name, sizes)


def test_a_text_encoder_costs_what_its_layers_do(tmp_path: Path) -> None:
    """By hand: 4 projections of 64 x 64, 2 of 64 x 96, attention's two products, and the head, for B = 3, S = 50.

    A token takes 2 layers * 2 * (4 * 64 * 64 + 2 * 64 * 96) = 114,688 FLOPs, 2 layers * 2 products * 2 * 64 * 50 =
    25,600 of attention, and 2 * (64 * 64 + 64 * 128) = 24,576 of the head.
    """
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SETTINGS["bert"]), encoding="utf-8")
    report = analyze_model(file, points=["encode:B=3,S=50"], cache=False).report
    assert report.total.total.cost.matmul_flops == 3 * 50 * (114_688 + 25_600 + 24_576)


def test_two_encoders_cost_what_their_layers_do(tmp_path: Path) -> None:
    """By hand, for B = 3 texts of S = 50 and B = 2 images of 16 patches and a class token.

    A token takes 2 layers * 2 * (4 * 64 * 64 + 2 * 64 * 96) = 114,688 FLOPs and 2 layers * 2 products * 2 * 64 * S of
    attention, a text 2 * 64 * 64 of its projection. An image takes 16 patches * 2 * 64 * 3 * 14 * 14 on top.
    """
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SETTINGS["clip of both"]), encoding="utf-8")
    report = analyze_model(file, points=["encode_texts:B=3,S=50", "encode_images:B=2"], cache=False).report
    stages = report.total.stages
    assert stages["encode_texts"].cost.matmul_flops == 3 * (50 * (114_688 + 512 * 50) + 8192)
    assert stages["encode_images"].cost.matmul_flops == 2 * (
        17 * (114_688 + 512 * 17) + 8192 + 16 * 2 * 64 * 3 * 14 * 14
    )


def test_a_model_of_unknown_pages_is_analyzed_at_points_and_says_what_is_left_out(tmp_path: Path) -> None:
    """Its language part runs; its vision part takes a grid beside the pixels, and the variant is without it."""
    file = tmp_path / "config.json"
    settings = {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            **GROUPED,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {"depth": 2, "hidden_size": 64, "num_heads": 4, "out_hidden_size": 64},
    }
    file.write_text(json.dumps(settings), encoding="utf-8")
    analysis = analyze_model(file, points=["prefill:B=1,S=50,N=16", "decode:B=1,T=50"], cache=False)
    assert analysis.model.variant["partial"] == "without vision"
    assert "how a Qwen2_5_VLForConditionalGeneration takes a page is not known" in str(analysis.model.provenance)
    # 2 layers: q and o of 64, k and v of 32 wide, three products of the MLP; the head over 128 words
    step = 2 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 2 * 64 * 128
    assert analysis.report.total.stages["decode"].cost.matmul_flops == step + 2 * 2 * 2 * 64 * 51
    with pytest.raises(OptionError, match="vision cannot be captured and is left out; ask for prefill, decode by"):
        analyze_model(file, points=["vision"], cache=False)
    with pytest.raises(ModelConfigError, match=r"type 'qwen2_5_vl' cuts pages into views is not known; .*--points"):
        analyze_model(file, cache=False)


def test_a_backbone_without_sdpa_is_captured_with_eager_attention(tmp_path: Path) -> None:
    """DETR has sdpa, its ResNet has none: eager is the default, and the error for sdpa says so."""
    file = tmp_path / "config.json"
    resnet = {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [16, 32], "embedding_size": 8}
    settings = {
        "model_type": "detr",
        "architectures": ["DetrModel"],
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": {**resnet, "layer_type": "basic", "out_features": ["stage2"]},
        **{name: value for name, value in BART.items() if name != "vocab_size"},
        "num_queries": 5,
        "image_size": 64,
    }
    file.write_text(json.dumps(settings), encoding="utf-8")
    model = model_from_config(file)
    assert model.attention == "eager"
    with pytest.raises(ModelConfigError, match="has no such attention: give --attention eager"):
        model.build(model.variant("bf16", "sdpa"))
    assert analyze_model(file, points=["encode:B=2"], cache=False).report.total.total.cost.matmul_flops > 0
