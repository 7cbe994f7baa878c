"""report.md: headline, tables that add up and line up, nothing silently zero."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from dsocr_graph.emit.console import to_console
from dsocr_graph.emit.markdown import SHOWN_PAGES, to_markdown
from dsocr_graph.emit.markdown_amounts import format_significant
from dsocr_graph.emit.markdown_table import share, shares, table
from modelmeter.devices import load_device
from modelmeter.evaluate import evaluate
from modelmeter.workload import Workload


def _markdown(toy: ModuleType, *, device: bool = False, command: str | None = None) -> str:
    model = toy.toy_model()
    report = evaluate(model, toy.toy_workload(), device=load_device("h200") if device else None)
    return to_markdown(model, report, command)


def _section(text: str, title: str) -> str:
    """Return a section, from its title to the next one."""
    assert f"# {title}\n" in text, title
    return re.split(r"\n#+ ", text.split(f"# {title}\n", 1)[1])[0]


def _rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| :")]


def test_headline_says_the_totals(toy: ModuleType) -> None:
    """8288 FLOPs, 5.57 kB, 8.60 kB while loading; prefill is 44 %, so decode leads with 56 %."""
    text = _markdown(toy)
    assert text.startswith(
        "# toy (attention none, dtype bf16)\n\nWorkload **toy pages**: 2 documents take **8.29 kFLOP**"
    )
    assert "move **5.57 kB**" in text
    # 4608 of 8288 FLOPs are in decode (55.6 %)
    assert "Most FLOPs are in decode (56%)" in text
    assert "peaks at **8.60 kB** (while loading; 6.40 kB while running, 4.30 kB of it weights)" in text
    assert text.endswith("\n")


def test_no_device_no_times(toy: ModuleType) -> None:
    """Without a device there is no time column, and the report says so."""
    text = _markdown(toy)
    assert "| time" not in text
    assert "No device was given, so there are no times." in text


def test_a_device_adds_labelled_times(toy: ModuleType) -> None:
    """Times carry the label of the roofline and the name of the device."""
    text = _markdown(toy, device=True)
    assert "datasheet roofline, not calibrated" in text
    assert "NVIDIA H200" in text
    stages = _rows(_section(text, "By stage"))
    assert stages[0][-3:] == ["time", "%", "bound by"]
    assert "Time by page and stage" in text


def test_workload_table_names_page_sizes_and_tokens(toy: ModuleType) -> None:
    """One row per page with what is known of it, and one for all."""
    rows = _rows(_section(_markdown(toy), "Workload"))
    assert rows[0] == ["page", "size", "grid", "documents", "context", "new tokens", "FLOPs", "bytes"]
    assert rows[1] == ["page", "640x480", "-", "2", "5", "4", "8.29 kFLOP", "5.57 kB"]
    assert rows[2][0] == "**all**"


@pytest.mark.parametrize("title", ["By stage", "By component", "By category"])
def test_percentages_of_a_split_add_up(toy: ModuleType, title: str) -> None:
    """The parts' percentages sum to 100.0 in every split."""
    rows = _rows(_section(_markdown(toy), title).split("\n\nMean of")[0])
    for column, name in enumerate(rows[0]):
        if name == "%":
            parts = [float(row[column].rstrip(" %")) for row in rows[1:-1] if row[column] != "-"]
            assert sum(parts) == pytest.approx(100.0)


def test_tables_are_aligned(toy: ModuleType) -> None:
    """Every line of a table is as long as its header."""
    blocks = [block for block in _markdown(toy, device=True).split("\n\n") if block.startswith("|")]
    assert len(blocks) > 10
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1, block


def test_unclassified_work_is_shown(toy: ModuleType) -> None:
    """An operator without a rule is named with its stage, its calls and its bytes."""
    coverage = _section(_markdown(toy), "Coverage")
    assert "totals are too low" in coverage
    assert ["`aten::mystery`", "decode", "(root)", "3", "72 B"] in _rows(coverage)
    assert ["`aten::grouped_linear`", "experts are picked uniformly", "1", "320 FLOP", "393 B"] in _rows(coverage)


def test_memory_names_what_decides(toy: ModuleType) -> None:
    """Each peak has its operator, module and live tensors; the peak of the run has its reason."""
    text = _markdown(toy)
    decides = _section(text, "What decides each peak")
    assert "- **prefill**: `aten::silu` in `model.layers.[0-1].act`" in decides
    assert "  - 224 B `k` (kv cache) of `aten::cat` in `model`\n  - 8 B in smaller ones" in decides
    assert "Loading decides" in _section(text, "Peak of the run")


def test_choice_of_experts_has_its_bounds(toy: ModuleType) -> None:
    """Ten tokens of 2 of 8 read 7.55 experts, between 2 and 8: 32 to 128 bytes."""
    rows = _rows(_section(_markdown(toy), "Choice of experts"))
    assert rows[1][:7] == ["page", "prefill", "10", "7.55 of 8 (2 to 8)", "121 B", "32 B", "128 B"]


def test_what_the_model_has_no_use_for_is_said(toy: ModuleType) -> None:
    """What the requests note as ignored is in the report and on the console, each once; else nothing is said."""
    workload = toy.toy_workload()
    noted = tuple(evolve(item, facts={**item.facts, "ignored": "prompt_tokens, new_tokens"}) for item in workload.items)
    report = evaluate(toy.toy_model(), evolve(workload, items=noted))
    said = "The model has no use for prompt_tokens, new_tokens of the pages: they change nothing here."
    assert said in to_markdown(toy.toy_model(), report)
    assert "  ignored    prompt_tokens, new_tokens of the pages: the model has no use for them" in to_console(report)
    assert "no use for" not in _markdown(toy)


def test_idle_modules_are_listed(toy: ModuleType) -> None:
    """Parameters that never run are said."""
    assert "- `model.spare`: 7 parameters" in _markdown(toy)


def test_the_command_is_given(toy: ModuleType) -> None:
    """The command that makes the file closes it, if there is one."""
    assert _markdown(toy, command="do it").endswith("## Command\n\n```sh\ndo it\n```\n")
    assert "## Command" not in _markdown(toy)


def test_long_workloads_show_their_largest_pages(toy: ModuleType) -> None:
    """Of 300 pages the largest are shown one by one, the others in one row."""
    (item,) = toy.toy_workload().items
    items = tuple(evolve(item, name=f"page {i}", documents=1 + i % 2) for i in range(300))
    model = toy.toy_model()
    report = evaluate(model, Workload(name="long", items=items))
    text = to_markdown(model, report)
    rows = _rows(_section(text, "Workload"))
    assert len(rows) == 1 + SHOWN_PAGES + 2
    assert rows[-2][0] == "280 smaller pages"
    # 280 of 300 equal pages
    assert rows[-2][-2] == "2.32 MFLOP"
    assert len(text) < 60_000


def test_equal_inputs_give_equal_text(toy: ModuleType) -> None:
    """Nothing in the report depends on when or where it was written."""
    assert _markdown(toy, device=True, command="x") == _markdown(toy, device=True, command="x")


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=30))
def test_shares_add_up(parts: list[int]) -> None:
    """Law: percentages of all parts sum to 100.0 unless all are zero, and none is off by 0.1 or more."""
    found = shares(parts)
    if not sum(parts):
        assert found == ["-"] * len(parts)
        return
    numbers = [0.0 if text in ("-", "<0.1 %") else float(text.rstrip(" %")) for text in found]
    assert sum(numbers) == pytest.approx(100.0)
    for number, part in zip(numbers, parts, strict=True):
        assert abs(number - part / sum(parts) * 100) < 0.1 + 1e-9


def test_small_parts_are_not_zero() -> None:
    """What is there but rounds to nothing says so; nothing at all is a dash."""
    assert share(1, 10_000) == "<0.1 %"
    assert share(0, 10_000) == "-"
    assert share(0, 0) == "-"
    assert shares([1, 9_999, 0]) == ["<0.1 %", "100.0 %", "-"]


def test_table_refuses_ragged_rows() -> None:
    """A row with a cell too few is our mistake, not a crooked table."""
    with pytest.raises((ValueError, IndexError)):
        table(("a", "b"), [("1",)])


def test_numbers_have_three_significant_digits() -> None:
    """Zeros are kept, thousands are grouped, no exponent."""
    assert [format_significant(value) for value in (0.0268, 1.5, 99.94, 150, 999.4, 1234.5)] == [
        "0.0268",
        "1.50",
        "99.9",
        "150",
        "999",
        "1,234",
    ]
