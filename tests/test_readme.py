"""README.md and the manual scripts: every command, block and link does what the page says."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shlex
import tomllib
from importlib import resources
from pathlib import Path
from types import ModuleType

import pypdfium2
import pytest
import torch
from PIL import Image

from dsocr_graph.analyze import main as analyze
from dsocr_graph.model_cache import CompiledModel, ModelCache, cache_key
from dsocr_graph.models.deepseek_ocr import (
    DeepseekOCRConfig,
    DeepseekOCRForCausalLM,
    initialize,
    save_checkpoint,
)
from dsocr_graph.models.registry import Variant, model_named
from modelmeter.models.deepseek_ocr import MODEL

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "extern" / "modelmeter" / "README.md"]
README = PAGES[0].read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip()
    for language, text in BLOCKS
    if language == "sh"
    for line in text.splitlines()
    if "dsocr_graph.analyze" in line
]
PROGRAMS = [text for language, text in BLOCKS if language == "python" and ">>>" not in text]
(PROFILE,) = [text for language, text in BLOCKS if language == "toml"]
ARTEFACTS = {"model.json", "report.json", "report.md", "modules.csv", "callgraph.graphml", "graph.onnx"}


@pytest.fixture(scope="module")
def shipped_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that holds the shipped variants, so that nothing is captured."""
    directory = tmp_path_factory.mktemp("cache")
    named = model_named("deepseek-ocr")
    for variant, file in MODEL.variants.items():
        facts = MODEL.load(variant).variant
        key = cache_key(named, Variant(**{**facts, "base_size": int(facts["base_size"])}))
        data = gzip.decompress((resources.files(MODEL.package) / "data" / file).read_bytes())
        ModelCache(directory=directory).store(key, CompiledModel(model_json=data, onnx=b"no graph"))
    return directory


@pytest.fixture
def desk(tmp_path: Path, shipped_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory of a user who has the files that the README names."""
    Image.new("RGB", (640, 900), "white").save(tmp_path / "page.png")
    document = pypdfium2.PdfDocument.new()
    document.new_page(612, 792)
    document.save(tmp_path / "paper.pdf")
    document.close()
    (tmp_path / "mine.toml").write_text(PROFILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSOCR_GRAPH_CACHE", str(shipped_cache))
    return tmp_path


def script(name: str) -> ModuleType:
    """Return a manual script as a module."""
    path = ROOT / "tests" / "manual" / "deepseek_ocr" / f"manual_deepseek_ocr_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_run(command: str, desk: Path) -> None:
    """Each command of the README writes the six artefacts, and its report names the command itself."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "dsocr_graph.analyze"]
    assert analyze(words[3:]) == 0
    out = desk / (words[words.index("--out") + 1] if "--out" in words else "graphs/deepseek-ocr-custom")
    assert {path.name for path in out.iterdir()} == ARTEFACTS
    report = (out / "report.md").read_text(encoding="utf-8")
    assert all(word in report for word in words[3:] if word.startswith("--") and word != "--out")


def test_the_library_block_gives_a_report(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The block prints the totals and one line per stage that ran; a page of 640 x 900 is cropped."""
    (program,) = [text for text in PROGRAMS if "analyze_model" in text]
    exec(compile(program, "README.md", "exec"), {})  # noqa: S102 - our own page
    total, *stages = capsys.readouterr().out.splitlines()
    flops, moved, seconds = map(float, total.split())
    assert {line.split()[0] for line in stages} == {"vision_global", "vision_local", "prefill", "decode"}
    assert sum(float(line.split()[1]) for line in stages) == flops
    assert seconds >= moved / 4.8e12  # the H200's memory moves 4.8 TB/s


def test_the_checkpoint_block_reads_a_page(desk: Path) -> None:
    """The block reads a checkpoint directory, here of the tiny configuration, and writes four tokens at most."""
    (program,) = [text for text in PROGRAMS if "load_model" in text]
    model = initialize(DeepseekOCRForCausalLM(DeepseekOCRConfig.tiny())).to(torch.bfloat16)
    save_checkpoint(model, desk / "checkpoint")
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)  # noqa: S102 - our own page
    assert names["image_tokens"] == 73  # 512 pixels: 8 rows of 8 and a newline each, then a separator
    tokens = names["tokens"]
    assert isinstance(tokens, list)
    assert 1 <= len(tokens) <= 4


def test_every_program_of_the_readme_is_run() -> None:
    """There are six commands and two programs without prompts; the tests above run them all."""
    assert len(COMMANDS) == 6
    assert len(PROGRAMS) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link of a page is a file or directory of the project."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)\)", prose)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_decision_is_in_the_index() -> None:
    """The index lists each record once, by number, under the title that the record has."""
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^- \[(.+)\]\((\d{4}-[\w-]+\.md)\)$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    assert [name for _, name in listed] == sorted(path.name for path in folder.glob("[0-9]*.md"))
    for number, (title, name) in enumerate(listed, start=1):
        assert (folder / name).read_text(encoding="utf-8").startswith(f"# {number}. {title}\n")


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_targets_and_tasks_exist(page: Path) -> None:
    """A `make` target or pixi task that a page names is there, and a pixi task runs what the target runs."""
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    tasks = tomllib.loads((ROOT / "pixi.toml").read_text(encoding="utf-8"))["tasks"]
    named = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
    assert named
    assert named <= targets
    assert set(re.findall(r"pixi run (\w+)", text)) <= tasks.keys() <= targets


def test_files_in_the_table_are_the_artefacts() -> None:
    """The README's table names each artefact once, those that only a prediction has included."""
    predicted = {"trace.json", "comparison.csv"}
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", README, re.MULTILINE)) == sorted(ARTEFACTS | predicted)


def test_shipped_variants_are_named() -> None:
    """The README names every shipped variant."""
    assert [name for name in MODEL.variants if f"`{name}`" not in README] == []


@pytest.mark.usefixtures("desk")
def test_the_performance_report_compares_modes(capsys: pytest.CaptureFixture[str]) -> None:
    """The script prints a row per mode and batch; a mode that is not there is an error with the known ones."""
    main = script("performance_report").main
    assert main(["--modes", "Tiny", "Gundam", "--batches", "1", "8"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("mode")
    assert [row.split()[:3] for row in rows] == [
        ["Tiny", "1", "5"],
        ["Tiny", "8", "40"],
        ["Gundam", "1", "5"],
        ["Gundam", "8", "40"],
    ]
    assert main(["--modes", "Huge"]) == 2
    assert "Gundam" in capsys.readouterr().err


def test_an_exported_stage_is_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The script finds the exported decode step of the tiny model equal to the model at other sizes."""
    assert script("model_export").main(["--stages", "decode"]) == 0
    assert "every exported stage gives what the model gives" in capsys.readouterr().out


def test_a_stage_that_differs_is_seen() -> None:
    """The script's comparison is relative to the largest value, and infinite for another shape."""
    difference = script("model_export").difference
    assert difference(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 4.0])) == 0.25  # |2 - 1| / 4
    assert difference(torch.zeros(2), torch.zeros(3)) == float("inf")


def test_results_are_reused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's five workflows run on the kept artefacts, and the totals from json alone are the report's."""
    workflows = script("reuse_workflows")
    monkeypatch.setattr(workflows.modelmeter, "load", lambda name: MODEL.load())
    assert workflows.main([]) == 0
    out = capsys.readouterr().out
    assert [line[0] for line in out.splitlines() if not line.startswith(" ")] == ["1", "2", "3", "4", "5"]
    assert "DIFFERS" not in out


def test_totals_that_differ_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script tells when a report's totals are not those of its model."""
    kept = ROOT / "graphs" / "deepseek-ocr"
    report = json.loads((kept / "report.json").read_text(encoding="utf-8"))
    changed = tmp_path / "report.json"
    report["total"]["total"]["matmul_flops"] *= 2
    changed.write_text(json.dumps(report), encoding="utf-8")
    assert not script("reuse_workflows").recomputed_totals(kept / "model.json", changed)
    assert "DIFFERS" in capsys.readouterr().out
