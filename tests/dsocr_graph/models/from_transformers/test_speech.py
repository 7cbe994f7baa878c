"""Speech models: what runs for a request, window by window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.models.from_transformers.catalog import CATALOG
from dsocr_graph.workloads.errors import ContextTooLongError
from dsocr_graph.workloads.pages import PageSize
from dsocr_graph.workloads.request import InvalidRequestError, Request

WHISPER = CATALOG["whisper-large-v3"]


def test_each_window_of_30_seconds_is_encoded_and_decoded() -> None:
    """61 s are 3 windows; 10 tokens are 4 + 3 + 3; 6 words of prompt and their mark precede the first window alone."""
    request = Request(name="talk", batch=2, audio_seconds=61, prompt_tokens=6, new_tokens=10)
    assert [(run.stage, run.count, dict(run.bindings)) for run in WHISPER.runs(request).runs] == [
        ("encode", 3, {"B": 2}),
        ("prefill", 1, {"B": 2, "S": 11}),  # 4 + 1 + 6
        ("decode", 3, {"B": 2, "T": 11}),
        ("prefill", 1, {"B": 2, "S": 4}),
        ("decode", 2, {"B": 2, "T": 4}),
        ("prefill", 1, {"B": 2, "S": 4}),
        ("decode", 2, {"B": 2, "T": 4}),
    ]


@given(seconds=st.integers(min_value=1, max_value=600), tokens=st.integers(min_value=1, max_value=400))
def test_every_token_is_generated_once(seconds: int, tokens: int) -> None:
    """A prefill yields one token and a decode step one; each of the ceil(s/30) windows yields at least one."""
    item = WHISPER.runs(Request(name="talk", audio_seconds=seconds, new_tokens=tokens))
    windows = -(-seconds // 30)
    assert item.facts["windows"] == windows
    assert sum(run.count for run in item.runs if run.stage != "encode") == max(tokens, windows)


def test_images_are_ignored_by_name() -> None:
    """A speech model sees nothing."""
    page = PageSize(name="page", width=10, height=10)
    assert WHISPER.runs(Request(name="x", audio_seconds=1, images=(page,))).facts["ignored"] == "images"


def test_a_request_without_audio_is_refused() -> None:
    """The error names the request and asks for seconds."""
    with pytest.raises(InvalidRequestError, match="'chat' gives a speech model nothing to hear; give audio_seconds"):
        WHISPER.runs(Request(name="chat", prompt_tokens=5))


def test_more_tokens_than_positions_are_refused() -> None:
    """A window has 448 positions: 4 and 445 do not fit, 4 and 444 do."""
    with pytest.raises(ContextTooLongError, match=r"4 tokens of context and 445 new ones in window 1 of 1.*448"):
        WHISPER.runs(Request(name="talk", audio_seconds=30, new_tokens=445))
    assert WHISPER.runs(Request(name="talk", audio_seconds=30, new_tokens=444)).facts["new_tokens"] == 444
