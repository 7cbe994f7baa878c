"""Image and speech models of transformers against torch: FLOPs by torch's counter, results by the models' own forward.

On `meta` torch counts both products of attention; on CPU tensors its fused kernel would count as 0.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from dsocr_graph.lowering import lower
from dsocr_graph.models.from_transformers import image_encoder, speech
from dsocr_graph.models.from_transformers.catalog import CATALOG
from dsocr_graph.models.from_transformers.configuration import transformers_config
from dsocr_graph.models.from_transformers.families import class_of
from dsocr_graph.models.from_transformers.family import Family
from dsocr_graph.models.from_transformers.image_text import FAMILY as IMAGE_TEXT
from dsocr_graph.models.from_transformers.image_text_stages import image_text_stages
from dsocr_graph.models.from_transformers.load import meta_model
from dsocr_graph.models.from_transformers.page_views import PackedPages, Preprocessor, TiledPages, WholePages
from dsocr_graph.models.from_transformers.variant import TransformersVariant
from dsocr_graph.models.stage_spec import StageSpec, declared_leaves
from dsocr_graph.scopes import group_by_module
from dsocr_graph.tracing import capture
from modelmeter import AnalyticModel
from modelmeter.evaluate import evaluate_stage

SETTINGS: Mapping[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "tiny_image_and_speech_models.json").read_text(encoding="utf-8")
)
IMAGE_TOKEN = 96  # in the vocabularies of 97 tokens there


@frozen(kw_only=True)
class Tiny:
    """A model of the real classes at toy size: every kind of layer, few of each."""

    family: Family
    settings: Mapping[str, Any]
    pages: Preprocessor | None = None  # of models that read images and write text
    attention: str = "sdpa"

    def build(self, *, dtype: str = "bf16", device: str = "meta") -> tuple[Any, tuple[StageSpec, ...]]:
        """Return the model, with random weights on a real device, and its stages."""
        variant = TransformersVariant(dtype=dtype, attention=self.attention)
        config = transformers_config(self.settings)
        torch.manual_seed(7)
        model = meta_model(config, class_of(self.family, config), variant, device=device)
        if self.pages is not None:
            return model, image_text_stages(model, self.pages)
        return model, self.family.stages(model, config, variant)


ATTENTION = {"got_ocr2": "eager", "got-ocr2": "eager"}  # all that this class offers
PAGES: Mapping[str, Preprocessor] = {
    "deepseek_ocr2": TiledPages(view=256, tile=192),
    "qwen3_vl": PackedPages(cell=8),
    "got_ocr2": WholePages(image_tokens=16),
}
FAMILIES = {"siglip_vision_model": image_encoder.FAMILY, "whisper": speech.FAMILY}
TINY = {
    name: Tiny(
        family=FAMILIES.get(name, IMAGE_TEXT),
        settings=settings,
        pages=PAGES.get(name),
        attention=ATTENTION.get(name, "sdpa"),
    )
    for name, settings in SETTINGS.items()
}

Sizes = dict[str, int]
# Stage and sizes; the smallest is 1 in each dim, where a graph captured at larger sizes has to hold as well.
CASES: list[tuple[str, str, Sizes]] = [
    *(("deepseek_ocr2", "vision_local", {"V": V}) for V in (1, 2, 6)),
    ("deepseek_ocr2", "vision_global", {}),
    *(("qwen3_vl", "vision", {"N": N}) for N in (1, 6, 130)),
    *(("got_ocr2", "vision", {"V": V}) for V in (1, 3)),
    *(
        (model, "prefill", {"B": B, "S": S, "N": N})
        for model in ("deepseek_ocr2", "qwen3_vl", "got_ocr2")
        for B, S, N in ((1, 2, 1), (2, 30, 17), (5, 12, 12))
    ),
    *(
        (model, "decode", {"B": B, "T": T})
        for model in ("deepseek_ocr2", "qwen3_vl", "got_ocr2", "whisper")
        for B, T in ((1, 1), (2, 30), (5, 11))
    ),
    *(("siglip_vision_model", "encode", {"B": B}) for B in (1, 4)),
    *(("whisper", "encode", {"B": B}) for B in (1, 4)),
    *(("whisper", "prefill", {"B": B, "S": S}) for B, S in ((1, 1), (2, 4), (5, 11))),
]
FULL_SIZE: list[tuple[str, str, Sizes]] = [
    ("deepseek-ocr-2", "vision_global", {}),
    *(("deepseek-ocr-2", "vision_local", {"V": V}) for V in (2, 6)),
    *(("qwen3-vl-8b", "vision", {"N": N}) for N in (64, 2080)),
    *(("got-ocr2", "vision", {"V": V}) for V in (1, 3)),
    ("siglip-so400m-patch14-384", "encode", {"B": 1}),
    ("siglip-so400m-patch14-384", "encode", {"B": 8}),
    *(("whisper-large-v3", "encode", {"B": B}) for B in (1, 8)),
    *(("whisper-large-v3", "prefill", {"B": B, "S": 4}) for B in (1, 8)),
    *(("whisper-large-v3", "decode", {"B": B, "T": 100}) for B in (1, 8)),
    *(
        (model, stage, sizes)
        for model, N in (("deepseek-ocr-2", 1121), ("qwen3-vl-8b", 2080), ("got-ocr2", 256))
        for stage, sizes in (
            ("prefill", {"B": 1, "S": N + 10, "N": N}),
            ("prefill", {"B": 8, "S": N + 10, "N": N}),
            ("decode", {"B": 1, "T": N + 10}),
            ("decode", {"B": 8, "T": 8000}),
        )
    ),
]


LONG = {"qwen3_vl", "got_ocr2", "whisper"}  # capturing these takes half a minute more


def _in_time(case: tuple[str, str, Sizes]) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow) if case[0] in LONG else case


@cache
def _tiny(model: str) -> tuple[Mapping[str, StageSpec], AnalyticModel]:
    return _compiled(*TINY[model].build())


@cache
def _full(model: str, stage: str) -> tuple[StageSpec, AnalyticModel]:
    built, stages = CATALOG[model].build(TransformersVariant(attention=ATTENTION.get(model, "sdpa")))
    found, analytic = _compiled(built, tuple(item for item in stages if item.name == stage))
    return found[stage], analytic


def _compiled(model: Any, stages: tuple[StageSpec, ...]) -> tuple[Mapping[str, StageSpec], AnalyticModel]:
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)  # torch traces each step of an export; pytest would keep it all
    try:
        analytic = lower(group_by_module(capture(model, stages, name="model", variant={})))
    finally:
        logging.disable(before)
    return {stage.name: stage for stage in stages}, analytic


def _inputs_at(stage: StageSpec, sizes: Sizes) -> tuple[torch.Tensor, ...]:
    """Return a stage's example inputs at other sizes."""
    if stage.dynamic_shapes is None:
        return stage.inputs
    resized: list[torch.Tensor] = []
    for tensor, axes in zip(stage.inputs, declared_leaves(stage.dynamic_shapes), strict=True):
        dims = axes or {}
        shape = [sizes[dims[axis].__name__] if axis in dims else size for axis, size in enumerate(tensor.shape)]
        resized.append(tensor.new_zeros(shape))
    return tuple(resized)


def _counted(stage: StageSpec, sizes: Sizes) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        stage.module(*_inputs_at(stage, sizes))
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def _no_value_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on `meta` have no values, so the models' own checks of values are switched off."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


def _named(value: object) -> str:
    return "-".join(f"{key}{size}" for key, size in value.items()) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("model", "stage", "sizes"), [_in_time(case) for case in CASES], ids=_named)
def test_flops_are_those_that_torch_counts(model: str, stage: str, sizes: Sizes) -> None:
    """A stage of a model at toy size has exactly the matrix FLOPs that torch counts, at any size of its dims."""
    stages, analytic = _tiny(model)
    assert evaluate_stage(analytic, stage, **sizes).total.cost.matmul_flops == _counted(stages[stage], sizes) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("model", "stage", "sizes"), FULL_SIZE, ids=_named)
def test_flops_at_full_size_are_those_that_torch_counts(model: str, stage: str, sizes: Sizes) -> None:
    """A stage of a published model has exactly the matrix FLOPs that torch counts."""
    described, analytic = _full(model, stage)
    assert evaluate_stage(analytic, stage, **sizes).total.cost.matmul_flops == _counted(described, sizes) > 0


def _ran(model: str) -> tuple[Any, dict[str, Any]]:
    """Return a model with random weights in fp32 on the CPU, and the modules of its stages by name."""
    built, stages = TINY[model].build(dtype="fp32", device="cpu")
    return built, {stage.name: stage.module for stage in stages}


def _same(stage: tuple[Tensor, tuple[Tensor, ...]], output: Any) -> None:
    """Compare logits of the last position, keys and values of a stage with what the model's own forward returns."""
    logits, cached = stage
    torch.testing.assert_close(logits[:, -1], output.logits[:, -1])
    own = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
    assert len(own) == len(cached)
    for tensor, expected in zip(cached, own, strict=True):
        torch.testing.assert_close(tensor, expected)


def _prompt(images: int, image_tokens: int, documents: int = 1) -> Tensor:
    """Return ids of so many documents: text, image tokens, text."""
    text = torch.randint(3, 90, (documents, 5))
    return torch.cat([text[:, :2], torch.full((documents, images * image_tokens), IMAGE_TOKEN), text[:, 2:]], dim=1)


@torch.no_grad()
def test_tiled_stages_compute_what_the_model_computes() -> None:
    """DeepSeek-OCR-2 on one page of 3 tiles: the four stages give the logits and the cache of its own forward."""
    model, stage = _ran("deepseek_ocr2")
    view, tiles = torch.randn(1, 3, 256, 256), torch.randn(3, 3, 192, 192)
    features = stage["vision_local"](tiles, stage["vision_global"](view))
    assert features.shape == (3 * 144 + 144 + 1, 32)  # 144 queries for every view of up to 144 patches
    ids = _prompt(1, len(features))
    own = model(input_ids=ids, pixel_values=view, pixel_values_local=tiles, num_local_patches=[3], use_cache=True)
    logits, cached = stage["prefill"](ids, features[None])
    _same((logits, cached), own)
    token = logits[:, -1].argmax(-1, keepdim=True)
    decoded = stage["decode"](token, *cached)
    _same(decoded, model(input_ids=token, past_key_values=own.past_key_values, use_cache=True))


@torch.no_grad()
def test_whole_view_stages_compute_what_the_model_computes() -> None:
    """GOT-OCR2 on two documents of one view each: the stages give the logits and the cache of its own forward."""
    model, stage = _ran("got_ocr2")
    pixels = torch.randn(2, 3, 256, 256)
    features = stage["vision"](pixels)
    assert features.shape == (2, 16, 32)  # 256 / 16 / 4 = 4 cells a side
    ids = _prompt(1, 16, documents=2)
    own = model(input_ids=ids, pixel_values=pixels, use_cache=True)
    logits, cached = stage["prefill"](ids, features)
    _same((logits, cached), own)
    token = logits[:, -1].argmax(-1, keepdim=True)
    _same(stage["decode"](token, *cached), model(input_ids=token, past_key_values=own.past_key_values, use_cache=True))


@torch.no_grad()
def test_packed_stages_compute_what_the_model_computes() -> None:
    """Qwen3-VL on two documents of one page each: the stages give the logits and the cache of its own forward."""
    model, stage = _ran("qwen3_vl")
    grid = torch.tensor([[1, 4, 6]])  # 24 patches, 6 image tokens
    pages = [torch.randn(24, 3 * 2 * 4 * 4) for _ in range(2)]
    rows, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=4, align_corners=True, spatial_merge_size=2
    )
    places = get_vision_position_ids(grid, 2)
    encoded = [
        stage["vision"](*(tensor.unflatten(0, (6, 4)) for tensor in (page, rows, weights, places))) for page in pages
    ]
    features = torch.stack([merged for merged, _ in encoded])
    deeper = [torch.stack(layer) for layer in zip(*(layers for _, layers in encoded), strict=True)]
    ids = _prompt(1, 6, documents=2)
    types = (ids == IMAGE_TOKEN).int()
    grids = grid.expand(2, 3)
    own = model(
        input_ids=ids,
        pixel_values=torch.cat(pages),
        image_grid_thw=grids,
        mm_token_type_ids=types,
        past_key_values=DynamicCache(config=model.config),
    )
    places_of_images = torch.arange(2, 8).expand(2, 6)
    spatial, offset = model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grids)
    positions = torch.cat([torch.arange(ids.shape[1]).expand(1, *ids.shape), spatial])
    logits, cached = stage["prefill"](ids, positions, places_of_images, features, *deeper)
    _same((logits, cached), own)
    token = logits[:, -1].argmax(-1, keepdim=True)
    last = torch.full((1, 2, 1), ids.shape[1])
    next_positions = torch.cat([last, (last + offset).expand(3, 2, 1)])
    decoded = stage["decode"](token, next_positions, *cached)
    _same(decoded, model(input_ids=token, past_key_values=own.past_key_values))


@torch.no_grad()
def test_speech_stages_compute_what_the_model_computes() -> None:
    """Whisper on two recordings: the stages give the logits and both caches of its own forward."""
    model, stage = _ran("whisper")
    sound, ids = torch.randn(2, 8, 24), torch.randint(3, 90, (2, 4))
    encoded = stage["encode"](sound)
    own = model(input_features=sound, decoder_input_ids=ids, use_cache=True)
    logits, cached = stage["prefill"](ids, encoded)
    torch.testing.assert_close(logits, own.logits)
    caches = (own.past_key_values.self_attention_cache, own.past_key_values.cross_attention_cache)
    expected = [tensor for cache in caches for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert len(cached) == len(expected) == 8  # keys and values of prompt and speech, in 2 layers
    for tensor, theirs in zip(cached, expected, strict=True):
        torch.testing.assert_close(tensor, theirs)
    token = logits[:, -1:].argmax(-1)
    decoded, _ = stage["decode"](token, encoded, *cached)
    own_encoded = BaseModelOutput(last_hidden_state=encoded)
    again = model(encoder_outputs=own_encoded, decoder_input_ids=token, past_key_values=own.past_key_values)
    torch.testing.assert_close(decoded, again.logits)


@torch.no_grad()
def test_image_encoder_stage_computes_what_the_model_computes() -> None:
    """SigLIP on two images: the stage gives the features and the pooled features of its own forward."""
    model, stage = _ran("siglip_vision_model")
    pixels = torch.randn(2, 3, 20, 20)
    features, pooled = stage["encode"](pixels)
    own = model(pixels)
    torch.testing.assert_close(features, own.last_hidden_state)
    torch.testing.assert_close(pooled, own.pooler_output)


# Totals of the safetensors files that were published; where the files hold more or none are counted, worked by hand.
PARAMETERS = {
    "whisper-large-v3": 1_543_490_560,
    "qwen3-vl-8b": 8_767_123_696,
    "got-ocr2": 560_528_640,
    # The published file holds a text model of 449,734,896 and two scalars as well: 877,960,498 in all.
    "siglip-so400m-patch14-384": 428_225_600,
    # Qwen2-0.5B has 494,032,768, of which 151,936 rows of 896 are no part of the query encoder. DeepSeek-OCR's SAM has
    # 95,569,152; its last convolution goes from 512 to 1,024 channels in 9 taps, here to 896. Then 144 and 256 queries,
    # the projector, the separator, and DeepSeek-OCR's decoder with its head.
    "deepseek-ocr-2": (
        (494_032_768 - 151_936 * 896)
        + (95_569_152 - 512 * 128 * 9)
        + (144 + 256) * 896
        + (896 * 1280 + 1280)
        + 1280
        + 2_934_734_080
    ),
}


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_are_those_published(model: str) -> None:
    """A model built from the shipped configuration has as many parameters as its published weights."""
    config = transformers_config(CATALOG[model].settings)
    variant = TransformersVariant(attention=ATTENTION.get(model, "sdpa"))
    built = meta_model(config, class_of(CATALOG[model].family, config), variant)
    assert sum(parameter.numel() for parameter in built.parameters()) == PARAMETERS[model]


# Bytes in bf16 that a token adds, and what a document has cached besides.
KV_BYTES = {
    "deepseek-ocr-2": (2 * 2 * 12 * 10 * 128, 0),  # keys and values of 12 layers of 10 heads of 128: 61,440
    "qwen3-vl-8b": (2 * 2 * 36 * 8 * 128, 0),  # 147,456
    "got-ocr2": (2 * 2 * 24 * 16 * 64, 0),  # 98,304
    "whisper-large-v3": (2 * 2 * 32 * 20 * 64, 1500 * 2 * 2 * 32 * 20 * 64),  # 163,840, and as many for each position
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", KV_BYTES)
def test_each_token_takes_its_keys_and_values(model: str) -> None:
    """A decode step leaves the cache of one token more behind, and that of the speech."""
    _, analytic = _full(model, "decode")
    per_token, besides = KV_BYTES[model]
    cached = analytic.stage("decode").kv_cache_bytes_at({"B": 3, "T": 99})
    assert cached == 3 * (100 * per_token + besides)
