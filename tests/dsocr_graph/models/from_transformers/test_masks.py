"""Attention is captured as transformers runs it: grouped heads behind a mask are folded into the queries of a step."""

from __future__ import annotations

from typing import Any

import pytest

from dsocr_graph.models.from_transformers import TransformersVariant
from dsocr_graph.models.from_transformers.causal_lm_stages import language_stages
from dsocr_graph.models.from_transformers.configuration import transformers_config
from dsocr_graph.models.from_transformers.load import meta_model
from dsocr_graph.models.from_transformers.masks import masks_as_run
from dsocr_graph.tracing import capture
from modelmeter.dim_text import to_text

WINDOWED: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "sliding_window": 24,
    "layer_types": ["sliding_attention"],
}


def test_a_step_through_a_window_folds_grouped_heads() -> None:
    """4 heads on 2 of keys and values: 2 queries on each, where an exported model would repeat keys and values."""
    model = meta_model(transformers_config(WINDOWED), "Gemma3ForCausalLM", TransformersVariant())
    _, decode = language_stages(model)
    (graph,) = capture(model, [decode], name="windowed", variant={}).graphs
    (attention,) = (call for call in graph.calls if call.op == "aten::scaled_dot_product_attention")
    shapes = [[to_text(size) for size in attention.tensor(name).shape] for name in ("query", "key", "value")]
    assert shapes[0] == ["B", "2", "2", "16"]
    assert [shape[:2] for shape in shapes[1:]] == [["B", "2"], ["B", "2"]]


def test_transformers_is_left_as_it_was() -> None:
    """What is replaced is back afterwards, also after an error."""
    from transformers import masking_utils
    from transformers.integrations import sdpa_attention

    def rules() -> list[object]:
        return [
            masking_utils._ignore_causal_mask_sdpa,
            masking_utils._ignore_bidirectional_mask_sdpa,
            sdpa_attention.is_torchdynamo_compiling,
        ]

    def fail() -> None:
        assert not any(rule in before for rule in rules())
        raise KeyError

    before = rules()
    with pytest.raises(KeyError), masks_as_run():
        fail()
    assert rules() == before
