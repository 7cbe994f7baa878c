"""Language models of transformers, captured and lowered, against torch's FLOP counter and against published figures.

The counter runs the same model on `meta` at concrete sizes; there attention decomposes to its two products, and the
grouped experts count by the formula that is registered with their operator.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from attrs import frozen
from torch.utils.flop_counter import FlopCounterMode

import modelmeter
from dsocr_graph.lowering import lower
from dsocr_graph.models.from_transformers import CATALOG, TransformersVariant
from dsocr_graph.models.from_transformers.causal_lm_stages import cache_layout, language_inputs, language_stages
from dsocr_graph.models.from_transformers.configuration import transformers_config
from dsocr_graph.models.from_transformers.families import family_of
from dsocr_graph.models.from_transformers.load import meta_model
from dsocr_graph.models.stage_spec import StageSpec
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter import AnalyticModel
from modelmeter.evaluate import evaluate, evaluate_stage
from modelmeter.layers import ScaledDotProductAttention
from modelmeter.workload import Workload

GQA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 32,
    "vocab_size": 128,
}
TINY: dict[str, dict[str, Any]] = {
    "dense": {"model_type": "qwen3", **GQA},
    "experts": {"model_type": "qwen3_moe", **GQA, **EXPERTS},
    "latent": {"model_type": "deepseek_v3", **MLA},
    "windows": {"model_type": "mistral", **GQA, "sliding_window": 24},
    "mixed": {
        "model_type": "gemma3_text",
        **GQA,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
# Windows as published: Mistral-7B-v0.1 and Gemma 3 1B.
TINY["published windows"] = {**TINY["windows"], "sliding_window": 4096}
TINY["published mixed"] = {**TINY["mixed"], "sliding_window": 512}
# Below, at and above the window of 24 tokens.
SIZES = [("prefill", {"B": 1, "S": 2}), ("prefill", {"B": 2, "S": 50})] + [
    ("decode", {"B": B, "T": T}) for B, T in ((1, 5), (2, 22), (2, 23), (3, 24), (1, 500))
]
FULL_SIZES = [
    *(("prefill", {"B": B, "S": S}) for B, S in ((1, 100), (2, 913), (8, 4096))),
    *(("decode", {"B": B, "T": T}) for B, T in ((1, 100), (8, 913), (64, 8192))),
]


@frozen(kw_only=True)
class Compiled:
    """A model on `meta`, its stages by name and what they were lowered to."""

    model: Any
    stages: Mapping[str, StageSpec]
    analytic: AnalyticModel


def _lowered(model: Any, stages: tuple[StageSpec, ...]) -> Compiled:
    captured = capture(model, stages, name="model", variant={})
    return Compiled(
        model=model, stages={stage.name: stage for stage in stages}, analytic=lower(group_by_module(captured))
    )


def tiny(name: str, attention: str = "sdpa") -> Compiled:
    """Return a small model captured and lowered, once; an operator without a rule would raise."""
    return _tiny(name, attention)


@cache
def _tiny(name: str, attention: str) -> Compiled:
    config = transformers_config(TINY[name])
    _, class_name = family_of(config)
    model = meta_model(config, class_name, TransformersVariant(attention=attention))
    return _lowered(model, language_stages(model))


def full(name: str) -> Compiled:
    """Return a model of the catalogue at full size, with what is shipped of it."""
    model, stages = CATALOG[name].build(TransformersVariant())
    return Compiled(model=model, stages={stage.name: stage for stage in stages}, analytic=modelmeter.load(name))


def _counted(compiled: Compiled, stage: str, sizes: dict[str, int]) -> int:
    inputs = language_inputs(compiled.model, cache_layout(compiled.model), stage, **sizes)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        compiled.stages[stage].module(*inputs)
    return counter.get_total_flops()


def _kv_bytes(compiled: Compiled, stage: str, **sizes: int) -> int:
    (described,) = (item for item in compiled.analytic.stages if item.name == stage)
    return int(described.kv_cache_bytes_at(sizes))


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("latent", "sdpa"),
        ("mixed", "sdpa"),
        pytest.param("experts", "sdpa", marks=pytest.mark.slow),
        pytest.param("dense", "sdpa", marks=pytest.mark.slow),
        pytest.param("windows", "sdpa", marks=pytest.mark.slow),
        pytest.param("latent", "eager", marks=pytest.mark.slow),
    ],
)
def test_flops_of_small_models_are_those_that_torch_counts(name: str, attention: str) -> None:
    """Dense, grouped-query, latent and windowed attention and experts: both stages, exactly, at every size."""
    compiled = tiny(name, attention)
    for stage, sizes in SIZES:
        ours = evaluate_stage(compiled.analytic, stage, **sizes).total.cost.matmul_flops
        assert ours == _counted(compiled, stage, sizes) > 0, (stage, sizes)


@pytest.mark.parametrize(
    ("name", "window"),
    [("published mixed", 512), pytest.param("published windows", 4096, marks=pytest.mark.slow)],
)
def test_windows_as_published_are_captured(name: str, window: int) -> None:
    """Longer than any usual example: both stages count as torch does, below, at and above the window."""
    compiled = tiny(name)
    for seen in (100, window - 2, window - 1, window, window + 1, 3 * window):
        for stage, sizes in (("prefill", {"B": 2, "S": seen}), ("decode", {"B": 2, "T": seen})):
            ours = evaluate_stage(compiled.analytic, stage, **sizes).total.cost.matmul_flops
            assert ours == _counted(compiled, stage, sizes) > 0, (stage, sizes)


def test_a_published_window_bounds_the_cache_of_its_layers() -> None:
    """As below: 128 bytes a token and layer; in a window of 512 a step holds at most 511 tokens and its own."""
    for seen in (100, 510, 511, 512, 1500):
        expected = 3 * 128 * (min(seen, 511) + 1 + seen + 1)
        assert _kv_bytes(tiny("published mixed"), "decode", B=3, T=seen) == expected


def test_a_window_bounds_the_cache_of_its_layers() -> None:
    """2 * 2 heads * 16 * 2 bytes = 128 a token and layer; a step holds at most 23 tokens and its own in a window of 24.

    As in transformers, what a windowed layer keeps is a view of the tensors it was cut from, which stay in memory
    until the next step: after a prefill, those of the whole prompt.
    """
    for seen in (5, 22, 23, 24, 500):
        assert _kv_bytes(tiny("mixed"), "prefill", B=3, S=seen) == 3 * 128 * (seen + seen)
        assert _kv_bytes(tiny("mixed"), "decode", B=3, T=seen) == 3 * 128 * (min(seen, 23) + 1 + seen + 1)


def test_latent_attention_caches_what_it_compresses() -> None:
    """2 layers * (32 of the latent + 8 of the shared key) * 2 bytes = 160 bytes, whatever the number of heads."""
    assert _kv_bytes(tiny("latent"), "decode", B=1, T=99) == 160 * 100


def test_one_query_and_a_whole_prompt_need_no_mask() -> None:
    """As in a run of transformers, sdpa gets no mask at either stage but in windowed layers."""
    for stage in ("prefill", "decode"):
        for name, masked in (("latent", [False]), ("mixed", [False, True])):
            layers = [leaf.layer for leaf in tiny(name).analytic.leaves_by_stage[stage]]
            found = {layer.mask is not None for layer in layers if isinstance(layer, ScaledDotProductAttention)}
            assert sorted(found) == masked, (stage, name)


PARAMETERS = {
    # Element counts in the published checkpoints' own headers.
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    # The main model, of README_WEIGHTS.md's "671B": 671,026,419,200 with the 58 * 256 = 14,848 corrections of the
    # routers, which transformers keeps as buffers.
    "deepseek-v3": 671_026_419_200 - 14_848,
}
KV_BYTES = {
    "qwen3-8b": 147_456,  # 2 * 36 layers * 8 heads * 128 * 2 bytes
    "qwen3-30b-a3b": 98_304,  # 2 * 48 layers * 4 heads * 128 * 2 bytes
    "deepseek-v3": 70_272,  # 61 layers * (512 + 64) * 2 bytes
}


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameters_are_the_published_count(name: str) -> None:
    """Built at full size on `meta`, a model has as many parameters as its checkpoint holds."""
    config = transformers_config(CATALOG[name].settings)
    model = meta_model(config, family_of(config)[1], TransformersVariant())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(PARAMETERS))
def test_full_size_models(name: str) -> None:
    """What is shipped: FLOPs are those that torch counts at full size, parameters and cache bytes those published."""
    compiled = full(name)
    assert compiled.analytic.parameters == PARAMETERS[name]
    assert _kv_bytes(compiled, "prefill", B=1, S=1000) == KV_BYTES[name] * 1000
    assert _kv_bytes(compiled, "decode", B=8, T=999) == KV_BYTES[name] * 8 * 1000
    for stage, sizes in FULL_SIZES:
        ours = evaluate_stage(compiled.analytic, stage, **sizes).total.cost.matmul_flops
        assert ours == _counted(compiled, stage, sizes) > 0, (stage, sizes)


def test_a_request_is_evaluated(request_of_a_page: Any) -> None:
    """The runs of a family bind the stages' dims: a prefill and new tokens - 1 decode steps."""
    item = CATALOG["qwen3-8b"].runs(request_of_a_page)
    report = evaluate(tiny("latent").analytic, Workload(name="page", items=(item,)))
    steps = sum(
        evaluate_stage(tiny("latent").analytic, "decode", B=2, T=T).total.cost.matmul_flops for T in (30, 31, 32)
    )
    prompt = evaluate_stage(tiny("latent").analytic, "prefill", B=2, S=30).total.cost.matmul_flops
    assert report.total.total.cost.matmul_flops == prompt + steps


@pytest.fixture
def request_of_a_page() -> Any:
    """Ten tokens of prompt and a page of 20, twice; four new tokens."""
    from dsocr_graph.workloads import PageSize
    from dsocr_graph.workloads.request import Request

    page = PageSize(name="page", width=640, height=640)
    return Request(name="page", batch=2, prompt_tokens=10, new_tokens=4, images=(page,), page_text_tokens=20)
