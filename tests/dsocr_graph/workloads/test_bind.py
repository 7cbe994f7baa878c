"""Profiles bound to stages and dims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.workloads import MODES, PageSize, bind_profile, load_profile, profile_from_pages
from modelmeter.workload import StageRun


def test_the_letter_page_runs_four_stages() -> None:
    """2 x 3 crops, N = 273 + 21 * 30 = 903, S = 903 + 10; 1,100 new tokens need 1,099 decode steps."""
    letter = bind_profile(load_profile("dsocr-standard-v1")).items[0]
    assert letter.runs == (
        StageRun(stage="vision_local", count=1, bindings={"V": 6, "H": 3, "W": 2}),
        StageRun(stage="vision_global", count=1, bindings={}),
        StageRun(stage="prefill", count=1, bindings={"B": 1, "S": 913, "N": 903}),
        StageRun(stage="decode", count=1099, bindings={"B": 1, "T": 913}, sweep="T"),
    )
    assert letter.facts == {
        "width": 1275,
        "height": 1650,
        "crop_columns": 2,
        "crop_rows": 3,
        "views": 6,
        "image_tokens": 903,
        "context_tokens": 913,
        "new_tokens": 1100,
        "batch": 1,
    }


def test_the_standard_pages_have_their_contexts() -> None:
    """Contexts of the five pages, worked by hand."""
    workload = bind_profile(load_profile("dsocr-standard-v1"))
    contexts = {item.name: item.facts["context_tokens"] for item in workload.items}
    # letter, a4, 2 x 3: 273 + 21*30 + 10; slide, 4 x 2: 273 + 41*20 + 10; receipt, 1 x 3: 273 + 11*30 + 10;
    # figure: 273 + 10
    assert contexts == {"letter": 913, "a4": 913, "slide": 1103, "receipt": 613, "figure": 283}
    assert workload.name == "dsocr-standard-v1"
    assert workload.facts == {
        "mode": "Gundam",
        "base_size": 1024,
        "dtype": "bf16",
        "batch": 1,
        "prompt": "<image>\n<|grounding|>Convert the document to markdown.",
        "prompt_tokens": 10,
        "decoding": "greedy",
        "pages": 5,
    }


def test_vision_runs_once_per_document_of_a_batch() -> None:
    """Vision takes documents one at a time, the decoder takes the batch together."""
    slide = bind_profile(load_profile("dsocr-standard-v1", batch=4)).items[2]
    assert slide.documents == 4
    assert slide.runs == (
        StageRun(stage="vision_local", count=4, bindings={"V": 8, "H": 2, "W": 4}),
        StageRun(stage="vision_global", count=4, bindings={}),
        StageRun(stage="prefill", count=1, bindings={"B": 4, "S": 1103, "N": 1093}),
        StageRun(stage="decode", count=399, bindings={"B": 4, "T": 1103}, sweep="T"),
    )


def test_one_new_token_needs_no_decode() -> None:
    """Prefill yields the first token."""
    figure = bind_profile(load_profile("dsocr-standard-v1", new_tokens=1)).items[4]
    assert [run.stage for run in figure.runs] == ["vision_global", "prefill"]


@pytest.mark.parametrize(
    ("mode", "context"), [("Tiny", 83), ("Small", 121), ("Base", 283), ("Large", 431), ("Gundam", 913)]
)
def test_contexts_of_the_modes(mode: str, context: int) -> None:
    """Published context lengths with the standard prompt; only Gundam crops the letter page."""
    letter = bind_profile(load_profile("dsocr-standard-v1", mode=mode)).items[0]
    assert letter.facts["context_tokens"] == context
    assert ("vision_local" in [run.stage for run in letter.runs]) == (mode == "Gundam")


@given(
    width=st.integers(1, 65_535),
    height=st.integers(1, 65_535),
    mode=st.sampled_from(list(MODES)),
    batch=st.integers(1, 4_096),
    new_tokens=st.integers(1, 6_919),  # 8,192 less the longest context of 1,273
)
def test_every_page_prefills_its_context_and_decodes_the_rest(
    width: int, height: int, mode: str, batch: int, new_tokens: int
) -> None:
    """Tokens are conserved: image and prompt in prefill, one new token there, the others in decode."""
    page = PageSize(name="page", width=width, height=height)
    profile = profile_from_pages([page], name="any", mode=mode, batch=batch, new_tokens=new_tokens)
    (item,) = bind_profile(profile).items
    runs = {run.stage: run for run in item.runs}
    prefill = runs["prefill"].bindings
    assert prefill["S"] == prefill["N"] + 10
    assert prefill["B"] == item.documents == batch
    steps = runs["decode"].count if "decode" in runs else 0
    assert steps + 1 == new_tokens
    if "decode" in runs:
        assert runs["decode"].bindings == {"B": batch, "T": prefill["S"]}
    if "vision_local" in runs:
        grid = runs["vision_local"].bindings
        assert grid["V"] == grid["H"] * grid["W"]
