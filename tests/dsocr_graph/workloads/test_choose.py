"""Pages of a command: from one place, with sizes, crops and lengths by hand."""

from __future__ import annotations

import pytest

from dsocr_graph.errors import OptionError
from dsocr_graph.workloads import bind_profile, choose_profile, load_profile, mode_named, override, tile_crops
from dsocr_graph.workloads.errors import ContextTooLongError, CropGridError, InvalidProfileError
from modelmeter.lengths import LengthsError


def test_without_anything_it_is_the_standard_profile() -> None:
    """Nothing asked for, nothing changed."""
    assert choose_profile() == load_profile("dsocr-standard-v1")


def test_pages_by_size() -> None:
    """A page is named by its size, a repeated one by a number too."""
    profile = choose_profile(page=[(640, 480), (640, 480)])
    assert (profile.name, [entry.page.name for entry in profile.pages]) == ("pages", ["640x480", "640x480-2"])
    assert choose_profile(page=[(640, 480)]).name == "640x480"


def test_crops_by_number() -> None:
    """4 columns x 2 rows: 8 views and 273 + (40 + 1) * 20 = 1,093 image tokens, whatever the page's size."""
    (item,) = bind_profile(choose_profile(page=[(640, 480)], crops=(4, 2))).items
    assert item.runs[0].bindings == {"V": 8, "H": 2, "W": 4}
    assert (item.facts["image_tokens"], item.facts["width"]) == (1093, 640)
    assert bind_profile(choose_profile(page=[(1700, 2200)], crops=(1, 1))).items[0].runs[0].stage == "vision_global"


@pytest.mark.parametrize(
    ("crops", "mode", "message"),
    [
        ((2, 3), "Base", "crops 2x3 in mode Base, which crops no page; choose mode Gundam"),
        ((5, 2), "Gundam", "crops 5x2 are no grid of 2 to 9 crops"),
        ((0, 1), "Gundam", "crops 0x1 are no grid of 2 to 9 crops"),
    ],
)
def test_crops_that_no_page_has(crops: tuple[int, int], mode: str, message: str) -> None:
    """The message says how many crops the preprocessing makes."""
    with pytest.raises(CropGridError, match=message):
        tile_crops(*crops, mode_named(mode))


def test_lengths_make_a_page_of_each() -> None:
    """2 prompts x 3 answers are 6 pages of equal share: contexts 273 + 5 and 273 + 25, answers as often as asked."""
    profile = choose_profile(page=[(640, 480)], mode="Base", prompt_tokens="5,25", new_tokens="100,200,100")
    workload = bind_profile(profile)
    found = [(item.facts["context_tokens"], item.facts["new_tokens"]) for item in workload.items]
    assert found == [(s, n) for s in (278, 298) for n in (100, 100, 200)]
    assert workload.items[1].name == "640x480-prompt5-new100-2"
    assert workload.facts["new_tokens"] == "3 equally likely lengths from 100 to 200, 133.3 in the mean"
    assert workload.facts["prompt_tokens"] == "2 equally likely lengths from 5 to 25, 15 in the mean"


def test_one_prompt_length_replaces_all() -> None:
    """Also that of pages which had their own."""
    spread = choose_profile(page=[(640, 480)], prompt_tokens="5,25")
    assert {spread.prompt_of(entry) for entry in spread.pages} == {5, 25}
    again = override(spread, prompt_tokens=7)
    assert {again.prompt_of(entry) for entry in again.pages} == {7}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"workload": "dsocr-standard-v1", "page": [(1, 1)]}, OptionError, "not from both; leave one out"),
        ({"new_tokens": "uniform:100:9000"}, InvalidProfileError, "expected a whole number from 1 to 8,192"),
        ({"new_tokens": "7800,7900"}, ContextTooLongError, "over the model's 8,192 positions; ask for at most"),
        ({"prompt_tokens": 0}, InvalidProfileError, "prompt_tokens is 0"),
        ({"new_tokens": "few"}, LengthsError, "'few' in the lengths 'few' is no whole number of tokens"),
    ],
)
def test_what_cannot_be_is_an_error(changes: dict[str, object], error: type[Exception], message: str) -> None:
    """Each message names the limit."""
    with pytest.raises(error, match=message):
        choose_profile(**changes)  # pyright: ignore[reportArgumentType]
