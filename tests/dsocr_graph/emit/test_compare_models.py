"""The table of models as Markdown, JSON and CSV."""

import csv
import io
import json
from types import ModuleType

import pytest
from attrs import evolve

import modelmeter
from dsocr_graph.emit.compare_models import LeftOut, models_to_csv, models_to_json, models_to_markdown
from modelmeter.compare import ModelRow, table


@pytest.fixture
def rows(toy: ModuleType) -> tuple[ModelRow, ...]:
    """Return the toy, and a variant of it, without times."""
    models = {"toy:a": toy.toy_model(), "toy:b": evolve(toy.toy_model(), variant={"dtype": "fp32"})}
    return table(models, dict.fromkeys(models, toy.toy_workload()))


def test_markdown_names_each_model_with_its_variant(rows: tuple[ModelRow, ...]) -> None:
    """A row a model with its totals, then a column a model by role, and what is left out with its reason."""
    text = models_to_markdown(rows, [LeftOut(label="whisper:x", reason="it has the stage encode")])
    (line,) = [line for line in text.splitlines() if line.startswith("| toy:b")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # 10 tokens of context, 2 documents of 4 tokens; 2151 parameters in 4302 bytes; FLOPs of toy.py
    assert cells[:7] == ["toy:b", "toy: dtype fp32", "toy pages", "10", "8", "2,151", "4.20 KiB"]
    assert cells[7] == "8.29 kFLOP"
    assert "## By role: time" not in text
    (head,) = [line for line in text.split("## By role: FLOPs")[1].splitlines() if line.startswith("| head ")][:1]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["head", "1.44 kFLOP", "1.44 kFLOP"]
    assert text.endswith("Left out:\n\n- whisper:x: it has the stage encode\n")


def test_memory_is_in_the_table(rows: tuple[ModelRow, ...]) -> None:
    """Weights by role, and what each peak consists of with its stage."""
    text = models_to_markdown(rows)
    assert "## By role: weights" in text
    memory = text.split("## Memory at the peak")[1]
    lines = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in memory.splitlines() if "|" in line}
    # parameters 4302 bytes; at S=5 late: 10*2*5 + 2000
    assert (lines["weights"], lines["activations"]) == ("4.20 KiB", "2.05 KiB")
    assert lines["**all**"] == "6.25 KiB"
    assert lines["stage of the peak"] == "prefill"
    document = json.loads(models_to_json(rows))["models"][0]
    assert sum(document["memory"].values()) == document["totals"]["peak memory"] == 4302 + 2100
    assert document["peak_stage"] == "prefill"


def test_how_a_model_takes_the_pages_is_beside_their_name(rows: tuple[ModelRow, ...]) -> None:
    """A mode, or an assumed reading, may differ from row to row: it is in every format."""
    tiny = evolve(rows[0], facts={"mode": "Tiny", "read": "as text", "batch": 1})
    assert "| toy pages, mode Tiny, read as text |" in models_to_markdown([tiny, rows[1]])
    assert '"toy pages, mode Tiny, read as text"' in models_to_csv([tiny])
    assert json.loads(models_to_json([tiny]))["models"][0]["workload_facts"]["mode"] == "Tiny"


def test_json_has_every_figure(rows: tuple[ModelRow, ...]) -> None:
    """Base units, by the names that comparisons use."""
    document = json.loads(models_to_json(rows, [LeftOut(label="x", reason="y")]))
    first = document["models"][0]
    assert (first["label"], first["model"], first["variant"]["dtype"]) == ("toy:a", "toy", "bf16")
    assert first["totals"]["FLOPs"] == sum(role.get("FLOPs", 0) for role in first["roles"].values()) == 8288
    assert document["units"]["KV cache per token"] == "bytes"
    assert document["left_out"] == {"x": "y"}


def test_csv_has_a_row_of_totals_and_one_of_each_role(rows: tuple[ModelRow, ...]) -> None:
    """Rows of roles add up to the row of totals, whose role is empty."""
    table_rows = list(csv.DictReader(io.StringIO(models_to_csv(rows))))
    first = [row for row in table_rows if row["label"] == "toy:a"]
    assert first[0]["role"] == ""
    assert int(first[0]["FLOPs [FLOPs]"]) == sum(int(row["FLOPs [FLOPs]"] or 0) for row in first[1:])
    assert first[0]["variant"] == "attention none, dtype bf16"


@pytest.fixture
def on_a_small_device(toy: ModuleType) -> tuple[ModelRow, ...]:
    """Return the toy on a device with 5,000 bytes; to load 2,151 elements of fp32 it needs 8,604."""
    small = evolve(modelmeter.load_device("h200"), memory_bytes=5_000)
    models = {"toy:a": toy.toy_model()}
    return table(models, dict.fromkeys(models, toy.toy_workload()), small)


def test_device_and_source_of_times_are_said(
    rows: tuple[ModelRow, ...], on_a_small_device: tuple[ModelRow, ...]
) -> None:
    """In every format; without a device it is said that there are no times."""
    name, times = modelmeter.load_device("h200").name, "datasheet roofline, not calibrated, unfused traffic"
    assert f"\n\nTimes on {name}: {times}.\n\n" in models_to_markdown(on_a_small_device)
    assert "\n\nWithout a device: no times.\n\n" in models_to_markdown(rows)
    document = json.loads(models_to_json(on_a_small_device))["models"][0]
    assert (document["device"], document["times"]) == (name, times)
    assert json.loads(models_to_json(rows))["models"][0]["device"] is None
    for row in csv.DictReader(io.StringIO(models_to_csv(on_a_small_device))):
        assert (row["device"], row["times"]) == (name, times)


def test_a_model_that_does_not_fit_says_so(rows: tuple[ModelRow, ...], on_a_small_device: tuple[ModelRow, ...]) -> None:
    """Below the totals, and in a field of the other formats; of one that fits nothing is said."""
    missing = f"it needs 8.60 kB, {modelmeter.load_device('h200').name} has 5.00 kB"
    assert f"**toy:a does not fit**: {missing}.\n\n## By role" in models_to_markdown(on_a_small_device)
    assert json.loads(models_to_json(on_a_small_device))["models"][0]["does_not_fit"] == missing
    first = next(csv.DictReader(io.StringIO(models_to_csv(on_a_small_device))))
    assert first["does not fit"] == missing
    assert "does not fit" not in models_to_markdown(rows)
