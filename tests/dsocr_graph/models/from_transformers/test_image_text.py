"""Models that read images and write text: what a page becomes in each preprocessor, and what runs for a request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsocr_graph.errors import ModelConfigError
from dsocr_graph.models.from_transformers.catalog import CATALOG
from dsocr_graph.models.from_transformers.image_text import runs
from dsocr_graph.models.from_transformers.page_views import PackedPages, PageShapeError, TiledPages, preprocessor_of
from dsocr_graph.workloads.errors import ContextTooLongError
from dsocr_graph.workloads.pages import PageSize
from dsocr_graph.workloads.request import InvalidRequestError, Request

LETTER = PageSize(name="letter", width=1275, height=1650)
SIDES = st.integers(min_value=1, max_value=9000)


def page(width: int, height: int) -> PageSize:
    """Return a page of that many pixels."""
    return PageSize(name="page", width=width, height=height)


def bindings(model: str, request: Request) -> list[tuple[str, int, dict[str, int]]]:
    """Return what runs of a shipped model: stage, count and sizes."""
    return [(run.stage, run.count, dict(run.bindings)) for run in CATALOG[model].runs(request).runs]


def test_deepseek_ocr_2_takes_a_large_page_as_tiles_and_a_global_view() -> None:
    """2 x 3 tiles of 12 x 12 tokens, a view of 16 x 16 and a separator: 6 * 144 + 256 + 1 = 1,121 image tokens."""
    request = Request(name="ocr", batch=3, prompt_tokens=10, new_tokens=101, images=(LETTER,))
    assert bindings("deepseek-ocr-2", request) == [
        ("vision_local", 3, {"V": 6}),
        ("vision_global", 3, {}),
        ("prefill", 1, {"B": 3, "S": 1131, "N": 1121}),
        ("decode", 100, {"B": 3, "T": 1131}),
    ]


def test_deepseek_ocr_2_takes_a_small_page_as_a_global_view_alone() -> None:
    """A page of at most 768 pixels a side has no tiles: 256 + 1 image tokens."""
    request = Request(name="ocr", prompt_tokens=10, images=(page(768, 300),))
    assert bindings("deepseek-ocr-2", request) == [
        ("vision_global", 1, {}),
        ("prefill", 1, {"B": 1, "S": 267, "N": 257}),
    ]


def test_qwen3_vl_takes_pages_near_their_own_size() -> None:
    """Cells of 32 pixels: 1275/32 = 39.8 and 1650/32 = 51.6, so 40 x 52 = 2,080 tokens a page, and two marks."""
    request = Request(name="ocr", prompt_tokens=10, images=(LETTER, LETTER))
    assert bindings("qwen3-vl-8b", request) == [
        ("vision", 1, {"N": 2080}),
        ("vision", 1, {"N": 2080}),
        ("prefill", 1, {"B": 1, "S": 4174, "N": 4160}),  # 10 + 2 * (2080 + 2)
    ]


def test_got_ocr2_takes_any_page_as_one_view() -> None:
    """256 image tokens between <img> and </img>."""
    assert bindings("got-ocr2", Request(name="ocr", images=(LETTER,))) == [
        ("vision", 1, {"V": 1}),
        ("prefill", 1, {"B": 1, "S": 258, "N": 256}),
    ]


def test_what_is_ignored_is_named() -> None:
    """A model without ears says so in the facts of the item."""
    item = runs({"model_type": "got_ocr2"}, Request(name="x", images=(LETTER,), audio_seconds=3))
    assert item.facts["ignored"] == "audio_seconds"


@given(width=SIDES, height=SIDES)
def test_tiles_are_those_of_the_image_processor(width: int, height: int) -> None:
    """The grid of tiles is transformers' for any page."""
    from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import get_optimal_tiled_canvas

    assert TiledPages().grid(page(width, height)) == get_optimal_tiled_canvas((height, width), (768, 768), 2, 6)


@given(width=SIDES, height=SIDES)
def test_cells_are_those_of_the_image_processor(width: int, height: int) -> None:
    """The grid of cells is transformers' for any page that is not too elongated."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if max(width, height) > 200 * min(width, height):
        return
    rows, columns = smart_resize(height, width, factor=32, min_pixels=65536, max_pixels=16777216)
    assert PackedPages().grid(page(width, height)) == (columns // 32, rows // 32)


@pytest.mark.parametrize("size", [(500, 700), (900, 1300), (1650, 1275)])
def test_views_are_those_of_the_real_image_processors(size: tuple[int, int]) -> None:
    """The image processors, run on a picture, give as many tiles and patches."""
    from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import DeepseekOcr2ImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = Image.new("RGB", size)
    tiled: Any = DeepseekOcr2ImageProcessorPil()(picture, return_tensors="np")
    seen = TiledPages().page(page(*size))
    assert tiled["pixel_values"].shape == (1, 3, 1024, 1024)
    assert tiled["num_local_patches"][0] == seen.stages.get("vision_local", {"V": 0})["V"]
    bounds = {"shortest_edge": 65536, "longest_edge": 16777216}
    packed: Any = Qwen2VLImageProcessorPil(patch_size=16, size=bounds)(picture, return_tensors="np")
    assert len(packed["pixel_values"]) == 4 * PackedPages().page(page(*size)).image_tokens  # 2 x 2 patches a token


def test_a_request_without_images_is_refused() -> None:
    """The error names the model type and asks for images."""
    with pytest.raises(InvalidRequestError, match=r"'chat' has no images, which a model of type 'got_ocr2'.*give at"):
        runs({"model_type": "got_ocr2"}, Request(name="chat", prompt_tokens=5))


def test_a_prompt_beyond_the_positions_is_refused() -> None:
    """DeepSeek-OCR-2 has 8,192 positions: 1,121 image tokens and 8,000 new ones do not fit."""
    request = Request(name="long", images=(LETTER,), new_tokens=8000)
    with pytest.raises(ContextTooLongError, match=r"1,121 tokens of context.*8,000 new ones.*8,192 positions"):
        CATALOG["deepseek-ocr-2"].runs(request)


def test_a_page_too_elongated_is_refused() -> None:
    """Sides of 201 to 1 are refused, as the preprocessor refuses them."""
    with pytest.raises(PageShapeError, match="'page' of 201 x 1 pixels is too elongated"):
        PackedPages().page(page(201, 1))
    assert PackedPages().page(page(200, 1)).image_tokens > 0


def test_an_unknown_preprocessor_is_refused() -> None:
    """The error lists the known model types, and says that points need none and where to add one."""
    with pytest.raises(
        ModelConfigError,
        match=r"'llava' cuts pages.*deepseek_ocr2, got_ocr2, qwen3_vl. Ask for its stages .*--points .* or add",
    ):
        preprocessor_of({"model_type": "llava"})
