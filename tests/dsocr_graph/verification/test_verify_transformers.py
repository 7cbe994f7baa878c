"""Verification of transformers models at toy size: every family runs as it was captured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dsocr_graph import cli_verify
from dsocr_graph.errors import ModelInputError
from dsocr_graph.models.from_transformers.image_places import with_image_tokens
from dsocr_graph.models.from_transformers.value_checks import values_unchecked
from dsocr_graph.verification.records import Reason

GROUPED = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}
LATENT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 32,
    "vocab_size": 128,
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
WINDOWS = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
IMAGE_AND_SPEECH: Mapping[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "tiny_image_and_speech_models.json").read_text(encoding="utf-8")
)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "experts": {
        "model_type": "qwen3_moe",
        **GROUPED,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "latent": {"model_type": "deepseek_v3", **LATENT},
    "windows": {"model_type": "gemma3_text", **GROUPED, **WINDOWS},
    "text encoder": {"model_type": "bert", **GROUPED},
    "text to text": {"model_type": "t5", **T5},
    "own mask": {
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "vocab_size": 64,
        "max_position_embeddings": 64,
    },
    "full windows": {"model_type": "mistral", **GROUPED, "sliding_window": 16},
    **IMAGE_AND_SPEECH,
}
CASES = [
    # One stage of each family; without points every stage runs at the sizes of its example.
    ("experts", ["decode:B=2,T=6"]),
    ("siglip_vision_model", ["encode:B=1"]),
    ("whisper", ["prefill:B=2,S=3"]),
    ("own mask", []),
    ("full windows", ["decode"]),
    *(
        pytest.param(model, [], marks=pytest.mark.slow)
        for model in (
            "latent",
            "windows",
            "text encoder",
            "text to text",
            "whisper",
            "got_ocr2",
            "qwen3_vl",
            "deepseek_ocr2",
        )
    ),
    # One document: what is put by index has a leading axis of size 1, which a run drops.
    pytest.param("qwen3_vl", ["prefill:B=1,S=9,N=4"], marks=pytest.mark.slow),
]


def verify(folder: Path, model: str, *points: str) -> Mapping[str, Any]:
    """Run the subcommand on a configuration file, expect status 0, and return the JSON file."""
    (folder / f"{model}.json").write_text(json.dumps(SETTINGS[model]), encoding="utf-8")
    parser = argparse.ArgumentParser()
    cli_verify.add_parser(parser.add_subparsers())
    arguments = ["verify", "--model", str(folder / f"{model}.json"), "--out", str(folder)]
    for point in points:
        arguments += ["--points", point]
    options = parser.parse_args(arguments)
    assert options.run(options) == 0
    return json.loads((folder / "verification.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("model", "points"), CASES)
def test_a_model_of_each_family_runs_as_it_was_captured(tmp_path: Path, model: str, points: list[str]) -> None:
    """Sizes, results, FLOPs and parameters agree exactly; all else that differs has a reason."""
    document = verify(tmp_path, model, *points)
    assert document["unexplained"] == 0
    assert document["parameters"]["differences"] == []
    for stage in document["stages"]:
        assert stage["flops"] > 0
        for check in stage["checks"]:
            assert check["compared"] > 0
        exact = {check["subject"] for check in stage["checks"] if not check["differences"]}
        assert {"symbolic sizes", "results", "FLOPs"} <= exact


def test_a_check_of_image_tokens_is_told_apart(tmp_path: Path) -> None:
    """GOT-OCR2 compares its image tokens with its features: the result is read back, and the number for a message."""
    (stage,) = verify(tmp_path, "got_ocr2", "prefill:B=2,S=9,N=4")["stages"]
    (operators,) = (check for check in stage["checks"] if check["subject"] == "operators")
    found = [
        (each["what"], each["run"], each["reason"]) for each in operators["differences"] if not each["graph"] > "0"
    ]
    assert [each for each in found if "detach" in each[0] or "scalar_dense" in each[0]] == [
        ("aten::_local_scalar_dense, for a message", "1", Reason.MESSAGE),
        ("aten::detach, for a message", "1", Reason.MESSAGE),
        ("aten::_local_scalar_dense", "1", Reason.READ_BACK),
    ]


def test_images_that_do_not_fit_the_prompt_are_refused() -> None:
    """Four image tokens in a prompt of three: the message names both sizes."""
    with pytest.raises(ModelInputError, match="S=3 tokens has no room for N=4 of images"):
        with_image_tokens({}, "prefill", [torch.tensor([[5, 6, 7]]), torch.zeros(1, 4, 8)])


def test_a_prompt_has_as_many_image_tokens_as_features() -> None:
    """Three at the beginning; one that was drawn as text is none; other stages stay as they are."""
    settings = {"model_type": "got_ocr2", "image_token_id": 96}
    ids, features = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 96]]), torch.zeros(2, 3, 8)
    made, same = with_image_tokens(settings, "prefill", [ids, features])
    assert made.tolist() == [[96, 96, 96, 8], [96, 96, 96, 95]]
    assert same is features
    assert with_image_tokens(settings, "decode", [ids, features])[0] is ids


def test_checks_of_values_are_off_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails passes inside, and fails again afterwards, whatever the switch was before."""
    from transformers.utils.import_utils import torch_compilable_check

    for before in ("0", None):
        if before is None:
            monkeypatch.delenv("TRANSFORMERS_DISABLE_TORCH_CHECK")
        else:
            monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", before)
        with values_unchecked():
            torch_compilable_check(torch.tensor(False), "no message")
        with pytest.raises(ValueError, match="a message"):
            torch_compilable_check(torch.tensor(False), "a message")
