"""The subcommand `figures`: what it prints, and what it says to an impossible question."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from dsocr_graph.cli_figures import add_parser
from dsocr_graph.errors import DsocrGraphError
from modelmeter.errors import ModelMeterError


def run(*words: str) -> int:
    """Run the subcommand in this process."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["figures", *words])
    return options.run(options)


def test_the_figures_are_printed_with_their_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    """KV per token, active parameters, a row for each batch, and the sentence behind each routing."""
    assert run() == 0
    printed = capsys.readouterr().out
    assert "KV cache per token: 61,440 bytes" in printed
    assert "parameters that multiply a token: 574,095,360" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("| ")][2:] == [
        "1", "2", "4", "8", "16", "32", "64",
    ]  # fmt: skip
    assert "- top-k: every token picks the same k experts: the lower bound" in printed
    assert "What is changed" not in printed


def test_a_what_if_is_printed_with_what_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are those of the changed model, and each change states its assumptions."""
    assert run("--kv-dtype", "int8", "--routing", "zipf:1.5") == 0
    printed = capsys.readouterr().out
    assert "KV cache per token: 30,720 bytes" in printed
    assert "kv_dtype: the KV cache is kept and read in int8" in printed
    assert "  assumed: no scales are counted" in printed
    assert "zipf:1.5" in printed.splitlines()[7]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kv-dtype", "int7"), "unknown kv_dtype 'int7'"),
        (("--routing", "zipf:steep"), "finite number from 0"),
        (("--routing", "histogram:none.json"), "cannot read the histogram none.json"),
        (("--model", "no-such"), "unknown model 'no-such'"),
        (("--logits", "none"), "Known: all, last"),
    ],
)
def test_an_impossible_question_names_the_limit(words: tuple[str, ...], message: str) -> None:
    """Each mistake is one error with the choices in it."""
    with pytest.raises((DsocrGraphError, ModelMeterError), match=message):
        run(*words)


def test_without_experts_there_is_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    """A dense step reads 15.1 GB at every batch and under every routing: 7,568,097,280 parameters of 2 bytes."""
    assert run("--model", "qwen3-8b") == 0
    printed = capsys.readouterr().out
    assert "| batch |   bytes |" in printed
    assert "| 64    | 15.1 GB |" in printed
    assert "experts in each layer" not in printed
    assert "zipf" not in printed


def test_what_exists_is_printed_of_an_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines of parameters, then why there is no more."""
    assert run("--model", "siglip-so400m-patch14-384") == 0
    parameters, size, _, reason = capsys.readouterr().out.splitlines()
    assert (parameters, size) == ("- parameters: 428,225,600", "- bytes of all parameters: 856,451,200")
    assert "its stages are encode (B)" in reason


def test_what_a_document_keeps_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of its own for the cross-attention of Whisper, and none where nothing is kept."""
    assert run("--model", "whisper-large-v3") == 0
    assert "- KV cache per document, beside its tokens: 245,760,000 bytes" in capsys.readouterr().out
    assert run() == 0
    assert "per document" not in capsys.readouterr().out.split("Bytes of parameters")[0]


T5 = {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 128}


def test_a_configuration_is_compiled_and_its_encoder_leaves_keys_for_each_token_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two layers keep two times 64 elements of two bytes for a token written, and as much for a token read."""
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(T5), encoding="utf-8")
    assert run("--model", str(tmp_path / "config.json")) == 0
    printed = capsys.readouterr().out
    assert f"- KV cache per token: {2 * 2 * 64 * 2} bytes" in printed
    assert f"- KV cache per document, for each of S: {2 * 2 * 64 * 2} bytes" in printed
    assert "KV cache per document, beside its tokens" not in printed
    assert "- every other size of a step is 1: S, " in printed


MISTRAL = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "sliding_window": 48,
}


def test_a_cache_of_windows_stops_growing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two layers keep 2 x 2 heads of 16 elements of two bytes for a token: within a window of 48, which keeps 47."""
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL), encoding="utf-8")
    assert run("--model", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert f"- KV cache per token: {2 * 2 * 2 * 16 * 2} bytes" in printed
    assert "- KV cache per token from 47 cached tokens on, past a window: 0 bytes" in printed
