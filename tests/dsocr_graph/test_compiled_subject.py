"""Compiled subjects: every way to name a model leads to one that can be evaluated, or to the reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest

import modelmeter
from dsocr_graph.compiled_subject import compiled_subject
from dsocr_graph.errors import OptionError
from dsocr_graph.subjects import compiled_only
from modelmeter.registry import UnknownVariantError
from modelmeter.serialize import ModelFileError, compress, model_to_json

FACTORY = """
import torch
from torch import nn


def make():
    with torch.device("meta"):
        return nn.Linear(64, 8), torch.empty(4, 64), {"input": {0: "B"}}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Return a directory as `analyze` leaves it, with a model."""
    model = modelmeter.load("deepseek-ocr", "tiny")
    (tmp_path / "model.json").write_text(model_to_json(model), encoding="utf-8")
    (tmp_path / "shipped.gz").write_bytes(compress(model_to_json(model)))
    return tmp_path


def test_a_model_is_read_from_a_directory_and_from_files(tiny: Path) -> None:
    """Plain or compressed, it is the same."""
    for path in (tiny, tiny / "model.json", tiny / "shipped.gz"):
        assert compiled_subject(str(path)) == modelmeter.load("deepseek-ocr", "tiny")


def test_a_registered_model_has_the_name_that_was_asked_for() -> None:
    """Its variant is one that the package ships."""
    model = compiled_subject("deepseek-ocr", shipped="tiny")
    assert (model.name, model.variant["base_size"]) == ("deepseek-ocr", "512")
    assert compiled_subject("deepseek-ocr:tiny") == model
    with pytest.raises(UnknownVariantError, match="unknown variant of deepseek-ocr 'minute'"):
        compiled_subject("deepseek-ocr", shipped="minute")
    with pytest.raises(UnknownVariantError, match="unknown variant of deepseek-ocr 'minute'"):
        compiled_subject("deepseek-ocr:minute")
    with pytest.raises(OptionError, match="deepseek-ocr:tiny names a variant, and --variant base does"):
        compiled_subject("deepseek-ocr:tiny", shipped="base")


def test_a_factory_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is made: a type belongs to no one who asks."""
    (tmp_path / "compiled_rows.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert compiled_subject("compiled_rows:make").parameters == 64 * 8 + 8
    with pytest.raises(OptionError, match="Linear comes as it is, so that --dtype would say nothing"):
        compiled_subject("compiled_rows:make", dtype="fp32")
    with pytest.raises(OptionError, match="--variant is of a model that a package ships"):
        compiled_subject("compiled_rows:make", shipped="tiny")


def test_what_says_nothing_of_a_file_is_refused(tiny: Path) -> None:
    """It is one model, captured already."""
    with pytest.raises(OptionError, match="comes as it is, so that --attention, --dtype would say nothing"):
        compiled_subject(str(tiny), dtype="fp32", attention="eager")
    with pytest.raises(OptionError, match="without variants to choose from"):
        compiled_subject(str(tiny), shipped="tiny")


def test_a_mode_is_of_models_that_cut_pages() -> None:
    """A language model has none."""
    with pytest.raises(OptionError, match="--mode would say nothing of qwen3-8b"):
        compiled_subject("qwen3-8b", mode="Base")


def test_a_configuration_is_no_compiled_model(tmp_path: Path) -> None:
    """Files are told apart by what they hold; a damaged model is an error, not a configuration."""
    (tmp_path / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    assert compiled_only(tmp_path / "config.json") is None
    assert compiled_only(tmp_path) is None
    (tmp_path / "model.json").write_text('{"leaves": []}', encoding="utf-8")
    with pytest.raises(ModelFileError):
        compiled_only(tmp_path)
