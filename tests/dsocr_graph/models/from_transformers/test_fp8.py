"""Models in blocks of fp8: the operators' values, which modules of a model change, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, FP8Experts, Fp8Quantize
from transformers.integrations.finegrained_fp8 import FP8Linear as TransformersFP8Linear
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.utils.quantization_config import FineGrainedFP8Config

from dsocr_graph.errors import ModelConfigError, ModelInputError
from dsocr_graph.models.from_transformers.configuration import transformers_config
from dsocr_graph.models.from_transformers.families import family_of
from dsocr_graph.models.from_transformers.fp8 import FP8Linear
from dsocr_graph.models.from_transformers.fp8_ops import (
    FP8,
    block_scaled_grouped_linear,
    block_scaled_linear,
    quantize_rows,
)
from dsocr_graph.models.from_transformers.load import meta_model
from dsocr_graph.models.from_transformers.variant import TransformersVariant
from dsocr_graph.workloads import override
from dsocr_graph.workloads.profile_files import load_profile

BLOCK = (32, 16)  # rows and columns: an exchange of both would show
CHECKPOINT = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": list(BLOCK),
}
LATENT: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "vocab_size": 64,
}
WITH_BIASES: dict[str, Any] = {
    "model_type": "qwen2",  # query, key and value have biases
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def model_of(settings: dict[str, Any], *, device: str = "meta", dtype: str = "fp8", **quantization: Any) -> Any:
    """Return a model of a checkpoint in blocks of fp8."""
    config = transformers_config({**settings, "quantization_config": {**CHECKPOINT, **quantization}})
    return meta_model(config, family_of(config)[1], TransformersVariant(dtype=dtype), device=device)


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight in blocks of fp8, and the scales, as transformers' own quantisation makes them."""
    quantizer = FineGrainedFP8HfQuantizer(FineGrainedFP8Config(weight_block_size=BLOCK))
    made = Fp8Quantize(quantizer).convert({"weight": weight})
    return made["weight"], made["weight_scale_inv"]


def dequantised(weight: Tensor, scales: Tensor) -> Tensor:
    """Return the weight that is meant, in fp32, by transformers' own dequantisation."""
    wide = Fp8Dequantize(None).convert({"weight": weight, "weight_scale_inv": scales})["weight"]
    assert isinstance(wide, Tensor)
    return wide


def meant(rows: Tensor) -> Tensor:
    """Return rows as they are once quantised in runs: every element its own fp8 value times its run's scale."""
    values, scales = quantize_rows(rows, block=BLOCK[1])
    return torch.stack([values.float()[..., i] * scales[..., i // BLOCK[1]] for i in range(rows.shape[-1])], dim=-1)


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference by the norm of what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


# --- values


def test_an_element_is_off_by_a_sixteenth_at_most() -> None:
    """e4m3 has 3 bits behind the point: half a step is 1/16 of an element, or 2**-10 of the scale where it is small."""
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 40)
    _, scales = quantize_rows(x, block=BLOCK[1])
    bound = torch.maximum(x.abs() / 16, scales.repeat_interleave(BLOCK[1], dim=1)[:, :40] * 2**-10)
    assert scales.shape == (7, 3)
    assert bool(((meant(x) - x).abs() <= bound * 1.001).all())


def test_the_largest_of_a_run_is_kept_and_zeros_stay_zeros() -> None:
    """5 / 448 is the scale of a run whose largest is 5; a run of zeros has no largest and gets the scale 1."""
    quantized, scales = quantize_rows(torch.tensor([[0.0, -5.0, 0.0, 0.0]]), block=2)
    assert scales.tolist() == [[pytest.approx(5 / 448), 1.0]]
    assert quantized.float().tolist() == [[0.0, -448.0, 0.0, 0.0]]


def test_a_product_is_that_of_what_is_meant() -> None:
    """Equal to the dense product of both operands dequantised by other code; 3 leading axes; 2.5 blocks of columns."""
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(2, 3, 64, generator=generator), torch.randn(96, 64, generator=generator)
    values, scales = quantised(weight)
    y = block_scaled_linear(*quantize_rows(x, block=BLOCK[1]), values, scales, block=BLOCK, dtype=torch.float32)
    torch.testing.assert_close(y, F.linear(meant(x), dequantised(values, scales)), rtol=1e-5, atol=1e-5)


def test_a_product_is_near_that_of_the_weights() -> None:
    """Rounding is 1/16 at most, and evenly spread 1/16/sqrt(3) = 3.6 %: of two operands sqrt(2) * 3.6 % = 5.1 %."""
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(50, 256, generator=generator), torch.randn(64, 256, generator=generator)
    values, scales = quantised(weight)
    y = block_scaled_linear(*quantize_rows(x, block=BLOCK[1]), values, scales, block=BLOCK, dtype=torch.bfloat16)
    assert y.dtype is torch.bfloat16
    assert 0.01 < distance(y, F.linear(x, weight)) < 0.051


def test_blocks_need_not_divide_the_weight() -> None:
    """Of 40 rows and 20 columns the last blocks hold 8 and 4: their scales are those of the second row and column."""
    weight = torch.ones(40, 20).to(FP8)
    scales = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    y = block_scaled_linear(
        *quantize_rows(torch.ones(1, 20), block=16), weight, scales, block=BLOCK, dtype=torch.float32
    )
    torch.testing.assert_close(y, torch.tensor([[16.0 + 4 * 10.0] * 32 + [16 * 100.0 + 4 * 1000.0] * 8]))


def test_rows_meet_the_weight_of_their_expert() -> None:
    """Three groups of rows, the second empty, each equal to the product by its expert's weight alone."""
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(3, 32, 64, generator=generator)
    values, scales = quantised(weight)
    rows, row_scales = quantize_rows(x, block=BLOCK[1])
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    y = block_scaled_grouped_linear(
        rows, row_scales, values, scales, ends, block=BLOCK, experts_per_token=1, dtype=torch.float32
    )
    for group, expert in ((slice(0, 2), 0), (slice(2, 5), 2)):
        alone = F.linear(meant(x[group]), dequantised(values[expert], scales[expert]))
        torch.testing.assert_close(y[group], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", ["rows of another width", "a run of another width", "bf16", "scales"])
def test_operands_that_do_not_go_together_are_refused(wrong: str) -> None:
    """Shapes and types are checked where a capture sees them, on meta."""
    with torch.device("meta"):
        rows, scales = torch.empty(5, 64, dtype=FP8), torch.empty(5, 4)
        weight, blocks = torch.empty(96, 64, dtype=FP8), torch.empty(3, 4)
        rows = torch.empty(5, 63, dtype=FP8) if wrong == "rows of another width" else rows
        scales = torch.empty(5, 2) if wrong == "a run of another width" else scales
        weight = weight.to(torch.bfloat16) if wrong == "bf16" else weight
        blocks = blocks.t() if wrong == "scales" else blocks
    with pytest.raises(ModelInputError, match=r"blocks of \[32, 16\] takes rows .*Quantise the rows by quantize_rows"):
        block_scaled_linear(rows, scales, weight, blocks, block=BLOCK, dtype=torch.bfloat16)


# --- models


def test_linear_layers_and_experts_are_those_of_transformers() -> None:
    """Every projection and all experts; embedding, norms, router and head stay in bf16, under the same names."""
    model = model_of(LATENT)
    assert {name for name, each in model.named_modules() if isinstance(each, TransformersFP8Linear)} == {
        *(
            f"model.layers.{layer}.self_attn.{name}"
            for layer in range(2)
            for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
        ),
        *(
            f"model.layers.{place}.{name}"
            for place in ("0.mlp", "1.mlp.shared_experts")
            for name in ("gate_proj", "up_proj", "down_proj")
        ),
    }
    experts = [name for name, each in model.named_modules() if isinstance(each, FP8Experts)]
    assert experts == ["model.layers.1.mlp.experts"]
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    wide = {name for name, dtype in types.items() if dtype is torch.bfloat16}
    assert all(name.endswith(("norm.weight", "layernorm.weight", "gate.weight")) for name in wide - KEPT)
    assert wide >= KEPT
    scales = {name for name, dtype in types.items() if dtype is torch.float32}
    assert all(name.endswith("_scale_inv") for name in scales)
    assert {name.removesuffix("_scale_inv") for name in scales} == {n for n, dtype in types.items() if dtype is FP8}


KEPT = {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"}


def test_what_a_checkpoint_leaves_out_stays() -> None:
    """Its modules_to_not_convert are honoured: the output projections are plain linear layers."""
    model = model_of(LATENT, modules_to_not_convert=["o_proj", "lm_head"])
    assert type(model.model.layers[0].self_attn.o_proj) is nn.Linear
    assert type(model.model.layers[0].self_attn.q_a_proj) is FP8Linear


def test_another_dtype_leaves_the_model_alone() -> None:
    """In bf16 the same configuration has no fp8."""
    assert {parameter.dtype for parameter in model_of(LATENT, dtype="bf16").parameters()} == {torch.bfloat16}


def test_a_linear_layer_of_a_model_runs() -> None:
    """With a bias in the type of the rest: its input quantised, multiplied, the bias added."""
    layer = model_of(WITH_BIASES, device="cpu").model.layers[0].self_attn.q_proj
    generator = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(64, 64, generator=generator), torch.randn(64, generator=generator)
    layer.weight.data, layer.weight_scale_inv.data = quantised(weight)
    layer.bias.data.copy_(bias)
    x = torch.randn(2, 5, 64, generator=generator).bfloat16()
    with torch.no_grad():
        y = layer(x)
    assert (layer.bias.dtype, y.dtype) == (torch.bfloat16, torch.bfloat16)
    expected = F.linear(meant(x.float()), dequantised(layer.weight, layer.weight_scale_inv), bias)
    torch.testing.assert_close(y.float(), expected, rtol=2**-6, atol=0.1)  # two roundings to bf16


def test_experts_of_a_model_run_as_those_in_bf16() -> None:
    """Two tokens a group, two experts each: near what the same weights give in bf16; two products, about 8 % off."""
    generator = torch.Generator().manual_seed(6)
    experts = model_of(LATENT, device="cpu").model.layers[1].mlp.experts
    wide = model_of(LATENT, device="cpu", dtype="bf16").model.layers[1].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        weight = torch.randn(getattr(wide, name).shape, generator=generator) / 8
        getattr(wide, name).data = weight.bfloat16()
        values, scales = quantised(weight)
        getattr(experts, name).data, getattr(experts, f"{name}_scale_inv").data = values, scales
    x = torch.randn(6, 64, generator=generator).bfloat16()
    chosen = torch.tensor([[0, 1], [1, 2], [7, 0], [3, 4], [3, 7], [1, 0]])
    shares = torch.rand(6, 2, generator=generator).bfloat16()
    with torch.no_grad():
        found, expected = experts(x, chosen, shares), wide(x, chosen, shares)
    assert found.dtype is torch.bfloat16
    assert 0.01 < distance(found, expected) < 0.12


def test_narrow_experts_have_scales_of_gate_and_up() -> None:
    """Experts of 8 have blocks of 32 rows: gate and up share none, so 16 rows have 2 scales a column of blocks."""
    model = model_of({**LATENT, "moe_intermediate_size": 8})
    experts = model.model.layers[1].mlp.experts
    assert experts.gate_up_proj_scale_inv.shape == (8, 2, 4)  # 64 inputs in blocks of 16
    rows = torch.empty(6, 64, dtype=torch.bfloat16, device="meta")
    chosen = torch.zeros(6, 2, dtype=torch.int64, device="meta")
    assert experts(rows, chosen, torch.empty(6, 2, device="meta")).shape == (6, 64)


# --- what is refused


def test_a_configuration_without_quantization_has_no_fp8() -> None:
    """The error says what there is to choose, and what fp8 weights of such a model are called here."""
    config = transformers_config(LATENT)
    said = r"\(deepseek_v3\) has no quantization_config .*choose bf16 or fp32, or give.*what-if weight_dtype fp8"
    with pytest.raises(ModelConfigError, match=said):
        meta_model(config, family_of(config)[1], TransformersVariant(dtype="fp8"))


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "awq"}, "quant_method 'awq', not fp8; choose bf16"),
        ({"activation_scheme": "sometimes"}, "cannot read the quantization_config of deepseek_v3: ValueError"),
        ({"activation_scheme": "static"}, "activation_scheme 'static', not 'dynamic'; only weights in blocks"),
        ({"fmt": "e5m2"}, "fmt 'e5m2', not 'e4m3'"),
        ({"scale_fmt": "ue8m0"}, "scale_fmt 'ue8m0', not 'float'"),
        ({"expert_dtype": "fp4"}, "expert_dtype 'fp4', not 'fp8'"),
        ({"weight_block_size": None}, "no weight_block_size, such as"),
        ({"modules_to_convert": ["embed_tokens"]}, "modules_to_convert"),
        (
            {"modules_to_not_convert": ["model", "lm_head"]},
            "leaves every linear layer of DeepseekV3",
        ),
    ],
)
def test_other_quantizations_are_refused(quantization: dict[str, Any], said: str) -> None:
    """What the operators do not compute is an error that names the setting and the types to choose."""
    with pytest.raises(ModelConfigError, match=said):
        model_of(LATENT, **quantization)


def test_a_profile_may_ask_for_fp8() -> None:
    """`--dtype fp8` reaches a model as the dtype of its profile."""
    assert override(load_profile("dsocr-standard-v1"), dtype="fp8").dtype == "fp8"
