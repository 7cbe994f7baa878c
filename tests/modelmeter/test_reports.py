"""Reports as JSON: round trip, schema, determinism, clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from modelmeter.categories import Category
from modelmeter.costs import Amount, Cost, Time
from modelmeter.devices import load_device
from modelmeter.evaluate import evaluate
from modelmeter.json_text import read_schema
from modelmeter.reports import Report, ReportFileError, read_report, report_from_json
from modelmeter.reports.report import MissingReportFileError


def _report(toy: ModuleType, *, device: bool = False) -> Report:
    return evaluate(toy.toy_model(), toy.toy_workload(), device=load_device("h200") if device else None)


def _predicted(toy: ModuleType) -> Report:
    return evaluate(toy.scheduled_toy_model(), toy.toy_workload(), time_model=toy.ToyClock())


@pytest.mark.parametrize("device", [False, True])
def test_round_trip(toy: ModuleType, device: bool) -> None:
    """Written and read, a report is the same, and written again it is the same text."""
    report = _report(toy, device=device)
    text = report.to_json()
    again = report_from_json(text)
    assert again == report
    assert again.to_json() == text
    assert all(isinstance(category, Category) for category in again.total.categories)


@pytest.mark.parametrize("device", [False, True])
def test_shipped_schema_describes_it(toy: ModuleType, device: bool) -> None:
    """Reports without a device, with one and with predicted times are valid; an unknown key is not."""
    schema = read_schema("report")
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(_report(toy, device=device).to_json())
    jsonschema.validate(document, schema)
    jsonschema.validate(json.loads(_predicted(toy).to_json()), schema)
    document["total"]["total"]["gold"] = 1
    with pytest.raises(jsonschema.ValidationError, match="gold"):
        jsonschema.validate(document, schema)


@pytest.mark.parametrize("kind", ["model", "report"])
def test_every_field_of_a_schema_is_described(kind: str) -> None:
    """Each property of the shipped schemas has a description of its own or by reference."""
    schema = read_schema(kind)

    def silent(node: Any, path: str) -> list[str]:
        found: list[str] = []
        if isinstance(node, dict):
            for name, child in node.get("properties", {}).items():
                if not ({"description", "$ref"} & child.keys()):
                    found.append(f"{path}.{name}")
            for key, child in node.items():
                found += silent(child, f"{path}.{key}")
        return found

    assert silent(schema, kind) == []


def test_amounts_are_in_base_units(toy: ModuleType) -> None:
    """Totals in the file are FLOPs and bytes as counted: 3680 + 4608 FLOPs."""
    document = json.loads(_report(toy).to_json())
    total = document["total"]["total"]
    assert total["flops"] == 8288
    assert total["flops"] == total["matmul_flops"] + total["vector_flops"]
    assert "seconds" not in total


def test_whole_floats_are_written_as_integers(toy: ModuleType) -> None:
    """No number in the file ends in .0."""
    assert ".0," not in _report(toy, device=True).to_json()


def test_no_time_stamp_and_no_path(toy: ModuleType) -> None:
    """Two evaluations write the same text."""
    assert _report(toy).to_json() == _report(toy).to_json()


def test_costs_add_and_scale() -> None:
    """Amounts add field by field; a time that is missing stays missing until one is there."""
    one = Cost(calls=1, matmul_flops=8, bytes=6)
    assert one + one == one * 2 == 2 * one
    assert (Amount(cost=one) + Amount(cost=one)).time is None
    both = Amount(cost=one) + Amount(cost=one, time=Time(memory=2.0))
    assert both.time == Time(memory=2.0)
    assert (Time(memory=2.0) * 3).seconds == 6.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("memory"), "memory"),
        (lambda d: d["total"]["total"].pop("bytes"), "an amount has the keys"),
        (lambda d: d["total"]["total"].update(calls=1.5), "calls is 1.5, not an integer"),
        (lambda d: d["total"]["total"].update(bytes="many"), "'many' is no number"),
        (lambda d: d["total"]["categories"].update(magic=d["total"]["total"]), "magic"),
        (lambda d: d.update(items=[{}]), "items"),
    ],
)
def test_what_is_wrong_is_said(toy: ModuleType, change: Any, message: str) -> None:
    """Each defect has a message that names it."""
    document = json.loads(_report(toy).to_json())
    change(document)
    with pytest.raises(ReportFileError, match=f"(?s)the text is no report: .*{message}"):
        report_from_json(json.dumps(document))


def test_other_text_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    """Cut off text, another version and a missing file each have their message."""
    text = _report(toy).to_json()
    with pytest.raises(ReportFileError, match="no JSON or cut off"):
        report_from_json(text[:1000])
    with pytest.raises(ReportFileError, match="schema_version 99, this release reads 2"):
        report_from_json(text.replace('"schema_version": 2', '"schema_version": 99', 1))
    with pytest.raises(MissingReportFileError, match="No such file"):
        read_report(tmp_path / "none.json")
    (tmp_path / "report.json").write_text(text)
    assert read_report(tmp_path / "report.json") == _report(toy)
