"""Image encoders: what runs for a request."""

from __future__ import annotations

import pytest

from dsocr_graph.models.from_transformers.catalog import CATALOG
from dsocr_graph.models.from_transformers.image_encoder import runs
from dsocr_graph.workloads.pages import PageSize
from dsocr_graph.workloads.request import InvalidRequestError, Request

PAGE = PageSize(name="page", width=1275, height=1650)


def test_all_images_of_all_documents_are_one_batch() -> None:
    """3 documents of 2 pages are 6 images, whatever their size in pixels."""
    item = CATALOG["siglip-so400m-patch14-384"].runs(Request(name="pages", batch=3, images=(PAGE, PAGE)))
    assert [(run.stage, run.count, dict(run.bindings)) for run in item.runs] == [("encode", 1, {"B": 6})]
    assert "ignored" not in item.facts


def test_text_and_audio_are_ignored_by_name() -> None:
    """An encoder reads no prompt, writes no text and hears nothing."""
    request = Request(name="x", images=(PAGE,), prompt_tokens=5, new_tokens=2, audio_seconds=1)
    assert runs({}, request).facts["ignored"] == "prompt_tokens, new_tokens, audio_seconds"


def test_a_request_without_images_is_refused() -> None:
    """The error names the request and asks for images."""
    with pytest.raises(InvalidRequestError, match="'chat' gives an image encoder nothing to read; give images"):
        runs({}, Request(name="chat", prompt_tokens=5))
