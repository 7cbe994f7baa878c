"""docs/any-model.md: each of its blocks does what the text around it says, in a directory of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modelmeter
from dsocr_graph.cli import main
from modelmeter.evaluate import evaluate_stage
from modelmeter.serialize import read_model

PAGE = Path(__file__).parent.parent / "docs" / "any-model.md"
MARKED = re.compile(r"^<!-- block: (\w+) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {name: text for name, _, text in MARKED.findall(PAGE.read_text(encoding="utf-8"))}


SAID = {
    "formulas": "the whole model (Rotated)",
    "figures": "- parameters: 4,160",  # 64 x 64 and a bias of 64
    "sweep": "sweep.csv: 12 points",
    "parallel": "# rotated, forward B=32, on 2 x NVIDIA H200",
    "compare": "| rotated:plain",
}
"""What each command on the registered model prints."""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, as a user would."""
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m dsocr_graph.analyze` in a folder."""
    return run(folder, "-m", "dsocr_graph.analyze", *arguments)


def command() -> list[str]:
    """Return the arguments of the page's command."""
    words = BLOCKS["command"].split()
    assert words[:3] == ["python", "-m", "dsocr_graph.analyze"]
    return words[3:]


def test_every_block_has_a_test() -> None:
    """Each block of code on the page is marked, so that one of the tests below runs it."""
    fences = re.findall(r"^```\w+$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(BLOCKS) == {"call", "factory", "command", "error", "rule", "stages", "package", "entry", "registered"}
    assert len(fences) == len(BLOCKS)


def test_a_module_is_analyzed_in_python(tmp_path: Path) -> None:
    """The block prints the FLOPs that its comment works out."""
    (tmp_path / "call.py").write_text(BLOCKS["call"], encoding="utf-8")
    done = run(tmp_path, "call.py")
    assert (done.stdout, done.stderr) == ("1179648\n", "")


def test_an_operator_without_a_rule_stops_and_a_rule_of_ten_lines_mends_it(tmp_path: Path) -> None:
    """The error is the page's, to the letter; with the rule added to the file, the same command writes the report."""
    file = tmp_path / "my_model.py"
    file.write_text(BLOCKS["factory"], encoding="utf-8")
    stopped = analyze(tmp_path, *command())
    assert stopped.returncode == 2
    assert stopped.stderr.endswith(BLOCKS["error"])
    assert not (tmp_path / "report").exists()

    assert len(BLOCKS["rule"].splitlines()) <= 10
    file.write_text(BLOCKS["factory"] + "\n\n" + BLOCKS["rule"], encoding="utf-8")
    done = analyze(tmp_path, *command())
    assert done.returncode == 0, done.stderr
    # One linear: 2 x 32 x 64 x 64 FLOPs.
    model = read_model(tmp_path / "report" / "model.json")
    assert evaluate_stage(model, "forward", B=32).total.cost.matmul_flops == 2 * 32 * 64 * 64
    assert "my::rotate" in {leaf.op for leaf in model.leaves}
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"report.md", "callgraph.graphml", "graph.onnx"}


def test_a_model_of_several_stages_has_one_tree_of_modules(tmp_path: Path) -> None:
    """Modules have the same ids in every stage; each stage runs its part."""
    (tmp_path / "two_stages.py").write_text(BLOCKS["stages"], encoding="utf-8")
    done = analyze(tmp_path, "--model", "two_stages:make", "--out", "pair")
    assert done.returncode == 0, done.stderr
    model = read_model(tmp_path / "pair" / "model.json")
    assert model.name == "pair"
    assert {(leaf.stage, leaf.module) for leaf in model.leaves} == {("encode", "encoder"), ("classify", "head")}


def test_a_third_party_package_registers_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An installed package with the page's two blocks and the report's model: the page's commands take it by name."""
    factory = BLOCKS["factory"] + "\n\n" + BLOCKS["rule"]
    (tmp_path / "my_model.py").write_text(factory, encoding="utf-8")
    assert analyze(tmp_path, *command()).returncode == 0
    package = tmp_path / "site" / "my_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text(BLOCKS["package"], encoding="utf-8")
    (tmp_path / "report" / "model.json").rename(package / "data" / "plain.json")
    group, value = re.findall(r'entry-points\."(.+?)"\]\n(\w+ = .+)', BLOCKS["entry"])[0]
    metadata = tmp_path / "site" / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{value.replace(chr(34), '')}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert "rotated" in modelmeter.available()
    assert modelmeter.load("rotated").root.class_name == "Rotated"

    monkeypatch.chdir(tmp_path)
    for line in BLOCKS["registered"].splitlines():
        program, *words = line.split()
        assert (program, main(words)) == ("dsocr-graph", 0)
        assert SAID[words[0]] in capsys.readouterr().out
    # A point each of B = 1, 8, 32, 64, 96, 128 on two devices, below the header.
    assert len(Path("sweep.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 * 6

    for words, said in (
        (["plan", "--fits"], "'rotated' is registered as a compiled model alone"),
        (["compare", "rotated"], "has the stages forward (B); compare at sizes of these, as --points"),
        (["parallel"], "give sizes of its stages, which are forward (B), as --points"),
        (["sweep", "--out", "pages.csv"], "and rotated reads none; sweep one of its stages, which are forward (B),"),
    ):
        assert main([*words, *(["rotated"] if "compare" in words else ["--model", "rotated"])]) == 2
        assert said in capsys.readouterr().err
