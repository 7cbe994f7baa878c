"""Predicted times in report.md and on the console: labels, intervals, serving figures and sources, by hand."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
from attrs import evolve

from dsocr_graph.emit.console import to_console
from dsocr_graph.emit.markdown import to_markdown
from dsocr_graph.emit.markdown_times import time_sections
from modelmeter.costs import Time
from modelmeter.devices import load_device
from modelmeter.evaluate import evaluate
from modelmeter.predict import LABEL
from modelmeter.predict.kernel_time import Method, SourceShare
from modelmeter.reports import Report, report_from_json


@pytest.fixture
def report(toy: ModuleType) -> Report:
    """Return the toy pages with predicted times."""
    return evaluate(toy.scheduled_toy_model(), toy.toy_workload(), time_model=toy.ToyClock())


@pytest.fixture
def text(toy: ModuleType, report: Report) -> str:
    """Return its section on times."""
    statement = toy.ToyClock().statement(toy.scheduled_toy_model(), toy.toy_workload())
    return "\n\n".join(time_sections(report, statement))


def _rows(text: str, title: str) -> list[list[str]]:
    """Return the first table below a title."""
    assert f"# {title}\n" in text, title
    section = re.split(r"\n#+ ", text.split(f"# {title}\n", 1)[1])[0]
    block = next(block for block in section.split("\n\n") if block.lstrip().startswith("|"))
    lines = [line for line in block.strip().splitlines() if not line.startswith("| :")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_stages_have_an_interval_and_what_bounds_them(text: str) -> None:
    """Of a prefill of 14.5 s, matrix units bound 2 + 3 s, vector units 4 s, memory 4 s and the host 1.5 s."""
    rows = _rows(text, "Time by stage")
    assert rows[0][:5] == ["stage", "executions", "time", "p10 to p90", "%"]
    assert rows[0][5:] == [f"bound by {name}" for name in ("matrix units", "vector units", "memory", "host")]
    assert rows[1] == [
        "prefill",
        "1",
        "14.5 s",
        "9.30 s to 19.7 s",
        "37.7 %",
        "34.5 %",
        "27.6 %",
        "27.6 %",
        "10.3 %",
    ]
    assert rows[3][:5] == ["**all**", "", "38.5 s", "23.7 s to 53.3 s", "100.0 %"]
    assert "| decode  | 8.00 s | 4.80 s to 11.2 s |      memory 100% |" in text  # of one execution


def test_serving_figures_per_page(text: str) -> None:
    """38.5 s for two documents: 19.25 s a page; 2/38.5 = 0.0519 pages/s and 8/38.5 = 0.208 tokens/s."""
    rows = _rows(text, "Serving")
    assert rows[0] == ["page", "documents", "TTFT", "TPOT", "s/page", "pages/s", "tokens/s"]
    figures = [cell.partition(" (")[0] for cell in rows[1]]
    assert figures == ["page", "2", "14.5 s", "8.00 s", "19.2 s", "0.0519", "0.208"]
    assert rows[1][2] == "14.5 s (9.30 s to 19.7 s)"
    assert rows[1][5] == "0.0519 (0.0375 to 0.0844)"  # 2/53.3 and 2/23.7
    assert rows[2][0] == "**all**"


def test_sources_say_how_each_family_was_found(text: str) -> None:
    """Of 40 s of kernels 30 were measured as they are, 8 lie between and 2 beyond measured sizes."""
    sources = _rows(text, "Where the prediction comes from")
    assert ["date", "2026-01-02"] in sources
    assert ["device", "toy machine"] in sources
    statement = text.split("how it was found:\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in statement.splitlines()[:5]]
    assert rows[0] == ["family", "calls", "time", "%", "exact", "bracket", "hold"]
    assert rows[2] == ["gemm", "9", "30.0 s", "75.0 %", "75.0 %", "-", "-"]
    assert rows[3] == ["memory", "6", "10.0 s", "25.0 %", "-", "20.0 %", "5.0 %"]
    assert rows[4] == ["**all**", "15", "40.0 s", "100.0 %", "75.0 %", "20.0 %", "5.0 %"]
    assert "- **hold**: beyond the measured sizes" in statement
    assert "blend" not in statement


def test_what_rests_on_rates_alone_is_said(report: Report) -> None:
    """A quarter of the kernels' time has no measurement behind it."""
    measured = SourceShare(family="gemm", method=Method.EXACT, seconds=3.0, calls=1)
    guessed = SourceShare(family="memory", method=Method.PHYSICAL, seconds=1.0, calls=1)
    assert [*time_sections(report, [measured, guessed])][-1].startswith("**25.0 % of the kernels' time rests on rates")
    assert not any("rates alone" in block for block in time_sections(report, [measured]))


def test_a_prediction_is_called_one(toy: ModuleType, report: Report) -> None:
    """Headline, notes and console say predicted, with the interval, and nothing of a roofline."""
    for text in (to_markdown(toy.scheduled_toy_model(), report), to_console(report)):
        assert "38.5 s" in text
        assert "23.7 s to 53.3 s from p10 to p90" in text
        assert "predicted" in text
        for word in ("no prediction", "not calibrated", "roofline", "datasheet"):
            assert word not in text


def test_a_bound_is_not_called_a_prediction(toy: ModuleType) -> None:
    """A roofline keeps its label on the console and in the report, has no section on times and no interval."""
    report = evaluate(toy.toy_model(), toy.toy_workload(), device=load_device("h200"))
    assert [*time_sections(report)] == []
    assert [*time_sections(evaluate(toy.toy_model(), toy.toy_workload()))] == []
    for text in (to_markdown(toy.toy_model(), report), to_console(report)):
        assert LABEL in text
        assert "no prediction" in text
        assert "p10" not in text
        assert "predicted" not in text


def test_tables_of_the_report_have_intervals(toy: ModuleType, report: Report) -> None:
    """Components, categories and modules are given with theirs; what waits for the host says so."""
    text = to_markdown(toy.scheduled_toy_model(), report)
    for title in ("By stage", "By component", "By category"):
        assert _rows(text, title)[0][-4:] == ["time", "%", "p10 to p90", "bound by"]
    assert next(row for row in _rows(text, "By category") if row[0] == "host")[-4:] == [
        "1.50 s",
        "3.9 %",
        "1.50 s to 1.50 s",
        "host 100%",
    ]


def test_given_sections_follow_the_workload(toy: ModuleType, report: Report) -> None:
    """They stand before the tables of where the work goes."""
    text = to_markdown(toy.scheduled_toy_model(), report, sections=["## Predicted time", "soon"])
    assert text.index("## Workload") < text.index("## Predicted time\n\nsoon\n\n## Where the work goes")


def test_the_console_tells_time_by_part(report: Report) -> None:
    """Serving figures, and a column of times, the longest first."""
    lines = to_console(report).splitlines()
    assert "  serving    TTFT 14.5 s, TPOT 8.00 s, 19.2 s/page, 0.0519 pages/s, 0.208 tokens/s" in lines
    stages = lines[lines.index(next(line for line in lines if line.startswith("  by stage"))) :]
    assert " ".join(stages[1].split()) == "decode 4.61 kFLOP 55.6 % 2.81 kB 50.4 % 24.0 s 62.3 %"


def test_a_prediction_without_interval_has_none_shown(report: Report) -> None:
    """Tables of engines have no spread: no column, no brackets."""
    certain = evolve(report, total=evolve(report.total, total=evolve(report.total.total, time=Time(memory=38.5))))
    assert [*time_sections(certain)][1].startswith("**38.5 s**, bound by memory 100%, on toy machine")
    assert "  time       38.5 s predicted on toy machine, runtime eager" in to_console(certain).splitlines()


def test_a_report_from_a_file_tells_the_same_times(report: Report, text: str) -> None:
    """Read back, the stages' intervals are those of the file."""
    again = report_from_json(report.to_json())
    assert _rows("\n\n".join(time_sections(again)), "Time by stage") == _rows(text, "Time by stage")
