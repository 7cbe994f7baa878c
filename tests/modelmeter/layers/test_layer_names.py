"""The README of modelmeter names every layer and category, with the category that the code has."""

from __future__ import annotations

from pathlib import Path

import modelmeter
from modelmeter.categories import Category
from modelmeter.layers import LAYERS

README = Path(modelmeter.__file__).parent / "README.md"


def _categories() -> dict[str, str]:
    """Return the row of each category in the README's table."""
    section = README.read_text(encoding="utf-8").partition("## Categories")[2].partition("## FLOPs")[0]
    cells = [line.split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return {cell[1].strip(): cell[3] for cell in cells}


def test_the_readme_lists_every_category_once() -> None:
    """The table and the code have the same categories."""
    assert list(_categories()) == [category.value for category in Category]


def test_the_readme_gives_each_layer_its_default_category() -> None:
    """Each leaf stands in the row of its category and in no other."""
    for name, layer in LAYERS.items():
        rows = [category for category, layers in _categories().items() if f"`{name}`" in layers]
        assert rows == ([] if name == "Module" else [layer.category.value]), name


def test_the_readme_tells_the_backward_pass_of_each_layer() -> None:
    """No leaf is missing from the table of backward passes."""
    section = README.read_text(encoding="utf-8").partition("## Backward")[2].partition("## Composites")[0]
    assert [name for name in LAYERS if f"`{name}`" not in section] == ["Module"]


def test_a_name_is_the_class_name() -> None:
    """What a stored layer's type names is the class, whose module belongs to this package."""
    for name, layer in LAYERS.items():
        assert layer.__name__ == name
        assert layer.__module__.startswith("modelmeter.layers.")
