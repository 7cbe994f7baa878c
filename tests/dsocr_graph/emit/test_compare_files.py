"""Comparisons as Markdown, JSON and CSV."""

import csv
import io
import json
import re
from types import ModuleType

import pytest
from attrs import evolve

import modelmeter
from dsocr_graph.emit.compare_files import compare_to_csv, compare_to_json
from dsocr_graph.emit.compare_markdown import compare_to_markdown
from modelmeter.compare import Metric, Side, SideBySide, set_side_by_side, side_of_report
from modelmeter.evaluate import evaluate
from modelmeter.workload import StageRun, Workload, WorkloadItem


@pytest.fixture
def sides(toy: ModuleType) -> list[Side]:
    """Return the toy with 3 steps, with 4, and with 4 in another variant whose head never runs."""
    item = toy.toy_workload().items[0]
    four = evolve(toy.toy_workload(), items=(evolve(item, runs=(item.runs[0], evolve(item.runs[1], count=4))),))
    model = toy.toy_model()
    headless = evolve(
        model,
        variant={"dtype": "bf16", "attention": "none", "head": "none"},
        leaves=tuple(leaf for leaf in model.leaves if leaf.module != "lm_head"),
    )
    made = [("three", model, toy.toy_workload()), ("four", model, four), ("headless", headless, four)]
    device = modelmeter.load_device("h200")
    return [
        side_of_report(evaluate(each, workload, device=device), label=label, model=each)
        for label, each, workload in made
    ]


@pytest.fixture
def compared(sides: list[Side]) -> SideBySide:
    """Return the first two, by FLOPs."""
    return set_side_by_side(sides[:2], ranked_by=Metric.FLOPS)


def row_of(text: str, section: str, name: str) -> list[str]:
    """Return the cells of a row of a section's table."""
    body = text.split(f"## {section}\n")[1].partition("\n## ")[0]
    line = next(line for line in body.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_says_what_moved_and_why(compared: SideBySide) -> None:
    """A fourth step adds 2,048 FLOPs to 8,288, all of it in the decoder: 24.7 %."""
    text = compare_to_markdown(compared)
    assert text.startswith("# four compared with three\n\n- four: time ")
    assert "FLOPs +24.7 %" in text.splitlines()[2]
    assert row_of(text, "Totals", "FLOPs") == ["FLOPs", "8.29 kFLOP", "10.3 kFLOP", "+2.05 kFLOP", "+24.7 %"]
    assert row_of(text, "Totals", "parameters")[-2:] == ["=", "="]
    assert (
        "1. **decode, decoder: linear**: +2.05 kFLOP, 100.0 % of the change (4.61 kFLOP → 6.66 kFLOP); "
        "decode executions 3 → 4\n"
    ) in text
    assert "## By role: parameters\n\nThe same in every role.\n" in text
    assert row_of(text, "By module: FLOPs", "`model.layers.[0-1].up`")[-2:] == ["+2.05 kFLOP", "+34.8 %"]


def test_markdown_names_model_and_variant_of_each_side(sides: list[Side]) -> None:
    """The fact that differs is in bold; one that a variant lacks is a dash."""
    text = compare_to_markdown(set_side_by_side([sides[1], sides[2]]))
    assert re.search(r"\| model +\| toy +\| toy +\|", text)
    assert re.search(r"\| \*\*variant: head\*\* +\| - +\| none +\|", text)
    assert "only in four: `lm_head` (Linear)" in text


def test_markdown_shows_as_many_lines_as_asked_and_sums_up_the_rest(sides: list[Side]) -> None:
    """What is not shown is one line more, so that the shares still add up to 100 %."""
    text = compare_to_markdown(set_side_by_side([sides[0], sides[2]], ranked_by=Metric.BYTES), lines=1)
    lines = re.findall(r"^\d+\. .*?([-\d.,]+) % of the change", text, flags=re.MULTILINE)
    assert re.search(r"^2\. \d+ smaller part", text, flags=re.MULTILINE)
    assert sum(float(share.replace(",", "")) for share in lines) == pytest.approx(100, abs=0.1)


def test_markdown_sums_up_what_changed_least(toy: ModuleType) -> None:
    """A part whose change is a thousandth of the largest one is not worth a line of its own."""
    model = toy.toy_model()
    columns = {"lm_head": 16_000, "model.experts": 3}  # before: 16 and 2
    other = evolve(
        model,
        leaves=tuple(
            evolve(leaf, layer=evolve(leaf.layer, out_features=columns[leaf.module]), cost=None)
            if leaf.module in columns
            else leaf
            for leaf in model.leaves
        ),
    )
    sides = [
        side_of_report(evaluate(each, toy.toy_workload()), label=label, model=each)
        for label, each in (("a", model), ("b", other))
    ]
    text = compare_to_markdown(set_side_by_side(sides, ranked_by=Metric.FLOPS))
    assert "1. **prefill, head**: " in text
    # experts: a column more, of 2 * 20 rows * 4 FLOPs; head: 15,984 columns more, of 10 rows * (2 * 4 + 1) FLOPs each
    assert "2. 1 smaller part: +160 FLOP, <0.1 % of the change (320 FLOP → 480 FLOP)" in text


def test_markdown_says_how_modules_became_rows() -> None:
    """Rows of several ids have a legend; what could belong together and is apart is named."""
    models = {name: modelmeter.load(name) for name in ("deepseek-ocr", "deepseek-ocr-2", "qwen3-vl-8b")}
    step = StageRun(stage="decode", count=1, bindings={"B": 1, "T": 10})
    workload = Workload(name="step", items=(WorkloadItem(name="one", documents=1, runs=(step,)),))
    sides = [side_of_report(evaluate(each, workload), label=name, model=each) for name, each in models.items()]
    two = compare_to_markdown(set_side_by_side(sides[:2], ranked_by=Metric.BYTES))
    assert "\n| `model.{-/language_model}.layers." in two
    assert "`{a/b}` is the path on either side" in two
    assert "are apart that may be the same" not in two
    three = compare_to_markdown(set_side_by_side(sides, ranked_by=Metric.PARAMETERS))
    # 36 equal layers fit the first layer as well as the other eleven
    example = re.search(r"rows are apart that may be the same, as several fit equally well: (.*) could be (.*)", three)
    assert example is not None
    assert example[1].startswith("`model.language_model.layers.[0-35].")
    assert " or " in example[2]


def test_peaks_of_different_stages_say_so(toy: ModuleType) -> None:
    """Without decode the peak moves to the prefill: what its parts are of is named, as they are of other moments."""
    item = toy.toy_workload().items[0]
    sides = [
        side_of_report(
            evaluate(toy.toy_model(), evolve(toy.toy_workload(), items=(evolve(item, runs=(run,)),))), label=run.stage
        )
        for run in item.runs
    ]
    text = compare_to_markdown(set_side_by_side(sides, ranked_by=Metric.FLOPS))
    assert "each has its own contents: prefill in prefill, decode in decode." in text


def test_what_sides_are_asked_is_summed_up_where_it_differs(sides: list[Side]) -> None:
    """Three and four steps are 8 and 10 new tokens of two documents; the prompt is the same and left out."""
    summary = compare_to_markdown(set_side_by_side(sides[:2], ranked_by=Metric.FLOPS)).splitlines()[2]
    assert summary.endswith(", output tokens +25.0 %")


def test_markdown_of_equal_sides_says_that_nothing_changed(sides: list[Side]) -> None:
    """A comparison of a thing with itself is no error."""
    text = compare_to_markdown(set_side_by_side([sides[0], evolve(sides[0], label="again")], ranked_by=Metric.FLOPS))
    assert "Nothing: 8.29 kFLOP as in three, in every part." in text


def test_three_sides_have_a_change_each(sides: list[Side]) -> None:
    """Columns name the side that changed, and each has its own reasons."""
    text = compare_to_markdown(set_side_by_side(sides, ranked_by=Metric.FLOPS))
    assert "| change of four |" in text
    assert "## What changed and why: FLOPs of headless" in text
    # headless: 8288 + 2048 - 1440 of the head
    assert row_of(text, "Totals", "FLOPs")[3:] == ["8.90 kFLOP", "+2.05 kFLOP", "+24.7 %", "+608 FLOP", "+7.3 %"]


def test_json_has_every_figure_and_reason(compared: SideBySide) -> None:
    """Lists have one entry a side; shares of the changes add up to one."""
    document = json.loads(compare_to_json(compared))
    assert document["schema_version"] == 2
    assert document["sides"] == ["three", "four"]
    assert document["totals"]["FLOPs"] == [8288, 10336]
    assert document["roles"]["head"]["FLOPs"] == [1440, 1440]
    assert document["modules"]["lm_head"]["parameters"] == [80, 80]
    assert document["module_ids"] == document["undecided"] == {}
    (changes,) = document["changes"]
    assert (changes["side"], changes["metric"], changes["before"], changes["after"]) == ("four", "FLOPs", 8288, 10336)
    assert sum(entry["share"] for entry in changes["entries"]) == 1
    step = {"reason": "decode executions 3 → 4", "effect": 2048, "raises": True}
    assert changes["entries"][0]["why"] == changes["causes"] == [step]
    assert document["explained"] == ["FLOPs"]


def test_csv_rows_add_up_to_the_totals(sides: list[Side]) -> None:
    """Roles and modules are each the whole of every side, and the changes are the whole change."""
    table = list(csv.DictReader(io.StringIO(compare_to_csv(set_side_by_side(sides, ranked_by=Metric.FLOPS)))))
    flops = [row for row in table if row["metric"] == "FLOPs"]
    (total,) = [row for row in flops if row["split"] == "total"]
    for split in ("stage", "role", "module"):
        rows = [row for row in flops if row["split"] == split]
        for label in ("three", "four", "headless"):
            assert sum(int(row[label] or 0) for row in rows) == int(total[label])
    changes = [row for row in flops if row["split"] == "change"]
    assert sum(int(row["change of headless"] or 0) for row in changes) == int(total["change of headless"]) == 608
    assert {row["why"] for row in changes if row["change of four"]} == {"decode executions 3 → 4 (+2.05 kFLOP)"}


def test_an_unknown_figure_is_no_change(toy: ModuleType) -> None:
    """A bare report knows neither parameters by module nor the cache: its cells are empty, and so are the changes."""
    report = evaluate(toy.toy_model(), toy.toy_workload())
    whole = side_of_report(report, label="whole", model=toy.toy_model())
    for sides in ([whole, side_of_report(report, label="bare")], [side_of_report(report, label="bare"), whole]):
        compared = set_side_by_side(sides)
        rows = list(csv.DictReader(io.StringIO(compare_to_csv(compared))))
        change = f"change of {sides[1].label}"
        unknown = [row for row in rows if row["metric"] in {"KV cache per token", "parameters"} and not row["bare"]]
        assert {row["metric"] for row in unknown} == {"KV cache per token", "parameters"}
        assert {row[change] for row in unknown} == {""}
        (flops,) = [row for row in rows if (row["split"], row["metric"]) == ("total", "FLOPs")]
        assert flops[change] == "0"
        per_token = json.loads(compare_to_json(compared))["totals"]["KV cache per token"]
        assert sorted(map(str, per_token)) == ["8", "None"]


def test_a_part_that_one_side_does_not_have_is_a_change(sides: list[Side]) -> None:
    """The head of the variant without one has no FLOPs: that is known, so that all of them are gone."""
    rows = csv.DictReader(io.StringIO(compare_to_csv(set_side_by_side([sides[1], sides[2]], ranked_by=Metric.FLOPS))))
    (head,) = [row for row in rows if (row["split"], row["part"], row["metric"]) == ("role", "head", "FLOPs")]
    assert (head["four"], head["headless"], head["change of headless"]) == ("1440", "", "-1440")


def test_the_same_sides_give_the_same_bytes(sides: list[Side]) -> None:
    """Nothing depends on when or in which process it is written."""
    for write in (compare_to_markdown, compare_to_json, compare_to_csv):
        assert write(set_side_by_side(sides)) == write(set_side_by_side(list(sides)))


def test_a_side_that_does_not_fit_its_device_says_so(toy: ModuleType) -> None:
    """Under the totals of Markdown, in JSON and in CSV, for that side alone; the toy loads in 8,604 bytes."""
    h200 = modelmeter.load_device("h200")
    sides = [
        side_of_report(evaluate(toy.toy_model(), toy.toy_workload(), device=device), label=label)
        for label, device in (("large", h200), ("small", evolve(h200, memory_bytes=5_000)))
    ]
    compared = set_side_by_side(sides, ranked_by=Metric.FLOPS)
    missing = f"it needs 8.60 kB, {h200.name} has 5.00 kB"
    totals = compare_to_markdown(compared).split("## Totals")[1].partition("\n## ")[0]
    assert totals.endswith(f"\n\n**small does not fit**: {missing}.\n")
    assert "large does not fit" not in totals
    document = json.loads(compare_to_json(compared))
    assert document["does_not_fit"] == [None, missing]
    assert document["device_memory"] == [h200.memory_bytes, 5_000]
    (row,) = [row for row in csv.DictReader(io.StringIO(compare_to_csv(compared))) if row["split"] == "fit"]
    assert (row["large"], row["small"]) == (str(h200.memory_bytes), "5000")
    assert row["why"] == f"small does not fit: {missing}"


def test_without_devices_nothing_is_said_of_fitting(toy: ModuleType) -> None:
    """No line and no row; JSON has nulls."""
    sides = [side_of_report(evaluate(toy.toy_model(), toy.toy_workload()), label=label) for label in ("a", "b")]
    compared = set_side_by_side(sides, ranked_by=Metric.FLOPS)
    assert "does not fit" not in compare_to_markdown(compared)
    assert "\nfit," not in compare_to_csv(compared)
    assert json.loads(compare_to_json(compared))["does_not_fit"] == [None, None]
