"""The README's excerpt of a report against the report itself."""

from __future__ import annotations

from pathlib import Path

BEGIN = "<!-- excerpt of graphs/deepseek-ocr/report.md -->\n"
END = "<!-- end of excerpt -->"


def excerpt_of(report: str) -> str:
    """Return the headline of a report and its table of stages."""
    blocks = report.split("\n\n")
    at = blocks.index("### By stage")
    table = next(block for block in blocks[at:] if block.startswith("|"))
    return "\n\n".join((f"> {blocks[1]}", table))


def test_the_readme_shows_the_report(repo_root: Path, update_golden: bool) -> None:
    """The excerpt is the kept report's headline and table of stages, line by line."""
    readme = repo_root / "README.md"
    report = (repo_root / "graphs" / "deepseek-ocr" / "report.md").read_text(encoding="utf-8")
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    shown, _, after = rest.partition(END)
    now = excerpt_of(report)
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
