"""The experts and the cache of small models that run, against transformers' own loop and its run without a cache."""

from typing import Any

import pytest
import torch
from torch import nn

from dsocr_graph.models.from_transformers.causal_lm_stages import DecodeStage, PrefillStage
from dsocr_graph.models.from_transformers.configuration import transformers_config
from dsocr_graph.models.from_transformers.families import family_of
from dsocr_graph.models.from_transformers.load import meta_model
from dsocr_graph.models.from_transformers.variant import TransformersVariant

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "num_experts_per_tok": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"model_type": "qwen3_moe", **SMALL, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 8},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **SMALL,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
    },
    # Biases, transposed weights and a gate of its own.
    "gpt_oss": {
        "model_type": "gpt_oss",
        **SMALL,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {
        "model_type": "mistral",
        **{key: value for key, value in SMALL.items() if "moe" not in key and "experts" not in key},
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 6,
    },
}


def _model(name: str) -> Any:
    config = transformers_config(CONFIGS[name])
    attention = "eager" if name == "gpt_oss" else "sdpa"  # it has learned sinks, which sdpa lacks
    torch.manual_seed(3)
    model = meta_model(
        config, family_of(config)[1], TransformersVariant(dtype="fp32", attention=attention), device="cpu"
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_grouped_experts_equal_the_loop_of_transformers(name: str) -> None:
    """The same weights give the same logits, whichever way the experts run."""
    model = _model(name)
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        model.set_experts_implementation("eager")
        theirs = model(input_ids=ids).logits
    assert model.config._experts_implementation == "eager"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_stages_continue_as_the_model_does_without_a_cache(name: str) -> None:
    """A prefill of 9 tokens and two decode steps give the logits of all 11 at once."""
    model = _model(name)
    ids = torch.arange(22).view(2, 11)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        logits, cache = PrefillStage(model)(ids[:, :9])
        torch.testing.assert_close(logits[:, -1], whole[:, 8], rtol=1e-4, atol=1e-5)
        for position in (9, 10):
            logits, cache = DecodeStage(model)(ids[:, position : position + 1], *cache)
            torch.testing.assert_close(logits[:, -1], whole[:, position], rtol=1e-4, atol=1e-5)
    assert {tensor.shape[2] for tensor in cache} == {11}


@pytest.mark.parametrize(("name", "lengths"), [("mistral", {5}), ("gpt_oss", {5, 10})])
def test_a_window_keeps_one_token_less_than_it_sees(name: str, lengths: set[int]) -> None:
    """A prompt of 9 beyond a window of 6 gives the model's own logits and leaves 5 tokens; so does a step."""
    model = _model(name)
    ids = torch.arange(18).view(2, 9)
    with torch.no_grad():
        logits, cache = PrefillStage(model)(ids)
        torch.testing.assert_close(logits[:, -1], model(input_ids=ids, use_cache=False).logits[:, -1])
        _, cache = DecodeStage(model)(ids[:, :1], *cache)
    assert {tensor.shape[2] for tensor in cache} == lengths
