"""Models in blocks of fp8, captured and lowered: FLOPs of their twins in bf16, bytes of the published checkpoint."""

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsocr_graph.lowering import lower
from dsocr_graph.models.from_transformers import CATALOG, TransformersVariant
from dsocr_graph.models.from_transformers.causal_lm_stages import cache_layout, language_inputs, language_stages
from dsocr_graph.models.from_transformers.configuration import transformers_config
from dsocr_graph.models.from_transformers.families import family_of
from dsocr_graph.models.from_transformers.load import meta_model
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter import AnalyticModel
from modelmeter.evaluate import evaluate_stage
from modelmeter.model import Exactness

WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [32, 16],  # rows and columns: an exchange of both would show
    },
}
TINY: dict[str, dict[str, Any]] = {
    "dense": {"model_type": "qwen3", **WIDTHS, "num_key_value_heads": 2, "head_dim": 16},
    "latent": {
        "model_type": "deepseek_v3",
        **WIDTHS,
        "num_hidden_layers": 1,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 0,  # its shared expert is dense
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 40,
    },
}
SIZES = (
    ("prefill", {"B": 1, "S": 7}),
    ("prefill", {"B": 2, "S": 50}),
    ("decode", {"B": 1, "T": 5}),
    ("decode", {"B": 3, "T": 500}),
)


def built(settings: Any, dtype: str) -> Any:
    """Return a model on `meta`."""
    config = transformers_config(settings)
    return meta_model(config, family_of(config)[1], TransformersVariant(dtype=dtype))


@cache
def compiled(name: str) -> AnalyticModel:
    """Return a small model in blocks of fp8, captured and lowered; an operator without a rule would raise."""
    model = built(TINY[name], "fp8")
    return lower(group_by_module(capture(model, language_stages(model), name=name, variant={"dtype": "fp8"})))


SMALL = ("latent", pytest.param("dense", marks=pytest.mark.slow))


@pytest.mark.parametrize("name", SMALL)
def test_flops_are_those_that_torch_counts_in_bf16(name: str) -> None:
    """Quantised products have the sizes of the plain ones: equal at every size, in both stages."""
    twin = built(TINY[name], "bf16")
    stages = {stage.name: stage for stage in language_stages(twin)}
    for stage, sizes in SIZES:
        inputs = language_inputs(twin, cache_layout(twin), stage, **sizes)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            stages[stage].module(*inputs)
        ours = evaluate_stage(compiled(name), stage, **sizes).total.cost.matmul_flops
        assert ours == counter.get_total_flops() > 0, (stage, sizes)


@pytest.mark.parametrize("name", SMALL)
def test_the_operators_own_formulas_count_the_same(name: str) -> None:
    """FlopCounterMode on the quantised model itself."""
    model = built(TINY[name], "fp8")
    stages = {stage.name: stage for stage in language_stages(model)}
    stage, sizes = SIZES[1]
    inputs = language_inputs(model, cache_layout(model), stage, **sizes)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        stages[stage].module(*inputs)
    assert counter.get_total_flops() == evaluate_stage(compiled(name), stage, **sizes).total.cost.matmul_flops


def test_bytes_of_a_dense_model_by_hand() -> None:
    """Each projection [N, K] takes N*K + 4 * ceil(N/32) * ceil(K/16) bytes, everything else 2 an element."""
    query = output = 64 * 64 + 4 * 2 * 4
    key = value = 32 * 64 + 4 * 1 * 4
    gate = up = 96 * 64 + 4 * 3 * 4
    down = 64 * 96 + 4 * 2 * 6
    norms = 2 * (2 * 64 + 2 * 16)  # of the layer, and of query and key heads
    layer = query + key + value + output + gate + up + down + norms
    ends = 2 * (2 * 128 * 64 + 64)  # embedding, head and last norm
    held = sum(parameter.nbytes for parameter in built(TINY["dense"], "fp8").parameters())
    assert held == 2 * layer + ends == 95_456


@pytest.mark.slow
def test_every_weight_is_read_once_in_a_prefill() -> None:
    """All but the embedding's rows: 95,456 - 16,384, and 7 rows of 128 bytes."""
    prefill = evaluate_stage(compiled("dense"), "prefill", B=1, S=7).total.cost
    assert compiled("dense").parameter_bytes == 95_456
    assert prefill.weight_bytes_read == 95_456 - 16_384 + 7 * 128


@pytest.mark.parametrize("name", SMALL)
def test_every_product_quantises_its_own_input(name: str) -> None:
    """As in a run of transformers, and each is exact: 7 projections a layer, or 5 and 3 of a shared expert."""
    leaves = [leaf for leaf in compiled(name).leaves if leaf.op.startswith("dsocr_graph::")]
    assert {leaf.exactness for leaf in leaves} == {Exactness.EXACT}
    calls = {op: sum(leaf.calls for leaf in leaves if leaf.op == f"dsocr_graph::{op}") for op in OPERATORS}
    products = calls["block_scaled_linear"] + calls["block_scaled_grouped_linear"]
    assert calls["quantize_rows"] == products
    assert calls["block_scaled_linear"] == {"dense": 2 * 2 * 7, "latent": 2 * (5 + 3)}[name]  # of two stages
    assert calls["block_scaled_grouped_linear"] == {"dense": 0, "latent": 2 * 2}[name]  # inwards and outwards


OPERATORS = ("quantize_rows", "block_scaled_linear", "block_scaled_grouped_linear")


# --- DeepSeek-V3, its shapes as its config.json has them

# [rows, columns] of the matrices in fp8
ATTENTION = ((1536, 7168), (24576, 1536), (576, 7168), (32768, 512), (7168, 16384))
DENSE = ((18432, 7168), (18432, 7168), (7168, 18432))
EXPERT = ((2048, 7168), (2048, 7168), (7168, 2048))
MAIN = {ATTENTION: 61, DENSE: 3, EXPERT: 58 * 257}  # 256 experts and a shared one
# elements in bf16
NORMS = 1536 + 512 + 2 * 7168  # of latents, before attention and before the experts
ROUTER = 256 * 7168
ENDS = 2 * 129280 * 7168  # embedding and head
# The module that predicts a second token: a layer, three norms, the projection of two states to one, and copies of
# embedding and head. README_WEIGHTS.md of deepseek-ai/DeepSeek-V3, "Multi-Token Prediction (MTP) Modules".
SECOND_TOKEN = {ATTENTION: 1, EXPERT: 257}
SECOND_TOKEN_ELEMENTS = NORMS + ROUTER + 3 * 7168 + 7168 * 2 * 7168 + ENDS

PUBLISHED = 688_586_727_753  # bytes of the safetensors files of deepseek-ai/DeepSeek-V3
PUBLISHED_TENSORS = 91_991  # in their index


def quantised_bytes(counts: dict[tuple[tuple[int, int], ...], int]) -> int:
    """Return the bytes of matrices in blocks of 128 x 128: one an element, 4 a block."""
    return sum(
        count * sum(rows * columns + 4 * -(-rows // 128) * -(-columns // 128) for rows, columns in shapes)
        for shapes, count in counts.items()
    )


def test_deepseek_v3_weighs_what_is_published() -> None:
    """673.15 GB without the second-token module; with it, the published 688.59 GB less 130 bytes of header a tensor."""
    main = quantised_bytes(MAIN) + 2 * (61 * NORMS + 58 * ROUTER + ENDS + 7168)
    model = built(CATALOG["deepseek-v3"].settings, "fp8")
    assert sum(parameter.nbytes for parameter in model.parameters()) == main == 673_150_552_416
    second = quantised_bytes(SECOND_TOKEN) + 2 * SECOND_TOKEN_ELEMENTS
    corrections = 59 * 256 * 4  # of the routers, in fp32; transformers keeps them as buffers
    headers = PUBLISHED - (main + second + corrections)
    # 2 tensors for each matrix in fp8; 4 norms, router and correction a layer with experts; embedding, head, last norm
    matrices = 62 * 5 + 3 * 3 + 59 * 257 * 3
    tensors = 2 * matrices + 62 * 4 + 59 * 2 + 2 + 1 + (3 + 1 + 2)
    assert tensors == PUBLISHED_TENSORS
    assert 110 < headers / tensors < 150  # a name of about 60 characters, a type, a shape and two offsets


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_deepseek_v3_is_captured_in_fp8() -> None:
    """Full size: the FLOPs of bf16, 671.03 billion parameters and 40,838,232 scales, every operator with a rule."""
    analytic = {}
    for dtype in ("bf16", "fp8"):
        model, stages = CATALOG["deepseek-v3"].build(TransformersVariant(dtype=dtype))
        captured = capture(model, stages, name="deepseek-v3", variant={"dtype": dtype})
        analytic[dtype] = lower(group_by_module(captured))
    assert analytic["fp8"].parameters == analytic["bf16"].parameters + 40_838_232
    assert analytic["fp8"].parameter_bytes == 673_150_552_416
    for stage, sizes in (("prefill", {"B": 2, "S": 913}), ("decode", {"B": 8, "T": 4096})):
        narrow, wide = (evaluate_stage(analytic[dtype], stage, **sizes).total.cost for dtype in ("fp8", "bf16"))
        assert narrow.matmul_flops == wide.matmul_flops > 0
        assert 0.49 < narrow.weight_bytes_read / wide.weight_bytes_read < 0.52
