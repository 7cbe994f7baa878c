"""Matrix FLOPs of the full-size model against torch's own counter, per stage and per module, exactly.

`torch.utils.flop_counter.FlopCounterMode` runs the same model on `meta` tensors at concrete sizes and counts the matrix
products that are dispatched. On `meta` attention decomposes to its two products, so nothing is left out there; on CPU
tensors the fused kernel would count as 0.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsocr_graph.models.deepseek_ocr import (
    DeepseekOCRConfig,
    DeepseekOCRForCausalLM,
    StageModule,
    initialize,
    stage_inputs,
)
from modelmeter.evaluate import evaluate_stage

# Stage, the variant's options, sizes of the run. V = H * W for the compiled model.
CASES: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    # Tiny, Small, Base and Gundam, Large
    *(("vision_global", {"base": base}, {"base": base}) for base in (512, 640, 1024, 1280)),
    # crop grids of two to nine crops
    *(
        ("vision_local", {}, {"H": rows, "W": columns})
        for rows, columns in ((1, 2), (2, 1), (2, 2), (1, 5), (3, 2), (7, 1), (2, 4), (3, 3), (9, 1))
    ),
    # Image tokens: Tiny 8 * 9 + 1 = 73, Small 111, Base 273, Large 421; Gundam 273 + (10 W + 1) * 10 H, of which the
    # most are 9 rows of one crop, 273 + 11 * 90 = 1,263. Ten tokens of text.
    *(
        ("prefill", {"attention": attention}, {"B": B, "S": N + 10, "N": N})
        for attention in ("sdpa", "eager")
        for B, N in ((1, 73), (8, 111), (2, 273), (5, 421), (1, 483), (3, 903), (1, 1203), (8, 1263))
    ),
    *(
        ("decode", {"attention": attention}, {"B": B, "T": T})
        for attention in ("sdpa", "eager")
        for B, T in ((1, 83), (8, 83), (1, 283), (3, 913), (8, 1273), (1, 8192), (8, 8192))
    ),
]


def _counted(model: DeepseekOCRForCausalLM, stage: str, sizes: dict[str, int]) -> FlopCounterMode:
    module = StageModule(model, stage)
    inputs = stage_inputs(model.config, stage, device=model.device, dtype=model.dtype, **sizes)
    with torch.no_grad(), FlopCounterMode(display=False, depth=None) as counter:
        module(*inputs)
    return counter


def _bound(stage: str, sizes: dict[str, int]) -> dict[str, int]:
    if stage == "vision_local":
        return {"V": sizes["H"] * sizes["W"], "H": sizes["H"]}
    return {} if stage == "vision_global" else sizes


def _by_module(counter: FlopCounterMode) -> dict[str, int]:
    """FLOPs by module path of the model; the counter's names begin with the stage's class and `root`."""
    found: dict[str, int] = {}
    for name, counts in counter.get_flop_counts().items():
        parts = name.split(".")
        if len(parts) > 1 and parts[1] == "root":
            found[".".join(parts[2:])] = sum(counts.values())
    return found


@pytest.mark.parametrize(
    ("stage", "options", "sizes"),
    CASES,
    ids=lambda value: "-".join(f"{key}{size}" for key, size in value.items()) if isinstance(value, dict) else value,
)
def test_flops_are_those_that_torch_counts(
    stage: str, options: dict[str, Any], sizes: dict[str, int], compile_stages: Any, full_size: Any
) -> None:
    """A stage, and every module that is called in it, has exactly the matrix FLOPs that torch counts."""
    counter = _counted(full_size(options.get("attention", "sdpa")), stage, sizes)
    compiled = compile_stages(stage, **options)
    cost = evaluate_stage(compiled.analytic, stage, **_bound(stage, sizes))
    assert cost.total.cost.matmul_flops == counter.get_total_flops() > 0
    counted = _by_module(counter)
    paths = {node.id: node.paths for node in compiled.grouped.nodes}
    compared = 0
    for node in compiled.analytic.modules:
        # Containers are not called, so torch has no entry for them; modules without a product have none either.
        ours = cost.modules[node.id].inclusive.cost.matmul_flops if node.id in cost.modules else 0
        theirs = sum(counted.pop(path, 0) for path in paths[node.id])
        if theirs or not _is_only_indexed(node.class_name, node.id, stage):
            assert ours == theirs, node.id
            compared += bool(theirs)
    assert not counted, "modules that torch saw and the call graph lacks"
    assert compared > 20


def _is_only_indexed(class_name: str, identifier: str, stage: str) -> bool:
    """Whether torch sees no call of a module: lists, and the root in the stages that enter it by a method."""
    return class_name == "ModuleList" or (identifier == "" and stage.startswith("vision"))


def _depth(identifier: str) -> int:
    return identifier.count(".") + 1 if identifier else 0


@pytest.mark.parametrize(
    ("stage", "sizes"),
    [
        ("vision_global", {}),
        ("vision_local", {"V": 6, "H": 2}),
        ("prefill", {"B": 2, "S": 913, "N": 903}),
        ("decode", {"B": 2, "T": 913}),
    ],
)
def test_modules_sum_to_operators_at_every_depth(stage: str, sizes: dict[str, int], compile_stages: Any) -> None:
    """Cut the tree at any depth: what hangs below the cut and what modules above it do themselves is everything."""
    analytic = compile_stages(stage).analytic
    cost = evaluate_stage(analytic, stage, **sizes)
    leaves = {
        field: sum(leaf.calls * getattr(leaf.cost, field).at(sizes) for leaf in analytic.leaves_by_stage[stage])
        for field in ("matmul_flops", "vector_flops", "bytes", "fused_bytes")
    }
    deepest = max(_depth(identifier) for identifier in cost.modules)
    assert deepest >= 5
    for depth in range(deepest + 1):
        for field, everything in leaves.items():
            below = sum(
                getattr(amount.inclusive.cost, field)
                for identifier, amount in cost.modules.items()
                if _depth(identifier) == depth
            )
            above = sum(
                getattr(amount.own.cost, field)
                for identifier, amount in cost.modules.items()
                if _depth(identifier) < depth and amount.own is not None
            )
            assert below + above == pytest.approx(everything, rel=1e-12 if "bytes" in field else 0)


def test_decode_flops_by_hand(compile_stages: Any) -> None:
    """A decode step is the active weights once, two products over the keys, and RoPE's outer product.

    Active weights outside the norms: 12 attentions of 4 * 1280 * 1280 = 78,643,200; the dense MLP 3 * 1280 * 6848 =
    26,296,320; 11 gates of 64 * 1280, 11 * 6 experts of 3 * 1280 * 896 and 11 shared MLPs of 3 * 1280 * 1792, together
    901,120 + 227,082,240 + 75,694,080 = 303,677,440; the head 1280 * 129280 = 165,478,400. Sum 574,095,360, two FLOPs
    each: 1,148,190,720. Attention: 12 layers * 2 products * 2 * 1280 * (T + 1) = 61,440 * 284 = 17,448,960 for T = 283.
    RoPE: 12 * 2 * 64 = 1,536.
    """
    cost = evaluate_stage(compile_stages("decode").analytic, "decode", B=1, T=283)
    assert cost.total.cost.matmul_flops == 1_148_190_720 + 17_448_960 + 1_536


def test_attention_decomposes_on_meta(full_size: Any) -> None:
    """Torch counts both products of a fused attention on meta: 2 * 2 * 10 heads * 83 * 83 * 128 = 35,271,680."""
    counted = _counted(full_size(), "prefill", {"B": 1, "S": 83, "N": 73}).get_flop_counts()
    attention = counted["PrefillStage.root.model.layers.5.self_attn"]
    assert attention[torch.ops.aten.bmm] == 35_271_680 + 2 * 64 * 83  # and RoPE's outer product


@pytest.mark.parametrize("tokens", [7, 40])
def test_grouped_experts_count_as_the_loop_over_experts(tokens: int) -> None:
    """The formula of the grouped product gives what torch counts when a loop runs each expert by `mm`."""

    def count(moe: str) -> int:
        config = DeepseekOCRConfig.tiny(attn_implementation="eager", moe_implementation=moe)
        model = initialize(DeepseekOCRForCausalLM(config), seed=3).eval()
        return _counted(model, "prefill", {"B": 2, "S": tokens, "N": 5}).get_total_flops()

    assert count("grouped") == count("loop") > 0


COMPONENTS: dict[str, int] = {
    "model.embed_tokens": 165_478_400,
    "model.layers": 2_603_776_000,
    "model.norm": 1_280,
    "model.sam_model": 95_569_152,
    "model.vision_model": 303_177_728,
    "model.projector": 2_622_720,
    "lm_head": 165_478_400,
}
"""Parameters of the published checkpoint by component; the newline and the separator are 1,280 each."""


@pytest.mark.parametrize("component", COMPONENTS)
def test_parameters_of_a_component_are_those_of_the_checkpoint(component: str, compile_stages: Any) -> None:
    """Every component has the parameters of the published checkpoint."""
    modules = compile_stages("prefill").analytic.modules
    inside = [node for node in modules if f"{node.id}.".startswith(f"{component}.")]
    assert sum(node.parameters for node in inside) == COMPONENTS[component]
    assert sum(node.parameter_bytes for node in inside) == 2 * COMPONENTS[component]


def test_parameters_in_all(compile_stages: Any) -> None:
    """All modules together have 3,336,106,240 parameters: the components and 2 * 1,280."""
    analytic = compile_stages("prefill").analytic
    assert sum(node.parameters for node in analytic.modules) == 3_336_106_240
    assert analytic.parameters == sum(COMPONENTS.values()) + 2 * 1_280
    assert analytic.parameter_bytes == 6_672_212_480


def test_stages_read_the_weights_of_their_own_modules(compile_stages: Any) -> None:
    """Decode reads the decoder, its embedding and the head; vision the encoders without CLIP's own convolution."""
    stages = {
        stage.name: stage.weight_bytes
        for name in ("vision_global", "decode")
        for stage in compile_stages(name).analytic.stages
    }
    decoder = COMPONENTS["model.embed_tokens"] + COMPONENTS["model.layers"] + 1_280 + COMPONENTS["lm_head"]
    assert stages["decode"] == 2 * decoder
    encoders = COMPONENTS["model.sam_model"] + COMPONENTS["model.vision_model"] + COMPONENTS["model.projector"]
    # The patch convolution is 3 * 14 * 14 * 1024 = 602,112; newline and separator join the rows.
    assert stages["vision_global"] == 2 * (encoders - 602_112 + 2 * 1_280)


@pytest.mark.parametrize(
    ("stage", "sizes", "tokens"), [("prefill", {"S": 913, "N": 903}, 913), ("decode", {"T": 913}, 914)]
)
@pytest.mark.parametrize("batch", [1, 8])
def test_kv_cache_is_61440_bytes_per_token(
    stage: str, sizes: dict[str, int], tokens: int, batch: int, compile_stages: Callable[..., Any]
) -> None:
    """12 layers * keys and values * 1,280 * 2 bytes = 61,440; a decode step leaves one token more."""
    (described,) = compile_stages(stage).analytic.stages
    assert described.kv_cache_bytes_at({**sizes, "B": batch}) == 61_440 * tokens * batch
