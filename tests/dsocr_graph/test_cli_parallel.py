"""The subcommand `parallel`: tables on screen, figures in a file, no torch."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsocr_graph import cli_parallel
from modelmeter.parallel import LayoutError


def run(*arguments: str) -> int:
    """Run the subcommand."""
    parser = argparse.ArgumentParser()
    cli_parallel.add_parser(parser.add_subparsers())
    options = parser.parse_args(["parallel", *arguments])
    status: int = options.run(options)
    return status


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
