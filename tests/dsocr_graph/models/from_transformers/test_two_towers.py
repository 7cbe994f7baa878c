"""Models that compare images with texts: what runs for a request."""

from __future__ import annotations

import pytest

from dsocr_graph.models.from_transformers.two_towers import runs
from dsocr_graph.workloads.errors import ContextTooLongError
from dsocr_graph.workloads.pages import PageSize
from dsocr_graph.workloads.request import InvalidRequestError, Request

PAGE = PageSize(name="page", width=1275, height=1650)
SETTINGS = {"text_config": {"max_position_embeddings": 77}}


def test_each_encoder_runs_for_what_is_its_own() -> None:
    """Two pages of 3 documents are 6 images; a prompt alone is read by the other encoder alone."""
    both = runs(SETTINGS, Request(name="both", batch=3, images=(PAGE, PAGE), prompt_tokens=9))
    assert [(run.stage, dict(run.bindings)) for run in both.runs] == [
        ("encode_images", {"B": 6}),
        ("encode_texts", {"B": 3, "S": 9}),
    ]
    text = runs(SETTINGS, Request(name="text", prompt_tokens=9, new_tokens=2, audio_seconds=1))
    assert [run.stage for run in text.runs] == ["encode_texts"]
    assert text.facts["ignored"] == "new_tokens, audio_seconds"


def test_a_prompt_beyond_the_positions_is_refused() -> None:
    """78 tokens for 77 positions."""
    with pytest.raises(ContextTooLongError, match="has a prompt of 78 tokens; the model has 77 positions"):
        runs(SETTINGS, Request(name="long", prompt_tokens=78))


def test_nothing_to_encode_is_refused() -> None:
    """Neither images nor a prompt."""
    with pytest.raises(InvalidRequestError, match="'none' gives encoders of images and of texts nothing to read"):
        runs(SETTINGS, Request(name="none"))
