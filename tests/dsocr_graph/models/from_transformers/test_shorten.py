"""Shortened configurations: fewer layers of the same widths, in every stack."""

from __future__ import annotations

import pytest

from dsocr_graph.errors import ModelConfigError, OptionError
from dsocr_graph.models.from_transformers import CATALOG
from dsocr_graph.models.from_transformers.shorten import shortened
from dsocr_graph.subjects import named_or_configured


def test_every_stack_is_shortened() -> None:
    """Depths of nested configurations too; a shorter one stays as it is."""
    settings = {"vision_config": {"depth": 27, "deepstack_visual_indexes": [1, 8]}, "text_config": {"num_layers": 1}}
    assert shortened(settings, 2) == {
        "vision_config": {"depth": 2, "deepstack_visual_indexes": [1]},
        "text_config": {"num_layers": 1},
    }


def test_a_layer_of_the_rarer_kind_is_left() -> None:
    """Where no layer with global attention is among the first two, the last of them becomes one."""
    assert shortened({"depth": 27, "global_attn_indexes": [8, 16], "mlp_only_layers": [5]}, 2) == {
        "depth": 2,
        "global_attn_indexes": [1],
        "mlp_only_layers": [],
    }


def test_a_layer_with_experts_is_left() -> None:
    """DeepSeek-V3's first three layers have none: of two, one keeps them."""
    short = CATALOG["deepseek-v3"].shortened(2)
    assert (short.name, short.settings["num_hidden_layers"], short.settings["first_k_dense_replace"]) == (
        "deepseek-v3-2-layers",
        2,
        1,
    )
    assert short.settings["hidden_size"] == CATALOG["deepseek-v3"].settings["hidden_size"]


def test_what_cannot_be_shortened_is_refused() -> None:
    """No layers, no known setting, or a model that no configuration of transformers describes."""
    with pytest.raises(ModelConfigError, match="layers is 0"):
        shortened({"num_hidden_layers": 2}, 0)
    with pytest.raises(ModelConfigError, match="has none of num_hidden_layers"):
        shortened({"hidden_size": 2}, 1)
    with pytest.raises(OptionError, match="only models of a transformers configuration can be shortened"):
        named_or_configured("deepseek-ocr", layers=2)
    assert named_or_configured("qwen3-8b", layers=1).name == "qwen3-8b-1-layers"
