"""The subcommand `parallel`: tables on screen, figures in a file, any model, pages and what-ifs, no torch."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsocr_graph import cli_parallel
from dsocr_graph.errors import OptionError, PlanError
from modelmeter.parallel import LayoutError


def run(*arguments: str) -> int:
    """Run the subcommand."""
    parser = argparse.ArgumentParser()
    cli_parallel.add_parser(parser.add_subparsers())
    options = parser.parse_args(["parallel", *arguments])
    status: int = options.run(options)
    return status


def figures(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run the subcommand and return what it writes."""
    file = tmp_path / "parallel.json"
    assert run(*arguments, "--json", str(file)) == 0
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def test_a_grid_of_sixteen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """2 tensor ranks x 4 replicas x 2 pipeline stages, experts over 8: tables and the same figures in a file."""
    file = tmp_path / "parallel.json"
    degrees = ["--tensor", "2", "--expert", "8", "--pipeline", "2", "--data", "4", "--vision-data", "4"]
    assert run(*degrees, "--batch", "8", "--new-tokens", "3", "--json", str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# deepseek-ocr, dsocr-standard-v1, on 16 x NVIDIA H200 SXM 141GB"
    assert any(line.startswith("| decoder, layers 6 to 11 |       8 |") for line in lines)
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["devices"] == 16
    assert [part["devices"] for part in document["parts"]] == [4, 8, 8]
    assert document["seconds"] == pytest.approx(
        sum(stage["compute_seconds"] + stage["communication_seconds"] for stage in document["stages"])
    )


def test_latencies_are_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    """Given ones replace NCCL's, and are said."""
    assert run("--tensor", "2", "--new-tokens", "2", "--call-latency", "1e-5", "--step-latency", "2e-6") == 0
    assert "A collective takes 10 us, 2 us for each step of a ring" in capsys.readouterr().out


def test_a_wrong_degree_is_one_message() -> None:
    """The error is of modelmeter, which the command line prints and ends with status 2."""
    with pytest.raises(LayoutError, match="degrees that divide all of deepseek-ocr are 1, 2"):
        run("--tensor", "5")


STEP = ("--tensor", "2", "--points", "decode:B=8,T=913")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--weight-dtype", "int4", "--group-size", "64"), "one bf16 scale for each 64 elements"),
        (("--weight-dtype", "fp8", "--activation-dtype", "fp8"), "multiply in fp8"),
        (("--kv-dtype", "int8"), "the KV cache is kept and read in int8"),
        (("--kv-growth", "preallocated"), "it neither copies the old ones nor holds both"),
        (("--routing", "most"), "routing:"),
    ],
)
def test_a_what_if_changes_the_figures_and_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: tuple[str, ...], said: str
) -> None:
    """A step of 8 documents on two ranks moves other bytes, or computes in other types."""
    captured, changed = figures(tmp_path, *STEP), figures(tmp_path, *STEP, *option)
    assert captured["what_ifs"] == []
    assert said in "\n".join(changed["what_ifs"])
    assert f"- {changed['what_ifs'][0]}" in capsys.readouterr().out.split("## What-ifs", 1)[1]
    assert changed["all_devices"] != captured["all_devices"]


def test_the_logits_of_the_last_position_are_gathered_alone(tmp_path: Path) -> None:
    """A prefill of 283 tokens gathers 283 rows of logits, or one."""
    point = ("--tensor", "2", "--points", "prefill:B=1,S=283,N=273")
    logits = [
        next(each["bytes"] for each in figures(tmp_path, *point, *option)["collectives"] if each["what"] == "logits")
        for option in ((), ("--logits", "last"))
    ]
    assert logits == [283 * 129280 * 2, 129280 * 2]


def test_memory_under_some_what_ifs_is_a_lower_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """Where another moment may be the peak, the text does not claim the most."""
    run(*STEP)
    assert "A device holds at most" in capsys.readouterr().out
    run(*STEP, "--kv-growth", "preallocated")
    assert "A device holds at least" in capsys.readouterr().out


def test_pages_are_those_of_analyze(tmp_path: Path) -> None:
    """One page of 640 x 640 in Base mode: 273 image tokens, 4 of the prompt, 2 new ones, 2 documents together.

    A tensor rank sums 2 x 277 x 1,280 bf16 elements after the attention of each of 12 layers.
    """
    page = ("--page", "640x640", "--mode", "Base", "--prompt-tokens", "4", "--new-tokens", "2", "--batch", "2")
    document = figures(tmp_path, "--tensor", "2", *page)
    assert document["workload"] == "640x640"
    (summed,) = [
        each["bytes"]
        for each in document["collectives"]
        if (each["stage"], each["what"]) == ("prefill", "attention output")
    ]
    assert summed == 12 * 2 * 277 * 1280 * 2


def test_lengths_of_a_distribution_are_said(tmp_path: Path) -> None:
    """Pages stand for equally likely answers, and the file says which."""
    document = figures(tmp_path, "--page", "640x640", "--mode", "Tiny", "--new-tokens", "2,4")
    assert document["what_ifs"][0].startswith("new_tokens: ")


def test_sizes_of_another_model_are_given_by_points(tmp_path: Path) -> None:
    """Qwen3-8B needs no page: a step of 8 documents sums 8 x 4,096 bf16 elements after attention in 36 layers."""
    document = figures(tmp_path, "--model", "qwen3-8b", "--tensor", "4", "--points", "decode:B=8,T=4096")
    assert document["devices"] == 4
    (summed,) = [each for each in document["collectives"] if each["what"] == "attention output"]
    assert (summed["calls"], summed["bytes"]) == (36, 36 * 8 * 4096 * 2)


FACTORY = """
import torch
from torch import nn


def make():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8))
        return model, torch.empty(4, 64), {"input": {0: "B"}}
"""


def test_a_factory_is_shared_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without keys and values encodes: 2 of the example's 4 rows each, 2 x 2 x (64 x 128 + 128 x 8) FLOPs."""
    (tmp_path / "shared_rows.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    document = figures(tmp_path, "--model", "shared_rows:make", "--vision-data", "2")
    (part,) = document["parts"]
    assert (part["devices"], part["cost"]["matmul_flops"]) == (2, 2 * 2 * (64 * 128 + 128 * 8))
    with pytest.raises(OptionError, match=r"Sequential comes as it is, so that --dtype, --mode would say nothing"):
        run("--model", "shared_rows:make", "--mode", "Tiny", "--dtype", "fp32")


@pytest.mark.parametrize("option", [("--mode", "Base"), ("--crops", "2x3")])
def test_a_model_that_cuts_no_pages_takes_no_mode(option: tuple[str, str]) -> None:
    """Modes and crops are DeepSeek-OCR's."""
    with pytest.raises(OptionError, match=f"{option[0]} would say nothing of qwen3-8b"):
        run("--model", "qwen3-8b", *option)


@pytest.mark.parametrize("option", [("--page", "640x640"), ("--batch", "2"), ("--new-tokens", "9")])
def test_pages_beside_points_are_refused(option: tuple[str, str]) -> None:
    """Nothing is silent: points give the sizes, so a page's would be lost."""
    with pytest.raises(OptionError, match=rf"--points gives the sizes themselves, so that {option[0]} would say"):
        run(*STEP, *option)


def test_a_point_of_another_stage_is_refused() -> None:
    """The message lists the stages."""
    with pytest.raises(PlanError, match=r"qwen3-8b has no stage 'vision'; its stages are prefill, decode"):
        run("--model", "qwen3-8b", "--points", "vision:B=1")


def test_no_torch_is_loaded() -> None:
    """The subcommand reads the shipped model and starts in a moment."""
    code = (
        "import argparse, sys\n"
        "from dsocr_graph import cli_parallel\n"
        "parser = argparse.ArgumentParser()\n"
        "cli_parallel.add_parser(parser.add_subparsers())\n"
        "options = parser.parse_args(['parallel', '--tensor', '2', '--new-tokens', '2'])\n"
        "options.run(options)\n"
        "print(sorted({'torch', 'transformers', 'networkx'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
