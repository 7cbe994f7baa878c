"""The artefacts of the standard run in graphs/, and the README's excerpt of them, against ones written anew."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import pytest

from dsocr_graph.emit.csv_table import to_csv
from dsocr_graph.emit.graphml import to_graphml
from dsocr_graph.emit.markdown import to_markdown
from dsocr_graph.pipeline import DEFAULT_DEVICE
from dsocr_graph.workloads import STANDARD, bind_profile, load_profile
from modelmeter import load_device
from modelmeter.evaluate import evaluate
from modelmeter.models.deepseek_ocr import MODEL
from modelmeter.serialize import read_model

COMMAND = "python -m dsocr_graph.analyze"
BEGIN, END = "<!-- excerpt of graphs/deepseek-ocr/report.md -->\n", "<!-- end of excerpt -->"
REMADE = ("report.json", "report.md", "modules.csv", "callgraph.graphml")


@pytest.fixture(scope="module")
def kept(repo_root: Path) -> Path:
    """Return the directory of the kept artefacts."""
    return repo_root / "graphs" / "deepseek-ocr"


@pytest.fixture(scope="module")
def remade(kept: Path) -> Mapping[str, str]:
    """Return the artefacts that can be made again without capturing, from the kept model."""
    model = read_model(kept / "model.json")
    report = evaluate(model, bind_profile(load_profile(STANDARD)), device=load_device(DEFAULT_DEVICE))
    return {
        "report.json": report.to_json(),
        "report.md": to_markdown(model, report, COMMAND),
        "modules.csv": to_csv(report),
        "callgraph.graphml": to_graphml(model, report),
    }


@pytest.mark.parametrize("name", REMADE)
def test_an_artefact_is_as_kept(name: str, kept: Path, remade: Mapping[str, str], update_golden: bool) -> None:
    """An artefact made again is the kept one, byte for byte; the first line that moved is shown."""
    path = kept / name
    if update_golden:
        path.write_bytes(remade[name].encode())
    before = path.read_text(encoding="utf-8").splitlines()
    now = remade[name].splitlines()
    moved = next((row for row, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), None)
    if moved is None and len(before) != len(now):
        moved = min(len(before), len(now))
    assert moved is None, "\n".join(
        (
            f"{name} differs from line {moved + 1} on:",
            f"  kept: {before[moved][:300] if moved < len(before) else '(end of file)'}",
            f"  now:  {now[moved][:300] if moved < len(now) else '(end of file)'}",
            "If it was meant to, run `make golden ARGS=--update-golden` and say why in CHANGELOG.md",
        )
    )


def test_the_shipped_model_is_the_captured_one(kept: Path) -> None:
    """`modelmeter.load` reads the very model that the standard run captured."""
    data = resources.files(MODEL.package) / "data" / MODEL.variants[MODEL.default]
    assert gzip.decompress(data.read_bytes()) == (kept / "model.json").read_bytes()


def excerpt_of(report: str) -> str:
    """Return the headline of a report and its table of stages."""
    blocks = report.split("\n\n")
    at = blocks.index("### By stage")
    table = next(block for block in blocks[at:] if block.startswith("|"))
    return "\n\n".join((f"> {blocks[1]}", table))


def test_the_readme_shows_the_report(
    repo_root: Path, kept: Path, remade: Mapping[str, str], update_golden: bool
) -> None:
    """The README's excerpt is the kept report's headline and table of stages, line by line."""
    readme = repo_root / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    shown, _, after = rest.partition(END)
    now = excerpt_of(remade["report.md"] if update_golden else (kept / "report.md").read_text(encoding="utf-8"))
    if update_golden:
        readme.write_text(f"{before}{BEGIN}\n{now}\n\n{END}{after}", encoding="utf-8")
        shown = now
    assert shown.strip().splitlines() == now.splitlines(), (
        "README.md shows an older report; run `make golden ARGS=--update-golden`"
    )


def test_an_excerpt_is_the_headline_and_the_first_table_below_by_stage() -> None:
    """Other paragraphs and tables are left out."""
    report = "# title\n\nhead\n\n| a |\n\n### By stage\n\n- a list\n\n| b |\n| c |\n\n| d |\n"
    assert excerpt_of(report) == "> head\n\n| b |\n| c |"
