"""The stages export with symbolic dims, and the exported programs compute what the model computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves  # the flat outputs of an exported program

from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.deepseek_ocr import (
    STAGES,
    DeepseekOCRConfig,
    DeepseekOCRForCausalLM,
    StageModule,
    dynamic_shapes,
    stage_inputs,
)

MakeModel = Callable[..., DeepseekOCRForCausalLM]


def _export(model: DeepseekOCRForCausalLM, stage: str, inputs: tuple[torch.Tensor, ...]) -> Any:
    return torch.export.export(
        StageModule(model, stage).eval(),
        inputs,
        dynamic_shapes=dynamic_shapes(stage, model.config),
        strict=False,
    )


def _meta(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> DeepseekOCRForCausalLM:
    with torch.device("meta"):
        return DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny(**changes)).to(dtype).eval()


def _symbols(tensor: torch.Tensor) -> list[bool]:
    """Tell for each axis whether its size is symbolic."""
    return [isinstance(size, torch.SymInt) for size in tensor.shape]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("stage", "attention", "axes"),
    [
        ("vision_local", "sdpa", [True, False]),  # [tokens, hidden]
        *(
            (stage, attention, [True, False, True, False])  # a cache's [B, heads, T, head_dim]
            for stage in ("prefill", "decode")
            for attention in ("sdpa", "eager", "flash_attention_2")
        ),
    ],
)
def test_stages_export_on_meta_with_symbolic_dims(
    stage: str, attention: str, axes: list[bool], dtype: torch.dtype
) -> None:
    """Every stage and attention exports without storage, and no symbolic dim is fixed on the way."""
    model = _meta(dtype, attn_implementation=attention, num_hidden_layers=2)
    program = _export(model, stage, stage_inputs(model.config, stage, dtype=dtype, S=40, N=30, T=40))
    outputs = [node.meta["val"] for node in program.graph.find_nodes(op="output")[0].args[0]]
    assert _symbols(outputs[-1]) == axes
    if stage != "vision_local":
        assert _symbols(outputs[0]) == [True]  # one token per document
    assert len(program.range_constraints) == {"vision_local": 3, "prefill": 3, "decode": 2}[stage]


def test_full_size_decode_exports_on_meta() -> None:
    """The published model's decode step exports at full size, in bfloat16, with 24 symbolic cache tensors."""
    with torch.device("meta"):
        model = DeepseekOCRForCausalLM().to(torch.bfloat16).eval()
    program = _export(model, "decode", stage_inputs(model.config, "decode"))
    outputs = [node.meta["val"] for node in program.graph.find_nodes(op="output")[0].args[0]]
    assert len(outputs) == 1 + 24
    assert {str(output.dtype) for output in outputs[1:]} == {"torch.bfloat16"}
    assert all(_symbols(output) == [True, False, True, False] for output in outputs[1:])
    grouped = [node for node in program.graph.nodes if "grouped_linear" in str(node.target)]
    assert len(grouped) == 3 * 11  # three projections in each of eleven MoE layers


@pytest.mark.parametrize(
    ("stage", "made_for", "run_with"),
    [
        ("vision_global", {"base": 128}, {"base": 128}),
        ("vision_local", {"view": 128, "H": 2, "W": 3, "G": 7}, {"view": 128, "H": 1, "W": 2, "G": 5}),
        ("vision_local", {"view": 128, "H": 2, "W": 3, "G": 7}, {"view": 128, "H": 3, "W": 1, "G": 7}),
        ("prefill", {"B": 2, "S": 12, "N": 7}, {"B": 1, "S": 9, "N": 3}),
        ("prefill", {"B": 2, "S": 12, "N": 7}, {"B": 3, "S": 21, "N": 1}),
        ("decode", {"B": 2, "T": 12}, {"B": 1, "T": 5}),
        ("decode", {"B": 2, "T": 12}, {"B": 4, "T": 31}),
    ],
)
def test_exported_program_computes_the_stage_at_other_sizes(
    tiny: DeepseekOCRForCausalLM, stage: str, made_for: dict[str, int], run_with: dict[str, int]
) -> None:
    """Captured at one size, a program gives the model's own outputs at another, one document included."""
    program = _export(tiny, stage, stage_inputs(tiny.config, stage, "cpu", torch.float32, **made_for))
    inputs = stage_inputs(tiny.config, stage, "cpu", torch.float32, seed=8, **run_with)
    actual = program.module()(*(value.clone() for value in inputs))
    expected = StageModule(tiny, stage)(*inputs)
    assert len(tree_leaves(actual)) == len(tree_leaves(expected))
    for got, wanted in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_stages_are_what_generation_runs(tiny: DeepseekOCRForCausalLM) -> None:
    """Chained by hand - global, local, prefill, two steps - the stages give the tokens of generate."""
    from dsocr_graph.models.deepseek_ocr import Document, generate

    page = Document(
        global_pixels=stage_inputs(tiny.config, "vision_global", "cpu", torch.float32, base=128)[0],
        local_views=stage_inputs(tiny.config, "vision_local", "cpu", torch.float32, view=128, H=1, W=2)[0],
        prompt_ids=[0, *[255] * 17, 9],
    )
    features = StageModule(tiny, "vision_global")(page.global_pixels)
    features = StageModule(tiny, "vision_local")(page.local_views, features)
    ids = torch.tensor([page.prompt_ids])
    token, cache = StageModule(tiny, "prefill")(ids, features[None], ids == 255)
    tokens = [int(token)]
    for _ in range(2):
        token, cache = StageModule(tiny, "decode")(token[:, None], *cache)
        tokens.append(int(token))
    assert cache[0].shape == (1, 4, 19 + 2, 16)
    assert tokens == generate(tiny, [page], max_new_tokens=3, no_repeat_ngram_size=0)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_modules_enter_the_graph_under_the_root(stage: str) -> None:
    """Every node but the choice of the next token lies in a scope of the model below `root`."""
    model = _meta()
    inputs = stage_inputs(model.config, stage, base=128, view=128, S=12, N=7, T=12)
    program = _export(model, stage, inputs)
    scopes = {
        list(node.meta["nn_module_stack"].values())[-1][0]
        for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    }
    assert scopes
    assert all(scope.startswith(("root.model.", "root.lm_head")) for scope in scopes)


def test_stage_inputs_have_the_named_sizes() -> None:
    """Inputs follow the dims by name; N image tokens are marked behind the first one in every document."""
    config = DeepseekOCRConfig.tiny()
    ids, features, mask = stage_inputs(config, "prefill", "cpu", torch.float32, B=3, S=20, N=11)
    assert (ids.shape, features.shape) == ((3, 20), (3, 11, 64))
    assert mask.sum(dim=1).tolist() == [11, 11, 11]
    assert not mask[:, 0].any()
    views, features = stage_inputs(config, "vision_local", H=3, W=2)
    # 256 pixels: 4 cells, 4 * 5 + 1 = 21 global features
    assert (tuple(views.shape), tuple(features.shape)) == ((3, 2, 3, 640, 640), (21, 64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda config: stage_inputs(config, "vision"), "'vision'; the stages are vision_global"),
        (lambda config: stage_inputs(config, "decode", V=2), r"\['V'\]; known are base"),
        (lambda config: stage_inputs(config, "decode", T=0), "at least 1"),
        (lambda config: stage_inputs(config, "prefill", S=5, N=5), "N = 5 image tokens"),
        (lambda config: dynamic_shapes("train", config), "'train'"),
        (lambda config: StageModule(_meta(), "train"), "'train'"),
    ],
)
def test_unknown_stages_and_dims_are_refused(call: Callable[[DeepseekOCRConfig], object], message: str) -> None:
    """A wrong name or size is one error with the known ones."""
    with pytest.raises(ModelInputError, match=message):
        call(DeepseekOCRConfig.tiny())
